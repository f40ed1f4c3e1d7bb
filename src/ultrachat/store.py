"""Every answer ever paid for, kept in one SQLite file per run the moment it arrives.

It is a ledger, not a cache: the key covers the item and step *and* everything that shapes the
answer (base URL, model, messages, sampling), so two equal opening lines stay two samples and a
reworded prompt asks anew. Its tables:

    answers     accepted answers, one row each; nothing else is ever replayed as an answer
    failed      questions that got none, with the kind; asked again only on request
    money       one row: dollars spent, and how many more the calls under way may cost at most
    batches     what was handed to a Batch API and not taken in yet; batch_rows: the questions in it
    merged      shards that were taken in, with what each had spent

The ledger is the only state: killing a run and running it again asks nothing twice.

The exclusive lock *is* SQLite's own and the kernel frees it when its owner dies, so kill -9 leaves
nothing to clean up. WAL with synchronous=FULL survives a power cut with an exact prefix of the
committed answers.

Absent on purpose: eviction, sharing between processes, any knowledge of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ultrachat.errors import Stop

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, inputs TEXT NOT NULL, model TEXT NOT NULL,
    text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, row_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failed (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, kind TEXT NOT NULL, line TEXT NOT NULL, row_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS money (
    one INTEGER PRIMARY KEY, spent_usd REAL NOT NULL, at_risk_usd REAL NOT NULL, row_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    tag TEXT PRIMARY KEY, base_url TEXT NOT NULL, batch_id TEXT, worst_usd REAL NOT NULL, row_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch_rows (
    tag TEXT NOT NULL, key TEXT NOT NULL, task TEXT NOT NULL, inputs TEXT NOT NULL, model TEXT NOT NULL,
    worst_usd REAL NOT NULL, row_sha256 TEXT NOT NULL, PRIMARY KEY (tag, key));
CREATE TABLE IF NOT EXISTS merged (shard TEXT PRIMARY KEY, spent_usd REAL NOT NULL, row_sha256 TEXT NOT NULL);
"""


class Row(NamedTuple):
    """One stored answer; token counts are None where the server did not say.

    Ours: what is worth keeping of a paid call.
    """

    key: str
    task: str
    inputs: str
    model: str
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


_ANSWER = ", ".join((*Row._fields, "row_sha256"))


class FailedRow(NamedTuple):
    """A question that got no acceptable answer: what kind of failure it was, in one line.

    Ours: a failure is remembered, and never an answer.
    """

    key: str
    task: str
    kind: str
    line: str


class Batch(NamedTuple):
    """A batch that was handed to a server: `tag` is ours, `batch_id` the server's (None: not confirmed).

    Ours: written down before it is submitted, so that a kill in between pays nothing twice.
    """

    tag: str
    base_url: str
    batch_id: str | None
    worst_usd: float


class BatchRow(NamedTuple):
    """A question in a batch, with what its ledger row will need and what it may cost at most.

    Ours: results come back under the key, in any order.
    """

    tag: str
    key: str
    task: str
    inputs: str
    model: str
    worst_usd: float


def canonical(value: Any) -> str:
    """Return a value as JSON with sorted keys and no spaces: equal values give equal text.

    Ours: the form that keys are hashed from.
    """
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def key_of(**parts: Any) -> str:
    """Return the ledger key of a request: sha256 of everything that shapes or names its answer.

    Raises Stop when a text in it is no valid Unicode, which could not be sent either.

    Ours: keys that leave out the model or the prompt are how caches go wrong.
    """
    try:
        return hashlib.sha256(canonical(parts).encode()).hexdigest()
    except UnicodeEncodeError:
        raise Stop(f"task '{parts.get('task')}': a text holds half a surrogate pair") from None


def _sealed(row: Iterable[Any]) -> tuple[Any, ...]:
    """Return a row with its hash behind it, so that a flipped bit is found when it is read."""
    row = tuple(row)
    return (*row, hashlib.sha256(canonical(row).encode()).hexdigest())


