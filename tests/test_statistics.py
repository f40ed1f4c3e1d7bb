"""The columns of Table 5: by hand, against LexicalRichness, scipy and brute force, and on real samples."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ultrachat import statistics as S
from ultrachat import tokens as T
from ultrachat.corpora import read
from ultrachat.errors import Stop
from ultrachat.records import Dialogue

REPO = Path(__file__).resolve().parent.parent
PUBLIC = Path(os.environ.get("ULTRACHAT_PUBLIC_DATA") or REPO.parent / "shared" / "data")
LLAMA = PUBLIC / "tokenizers" / "llama2_tokenizer.model"
ALPACA = PUBLIC / "alpaca" / "alpaca_5000.json"
ULTRACHAT = PUBLIC / "ultrachat" / "ultrachat_200k_short_500.jsonl"

TWO = Dialogue.from_rounds([("Hi there", "Hello!"), ("A fruit?", "A ripe pear.")])
ONE = Dialogue.from_rounds([("One", "1 2 3")])


def public(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"public sample not here: {path.name}")
    return path


# ---- means ------------------------------------------------------------------------------------


def test_mean_of_single_values_has_the_usual_error():
    mean = S.mean_with_error([[1.0], [2.0], [6.0]])
    assert mean == pytest.approx((3.0, np.std([1, 2, 6], ddof=1) / math.sqrt(3), 3))


def test_mean_of_groups_by_hand():
    # values 1 3 | 8: mean 4; residuals of the group sums: 4 - 8 = -4, 8 - 4 = 4; 2/1 x 32, root, by 3
    assert S.mean_with_error([[1, 3], [8], []]) == pytest.approx((4.0, 8 / 3, 3))


def test_repeating_a_value_within_a_dialogue_does_not_shrink_the_error():
    values = [1.0, 2.0, 6.0, 7.0]
    once = S.mean_with_error([[v] for v in values])
    fivefold = S.mean_with_error([[v] * 5 for v in values])
    assert fivefold[:2] == pytest.approx(once[:2])
    assert fivefold.n == 5 * once.n


def test_error_over_dialogues_has_the_coverage_it_claims():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        effects = rng.normal(size=60)
        groups = [list(effect + 0.2 * rng.normal(size=rng.integers(1, 6))) for effect in effects]
        mean = S.mean_with_error(groups)
        hits += abs(mean.value) < 1.96 * mean.se
    assert 0.90 < hits / 400 < 0.98  # an error over messages would cover about 0.75


def test_mean_of_nothing_is_missing_and_of_one_group_has_no_error():
    nothing, one = S.mean_with_error([]), S.mean_with_error([[2.0, 4.0]])
    assert math.isnan(nothing.value) and math.isnan(nothing.se) and nothing.n == 0
    assert one.value == 3 and math.isnan(one.se) and one.n == 2


def test_averages_reads_an_iterator_once():
    means = S.averages(iter([TWO, ONE]), {"rounds": lambda d: [S.rounds(d)], "nothing": lambda d: []})
    assert means["rounds"] == pytest.approx((1.5, 0.5, 2))
    assert means["nothing"].n == 0


# ---- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n"),
    [("", 0), ("Hello, world!", 4), ("Don't panic!", 5), ("  \n\t ", 0), ("3.5 é_1", 4), ("你好，世界", 3)],
)
def test_words_by_hand(text, n):
    assert T.token_counter("words")(text) == n


def test_llama_counts_without_bos_and_takes_special_tokens_as_text():
    count = T.token_counter(public(LLAMA))
    assert count("") == 0
    assert count("Hello world") == 2
    assert count("</s>") == 3  # ▁</ s >
    assert count("猫猫") >= 2


def _tokenizer_json(folder: Path, **settings) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, "<s>": 1, "<": 2, "s": 3, ">": 4, "red": 5, "pear": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if settings.get("shorten"):
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=9)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("shorten", [False, True])
def test_tokenizer_json_counts_whole_plain_texts(tmp_path, shorten):
    folder = _tokenizer_json(tmp_path / "t", shorten=shorten)
    for name in (folder, folder / "tokenizer.json"):
        count = T.token_counter(name)
        assert count("red pear red pear") == 4  # no <s> in front, not cut to 2, not padded to 9
        assert count("red <s>") == 4  # < s > are three


def test_tiktoken_by_name_from_its_own_cache(tmp_path, monkeypatch):
    pytest.importorskip("tiktoken")
    merges = public(PUBLIC / "tokenizers" / "cl100k_base.tiktoken")
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    shutil.copy(merges, tmp_path / hashlib.sha1(url.encode()).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    count = T.token_counter("tiktoken:cl100k_base")
    assert count("Hello world") == 2
    assert count("<|endoftext|>") > 1


def test_hub_id_is_asked_of_the_hub(tmp_path, monkeypatch):
    import tokenizers

    local = tokenizers.Tokenizer.from_file(str(_tokenizer_json(tmp_path / "t") / "tokenizer.json"))

    def from_pretrained(name):
        if name != "owner/name":
            raise Exception("404 Client Error\nRepository not found")
        return local

    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_pretrained=from_pretrained))
    assert T.token_counter("owner/name")("red <s>") == 4
    with pytest.raises(Stop, match="owner/other.*Repository not found"):
        T.token_counter("owner/other")


def test_what_is_no_tokenizer_stops_with_one_line(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    names = ["word", "", tmp_path / "bad.model", tmp_path / "no.model", tmp_path / "bad.json"]
    names += [tmp_path / "empty", "tiktoken:no_such_encoding"]  # without tiktoken: a Stop all the same
    for name in names:
        with pytest.raises(Stop) as stop:
            T.token_counter(name)
        assert str(stop.value).startswith("tokenizer '") and "\n" not in str(stop.value)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(Stop, match="pip install sentencepiece"):
        T.token_counter("some.model")


def test_labels_of_tokenizers_show_no_path_and_warn_of_words():
    assert T.tokenizer_label("/somewhere/else/llama.model") == "llama.model"
    assert "not the paper's" in T.tokenizer_label("words")
    assert T.tokenizer_label("owner/name") == "owner/name"


# ---- rounds and lengths -----------------------------------------------------------------------


def test_lengths_by_hand():
    assert S.rounds(TWO) == 2
    assert S.utterance_lengths(TWO, T.count_words) == [2, 4]
    assert S.utterance_lengths(TWO, T.count_words, "user") == [2, 3]
    assert S.utterance_lengths(TWO, T.count_words, "all") == [2, 2, 3, 4]
    assert (
        S.labelled_text(TWO) == "User: Hi there\nAssistant: Hello!\nUser: A fruit?\nAssistant: A ripe pear."
    )
    assert S.dialogue_length(TWO, T.count_words, labels=False) == 11
    assert S.dialogue_length(TWO, T.count_words) == 1 + 11 + 4 * 2  # BOS, text, four labels with their colon
    with pytest.raises(Stop, match="which 'bot'"):
        S.utterance_lengths(TWO, T.count_words, "bot")


def test_labels_cost_seven_llama_tokens_a_round():
    count = T.token_counter(public(LLAMA))
    for dialogue in (TWO, ONE):
        extra = S.dialogue_length(dialogue, count) - S.dialogue_length(dialogue, count, labels=False)
        assert extra == 7 * S.rounds(dialogue)


# ---- lexical diversity ------------------------------------------------------------------------


def test_mtld_by_hand():
    # a a b: TTR 1, 1/2 closes a factor; b alone adds nothing: 3 / 1. Backwards b a a: 1, 1, 2/3 closes: 3 / 1
    assert S.mtld("a a b") == 3
    # five different words: TTR stays 1, which LexicalRichness counts as one factor
    assert S.mtld("the quick brown fox jumps") == 5
    # x y x y: 1, 1, 2/3 closes, y alone: 4 / 1 both ways
    assert S.mtld("x y x y") == 4
    # a b c a: TTR ends at 3/4, a part of a factor: 4 / ((1 - 3/4) / (1 - 0.72)) both ways
    assert S.mtld("a b c a") == pytest.approx(4 * 0.28 / 0.25)


@pytest.mark.parametrize("text", ["", " ", "42", "-–—", "!?", "1.5 2,000"])
def test_text_without_words_has_no_mtld(text):
    assert S.mtld(text) is None


@pytest.mark.parametrize("threshold", [0, 1, 1.2, -1])
def test_threshold_out_of_range_stops(threshold):
    with pytest.raises(Stop, match="threshold"):
        S.mtld("a b", threshold)


WORDS = ["a", "b", "c", "d,", "e-f", "7", "É", "The", "the"]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=120))
def test_mtld_equals_lexicalrichness(text):
    from lexicalrichness import LexicalRichness

    text = text if isinstance(text, str) else " ".join(text)
    try:
        expected = LexicalRichness(text).mtld(threshold=0.72)
    except ZeroDivisionError:
        expected = None
    assert S.mtld(text) == expected


def test_importing_the_module_loads_neither_lexicalrichness_nor_torch():
    code = (
        "import sys, ultrachat.statistics, ultrachat.corpora; "
        "print([m for m in ('torch', 'lexicalrichness', 'sklearn', 'transformers') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(REPO / "src")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "[]"


def test_lexical_diversities_leave_out_wordless_messages():
    dialogue = Dialogue.from_rounds([("a b c", "42"), ("?", "a a b")])
    assert S.lexical_diversities(dialogue) == [3]
    assert S.lexical_diversities(dialogue, "all") == [3, 3]


# ---- topic diversity --------------------------------------------------------------------------


def brute_force(vectors: np.ndarray) -> tuple[float, float]:
    from scipy.spatial.distance import cdist, pdist

    return 1 - pdist(vectors, "cosine").mean(), (1 - cdist(vectors, vectors, "cosine")).mean()


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_closed_form_equals_all_pairs(kind, monkeypatch):
    monkeypatch.setattr(S, "TOPIC_ROWS_AT_ONCE", 64)  # several blocks, the last one not full
    vectors = (np.random.default_rng(0).normal(size=(301, 40)) + 0.5).astype(kind)
    topic = S.topic_diversity(vectors)
    without, with_diagonal = brute_force(vectors.astype(np.float64))
    assert abs(topic.similarity - without) < 1e-12
    assert abs(topic.similarity_with_diagonal - with_diagonal) < 1e-12
    assert topic.distance == 1 - topic.similarity and topic.n == 301


FINITE = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 5)), elements=FINITE))
def test_closed_form_equals_sklearn_on_any_vectors(vectors):
    from sklearn.metrics.pairwise import cosine_similarity

    used = vectors[np.abs(vectors).sum(axis=1) > 0]
    topic = S.topic_diversity(vectors)
    assert topic.n == len(used)
    if len(used) < 2:
        assert math.isnan(topic.similarity)
        return
    table = cosine_similarity(used)
    off = table[~np.eye(len(used), dtype=bool)].mean()
    assert abs(topic.similarity - off) < 1e-12 and abs(topic.similarity_with_diagonal - table.mean()) < 1e-12


def test_jackknife_equals_leaving_each_out():
    vectors = np.random.default_rng(3).normal(size=(25, 6)) + 0.3
    left_out = [brute_force(np.delete(vectors, i, axis=0))[0] for i in range(25)]
    expected = math.sqrt(24 / 25 * sum((v - np.mean(left_out)) ** 2 for v in left_out))
    assert S.topic_diversity(vectors).se == pytest.approx(expected, rel=1e-9)


def test_a_sample_is_within_its_error_and_repeatable():
    vectors = np.random.default_rng(5).normal(size=(3_000, 8)) + 0.4
    whole, sample = S.topic_diversity(vectors), S.topic_diversity(vectors, n_sample=400)
    assert sample == S.topic_diversity(vectors, n_sample=400)
    assert sample.n == 400 and sample.similarity != whole.similarity
    assert abs(sample.similarity - whole.similarity) < 4 * sample.se
    assert 0 < whole.se < sample.se
    assert S.topic_diversity(vectors, n_sample=5_000) == whole


def test_topic_diversity_by_hand_and_at_the_edges():
    right_angle = S.topic_diversity(np.array([[2, 0], [0, 3]]))
    assert right_angle[:3] == pytest.approx((0, 0.5, 1)) and math.isnan(right_angle.se)
    with_zero = S.topic_diversity(np.array([[1.0, 0], [0, 0], [1, 0], [3, 0]]))
    assert with_zero.similarity == pytest.approx(1) and with_zero.n == 3 and with_zero.se == pytest.approx(0)
    nothing = S.topic_diversity(np.zeros((0, 4)))
    assert nothing.n == 0 and all(math.isnan(v) for v in nothing[:4])


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.array([["a"]]), np.array([[1.0, np.nan]]), np.array([[np.inf, 1.0]]), [[True]]]
)
def test_what_is_no_embedding_matrix_stops(bad):
    with pytest.raises(Stop, match="embeddings"):
        S.topic_diversity(bad)


def test_sample_of_nothing_stops():
    with pytest.raises(Stop, match="n_sample"):
        S.topic_diversity(np.ones((3, 2)), n_sample=0)


def test_offline_embedding_puts_like_topics_together():
    fruit = [
        f"ripe {a} and sweet {b} fruit salad" for a in ("pear", "fig") for b in ("plum", "apple", "grape")
    ]
    engines = [
        f"diesel {a} with {b} piston engine" for a in ("truck", "train") for b in ("iron", "steel", "brass")
    ]
    vectors = S.embed_offline(fruit + engines, n_dimensions=5)
    assert vectors.shape == (12, 5)
    assert np.array_equal(vectors, S.embed_offline(fruit + engines, n_dimensions=5))
    mixed = S.topic_diversity(vectors).similarity
    assert S.topic_diversity(vectors[:6]).similarity > mixed < S.topic_diversity(vectors[6:]).similarity


@pytest.mark.parametrize("texts", [["one word only here"], ["same", "same"], ["!", "?"], ["pear pie", "!"]])
def test_offline_embedding_of_tiny_sets(texts):
    vectors = S.embed_offline(texts)
    assert len(vectors) == len(texts) and np.isfinite(vectors).all()
    known = sum(any(c.isalpha() for c in text) for text in texts)
    assert S.topic_diversity(vectors).n == known


# ---- coherence --------------------------------------------------------------------------------


def test_coherence_by_hand():
    got = S.coherence([8, 9, None, 10])
    half = 4.302652729911275 * 1 / math.sqrt(3)  # Student's 0.975 quantile with 2 degrees of freedom
    assert got == pytest.approx((9, 9 - half, 9 + half, 3, 0.25))


def test_coherence_of_nothing_read():
    none_parsed = S.coherence([None, None])
    assert math.isnan(none_parsed.mean) and none_parsed.n == 0 and none_parsed.unparsed_fraction == 1
    assert math.isnan(S.coherence([]).unparsed_fraction)
    one = S.coherence([7.5])
    assert one.mean == 7.5 and math.isnan(one.low)


@pytest.mark.parametrize("score", [0, 11, float("nan"), -3])
def test_score_out_of_range_stops(score):
    with pytest.raises(Stop, match="coherence score 2"):
        S.coherence([5, score])


# ---- the table --------------------------------------------------------------------------------


def test_row_by_hand():
    vectors = np.array([[1.0, 0], [0, 1.0]])
    row = S.table5_row(iter([TWO, ONE]), embeddings=vectors, coherence_scores=[9, None], name="two")
    assert row["dataset"] == "two" and "not the paper's" in row["tokenizer"]
    assert row["n_dialogues"] == 2 and row["rounds"] == 1.5
    assert row["dialogue_tokens_bare"] == (11 + 4) / 2
    assert row["dialogue_tokens"] == (1 + 11 + 8 + 1 + 4 + 4) / 2
    assert row["utterance_tokens"] == (2 + 4 + 3) / 3 and row["utterance_tokens_n"] == 3
    assert row["utterance_tokens_all"] == (11 + 4) / 6 and row["utterance_tokens_all_n"] == 6
    assert row["lexical_diversity"] == (1 + 3) / 2 and row["lexical_diversity_n"] == 2  # "1 2 3" has no words
    assert row["topic_similarity"] == 0 and row["topic_distance"] == 1 and row["topic_n"] == 2
    assert row["coherence"] == 9 and row["coherence_unparsed_fraction"] == 0.5
    assert len(pd.DataFrame([row])) == 1


def test_row_of_no_dialogues_is_all_missing():
    row = S.table5_row([], name="none")
    numbers = {key: value for key, value in row.items() if key not in ("dataset", "tokenizer")}
    counts = {key for key in numbers if key.endswith("_n") or key == "n_dialogues"}
    assert all(numbers[key] == 0 for key in counts)
    assert all(math.isnan(value) for key, value in numbers.items() if key not in counts)


def test_compare_definitions_agrees_with_the_row():
    vectors = np.array([[1.0, 0], [1.0, 1.0], [0, 1.0]])
    table = S.compare_definitions([TWO, ONE], embeddings=vectors)
    row = S.table5_row([TWO, ONE], embeddings=vectors)
    used = table[table.used].set_index("column")["value"]
    for column in ("rounds", "dialogue_tokens", "utterance_tokens", "lexical_diversity"):
        assert used[column] == row[column]
    assert used["topic_diversity"] == row["topic_similarity"]
    readings = table.set_index(["column", "reading"])["value"]
    assert readings["rounds", "messages"] == 3
    assert readings["dialogue_tokens", "labels"] == readings["dialogue_tokens", "labels and BOS"] - 1
    marks = readings["dialogue_tokens", "labels, BOS, an end mark a message"]
    assert marks == readings["dialogue_tokens", "labels and BOS"] + 3
    assert table.used.sum() == 5  # one for each column


# ---- real data: the paper's row for Stanford Alpaca -------------------------------------------


@pytest.fixture(scope="module")
def alpaca():
    public(LLAMA)
    return list(read(public(ALPACA)))


def test_alpaca_row_is_the_papers_within_two_errors(alpaca):
    row = S.table5_row(alpaca, tokenizer=LLAMA, name="Stanford Alpaca")
    assert row["rounds"] == 1 and row["rounds_se"] == 0
    for key, printed in (("dialogue_tokens", 91.1), ("utterance_tokens", 64.5), ("lexical_diversity", 42.8)):
        assert abs(row[key] - printed) < 2 * row[f"{key}_se"], key
    assert abs(row["utterance_tokens"] - 64.45) < 2 * row["utterance_tokens_se"]
    # the readings we reject miss by far more than their errors
    assert 91.1 - row["dialogue_tokens_bare"] > 5 * row["dialogue_tokens_bare_se"]
    assert 64.5 - row["utterance_tokens_all"] > 5 * row["utterance_tokens_all_se"]


def test_labels_cost_seven_tokens_a_round_on_real_dialogues():
    count = T.token_counter(public(LLAMA))
    for dialogue in read(public(ULTRACHAT)):
        extra = S.dialogue_length(dialogue, count) - S.dialogue_length(dialogue, count, labels=False)
        assert abs(extra - 7 * S.rounds(dialogue)) <= 2  # a message that starts with a space differs by one


def test_mtld_equals_lexicalrichness_on_real_answers(alpaca):
    from lexicalrichness import LexicalRichness

    for dialogue in alpaca[:500]:
        answer = dialogue.messages[1].content
        value = S.mtld(answer)
        richness = LexicalRichness(answer)
        assert value == (richness.mtld(threshold=0.72) if richness.words else None)


@pytest.mark.parametrize("dataset", ["GPT-4-LLM", "UltraChat (short)", "BELLE"])
def test_committed_reference_figures_are_what_the_code_gives(dataset):
    path = REPO / "benchmarks" / "reference_table5.py"
    spec = importlib.util.spec_from_file_location("reference_table5", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    sample = next(s for s in reference.SAMPLES if s.dataset == dataset)
    public(PUBLIC / sample.path)
    committed = pd.read_csv(REPO / "data" / "reference" / "table5.csv", dtype=str).set_index("dataset")
    assert tuple(committed.reset_index().columns) == reference.COLUMNS
    row = reference.reference_row(sample, public(LLAMA).parent.parent)
    assert {key: str(value) for key, value in row.items() if key != "dataset"} == dict(committed.loc[dataset])
