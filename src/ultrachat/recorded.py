"""The recorded teacher: a transport under the ordinary openai client that answers from `data/recorded/`.

A request says in one header which task it is and with which inputs; the pack is a dictionary from
that to the raw answer:

    {"task": "subtopics", "inputs": {"topic": "Technology", "n": 36}, "response": "1. Home Wi-Fi …"}

The prompt's wording plays no part, so rewording a prompt does not orphan the recording.

Absent on purpose: any invention. What was not recorded is refused with a line that says how to
get a live teacher.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx2

from ultrachat.errors import Stop
from ultrachat.records import iter_rows
from ultrachat.store import canonical

HEADER = "x-ultrachat-request"
NOT_RECORDED = "not_recorded"


def name_request(task: str, inputs: Mapping[str, Any]) -> str:
    """Return the header value that names a request: its task and inputs as percent-encoded JSON.

    Ours: the key of the recording.
    """
    return quote(canonical({"task": task, "inputs": dict(inputs)}))


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


class RecordedTransport(httpx2.AsyncBaseTransport):
    """Answers POST …/chat/completions from a recorded pack, without a network.

    Token counts are words, not tokens of any model: `usage` is left out so that nobody adds them up.

    Ours: every test and the whole sample run go through the same client as a live run.
    """

    def __init__(self, folder: Path) -> None:
        self._pack = load_pack(folder)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        named = unquote(request.headers.get(HEADER, ""))
        response = self._pack.get(named)
        if response is None:
            message = f"not recorded: {named[:300]}"
            body: dict[str, Any] = {"error": {"message": message, "code": NOT_RECORDED}}
            return httpx2.Response(404, json=body, request=request)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": response},
        }
        model = json.loads(await request.aread())["model"]
        body = {
            "id": "recorded",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [choice],
        }
        return httpx2.Response(200, json=body, request=request)
