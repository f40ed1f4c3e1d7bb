"""The rehearsal server as the tests use it: short answers, everything on the log, faults that pass.

with FaultServer() as server:
    server.fault = lambda text, nth: FAULTS["http_500"] if nth == 1 else None
    Teacher(store, server.url, "any-model").ask(…)
    server.log        # every request, with when it came and when its answer was sent
"""

from __future__ import annotations

import hashlib

from ultrachat.rehearsal import RehearsalServer
from ultrachat.rehearsal.faults import FAST_FAULTS as FAULTS
from ultrachat.rehearsal.faults import Reply, as_json, completion, error

__all__ = ["FAULTS", "FaultServer", "Reply", "answer_to", "as_json", "completion", "error"]


def answer_to(text: str) -> str:
    """The text the server answers by default: the same for the same question, different for others."""
    return "answer " + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


class FaultServer(RehearsalServer):
    """Answers are `answer_to(text)`, of 7 prompt and 5 completion tokens, unless `fault` says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = answer_to
