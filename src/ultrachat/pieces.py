"""Counting the tokens of many texts fast: words repeat, so each distinct piece goes to the tokenizer once.

    pieces = Pieces(counts_of, prefixed=True)     # counts_of: what the tokenizer says, ["a", …] -> [1, …]
    pieces.count(buffer, starts)                  # tokens of each text, (n,) int64

A text is cut before every space that follows no white space ("Don't| panic!"), and the counts of the pieces are
added up. Whoever makes a `Pieces` answers for it that no token reaches across such a cut (`tokens` looks it
up in the vocabulary). A piece is looked up by its bytes in a table; they are compared in full, so that a hash
that two pieces share changes nothing. When the table fills up it is emptied, which costs time only.

Absent on purpose: which tokenizers may be cut (`tokens`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numba
import numpy as np

LONGEST = 64  # bytes of a piece that is remembered
N_SLOTS = 1 << 23  # a table of 128 MB; half of the slots are used
BYTES_A_PIECE = 12  # on average; a long one takes more
FULL = 0.75  # of either: emptied before the next batch

# A slot is two words side by side, so that one look at memory brings both: the hash of a piece, and where its
# bytes begin (32 bits), how many they are (8 bits), one more than its tokens (24 bits; 0: not known yet).
_SIZE, _COUNT = np.uint64(32), np.uint64(40)
_BEGIN_MASK, _SIZE_MASK = np.uint64(0xFFFFFFFF), np.uint64(0xFF)
_START, _TIMES = np.uint64(14695981039346656037), np.uint64(1099511628211)  # FNV-1a
_NEWLINE, _SPACE = 10, 32


class Pieces:
    """The counts of pieces met before, for one tokenizer.

    A `prefixed` tokenizer puts a space in front of every text, so that a piece goes to it without its own. With
    `lines_apart`, which needs `prefixed`, a line break is always a token of its own and texts are cut before it too.

    Ours: exact, and as fast as memory; see benchmarks/README.md.
    """

    def __init__(
        self,
        counts_of: Callable[[Sequence[str]], list[int]],
        prefixed: bool = False,
        lines_apart: bool = False,
    ) -> None:
        self._counts_of, self.prefixed, self._lines_apart = counts_of, prefixed, lines_apart
        self._slots = np.zeros((N_SLOTS, 2), np.uint64)
        self._bytes = np.zeros(N_SLOTS // 2 * BYTES_A_PIECE, np.uint8)
        self._used = np.zeros(2, np.int64)  # pieces and bytes

    def count(self, buffer: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return the tokens of each text `buffer[starts[i]:starts[i + 1]]` (UTF-8), (n,) int64."""
        if self._used[0] > FULL * N_SLOTS / 2 or self._used[1] > FULL * len(self._bytes):
            self._forget()
        totals = np.zeros(len(starts) - 1, np.int64)
        later = np.empty((len(buffer) + len(starts), 3), np.int64)  # pages that are not written cost nothing
        fresh = np.empty(len(buffer) + len(starts), np.int64)
        n_later, n_fresh = _count(
            buffer, starts, self.prefixed, self._lines_apart, self._slots, self._bytes, self._used, totals, later, fresh
        )  # fmt: skip
        if n_later:
            try:
                self._learn(fresh[:n_fresh])
            except BaseException:  # an interrupt too: no piece may stay without its count
                self._forget()
                raise
            self._add(later[:n_later], totals, buffer.tobytes())
        return totals

    def _forget(self) -> None:
        self._slots.fill(0)
        self._used[:] = 0

    def _asked(self, pieces: list[bytes]) -> np.ndarray:
        """Return the tokenizer's counts of pieces, each as it stands within a text."""
        counts = np.array(self._counts_of([piece.decode() for piece in pieces]), np.int64)
        if self._lines_apart:  # it puts its space in front of a line break too, and here is none
            counts -= np.fromiter((piece[0] == _NEWLINE for piece in pieces), np.int64, len(pieces))
        return counts

    def _learn(self, fresh: np.ndarray) -> None:
        """Ask for the counts of the pieces that were met for the first time, by their slots in order."""
        if not len(fresh):
            return
        packed = self._slots[fresh, 1]
        begins = (packed & _BEGIN_MASK).astype(np.int64)
        base, sizes = int(begins[0]), ((packed >> _SIZE) & _SIZE_MASK).astype(np.int64)
        raw = self._bytes[base : int(self._used[1])].tobytes()
        with _without_collector():
            spans = zip((begins - base).tolist(), (begins - base + sizes).tolist(), strict=True)
            counts = self._asked([raw[begin:end] for begin, end in spans])
        self._slots[fresh, 1] = packed | ((counts + 1).astype(np.uint64) << _COUNT)

    def _add(self, later: np.ndarray, totals: np.ndarray, raw: bytes) -> None:
        """Add to `totals` the pieces whose counts were not known, in the rows of `_count`."""
        of_text, begin, end = later.T
        learnt = begin < 0
        counts = (self._slots[end[learnt], 1] >> _COUNT).astype(np.int64) - 1
        np.add.at(totals, of_text[learnt], counts)
        if not learnt.all():
            spans = zip(begin[~learnt].tolist(), end[~learnt].tolist(), strict=True)
            np.add.at(totals, of_text[~learnt], self._asked([raw[b:e] for b, e in spans]))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles among a hundred thousand short lists: it takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@numba.njit(cache=True)
