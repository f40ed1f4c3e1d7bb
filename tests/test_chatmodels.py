"""Batches that answer like single prompts, sampling from the right distribution, and safe loading."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from transformers import (
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from ultrachat import chatmodels
from ultrachat.chatmodels import generate, load
from ultrachat.errors import Stop
from ultrachat.tiny import tiny_llama, train_tokenizer

TEXTS = [
    "User: What is a pear?</s>\nAssistant: A fruit of the pear tree.</s>\n[|Human|]Hello![|AI|]Hi! ",
    "a bird, a pear, the sea and the sky; one two three four five six. " * 4,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS * 2, 320, tmp_path_factory.mktemp("tokenizer"))


def random_model(kind: str, tokenizer):
    """A small model with large random weights, so that its greedy answers vary with the prompt."""
    torch.manual_seed(3)
    size = {"vocab_size": len(tokenizer)}
    if kind == "llama":
        model = tiny_llama(tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_position=128)
    elif kind == "neox":
        config = GPTNeoXConfig(
            **size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=128,
        )  # fmt: skip
        model = GPTNeoXForCausalLM(config)
    else:
        model = MptForCausalLM(MptConfig(**size, d_model=32, n_heads=2, n_layers=2, max_seq_len=128))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.0 if weight.ndim == 1 else 6.0)
    return model.eval()


PROMPTS = ["a bird", "the sea and the sky; one two three four", "x", "User: a pear</s>\nAssistant: "]


# ---- generation -------------------------------------------------------------------------------


LENGTHS = (1, 90, 3, 2, 57, 40, 1, 90, 8, 33, 34, 35)  # one is given twice below


def ids_of(length: int, salt: int = 0) -> list[int]:
    """A prompt of ordinary tokens."""
    return [10 + (7 * i * i + 3 * length + salt) % 300 for i in range(length)]


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("kind", ["llama", "neox", "mpt"])
def test_an_answer_does_not_depend_on_its_batch(kind, temperature, tokenizer):
    """Very different lengths; batches that divide their number, that do not, and one larger than it."""
    model = random_model(kind, tokenizer)
    prompts = [*PROMPTS, *(ids_of(length, salt) for salt, length in enumerate(LENGTHS))]
    single = [generate(model, tokenizer, [p], 12, temperature)[0] for p in prompts]
    assert len(set(single)) > len(prompts) - 3  # the answers do depend on the prompts
    for batch_size in (3, 8, 100):
        assert generate(model, tokenizer, prompts, 12, temperature, batch_size=batch_size) == single
    backwards = generate(model, tokenizer, prompts[::-1], 12, temperature, batch_size=5)
    assert backwards == single[::-1]


@pytest.mark.parametrize("kind", ["llama", "neox", "mpt"])
def test_stop_strings_in_the_middle_of_a_batch(kind, tokenizer):
    model = random_model(kind, tokenizer)
    prompts = [ids_of(length, salt) for salt, length in enumerate(LENGTHS)]
    whole = generate(model, tokenizer, prompts, 24, temperature=0, batch_size=5)
    stops = [whole[1][4:7], whole[4][2:4], "not in any of them"]
    cut = [w[: min((w.index(s) for s in stops if s in w), default=len(w))].strip() for w in whole]
    assert (
        2 <= sum(a != b for a, b in zip(cut, whole, strict=True)) < len(whole)
    )  # some end early, some do not
    for batch_size in (1, 5, 100):
        assert generate(model, tokenizer, prompts, 24, 0, batch_size=batch_size, stop=stops) == cut


def test_batches_are_of_like_length_and_the_same_whatever_is_done(tokenizer):
    model = random_model("llama", tokenizer)
    prompts = [ids_of(length) for length in LENGTHS]
    batches = list(chatmodels.generate_batches(model, tokenizer, prompts, 4, batch_size=5))
    assert [list(batch) for batch in batches] == [[1, 7, 4, 5, 11], [10, 9, 8, 2, 3], [0, 6]]
    for done in ([1, 7, 4, 5, 11], [0, 6], [0, 6, 10, 9, 8, 2, 3], []):
        left = list(chatmodels.generate_batches(model, tokenizer, prompts, 4, batch_size=5, done=done))
        assert left == [batch for batch in batches if not set(batch) <= set(done)]
    partly = list(chatmodels.generate_batches(model, tokenizer, prompts, 4, batch_size=5, done=[1, 7, 0]))
    assert partly == batches


def test_no_prompts_no_answers(tokenizer):
    assert generate(random_model("llama", tokenizer), tokenizer, [], 4) == []


def test_greedy_follows_the_models_own_argmax(tokenizer):
    model = random_model("llama", tokenizer)
    ids = tokenizer("a bird")["input_ids"]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    new = ids[-6:]
    end = next((i for i, t in enumerate(new) if t in tokenizer.all_special_ids), 6)
    assert generate(model, tokenizer, ["a bird"], 6, temperature=0) == [tokenizer.decode(new[:end]).strip()]


def test_sampling_is_repeatable_and_leaves_the_random_state_alone(tokenizer):
    model = tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2).eval()
    before = torch.get_rng_state()
    first = generate(model, tokenizer, PROMPTS, 8, temperature=1.0, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(model, tokenizer, PROMPTS, 8, temperature=1.0, seed=5) == first
    assert generate(model, tokenizer, PROMPTS, 8, temperature=1.0, seed=6) != first
    # with top_p so small that one token is left, sampling is greedy
    assert generate(model, tokenizer, PROMPTS, 8, temperature=1.0, top_p=1e-6) == generate(
        model, tokenizer, PROMPTS, 8, temperature=0
    )


def chi_square_p(counts: Counter, expected: dict, n: int) -> float:
    """The p-value of counts against probabilities; what is expected fewer than 5 times is one class."""
    rare = [k for k, p in expected.items() if p * n < 5]
    pairs = [(counts[k], p * n) for k, p in expected.items() if k not in rare]
    if rare:
        pairs.append((sum(counts[k] for k in rare), sum(expected[k] for k in rare) * n))
    assert sum(counts.values()) == n and not set(counts) - set(expected)
    statistic = sum((seen - due) ** 2 / due for seen, due in pairs if due)
    return float(chi2.sf(statistic, len(pairs) - 1))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_what_is_sampled_has_the_models_distribution(tokenizer, monkeypatch, top_p):
    """Two tokens in a row, 4,000 times, against the product of the probabilities that the model gives them."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    prompt, n, temperature = [5, 3, 7], 4000, 0.7

    def distribution(ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        p = (logits / temperature).softmax(-1)
        kept = p.sort(descending=True).indices[
            : int((p.sort(descending=True).values.cumsum(0) < top_p).sum()) + 1
        ]
        return [float(p[i] / p[kept].sum()) if i in kept else 0.0 for i in range(9)]

    ends = set(tokenizer.all_special_ids)
    assert 0 < len(ends & set(range(9))) < 5
    expected = {}
    for first, p in enumerate(distribution(prompt)):
        if first in ends:
            expected[(first,)] = p
        else:
            for second, q in enumerate(distribution([*prompt, first])):
                expected[first, second] = p * q
    monkeypatch.setattr(
        chatmodels, "_answer", lambda _, ids, ends, stop: tuple(ids[: 1 if ids[0] in ends else 2])
    )
    drawn = generate(model, tokenizer, [prompt] * n, 2, temperature, top_p, batch_size=1000)
    expected = {k: p for k, p in expected.items() if p > 0}
    assert len(expected) > 10
    assert chi_square_p(Counter(drawn), expected, n) > 0.01
    flat = {k: 1 / len(expected) for k in expected}
    assert chi_square_p(Counter(drawn), flat, n) < 1e-6  # the test can fail


def test_a_seed_for_each_prompt(tokenizer):
    model = random_model("llama", tokenizer)
    one = ids_of(5)
    by_seed = [generate(model, tokenizer, [one], 8, 1.0, seed=seed)[0] for seed in (3, 4)]
    assert by_seed[0] != by_seed[1]
    made = chatmodels.generated(
        model, tokenizer, [one, ids_of(9), one, one], 8, 1.0, seed=[3, 7, 4, 3], batch_size=3
    )
    assert [g.text for g in made[::2]] == by_seed and made[3] == made[0]  # the same again is the same
    assert made[1].text == generate(model, tokenizer, [ids_of(9)], 8, 1.0, seed=7)[0]
    with pytest.raises(Stop, match="seed: expected a whole number, or 2 for as many prompts, got 3"):
        chatmodels.generated(model, tokenizer, [one, one], 8, 1.0, seed=[1, 2, 3])


def test_how_an_answer_ended_is_told(tokenizer):
    model = random_model("llama", tokenizer)
    prompts = [ids_of(length, salt) for salt, length in enumerate(LENGTHS)]
    whole = chatmodels.generated(model, tokenizer, prompts, 24, temperature=0, batch_size=5)
    assert [g.text for g in whole] == generate(model, tokenizer, prompts, 24, temperature=0)
    # an end in the middle of some, by the model's own settings; and the last token may be the end
    ids = tokenizer(whole[1].text[3:6], add_special_tokens=False)["input_ids"]
    model.generation_config.eos_token_id = ids
    for limit in range(1, 25):
        for one, was in zip(
            chatmodels.generated(model, tokenizer, prompts, limit, temperature=0), whole, strict=True
        ):
            assert one.n_tokens <= limit and was.text.startswith(one.text.rstrip("\ufffd"))
            assert not one.cut or one.n_tokens == limit
    ends = {g.cut for g in chatmodels.generated(model, tokenizer, prompts, 24, temperature=0)}
    assert ends == {True, False}
    stopped = chatmodels.generated(model, tokenizer, prompts[:1], 24, 0, stop=[whole[0].text[5:8]])[0]
    assert not stopped.cut and stopped.text == whole[0].text[:5].strip()


def test_the_last_token_may_be_the_end(tokenizer):
    end = tokenizer.eos_token_id
    for ids, found in (
        ([50, end], ("", False, 2)), ([end, 50, 50], ("", False, 1)), ([50, 51], ("", True, 2)),
    ):  # fmt: skip
        one = chatmodels._generated(tokenizer, ids, [end], [])
        assert (one.cut, one.n_tokens) == found[1:]


def test_forbidden_tokens_are_only_forbidden_as_the_first(tokenizer, monkeypatch):
    """Among 400 draws at about equal odds, where they are the most of the vocabulary."""
    model = tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2).eval()
    rows = []
    monkeypatch.setattr(chatmodels, "_answer", lambda _, ids, ends, stop: rows.append(ids) or "")
    forbidden = set(range(3, 300))
    prompts = [ids_of(1 + i % 7) for i in range(400)]
    for temperature in (0, 1.0):
        rows.clear()
        chatmodels.generated(
            model, tokenizer, prompts, 2, temperature, batch_size=100, forbidden_first=forbidden
        )
        first, second = {row[0] for row in rows}, {row[1] for row in rows}
        assert first and not first & forbidden
        if temperature:
            assert second & forbidden and len(first) > 10
    rows.clear()
    chatmodels.generated(model, tokenizer, prompts, 2, 1.0, batch_size=100)
    assert {row[0] for row in rows} & forbidden


