"""Notebook 05 in n parts on as many machines, and one ledger of them again.

    python -m ultrachat run configs/paper.yaml --only 05 --set shard=3/16   # one part, by whatever scheduler
    python -m ultrachat shards configs/paper.yaml --of 16                   # all parts, on Ray
    python -m ultrachat merge paper                                         # their ledgers into the run's
    python -m ultrachat run configs/paper.yaml --only 05                    # asks nothing, writes the files

A shard is the third of sixteen of the openings, by content id; it has a folder of its own in
`runs/<name>/shards/` and the run's other files in common. Only ledgers are merged: everything else is a
pure function of parameters and ledger, so running notebook 05 once more writes what it would have
written without shards, byte for byte.

Absent on purpose: a scheduler of our own, and any talk between shards.
"""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ultrachat import launcher
from ultrachat.clusters import start_ray
from ultrachat.errors import Stop
from ultrachat.records import iter_rows
from ultrachat.runs import MAX_SHARDS, Run, read_manifest, run_folder, sha256_of, shard_of
from ultrachat.store import Store, open_store
from ultrachat.teacher import COMMON_PARAMETERS

NOTEBOOK = "05_user_simulation"
LEDGER = "answers.sqlite"
DIALOGUES, DROPPED, SET_ASIDE = "05_dialogues.jsonl", "05_dropped.jsonl", "05_set_aside.csv"
MAY_DIFFER = ("shard", *COMMON_PARAMETERS)  # between shards of one run: they shape no answer
LOCK_SECONDS = 120.0  # a file server frees the locks of a machine that went away after 90
MAX_DEATHS = 100  # of one shard's workers: more than chance
PROGRESS_SECONDS = 60.0


class Shard(NamedTuple):
    """A finished shard: which one, where, and its manifest line.

    Ours: the paper does not say on how many machines its dialogues were generated.
    """

    number: int
    folder: Path
    line: Mapping[str, Any]


# ---- merging ----------------------------------------------------------------------------------


def merge(run_name: str) -> str:
    """Take the ledgers of all shards into the run's own and return the proof that nothing is lost or doubled.

    Merging twice changes nothing. Raises Stop, naming what it is, when the shards are no complete set,
    one did not finish or was made with other parameters or inputs, openings do not add up, or a question
    has two answers; a shard is taken in whole or not at all.

    Ours: answers are what was paid for; files are made from them again.
    """
    shards = find_shards(run_name)
    check_same(run_name, shards)
    openings = {name for shard in shards for name in shard.line["inputs"] if name.endswith("_openings.jsonl")}
    shares = _divide([run_folder(run_name) / name for name in sorted(openings)], len(shards))
    rows = [(shard.folder.name, *_account(shard, shares[shard.number - 1])) for shard in shards]
    with open_store(run_folder(run_name) / LEDGER) as store:
        before = len(store)
        rows = [(*row, *_take_in(store, shard)) for row, shard in zip(rows, shards, strict=True)]
        after = len(store)
    return _proof(run_name, sorted(openings), rows, before, after)


def find_shards(run_name: str) -> list[Shard]:
    """Return the shards of a run, in order; Stop unless they are one complete set that has finished.

    Ours: a shard that is missing is 1/n of the data.
    """
    home = run_folder(run_name) / "shards"
    names = [path.name for path in sorted(home.glob("*-of-*"))]
    sizes = sorted(
        {int(match[1]) for name in names if (match := re.fullmatch(r"[0-9]+-of-([0-9]{1,5})", name))}
    )
    if not sizes:
        raise Stop(f"{home}: no shards; run notebook 05 with --set shard=1/n to n/n first")
    if len(sizes) > 1:
        listed = " and of ".join(map(str, sizes))
        raise Stop(f"{home}: holds shards of {listed}; move the folders away that are not to be merged")
    found = []
    for number in range(1, sizes[0] + 1):
        folder = run_folder(run_name, f"{number}/{sizes[0]}")
        line = next((line for line in read_manifest(folder) if line["notebook"] == NOTEBOOK), None)
        if line is None or not (folder / LEDGER).exists():
            what = "did not finish" if folder.is_dir() else "is missing"
            raise Stop(f"{folder}: {what}; run notebook 05 with --set shard={number}/{sizes[0]}")
        found.append(Shard(number, folder, line))
    return found


def check_same(run_name: str, shards: Sequence[Shard]) -> None:
    """Raise Stop unless all shards were made with the same parameters from the run's present files.

    Ours: what shapes no answer (concurrency, budget, …) may differ, so that one shard can be helped on.
    """
    run, first = Run(NOTEBOOK, run_name, {}), shards[0]
    present = {name: sha256_of(run.input(name)) for name in first.line["inputs"]}
    for shard in shards:
        again = f"run notebook 05 with --set shard={shard.number}/{len(shards)} again"
        old, new = first.line["parameters"], shard.line["parameters"]
        for name in sorted((old.keys() | new.keys()).difference(MAY_DIFFER)):
            if old.get(name) != new.get(name):
                raise Stop(
                    f"{shard.folder}: {name}: {old.get(name)!r} in {first.folder.name}, "
                    f"{new.get(name)!r} here; {again}"
                )
        for name in sorted(present.keys() | shard.line["inputs"].keys()):
            if present.get(name) != shard.line["inputs"].get(name):
                raise Stop(f"{shard.folder}: made from another {name} than the run has now; {again}")


