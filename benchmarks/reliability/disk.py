"""A disk that fails: every third write, fsync or rename of a run, each in a run of its own, then a resume.

The disk is full from that call on (ENOSPC), or the one call fails (EIO), by a small library that is preloaded
(failing_disk.c). After that

    stopped       the run ended with one line and nothing else on its output
    went on       the call did not matter (a checkpoint that a later one makes up for)
    traceback     it printed anything else
    half published  the output file is there and is not the whole one, or a temporary file was left
    resume exact  the next run publishes what an undisturbed run does
    lost          what was in the ledger, and was not after the resume, or was asked again
    asked again   answers that the failing commit did not keep: never more than were in flight

Absent on purpose: reads that fail, files that are damaged in silence (`damage`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import Kill, judge
from rig import CRASHED, OUT, STARTING, STOPPED, Job, Server, Table, Worker, ledger, names, perform

from ultrachat.errors import Stop

SOURCE = Path(__file__).with_name("failing_disk.c")
CONCURRENCY = 4
EVERY = 3
N_CASES = 84
FOR_EVER = 2**40
ERRORS = {"full from there on (ENOSPC)": (errno.ENOSPC, FOR_EVER), "fails once (EIO)": (errno.EIO, 1)}


def library(folder: Path) -> Path:
    """Compile failing_disk.c and return the library; Stop where that cannot be done."""
    path = folder / "failing_disk.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or sys.platform != "linux":
        raise Stop("failing disks: needs Linux and a C compiler")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", path, SOURCE, "-ldl"], check=True)
    return path


def failing(shim: Any, at: int, count: int, number: int) -> Callable[[Job, Any], None]:
    """Return what a worker does whose disk fails from the `at`-th call on, `count` times; 0: it only counts."""

    def work(job: Job, phase: Any) -> None:
        shim.fail_arm(str(job.folder).encode(), ctypes.c_long(at), ctypes.c_long(count), number)
        try:
            perform(job, phase)
        finally:
            seen = shim.fail_seen()
            shim.fail_arm(b"", ctypes.c_long(0), ctypes.c_long(0), 0)
            job.folder.with_name(f"seen-{job.folder.name}").write_text(str(seen))

    return work


def one_case(
    job: Job, server: Server, work: Callable, key_of: dict[str, str], reference: bytes
) -> Counter[str]:
    """Return what became of a run whose disk fails, and of the one after it."""
    found: Counter[str] = Counter(cases=1)
    first = Worker(job, lingers=False, work=work)
    status, at = first.wait(), time.monotonic()
    kept, out, printed = ledger(job.folder), job.folder / OUT, first.printed
    found["stopped"] = status == STOPPED
    found["went_on"] = status == 0
    clean = not printed if not status else printed.startswith("stopped: ") and printed.count("\n") == 1
    found["traceback"] = status == CRASHED or not clean
    if not clean:
        print(f"disk: {printed}", file=sys.stderr, flush=True)
    halves = [path for path in job.folder.iterdir() if path.name.startswith(f".{OUT}")]
    found["half_published"] = bool(halves) or out.exists() and out.read_bytes() != reference
    second = Worker(job, lingers=False)
    status = second.wait()
    found["resume_exact"] = status == 0 and out.read_bytes() == reference
    log = [entry for entry in server.log() if entry["began"] >= first.began]
    kill = Kill(at, STARTING, kept, None)
    figures = judge(log, [first.began, second.began], [kill], ledger(job.folder), key_of)
    found["lost"], found["doubled"], found["asked_again"] = figures.lost, figures.doubled, figures.asked_again
    found["above_in_flight"] = figures.asked_again > CONCURRENCY
    return found


def measure_here(n: int, shim: Any) -> tuple[list[dict[str, str]], list[str]]:
    """Return rows and misses; this process has the library."""
    rows, misses = [], []
    with (
        tempfile.TemporaryDirectory() as home,
        Server(Path(home) / "server", latency_seconds=0.002) as server,
    ):
        whole = Job(Path(home) / "whole", server.url, "disk", max(4, n // 6), {"concurrency": CONCURRENCY})
        if Worker(whole, lingers=False, work=failing(shim, 0, 0, 0)).wait():
            raise Stop("the undisturbed run failed")
        n_calls = int((Path(home) / "seen-whole").read_text())
        reference, key_of = (whole.folder / OUT).read_bytes(), names(whole)
        points = range(EVERY, n_calls + 1, EVERY * max(1, N_CASES // n))
        for name, (number, count) in ERRORS.items():
            found: Counter[str] = Counter()
            for at in points:
                job = whole._replace(folder=Path(home) / f"case{number}-{at}")
                work = failing(shim, at, count, number)
                one = one_case(job, server, work, key_of, reference)
                seen = int((Path(home) / f"seen-{job.folder.name}").read_text())
                shutil.rmtree(job.folder)
                found += one if seen >= at else Counter()  # commits are grouped: a run may need fewer calls
            rows.append(row_of(name, n_calls, found))
            misses += misses_of(name, found, n)
    return rows, misses


def row_of(name: str, n_calls: int, found: Counter[str]) -> dict[str, str]:
    """Return the table's row."""
    columns = (
        "cases",
        "stopped",
        "went_on",
        "traceback",
        "half_published",
        "resume_exact",
        "lost",
        "doubled",
    )
    return {
        "disk": name, "calls_of_a_run": f"{n_calls}", **{column: f"{found[column]}" for column in columns},
        "asked_again_per_case": f"{found['asked_again'] / max(1, found['cases']):.1f}",
        "above_in_flight": f"{found['above_in_flight']}",
    }  # fmt: skip


def misses_of(name: str, found: Counter[str], n: int) -> list[str]:
    """Return a line for every target that was missed."""
    wrong = {
        what: found[what] for what in ("traceback", "half_published", "lost", "doubled", "above_in_flight")
    }
    wrong["resume not exact"] = found["cases"] - found["resume_exact"]
    wrong[f"cases fewer than {n}"] = max(0, n - found["cases"]) if n >= N_CASES else 0
    return [f"{name}: {count} {what}" for what, count in wrong.items() if count]


def measure(n: int = N_CASES) -> list[Table]:
    """Return the table of at least `n` failing calls of either kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = library(Path(folder))
        command = [sys.executable, __file__, str(path), str(n)]
        done = subprocess.run(
            command, env=os.environ | {"LD_PRELOAD": str(path)}, stdout=subprocess.PIPE, text=True
        )
    if done.returncode:
        raise Stop(f"failing disks: the measurement itself failed with status {done.returncode}")
    return [Table("reliability_disk", *json.loads(done.stdout.splitlines()[-1]))]


if __name__ == "__main__":
    loaded = ctypes.CDLL(sys.argv[1])
    loaded.fail_seen.restype = ctypes.c_long
    print(json.dumps(measure_here(int(sys.argv[2]), loaded)))