def _end_of_piece(text: np.ndarray, begin: int, stop: int, lines_apart: bool) -> int:
    """Return where the piece that begins at `begin` ends: at the next cut, or at `stop`."""
    end = begin + 1
    previous = text[begin]
    while end < stop:
        byte = text[end]
        # no white space ends in a byte above 0xAF; a space that ends the text, or the line where lines are
        # apart, stays where it is: by itself it would be no text at all
        after_word = byte == _SPACE and (_SPACE < previous < 128 or previous > 0xAF)
        if after_word and end + 1 < stop and not (lines_apart and text[end + 1] == _NEWLINE):
            break
        if lines_apart and byte == _NEWLINE:
            break
        previous = byte
        end += 1
    return end


@numba.njit(cache=True)
def _same(a: np.ndarray, at: int, b: np.ndarray, begin: int, size: int) -> bool:
    for k in range(size):  # noqa: SIM110 - compiled
        if a[at + k] != b[begin + k]:
            return False
    return True


@numba.njit(cache=True)
def _count(
    text: np.ndarray, starts: np.ndarray, prefixed: bool, lines_apart: bool, slots: np.ndarray, kept: np.ndarray,
    used: np.ndarray, totals: np.ndarray, later: np.ndarray, fresh: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Add up the known counts of each text's pieces in `totals`; return how many rows of `later` and `fresh` are filled.

    A row of `later` is a piece whose count is not known: (text, -1, slot), or (text, begin, end) for one that is
    too long to be remembered or found the table full. `fresh` are the slots of pieces met for the first time.
    """
    mask = np.uint64(len(slots) - 1)
    most = len(slots) // 2
    n_later = n_fresh = 0
    for i in range(len(totals)):
        at, stop = starts[i], starts[i + 1]
        if lines_apart and at < stop and text[at] == _NEWLINE:
            totals[i] += 1  # the space put in front of the text, which is no part of the piece
        first = True
        while at < stop:
            end = _end_of_piece(text, at, stop, lines_apart)
            begin = at + 1 if prefixed and not first and text[at] == _SPACE else at
            first = False
            at = end
            size = end - begin
            code = _START
            for k in range(begin, end):
                code = (code ^ np.uint64(text[k])) * _TIMES
            slot = np.int64((code ^ (code >> _SIZE)) & mask)
            while size <= LONGEST and slots[slot, 1] != 0:
                if slots[slot, 0] == code:
                    packed = slots[slot, 1]
                    its = np.int64((packed >> _SIZE) & _SIZE_MASK)
                    if its == size and _same(kept, np.int64(packed & _BEGIN_MASK), text, begin, size):
                        break
                slot = (slot + 1) & np.int64(mask)
            if size <= LONGEST and slots[slot, 1] != 0:
                known = np.int64(slots[slot, 1] >> _COUNT)
                if known > 0:
                    totals[i] += known - 1
                    continue
                later[n_later, 0], later[n_later, 1], later[n_later, 2] = i, -1, slot
            elif size > LONGEST or used[0] == most or used[1] + size > len(kept):
                later[n_later, 0], later[n_later, 1], later[n_later, 2] = i, begin, end
            else:
                slots[slot, 0] = code
                slots[slot, 1] = np.uint64(used[1]) | (np.uint64(size) << _SIZE)
                for k in range(size):
                    kept[used[1] + k] = text[begin + k]
                used[0] += 1
                used[1] += size
                fresh[n_fresh] = slot
                n_fresh += 1
                later[n_later, 0], later[n_later, 1], later[n_later, 2] = i, -1, slot
            n_later += 1
    return n_later, n_fresh
