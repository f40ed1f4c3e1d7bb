"""How much of its speed a run keeps when the server fails: the same dialogues with and without faults.

Every server is a process of its own; they take turns, three times round, and each round draws other faults.
A fault takes as long as an answer does, so of a server that answers seven requests in ten no client can get
more than 70 %. What is lost beyond that is waiting: the first back-off is up to half a second, which for a
call of half a second counts for more than for one of two; the shares of both are shown, the target holds for
the longer one. Hangs and trickles end at the deadline, ten times the usual call or two seconds.

    seconds       at the server, from the first request's arrival to the last answer; the median
    answered twice  requests that were answered, and came again all the same
    most tries    for one request; it takes more than six (the default) about once in 1,400 requests

Absent on purpose: CPU; see "Generating dialogues".
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rig import OUT, Job, Server, Table, Worker

from ultrachat.errors import Stop

FAULT_FRACTION = 0.3
IN_FLIGHT = 64
REPEATS = 3
MAX_TRIES = 12
USUAL_SECONDS, SHORT_SECONDS = 1.5, 0.5
DEADLINE_CALLS = 10
LEAST_DEADLINE_SECONDS = 2.0  # or a machine that stands still for a moment looks like a server that hangs


class Mode(NamedTuple):
    """A server: its name, how long a call takes, which faults it has, what share of the speed is to be kept."""

    name: str
    call_seconds: float
    kinds: str = ""
    target: float = 0.0


MODES = (
    Mode("without faults", USUAL_SECONDS),
    Mode("30 % fast faults", USUAL_SECONDS, "fast", 0.60),
    Mode("30 % faults, hangs and trickles among them", USUAL_SECONDS, "fast,slow", 0.40),
    Mode("short calls, without faults", SHORT_SECONDS),
    Mode("short calls, 30 % fast faults", SHORT_SECONDS, "fast"),
)


class Run(NamedTuple):
    """What one run took, made and asked."""

    seconds: float
    n_finished: int
    published: bytes
    requests: int
    slow: int
    twice: int
    most_tries: int


def run(mode: Mode, n: int, seed: int, folder: Path) -> Run:
    """Return what one run of `n` dialogues was like; Stop when it does not come to its end."""
    options: dict[str, Any] = {"latency_seconds": mode.call_seconds, "seed": seed}
    if mode.kinds:
        options |= {"fault_fraction": FAULT_FRACTION, "fault_kinds": mode.kinds}
    deadline = max(LEAST_DEADLINE_SECONDS, DEADLINE_CALLS * mode.call_seconds)
    settings = {"concurrency": IN_FLIGHT, "max_tries": MAX_TRIES, "deadline_seconds": deadline}
    with Server(folder, **options) as server:
        job = Job(folder, server.url, "throughput", n, settings)
        worker = Worker(job, lingers=False)
        if worker.wait():
            raise Stop(f"{mode.name}: the run failed: {worker.printed[-500:]}")
    log, published = server.log(), (folder / OUT).read_bytes()
    given = Counter(entry["digest"] for entry in log if entry["outcome"] == "answered")
    return Run(
        max(entry["answered"] or 0.0 for entry in log) - min(entry["began"] for entry in log),
        published.count(b"\n"), published, len(log), sum(e["outcome"] in ("hang", "trickle") for e in log),
        sum(n - 1 for n in given.values()), max(entry["nth"] for entry in log),
    )  # fmt: skip


def measure(n: int = 300, modes: tuple[Mode, ...] = MODES, repeats: int = REPEATS) -> list[Table]:
    """Return the table of `n` dialogues at every kind of server."""
    runs: dict[str, list[Run]] = {mode.name: [] for mode in modes}
    with tempfile.TemporaryDirectory() as home:
        for repeat in range(repeats):
            for number, mode in enumerate(modes):
                runs[mode.name].append(run(mode, n, repeat, Path(home) / f"{repeat}-{number}"))
                print(f"{repeat + 1}. {mode.name}: {runs[mode.name][-1].seconds:.1f} s", flush=True)
    rows, misses = [], []
    reference = runs[modes[0].name][0].published
    for mode in modes:
        some = runs[mode.name]
        free = next(runs[m.name] for m in modes if m.call_seconds == mode.call_seconds and not m.kinds)
        shares = [a.seconds / b.seconds for a, b in zip(free, some, strict=True)]
        share, finished = statistics.median(shares), min(r.n_finished for r in some)
        identical = sum(r.published == reference for r in some)
        row = row_of(mode, some, n)
        row |= {"share": f"{100 * share:.0f} %", "least": f"{100 * min(shares):.0f} %"}
        row |= {"target": f"{100 * mode.target:.0f} %" if mode.target else ""}
        rows.append(row)
        twice = sum(r.twice for r in some)
        found = {
            f"{n - finished} dialogues did not finish": n - finished,
            f"{repeats - identical} files differ from the undisturbed one": repeats - identical,
            f"{twice} answered requests came again": twice,
            f"{100 * share:.0f} % of the throughput, expected {100 * mode.target:.0f} %": share < mode.target,
        }
        misses += [f"{mode.name}: {line}" for line, missed in found.items() if missed]
    return [Table("reliability_faults", rows, misses)]


def row_of(mode: Mode, runs: list[Run], n: int) -> dict[str, str]:
    """Return the table's row, but for the shares."""
    seconds = statistics.median(r.seconds for r in runs)
    calls_behind = DEADLINE_CALLS * mode.call_seconds
    return {
        "server": mode.name, "call_seconds": f"{mode.call_seconds:g}", "in_flight": f"{IN_FLIGHT}",
        "deadline_seconds": f"{calls_behind:g}", "runs": f"{len(runs)}",
        "dialogues_finished": f"{min(r.n_finished for r in runs):,} of {n:,}",
        "requests": f"{math.ceil(statistics.median(r.requests for r in runs)):,}",
        "of_them_hung": f"{math.ceil(statistics.median(r.slow for r in runs)):,}",
        "answered_twice": f"{sum(r.twice for r in runs)}", "most_tries": f"{max(r.most_tries for r in runs)}",
        "seconds": f"{seconds:.1f}", "dialogues_per_second": f"{n / seconds:.1f}",
    }  # fmt: skip