def _divide(paths: Sequence[Path], n_shards: int) -> list[Counter[str]]:
    """Return, for each shard, the ids of its openings and how often each comes."""
    shares: list[Counter[str]] = [Counter() for _ in range(n_shards)]
    for path in paths:
        for _, row in iter_rows(path):
            shares[shard_of(row["id"], n_shards) - 1][row["id"]] += 1
    return shares


def _account(shard: Shard, share: Counter[str]) -> tuple[int, int, int]:
    """Return (openings, dialogues, set aside) of a shard; Stop unless each of its openings became one of them."""
    outputs = shard.line["outputs"]
    for name in (DIALOGUES, DROPPED, SET_ASIDE):
        path = shard.folder / name
        if name not in outputs or not path.exists() or sha256_of(path) != outputs[name]["sha256"]:
            raise Stop(f"{path}: not what notebook 05 published; run shard {shard.number} again")
    dialogues = Counter(row["parent"] for _, row in iter_rows(shard.folder / DIALOGUES))
    dialogues.update(row["dialogue"]["parent"] for _, row in iter_rows(shard.folder / DROPPED))
    with (shard.folder / SET_ASIDE).open(encoding="utf-8", newline="") as file:
        set_aside = Counter(row["opening"] for row in csv.DictReader(file))
    found = dialogues + set_aside
    for identifier in (found - share) | (share - found):
        n, expected = found[identifier], share[identifier]
        raise Stop(
            f"{shard.folder}: opening {identifier} came to {n} dialogues or failures, expected {expected}"
        )
    return share.total(), dialogues.total(), set_aside.total()


def _take_in(store: Store, shard: Shard) -> tuple[int, int, int]:
    """Absorb a shard's ledger, read every answer back, and return (answers, new ones, failures)."""
    with open_store(shard.folder / LEDGER) as part:
        if part.batches():
            raise Stop(f"{part.path}: a batch was not taken in yet; run shard {shard.number} again")
        n_new = store.absorb(shard.folder.name, part)
        for row in part.stream("answers"):
            kept = store.get(row[0])
            if kept is None or kept.text != row[4]:
                raise Stop(f"{store.path}: the answer to {row[0]} of {part.path} cannot be read back")
        return len(part), n_new, sum(part.failures().values())


def _proof(run_name: str, files: list[str], rows: list[tuple[Any, ...]], before: int, after: int) -> str:
    """Return the closing table and sums; Stop when they do not add up."""
    head = ("shard", "openings", "dialogues", "set aside", "answers", "new", "failures")
    sums = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    n_openings, n_dialogues, n_set_aside, n_answers, n_new, _ = sums
    if n_openings != n_dialogues + n_set_aside or before + n_new != after:
        raise Stop(
            f"run '{run_name}': {before} answers and {n_new} new ones came to {after}; a ledger is broken"
        )
    table = [head, *rows, ("all", *sums)]
    lines = [
        f"{row[0]:>14}" + "".join(f"{cell:>12,}" if i else f"{cell:>12}" for cell in row[1:])
        for i, row in enumerate(table)
    ]
    return "\n".join(
        [
            *lines,
            f"every opening of {', '.join(files)} is in one shard, and there a dialogue or set aside",
            f"the run's ledger: {before:,} answers before + {n_new:,} new = {after:,}; "
            f"{n_answers - n_new:,} it had already; all {n_answers:,} were read back",
            "next: run notebook 05 without shard; it asks nothing and writes the run's files",
        ]
    )


# ---- Ray --------------------------------------------------------------------------------------


class WorkerDied(Exception):
    """The process that worked on a shard died: it is worth starting again.

    Ours: a shard that stopped with a reason is not.
    """


def wait_until_free(store_path: Path, wait_seconds: float = LOCK_SECONDS) -> None:
    """Return once no process has a ledger open; Stop after `wait_seconds`.

    Ours: the kernel of a worker that was killed outlives it by a second or two.
    """
    if store_path.exists():
        with open_store(store_path, wait_seconds):
            return


def run_shard(config_path: Path, settings: Sequence[str], number: int, n_shards: int) -> None:
    """Run notebook 05 of one shard here; raises Stop, or WorkerDied when its kernel was killed.

    Ours: what a worker does.
    """
    shard = f"{number}/{n_shards}"
    chosen = [*settings, f"shard={shard}"]
    run_name = launcher.run_name_of(launcher.plan(config_path, NOTEBOOK[:2], chosen))
    wait_until_free(run_folder(run_name, shard) / LEDGER)
    try:
        launcher.run(config_path, NOTEBOOK[:2], chosen)
    except Stop as stop:
        if "the kernel died" in str(stop):
            raise WorkerDied(str(stop)) from None
        raise


