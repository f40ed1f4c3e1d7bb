"""The recorded teacher: a connection under the ordinary caller that answers from `data/recorded/`.

A request says in its `metadata` which task it is and with which inputs; the pack is a dictionary
from that to the raw answer:

    {"task": "subtopics", "inputs": {"topic": "Technology", "n": 36}, "response": "1. Home Wi-Fi …"}

The prompt's wording plays no part, so rewording a prompt does not orphan the recording.

Absent on purpose: any invention. What was not recorded is refused with a line that says how to
get a live teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ultrachat.errors import Stop
from ultrachat.records import iter_rows
from ultrachat.runs import DATA
from ultrachat.store import canonical

RECORDED = "recorded"  # as a base URL, and as the name of a model
METADATA = "ultrachat"  # the field of a request's metadata that names it
NOT_RECORDED = "not_recorded"


class Reply(NamedTuple):
    """What came back to a request: status, headers, and the body (None: longer than anybody should read).

    Ours: bytes, so that nothing is read into a reply that is not there.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | None


def name_request(task: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the `metadata` of a request body that names it by task and inputs.

    Ours: the key of the recording.
    """
    return {METADATA: canonical({"task": task, "inputs": dict(inputs)})}


def named_in(body: Mapping[str, Any]) -> str:
    """Return the name in a request body, "" when it has none.

    Ours: see `name_request`.
    """
    metadata = body.get("metadata")
    name = metadata.get(METADATA) if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def not_recorded(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error object for a request that the pack has no answer to.

    Ours: what was not recorded is refused, never invented.
    """
    return {"error": {"message": f"not recorded: {named_in(body)[:300]}", "code": NOT_RECORDED}}


def completion(model: str, text: str) -> dict[str, Any]:
    """Return a chat completion object that holds `text`.

    Ours: the API's form, which every server speaks.
    """
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "recorded", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}


@cache
def load_pack(folder: Path) -> dict[str, str]:
    """Return {canonical task and inputs: raw answer} from every JSONL file in `folder`.

    Raises Stop naming file and line of a row that lacks a field or repeats an earlier one.

    Ours: see data/recorded/README.md for what the answers are.
    """
    pack: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for where, row in iter_rows(path):
            for field, kind in (("task", str), ("inputs", dict), ("response", str)):
                if not isinstance(row.get(field), kind):
                    raise Stop(
                        f"{where}: field '{field}': expected {kind.__name__}, got {row.get(field)!r:.60}"
                    )
            name = canonical({"task": row["task"], "inputs": row["inputs"]})
            if name in pack:
                raise Stop(
                    f"{where}: field 'inputs': task '{row['task']}' with these inputs is recorded twice"
                )
            pack[name] = row["response"]
    if not pack:
        raise Stop(f"{folder}: no recorded answers (*.jsonl) there")
    return pack


@cache
def _by_kind() -> dict[str, list[str]]:
    """Return recorded answers by task, and by task with the numbers among its inputs ("round", "n")."""
    kinds: dict[str, list[str]] = {}
    for name, response in load_pack(DATA / "recorded").items():
        named = json.loads(name)
        for kind in (_kind(named["task"], named["inputs"]), named["task"], ""):
            kinds.setdefault(kind, []).append(response)
    return kinds


def _kind(task: str, inputs: Mapping[str, Any]) -> str:
    return canonical([task, {name: value for name, value in inputs.items() if type(value) is int}])


def stand_in(task: str, inputs: Mapping[str, Any]) -> str:
    """Return the recorded answer to a question or else one to the same kind of question, always the same.

    Ours: forecasts and rehearsals need answers of the right form and length; these were written for it.
    """
    known = load_pack(DATA / "recorded").get(name_request(task, inputs)[METADATA])
    if known is not None:
        return known
    kinds = _by_kind()
    choice = kinds.get(_kind(task, inputs)) or kinds.get(task) or kinds[""]
    digest = hashlib.sha256(canonical([task, dict(inputs)]).encode("utf-8", "replace")).digest()
    return choice[int.from_bytes(digest[:8]) % len(choice)]


class RecordedConnection:
    """Answers chat completion requests from a recorded pack, without a network.

    `usage` is left out: words are not tokens of any model, and nobody should add them up.

    Ours: every test and the whole sample run go through the same caller as a live run.
    """

    def __init__(self, folder: Path) -> None:
        self._pack = load_pack(folder)

    async def post(self, body: dict[str, Any]) -> Reply:
        """Return what a server would: 200 with the answer, or 404 when there is none."""
        response = self._pack.get(named_in(body))
        if response is None:
            return Reply(404, {}, json.dumps(not_recorded(body)).encode())
        return Reply(200, {}, json.dumps(completion(body["model"], response)).encode())

    async def close(self) -> None:
        """Nothing to let go of."""
