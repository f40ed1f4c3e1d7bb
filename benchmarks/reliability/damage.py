"""Ledgers as a power cut or a bad disk leaves them: what is read then is right, or one line says it is not.

Torn logs. A process is killed, its newest commits are in the -wal file, and the tail of that is cut, cut and
filled with noise or zeros, or scrambled within. What can be read afterwards must be what the ledger held after
some commit: all tables together, an exact prefix.

Flipped bits. One bit anywhere in a ledger with rows in every table; then everything is read, every way of
reading for itself, and the worst of them counts:

    harmless     everything as it was
    one line     a Stop that names the file
    asked again  an answer or a failure is not found, and its question would be asked again
    wrong        anything else: another text, count or sum, a batch or a bill that is gone
    traceback    anything but a Stop

Absent on purpose: what a failing write does to the run (`disk`).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rig import LEDGER, Table

from ultrachat.errors import Stop
from ultrachat.store import Batch, BatchRow, FailedRow, Row, Store, open_store

BASES = 20  # ledgers that tails are torn from, of different sizes and histories
STEPS = 60  # commits in each
LENGTHS = (20, 200, 1000, 6000)  # characters of an answer: some need pages of their own


def answer(i: int, rng: random.Random) -> Row:
    """Return an answer of any length, to put under a key of its own."""
    text = "".join(rng.choices("lorem ipsum ünïcode 漢字\n", k=rng.choice(LENGTHS)))
    return Row(
        f"{rng.getrandbits(256):064x}", "assistant_turn", f'{{"round":{i}}}', "a-model", text, i, 2 * i
    )


def steps(rng: random.Random, n: int) -> Iterator[Callable[[Store], None]]:
    """Yield `n` commits of every kind that a run makes."""
    asked: list[Row] = []
    for i in range(n):
        row = answer(i, rng)
        asked.append(row)
        tag = f"tag{i % 7}"
        failed = FailedRow(row.key, "user_turn", rng.choice(("empty", "length")), f"line {i}")
        rows = [BatchRow("", f"{i}-{k}", "t", "{}", "m", 0.1) for k in range(rng.randrange(1, 5))]
        gone = rng.choice(asked).key
        yield rng.choice(
            (
                lambda s, row=row: s.put(row),
                lambda s, row=row, i=i: s.put(row, spent_usd=i / 7),
                lambda s, row=row, i=i: s.put(row, row._replace(key=row.key[::-1]), spent_usd=i / 9),
                lambda s, failed=failed: s.put_failure(failed),
                lambda s, key=gone: s.forget_failure(key),
                lambda s, i=i: s.set_money(i / 3, i / 5),
                lambda s, tag=tag, rows=rows, i=i: s.put_batch(Batch(tag, "http://x/v1", None, i / 2), rows),
                lambda s, tag=tag, i=i: s.confirm_batch(Batch(tag, "http://x/v1", None, i / 2), f"batch_{i}"),
                lambda s, tag=tag, row=row, failed=failed, i=i: s.end_batch(
                    tag, [row._replace(key=f"b{row.key}")], [failed], i / 4
                ),
            )
        )


def ways(keys: list[str]) -> dict[str, Callable[[Store], Any]]:
    """Return every way to read something from a ledger; `keys` are those of all answers and failures."""
    return {
        "get": lambda s: {key: s.get(key) for key in keys if s.get(key)},
        "failure": lambda s: {key: s.failure(key) for key in keys if s.failure(key)},
        "answers": lambda s: {row[0]: row for row in s.stream("answers")},
        "failed": lambda s: {row[0]: row for row in s.stream("failed")},
        "failures": lambda s: s.failures(),
        "len": len,
        "money": lambda s: s.money(),
        "batches": lambda s: s.batches(),
        "batch_rows": lambda s: [s.batch_rows(f"tag{i}") for i in range(7)],
    }


WORSE = ("harmless", "one line", "asked again", "wrong", "traceback")  # each worse than those before it
MAY_BE_MISSING = ("get", "failure", "answers", "failed")


def base_of(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Leave in `folder` what a killed process leaves, and return what its ledger held after each commit."""
    pid = os.fork()
    if not pid:
        with open_store(folder / LEDGER) as store:
            for step in steps(random.Random(seed), STEPS):
                step(store)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with tempfile.TemporaryDirectory() as again, open_store(Path(again) / LEDGER) as store:
        states = [read(store)]
        for step in steps(random.Random(seed), STEPS):
            step(store)
            states.append(read(store))
    return states


def torn(log: bytes, how: int, rng: random.Random) -> bytes:
    """Return a log as a power cut may leave it."""
    at = rng.randrange(len(log))
    if how == 0:
        return log[:at]
    if how == 1:  # the file had its length, but not all of its blocks
        return log[:at] + rng.randbytes(rng.randrange(1, len(log) - at + 1))
    if how == 2:
        return log[:at] + bytes(len(log) - at)
    end = min(len(log), at + rng.choice((1, 16, 512, 4096)))
    return log[:at] + rng.randbytes(end - at) + log[end:]


