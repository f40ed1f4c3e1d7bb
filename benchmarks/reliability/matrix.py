"""Every fault the rehearsal server knows, met once and met for ever, and whether the key shows up anywhere.

A fault belongs to a group, and the group has its class: what passes is tried again, what is unusable or
rejected is set aside at the first sight, what cannot get better stops the run, what is only odd is kept.

    met once      what became of a question whose first reply was the fault, and how many requests it took
    met for ever  what became of one that meets it always and has one try, in how many seconds
    by batches    the same where the fault can meet the requests about files and batches, each of them once
    one line      whatever was reported was one printable line
    key found     how often the key, which was exported and sent, is in what was printed, raised or written:
                  ledger, output, manifest, the server's log file

Absent on purpose: bodies that are not among the faults (`bodies`), faults at random (`throughput`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rig import Table

from ultrachat.errors import Stop
from ultrachat.rehearsal import RehearsalServer, Settings
from ultrachat.rehearsal.faults import FAULTS, GROUPS
from ultrachat.runs import Run
from ultrachat.store import open_store
from ultrachat.teacher import Request, Teacher, one_message

CANARY = "sk-canary-7f3a9c51e2"
DEADLINE_SECONDS = 1.5
SPARE_SECONDS = 1.0
EXPECTED = {
    "fast": "tried again", "wait": "tried again", "slow": "tried again", "stop": "stops the run",
    "reject": "set aside", "unusable": "set aside", "odd": "kept",
}  # fmt: skip
ALSO_STOPS = ("redirect",)  # where it leads nothing of ours is sent, the next question would not either


class Met(NamedTuple):
    """What became of a question: "answered", "set aside" or "stopped", its kind, the line, and how it went."""

    outcome: str
    kind: str
    line: str
    requests: int
    seconds: float
    raised: str

    def __str__(self) -> str:
        kind = f" ({self.kind})" if self.kind else ""
        return f"{self.outcome}{kind}, {self.requests} request{'s' * (self.requests != 1)}"


async def put(ask: Any, text: str) -> str:
    """Return the answer to one question."""
    return await ask(Request(task="t", inputs={"text": text}, messages=one_message(text)))


def ask(server: RehearsalServer, run: Run, questions: list[str], **settings: Any) -> Met:
    """Put questions and return what became of the first."""
    begin, before, line, kind, raised = time.monotonic(), len(server.log), "", "", ""
    teacher = Teacher(run.store_path, server.url, "a-model", deadline_seconds=DEADLINE_SECONDS, **settings)
    try:
        _, failed = teacher.map(put, questions, label=run.name)
        outcome = "set aside" if failed else "answered"
        kind, line = (failed[0].kind, failed[0].line) if failed else ("", "")
    except Stop as stop:
        outcome, line, raised = "stopped", str(stop), "".join(traceback.format_exception(stop))
    except Exception as error:
        outcome, raised = f"traceback: {type(error).__name__}", "".join(traceback.format_exception(error))
    seconds = time.monotonic() - begin
    n = sum(asked.text == questions[0] for asked in server.log[before:])
    run.publish(f"{run.number}_lines.txt", f"{outcome} {kind} {line}\n", rows=1)
    print(run.finish(teacher.usage()), outcome, line)
    return Met(outcome, kind, line, n, seconds, raised)


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Have everything that this process prints, by whatever means, go to a file for a while."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(handle)


def one_fault(name: str, group: str, home: Path) -> tuple[dict[str, str], list[str]]:
    """Return the table's row of one fault, and what was missed."""
    folder = home / name
    folder.mkdir()
    os.environ["ULTRACHAT_RUNS"] = str(folder / "runs")
    reply, log_file = FAULTS[name], folder / "server.jsonl"
    by_batches = (reply.status != 200 or reply.body is None) and group != "slow"
    with (
        RehearsalServer(Settings(batch_seconds=0.0), log_path=log_file) as server,
        printed_to(folder / "out.txt"),
    ):
        run = Run("05_faults", name, {"run_name": name})
        server.fault = lambda text, nth: reply if nth == 1 else None
        once = ask(server, run, ["once"], max_tries=3)
        server.fault = lambda text, nth: reply
        ever = ask(server, run, ["ever"], max_tries=1)
        server.fault = lambda text, nth: reply if nth == 1 and text.startswith(("GET", "POST")) else None
        batch = None
        if by_batches:
            batch = ask(server, run, ["one", "two"], max_tries=3, via="batches", batch_poll_seconds=0.05)
    with open_store(run.store_path) as store:
        n_answers, n_failed = len(store), sum(store.failures().values())
    met = [once, ever, *([batch] if batch else [])]
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] + [
        m.raised.encode() for m in met
    ]
    found = sum(data.count(CANARY.encode()) for data in texts)
    lines = [m.line for m in met if m.line]
    row = {
        "fault": name, "group": group, "expected": "stops the run" if name in ALSO_STOPS else EXPECTED[group],
        "met_once": str(once), "met_for_ever": str(ever), "seconds": f"{ever.seconds:.1f}",
        "by_batches": batch.outcome if batch else "",
        "one_line": "yes" if all(len(m.line.splitlines()) < 2 and m.line.isprintable() for m in met) else "no",
        "key_found": f"{found}",
    }  # fmt: skip
    n_expected = (
        (once.outcome == "answered") + (ever.outcome == "answered") + 2 * (row["by_batches"] == "answered")
    )
    wrong = {
        f"met once: {once}": (once.outcome, once.requests) != _once(row["expected"]),
        f"met for ever: {ever}": (ever.outcome, ever.requests) != _ever(row["expected"]),
        f"by batches: {batch}": batch and batch.outcome != ("answered" if group in ("fast", "wait", "odd") else "stopped"),
        f"{ever.seconds:.1f} s": ever.seconds > DEADLINE_SECONDS + SPARE_SECONDS,
        f"more than a line: {lines}": row["one_line"] == "no",
        "the key shows up": found, "the key was not sent": {a.key for a in server.log if not a.batch} != {CANARY},
        f"{n_answers} answers and {n_failed} failures are kept": n_answers != n_expected
        or n_failed != sum(m.outcome == "set aside" for m in (once, ever)),
    }  # fmt: skip
    return row, [f"{name}: {what}" for what, missed in wrong.items() if missed]


def _once(expected: str) -> tuple[str, int]:
    return {"tried again": ("answered", 2), "kept": ("answered", 1), "set aside": ("set aside", 1)}.get(
        expected, ("stopped", 1)
    )


def _ever(expected: str) -> tuple[str, int]:
    return ("set aside", 1) if expected == "tried again" else _once(expected)


def measure(n: int = 0, names: Sequence[str] = tuple(FAULTS)) -> list[Table]:
    """Return the table of the named faults, however large `n` is."""
    rows, misses = [], []
    key = os.environ.get("OPENAI_API_KEY")
    os.environ["OPENAI_API_KEY"] = CANARY
    with tempfile.TemporaryDirectory() as home:
        for name in names:
            group = next(group for group, faults in GROUPS.items() if name in faults)
            row, missed = one_fault(name, group, Path(home))
            rows.append(row)
            misses += missed
    print(f"matrix: {len(rows)} of {len(FAULTS)} faults", flush=True)
    os.environ.pop("ULTRACHAT_RUNS")
    os.environ["OPENAI_API_KEY"] = key or "none"
    return [Table("reliability_matrix", rows, misses)]