def test_other_prompts_other_noise(tokenizer):
    """The first tokens of two prompts, and of two seeds, are independent where their distributions are alike."""
    scores = torch.zeros(500, 4)

    def draws(keys):
        return chatmodels._Noise(keys, 1.0, 1.0)(None, scores).argmax(-1)

    prompts = [[i] for i in range(500)]
    first, second = chatmodels._keys(prompts, 0), chatmodels._keys(prompts, 1)
    assert len({*first, *second}) == 1000 and chatmodels._keys(prompts[::-1], 0) == first[::-1]
    pairs = Counter(zip(draws(first).tolist(), draws(second).tolist(), strict=True))
    assert chi_square_p(pairs, {(a, b): 1 / 16 for a in range(4) for b in range(4)}, 500) > 0.01
    assert len(set(chatmodels._keys([[1], [2], [1]], 0))) == 3  # the same prompt again is another draw


def test_sampling_draws_from_all_of_the_vocabulary(tokenizer):
    # an untrained model finds all tokens about alike, so 400 draws hit far more than the 50 likeliest,
    # which is what generate() in transformers would be left with unless it is told
    model = tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2).eval()
    assert len(set(generate(model, tokenizer, ["x"] * 400, 1, temperature=1.0, batch_size=400))) > 100


def test_answers_end_at_special_tokens_and_stop_strings(tokenizer):
    ids = tokenizer("one two[|Human|]three</s>four", add_special_tokens=False)["input_ids"]
    ends = tokenizer.all_special_ids
    assert chatmodels._answer(tokenizer, ids, ends, []) == "one two[|Human|]three"
    assert chatmodels._answer(tokenizer, ids, ends, ["[|AI|]", "[|Human|]"]) == "one two"
    assert chatmodels._answer(tokenizer, ids, ends, ["two", "one t"]) == ""


