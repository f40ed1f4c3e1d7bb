"""Rows on disk: all ids in one array, one bit of learning for each, mapped into memory and never read whole.

A million dialogues are two thousand million tokens: they are split once, written while they are, and then read
by every process of a run from the same pages.

    write_rows(folder, split_each(dialogues, encoder), identity)
    rows = open_rows(folder, identity)       # a Sequence of Examples; None while it is not whole

    ids.bin        int32, row after row          starts.npy    where each row begins, and the last ends
    learnt.bin     0 or 1 for each token         rows.npy      first round and sector of each row
    rows.json      what it was made of, the report, a digest; written last

Absent on purpose: a general file format (arrow keeps labels as wide as ids), and compression.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ultrachat.runs import write_text
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.splitting import SplitReport

INDEX = "rows.json"


class Rows(Sequence[Example]):
    """Rows of a folder that `write_rows` filled; a row is read when it is asked for.

    `report` is what splitting did, `digest` names the content, `largest_id` is that of all tokens (-1 without any).

    Ours: see the module.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.report, self.digest = SplitReport(**index["report"]), index["digest"]
        self.largest_id: int = index["largest_id"]
        self._sectors = index["sectors"]
        self._starts = np.load(folder / "starts.npy")
        self._rows = np.load(folder / "rows.npy")
        n_tokens = int(self._starts[-1])
        self._ids = _mapped(folder / "ids.bin", np.int32, n_tokens)
        self._learnt = _mapped(folder / "learnt.bin", bool, n_tokens)

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each row, (n,) int64."""
        return np.diff(self._starts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Example:
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(position)
        begin, end = self._starts[position : position + 2]
        ids = self._ids[begin:end]
        first_round, sector = self._rows[position].tolist()
        labels = np.where(self._learnt[begin:end], ids, np.int32(IGNORE_INDEX))
        return Example(ids, labels, first_round, self._sectors[sector])


def _mapped(path: Path, kind: type, n_tokens: int) -> np.ndarray:
    """Return a file as an array. Raises ValueError when it has another length."""
    if path.stat().st_size != n_tokens * np.dtype(kind).itemsize:
        raise ValueError(f"{path}: expected {n_tokens} items")
    if not n_tokens:  # nothing cannot be mapped
        return np.zeros(0, kind)
    # "c": torch warns of arrays that cannot be written to; the file stays as it is.
    # A plain array over the map, since a slice of a memmap object costs five times as much.
    return np.asarray(np.memmap(path, kind, "c"))


def write_rows(
    folder: Path, split: Iterable[tuple[list[Example], SplitReport]], identity: dict[str, Any]
) -> SplitReport:
    """Write the rows of dialogues as they are split, and return the sum of their reports.

    `identity` says what they were made of. What the folder held before is deleted.

    Ours: a run that is killed meanwhile leaves a folder without index, which is started anew.
    """
    (folder / INDEX).unlink(missing_ok=True)  # first, so that half a folder is never taken for a whole one
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    starts, rows, sectors, report, digest = [0], [], {None: 0}, SplitReport(), hashlib.sha256()
    largest_id = -1
    with open(folder / "ids.bin", "wb") as ids_file, open(folder / "learnt.bin", "wb") as learnt_file:
        for examples, counts in split:
            report += counts
            for example in examples:
                learnt = example.labels != IGNORE_INDEX
                for part, file in ((example.input_ids, ids_file), (learnt, learnt_file)):
                    file.write(part.tobytes())
                    digest.update(part.tobytes())
                largest_id = max(largest_id, int(example.input_ids.max()))
                digest.update(f"{example.first_round} {example.sector}".encode())
                starts.append(starts[-1] + example.n_tokens)
                rows.append((example.first_round, sectors.setdefault(example.sector, len(sectors))))
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    np.save(folder / "rows.npy", np.array(rows, np.int32).reshape(-1, 2))
    index = {
        "identity": identity,
        "report": asdict(report),
        "sectors": list(sectors),
        "largest_id": largest_id,
        "digest": digest.hexdigest()[:16],
    }
    write_text(folder / INDEX, json.dumps(index, indent=1))
    return report


def open_rows(folder: Path, identity: dict[str, Any]) -> Rows | None:
    """Return the rows of a folder if they are whole and made of `identity`, else None.

    Ours: what is prepared is not prepared again, and an array cut short by a full disk is noticed.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return Rows(folder) if index["identity"] == identity else None
    except (OSError, ValueError, EOFError):  # EOFError: numpy, of an empty file
        return None
