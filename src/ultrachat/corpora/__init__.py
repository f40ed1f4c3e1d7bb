"""Readers for the published data sets of Table 5 and their successors, whatever file they come in.

    reading = read("alpaca_data.json")          # JSONL, JSON array, Parquet, .gz, .zst; format guessed
    dialogues = list(reading)                   # `Dialogue` records
    print(reading.summary())                    # 52,002 rows: 51,974 dialogues, 28 with an empty message, …

`Reading.texts` gives the same dialogues as bare lists of texts, about twice as fast, and
`Reading.of_block` reads one block of a file, so that processes can share it:

    format = seen_format(path)
    for block in files.blocks(path):                        # send the block to another process, and there:
        reading = Reading.of_block(block, format)
        for texts in reading.texts(): …                     # ["Hi", "Hello", …]: user, assistant, user …
        counts += reading.counts                            # adds up to what reading the file gives

Every row is accounted for: a dialogue, a row with an empty message, or a bad row, which is named.
`formats` says what a row of each data set is, `files` how rows get out of files, `published` where the
data sets are.

Absent on purpose: cleaning of texts, choosing of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultrachat.corpora.files import Block, as_object, blocks, rows
from ultrachat.corpora.formats import (
    FORMATS,
    OWN,
    READERS,
    BadRow,
    Row,
    Turns,
    guess_format,
)
from ultrachat.errors import Stop
from ultrachat.records import Dialogue, clean_text, from_texts

__all__ = [
    "FORMATS",
    "READERS",
    "BadRow",
    "Block",
    "Counts",
    "Reading",
    "blocks",
    "guess_format",
    "read",
    "seen_format",
]

MAX_PROBLEMS_KEPT = 20


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a file or a part of it; parts are added with `+`, in order.

    n_rows = n_dialogues + n_empty + n_bad. `n_empty` counts rows set aside because one of their
    messages is blank (a missing answer has no length to average); `n_left_out` counts single
    messages left out of dialogues: system messages, an assistant's before the first user message,
    and a last user message without answer. `problems` holds the first bad rows, one line each.

    Ours: no row disappears without a count. `dataclasses.asdict` and `Counts(**…)` go through JSON.
    """

    n_rows: int = 0
    n_dialogues: int = 0
    n_empty: int = 0
    n_bad: int = 0
    n_left_out: int = 0
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "problems", tuple(self.problems[:MAX_PROBLEMS_KEPT]))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def summary(self) -> str:
        """Return the counts as one line.

        Ours: printed under every table made from a file.
        """
        return (
            f"{self.n_rows:,} rows: {self.n_dialogues:,} dialogues, {self.n_empty:,} with an empty message, "
            f"{self.n_bad:,} bad; {self.n_left_out:,} messages left out of dialogues"
        )

    def stop_if_all_bad(self, format: str) -> None:
        """Raise Stop naming the first problem if there were rows and all were bad.

        Ours: then the format is wrong, and an empty table would hide it.
        """
        if self.n_rows and self.n_bad == self.n_rows:
            raise Stop(f"no row is of the format '{format}'; the first: {self.problems[0]}")


def read(path: Path | str, format: str | None = None, *, strict: bool = False) -> Reading:
    """Return an iterator over the dialogues of the file at `path`, which counts what it met.

    `format` is one of `FORMATS`, guessed from the first row when None. A bad row is named in
    `Reading.problems` and counted; with `strict` it raises Stop. Raises Stop as well when the file
    cannot be read, its format cannot be guessed, or not one row is of its format.

    Ours: the paper lists the data sets and not how they were read.
    """
    return Reading(rows(path), seen_format(path) if format is None else format, strict)


def seen_format(path: Path | str) -> str:
    """Return the name of the format that the first row of a file shows; "own" when it has no rows.

    Raises Stop when the file cannot be read, its first row is broken or of no known format.

    Ours: a file is of one format throughout.
    """
    first = next(rows(path), None)
    if first is None:  # an empty file has no dialogues in any format
        return OWN
    where, raw = first
    try:
        row = as_object(raw)
    except BadRow as problem:
        raise Stop(f"{where}: {problem}; the first row is needed to see the format") from None
    guess = guess_format(row)
    if guess is None:
        fields = ", ".join(map(repr, list(row)[:8])) or "none"
        raise Stop(f"{where}: fields {fields} are of no known format ({', '.join(FORMATS)})")
    return guess


