"""The ledger: kept once, alone, and never wrong without saying so."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat.errors import Stop
from ultrachat.store import Batch, BatchRow, FailedRow, Row, canonical, key_of, open_store

ROW = Row("k1", "questions", '{"n":10}', "a-model", "1. Why?\n2. How?", 7, None)


def some_rows(n: int) -> list[Row]:
    return [Row(f"{i:064x}", "t", f'{{"i":{i}}}', "m", f"answer {i} " * 20, i, 2 * i) for i in range(n)]


def test_a_row_comes_back_as_it_went(tmp_path):
    path = tmp_path / "new" / "a.sqlite"
    with open_store(path) as store:
        assert store.get("k1") is None and len(store) == 0
        store.put(ROW)
        assert store.get("k1") == ROW
    with open_store(path) as store:
        assert store.get("k1") == ROW and len(store) == 1


@settings(max_examples=50)
@given(
    st.text(min_size=1).filter(lambda t: t.isprintable() or "\n" in t), st.integers(0, 2**53 - 1) | st.none()
)
def test_any_text_comes_back(tmp_path_factory, text, n):
    row = ROW._replace(text=text, prompt_tokens=n)
    with open_store(tmp_path_factory.mktemp("any") / "a.sqlite") as store:
        store.put(row)
        assert store.get(row.key) == row


def test_the_first_answer_stays(tmp_path):
    with open_store(tmp_path / "a.sqlite") as store:
        store.put(ROW)
        store.put(ROW._replace(text="another"))
        assert store.get("k1") == ROW and len(store) == 1


def test_failures_are_remembered_and_counted_by_kind_until_they_are_forgotten(tmp_path):
    with open_store(tmp_path / "a.sqlite") as store:
        for key, task, kind in (
            ("a", "t", "length"),
            ("b", "t", "length"),
            ("c", "u", "http_500"),
            ("a", "t", "empty"),
        ):
            store.put_failure(FailedRow(key, task, kind, f"{kind}, in a line"))
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.failures() == {("t", "empty"): 1, ("t", "length"): 1, ("u", "http_500"): 1}
        assert store.failure("a") == ("a", "t", "empty", "empty, in a line")  # the latest word on it
        store.forget_failure("a")
        assert store.failure("a") is None and store.failure("d") is None
        assert len(store) == 0 and store.get("b") is None


def test_money_is_what_was_committed_last_and_comes_with_an_answer(tmp_path):
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.money() == (0.0, 0.0)
        store.set_money(1.25, 0.5)
        store.put(ROW, spent_usd=1.5)
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.money() == (1.5, 0.5) and store.get("k1") == ROW


def test_a_batch_is_open_until_it_is_ended_with_everything_it_brought(tmp_path):
    batch, rows = (
        Batch("tag", "http://x/v1", None, 2.0),
        [BatchRow("", k, "t", "{}", "m", 0.1) for k in ("k1", "k2", "k3")],
    )
    with open_store(tmp_path / "a.sqlite") as store:
        store.put_failure(FailedRow("k1", "t", "empty", "before"))
        store.put_batch(batch, rows)
        store.put_batch(batch, rows[:2])  # in place of the first
        store.confirm_batch(batch, "batch_1")
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.batches() == [batch._replace(batch_id="batch_1")]
        assert {k: r.tag for k, r in store.batch_rows("tag").items()} == {"k1": "tag", "k2": "tag"}
        store.end_batch("tag", [ROW], [FailedRow("k2", "t", "length", "cut")], 0.75)
        assert store.batches() == [] and store.batch_rows("tag") == {}
        assert (
            store.get("k1") == ROW and store.failures() == {("t", "length"): 1} and store.money()[0] == 0.75
        )


def test_a_transaction_is_all_or_nothing(tmp_path):
    with open_store(tmp_path / "a.sqlite") as store:
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.put_failure(FailedRow("k1", "t", "empty", "x"))
            store.set_money(1.0, 1.0)
            1 / 0  # noqa: B018
        assert store.failures() == {} and store.money() == (0.0, 0.0)


# ---- keys -------------------------------------------------------------------------------------


def test_canonical_text_does_not_depend_on_order_but_on_everything_else():
    assert canonical({"b": 1, "a": [2, "ü"]}) == '{"a":[2,"ü"],"b":1}' == canonical({"a": [2, "ü"], "b": 1})
    assert key_of(a=1, b=2) == key_of(b=2, a=1)
    assert len({key_of(a=1), key_of(a="1"), key_of(a=1.5), key_of(a=None), key_of(b=1), key_of(a=[1])}) == 6
    # two texts never run together
    assert key_of(task="ab", text="c") != key_of(task="a", text="bc")


def test_a_text_that_is_no_unicode_has_no_key():
    with pytest.raises(Stop, match="task 't'.*surrogate"):
        key_of(task="t", text="\ud800")


# ---- alone ------------------------------------------------------------------------------------


def in_another_process(path: Path, code: str) -> subprocess.CompletedProcess:
    program = f"from pathlib import Path\nfrom ultrachat.store import *\npath = Path({str(path)!r})\n{code}"
    source = str(Path(__file__).parent.parent / "src")
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip


def test_a_second_process_is_refused_with_one_line_and_welcome_afterwards(tmp_path):
    path = tmp_path / "a.sqlite"
    enter = "with open_store(path) as store:\n    print(len(store))"
    with open_store(path) as store:
        store.put(ROW)
        refused = in_another_process(path, enter)
        assert refused.returncode == 1
        last = refused.stderr.strip().splitlines()[-1]
        assert (
            last.startswith(f"ultrachat.errors.Stop: {path}: in use by another process")
            and "run_name" in last
        )
    assert in_another_process(path, enter).stdout == "1\n"


def test_the_lock_goes_with_its_owner(tmp_path):
    path = tmp_path / "a.sqlite"
    code = (
        "import os, signal\n"
        "with open_store(path) as store:\n"
        "    store.put(Row('k', 't', '{}', 'm', 'kept', None, None))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert in_another_process(path, code).returncode == -9
    with open_store(path) as store:
        assert store.get("k").text == "kept"


def test_an_exception_inside_frees_the_store(tmp_path):
    with pytest.raises(ZeroDivisionError), open_store(tmp_path / "a.sqlite") as store:
        store.put(ROW)
        1 / 0  # noqa: B018
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.get("k1") == ROW


# ---- damage -----------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / "a.sqlite"
    for content in (
        b"not a database at all, but long enough to look at" * 20,
        b"SQLite format 3\x00" + b"\xff" * 4000,
    ):
        path.write_bytes(content)
        with pytest.raises(Stop, match=r"a\.sqlite: cannot be opened as the run's store"), open_store(path):
            pass
        assert path.read_bytes() == content


def test_a_path_that_cannot_be_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "a.sqlite"):
        with pytest.raises(Stop, match="cannot be opened as the run's store"), open_store(path):
            pass


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE answers (key TEXT, value BLOB)")
    with open_store(path) as store:
        for act in (lambda: store.get("k1"), lambda: store.put(ROW)):
            with pytest.raises(Stop, match=r"a\.sqlite: "):
                act()


@pytest.mark.parametrize(
    "change",
    [
        "text = 'x' || substr(text, 2)", "text = CAST(text AS BLOB)", "text = CAST(x'ff41' AS TEXT)", "text = ''",
        "task = 'other'", "model = 'better'", "inputs = '{}'", "prompt_tokens = 8", "prompt_tokens = 'a'",
        "completion_tokens = 0", "row_sha256 = ''", "row_sha256 = x'00'", "task = x'ff'",
    ],
)  # fmt: skip
def test_a_damaged_row_stops_naming_the_file(tmp_path, change):
    path = tmp_path / "a.sqlite"
    with open_store(path) as store:
        store.put(ROW)
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(f"UPDATE answers SET {change}").rowcount == 1
    with open_store(path) as store, pytest.raises(Stop, match=r"a\.sqlite: .*damaged.*; delete the file"):
        store.get("k1")


def test_a_flipped_bit_is_harmless_or_named_never_wrong(tmp_path):
    rows = {row.key: row for row in some_rows(30)}
    path = tmp_path / "a.sqlite"
    with open_store(path) as store:
        for row in rows.values():
            store.put(row)
    whole = path.read_bytes()
    rng = random.Random(5)
    stopped = 0
    for _ in range(120):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            with open_store(path) as store:
                for key, row in rows.items():
                    assert store.get(key) in (row, None)  # None: asked again
                store.put(ROW)
                len(store), store.failures()
        except Stop as stop:
            stopped += 1
            assert str(path) in str(stop)
    assert stopped > 20


def test_a_cut_or_scrambled_log_leaves_an_exact_prefix(tmp_path):
    """What a power cut leaves: the newest rows live in the -wal file, whose tail may be torn."""
    rows = some_rows(20)
    code = (
        "import os, signal\n"
        "with open_store(path) as store:\n"
        "    for i in range(20):\n"
        '        store.put(Row(f"{i:064x}", "t", f\'{{"i":{i}}}\', "m", f"answer {i} " * 20, i, 2 * i))\n'
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert in_another_process(tmp_path / "a.sqlite", code).returncode == -9
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(files["a.sqlite-wal"]) > 20_000
    rng = random.Random(6)
    lengths = set()
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        log = bytearray(files["a.sqlite-wal"])
        log = log[: rng.randrange(len(log))]
        if number % 2:
            at = rng.randrange(len(log))
            log[at:] = rng.randbytes(len(log) - at)
        for name, content in {**files, "a.sqlite-wal": bytes(log)}.items():
            (folder / name).write_bytes(content)
        with open_store(folder / "a.sqlite") as store:
            found = [store.get(row.key) for row in rows]
        n = found.index(None) if None in found else len(found)
        assert found == rows[:n] + [None] * (20 - n)
        lengths.add(n)
    assert len(lengths) > 5


def test_a_full_disk_is_one_line_and_the_rows_before_it_are_safe(tmp_path):
    with open_store(tmp_path / "a.sqlite") as store:
        store.put(ROW)
        store._connection.execute("PRAGMA max_page_count = 10")
        with pytest.raises(Stop, match=r"a\.sqlite: .*full; what was stored before is safe, run again"):
            store.put(ROW._replace(key="k2", text="x" * 100_000))
        assert store.get("k1") == ROW and store.get("k2") is None
        store._connection.execute("PRAGMA max_page_count = 1000")
        store.put(ROW._replace(key="k2"))
    with open_store(tmp_path / "a.sqlite") as store:
        assert len(store) == 2
