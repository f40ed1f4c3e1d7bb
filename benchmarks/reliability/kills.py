"""kill -9 at random moments, and what became of every answer: by the server's log and the ledger.

A run is one job, killed some 25 times and then left to finish. Where the kills land is drawn: while the
worker starts, while it asks and commits (most), while it publishes, after that. After each kill the ledger
is read; afterwards the server's log says what was asked again. A request that is not in the ledger when
the kill comes may be asked again, and no other may:

    lost        in the ledger after a kill, and not (or otherwise) after the next, or asked again
    in flight   on the server's log and not in the ledger at the kill: at most as many as may be under way
    asked again of those in flight, the ones that were answered and came once more
    paid twice  answers that the server gave to a request that it had answered before: the same number

Absent on purpose: torn files (`damage`) and writes that fail (`disk`).
"""

from __future__ import annotations

import bisect
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rig import AFTER, OUT, PHASES, PUBLISHING, STARTING, Job, Kept, Server, Table, Worker, ledger, names

from ultrachat.errors import Stop

CONCURRENCY = 16
LATENCY_SECONDS = 0.02
FAULT_FRACTION = 0.3
KILLS_A_RUN = 25
N_DIALOGUES = 120
MAX_TRIES = 12  # with 6, the default, one request in 1,400 meets six faults in a row


class Kill(NamedTuple):
    """A kill: when it came (monotonic seconds), where it hit, what the ledger had, what was published."""

    at: float
    phase: int
    kept: Kept
    published: bytes | None


