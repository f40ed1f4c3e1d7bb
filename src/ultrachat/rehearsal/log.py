"""The rehearsal server's log: what it was asked, what it sent, and what a real server would bill.

    {"path": "/v1/chat/completions", "model": "filler", "n": 1, "digest": "9f…", "nth": 1, "outcome":
     "answered", "status": 200, "prompt_tokens": 12, "completion_tokens": 371, "billed": true, …}

In memory an entry may keep texts, headers and the key, for tests. The file never has them.

Absent on purpose: prices. Sums over the entries are the caller's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from ultrachat.errors import Stop

_NONE: Mapping[str, str] = MappingProxyType({})  # one for all entries: a long rehearsal has millions


@dataclass(slots=True)
class Asked:
    """One request, or one row of a batch, as the server saw it.

    `answered` (monotonic seconds, as `began`) stays None until the reply was written out. `text` is
    the last message's; other requests have their method and path. `outcome` is "answered", "refused"
    (the request was wrong), "rate_limited", "batch_expired" or a fault's name. `billed`: a real server
    would have generated and charged these tokens, whatever then became of its reply.

    Ours: what a real invoice is made from.
    """

    path: str
    text: str
    messages: Sequence[dict[str, Any]] = ()
    model: str = ""
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)
    began: float = field(default_factory=time.monotonic)
    answered: float | None = None
    n: int = 0  # from 1, in the order of coming
    digest: str = ""  # of the body
    nth: int = 0  # how often, from 1, this digest came
    outcome: str = "refused"
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    billed: bool = False
    batch: str = ""  # the id of the batch that this is a row of

    def bill(self, value: Mapping[str, Any]) -> None:
        """Note that the response object `value` was generated and is charged. Ours: as its usage says."""
        self.billed = True
        self.prompt_tokens = value["usage"]["prompt_tokens"]
        self.completion_tokens = value["usage"].get("completion_tokens", 0)


_NOT_IN_THE_FILE = {"text", "messages", "key", "headers"}
_IN_THE_FILE = [name for name in Asked.__slots__ if name not in _NOT_IN_THE_FILE]


class Log:
    """All entries in the order of coming, and their lines in a file if there is one.

    Ours: the server's log, not the client's, is what tests and invoices go by.
    """

    def __init__(self, path: Path | None, keep_messages: bool) -> None:
        self.entries: list[Asked] = []
        self.keep_messages = keep_messages
        self._path = path
        self._file: IO[str] | None = None
        self._seen: Counter[str] = Counter()

    def open(self) -> None:
        """Open the file to append to; Stop where that cannot be done. Ours: a log outlives its server."""
        try:
            self._file = self._path.open("a", encoding="utf-8", buffering=1) if self._path else None
        except OSError as problem:
            raise Stop(f"--log: {self._path} cannot be written ({problem.strerror})") from None

    def close(self) -> None:
        """Close the file. Ours: with the server."""
        if self._file:
            self._file.close()
        self._file = None

    def add(self, asked: Asked, raw: bytes) -> None:
        """Put an entry on the log, with the digest of its body. Ours: before anything is decided."""
        asked.digest = hashlib.sha256(raw).hexdigest()[:32]
        self._seen[asked.digest] += 1
        asked.n, asked.nth = len(self.entries) + 1, self._seen[asked.digest]
        self.entries.append(asked)

    def finish(self, asked: Asked) -> None:
        """Write an entry's line, flushed; forget its text unless that was to be kept.

        Ours: written once nothing more can happen to it.
        """
        if self._file:
            self._file.write(json.dumps({name: getattr(asked, name) for name in _IN_THE_FILE}) + "\n")
        if not self.keep_messages:
            asked.text = ""


def draw(seed: int, what: str, asked: Asked) -> float:
    """Return a number from 0 to 1 that depends on the seed, the body and how often it came.

    Ours: what happens to a request does not depend on what else is under way.
    """
    hashed = hashlib.sha256(f"{seed}:{what}:{asked.digest}:{asked.nth}".encode()).digest()
    return int.from_bytes(hashed[:6], "big") / 2**48
