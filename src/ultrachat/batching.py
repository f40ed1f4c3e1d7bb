"""Rows of different lengths become batches: padded to the longest, sorted by length first, or packed.

A batch is a rectangle and dialogues are not, so with rows as they come a large part of it is padding.
A pack puts several whole rows one behind another. Rows of 5, 3 and 2 tokens, at most 8 to a pack:

    pack(rows, max_tokens=8)      [5 + 3 tokens], [2 tokens]
    input_ids                     a a a a a b b b          c c · · · · · ·
    position_ids                  0 1 2 3 4 0 1 2          0 1 0 1 2 3 4 5
    labels                        – a a a a – b b          – c – – – – – –

Positions that begin again are what tells transformers to mask rows from one another, and only in a
call with no attention mask and no cache (`use_cache=False`): an all-ones mask or a cache lets every
row read those in front of it, without a word. Some models ignore positions at any rate. Therefore
`keeps_apart` tries the very model, and where it says no, `ByLength` sorts rows so that little is padded.

Absent on purpose: cutting a row to fill a gap, since an answer would lose its question; and packing
while data streams in, since a pass over all lengths takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from ultrachat.errors import Stop
from ultrachat.prepared import Rows
from ultrachat.sections import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# ---- padded -----------------------------------------------------------------------------------


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Return a batch: `input_ids`, `labels`, `attention_mask`, int64 of (rows, longest row), padded right.

    The mask comes from the lengths and not from `ids != pad_id`, which would hide every real `</s>`
    of a model whose padding token is its end mark.

    Ours: the authors pad to the longest row too, with a token added for the purpose.
    """
    shape = (len(examples), max(example.n_tokens for example in examples))
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, IGNORE_INDEX),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for row, example in enumerate(examples):
        batch["input_ids"][row, : example.n_tokens] = torch.from_numpy(example.input_ids)
        batch["labels"][row, : example.n_tokens] = torch.from_numpy(example.labels)
        batch["attention_mask"][row, : example.n_tokens] = 1
    return batch


def padding_fraction(lengths: Sequence[int], micro_batch: int) -> float:
    """Return the share of padding when rows (or packs) of these lengths (tokens), in this order, are
    collated `micro_batch` at a time; 0 is none.

    Ours: says whether packing is worth it before anything is trained.
    """
    groups = [lengths[i : i + micro_batch] for i in range(0, len(lengths), micro_batch)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)


class ByLength(Sampler[int]):
    """The order of an epoch in which rows of like length (tokens) stand together, `batch` of them at a time.

    It is transformers' own: shuffled, cut into stretches of up to 50 batches, each sorted longest
    first, the longest row of all at the very front, so that memory runs out at once or never. The
    order depends on `seed` and the epoch alone, so a resumed run meets the rows as if never stopped;
    transformers' sampler draws from the global generator instead. Give as `batch` all rows of a step,
    those of all devices. Raises Stop without rows or with `batch` under 1.

    Ours: the fallback for models that cannot keep packed rows apart.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        if not len(lengths):
            raise Stop("lengths: no rows to put in order")
        if batch < 1:
            raise Stop(f"batch: expected at least 1 row, got {batch}")
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Trainer and accelerate call this by themselves.

        Ours: what makes resuming exact.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))

    def __len__(self) -> int:
        return len(self.lengths)


# ---- packed -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pack:
    """Whole rows that share one row of a batch.

    Ours: the authors train one row of up to 2,048 tokens per sequence, padded.
    """

    examples: tuple[Example, ...]

    @property
    def n_tokens(self) -> int:
        """The tokens of all its rows."""
        return sum(example.n_tokens for example in self.examples)

    @property
    def n_learnt_tokens(self) -> int:
        """How many of its tokens enter the loss; the first of a row never does, nothing predicts it."""
        return sum(int((example.labels[1:] != IGNORE_INDEX).sum()) for example in self.examples)


class Packs(Sequence[Pack]):
    """Packs of the rows of a Sequence; a row is read when its pack is asked for, as rows may be on disk.

    Ours: a million rows are packed by their lengths alone.
    """

    def __init__(self, examples: Sequence[Example], order: np.ndarray, ends: np.ndarray) -> None:
        self._examples, self._order, self._ends = examples, order, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: int | slice) -> Pack | list[Pack]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        end = self._ends[position]
        begin = self._ends[position - 1] if position % len(self) else 0
        return Pack(tuple([self._examples[row] for row in self._order[begin:end].tolist()]))


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Return the tokens of each row, (n,) int64, without reading rows that are on disk.

    Ours: see `prepared`.
    """
    if isinstance(examples, Rows):
        return examples.lengths
    return np.fromiter((example.n_tokens for example in examples), dtype=np.int64, count=len(examples))


