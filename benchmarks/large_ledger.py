"""A ledger as large as the paper's run: nine million answers, opened, counted, read and replayed.

    python benchmarks/large_ledger.py [--answers 9000000] [--replayed 200000] [--folder FOLDER]

The ledger is written by the store's own means (its schema, its hashes), in bulk, with the recorded pack's
user and assistant turns in turns as texts, so with their lengths. `--replayed` of its answers belong to
dialogues that `simulate` then asks for again, in 100 stretches spread evenly over the file; the keys of all
others are hashes of nothing. The file is about a kilobyte an answer and is deleted at the end.

Each figure is taken in a process of its own, whose peak resident memory is its own too (importing the
package is part of it); for "cold" the file's pages are given up before, as after a restart. What is replayed
goes through `Teacher.map` to an address where nobody answers: all of it must come from the ledger. Its
peak memory is mostly the dialogues that `map` returns. Writing is given a cache of 1.5 GB.
Extrapolated figures say so. Figures: benchmarks/large_ledger.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ultrachat.errors import Stop
from ultrachat.prompts import END
from ultrachat.recorded import load_pack
from ultrachat.records import Opening, content_id
from ultrachat.runs import DATA
from ultrachat.simulation import simulate
from ultrachat.store import FailedRow, Row, _sealed, canonical, open_store
from ultrachat.teacher import Request, Teacher

NOBODY = "http://127.0.0.1:9/v1"
MODEL = "a-model"
SECTORS = ("questions_about_the_world", "creation_and_generation", "assistance_on_existing_materials")
N_STRETCHES = 100
FAILED_FRACTION = 0.01
INSERT = f"INSERT INTO answers VALUES ({', '.join('?' * (len(Row._fields) + 1))})"


def texts_of(task: str) -> list[str]:
    """Return the recorded answers to a task that can stand in any dialogue."""
    named = ((json.loads(name)["task"], text) for name, text in load_pack(DATA / "recorded").items())
    return [text for found, text in named if found == task and END not in text]


def opening(number: int) -> Opening:
    """Return one opening line; the sectors take turns, as in the paper about a third each."""
    return Opening(
        id=content_id(str(number)), sector=SECTORS[number % 3], route="writing", task="t", subject="s", parent="p",
        text=f"Tell me about number {number}.",
    )  # fmt: skip


async def talk(ask: Any, one: Opening) -> Any:
    """The function that is replayed."""
    return await simulate(ask, one, stop="drawn")


def dialogue_rows(teacher: Teacher, texts: dict[str, list[str]]) -> Iterator[Row]:
    """Yield the rows of one dialogue after another, as `simulate` asks for them."""
    rows: list[Row] = []

    async def answer(request: Request) -> str:
        key = teacher._key(request)
        text = texts[request.task][int(key[:8], 16) % len(texts[request.task])]
        rows.append(Row(key, request.task, canonical(dict(request.inputs)), MODEL, text, 300, len(text) // 4))
        return text

    loop = asyncio.new_event_loop()
    for number in range(sys.maxsize):
        loop.run_until_complete(talk(answer, opening(number)))
        yield from rows
        rows.clear()


def other_rows(texts: dict[str, list[str]]) -> Iterator[Row]:
    """Yield rows with keys of nothing and the same lengths."""
    rng, tasks = random.Random(0), tuple(texts)
    for number in range(sys.maxsize):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        inputs = f'{{"opening":"{key[:16]}","round":{number % 4 + 1}}}'
        task = tasks[number % 2]
        text = texts[task][int(rng.random() * len(texts[task]))]
        yield Row(key, task, inputs, MODEL, text, 300, len(text) // 4)


def write(path: Path, n_answers: int, n_replayed: int) -> int:
    """Write the ledger and return how many dialogues the replayed answers belong to, the last one whole."""
    texts = {task: texts_of(task) for task in ("user_turn", "assistant_turn")}
    teacher = Teacher(path, NOBODY, MODEL)
    dialogues, others = dialogue_rows(teacher, texts), other_rows(texts)
    n_dialogues = 0
    with open_store(path) as store:
        connection = store._connection
        connection.execute("PRAGMA cache_size = -1500000")  # keys come in no order; only while it is written
        for _ in range(N_STRETCHES):
            with store.transaction():
                ours = [next(dialogues) for _ in range(n_replayed // N_STRETCHES)]
                connection.executemany(INSERT, map(_sealed, ours))
                n_rest = n_answers // N_STRETCHES - len(ours)
                connection.executemany(INSERT, (_sealed(next(others)) for _ in range(n_rest)))
            n_dialogues += sum(
                row.task == "assistant_turn" and json.loads(row.inputs)["round"] == 1 for row in ours
            )
        with store.transaction():
            for number in range(int(n_answers * FAILED_FRACTION)):
                key = hashlib.sha256(f"failed {number}".encode()).hexdigest()
                store.put_failure(FailedRow(key, "assistant_turn", "length", "answer ended with 'length'"))
    return n_dialogues - 1  # the last one may have been cut off


# ---- what is measured, each in a process of its own -------------------------------------------


def open_and_ask(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Open the ledger and get the answer to one question."""
    began = time.perf_counter()
    with open_store(path) as store:
        first = hashlib.sha256(b"0").hexdigest()
        assert store.get(first)
        return {"seconds": time.perf_counter() - began}