class Store:
    """The open ledger of one run; get it from `open_store`.

    Ours: the paper does not say how its 1.5 million dialogues survived days of calls.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    # ---- answers and failures -----------------------------------------------------------------

    def get(self, key: str) -> Row | None:
        """Return the stored answer under `key` or None; Stop when the row does not match its hash."""
        found = self._read(f"SELECT {_ANSWER} FROM answers WHERE key = ?", (key,))
        return Row(*found[0]) if found else None

    def put(self, *rows: Row, spent_usd: float | None = None) -> None:
        """Commit answers durably and together, with what the run has spent by now; a key that is there stays."""
        with self.transaction():
            for row in rows:
                self._insert("INSERT OR IGNORE INTO answers", row)
            if spent_usd is not None:
                self._spend(spent_usd)

    def failure(self, key: str) -> FailedRow | None:
        """Return how the question under `key` failed, None if it did not or was answered since."""
        found = self._read("SELECT * FROM failed WHERE key = ?", (key,))
        return FailedRow(*found[0]) if found else None

    def put_failure(self, failed: FailedRow) -> None:
        """Commit that a question got no answer, in place of what was known of it before."""
        self._insert("INSERT OR REPLACE INTO failed", failed)

    def forget_failure(self, key: str) -> None:
        """Take a failure back: the question has been answered."""
        self._execute("DELETE FROM failed WHERE key = ?", (key,))

    def failures(self) -> dict[tuple[str, str], int]:
        """Return {(task, kind): how many questions} that stand without an answer."""
        rows = self._read(
            "SELECT * FROM failed ORDER BY task, kind"
        )  # not counted by SQLite: hashes are checked
        return dict(Counter((task, kind) for _, task, kind, _ in rows))

    def __len__(self) -> int:
        return self._execute("SELECT count(*) FROM answers")[0][0]

    # ---- money --------------------------------------------------------------------------------

    def money(self) -> tuple[float, float]:
        """Return (dollars spent, dollars at risk): an upper bound of the bill is their sum."""
        found = self._read("SELECT * FROM money")
        return (found[0][1], found[0][2]) if found else (0.0, 0.0)

    def set_money(self, spent_usd: float, at_risk_usd: float) -> None:
        """Commit both: before a call is sent its worst case is at risk, whatever happens to us."""
        self._insert("INSERT OR REPLACE INTO money", (1, spent_usd, at_risk_usd))

    def _spend(self, spent_usd: float) -> None:
        self.set_money(spent_usd, self.money()[1])

    # ---- batches ------------------------------------------------------------------------------

    def batches(self) -> list[Batch]:
        """Return the batches that have not been taken in, oldest first."""
        return [Batch(*row) for row in self._read("SELECT * FROM batches ORDER BY rowid")]

    def batch_rows(self, tag: str) -> dict[str, BatchRow]:
        """Return {key: question} of one batch."""
        in_table, in_index = "SELECT * FROM batch_rows NOT INDEXED", "SELECT count(*) FROM batch_rows"
        rows = [BatchRow(*row) for row in self._read(f"{in_table} WHERE tag = ?", (tag,))]
        if len(rows) != self._execute(f"{in_index} WHERE tag = ?", (tag,))[0][0]:  # one missed is paid twice
            raise Stop(f"{self.path}: batch '{tag}' is damaged; delete the file")
        return {row.key: row for row in rows}

    def put_batch(self, batch: Batch, rows: Iterable[BatchRow]) -> None:
        """Commit that a batch is about to be submitted, in place of one with the same tag."""
        with self.transaction():
            self._drop(batch.tag)
            self._insert("INSERT INTO batches", batch)
            for row in rows:
                self._insert("INSERT INTO batch_rows", row._replace(tag=batch.tag))

    def confirm_batch(self, batch: Batch, batch_id: str) -> None:
        """Commit the server's name of a batch."""
        self._insert("INSERT OR REPLACE INTO batches", batch._replace(batch_id=batch_id))

    def end_batch(
        self, tag: str, answers: Iterable[Row], failures: Iterable[FailedRow], spent_usd: float
    ) -> None:
        """Take a batch in, all of it or nothing: its answers, its failures, what the run has spent with it."""
        with self.transaction():
            for row in answers:
                self._insert("INSERT OR IGNORE INTO answers", row)
                self.forget_failure(row.key)
            for failed in failures:
                self.put_failure(failed)
            self._spend(spent_usd)
            self._drop(tag)

    def _drop(self, tag: str) -> None:
        self._execute("DELETE FROM batch_rows WHERE tag = ?", (tag,))
        self._execute("DELETE FROM batches WHERE tag = ?", (tag,))

    # ---- shards -------------------------------------------------------------------------------

    def stream(self, table: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of `answers` or `failed` as they came, hashes checked, a thousand in memory at a time.

        In key order every row would be a read somewhere else on the disk.
        """
        last = 0
        while found := self._execute(
            f"SELECT rowid, * FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1000", (last,)
        ):
            yield from self._checked(row[1:] for row in found)
            last = found[-1][0]

    def absorb(self, shard: str, other: Store) -> int:
        """Take in a shard's ledger, all of it or nothing; return how many answers were new.

        Taking it in again changes nothing: of its money only what it has spent since is added.
        Raises Stop when a question has two answers.
        """
        n_new = 0
        with self.transaction():
            for row in map(Row._make, other.stream("answers")):
                mine = self.get(row.key)
                if mine and mine.text != row.text:
                    raise Stop(f"{other.path}: the answer to {row.key} is another one in {self.path}")
                if not mine:
                    self._insert("INSERT INTO answers", row)
                    self.forget_failure(row.key)
                    n_new += 1
            for failed in map(FailedRow._make, other.stream("failed")):
                if not self.get(failed.key):
                    self.put_failure(failed)
            before = self._read("SELECT * FROM merged WHERE shard = ?", (shard,))
            spent_usd, counted_usd = sum(other.money()), before[0][1] if before else 0.0
            if spent_usd > counted_usd:
                self._spend(self.money()[0] + spent_usd - counted_usd)
                self._insert("INSERT OR REPLACE INTO merged", (shard, spent_usd))
        return n_new

    # ---- SQLite -------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything in the `with` block together, or nothing of it."""
        self._execute("BEGIN")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # what went wrong first is the error to show
                self._connection.rollback()
            raise

    def _insert(self, into: str, row: Iterable[Any]) -> None:
        """Execute an INSERT of a row with its hash."""
        values = _sealed(row)
        self._execute(f"{into} VALUES ({', '.join('?' * len(values))})", values)

    def _read(self, statement: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Return rows without their hashes; Stop when one does not match its own."""
        return list(self._checked(self._execute(statement, values)))

    def _checked(self, found: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield rows without their hashes; Stop when one does not match its own."""
        for *row, stored in found:
            if any(isinstance(value, bytes) for value in row) or _sealed(row)[-1] != stored:
                raise Stop(f"{self.path}: the row {row!r:.200} is damaged; delete the file")
            yield tuple(row)

    def _execute(self, statement: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, tuple(values)).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter from a damaged schema
            if any(sign in str(error) for sign in ("malformed", "UTF-8", "utf-8")):
                raise Stop(f"{self.path}: damaged ({error}); delete the file") from None
            raise Stop(f"{self.path}: {error}; what was stored before is safe, run again") from None


@contextmanager
def open_store(path: Path, wait_seconds: float = 1.0) -> Iterator[Store]:
    """Open (or create) the ledger at `path` for the length of a `with` block, alone.

    Raises Stop when another process still has it open after `wait_seconds`, or the file is no database.

    Ours: a second process on the same run would pay for every answer twice.
    """
    connection = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path, timeout=wait_seconds, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(
            "PRAGMA cache_size=-262144"
        )  # KiB, as far as needed: a long ledger is found faster
        connection.execute("BEGIN EXCLUSIVE")  # the lock is only taken by the first write
        connection.execute("COMMIT")
        connection.executescript(_SCHEMA)
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        if connection:
            connection.close()
        if "locked" in str(error):
            raise Stop(
                f"{path}: in use by another process; let it finish or choose another run_name"
            ) from None
        raise Stop(f"{path}: cannot be opened as the run's store ({error})") from None
    try:
        yield Store(path, connection)
    finally:
        connection.close()
