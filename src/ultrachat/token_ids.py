"""Token ids of many texts, fast: words repeat, so each distinct piece of text goes to the tokenizer once.

    ids = TokenIds(tokenizer)                     # any Hugging Face tokenizer; it is left as it was
    ids.many(["Don't panic!", "</s>"])            # [array([3872, …]), array([…])], int32
    ids.many_flat(["Don't panic!", "</s>"])       # the same end to end, and where each text begins

The result is always that of `tokenizer(texts, add_special_tokens=False, split_special_tokens=True)`: what looks
like a special token in a text stays text. A text is cut where no token reaches across ("Don't| panic|!"), and
the ids of its pieces are joined. Where that is follows from two bytes that stand side by side: for LLaMA, whose
tokenizer merges characters over a whole text, they may be cut apart when no merge has them side by side; for
GPT-2 and its kin, whose pattern parts words first, when the pattern is sure to part them. Both is looked up in the
tokenizer and tried on `HARD_TEXTS`; tokenizers of other kinds get whole texts.

Absent on purpose: special tokens, labels and rows, which are the format's business.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numba
import numpy as np

from ultrachat.cuts import VISIBLE_SPACE, Rules, rules_of
from ultrachat.lexical import utf8_batches
from ultrachat.pieces import BYTES_A_PIECE, FULL, LONGEST, _same, _without_collector
from ultrachat.tokens import HARD_TEXTS, _without_surrogates

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

N_SLOTS = 1 << 20  # a table of 32 MB; half of the slots are used
TEXTS_AT_ONCE = 1_000  # of those that are not cut: their ids are Python numbers for a moment

_HASH, _BYTES, _IDS, _N_IDS = range(
    4
)  # the columns of a slot; bytes: where they begin << 8 | how many they are
_START, _TIMES = np.int64(14695981039346656037 - (1 << 64)), np.int64(1099511628211)  # FNV-1a


class TokenIds:
    """Texts to the ids that one tokenizer gives them, no special tokens added and none recognised.

    Ours: the authors' code tokenises every message anew; this gives the same (benchmarks/README.md).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pieces: _Pieces | None = None
        self._tokenizer = tokenizer
        if not tokenizer.is_fast:
            return
        # a call undoes the truncation that a tokenizer carries, and dropout is not for us to undo: so a copy
        self._tokenizer = copy.deepcopy(tokenizer)
        backend = self._tokenizer.backend_tokenizer
        if hasattr(backend.model, "dropout"):
            backend.model.dropout = None  # of merges: the same text would get other ids the second time
        expected = self._whole(HARD_TEXTS)  # which also takes truncation and padding off the copy
        rules = rules_of(backend)
        self._pieces = rules and _Pieces(backend, rules)
        if rules and not all(map(np.array_equal, self.many(HARD_TEXTS), expected)):
            self._pieces = None

    @property
    def remembers(self) -> bool:
        """Whether ids of pieces are remembered, or whole texts given to the tokenizer.

        Ours: what is not known to be exact is not done.
        """
        return self._pieces is not None

    def many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text: int32 arrays, parts of one.

        Ours: see `many_flat`, which makes no object for each text.
        """
        ids, starts = self.many_flat(texts)
        ends = starts.tolist()
        return [ids[begin:end] for begin, end in zip(ends[:-1], ends[1:], strict=True)]

    def many_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, starts): the ids of text i are `ids[starts[i]:starts[i + 1]]`; int32 and (n + 1,) int64.

        A lone surrogate (half a character) counts as a question mark, as no tokenizer accepts one.

        Ours: rows are put together from these without a Python object for each token.
        """
        if self._pieces is None:
            found = [
                _flat(self._whole(texts[begin : begin + TEXTS_AT_ONCE]))
                for begin in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        else:
            found = [self._pieces.ids(*batch) for batch in utf8_batches(self._pieces.spelt(texts), "replace")]
        n_ids = np.concatenate([np.zeros(1, np.int64), *(lengths for _, lengths in found)])
        return np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in found)]), np.cumsum(n_ids)

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text from the tokenizer itself."""
        return self._tokenizer(
            [_without_surrogates(text) for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return lists of ids end to end, int32, and their lengths, int64."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum())), lengths


# ---- pieces and their ids ---------------------------------------------------------------------


class _Pieces:
    """The ids of pieces met before, for one tokenizer that may be cut."""

    def __init__(self, backend: Tokenizer, rules: Rules) -> None:
        self._backend, self._rules = backend, rules
        self._slots = np.zeros((N_SLOTS, 4), np.int64)
        self._bytes = np.empty(N_SLOTS // 2 * BYTES_A_PIECE, np.uint8)
        self._used = np.zeros(2, np.int64)  # pieces and bytes
        self._ids = np.empty(N_SLOTS, np.int32)
        self._n_ids = 0

    def spelt(self, texts: Iterable[str]) -> Iterable[str]:
        """Yield texts with the space that the tokenizer puts in front of them, and all spaces alike."""
        _, front, space, _ = self._rules
        for text in texts:
            if space == VISIBLE_SPACE:
                text = text.replace(space, " ")  # a text may have it too
            if text and (front == "always" or front == "missing" and text[0] != " "):
                text = " " + text
            yield text

    def ids(self, buffer: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the texts `buffer[starts[i]:starts[i + 1]]` (UTF-8) end to end, and their numbers."""
        if self._used[0] > FULL * len(self._slots) / 2 or self._used[1] > FULL * len(self._bytes):
            self._forget()
        places, fresh = np.empty(len(buffer), np.int32), np.empty(len(buffer), np.int32)
        apart, firsts = np.empty((len(buffer), 2), np.int64), np.empty(len(starts), np.int64)
        n_fresh, n_apart = _locate(
            buffer, starts, self._rules.cuts, self._slots, self._bytes, self._used, places, firsts, apart, fresh
        )  # fmt: skip
        try:
            self._learn(fresh[:n_fresh], apart[:n_apart], buffer)
        except BaseException:  # Ctrl-C too: no piece must stay in the table without its ids
            self._forget()
            raise
        n_ids = _lengths(places, firsts, self._slots, apart)
        return _joined(places[: firsts[-1]], int(n_ids.sum()), self._slots, apart, self._ids), n_ids

    def _forget(self) -> None:
        self._slots.fill(0)
        self._used[:] = 0
        self._n_ids = 0

    def _learn(self, fresh: np.ndarray, apart: np.ndarray, buffer: np.ndarray) -> None:
        """Ask for the ids of new pieces: by their slots, to be remembered, and by their place in the text, not to be.

        The rows of `apart`, a place in the text, become a place among the ids: where they begin, how many they are.
        """
        if not len(fresh) and not len(apart):
            return
        begins, sizes = self._slots[fresh, _BYTES] >> 8, self._slots[fresh, _BYTES] & 0xFF
        base = int(begins[0]) if len(begins) else 0
        raw, text = self._bytes[base : int(self._used[1])].tobytes(), buffer.data
        spans = zip((begins - base).tolist(), (begins - base + sizes).tolist(), strict=True)
        with _without_collector():
            pieces = [raw[begin:end].decode() for begin, end in spans]
            pieces += [str(text[begin:end], "utf-8") for begin, end in apart.tolist()]
            new, n_new = _flat(self._asked(pieces))
        ends = self._n_ids + np.cumsum(n_new)
        if ends[-1] > len(self._ids):
            self._ids = np.concatenate([self._ids[: self._n_ids], np.empty(2 * ends[-1], np.int32)])
        self._ids[self._n_ids : ends[-1]] = new
        n_kept = len(fresh)
        self._slots[fresh, _IDS], self._slots[fresh, _N_IDS] = (ends - n_new)[:n_kept], n_new[:n_kept]
        apart[:, 0], apart[:, 1] = (ends - n_new)[n_kept:], n_new[n_kept:]
        if n_kept:  # those of `apart` will be written over
            self._n_ids = int(ends[n_kept - 1])

    def _asked(self, pieces: list[str]) -> list[list[int]]:
        """Return the ids of pieces, each as it stands within a text."""
        _, _, space, mergeable = self._rules
        alone = [mergeable.fullmatch(piece) is not None for piece in pieces]
        others = [piece for piece, is_alone in zip(pieces, alone, strict=True) if not is_alone]
        found = iter(self._backend.encode_batch_fast(others, add_special_tokens=False))
        merged = self._backend.model.tokenize
        return [
            [token.id for token in merged(piece.replace(" ", space))] if is_alone else next(found).ids
            for piece, is_alone in zip(pieces, alone, strict=True)
        ]