def count(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Count all answers."""
    with open_store(path) as store:
        began = time.perf_counter()
        return {"n": len(store), "seconds": time.perf_counter() - began}


def failures(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Count what stands without an answer, by task and kind."""
    with open_store(path) as store:
        began = time.perf_counter()
        return {"n": sum(store.failures().values()), "seconds": time.perf_counter() - began}


def left(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Go through the keys of all answers in order, as whoever looks for those that are missing."""
    with open_store(path) as store:
        began, last, n = time.perf_counter(), "", 0
        for (key,) in store._connection.execute("SELECT key FROM answers ORDER BY key"):
            assert key > last
            last, n = key, n + 1
        return {"n": n, "seconds": time.perf_counter() - began}


def stream(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Read whole rows with their hashes checked, as merging does: 200,000 of them."""
    with open_store(path) as store:
        began, n = time.perf_counter(), 0
        for _ in store.stream("answers"):
            n += 1
            if n == 200_000:
                break
        return {"n": n, "seconds": time.perf_counter() - began}


def replay(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Replay the dialogues through Teacher.map."""
    openings = [opening(number) for number in range(n_dialogues)]
    teacher = Teacher(path, NOBODY, MODEL, max_tries=1)
    before, used = time.perf_counter(), time.process_time()
    done, failed = teacher.map(talk, openings)
    seconds, cpu = time.perf_counter() - before, time.process_time() - used
    assert len(done) == n_dialogues and not failed and not teacher.usage()["asked"]
    return {"n": int(teacher.usage()["answers"]), "seconds": seconds, "cpu": cpu}


def profile(path: Path, n_dialogues: int) -> dict[str, Any]:
    """Replay a tenth of it under the profiler and print where the time goes."""
    import cProfile
    import pstats
    import threading

    profiler = cProfile.Profile()
    threading.setprofile(lambda *_: (threading.setprofile(None), profiler.enable()))
    figures = replay(path, n_dialogues // 10)
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    return figures


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    f.__name__: f for f in (open_and_ask, count, failures, left, stream, replay, profile)
}


def measure(part: str, path: Path, n_dialogues: int, cold: bool = False) -> dict[str, Any]:
    """Return what a part says, taken in a process of its own, with its peak memory in MiB."""
    if cold:
        give_up_pages(path)
    command = [sys.executable, __file__, "--part", part, str(path), str(n_dialogues)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise Stop(f"{part}: failed")
    figures = json.loads(ran.stdout.splitlines()[-1])
    print(part, "cold" if cold else "warm", figures, flush=True)
    return figures


def give_up_pages(path: Path) -> None:
    """Let the system forget what it has read of a file."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def row(what: str, figures: dict[str, Any], n_answers: int, scale: bool = False) -> dict[str, str]:
    """Return one line of the table; with `scale` the rate is held against the whole ledger."""
    n = figures.get("n", 1)
    rate = f"{n / figures['seconds']:,.0f}" if n > 1 else ""
    whole = f"{figures['seconds'] / n * n_answers / 60:,.0f}" if scale else ""
    return {
        "what": what, "rows": f"{n:,}", "seconds": f"{figures['seconds']:.2f}", "rows per second": rate,
        "peak MiB": f"{figures['mebibytes']:,.0f}", "minutes for all, extrapolated": whole,
    }  # fmt: skip


def run(folder: Path, n_answers: int, n_replayed: int) -> None:
    """Write the ledger, measure everything, write the table."""
    from common import machine_line, write_table

    path = folder / "answers.sqlite"
    began = time.perf_counter()
    n_dialogues = write(path, n_answers, n_replayed)
    written = {"n": n_answers, "seconds": time.perf_counter() - began, "mebibytes": _peak_mebibytes()}
    gigabytes = path.stat().st_size / 1e9
    print(f"wrote {n_answers:,} answers, {gigabytes:.2f} GB, in {written['seconds']:.0f} s", flush=True)
    rows = [row(f"write it in bulk: {gigabytes:.1f} GB", written, n_answers)]
    for what, part, cold, scale in (
        ("open it and get one answer, cold", "open_and_ask", True, False),
        ("open it and get one answer", "open_and_ask", False, False),
        ("count the answers, cold", "count", True, False),
        ("count the answers", "count", False, False),
        ("count the failures by kind", "failures", False, False),
        ("go through all keys: what is left?", "left", False, False),
        ("read whole rows, hashes checked", "stream", False, True),
        ("replay dialogues, cold", "replay", True, True),
        ("replay dialogues", "replay", False, True),
    ):
        rows.append(row(what, measure(part, path, n_dialogues, cold), n_answers, scale))
    size = sum(len(t) for task in ("user_turn", "assistant_turn") for t in [" ".join(texts_of(task))])
    n_texts = sum(len(texts_of(task)) for task in ("user_turn", "assistant_turn"))
    print(f"mean text of the pack's two tasks together: {size / n_texts:.0f} characters")
    print(write_table("large_ledger", rows, machine_line(f"{n_answers:,} answers in {gigabytes:.1f} GB")))


def _peak_mebibytes() -> float:
    try:  # a new process's ru_maxrss begins with its parent's
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the benchmark, or one part of it for the process that does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=9_000_000)
    parser.add_argument("--replayed", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="an empty one with 11 GB free (default: a temporary one)")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        name, path, n_dialogues = chosen.part
        figures = PARTS[name](Path(path), int(n_dialogues))
        print(json.dumps({**figures, "mebibytes": _peak_mebibytes()}))
        return
    with TemporaryDirectory(dir=chosen.folder) as folder:
        run(Path(folder), chosen.answers, chosen.replayed)


if __name__ == "__main__":
    main()