@dataclass
class Figures:
    """What was found in some runs, added up; `bounds` are (asked again, in flight) of every kill."""

    phases: Counter[int] = field(default_factory=Counter)
    answers: int = 0
    lost: int = 0
    doubled: int = 0
    half_published: int = 0
    crashed: int = 0
    paid_twice: int = 0
    bounds: list[tuple[int, int]] = field(default_factory=list)
    runs: int = 0
    identical: int = 0

    def add(self, other: Figures) -> None:
        """Add another run's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def asked_again(self) -> int:
        """All requests that were asked again after a kill."""
        return sum(again for again, _ in self.bounds)


def judge(
    log: Sequence[dict[str, Any]], begins: Sequence[float], kills: Sequence[Kill], final: Kept,
    key_of: dict[str, str],
) -> Figures:  # fmt: skip
    """Return what a run's log and ledgers say. `begins` says when each worker began, the last one's included;
    `key_of` maps the log's digests to keys of the ledger. Raises Stop for a request that is none of the job's.
    """
    figures = Figures(Counter(kill.phase for kill in kills), len(final.answers), runs=1)
    if {entry["digest"] for entry in log} - key_of.keys():
        raise Stop("a request on the server's log is none of the job's")
    lives: list[list[dict[str, Any]]] = [[] for _ in begins]
    last_life: dict[str, int] = {}
    for entry in log:
        life = bisect.bisect(begins, entry["began"]) - 1
        lives[life].append(entry)
        last_life[entry["digest"]] = life
    figures.doubled = len(final.answers) - len({key_of[digest] for digest in last_life})
    for life, kill in enumerate(kills):
        kept, later = kill.kept.answers, [*kills, None][life + 1]
        after = (later.kept if later else final).answers
        figures.lost += sum(after.get(key) != row for key, row in kept.items())
        figures.lost += sum(last > life for digest, last in last_life.items() if key_of[digest] in kept)
        missing = [entry for entry in lives[life] if key_of[entry["digest"]] not in kept]
        answered = {e["digest"] for e in missing if e["outcome"] == "answered"}
        unheard = {e["digest"] for e in missing if e["answered"] is None or e["answered"] > kill.at}
        again = sum(last_life[digest] > life for digest in answered)
        figures.bounds.append((again, len(answered | unheard)))
    given = Counter(entry["digest"] for entry in log if entry["outcome"] == "answered")
    figures.paid_twice = sum(n - 1 for n in given.values())
    return figures


class _Speed:
    """How fast a job gets on between two kills, learnt as it goes."""

    def __init__(self) -> None:
        self.answers, self.seconds = 20.0, 0.05

    def seconds_for(self, answers: float) -> float:
        return answers * self.seconds / self.answers


def one_run(job: Job, server: Server, n_kills: int, n_answers: int, rng: random.Random) -> tuple[Any, ...]:
    """Kill a job `n_kills` times and let it finish; return begins, kills, and whether a worker crashed."""
    n_late = min(3, n_kills // 6)
    n_early = min(2, n_kills // 6)
    early = set(rng.sample(range(n_kills - n_late), n_early))
    begins, kills, speed, n_kept = [], [], _Speed(), 0
    for number in range(n_kills):
        worker = Worker(job)
        begins.append(worker.began)
        left = max(1, n_kills - n_late - number)
        if number in early:
            time.sleep(rng.uniform(0.0, 0.02))
        elif left > 1 or number < n_kills - n_late:
            # between none and twice its share of what is left to be asked
            time.sleep(rng.uniform(0.005, 0.02 + 2 * speed.seconds_for(max(0, n_answers - n_kept) / left)))
        elif number < n_kills - 1:
            worker.wait_for(PUBLISHING)
            time.sleep(rng.uniform(0.0, 0.003))
        else:
            worker.wait_for(AFTER)
        phase, at = worker.phase, time.monotonic()
        worker.kill()
        server.settle()
        kept = ledger(job.folder)
        out = job.folder / OUT
        kills.append(Kill(at, phase, kept, out.read_bytes() if out.exists() else None))
        speed.answers += len(kept.answers) - n_kept
        speed.seconds += at - worker.began if phase > STARTING else 0.0
        n_kept = len(kept.answers)
    last = Worker(job, lingers=False)
    begins.append(last.began)
    status = last.wait()
    return begins, kills, bool(status) or "Traceback" in last.printed


def measure_mode(n_kills: int, faults: float, home: Path, n_dialogues: int) -> Figures:
    """Return the figures of runs with `n_kills` kills in all, against a server with so many faults."""
    figures = Figures()
    n_runs = max(1, round(n_kills / KILLS_A_RUN))
    settings = {"concurrency": CONCURRENCY, "max_tries": MAX_TRIES, "max_failed_in_a_row": 10**6}
    for number in range(n_runs):
        share = n_kills * (number + 1) // n_runs - n_kills * number // n_runs
        folder, salt = home / f"{faults}-{number}", f"{faults}/{number}"
        with Server(folder / "whole") as quiet:
            whole = Job(folder / "whole", quiet.url, salt, n_dialogues, settings)
            if Worker(whole, lingers=False).wait():
                raise Stop("the undisturbed run failed")
        reference = (whole.folder / OUT).read_bytes()
        options = {"latency_seconds": LATENCY_SECONDS, "fault_fraction": faults, "seed": number}
        with Server(folder / "killed", **options) as server:
            job = Job(folder / "killed", server.url, salt, n_dialogues, settings)
            n_answers = len(ledger(whole.folder).answers)
            begins, kills, crashed = one_run(job, server, share, n_answers, random.Random(f"{salt}"))
            final = ledger(job.folder)
            key_of = names(job)  # what it has to ask, the finished job has lost: that is on the log too
        run = judge(server.log(), begins, kills, final, key_of)
        run.crashed = int(crashed)
        published = [kill.published for kill in kills if kill.published is not None]
        run.half_published = sum(data != reference for data in published)
        run.identical = (
            int((job.folder / OUT).read_bytes() == reference) if (job.folder / OUT).exists() else 0
        )
        figures.add(run)
        shutil.rmtree(folder)
        print(f"kills: {len(figures.bounds):,} of {n_kills:,} at {faults:.0%} faults", flush=True)
    return figures


def row_of(name: str, figures: Figures) -> dict[str, str]:
    """Return the table's row."""
    n_kills = len(figures.bounds)
    most = max(figures.bounds, default=(0, 0))
    return {
        "server": name, "kills": f"{n_kills:,}",
        **{f"while_{phase}" if i < AFTER else "after": f"{figures.phases[i]:,}" for i, phase in enumerate(PHASES)},
        "runs": f"{figures.runs:,}", "answers": f"{figures.answers:,}", "lost": f"{figures.lost:,}",
        "doubled": f"{figures.doubled:,}", "asked_again": f"{figures.asked_again:,}",
        "paid_twice": f"{figures.paid_twice:,}",
        "asked_again_per_kill": f"{figures.asked_again / max(1, n_kills):.1f}",
        "most_for_one_kill": f"{most[0]} of {most[1]} in flight",
        "most_in_flight": f"{max((n for _, n in figures.bounds), default=0)} of {CONCURRENCY}",
        "kills_above_it": f"{sum(again > n for again, n in figures.bounds)}",
        "half_published": f"{figures.half_published}", "files_identical": f"{figures.identical} of {figures.runs}",
    }  # fmt: skip


def misses_of(name: str, figures: Figures) -> list[str]:
    """Return a line for every target that was missed."""
    found = {
        "answers lost": figures.lost, "answers more or fewer than requests": abs(figures.doubled),
        "workers crashed": figures.crashed,
        "files published by halves": figures.half_published,
        "runs with another file than an undisturbed one": figures.runs - figures.identical,
        "kills after which more was asked again than was in flight": sum(a > n for a, n in figures.bounds),
        "kills with more in flight than workers": sum(n > CONCURRENCY for _, n in figures.bounds),
        "answers paid twice that no kill explains": abs(figures.paid_twice - figures.asked_again),
    }  # fmt: skip
    return [f"{name}: {n} {what}" for what, n in found.items() if n]


def measure(n: int = 1000, n_dialogues: int = N_DIALOGUES) -> list[Table]:
    """Return the table of `n` kills, 400 in 1,000 of them against a server with faults."""
    n_faulty = n * 2 // 5
    rows, misses = [], []
    with tempfile.TemporaryDirectory() as home:
        for name, kills, faults in (
            ("without faults", n - n_faulty, 0.0),
            (f"{FAULT_FRACTION:.0%} fast faults", n_faulty, FAULT_FRACTION),
        ):
            figures = measure_mode(kills, faults, Path(home), n_dialogues)
            rows.append(row_of(name, figures))
            misses += misses_of(name, figures)
    return [Table("reliability_kills", rows, misses)]