class Reading(Iterator[Dialogue]):
    """Dialogues of one file or block in order, and `counts` so far, complete once it is exhausted.

    Iterating gives `Dialogue` records, `texts` bare texts; a reading is used for one of the two. The
    fields of `Counts` are attributes too.

    Ours: one way of deciding what a row is, however it is wanted.
    """

    def __init__(
        self, rows: Iterable[tuple[str, Any]], format: str, strict: bool = False, *, whole: bool = True
    ) -> None:
        if format not in FORMATS:
            raise Stop(f"format '{format}': expected one of {', '.join(FORMATS)}")
        self.format, self.strict, self.whole = format, strict, whole
        self.n_rows = self.n_dialogues = self.n_empty = self.n_bad = self.n_left_out = 0
        self.problems: list[str] = []
        self._rows = iter(rows)
        self._dialogues = self._used(self._dialogue)

    @classmethod
    def of_block(cls, block: Block, format: str, strict: bool = False) -> Reading:
        """Return a reading of one block of a file. All its rows may be bad: see `Counts.stop_if_all_bad`.

        Ours: what a worker process does with its part.
        """
        return cls(block.rows(), format, strict, whole=False)

    def __next__(self) -> Dialogue:
        return next(self._dialogues)

    def texts(self) -> Iterator[list[str]]:
        """Yield each dialogue as its texts in alternation: at even positions the user's, at odd the assistant's.

        The texts are those of the `Dialogue` records, and the counts the same. Raises Stop as `read` does.

        Ours: building the records costs more than decoding the JSON they come from.
        """
        return self._used(lambda row, kept: [clean_text(text) for text in kept])

    @property
    def counts(self) -> Counts:
        """The counts of the rows read so far."""
        return Counts(
            self.n_rows, self.n_dialogues, self.n_empty, self.n_bad, self.n_left_out, tuple(self.problems)
        )

    def summary(self) -> str:
        """Return the counts so far as one line.

        Ours: printed under every table made from a file.
        """
        return self.counts.summary()

    def _used(self, made: Any) -> Iterator[Any]:
        """Yield made(row, texts) for each row that is a dialogue, and count all rows."""
        reader = READERS[self.format]
        for where, raw in self._rows:
            self.n_rows += 1
            try:
                row = as_object(raw)
                turns = reader(row)
                kept = _alternating(turns)
            except BadRow as problem:
                self._note(f"{where}: {problem}")
                continue
            if not all(map(str.strip, kept)):
                self.n_empty += 1
                continue
            self.n_left_out += len(turns) - len(kept)
            self.n_dialogues += 1
            yield made(row, kept)
        if self.whole:
            self.counts.stop_if_all_bad(self.format)

    def _note(self, line: str) -> None:
        if self.strict:
            raise Stop(f"{line} (format '{self.format}')")
        self.n_bad += 1
        if len(self.problems) < MAX_PROBLEMS_KEPT:
            self.problems.append(line)

    def _dialogue(self, row: Row, kept: list[str]) -> Dialogue:
        if self.format == OWN:
            return Dialogue.model_validate(row)
        own_id = row.get("id", row.get("prompt_id"))
        return from_texts(kept, parent=None if own_id is None else str(own_id))


def _alternating(turns: Turns) -> list[str]:
    """Return the texts as whole rounds, without system messages and unpaired ends; raise BadRow."""
    kept: list[str] = []
    last = None
    for position, (role, text) in enumerate(turns):
        if role == "system" or (role == "assistant" and not kept):
            continue
        if role == last:
            raise BadRow(f"message {position + 1}: two by the {role} in a row, expected alternation")
        kept.append(text)
        last = role
    if len(kept) % 2:
        kept.pop()
    if not kept:
        raise BadRow("no user message with an answer")
    return kept
