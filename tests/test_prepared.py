"""Rows on disk: what is read is what was written, and what is not whole is not there."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from fruit import DIALOGUES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultrachat.chatmodels import load_tokenizer
from ultrachat.prepared import Rows, open_rows, write_rows
from ultrachat.recipes import Recipe
from ultrachat.records import SECTORS
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.sft import Encoder
from ultrachat.splitting import SplitReport, split_all, split_each
from ultrachat.training import finetune

IDENTITY = {"files": [["a.jsonl", 3, 4]], "system": None, "max_tokens": 64}


@pytest.fixture(scope="module")
def encoder(small_base) -> Encoder:
    return Encoder(load_tokenizer(small_base))


def content(row: Example) -> tuple:
    return (row.input_ids.tolist(), row.labels.tolist(), row.first_round, row.sector)


def assert_same(rows: Rows, examples: list[Example]) -> None:
    assert len(rows) == len(examples)
    assert list(map(content, rows)) == list(map(content, examples))
    assert all(row.input_ids.dtype == row.labels.dtype == np.int32 for row in rows)


@st.composite
def some_rows(draw) -> Example:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
    learnt = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    labels = np.where(learnt, np.array(ids, np.int32), np.int32(IGNORE_INDEX))
    sector = draw(st.sampled_from([None, *SECTORS]))
    return Example(np.array(ids, np.int32), labels, draw(st.integers(0, 20)), sector)


@given(dialogues=st.lists(st.lists(some_rows(), max_size=3), max_size=5))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were(tmp_path, dialogues):
    report = write_rows(
        tmp_path / "rows", [(rows, SplitReport(n_rows=len(rows))) for rows in dialogues], IDENTITY
    )
    examples = [row for rows in dialogues for row in rows]
    rows = open_rows(tmp_path / "rows", IDENTITY)
    assert_same(rows, examples)
    assert report == rows.report == SplitReport(n_rows=len(examples))


def test_split_dialogues_come_back_as_they_were(encoder, tmp_path):
    examples, report = split_all(DIALOGUES, encoder, 64)
    assert any(row.first_round for row in examples)
    assert write_rows(tmp_path / "rows", split_each(iter(DIALOGUES), encoder, 64), IDENTITY) == report
    rows = open_rows(tmp_path / "rows", IDENTITY)
    assert_same(rows, examples)
    assert rows.report == report and str(report) == str(rows.report)


def test_a_row_is_found_by_its_position(encoder, tmp_path):
    examples, _ = split_all(DIALOGUES[:3], encoder, 64)
    write_rows(tmp_path, split_each(DIALOGUES[:3], encoder, 64), IDENTITY)
    rows = open_rows(tmp_path, IDENTITY)
    assert content(rows[-1]) == content(examples[-1]) and content(rows[-len(rows)]) == content(examples[0])
    assert content(rows[np.int64(1)]) == content(examples[1])
    for position in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[position]
    assert [content(row) for row in reversed(rows)] == [content(row) for row in reversed(examples)]


def test_no_rows_at_all(tmp_path):
    assert write_rows(tmp_path, [], IDENTITY) == SplitReport()
    rows = open_rows(tmp_path, IDENTITY)
    assert len(rows) == 0 and list(rows) == []
    with pytest.raises(IndexError):
        rows[0]


def test_rows_of_something_else_are_not_there(encoder, tmp_path):
    write_rows(tmp_path, split_each(DIALOGUES, encoder, 64), IDENTITY)
    assert open_rows(tmp_path, IDENTITY | {"max_tokens": 65}) is None
    assert open_rows(tmp_path, {}) is None
    assert open_rows(tmp_path / "elsewhere", IDENTITY) is None
    assert open_rows(tmp_path, json.loads(json.dumps(IDENTITY))) is not None  # as it is read back


@pytest.mark.parametrize("name", ["rows.json", "starts.npy", "rows.npy", "ids.bin", "learnt.bin"])
@pytest.mark.parametrize("n_bytes", [None, 0, 20])
def test_rows_cut_short_are_not_there(encoder, tmp_path, name, n_bytes):
    write_rows(tmp_path, split_each(DIALOGUES, encoder, 64), IDENTITY)
    file = tmp_path / name
    if n_bytes is None:
        file.unlink()
    else:
        assert file.stat().st_size > n_bytes
        file.write_bytes(file.read_bytes()[:n_bytes])
    assert open_rows(tmp_path, IDENTITY) is None


def test_a_kill_while_writing_leaves_no_rows_and_the_next_call_makes_them(encoder, tmp_path):
    class Killed(BaseException):
        pass

    def until_killed():
        yield from split_each(DIALOGUES[:5], encoder, 64)
        raise Killed

    write_rows(tmp_path / "rows", split_each(DIALOGUES, encoder, 64), IDENTITY)  # older ones
    with pytest.raises(Killed):
        write_rows(tmp_path / "rows", until_killed(), IDENTITY)
    assert open_rows(tmp_path / "rows", IDENTITY) is None
    write_rows(tmp_path / "rows", split_each(DIALOGUES, encoder, 64), IDENTITY)
    assert_same(open_rows(tmp_path / "rows", IDENTITY), split_all(DIALOGUES, encoder, 64)[0])


def test_the_digest_names_the_content(encoder, tmp_path):
    def digest(dialogues, encoder=encoder, identity=IDENTITY):
        write_rows(tmp_path, split_each(dialogues, encoder, 64), identity)
        return open_rows(tmp_path, identity).digest

    first = digest(DIALOGUES)
    assert digest(DIALOGUES) == first == digest(DIALOGUES, identity={"another": "identity"})
    user = Encoder(encoder.tokenizer, learn="user")  # the same ids, and others of them learnt
    changed = [digest(DIALOGUES[:-1]), digest(DIALOGUES[::-1]), digest(DIALOGUES, user), digest([])]
    assert len({first, *changed}) == 5


def test_what_a_reader_does_to_a_row_stays_with_the_reader(encoder, tmp_path):
    write_rows(tmp_path, split_each(DIALOGUES, encoder, 64), IDENTITY)
    before = (tmp_path / "ids.bin").read_bytes()
    rows = open_rows(tmp_path, IDENTITY)
    rows[0].input_ids[:] = 0
    rows[0].labels[:] = 0
    del rows
    assert (tmp_path / "ids.bin").read_bytes() == before
    assert_same(open_rows(tmp_path, IDENTITY), split_all(DIALOGUES, encoder, 64)[0])


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_training_from_disk_is_training_from_a_list(encoder, small_base, tmp_path, batching):
    recipe = Recipe(lr=5e-3, max_steps=3, batch=4, n_evaluations=1, batching=batching, pack_tokens=128)
    train, held_out = split_all(DIALOGUES[2:], encoder, 64)[0], split_all(DIALOGUES[:2], encoder, 64)[0]
    for name, dialogues in (("train", DIALOGUES[2:]), ("held_out", DIALOGUES[:2])):
        write_rows(tmp_path / name, split_each(dialogues, encoder, 64), IDENTITY)
    on_disk = [open_rows(tmp_path / name, IDENTITY) for name in ("train", "held_out")]
    listed = finetune(train, held_out, small_base, tmp_path / "listed", recipe, "none")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable")  # torch, of arrays it must not write to
        mapped = finetune(*on_disk, small_base, tmp_path / "mapped", recipe, "none")
    moved = {"folder": listed.folder, "seconds": listed.seconds}
    assert replace(mapped, **moved) == listed
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("listed", "mapped")]
    assert weights[0] == weights[1]
    # and it is read back by what it was trained on
    shutil.rmtree(tmp_path / "train")
    write_rows(tmp_path / "train", split_each(DIALOGUES[2:], encoder, 64), IDENTITY)
    again = [open_rows(tmp_path / name, IDENTITY) for name in ("train", "held_out")]
    assert finetune(*again, small_base, tmp_path / "mapped", recipe, "none") == mapped
