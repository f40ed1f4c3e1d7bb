"""data/reference: the committed figures are what the code gives, and what the README says of them is so."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from ultrachat import launcher, lexical, paper, reference
from ultrachat.embeddings import MINILM, best_offline
from ultrachat.errors import Stop
from ultrachat.statistics import DEFINITIONS
from ultrachat.tokens import token_counter

REPO = Path(__file__).resolve().parent.parent
FOLDER = REPO / "data" / "reference"
sys.path[:0] = [str(REPO / "benchmarks"), str(REPO / "benchmarks" / "reference")]

import definitions  # noqa: E402
import reference_judging  # noqa: E402
import reference_table5 as script  # noqa: E402
import rows  # noqa: E402
from samples import BY_NAME, EVALUATION, LLAMA, SAMPLES, has, texts_of  # noqa: E402

TOPIC = ("topic_similarity", "topic_similarity_se", "topic_n", "embedding")
FILES = ("table5", "beside_paper", "verdicts", "published_reviews", "human_likeness", *script.PARTS)


def committed(name: str, **where: str) -> list[dict[str, str]]:
    table = pd.read_csv(FOLDER / f"{name}.csv", dtype=str, keep_default_na=False)
    for column, value in where.items():
        table = table[table[column] == value]
    return table.to_dict("records")


def as_text(found) -> list[dict[str, str]]:
    return [script.as_text(row) for row in found]


@pytest.fixture
def data(public) -> Path:
    """DIR, where the tokenizer and Alpaca are there."""
    public(BY_NAME["Stanford Alpaca"].path)
    return public(LLAMA).parent.parent


# ---- the code gives what is committed ---------------------------------------------------------


@pytest.mark.parametrize("dataset", ["GPT-4-LLM", "UltraChat (short)", "BELLE"])
def test_table5_is_what_the_code_gives(dataset, data, public, capsys):
    sample = BY_NAME[dataset]
    public(sample.path)
    (row,), (kept,) = (
        as_text([rows.table5_row(sample, data, n_sample=0)]),
        committed("table5", dataset=dataset),
    )
    assert list(row) == list(kept)
    left_out = set(TOPIC)
    if sample.chinese and importlib.util.find_spec("jieba") is None:
        left_out |= {column for column in kept if "jieba" in column}
        assert "jieba" in capsys.readouterr().err
    for column in row.keys() - left_out:
        assert row[column] == kept[column], column


def test_topic_diversity_is_what_the_code_gives(data, public, tmp_path):
    ledger = REPO / "runs" / "reference" / "embeddings.sqlite"
    if best_offline() != MINILM or not ledger.exists():
        pytest.skip("needs all-MiniLM-L6-v2 and the vectors that benchmarks/reference_table5.py keeps")
    sample = BY_NAME["ShareGPT (Chinese)"]
    public(sample.path)
    cache = Path(shutil.copy(ledger, tmp_path))
    row, (kept,) = rows.table5_row(sample, data, cache=cache), committed("table5", dataset=sample.dataset)
    assert row["topic_similarity"] == pytest.approx(float(kept["topic_similarity"]), abs=1e-3)
    assert row["topic_similarity_se"] == pytest.approx(float(kept["topic_similarity_se"]), abs=1e-4)
    assert (str(row["topic_n"]), row["embedding"]) == (kept["topic_n"], kept["embedding"])


def test_topic_diversity_of_a_small_sample_is_near(data, public):
    if best_offline() != MINILM:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    sample = BY_NAME["Stanford Alpaca"]
    row, (kept,) = rows.table5_row(sample, data, n_sample=100), committed("table5", dataset=sample.dataset)
    assert row["topic_n"] == 100 and row["embedding"] == kept["embedding"]
    assert (
        abs(row["topic_similarity"] - float(kept["topic_similarity"])) < 3 * row["topic_similarity_se"] < 0.05
    )


@pytest.mark.parametrize("split_by", ["LLaMA", "white space"])
def test_definitions_are_what_the_code_gives(split_by, data):
    found = as_text(
        definitions.definition_rows(data, counters={split_by: definitions.COUNTERS[split_by]}, segmenters=())
    )
    assert found == committed("definitions", dataset="Stanford Alpaca", split_by=split_by)


def test_every_reading_of_the_lengths_is_tried_and_the_difference_is_theirs():
    """Without the public samples too: a script that only they reach breaks unseen."""
    dialogues = [["one two", "three four five"], ["six", "seven"]]
    found = definitions._lengths(token_counter("words"), dialogues, every=True)
    means = {(column, reading): mean.value for column, reading, mean in found}
    readings = [d.reading for d in DEFINITIONS if d.column == "dialogue_tokens"]
    assert readings and all((definitions._MINUS, reading) in means for reading in readings)
    for reading in readings:  # the answers have 3 and 1 words
        assert means[definitions._MINUS, reading] == means["dialogue_tokens", reading] - 2


def test_arithmetic_is_what_the_code_gives(data, public):
    public(BY_NAME["UltraChat (short)"].path)
    assert as_text(definitions.ultrachat_arithmetic_rows(data)) == committed("ultrachat_arithmetic")


def test_overlap_and_duplicates_are_what_the_code_gives(data, public):
    for path in (BY_NAME["GPT-4-LLM"].path, *EVALUATION.values()):
        public(path)
    for name in ("contamination", "duplicate_openings"):
        found = script.PARTS[name](data, [BY_NAME["GPT-4-LLM"]])
        assert as_text(found) == committed(name, dataset="GPT-4-LLM"), name


def test_beside_paper_follows_from_table5():
    assert as_text(rows.beside_paper_rows(committed("table5"))) == committed("beside_paper")


# ---- by hand ----------------------------------------------------------------------------------


def test_templates_by_hand():
    row, no_input = ("Sort.", "b, a", "a, b"), ("Go.", "", "Gone.")
    texts = {
        name: [text_of(*r) for r in (row, no_input)] for name, (text_of, _) in definitions.TEMPLATES.items()
    }
    assert texts["labels, input after a space"][0] == "User: Sort. b, a\nAssistant: a, b"
    assert texts["labels, input after an empty line"][0] == "User: Sort.\n\nb, a\nAssistant: a, b"
    assert texts["labels, input after an empty line"][1] == "User: Go.\nAssistant: Gone."
    assert texts["Instruction/Input/Output"] == [
        "Instruction: Sort.\nInput: b, a\nOutput: a, b",
        "Instruction: Go.\nOutput: Gone.",
    ]
    assert (
        texts["Instruction/Input/Output, empty inputs too"][1] == "Instruction: Go.\nInput: \nOutput: Gone."
    )


def test_tokenizers_by_hand(data, public):
    public("tokenizers/gpt2_vocab.bpe")
    assert definitions.gpt2(data)("Hello world") == 2  # 15496, 995
    assert definitions.llama(data)("Hello world") == 2
    assert definitions.llama(data, marks=1)("Hello world") == 3
    assert definitions.llama(data, marks=1).many(["Hello world", ""]).tolist() == [3, 1]
    assert definitions.chinese_words("characters", data)("你好，world") == 3


def test_cl100k_leaves_the_environment_alone(data, public, monkeypatch):
    pytest.importorskip("tiktoken")
    public("tokenizers/cl100k_base.tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "elsewhere")
    assert definitions.cl100k(data)("Hello world") == 2
    assert definitions.os.environ["TIKTOKEN_CACHE_DIR"] == "elsewhere"


@pytest.mark.parametrize("package", ["jieba", "tiktoken"])
def test_a_missing_package_is_one_line_and_no_row(package, data, public, monkeypatch, capsys):
    public("tokenizers/cl100k_base.tiktoken")
    monkeypatch.setitem(sys.modules, package, None)
    name = {"jieba": "jieba", "tiktoken": "cl100k_base"}[package]
    counters = {name: definitions.CHINESE_COUNTERS[name]}
    assert list(definitions.definition_rows(data, counters=counters, segmenters=())) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left out: ") and f"pip install {package}" in line


def test_what_is_there_is_had(capsys):
    assert has(lexical.segmenter, "characters") and capsys.readouterr() == ("", "")


# ---- the files say what the README says -------------------------------------------------------


def test_every_file_is_explained():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(FILES)
    assert all(f"| `{name}.csv` |" in text for name in FILES)
    for sample in SAMPLES:
        assert f"| {sample.dataset} | `{sample.path}` |" in text
    assert [row["dataset"] for row in committed("table5")] == [sample.dataset for sample in SAMPLES]


def test_verdicts_cover_the_paper_and_give_reasons():
    verdicts = reference.table("verdicts")
    assert list(verdicts["dataset"]) == list(paper.table("table5_statistics")["dataset"])
    assert set(verdicts["verdict"]) == {"reproduced", "consistent", "plausible", "open"}
    assert verdicts["why"].str.len().gt(5).all()


def test_table_beside_the_paper_has_ours_the_papers_and_gaps():
    table = reference.beside_paper().set_index("data set")
    (alpaca,) = committed("table5", dataset="Stanford Alpaca")
    ours = f"{float(alpaca['utterance_tokens']):.1f} ± {float(alpaca['utterance_tokens_se']):.1f}"
    assert table.loc["Stanford Alpaca", "utterance length"] == f"{ours} (64.5)"
    assert table.loc["SODA", "utterance length"] == "– (22.5)" and table.loc["SODA", "verdict"] == "open"
    # of short dialogues: never beside UltraChat's own figures
    assert "1467" not in table.loc["UltraChat (short)", "dialogue length"]
    assert table.loc["Dolly", "verdict"] == "not in the paper"


def test_the_readme_shows_that_table():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    _, shown, _ = launcher.between(text, launcher.REFERENCE)
    assert shown.strip() == paper.to_markdown(reference.beside_paper())


def test_a_missing_file_is_one_line():
    with pytest.raises(Stop, match="reference_table5.py writes it"):
        reference.table("nothing")


def test_reproduced_means_within_two_errors_in_every_column():
    reproduced = committed("beside_paper", verdict="reproduced")
    assert {row["column"] for row in reproduced} == {
        "dialogue_tokens",
        "utterance_tokens",
        "lexical_diversity",
    }
    assert all(abs(float(row["errors_apart"])) < 2 for row in reproduced)


def test_every_reading_is_tried_and_the_default_fits():
    alpaca = pd.read_csv(FOLDER / "definitions.csv").query("dataset == 'Stanford Alpaca'")
    tried = {
        f"{column}/{reading}" for column, reading in zip(alpaca["column"], alpaca["reading"], strict=True)
    }
    assert {d.key for d in DEFINITIONS if d.column != "rounds"} <= tried
    used = alpaca[alpaca["used"] == "yes"].set_index("column")
    assert used.index.is_unique and len(used) == 4 and (used["errors_apart"].abs() < 2).all()
    (row,) = committed("table5", dataset="Stanford Alpaca")
    for column in ("dialogue_tokens", "utterance_tokens", "lexical_diversity"):
        assert f"{used['value'][column]:.3f}" == row[column]
    # what the README says of the others
    apart = alpaca.set_index(["split_by", "column", "reading"])["errors_apart"].abs()
    near = apart.xs("utterance_tokens", level="column")
    assert list(near[near < 2].index) == [("LLaMA", "assistant")]
    sharp = apart.xs("dialogue_minus_utterance", level="column")
    assert {reading for split_by, reading in sharp[sharp < 2].index} == {
        "labels",
        "labels, input after a space",
        "Instruction/Input/Output",
    }


def test_arithmetic_excludes_all_messages_and_meets_the_printed_length():
    value = pd.read_csv(FOLDER / "ultrachat_arithmetic.csv").set_index("quantity")["value"]
    printed = value["D, dialogue length"]
    assert value["message length if utterances were all messages"] < value["U, utterance length"] / 1.5
    assert abs(value["dialogue length with labels"] - printed) < 1e-3 * printed


def test_published_reviews_are_what_the_code_gives(public):
    found = reference_judging.rows(public("vicuna_bench/question.jsonl").parent)
    kept = reference.table("published_reviews")
    pd.testing.assert_frame_equal(found.round(3), kept, check_dtype=False)


def test_published_reviews_add_up():
    kept = reference.table("published_reviews").set_index("vicuna-7b against")
    counts = kept[["n", "n_not_two_numbers_first", "n_unparsed", "win", "tie", "lose"]]
    assert (counts.drop("all").sum() == counts.loc["all"]).all()
    assert (kept[["win", "tie", "lose", "n_unparsed"]].sum(axis=1) == kept["n"]).all()


def test_no_text_is_committed(data, public):
    public(BY_NAME["GPT-4-LLM"].path)
    cells = {value for name in FILES for row in committed(name) for value in row.values()}
    openings = {texts[0] for texts in texts_of(BY_NAME["GPT-4-LLM"], data)}
    assert not cells & openings and max(map(len, cells)) < 400
