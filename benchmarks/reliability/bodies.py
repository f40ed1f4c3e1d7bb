"""Bodies that nobody foresaw: good completions mutated at random, and what the ledger makes of them.

A body is cut, has bytes changed, keys dropped, values replaced by anything, another encoding, another status.
What it should come to is decided here, by the few lines of `acceptable`, apart from the code that is tried:

    answered     the body is a whole completion, and its text is what the ledger has
    set aside    it is not, and there is a kind and a line that say so
    junk rows    the ledger has an answer that is none, or another text than the body's
    good refused a whole completion that was set aside

Absent on purpose: faults of the connection (`matrix`).
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from rig import Table

from ultrachat.rehearsal import RehearsalServer
from ultrachat.rehearsal.faults import Reply, completion
from ultrachat.store import Row, open_store
from ultrachat.teacher import Request, Teacher, one_message

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 7, 10**40, 1.5, float("nan"), float("inf"), "", " ", "\n", "stop", "x", "\x00", "\ud800",
    "a" * 300_000, [], [[]], [None], {}, {"a": 1}, {"content": "x"}, "é" * 50, "\u202e", "null", "[DONE]",
)  # fmt: skip
STATUSES = (400, 408, 409, 413, 422, 429, 500, 502, 503, 529)
MAX_CHARACTERS = 200_000


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to everything inside a JSON value, the whole of it first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, child in inside for deeper in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a JSON value with what is at `path` replaced; Ellipsis takes it away."""
    if not path:
        return None if new is ... else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def mutated(rng: random.Random, i: int) -> bytes:
    """Return the body number `i`."""
    value = completion(rng.choice((f"answer {i}", f"Ünïcode {i} 漢字", f"line\n{i}")), refusal=None)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        new = rng.choice((..., *ODD, *ODD))
        value = replaced(value, rng.choice(places(value)), new)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    how = rng.randrange(10)
    if how == 0:
        data = data[: rng.randrange(len(data) + 1)]
    elif how in (1, 2) and data:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    elif how == 3:
        data = rng.choice((b"\xef\xbb\xbf", b" ", b"data: ", b"\x00", b")]}'\n", b"<!-- -->")) + data
    elif how == 4:
        data += rng.choice((b"\n", b"x", b"\x00", data, b"}", b"\n\ndata: [DONE]"))
    elif how == 5:
        data = data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-16-le")))
    return data


def acceptable(status: int, data: bytes) -> str | None:
    """Return the text of a reply that is a whole completion, None for any other."""
    try:
        choice = json.loads(data)["choices"][0]
        text, finish, refusal = (
            choice["message"]["content"],
            choice["finish_reason"],
            choice["message"].get("refusal"),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    whole = status == 200 and finish == "stop" and not refusal and isinstance(text, str) and text.strip()
    if not whole or len(text) > MAX_CHARACTERS:
        return None
    return re.sub("[\ud800-\udfff]", "?", text).replace("\x00", "\ufffd")


async def put(ask: Any, text: str) -> str:
    """Return the answer to one question."""
    return await ask(Request(task="t", inputs={"text": text}, messages=one_message(text)))


def judge(replies: dict[str, tuple[int, bytes]], rows: dict[str, Row], kinds: dict[str, str]) -> Counter[str]:
    """Return what became of all replies; rows and kinds of failures are by the question's text."""
    found: Counter[str] = Counter(bodies=len(replies), answered=len(rows), set_aside=len(kinds))
    for text, (status, data) in replies.items():
        expected = acceptable(status, data)
        found["junk_rows"] += text in rows and rows[text].text != expected
        found["good_refused"] += expected is not None and text not in rows
        found["without_a_class"] += (text in rows) == bool(
            re.fullmatch(r"[A-Za-z0-9_?]{1,40}", kinds.get(text, ""))
        )
    return found


def measure(n: int = 3000) -> list[Table]:
    """Return the table of `n` bodies."""
    rng = random.Random(4)
    replies = {
        str(i): (rng.choice(STATUSES) if rng.random() < 0.15 else 200, mutated(rng, i)) for i in range(n)
    }
    kinds: dict[str, str] = {}
    tracebacks, odd_lines = 0, 0
    with tempfile.TemporaryDirectory() as home, RehearsalServer() as server:
        path = Path(home) / "answers.sqlite"
        server.fault = lambda text, nth: Reply(replies[text][1], replies[text][0])
        teacher = Teacher(path, server.url, "a-model", max_tries=1, max_failed_in_a_row=10**9)
        for start in range(0, n, 100):
            items = [str(i) for i in range(start, min(start + 100, n))]
            try:
                _, failed = teacher.map(put, items)
            except BaseException:
                tracebacks += 1
                traceback.print_exc()
                continue
            kinds |= {failure.item: failure.kind for failure in failed}
            odd_lines += sum(len(f.line.splitlines()) != 1 or not f.line.isprintable() for f in failed)
        with open_store(path) as store:
            stored = [Row(*row) for row in store.stream("answers")]
            n_failed = sum(store.failures().values())
    rows = {json.loads(row.inputs)["text"]: row for row in stored}
    found = judge(replies, rows, kinds)
    found["tracebacks"], found["odd_lines"] = tracebacks, odd_lines
    found["not_in_ledger"] = abs(n_failed - len(kinds))
    by_kind = Counter(re.sub(r"^http_\d+$", "http error", kind) for kind in kinds.values())
    named = {
        kind: count for kind, count in by_kind.most_common() if kind in ("unreadable", "empty", "http error")
    }
    wrong = ("junk_rows", "good_refused", "without_a_class", "odd_lines", "not_in_ledger", "tracebacks")
    row = {name: f"{found[name]:,}" for name in ("bodies", "answered", "set_aside")}
    row["of_them"] = ", ".join(f"{count:,} {kind}" for kind, count in named.items())
    row["other_kinds"] = f"{len(by_kind) - len(named)}"
    row |= {name: f"{found[name]:,}" for name in wrong}
    misses = [f"{found[name]:,} {name.replace('_', ' ')}" for name in wrong if found[name]]
    return [Table("reliability_bodies", [row], misses)]