def run_on_ray(
    config_path: Path,
    n_shards: int,
    settings: Sequence[str] = (),
    at_once: int | None = None,
    address: str | None = None,
) -> None:
    """Run notebook 05 in `n_shards` shards on Ray, printing how it goes, and return when all have finished.

    Ray is started on this machine, or with `address` ("auto", say) the cluster there is used: its
    machines need this repository and runs/ at the same path. Raises Stop when ray is not installed, a
    parameter is wrong or a shard stopped; the others are finished first, and running again resumes.

    Ours: a scheduler that many clusters have.
    """
    config_path = config_path.resolve()
    if not 2 <= n_shards <= MAX_SHARDS:
        raise Stop(f"--of: expected a number of shards from 2 to {MAX_SHARDS:,}, got {n_shards}")
    if at_once is not None and at_once < 1:
        raise Stop(f"--at-once: expected a number of at least 1, got {at_once}")
    planned = launcher.plan(config_path, NOTEBOOK[:2], [*settings, f"shard=1/{n_shards}"])
    run_name = launcher.run_name_of(planned)
    sizes = partial(_megabytes, run_folder(run_name) / "shards", n_shards)
    stopped = on_ray(partial(run_shard, config_path, list(settings)), n_shards, at_once, address, sizes)
    if stopped:
        number, line = min(stopped.items())
        raise Stop(f"{len(stopped)} of {n_shards} shards stopped; shard {number}: {line}; run again to go on")
    print(f"all {n_shards} shards are done; next: python -m ultrachat merge {run_name}")


def on_ray(
    work: Callable[[int, int], None],
    n_shards: int,
    at_once: int | None = None,
    address: str | None = None,
    more: Callable[[], str] = str,
) -> dict[int, str]:
    """Call `work(i, n_shards)` for i from 1 on Ray, on one CPU each, again when its worker dies.

    Returns {i: line} of those that raised. `more` adds to the progress lines.

    Ours: Ray finds the machines and notices deaths; who is started again is decided, and said, here.
    """
    ray = start_ray(at_once, address)
    try:
        at_once = at_once or max(1, int(ray.cluster_resources().get("CPU", 1)))

        # a worker is started again by the loop below, which can say so; Ray would do it silently
        @ray.remote(num_cpus=1, max_retries=0)
        def task(number: int) -> None:
            work(number, n_shards)

        return _work_off(ray, task.remote, n_shards, at_once, more)
    finally:
        ray.shutdown()


def _work_off(
    ray: Any, start: Callable[[int], Any], n_shards: int, at_once: int, more: Callable[[], str]
) -> dict[int, str]:
    """Start every shard, again when its worker dies, and return {number: line} of those that stopped."""
    waiting, running, stopped = list(range(1, n_shards + 1)), {}, {}
    deaths: Counter[int] = Counter()

    def say(what: str) -> None:
        n_done = n_shards - len(running) - len(waiting) - len(stopped)
        counts = f"{n_done} done · {len(running)} running · {len(waiting)} waiting · {len(stopped)} stopped"
        print(f"{what} | {counts} · {deaths.total()} restarts{more()}", flush=True)

    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop(0)
            running[start(number)] = number
            say(f"shard {number} started")
        ended, _ = ray.wait(list(running), num_returns=1, timeout=PROGRESS_SECONDS)
        if not ended:
            say(time.strftime("%H:%M:%S"))
            continue
        number = running.pop(ended[0])
        line = _outcome(ray, ended[0])
        if line is None:
            say(f"shard {number} done")
        elif line or deaths[number] == MAX_DEATHS:
            stopped[number] = line or f"its worker died {MAX_DEATHS + 1} times"
            say(f"shard {number} stopped: {stopped[number]}")
        else:
            deaths[number] += 1
            waiting.insert(0, number)
            say(f"shard {number}: its worker died")
    return stopped


def _outcome(ray: Any, ended: Any) -> str | None:
    """Return None when a task has finished, "" when its worker died, else the line it stopped with."""
    try:
        ray.get(ended)
    except ray.exceptions.RayTaskError as error:  # it raised
        cause = error.cause
        if isinstance(cause, WorkerDied):
            return ""
        return str(cause) if isinstance(cause, Stop) else f"{type(cause).__name__}: {cause}"
    except ray.exceptions.RayError:  # it, its machine or its memory went away
        return ""
    return None


def _megabytes(home: Path, n_shards: int) -> str:
    """Return the size of all ledgers: a sign of life that can be read while others have them open."""
    n_bytes = 0
    for path in home.glob(f"*-of-{n_shards}/{LEDGER}*"):
        with suppress(OSError):  # closed, and its log gone, since it was listed
            n_bytes += path.stat().st_size
    return f" · ledgers {n_bytes / 1e6:,.1f} MB"
