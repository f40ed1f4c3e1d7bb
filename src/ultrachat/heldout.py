"""The held-out loss: of all learnt tokens, of each round of a dialogue, of each sector.

    {"loss": 1.93, "round_1": 2.10, "round_2": 1.84, …, "questions_about_the_world": 1.71, …}

Later rounds have more to go by, and the sectors differ in how free an answer is, so one mean hides what a
model has learnt. Every learnt token weighs alike, however it was batched (a Trainer's own mean of batch means
does not). With several processes each takes every n-th batch, and sums are added up.

Absent on purpose: accuracy, and rounds beyond the tenth apart (`ROUNDS_APART`): few dialogues have them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as distributed

from ultrachat.batching import collate, evaluating
from ultrachat.sections import IGNORE_INDEX, Example

ROUNDS_APART = 10


def held_out_loss(
    model: torch.nn.Module, examples: Sequence[Example], pad_id: int, batch_size: int = 8
) -> float:
    """Return the mean cross-entropy per learnt token over all Examples, in nats; NaN without any.

    Paper: §4.6 ("standard cross-entropy loss"); on held-out dialogues it is ours.
    """
    return held_out_losses(model, examples, pad_id, batch_size)["loss"]


def held_out_losses(
    model: torch.nn.Module, examples: Sequence[Example], pad_id: int, batch_size: int = 8
) -> dict[str, float]:
    """Return mean cross-entropies per learnt token in nats: "loss" (all), "round_1" …, and each sector.

    Rounds from the tenth on are "round_10". NaN where nothing is learnt. The model is left in the mode it was in.

    Ours: the paper prints no loss.
    """
    names = ["loss", *_round_names(examples), *sorted({e.sector for e in examples if e.sector})]
    sums = np.zeros((len(names), 2))
    with torch.no_grad(), evaluating(model):
        for rows, weight in _my_batches(examples, batch_size):
            for name, values in _by_name(model, rows, pad_id):
                sums[names.index(name)] += weight * np.array([values.sum(), len(values)])
    sums = _over_processes(sums, next(model.parameters()).device)
    return {name: total / n if n else float("nan") for name, (total, n) in zip(names, sums, strict=True)}


def _round_names(examples: Sequence[Example]) -> list[str]:
    last = max((e.first_round + len(_runs(e)[0]) for e in examples), default=0)
    return [f"round_{number}" for number in range(1, min(last, ROUNDS_APART) + 1)]


def _runs(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Where each learnt message begins, and which of them each learnt token belongs to."""
    learnt = example.labels != IGNORE_INDEX
    learnt[:1] = False  # nothing predicts the first token
    begins = learnt & ~np.concatenate([[False], learnt[:-1]])
    return np.flatnonzero(begins), (np.cumsum(begins) - 1)[learnt]


def _by_name(model: torch.nn.Module, rows: Sequence[Example], pad_id: int):
    """Yield the losses of the learnt tokens of some rows, under each name they count for."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(rows, pad_id).items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1]  # position i predicts token i + 1
    for row, its_labels, its_logits in zip(rows, labels, logits, strict=True):
        learnt = its_labels != IGNORE_INDEX
        losses = torch.nn.functional.cross_entropy(
            its_logits[learnt].float(), its_labels[learnt], reduction="none"
        )
        losses = losses.double().cpu().numpy()
        yield "loss", losses
        if row.sector:
            yield row.sector, losses
        rounds = np.minimum(_runs(row)[1] + row.first_round + 1, ROUNDS_APART)
        for number in np.unique(rounds):
            yield f"round_{number}", losses[rounds == number]


def _my_batches(examples: Sequence[Example], batch_size: int):
    """Yield this process's batches and their weights; all processes have as many, for they compute in step."""
    n_processes = distributed.get_world_size() if distributed.is_initialized() else 1
    mine = distributed.get_rank() if distributed.is_initialized() else 0
    starts = list(range(0, len(examples), batch_size))
    for first in range(0, len(starts), n_processes):
        position = first + mine
        start = starts[min(position, len(starts) - 1)]  # one too many counts nothing
        yield (
            [examples[i] for i in range(start, min(start + batch_size, len(examples)))],
            position < len(starts),
        )


def _over_processes(sums: np.ndarray, device: torch.device) -> np.ndarray:
    if not distributed.is_initialized():
        return sums
    total = torch.from_numpy(sums).to(device)
    distributed.all_reduce(total)
    return total.cpu().numpy()
