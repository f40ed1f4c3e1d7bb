"""The recorded teacher: a pack, its errors, and what the ordinary client gets from it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import unquote

import openai
import pytest

from ultrachat.errors import Stop
from ultrachat.recorded import HEADER, RecordedTransport, load_pack, name_request
from ultrachat.runs import DATA
from ultrachat.store import canonical

ROW = {"task": "subtopics", "inputs": {"topic": "Jazz", "n": 2}, "response": "1. Swing\n2. Bebop"}


def pack(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def ask(folder: Path, **headers: str):
    """What openai's own client makes of the transport's answer."""

    async def once():
        http = openai.DefaultAsyncHttpxClient(transport=RecordedTransport(folder))
        async with openai.AsyncOpenAI(
            api_key="none", base_url="http://recorded.invalid/v1", http_client=http, max_retries=0
        ) as client:
            return await client.chat.completions.create(
                model="recorded", messages=[{"role": "user", "content": "any wording"}], extra_headers=headers
            )

    return asyncio.run(once())


def test_a_name_is_canonical_and_fits_a_header():
    name = name_request("t", {"b": "Zürich\n日本", "a": 1})
    assert name == name_request("t", {"a": 1, "b": "Zürich\n日本"}) and re.fullmatch(r"[!-~]+", name)
    assert json.loads(unquote(name)) == {"task": "t", "inputs": {"a": 1, "b": "Zürich\n日本"}}
    assert name_request("t", {"n": 1}) != name_request("t", {"n": "1"})


def test_the_client_gets_the_recorded_answer_without_token_counts(tmp_path):
    folder = pack(tmp_path, a=json.dumps(ROW))
    answer = ask(folder, **{HEADER: name_request("subtopics", {"n": 2, "topic": "Jazz"})})
    assert answer.choices[0].message.content == ROW["response"] and answer.choices[0].finish_reason == "stop"
    assert answer.usage is None and answer.model == "recorded"


@pytest.mark.parametrize("name", [name_request("subtopics", {"topic": "Jazz", "n": 3}), "", "nonsense"])
def test_what_is_not_recorded_is_refused(tmp_path, name):
    with pytest.raises(openai.NotFoundError) as refused:
        ask(pack(tmp_path, a=json.dumps(ROW)), **{HEADER: name})
    assert refused.value.code == "not_recorded"


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
