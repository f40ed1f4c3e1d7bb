"""Ids and labels: by hand, against the authors' algorithm, and as properties over three tokenizers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ultrachat import sft
from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sft import IGNORE_INDEX, Example
from ultrachat.training import train_tokenizer

REPO = Path(__file__).resolve().parent.parent
PUBLIC = Path(os.environ.get("ULTRACHAT_PUBLIC_DATA") or REPO.parent / "shared" / "data")
TOKENIZERS = ("tiny", "gpt2", "llama")
FORMAT = {"tiny": ("<s>", "</s>"), "gpt2": ("<|endoftext|>", "<|endoftext|>"), "llama": ("<s>", "</s>")}
SPECIAL_STRINGS = ["<s>", "</s>", "<pad>", "<unk>", "<|endoftext|>", "</s>\nAssistant: ", "<s>User: "]

TWO = Dialogue.from_rounds([("Hi", "Hello!"), ("What is a pear?", "A fruit.")])
TWO_TEXT = "<s>User: Hi</s>\nAssistant: Hello!</s>\nUser: What is a pear?</s>\nAssistant: A fruit.</s>"


# ---- the three tokenizers: byte-level, byte-level with pad = eos, SentencePiece ----------------


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    texts = ["User: Hi there\nAssistant: Hello! What is a pear? A fruit, of course. " * 3, "ünïcödé 你好"]
    return {"tiny": train_tokenizer(texts, 320, tmp_path_factory.mktemp("tiny"))} | _public_tokenizers()


def _public_tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    folder = PUBLIC / "tokenizers"
    found = {}
    if (folder / "gpt2_vocab.bpe").exists():
        found["gpt2"] = _gpt2(folder)
    if (folder / "llama2_tokenizer.model").exists():
        found["llama"] = _llama(folder / "llama2_tokenizer.model")
    return found


def _gpt2(folder: Path) -> PreTrainedTokenizerBase:
    lines = (folder / "gpt2_vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    vocab = json.loads((folder / "gpt2_encoder.json").read_text(encoding="utf-8"))
    backend = Tokenizer(models.BPE(vocab, [tuple(line.split()) for line in lines]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def _llama(path: Path) -> PreTrainedTokenizerBase:
    """LLaMA's own pieces as a fast tokenizer, put together as transformers converts them."""
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(spm.get_piece_size())]
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = [
        (score, (piece[:cut], piece[cut:]))
        for piece, score in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda m: (-m[0], vocab[m[1][0]], vocab[m[1][1]]))
    backend = Tokenizer(
        models.BPE(vocab, [m for _, m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session", params=TOKENIZERS)
def named(request: pytest.FixtureRequest, tokenizers: dict) -> tuple[str, PreTrainedTokenizerBase]:
    if request.param not in tokenizers:
        pytest.skip(f"public tokenizer not here: {request.param}")
    return request.param, tokenizers[request.param]


def upstream(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, bos: str, eos: str) -> tuple[list, list]:
    """The authors' algorithm in other words: strings with special tokens in them, assistant tag apart."""
    ids: list[int] = []
    labels: list[int] = []

    def add(text: str, learn: bool) -> None:
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(new)
        labels.extend(new if learn else [IGNORE_INDEX] * len(new))

    for number, (user, assistant) in enumerate(dialogue.rounds):
        add((bos if number == 0 else "\n") + "User: " + user + eos, False)
        add("\nAssistant: ", False)
        add(assistant + eos, True)
    return ids, labels


def learnt_runs(example: Example) -> list[list[int]]:
    """The stretches of learnt ids, in order."""
    runs: list[list[int]] = []
    before = IGNORE_INDEX
    for label in example.labels.tolist():
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
        before = label
    return runs


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40)
plain = text.map(lambda t: t.replace("<", "("))  # the authors' code takes a typed "<s>" for the token
spiced = st.builds(lambda a, s, b: a + s + b, text, st.sampled_from(["", *SPECIAL_STRINGS]), text)
dialogues = st.lists(st.tuples(spiced, spiced), min_size=1, max_size=5).map(Dialogue.from_rounds)


# ---- the format -------------------------------------------------------------------------------


def test_the_format_and_the_mask_by_hand(tokenizers):
    tokenizer = tokenizers["tiny"]
    example = sft.encode(TWO, tokenizer)
    assert tokenizer.decode(example.input_ids.tolist()) == TWO_TEXT
    assert [tokenizer.decode(run) for run in learnt_runs(example)] == ["Hello!</s>", "A fruit.</s>"]
    assert (example.input_ids == tokenizer.bos_token_id).sum() == 1
    assert example.n_learnt_tokens == (example.labels != IGNORE_INDEX).sum() < example.n_tokens


def test_the_user_can_be_learnt_instead(tokenizers):
    tokenizer = tokenizers["tiny"]
    example = sft.encode(TWO, tokenizer, learn="user")
    assert tokenizer.decode(example.input_ids.tolist()) == TWO_TEXT
    assert [tokenizer.decode(run) for run in learnt_runs(example)] == ["Hi</s>", "What is a pear?</s>"]


def test_a_system_prompt_is_one_more_user_turn_and_never_learnt(tokenizers):
    tokenizer = tokenizers["tiny"]
    for learn, learnt in (
        ("assistant", ["Hello!</s>", "A fruit.</s>"]),
        ("user", ["Hi</s>", "What is a pear?</s>"]),
    ):
        example = sft.encode(TWO, tokenizer, learn=learn, system="Be brief.")
        assert tokenizer.decode(example.input_ids.tolist()) == TWO_TEXT.replace(
            "<s>", "<s>User: Be brief.</s>\n"
        )
        assert [tokenizer.decode(run) for run in learnt_runs(example)] == learnt


@settings(max_examples=40, deadline=None)
@given(dialogue=st.lists(st.tuples(plain, plain), min_size=1, max_size=4).map(Dialogue.from_rounds))
def test_equals_the_authors_algorithm(named, dialogue):
    name, tokenizer = named
    example = sft.encode(dialogue, tokenizer)
    ids, labels = upstream(dialogue, tokenizer, *FORMAT[name])
    assert example.input_ids.tolist() == ids
    assert example.labels.tolist() == labels


@settings(max_examples=60, deadline=None)
@given(dialogue=dialogues, learn=st.sampled_from(["assistant", "user"]))
def test_learnt_tokens_decode_to_the_messages_and_nothing_in_them_is_special(named, dialogue, learn):
    name, tokenizer = named
    example = sft.encode(dialogue, tokenizer, learn)
    eos = tokenizer.eos_token_id
    messages = [m.content for m in dialogue.messages if m.role == learn]
    runs = learnt_runs(example)
    assert [run[-1] for run in runs] == [eos] * len(messages)
    assert [tokenizer.decode(run[:-1]) for run in runs] == messages
    # exactly one BOS in front and one EOS per message, whatever the messages say
    n_special = np.isin(example.input_ids, tokenizer.all_special_ids).sum()
    n_unknown = 0 if tokenizer.unk_token_id is None else (example.input_ids == tokenizer.unk_token_id).sum()
    assert n_special - n_unknown == 1 + len(dialogue.messages)
    assert example.input_ids[0] == tokenizer.bos_token_id


def test_a_prompt_is_what_training_saw_before_the_answer(named):
    _, tokenizer = named
    for system in (None, "Be brief."):
        whole = sft.encode(TWO, tokenizer, system=system)
        starts = np.flatnonzero((whole.labels != IGNORE_INDEX) & (np.roll(whole.labels, 1) == IGNORE_INDEX))
        assert sft.encode_prompt("Hi", tokenizer, system=system) == whole.input_ids[: starts[0]].tolist()
        second = sft.encode_prompt("What is a pear?", tokenizer, history=TWO.rounds[:1], system=system)
        assert second == whole.input_ids[: starts[1]].tolist()


def test_bad_input_is_one_line(tokenizers):
    with pytest.raises(Stop, match="learn: expected 'assistant' or 'user', got 'bot'"):
        sft.encode(TWO, tokenizers["tiny"], learn="bot")
    with pytest.raises(Stop, match="max_tokens: 1 leaves no room"):
        sft.split(TWO, tokenizers["tiny"], max_tokens=1)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizers["tiny"]._tokenizer)
    with pytest.raises(Stop, match="no eos_token"):
        sft.encode(TWO, bare)


# ---- splitting --------------------------------------------------------------------------------


class Letters:
    """A tokenizer with one token per character, so that lengths can be counted by hand."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) + 10 for c in text] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return "".join({0: "_", 1: "<", 2: ">"}.get(i) or chr(i - 10) for i in ids)


# "<" 1, "User: a>" 8, "\nAssistant: A>" 14: 23 in front; "\nUser: b>" has one more, so 23 for every further round
ABC = Dialogue.from_rounds([("a", "A"), ("b", "B"), ("c", "C")])
ROUND = {x: f"User: {x}>\nAssistant: {x.upper()}>" for x in "abc"}


def rows(dialogue: Dialogue, max_tokens: int, **options: str) -> list[tuple[str, list[str]]]:
    examples, _ = sft.split(dialogue, Letters(), max_tokens, **options)
    return [
        (Letters().decode(e.input_ids.tolist()), [Letters().decode(run) for run in learnt_runs(e)])
        for e in examples
    ]


def test_what_fits_stays_whole():
    assert rows(ABC, 69) == [("<" + "\n".join(ROUND.values()), ["A>", "B>", "C>"])]


def test_later_rows_carry_rounds_before_them_as_context():
    # one token short of three rounds: two new ones, then the third with the second as context
    assert rows(ABC, 68) == [
        (f"<{ROUND['a']}\n{ROUND['b']}", ["A>", "B>"]),
        (f"<{ROUND['b']}\n{ROUND['c']}", ["C>"]),
    ]
    assert rows(ABC, 45) == [(f"<{r}", [f"{x.upper()}>"]) for x, r in ROUND.items()]
    _, report = sft.split(ABC, Letters(), 68)
    assert (report.n_rows, report.n_tokens, report.n_context_tokens) == (2, 92, 22)
    assert (report.n_learnt_tokens, report.n_lost_tokens, report.n_cut_rounds) == (6, 0, 0)
    assert "no round was cut" in str(report)


def test_three_rounds_of_900_are_all_learnt():
    # the authors' split_long.py makes one sample of two rounds out of these
    long = Dialogue.from_rounds([(c, c.upper() * 880) for c in "abc"])
    learnt = [run for _, runs in rows(long, 2048) for run in runs]
    assert learnt == ["A" * 880 + ">", "B" * 880 + ">", "C" * 880 + ">"]


def test_a_round_that_is_too_long_is_cut_and_counted():
    long = Dialogue.from_rounds([("a", "A"), ("b", "B" * 100), ("c" * 100, "C"), ("d", "D")])
    assert rows(long, 50) == [
        ("<User: a>\nAssistant: A>", ["A>"]),
        ("<User: b>\nAssistant: " + "B" * 29, ["B" * 29]),  # no closing mark: the answer goes on
        ("<User: d>\nAssistant: D>", ["D>"]),  # and the answer C lies beyond the limit
    ]
    _, report = sft.split(long, Letters(), 50)
    assert (report.n_cut_rounds, report.n_lost_tokens, report.n_lost_rounds) == (2, 101 - 29 + 2, 1)
    assert (report.n_rows, report.n_tokens) == (3, 23 + 50 + 23)
    assert "2 rounds were longer than the limit and cut, 74 tokens of theirs" in str(report)


def test_the_system_prompt_stands_in_front_of_every_row():
    assert rows(ABC, 60, system="S") == [
        (f"<User: S>\n{ROUND['a']}\n{ROUND['b']}", ["A>", "B>"]),
        (f"<User: S>\n{ROUND['b']}\n{ROUND['c']}", ["C>"]),
    ]


@settings(max_examples=60, deadline=None)
@given(
    dialogue=dialogues,
    max_tokens=st.integers(20, 120),
    learn=st.sampled_from(["assistant", "user"]),
    system=st.sampled_from([None, "S"]),
)
def test_splitting_loses_and_repeats_nothing(tokenizers, dialogue, max_tokens, learn, system):
    tokenizer = tokenizers["tiny"]
    whole = sft.encode(dialogue, tokenizer, learn, system)
    examples, report = sft.split(dialogue, tokenizer, max_tokens, learn, system)
    assert all(e.n_tokens <= max_tokens and e.n_learnt_tokens for e in examples)
    assert report.n_learnt_tokens == sum(e.n_learnt_tokens for e in examples)
    assert report.n_learnt_tokens + report.n_lost_tokens == whole.n_learnt_tokens
    assert report.n_rows == len(examples) and report.n_tokens == sum(e.n_tokens for e in examples)
    if not report.n_cut_rounds:
        assert [r for e in examples for r in learnt_runs(e)] == learnt_runs(whole)
        assert report.n_lost_tokens == report.n_lost_rounds == 0
    else:  # what is learnt is what the whole would teach, with the tails of long rounds missing
        kept = [r for e in examples for r in learnt_runs(e)]
        rest = iter(learnt_runs(whole))
        assert all(any(run[: len(part)] == part for run in rest) for part in kept)


def test_many_dialogues_add_up(tokenizers):
    examples, report = sft.split_all([TWO, TWO], tokenizers["tiny"], max_tokens=40)
    one, counts = sft.split(TWO, tokenizers["tiny"], max_tokens=40)
    assert len(examples) == report.n_rows == 2 * len(one)
    assert report == counts + counts and report.n_dialogues == 2 and report.n_rounds == 4


# ---- batches and pictures ---------------------------------------------------------------------


def test_a_batch_is_padded_right_and_masked_by_length():
    short = Example(np.array([5, 2], np.int32), np.array([IGNORE_INDEX, 2], np.int32))
    long = Example(np.array([5, 2, 6, 2], np.int32), np.array([IGNORE_INDEX, 2, 6, 2], np.int32))
    batch = sft.collate([short, long], pad_id=2)  # the pad token is the end mark
    assert batch["input_ids"].tolist() == [[5, 2, 2, 2], [5, 2, 6, 2]]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100], [-100, 2, 6, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_the_mask_can_be_seen_and_is_harmless(tokenizers):
    nasty = Dialogue.from_rounds([("<script>alert(1)</script>", "a < b & ünïcödé 你好")])
    shown = sft.show_mask(sft.encode(nasty, tokenizers["tiny"]), tokenizers["tiny"]).data
    assert "<script" not in shown
    marked = re.findall(r"<span style='[^']*underline[^']*'>(.*?)</span>", shown, re.DOTALL)
    assert marked == ["a &lt; b &amp; ünïcödé 你好&lt;/s&gt;"]


def test_importing_the_module_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, ultrachat.sft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