@numba.njit(cache=True)
def _slot_of(
    text: np.ndarray, begin: int, size: int, code: int, slots: np.ndarray, kept: np.ndarray
) -> int:  # fmt: skip
    """Return the slot of the piece `text[begin:begin + size]` whose hash is `code`, a free one where it has none."""
    mask = np.int64(len(slots) - 1)
    slot = (code ^ (code >> 32)) & mask
    while slots[slot, _BYTES] != 0:
        packed = slots[slot, _BYTES]
        alike = slots[slot, _HASH] == code and packed & 0xFF == size
        if alike and _same(kept, packed >> 8, text, begin, size):
            break
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True)
def _locate(
    text: np.ndarray, starts: np.ndarray, cuts: np.ndarray, slots: np.ndarray, kept: np.ndarray, used: np.ndarray,
    places: np.ndarray, firsts: np.ndarray, apart: np.ndarray, fresh: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Write where the ids of each text's pieces are to be found; return how much of `fresh` and `apart` is filled.

    A place is a slot, or -1 - a row of `apart`: (begin, end) in the text of a piece that is too long to be
    remembered or found the table full. `fresh` are the slots of pieces met for the first time; text i has the
    places from `firsts[i]` to `firsts[i + 1]`.
    """
    n_places = n_fresh = n_apart = 0
    for i in range(len(starts) - 1):
        at, stop = starts[i], starts[i + 1]
        firsts[i] = n_places
        while at < stop:
            begin, previous = at, text[at]
            code = (_START ^ np.int64(previous)) * _TIMES
            at += 1
            while at < stop and not cuts[previous, text[at]]:
                previous = text[at]
                code = (code ^ np.int64(previous)) * _TIMES
                at += 1
            size = at - begin
            slot = _slot_of(text, begin, size, code, slots, kept) if size <= LONGEST else -1
            if slot >= 0 and slots[slot, _BYTES] == 0:
                if used[0] < len(slots) // 2 and used[1] + size <= len(kept):
                    slots[slot, _HASH], slots[slot, _BYTES] = code, used[1] << 8 | size
                    kept[used[1] : used[1] + size] = text[begin:at]
                    used[0], used[1] = used[0] + 1, used[1] + size
                    fresh[n_fresh] = slot
                    n_fresh += 1
                else:
                    slot = -1
            if slot < 0:
                apart[n_apart, 0], apart[n_apart, 1] = begin, at
                n_apart += 1
                slot = -n_apart
            places[n_places] = slot
            n_places += 1
    firsts[-1] = n_places
    return n_fresh, n_apart


@numba.njit(cache=True)
def _lengths(places: np.ndarray, firsts: np.ndarray, slots: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Return the number of ids of each text, (n,) int64, by the places that `_locate` wrote."""
    lengths = np.zeros(len(firsts) - 1, np.int64)
    for i in range(len(lengths)):
        for k in range(firsts[i], firsts[i + 1]):
            place = places[k]
            lengths[i] += slots[place, _N_IDS] if place >= 0 else apart[-1 - place, 1]
    return lengths


@numba.njit(cache=True)
def _joined(places: np.ndarray, n: int, slots: np.ndarray, apart: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the n ids of all places end to end, int32."""
    joined = np.empty(n, np.int32)
    at = 0
    for place in places:
        if place >= 0:
            begin, n_ids = slots[place, _IDS], slots[place, _N_IDS]
        else:
            begin, n_ids = apart[-1 - place, 0], apart[-1 - place, 1]
        for k in range(n_ids):
            joined[at + k] = ids[begin + k]
        at += n_ids
    return joined