def pack(examples: Sequence[Example], max_tokens: int) -> Packs:
    """Return packs of at most `max_tokens` that hold every row once, whole; the same ones every time.

    Best fit, longest rows first: a row goes where it leaves the least room, else into a new pack.
    Packs of long rows therefore come first, and training must shuffle packs as it shuffles rows.
    Raises Stop when a row is longer than `max_tokens`.

    Ours: at most about 11/9 of the fewest packs possible, and for dialogues hardly more than the fewest.
    """
    lengths = lengths_of(examples)
    too_long = np.flatnonzero(lengths > max_tokens)
    if len(too_long):
        row = too_long[0]
        raise Stop(f"examples: row {row} has {lengths[row]} tokens, expected at most max_tokens {max_tokens}")
    order = np.argsort(-lengths, kind="stable")
    numbers = np.array(_best_fit(lengths[order].tolist(), max_tokens), dtype=np.int64)
    return Packs(examples, order[np.argsort(numbers, kind="stable")], np.cumsum(np.bincount(numbers)))


def _best_fit(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return for each length, in the order given, the number of the pack it goes to."""
    numbers: list[int] = []
    n_packs = 0
    with_room: list[list[int]] = [[] for _ in range(max_tokens + 1)]  # packs by how many tokens still fit
    rooms = 0  # bit r is set where with_room[r] has a pack: a shift finds the smallest room that is enough
    for n_tokens in lengths:
        fitting = rooms >> n_tokens
        if fitting:
            room = n_tokens + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, number = max_tokens, n_packs
            n_packs += 1
        left = room - n_tokens
        with_room[left].append(number)
        rooms |= 1 << left
        numbers.append(number)
    return numbers


def fill_fraction(packs: Sequence[Pack], max_tokens: int) -> float:
    """Return the share of the packs' room, `max_tokens` each, that holds tokens; 1 is no gap.

    Ours: how good the packing is.
    """
    return sum(p.n_tokens for p in packs) / (len(packs) * max_tokens)


def collate_packed(packs: Sequence[Pack], pad_id: int, flat: bool = False) -> dict[str, Tensor | int]:
    """Return a batch: `input_ids`, `labels`, `position_ids`, int64 of (packs, longest pack), padded right.

    There is no `attention_mask`, since any would switch off the masking between rows: call the model
    with `use_cache=False`, which is Trainer's default. The padding of a pack is one more row, with
    nothing to learn. The first token of every row loses its label: the logits in front of it belong to
    the last token of the row before, and nothing may be predicted across the border.

    With `flat` all packs follow one another without padding as (1, tokens), with what variable-length
    kernels want: `cu_seq_lens_q` and `_k`, int32 of (rows + 1), where rows begin and the last one ends,
    and `max_length_q` and `_k`, the longest row, plain ints. Flash attention needs this form (in a batch
    of several packs it takes no notice of positions); others would build a mask of tokens x tokens.

    Ours: the flat form is that of transformers' DataCollatorWithFlattening.
    """
    longest = max(p.n_tokens for p in packs)
    rows: list[Example] = []
    for p in packs:
        rows += p.examples
        if not flat and p.n_tokens < longest:
            rows.append(_padding(longest - p.n_tokens, pad_id))
    lengths = np.array([row.n_tokens for row in rows])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    labels = np.concatenate([row.labels for row in rows])
    labels[starts] = IGNORE_INDEX
    columns = {
        "input_ids": np.concatenate([row.input_ids for row in rows]),
        "labels": labels,
        "position_ids": np.arange(ends[-1]) - np.repeat(starts, lengths),
    }
    shape = (1, -1) if flat else (len(packs), longest)
    batch = {name: torch.from_numpy(c.astype(np.int64)).view(shape) for name, c in columns.items()}
    if not flat:
        return batch
    borders, longest_row = torch.from_numpy(np.append(0, ends).astype(np.int32)), int(lengths.max())
    return batch | {
        "cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest_row, "max_length_k": longest_row,
    }  # fmt: skip


def _padding(n_tokens: int, pad_id: int) -> Example:
    return Example(np.full(n_tokens, pad_id, dtype=np.int32), np.full(n_tokens, IGNORE_INDEX, dtype=np.int32))


# ---- tried, not believed ----------------------------------------------------------------------


def keeps_apart(model: PreTrainedModel, flat: bool = False) -> bool:
    """Return whether the model, with the attention it was loaded with, gives packed rows what each gives alone.

    Two packs as `collate_packed` makes them (`flat` as it will be there) are run twice, with another row
    beside the same neighbour. The neighbour's logits must not change by a bit, for a masked token weighs
    exactly nothing; in bfloat16 a small leak would pass any tolerance. Then each row is run alone: its
    logits may differ by rounding, no more, or its positions were not its own. Call it within the autocast
    that training uses. Training mode is put back, and no random number is drawn from torch.

    Ours: whether positions are heeded depends on the architecture, its attention and the version.
    """
    vocab_size = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(vocab_size, size=22, dtype=np.int32)
    row, another, neighbour = (Example(p, p) for p in (ids[:15], (ids[:15] + 1) % vocab_size, ids[15:]))

    def packed(beside: Example) -> Tensor:
        packs = [Pack((beside, neighbour)), Pack((neighbour, beside))]  # equally long: no padding to skip
        return _logits(model, collate_packed(packs, 0, flat))

    with torch.no_grad(), evaluating(model):
        try:
            before, after = packed(row), packed(another)
        except TypeError:  # a forward that knows no position_ids
            return False
        alone = [_logits(model, collate([each], 0)) for each in (row, neighbour, neighbour, row)]
    neighbours = slice(row.n_tokens, -row.n_tokens)
    untouched = torch.equal(before[neighbours], after[neighbours])
    return untouched and _equal_but_rounding(before, torch.cat(alone))


def _logits(model: PreTrainedModel, batch: dict[str, Tensor | int]) -> Tensor:
    """Return the logits of a batch as (tokens, vocabulary), one row of it after the other."""
    device = next(model.parameters()).device
    batch = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()}
    return model(**batch, use_cache=False).logits.flatten(0, 1)


def _equal_but_rounding(found: Tensor, expected: Tensor) -> bool:
    """Compare logits of batches of different shapes, whose sums are taken in a different order."""
    # between rounding, which adds up over the layers, and wrong positions, which change about everything
    tolerance = torch.finfo(found.dtype).eps ** 0.5
    return bool((found - expected).float().norm() <= tolerance * expected.float().norm())


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for a while and leave every module in the mode it was in.

    Ours: a loss measured between two steps must not change the next one.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            # on a CPU bitsandbytes would pack 4-bit weights for inference only, without a way back: they
            # are kept from it whatever mode they are in, for a model that was just loaded is in none yet
            module.training = type(module).__name__ == "Linear4bit"
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
