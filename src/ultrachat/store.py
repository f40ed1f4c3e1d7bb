"""Every answer ever paid for, kept in one SQLite file per run the moment it arrives.

It is a ledger, not a cache: the key covers the item and step *and* everything that shapes the
answer (base URL, model, messages, sampling), so two equal opening lines stay two samples and a
reworded prompt asks anew. Only accepted answers are rows; failures are counted elsewhere by kind
and never replayed. The ledger is the only state: killing a run and running it again asks nothing
twice.

The exclusive lock *is* SQLite's own and the kernel frees it when its owner dies, so kill -9 leaves
nothing to clean up. WAL with synchronous=FULL survives a power cut with an exact prefix of the
committed answers.

Absent on purpose: eviction, sharing between processes, any knowledge of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ultrachat.errors import Stop

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, inputs TEXT NOT NULL, model TEXT NOT NULL,
    text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, row_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures (
    task TEXT NOT NULL, kind TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (task, kind));
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

    def sha256(self) -> str:
        """Return the hash stored beside the row, so that a flipped bit is found when it is read."""
        return hashlib.sha256(canonical(list(self)).encode()).hexdigest()


_COLUMNS = ", ".join((*Row._fields, "row_sha256"))


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


class Store:
    """The open ledger of one run; get it from `open_store`.

    Ours: the paper does not say how its 1.5 million dialogues survived days of calls.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    def get(self, key: str) -> Row | None:
        """Return the stored answer under `key` or None; Stop when the row does not match its hash."""
        found = self._execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,))
        if not found:
            return None
        *values, stored = found[0]
        row = Row(*values)
        if any(isinstance(value, bytes) for value in values) or row.sha256() != stored:
            raise Stop(
                f"{self.path}: the answer to task {row.task!r} {row.inputs!r:.200} is damaged; delete the file"
            )
        return row

    def put(self, row: Row) -> None:
        """Commit one answer durably; putting the same key again changes nothing."""
        values = (*row, row.sha256())
        marks = ", ".join("?" * len(values))
        self._execute(f"INSERT OR IGNORE INTO answers ({_COLUMNS}) VALUES ({marks})", values)

    def count_failure(self, task: str, kind: str) -> None:
        """Add one to the failures of this kind; a failure is never an answer."""
        self._execute(
            "INSERT INTO failures VALUES (?, ?, 1) ON CONFLICT (task, kind) DO UPDATE SET n = n + 1",
            (task, kind),
        )

    def failures(self) -> dict[tuple[str, str], int]:
        """Return {(task, kind): how often} over the whole life of the run."""
        rows = self._execute("SELECT task, kind, n FROM failures ORDER BY task, kind")
        return {(task, kind): n for task, kind, n in rows}

    def __len__(self) -> int:
        return self._execute("SELECT count(*) FROM answers")[0][0]

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            if "malformed" in str(error) or "UTF-8" in str(error):
                raise Stop(f"{self.path}: damaged ({error}); delete the file") from None
            raise Stop(f"{self.path}: {error}; what was stored before is safe, run again") from None


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Open (or create) the ledger at `path` for the length of a `with` block, alone.

    Raises Stop when another process has it open or the file is no database.

    Ours: a second process on the same run would pay for every answer twice.
    """
    connection = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN EXCLUSIVE")  # the lock is only taken by the first write
        connection.execute("COMMIT")
        connection.executescript(_SCHEMA)
    except (sqlite3.Error, OSError) as error:
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
