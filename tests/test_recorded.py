"""The recorded teacher: a pack, its errors, and what the ordinary caller gets from it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from ultrachat.errors import Stop
from ultrachat.recorded import RecordedConnection, load_pack, name_request, named_in, stand_in
from ultrachat.runs import DATA
from ultrachat.store import canonical

ROW = {"task": "subtopics", "inputs": {"topic": "Jazz", "n": 2}, "response": "1. Swing\n2. Bebop"}


def pack(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def ask(folder: Path, **body):
    """What comes back to a request body, as (status, object)."""
    reply = asyncio.run(RecordedConnection(folder).post({"model": "recorded", "messages": [], **body}))
    return reply.status, json.loads(reply.body)


def test_a_name_does_not_depend_on_order_but_on_everything_else():
    name = name_request("t", {"b": "Zürich\n日本", "a": 1})
    assert name == name_request("t", {"a": 1, "b": "Zürich\n日本"})
    assert json.loads(named_in({"metadata": name})) == {"task": "t", "inputs": {"a": 1, "b": "Zürich\n日本"}}
    assert name_request("t", {"n": 1}) != name_request("t", {"n": "1"})


@pytest.mark.parametrize("metadata", [None, [], "x", {}, {"ultrachat": 7}, {"other": "x"}])
def test_a_body_without_a_name_has_none(metadata):
    assert named_in({"metadata": metadata}) == "" == named_in({})


def test_the_recorded_answer_comes_without_token_counts(tmp_path):
    folder = pack(tmp_path, a=json.dumps(ROW))
    status, answer = ask(folder, metadata=name_request("subtopics", {"n": 2, "topic": "Jazz"}))
    assert status == 200 and answer["choices"][0]["message"]["content"] == ROW["response"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in answer and answer["model"] == "recorded"


@pytest.mark.parametrize(
    "metadata", [name_request("subtopics", {"topic": "Jazz", "n": 3}), None, {"ultrachat": "x"}]
)
def test_what_is_not_recorded_is_refused(tmp_path, metadata):
    status, answer = ask(pack(tmp_path, a=json.dumps(ROW)), metadata=metadata)
    assert status == 404 and answer["error"]["code"] == "not_recorded"


def test_a_stand_in_is_a_recorded_answer_to_the_same_kind_of_question():
    rows = [json.loads(name) | {"text": text} for name, text in load_pack(DATA / "recorded").items()]
    by_task = {task: {r["text"] for r in rows if r["task"] == task} for task in ("questions", "user_turn")}
    for i in range(20):
        assert stand_in("questions", {"topic": f"t{i}", "subtopic": "s", "n": 10}) in by_task["questions"]
        second = {r["text"] for r in rows if r["task"] == "user_turn" and r["inputs"]["round"] == 2}
        assert stand_in("user_turn", {"opening": f"o{i}", "round": 2}) in second
        assert stand_in("user_turn", {"opening": f"o{i}", "round": 99}) in by_task["user_turn"]
    assert len({stand_in("user_turn", {"opening": f"o{i}", "round": 2}) for i in range(20)}) > 5
    assert stand_in("never heard of", {"x": "y"}) == stand_in("never heard of", {"x": "y"})


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"inputs": {}, "response": ""}, "task"),
        ({**ROW, "task": 7}, "task"),
        ({**ROW, "inputs": [1]}, "inputs"),
        ({"task": "t", "response": ""}, "inputs"),
        ({**ROW, "response": None}, "response"),
        ({"task": "t", "inputs": {}}, "response"),
        ({**ROW, "response": "another"}, "inputs"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_field(tmp_path, row, field):
    pack(tmp_path, a=json.dumps(ROW), b=f"\n{json.dumps(row)}")
    with pytest.raises(Stop, match=rf"b\.jsonl:2: field '{field}'"):
        load_pack(tmp_path)


def test_an_empty_folder_is_no_pack(tmp_path):
    with pytest.raises(Stop, match="no recorded answers"):
        load_pack(tmp_path)


def test_a_broken_pack_is_looked_at_again(tmp_path):
    pack(tmp_path, a="{")
    with pytest.raises(Stop, match=r"a\.jsonl:1: not JSON"):
        load_pack(tmp_path)
    pack(tmp_path, a=json.dumps(ROW))
    assert list(load_pack(tmp_path).values()) == [ROW["response"]]


def test_the_committed_pack_holds_what_its_readme_says():
    readme = (DATA / "recorded" / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| (\w+\.jsonl) \| (\d+) \|", readme, re.MULTILINE))
    counted = {p.name: p.read_text(encoding="utf-8").count("\n") for p in (DATA / "recorded").glob("*.jsonl")}
    assert {name: int(n) for name, n in stated.items()} == counted
    assert len(load_pack(DATA / "recorded")) == sum(counted.values())
    assert canonical({"task": "meta_topics", "inputs": {"n": 30}}) in load_pack(DATA / "recorded")
