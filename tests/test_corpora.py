"""Readers of published formats: the docstrings' own rows, broken files, and real samples."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import corpora
from ultrachat.corpora import BadRow, guess_format, read
from ultrachat.errors import Stop
from ultrachat.records import Dialogue, to_jsonl, to_messages, to_sharegpt, to_ultrachat

REPO = Path(__file__).resolve().parent.parent
PUBLIC = Path(os.environ.get("ULTRACHAT_PUBLIC_DATA") or REPO.parent / "shared" / "data")

TWO = Dialogue.from_rounds([("Hi there", "Hello!"), ("A fruit?", "A ripe pear.")])
GOOD = {"instruction": "Name a fruit.", "input": "", "output": "A pear."}


def jsonl(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def texts(dialogue: Dialogue) -> list[str]:
    return [message.content for message in dialogue.messages]


# ---- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(corpora.READERS))
def test_the_example_row_in_a_docstring_is_read(name, tmp_path):
    example = json.loads(re.search(r"^ *(\{.*\})\n\n", corpora.READERS[name].__doc__, re.S | re.M)[1])
    for path in (jsonl(tmp_path / "a.jsonl", example), tmp_path / "a.json"):
        if path.suffix == ".json":
            path.write_text(json.dumps([example], indent=2), encoding="utf-8")
        for format in (name, None):
            reading = read(path, format)
            (dialogue,) = reading
            assert dialogue.sector is None
            assert reading.n_rows == reading.n_dialogues == 1 and reading.n_left_out == 0


def test_every_reader_shows_an_example_and_its_source():
    for reader in corpora.READERS.values():
        doc = inspect.getdoc(reader)
        assert "{" in doc and re.match(r"(Ours|Paper):", doc.strip().split("\n\n")[-1])


def test_instruction_and_input_are_joined_by_a_line_break():
    row = {"instruction": "Sort:", "input": "b, a", "output": "a, b"}
    assert corpora.alpaca(row) == [("user", "Sort:\nb, a"), ("assistant", "a, b")]
    assert corpora.alpaca(GOOD)[0] == ("user", "Name a fruit.")
    assert corpora.alpaca(GOOD | {"input": "<noinput>"})[0] == ("user", "Name a fruit.\n<noinput>")
    assert corpora.alpaca({"instruction": "i", "input": None, "output": "o"})[0] == ("user", "i")
    dolly = {"instruction": "When?", "context": "In 1932.", "response": "1932", "category": "closed_qa"}
    assert corpora.dolly(dolly) == [("user", "When?\nIn 1932."), ("assistant", "1932")]


@pytest.mark.parametrize(
    ("write", "format"),
    [(to_ultrachat, "ultrachat"), (to_messages, "ultrachat_200k"), (to_sharegpt, "sharegpt")],
)
def test_what_records_writes_is_read_back(write, format, tmp_path):
    reading = read(jsonl(tmp_path / "a.jsonl", write(TWO)))
    (dialogue,) = reading
    assert reading.format == format
    assert dialogue.messages == TWO.messages and dialogue.id == TWO.id
    assert dialogue.parent == TWO.id  # the id the row had


def test_own_records_come_back_equal(tmp_path):
    mine = TWO.model_copy(update={"sector": "creation_and_generation", "persona": "casual", "stop": "rounds"})
    path = tmp_path / "a.jsonl"
    path.write_text(to_jsonl([mine, TWO]), encoding="utf-8")
    reading = read(path)
    assert list(reading) == [mine, TWO] and reading.format == "own"


def test_prompt_field_is_not_a_message():
    row = {"prompt": "Hi", "prompt_id": "p7", "messages": to_messages(TWO)["messages"]}
    assert corpora.ultrachat_200k(row) == [(m.role, m.content) for m in TWO.messages]


def test_unpaired_ends_and_system_messages_are_left_out_and_counted(tmp_path):
    speakers = [("system", "Be kind."), ("gpt", "Welcome"), ("human", "q"), ("gpt", "a"), ("human", "bye")]
    row = {"conversations": [{"from": who, "value": text} for who, text in speakers]}
    reading = read(jsonl(tmp_path / "a.jsonl", row, {"conversations": row["conversations"][2:4]}))
    assert [texts(d) for d in reading] == [["q", "a"], ["q", "a"]]
    assert reading.n_left_out == 3 and "3 messages left out" in reading.summary()


def test_guessing():
    assert guess_format(GOOD) == "alpaca"
    assert guess_format({"instruction": "", "context": "", "response": ""}) == "dolly"
    assert guess_format({"id": "0", "data": []}) == "ultrachat"
    assert guess_format({"prompt": "", "messages": []}) == "ultrachat_200k"
    assert guess_format({"id": "", "conversations": []}) == "sharegpt"
    assert guess_format(TWO.model_dump()) == "own"
    assert guess_format({"text": ""}) is None


# ---- bad rows ---------------------------------------------------------------------------------


def test_bad_rows_are_named_and_counted(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        GOOD,
        {"instruction": "no answer field"},
        "{broken",
        "",
        {"instruction": 7, "output": "x"},
        [1],
        {"instruction": "i", "output": " \n"},
        GOOD | {"output": ""},
        GOOD,
    )
    reading = read(path)
    assert len(list(reading)) == 2
    assert (reading.n_rows, reading.n_dialogues, reading.n_empty, reading.n_bad) == (8, 2, 2, 4)
    starts = [f"{path}:2: field 'output' is missing", f"{path}:3: not JSON", f"{path}:5: field 'instruction'"]
    starts.append(f"{path}:6: a JSON list, expected an object")
    for line, start in zip(reading.problems, starts, strict=True):
        assert line.startswith(start) and "\n" not in line


@pytest.mark.parametrize(
    ("format", "row", "says"),
    [
        ("ultrachat", {"data": ["q", None]}, r"data\[1\]"),
        ("ultrachat", {"data": "q"}, "expected a list"),
        ("ultrachat", {"data": ["q"]}, "no user message with an answer"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, r"conversations\[0\].from.*alien"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, r"conversations\[0\].value' is missing"),
        ("sharegpt", {"conversations": ["x"]}, r"conversations\[0\].*expected an object"),
        (
            "ultrachat_200k",
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            "message 2: two by the user",
        ),
        ("own", {"id": "1", "sector": "nonsense", "messages": []}, "field"),
    ],
)
def test_a_broken_field_is_named(format, row, says, tmp_path):
    path = tmp_path / "a.json"
    good = {
        "ultrachat": to_ultrachat(TWO),
        "sharegpt": to_sharegpt(TWO),
        "ultrachat_200k": to_messages(TWO),
        "own": TWO.model_dump(mode="json"),
    }[format]
    path.write_text(json.dumps([good, row]), encoding="utf-8")
    reading = read(path, format)
    assert len(list(reading)) == 1
    assert re.search(says, reading.problems[0]) and reading.problems[0].startswith(f"{path}[1]: ")
    with pytest.raises(Stop, match=says):
        list(read(path, format, strict=True))
    with pytest.raises(Stop, match="no row is of the format"):
        list(read(jsonl(tmp_path / "b.jsonl", row), format))


def test_an_empty_message_is_no_error_even_when_strict(tmp_path):
    reading = read(jsonl(tmp_path / "a.jsonl", GOOD, GOOD | {"output": ""}), strict=True)
    assert len(list(reading)) == 1 and reading.n_empty == 1


def test_a_giant_line_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "MAX_LINE_BYTES", 200)
    reading = read(jsonl(tmp_path / "a.jsonl", GOOD, GOOD | {"output": "x" * 1_000}, GOOD))
    assert len(list(reading)) == 2
    assert reading.n_bad == 1 and ":2: line longer than 200 bytes" in reading.problems[0]


def test_problems_kept_are_limited(tmp_path):
    reading = read(jsonl(tmp_path / "a.jsonl", GOOD, *[{}] * 50))
    list(reading)
    assert reading.n_bad == 50 and len(reading.problems) == corpora.MAX_PROBLEMS_KEPT


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    for name, text in (
        ("a.jsonl", json.dumps(GOOD) + "\r\n" + json.dumps(GOOD)),
        ("a.json", json.dumps([GOOD] * 2)),
    ):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert len(list(read(tmp_path / name))) == 2


def test_what_cannot_be_read_at_all_stops(tmp_path):
    (tmp_path / "cut.json").write_text('[{"instruction": "a", "output": ')
    bad = {
        tmp_path / "no_such.json": "cannot be read",
        tmp_path: "cannot be read",
        tmp_path / "cut.json": "not a JSON array",
        jsonl(tmp_path / "unknown.jsonl", {"text": "x"}): "fields 'text' are of no known format",
        jsonl(tmp_path / "broken.jsonl", "{broken"): "first row is needed",
    }
    for path, says in bad.items():
        with pytest.raises(Stop, match=says):
            list(read(path))
    with pytest.raises(Stop, match="format 'parquet'"):
        read(jsonl(tmp_path / "a.jsonl", GOOD), "parquet")


def test_an_empty_file_has_no_dialogues(tmp_path):
    for content in ("", "\n\n", "[]"):
        (tmp_path / "a.json").write_text(content)
        reading = read(tmp_path / "a.json")
        assert list(reading) == [] and reading.n_rows == 0


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ["instruction", "input", "output", "context", "response", "data", "messages", "conversations", "id"]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=5), st.sampled_from(list(corpora.READERS))
)
def test_any_object_gives_a_dialogue_or_a_reason(row, name):
    reading = object.__new__(corpora.Reading)
    reading.format, reading.n_left_out = name, 0
    try:
        dialogue = reading._dialogue(row)
    except BadRow as problem:
        assert str(problem)
    else:
        assert dialogue is None or len(dialogue.messages) % 2 == 0


# ---- real samples -----------------------------------------------------------------------------

SAMPLES = [
    ("alpaca/alpaca_5000.json", "alpaca", 5_000, 2),
    ("gpt4llm/alpaca_en_demo.json", "alpaca", 999, 0),
    ("dolly/databricks_dolly_15k_from_shards.jsonl", "dolly", 15_011, 0),
    ("ultrachat/ultrachat_200k_short_500.jsonl", "ultrachat_200k", 500, 0),
    ("belle/Belle_open_source_1k.json", "alpaca", 1_000, 0),
    ("sharegpt/sharegpt_zh_300.jsonl", "sharegpt", 300, 1),
]


@pytest.mark.parametrize(("name", "format", "n_rows", "n_empty"), SAMPLES)
def test_real_samples_are_read_without_a_bad_row(name, format, n_rows, n_empty):
    path = PUBLIC / name
    if not path.exists():
        pytest.skip(f"public sample not here: {name}")
    reading = read(path, strict=True)
    n = sum(1 for _ in reading)
    assert (reading.format, reading.n_rows, reading.n_empty) == (format, n_rows, n_empty)
    assert n == reading.n_dialogues == n_rows - n_empty


def test_real_rows_keep_their_texts():
    path = PUBLIC / "sharegpt" / "sharegpt_zh_300.jsonl"
    if not path.exists():
        pytest.skip(f"public sample not here: {path.name}")
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    first = next(read(path))
    assert texts(first) == [turn["value"] for turn in row["conversations"]]