def test_a_models_own_settings_are_left_out_but_for_its_end(tokenizer):
    model = random_model("llama", tokenizer)
    whole = generate(model, tokenizer, PROMPTS, 12, temperature=0)
    again = generate(model, tokenizer, PROMPTS, 12, temperature=0.9)
    own = GenerationConfig(repetition_penalty=9.0, temperature=0.01, top_k=1, do_sample=True, max_length=7)
    model.generation_config = own
    assert generate(model, tokenizer, PROMPTS, 12, temperature=0) == whole
    assert generate(model, tokenizer, PROMPTS, 12, temperature=0.9) == again
    assert model.generation_config is own
    first = tokenizer(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        likeliest = int(model(input_ids=torch.tensor([first])).logits[0, -1].argmax())
    own.eos_token_id = [likeliest, 2]
    assert generate(model, tokenizer, PROMPTS[:1], 12, temperature=0) == [""]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"temperature": -0.1}, "temperature: expected a number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature: expected .*, got nan"),
        ({"top_p": 0}, "top_p: expected a number above 0 and up to 1, got 0"),
        ({"top_p": 1.5}, "top_p: .*, got 1.5"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens: expected a whole number of at least 1, got True"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_one_line(wrong, line, tokenizer):
    with pytest.raises(Stop, match=line):
        generate(random_model("llama", tokenizer), tokenizer, PROMPTS, **{"max_new_tokens": 4} | wrong)


def test_other_weights_have_another_digest(tokenizer):
    model = random_model("llama", tokenizer)
    digest = chatmodels.weights_digest(model)
    assert digest == chatmodels.weights_digest(random_model("llama", tokenizer)) and len(digest) == 16
    assert chatmodels.weights_digest(random_model("llama", tokenizer).to(torch.bfloat16)) != digest
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert chatmodels.weights_digest(model) != digest


def test_in_four_bits_the_digest_outlives_the_first_use(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_llama(tokenizer, hidden_size=128, n_layers=1, n_heads=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load(tmp_path, load_in_4bit=True, device="cpu")
    before = chatmodels.weights_digest(model)
    generate(model, tokenizer, PROMPTS, 2)
    assert chatmodels.weights_digest(model) == before != chatmodels.weights_digest(load(tmp_path)[0])


def test_a_stop_string_ends_generation_early(tokenizer):
    model = random_model("llama", tokenizer)
    whole = generate(model, tokenizer, PROMPTS, 24, temperature=0)
    stop = whole[0][6:9]
    lengths = []
    original = model.forward
    model.forward = lambda *args, **kwargs: lengths.append(1) or original(*args, **kwargs)
    assert stop and generate(model, tokenizer, PROMPTS[:1], 24, temperature=0, stop=[stop]) == [
        whole[0][: whole[0].index(stop)].strip()
    ]
    assert len(lengths) < 24
    stopped = generate(model, tokenizer, PROMPTS, 24, temperature=0, stop=[stop])
    assert stopped == [w[: w.index(stop)].strip() if stop in w else w for w in whole]


def test_what_does_not_fit_is_one_line(tokenizer):
    model = random_model("llama", tokenizer)
    with pytest.raises(Stop, match=r"prompt 2: 101 tokens \+ max_new_tokens 28 exceed the model's 128"):
        generate(model, tokenizer, [[5], [5] * 101], 28)
    with pytest.raises(Stop, match="prompt 1: is empty"):
        generate(model, tokenizer, [[]], 1)


# ---- loading ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, tokenizer) -> Path:
    folder = tmp_path / "model"
    tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2, seed=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_saved_model_comes_back_the_same(saved, tokenizer):
    model, again = load(saved)
    expected = tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert not model.training and again("a</s>")["input_ids"] == tokenizer("a</s>")["input_ids"]
    assert load(saved, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_what_is_not_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(Stop, match="is neither a folder nor a hub id"):
        load(tmp_path / "nothing")
    with pytest.raises(Stop, match="cannot be loaded"):
        load(tmp_path)  # an empty folder
    with pytest.raises(
        Stop, match="openbmb/UltraLM-13b: holds a difference to LLaMA, which is no model; run"
    ):
        load("openbmb/UltraLM-13b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Stop, match="nobody/no-such-model: its tokenizer cannot be loaded"):
        load("nobody/no-such-model")


def test_cut_off_weights_are_one_line(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(Stop, match="cannot be loaded"):
        load(saved)


def test_pickled_weights_are_never_opened(saved, tmp_path):
    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    weights = saved / "model.safetensors"
    torch.save({"model.embed_tokens.weight": Planted()}, saved / "pytorch_model.bin")
    load(saved)  # safetensors are there and are what is read
    weights.unlink()
    with pytest.raises(Stop, match="safetensors"):
        load(saved)
    (saved / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(saved)}))
    torch.save({"x": Planted()}, saved / "adapter_model.bin")
    with pytest.raises(Stop, match="no adapter_model.safetensors"):
        load(saved)
    assert not (tmp_path / "executed").exists()


def test_code_that_comes_with_a_model_is_never_run(saved, tmp_path):
    marker = tmp_path / "executed"
    (saved / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Planted: ...\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {
        "model_type": "planted",
        "auto_map": {"AutoConfig": "planted.Planted", "AutoModelForCausalLM": "planted.Planted"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(Stop, match="without remote code"):
        load(saved)
    assert not marker.exists()
