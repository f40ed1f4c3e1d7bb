"""A data set of UltraChat's size, made up: its whole row of Table 5, how long, with how much memory?

    python benchmarks/release_size.py --folder FOLDER --tokenizer tokenizer.model [--data DIR]

FOLDER needs 13 GB free; what is put there is deleted at the end unless `--keep`. The set has the release's
1,468,352 dialogues in its form ({"id", "data"} a line) and about its size; release_text.py makes its texts. How far
they cost what real ones cost is the table `release_text` (DIR holds samples, as reference_table5.py says).

Each measurement (`release_size`) is a command of its own that imports, reads the file from the disk (its
pages are given up before), measures every column but coherence in both readings on two processes, and keeps
the sample of 10,000 for topic diversity. Seconds, and CPU seconds of all its processes, are from its start to its
end; memory is the most that all its processes together held, shared pages counted once (PSS), looked
at four times a second; for the vectors that includes the file's own pages. The file grows between measurements: 1/16,
1/4, all. "Equal" says that everything measured agrees to the last digit, the sample of 10,000 texts
included. The killed run is ended by SIGKILL to all its processes after half the time of the one left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from release_text import BATCH, SEED, begin, grow, text_rows

from ultrachat.errors import Stop
from ultrachat.measure import Plan, measure, measure_on_ray
from ultrachat.statistics import PRINTED
from ultrachat.topics import PAPER_SAMPLE, topic_diversity

N_RELEASED = 1_468_352
N_PROCESSES = 2
DIFFERENT = "DIFFERENT"

# ---- what is measured, each in a command of its own -------------------------------------------


def part_measure(path: str, tokenizer: str, checkpoints: str = "") -> dict[str, Any]:
    """Measure the file on two processes."""
    kept = Path(checkpoints) if checkpoints else None
    return _summary(measure(path, _plan(tokenizer), processes=N_PROCESSES, checkpoints=kept, progress=False))


def part_ray(path: str, tokenizer: str) -> dict[str, Any]:
    """Measure the file on two of Ray's processes."""
    return _summary(measure_on_ray(path, _plan(tokenizer), processes=N_PROCESSES))


def part_topics(path: str) -> dict[str, Any]:
    """Topic diversity of all rows of a .npy file, which is not read into memory."""
    vectors = np.load(path, mmap_mode="r")
    began = time.perf_counter()
    found = topic_diversity(vectors)
    return {"n": found.n, "similarity": found.similarity, "se": found.se, "call": time.perf_counter() - began}


PARTS = {"measure": part_measure, "ray": part_ray, "topics": part_topics}


def _plan(tokenizer: str) -> Plan:
    return Plan("ultrachat", tokenizer, tuple(d.key for d in PRINTED), n_sample=PAPER_SAMPLE)


def _summary(totals: Any) -> dict[str, Any]:
    everything = json.dumps(totals.to_json(), sort_keys=True).encode()
    means = {key: sums.mean().value for key, sums in totals.sums.items()}
    return {
        "n": totals.counts.n_dialogues, "digest": hashlib.sha256(everything).hexdigest()[:16],
        "n_sample": len(totals.sample), "means": means,
    }  # fmt: skip


class Ran(NamedTuple):
    """What a command printed last (None if it was killed), its seconds, CPU seconds and peak mebibytes.

    `other_cores` is how many cores were busy with something else meanwhile.
    """

    found: dict[str, Any] | None
    seconds: float
    cpu: float
    mebibytes: float
    other_cores: float = 0.0