def tails(n: int, home: Path) -> tuple[dict[str, str], list[str]]:
    """Return the table's row for `n` torn logs, and what was missed."""
    outcomes: Counter[str] = Counter()
    prefixes = set()
    rng = random.Random(1)
    n_bases = min(BASES, n)
    for number in range(n_bases):
        base, broken = home / f"base{number}", home / "broken"
        base.mkdir()
        states = base_of(base, number)
        log = (base / f"{LEDGER}-wal").read_bytes()
        for case in range(n * number // n_bases, n * (number + 1) // n_bases):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(base, broken)
            (broken / f"{LEDGER}-wal").write_bytes(torn(log, case % 4, rng))
            try:
                with open_store(broken / LEDGER) as store:
                    found = read(store)
            except Stop:
                outcomes["one line"] += 1
                continue
            outcomes["harmless" if found in states else "wrong"] += 1
            prefixes |= {(number, states.index(found))} if found in states else set()
    print(f"damage: {n:,} torn logs, {len(prefixes)} different prefixes", flush=True)
    return row_of("torn or scrambled log tails", n, outcomes), [
        f"{outcomes[what]} torn logs: {what}" for what in WORSE[1:] if outcomes[what]
    ]


def read(store: Store) -> dict[str, Any]:
    """Return what can be read from a ledger without knowing its keys."""
    return {name: way(store) for name, way in ways([]).items()}


def outcome_of(path: Path, name: str, way: Callable[[Store], Any], whole: Any) -> str:
    """Return how one way of reading a ledger ends that gave `whole` before a bit was flipped."""
    try:
        with open_store(path) as store:
            found = way(store)
    except Stop as stop:
        return "one line" if str(path) in str(stop) else "traceback"
    except Exception as error:
        print(f"damage: {type(error).__name__}: {error}", flush=True)
        return "traceback"
    if found == whole:
        return "harmless"
    missing = name in MAY_BE_MISSING and found.items() <= whole.items() or name == "len" and found < whole
    return "asked again" if missing else "wrong"


def full_ledger(path: Path) -> list[str]:
    """Make a ledger with rows in every table and return the keys of all answers and failures."""
    rng = random.Random(3)
    rows = [answer(i, rng) for i in range(25)]
    failed = [FailedRow(f"{i:064x}", "user_turn", ("empty", "length")[i % 2], f"line {i}") for i in range(40)]
    with open_store(path) as store:
        for row in rows:
            store.put(row, spent_usd=1.25)
        for one in failed:
            store.put_failure(one)
        for b in range(3):
            asked = [BatchRow("", f"{b}-{k}", "t", "{}", "m", 0.1) for k in range(20)]
            store.put_batch(Batch(f"tag{b}", "http://127.0.0.1:1/v1", None, 0.5), asked)
            store.confirm_batch(Batch(f"tag{b}", "http://127.0.0.1:1/v1", None, 0.5), f"batch_{b}")
        store.set_money(1.25, 0.75)
    return [row.key for row in (*rows, *failed)]


def flips(n: int, home: Path) -> tuple[dict[str, str], list[str]]:
    """Return the table's row for `n` flipped bits, and what was missed."""
    path = home / "flipped" / LEDGER
    all_ways = ways(full_ledger(path))
    data = path.read_bytes()
    with open_store(path) as store:
        whole = {name: way(store) for name, way in all_ways.items()}
    counts: Counter[str] = Counter()
    rng = random.Random(2)
    for _ in range(n):
        content, at, bit = bytearray(data), rng.randrange(len(data)), rng.randrange(8)
        content[at] ^= 1 << bit
        outcomes = {}
        for name, way in all_ways.items():
            for leftover in path.parent.iterdir():
                leftover.unlink()
            path.write_bytes(content)
            outcomes[name] = outcome_of(path, name, way, whole[name])
        worst = max(outcomes.values(), key=WORSE.index)
        counts[worst] += 1
        if worst in WORSE[3:]:
            where = [name for name, outcome in outcomes.items() if outcome == worst]
            print(f"damage: bit {bit} of byte {at:,}: {worst} in {', '.join(where)}", flush=True)
    return row_of("one bit flipped", n, counts), [
        f"{counts[what]} flipped bits: {what}" for what in WORSE[3:] if counts[what]
    ]


def row_of(what: str, n: int, outcomes: Counter[str]) -> dict[str, str]:
    """Return the table's row."""
    columns = ("exact_or_harmless", *(name.replace(" ", "_") for name in WORSE[1:]))
    numbers = (f"{outcomes[name]:,}" for name in WORSE)
    return {"damage": what, "cases": f"{n:,}", **dict(zip(columns, numbers, strict=True))}


def measure(n: int = 1000) -> list[Table]:
    """Return the table of `n` torn logs and `n` flipped bits."""
    with tempfile.TemporaryDirectory() as home:
        found = [tails(n, Path(home)), flips(n, Path(home))]
    return [
        Table("reliability_damage", [row for row, _ in found], [m for _, misses in found for m in misses])
    ]
