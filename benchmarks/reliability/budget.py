"""The bill against the cap: runs that are killed ten times and then spend what is left, at a faulty server.

The true bill is the server's: every request that it generated an answer for, whatever became of it, at the
run's prices; rows of batches at half of them. The run must end by itself, with the line that names the cap.

    shown         what the ledger says was spent or is at risk; at a kill, against all that was sent before it
    share of cap  the true bill as a part of the cap; what is missing was reserved for answers that turned out
                  shorter, or counted as billed because a kill or a fault left it unknown

By batches a step is sent whole or not at all, so a run stops with up to a step's worst case unspent.

Absent on purpose: whether the answers are right (`kills`).
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rig import AFTER, STOPPED, Job, Server, Table, Worker, ledger

from ultrachat.errors import Stop
from ultrachat.money import BATCH_DISCOUNT

KILLS_A_RUN = 10
PRICES = {"a-model": [1.0, 4.0]}  # dollars per million tokens
SETTINGS: dict[str, Any] = {
    "concurrency": 16, "max_tokens": 1200, "max_tries": 12, "max_failed_in_a_row": 10**6, "prices": PRICES,
}  # fmt: skip
FAULTS: dict[str, Any] = {"latency_seconds": 0.02, "fault_fraction": 0.3}


class Mode(NamedTuple):
    """How requests are sent, with how many dialogues and which cap; the server's and the teacher's settings."""

    name: str
    n_dialogues: int
    cap_usd: float
    server: Mapping[str, Any]
    teacher: Mapping[str, Any]
    longest_life_seconds: float


MODES = (
    Mode("single calls, 30 % fast faults", 600, 4.0, FAULTS, {}, 0.5),
    Mode(
        "batches, 30 % of rows failed or expired, 30 % fast faults", 100, 0.30,
        FAULTS | {"batch_seconds": 0.3, "batch_row_fault_fraction": 0.2, "batch_expired_fraction": 0.1},
        {"via": "batches", "batch_poll_seconds": 0.05}, 1.5,
    ),
)  # fmt: skip


class Run(NamedTuple):
    """What one run cost in truth, how the shown spend was ahead of it at each kill, and what ended it."""

    bill_usd: float
    shown_usd: float
    ahead_usd: list[float]
    landed: int
    last_line: str


def bill(log: list[dict[str, Any]], before: float = float("inf")) -> float:
    """Return the dollars that a real server would charge for what was asked before a moment."""
    prompt_usd, completion_usd = PRICES["a-model"]
    return sum(
        (entry["prompt_tokens"] * prompt_usd + entry["completion_tokens"] * completion_usd)
        * (BATCH_DISCOUNT if entry["batch"] else 1.0) / 1e6
        for entry in log
        if entry["billed"] and entry["began"] < before
    )  # fmt: skip


def one_run(mode: Mode, seed: int, n_kills: int, folder: Path) -> Run:
    """Kill a run `n_kills` times and let it go on to its cap."""
    rng, shown, moments, landed = random.Random(seed), [], [], 0
    with Server(folder / "server", seed=seed, **mode.server) as server:
        settings = SETTINGS | mode.teacher | {"budget_usd": mode.cap_usd}
        job = Job(folder / "job", server.url, f"budget {seed}", mode.n_dialogues, settings)
        for _ in range(n_kills):
            worker = Worker(job)
            time.sleep(rng.uniform(0.02, mode.longest_life_seconds))
            landed += worker.phase < AFTER
            worker.kill()
            server.settle()
            shown.append(ledger(job.folder).shown_usd)
            moments.append(time.monotonic())
        last = Worker(job, lingers=False)
        status = last.wait()
        time.sleep(0.2)  # what was cut off by a kill is billed all the same
    if status not in (0, STOPPED) or "Traceback" in last.printed:
        raise Stop(f"{mode.name}: a worker crashed: {last.printed[-500:]}")
    log = server.log()
    ahead = [usd - bill(log, at) for usd, at in zip(shown, moments, strict=True)]
    return Run(
        bill(log), ledger(job.folder).shown_usd, ahead, landed, (last.printed.splitlines() or [""])[-1]
    )


def measure(n: int = 10, modes: tuple[Mode, ...] = MODES) -> list[Table]:
    """Return the table of `n` runs each way."""
    rows, misses = [], []
    with tempfile.TemporaryDirectory() as home:
        for number, mode in enumerate(modes):
            runs = []
            for seed in range(n):
                runs.append(one_run(mode, seed, KILLS_A_RUN, Path(home) / f"{number}-{seed}"))
                print(f"budget: {mode.name}: run {seed + 1} of {n}: ${runs[-1].bill_usd:.3f}", flush=True)
            rows.append(row_of(mode, runs))
            misses += misses_of(mode, runs)
    return [Table("reliability_budget", rows, misses)]


def row_of(mode: Mode, runs: list[Run]) -> dict[str, str]:
    """Return the table's row."""
    shares = [run.bill_usd / mode.cap_usd for run in runs]
    kept = {"least": min(shares), "median": statistics.median(shares), "most": max(shares)}
    return {
        "requests": mode.name, "runs": f"{len(runs)}",
        "kills_before_the_end": f"{sum(run.landed for run in runs)} of {len(runs) * KILLS_A_RUN}",
        "cap_usd": f"{mode.cap_usd:.2f}",
        **{f"{name}_share_of_cap": f"{100 * share:.0f} %" for name, share in kept.items()},
        "runs_above_cap": f"{sum(run.bill_usd > mode.cap_usd for run in runs)}",
        "ended_at_the_cap": f"{sum('budget_usd:' in run.last_line for run in runs)}",
        "kills_with_less_shown_than_billed": f"{sum(usd < -1e-9 for run in runs for usd in run.ahead_usd)}",
        "least_ahead_usd": f"{min(min(run.ahead_usd) for run in runs):.4f}",
    }  # fmt: skip


def misses_of(mode: Mode, runs: list[Run]) -> list[str]:
    """Return a line for every target that was missed."""
    found = {
        "runs cost more than the cap": sum(run.bill_usd > mode.cap_usd for run in runs),
        "runs showed more than the cap": sum(run.shown_usd > mode.cap_usd + 1e-9 for run in runs),
        "runs did not come to the cap": sum("budget_usd:" not in run.last_line for run in runs),
        "kills with less shown than billed": sum(usd < -1e-9 for run in runs for usd in run.ahead_usd),
        "runs ended with less shown than billed": sum(r.shown_usd < r.bill_usd - 1e-9 for r in runs),
    }
    return [f"{mode.name}: {n} {what}" for what, n in found.items() if n]