def ran(part: str, *arguments: str, file: Path, kill_after: float | None = None) -> Ran:
    """Run a part on `file`, whose pages are given up before; kill it and all its processes after some seconds."""
    give_up_pages(file)
    began, busy = time.perf_counter(), _busy_seconds()
    process = subprocess.Popen(
        [sys.executable, __file__, "--part", part, str(file), *arguments], stdout=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    peak, done = 0.0, 0
    while not done:
        time.sleep(0.25)
        peak = max(peak, _together(process.pid))
        if kill_after is not None and time.perf_counter() - began > kill_after:
            os.killpg(process.pid, signal.SIGKILL)
            kill_after = None
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    printed = process.stdout.read().splitlines()
    if process.returncode not in (0, -signal.SIGKILL):
        raise Stop(f"{part}: failed")
    found = json.loads(printed[-1]) if process.returncode == 0 else None
    cpu = usage.ru_utime + usage.ru_stime
    others = (_busy_seconds() - busy - cpu) / seconds
    result = Ran(found, seconds, cpu, peak, others)
    print(part, result, flush=True)
    return result


def _together(session: int) -> float:
    """Return the mebibytes that all processes of a session hold, shared pages counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                total += int(re.search(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError):  # it has ended
            continue
    return total / 1024


def _busy_seconds() -> float:
    """Return the CPU seconds that all cores have worked since the machine started."""
    user, nice, system, _, _, *interrupts = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def give_up_pages(path: Path) -> None:
    """Let the system forget what it has of a file in memory."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def write_vectors(path: Path, n: int, n_dimensions: int = 384) -> None:
    """Write random float16 vectors about a common direction, so that their similarity is that of a data set."""
    rng = np.random.default_rng(SEED)
    file = np.lib.format.open_memmap(path, "w+", np.float16, (n, n_dimensions))
    for start in range(0, n, 65_536):
        block = rng.standard_normal((min(65_536, n - start), n_dimensions), np.float32)
        file[start : start + len(block)] = block + np.float32(0.4)
    file.flush()


# ---- the whole --------------------------------------------------------------------------------


def row(what: str, ran: Ran, n: int, n_bytes: int, outcome: str = "", goal: str = "") -> dict[str, str]:
    """Return one line of the table."""
    return {
        "what": what, "dialogues": f"{n:,}", "GB": f"{n_bytes / 1e9:.2f}",
        "seconds": f"{ran.seconds:.1f}", "CPU seconds": f"{ran.cpu:.1f}" if ran.cpu else "",
        "CPU seconds per GB": f"{ran.cpu / n_bytes * 1e9:.1f}" if ran.cpu else "",
        "MB per second": f"{n_bytes / 1e6 / ran.seconds:.1f}",
        "peak MiB": f"{ran.mebibytes:,.0f}" if ran.mebibytes else "", "outcome": outcome, "goal": goal,
    }  # fmt: skip


def run(folder: Path, n_all: int, tokenizer: str, data: Path | None) -> None:
    """Make the set, measure it at three sizes, interrupted and on Ray, and write the tables."""
    from common import machine_line, write_table

    def show(name: str, rows: list[dict[str, str]], machine: str | None = None) -> None:
        print(*rows, sep="\n", flush=True)
        if n_all == N_RELEASED:  # another size is a try
            print(write_table(name, rows, machine))

    file, checkpoints = folder / "dialogues.jsonl", folder / "checkpoints"
    sizes = {
        "a sixteenth": n_all // 16 // BATCH * BATCH,
        "a quarter": n_all // 4 // BATCH * BATCH,
        "all": n_all,
    }
    rows, made_seconds, n_before, others = [], 0.0, 0, 0.0
    with ProcessPoolExecutor(N_PROCESSES, get_context("spawn"), begin) as pool:
        for name, n in sizes.items():
            started = time.perf_counter()
            grow(file, n_before, n, pool)
            made_seconds, n_before = made_seconds + time.perf_counter() - started, n
            if name == "all":
                pool.shutdown()  # its memory is not ours to measure, but its cores are
            n_bytes = file.stat().st_size
            print(f"{name}: {n:,} dialogues, {n_bytes / 1e9:.2f} GB", flush=True)
            whole = ran("measure", tokenizer, file=file)
            if whole.found["n"] != n:
                raise Stop(f"{name}: measured {whole.found['n']} dialogues of {n}")
            others = max(others, whole.other_cores)
            goal = "1,200 s, 2 GB" if name == "all" and n == N_RELEASED else ""
            rows.append(row(f"measure {name}", whole, n, n_bytes, goal=goal))
            if name == "a sixteenth":
                if data:
                    show("release_text", text_rows(file, data, tokenizer))
                ray = ran("ray", tokenizer, file=file)
                ray = ray._replace(cpu=0, mebibytes=0)  # most of both is Ray's own
                rows.append(row(f"measure {name}, on Ray Data", ray, n, n_bytes, _equal(ray, whole), "equal"))
            if name == "a quarter":
                rows += interrupted(file, tokenizer, checkpoints, whole, n, n_bytes)
    vectors = folder / "vectors.npy"
    write_vectors(vectors, n_all)
    topics = ran("topics", file=vectors)
    outcome = f"{topics.found['similarity']:.6f} ± {topics.found['se']:.6f}"
    rows.append(row("topic diversity, 384 numbers each", topics, n_all, vectors.stat().st_size, outcome))
    made = Ran(None, made_seconds, 0, 0)
    rows.insert(0, row("make it up", made, n_all, n_bytes))
    print(json.dumps(whole.found["means"], indent=1))
    more = f"{Path(tokenizer).name}, other programs used at most {others:.1f} cores while a whole file was measured"
    show("release_size", rows, machine_line(f"{N_PROCESSES} processes", more))
    if any(DIFFERENT in row["outcome"] for row in rows):
        raise Stop("what was measured is not equal")


def interrupted(
    file: Path, tokenizer: str, checkpoints: Path, whole: Ran, n: int, n_bytes: int
) -> list[dict[str, str]]:
    """Return the rows of a run that was killed half-way and of the one that went on."""
    half = whole.seconds / 2
    killed = ran("measure", tokenizer, str(checkpoints), file=file, kill_after=half)
    if killed.found is not None:
        raise Stop("measure: was done before it was killed")
    rest = ran("measure", tokenizer, str(checkpoints), file=file)
    left = list(checkpoints.glob("*"))
    outcome = f"{_equal(rest, whole)}, {whole.seconds - rest.seconds:.0f} s less than from the start"
    if left:
        outcome += f", {left[0].name} left behind"
    return [
        row("measure a quarter, killed", killed, n, n_bytes) | {"MB per second": "", "CPU seconds": "", "CPU seconds per GB": ""},
        row("go on after the kill", rest, n, n_bytes, outcome, "equal") | {"MB per second": "", "CPU seconds per GB": ""},
    ]  # fmt: skip


def _equal(one: Ran, other: Ran) -> str:
    return "equal" if one.found["digest"] == other.found["digest"] else DIFFERENT


def main() -> None:
    """Run the benchmark, or one part of it for the process that does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="an empty or new one with 13 GB free")
    parser.add_argument("--dialogues", type=int, default=N_RELEASED, help="another number writes no tables")
    parser.add_argument(
        "--tokenizer", default="words", help="LLaMA's SentencePiece file, for the paper's tokens"
    )
    parser.add_argument("--data", type=Path, help="folder of the public samples, for the table release_text")
    parser.add_argument("--keep", action="store_true", help="leave the files in FOLDER")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(PARTS[chosen.part[0]](*chosen.part[1:])))
        return
    if chosen.folder is None:
        parser.error("--folder is needed")
    if chosen.dialogues < 16 * BATCH:
        parser.error(f"--dialogues {chosen.dialogues}: expected at least {16 * BATCH:,}")
    if chosen.folder.exists() and any(chosen.folder.iterdir()):
        parser.error(f"--folder {chosen.folder}: expected an empty or new one")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    try:
        run(chosen.folder, chosen.dialogues, chosen.tokenizer, chosen.data)
    finally:
        if not chosen.keep:
            shutil.rmtree(chosen.folder)


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(str(stop))
