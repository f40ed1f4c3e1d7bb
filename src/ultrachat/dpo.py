"""Preference training (DPO) with TRL's trainer on our token ids, and how often a model prefers the chosen answer.

    pairs, report = encode_pairs(preferences, Encoder(tokenizer), max_tokens=1024)
    before = preference_accuracy(model, pairs)
    result = train_preferences(pairs, held_out_pairs, base, folder, CAPO)
    after = preference_accuracy(load(folder)[0], pairs)

For the pair (y+, y-) of a prompt x the loss, with the base as the reference, is

    -log sigmoid( beta * ( log p(y+|x) - log base(y+|x)  -  log p(y-|x) + log base(y-|x) ) )

summed over the answer's tokens, its end mark included. It begins at ln 2 = 0.693 for every pair.

TRL (1.16) makes token ids itself, from text: its `DPOTrainer` has no way in for ids, its tokenizer turns a `</s>`
that somebody typed into the end mark, and formats without a chat template it does not know. So one of its methods
(`_prepare_dataset`) is replaced by one that leaves the ids alone, and a test holds its batches against ours.

Absent on purpose: cutting (a pair that is too long loses its oldest rounds, or is left out; both are counted), and
more than one GPU.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultrachat.errors import Stop
from ultrachat.intervals import rate_interval
from ultrachat.preferences import KINDS, Preference
from ultrachat.recipes import Recipe
from ultrachat.runs import write_text
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.sft import Encoder

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import DPOTrainer

CAPO = Recipe(
    lr=5e-6, epochs=1, batch=32, micro_batch=2, warmup_fraction=0.1, lora_rank=16, bf16=True,
    gradient_checkpointing=True, n_evaluations=4,
)  # fmt: skip
"""For a model of billions of parameters on one GPU. All of it is ours and not measured: Parrot's settings are not
known to us. DPO is usually done at a small fraction of the rate a model was fine-tuned with."""
BETA = 0.1  # TRL's default, and the one used most


# ---- pairs to ids -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pair:
    """A prompt and two answers as int32 ids, (tokens,) each; an answer ends with its end mark.

    Ours: what TRL's collator joins, and what `logprobs` is asked with.
    """

    kind: str
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def n_tokens(self) -> int:
        """The length of the longer of the two rows."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class PairReport:
    """What became of `n` pairs: `n_shortened` lost their oldest rounds, `n_left_out` had no room for the one before.

    Ours: nothing is cut without a count.
    """

    n: int
    n_shortened: int
    n_left_out: int


def encode_pairs(
    preferences: Iterable[Preference], encoder: Encoder, max_tokens: int
) -> tuple[list[Pair], PairReport]:
    """Return the pairs as ids in the encoder's format, none of its rows longer than `max_tokens`, and the report.

    A pair that is too long is tried without its first round, then without its first two …; at least the round
    before the question stays, where there is one. Raises Stop when the encoder learns the user's side.

    Ours: the format is the one the base was trained in, whichever that is.
    """
    if encoder.learn != "assistant":
        raise Stop(
            f"encoder: learns the {encoder.learn}'s side, expected the assistant's, whose answers are compared"
        )
    preferences = list(preferences)
    found: list[Pair] = []
    n_shortened = 0
    for preference in preferences:
        last = len(preference.messages) // 2  # the question's round, from 0
        for begin in range(max(last, 1)):
            pair = _encode(preference, encoder, begin)
            if pair.n_tokens <= max_tokens:
                found.append(pair)
                n_shortened += begin > 0
                break
    return found, PairReport(len(preferences), n_shortened, len(preferences) - len(found))


def _encode(preference: Preference, encoder: Encoder, begin: int) -> Pair:
    """Encode a pair without the rounds before `begin`."""
    rows = []
    for answer in (preference.chosen, preference.rejected):
        rounds = preference.dialogue(answer).rounds
        rows.append(encoder.sections(rounds, begin=begin, start=len(rounds) - 1))
    examples = encoder.assemble(rows)
    starts, ends = zip(*map(_learnt_span, examples), strict=True)
    # where an answer's first token takes in a character before it, the shorter of the two prompts is what both share
    n = min(starts)
    chosen, rejected = (example.input_ids for example in examples)
    if not np.array_equal(chosen[:n], rejected[:n]):
        raise Stop(
            f"preference {preference.id}: its prompt has other tokens before each answer, expected the same"
        )
    return Pair(preference.kind, chosen[:n], chosen[n : ends[0]], rejected[n : ends[1]])


def _learnt_span(example: Example) -> tuple[int, int]:
    """Where the one learnt message begins, and where its end mark ends; a template may write more after it."""
    learnt = np.flatnonzero(example.labels != IGNORE_INDEX)
    return int(learnt[0]), int(learnt[-1]) + 1


# ---- measuring --------------------------------------------------------------------------------


def preference_accuracy(model: PreTrainedModel, pairs: Sequence[Pair]) -> DataFrame:
    """Return how often the model finds the chosen answer likelier, one row by kind and one for all.

    Columns: `pairs`; `margin`, by how much the chosen answer's mean log-probability of a token is the higher one
    (nats, mean over pairs); `total`, the share of pairs whose chosen answer has the higher log-probability (what DPO
    trains), with its 95 % interval `total_low`, `total_high`; `per_token` the same for the mean over an answer's
    tokens, with `per_token_low`, `per_token_high`. Of a much longer answer the total is nearly always lower,
    so read both. The intervals take pairs as independent; those of one question share its chosen answer.

    Ours: CaPO is judged by MT-Bench; this asks what was trained.
    """
    import pandas

    scores = _scores(model, pairs)
    lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs]).reshape(-1, 2)
    wins = {"total": scores[:, 0] > scores[:, 1]}
    means = scores / lengths
    wins["per_token"] = means[:, 0] > means[:, 1]
    kinds = np.array([pair.kind for pair in pairs], object)
    rows = {}
    for kind in [kind for kind in KINDS if kind in kinds] + ["all"]:
        chosen = np.full(len(pairs), True) if kind == "all" else kinds == kind
        margins = means[chosen, 0] - means[chosen, 1]
        row = {"pairs": len(margins), "margin": margins.mean() if len(margins) else np.nan}
        for name, won in wins.items():
            k, n = int(won[chosen].sum()), len(margins)
            low, high = rate_interval(k, n)
            row |= {name: k / n if n else np.nan, f"{name}_low": low, f"{name}_high": high}
        rows[kind] = row
    return pandas.DataFrame.from_dict(rows, orient="index").astype({"pairs": int}).rename_axis("kind")


def _scores(model: PreTrainedModel, pairs: Sequence[Pair]) -> np.ndarray:
    """The log-probability of each pair's two answers in nats, (pairs, 2)."""
    from ultrachat.logprobs import continuation_logprobs

    rows = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    return continuation_logprobs(model, rows).reshape(-1, 2)


# ---- training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferenceResult:
    """What came out of a run: where the model is, and what it took.

    `log` has a row per logged step: `step`, and as far as measured then `loss`, `accuracy` (share of pairs whose
    chosen answer gained more on the base than the rejected one; 0 before the first step, when none gained) and
    `margin` (by how much, times beta, in nats), all since the row before; those of the held-out pairs begin with
    `eval_`.

    Ours: plain numbers, to be plotted.
    """

    folder: str
    n_steps: int
    n_pairs: int
    n_parameters: int
    n_trainable: int
    seconds: float
    resumed_from_step: int
    log: tuple[dict[str, float], ...]


def train_preferences(
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    base: Path | str,
    out_dir: Path | str,
    recipe: Recipe = CAPO,
    beta: float = BETA,
) -> PreferenceResult:
    """Train `base` (folder or hub id) by DPO on the pairs, save it in `out_dir`, return the result.

    The pairs must have been encoded with the base's own tokenizer, which is saved along, in the format it was
    trained in. The reference is the base as it is; with LoRA that is the model with its matrices switched off, and
    the folder holds the adapter only (`chatmodels.load` opens either). A finished run is read back, an unfinished
    one goes on from its newest whole checkpoint. `held_out` may be empty. Raises Stop when trl is not installed,
    there is no pair, a token is not in the vocabulary, the recipe asks for what this does not do, or `out_dir` holds
    an unfinished run with another recipe, base or data.

    Ours: Parrot's CaPO is DPO as well (second-hand), of a 13B model.
    """
    from transformers import set_seed

    from ultrachat import checkpoints
    from ultrachat.chatmodels import load_tokenizer
    from ultrachat.training import count_parameters, make_ready

    base, folder = str(base), Path(out_dir)
    tokenizer = load_tokenizer(base)
    _check(pairs, held_out, len(tokenizer), recipe, beta)
    identity = _identity(pairs, held_out, base, recipe, beta)
    if (kept := checkpoints.finished(folder, identity)) is not None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a kill may have come before
        return PreferenceResult(**kept | {"folder": str(folder), "log": tuple(kept["log"])})
    make_ready(folder, identity)
    checkpoint, _ = checkpoints.newest_complete(folder)
    began = time.monotonic()
    set_seed(recipe.seed)
    trainer = _make_trainer(base, pairs, held_out, folder, recipe, beta)
    n_trainable, n_parameters = count_parameters(trainer.model)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    _save(trainer.model, tokenizer, folder)
    result = PreferenceResult(
        folder=str(folder),
        n_steps=trainer.state.global_step,
        n_pairs=len(pairs),
        n_parameters=n_parameters,
        n_trainable=n_trainable,
        seconds=time.monotonic() - began,
        resumed_from_step=checkpoints.step_of(checkpoint) if checkpoint else 0,
        log=_log(trainer.state.log_history),
    )
    write_text(folder / "result.json", json.dumps(asdict(result), indent=1))  # last: all of it is there
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _identity(
    pairs: Sequence[Pair], held_out: Sequence[Pair], base: str, recipe: Recipe, beta: float
) -> dict[str, Any]:
    """Return what tells this run from any other, as it is read back from a file."""
    from ultrachat.training import content_of

    made_of = {"method": "dpo", "beta": beta, "base": content_of(base)}
    made_of |= {"pairs": _digest(pairs), "held_out": _digest(held_out)}
    return json.loads(json.dumps(asdict(recipe) | made_of))


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.config.use_cache = True
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's says nothing


def _check(
    pairs: Sequence[Pair], held_out: Sequence[Pair], vocab_size: int, recipe: Recipe, beta: float
) -> None:
    if importlib.util.find_spec("trl") is None:
        raise Stop("train_preferences: needs trl, which is not installed (pip install '.[preference]')")
    if not pairs:
        raise Stop("pairs: none to learn from")
    largest = max(int(ids.max()) for p in [*pairs, *held_out] for ids in (p.prompt, p.chosen, p.rejected))
    if largest >= vocab_size:
        raise Stop(
            f"pairs: token id {largest} is outside the base's vocabulary of {vocab_size}; was its tokenizer used?"
        )
    if not beta > 0:
        raise Stop(f"beta: expected more than 0, got {beta}")
    for name, wanted in (("batching", "padded"), ("liger", False), ("compile", False), ("fsdp", False)):
        if getattr(recipe, name) != wanted:
            raise Stop(f"{name}: not done in preference training, expected {wanted!r}")


def _digest(pairs: Sequence[Pair]) -> str:
    from ultrachat.training import content_hash

    return content_hash(
        part
        for pair in pairs
        for ids in (pair.prompt, pair.chosen, pair.rejected)
        for part in (len(ids).to_bytes(8), ids.astype(np.int32).tobytes())
    )


def _make_trainer(
    base: str, pairs: Sequence[Pair], held_out: Sequence[Pair], folder: Path, recipe: Recipe, beta: float
) -> DPOTrainer:
    """Return TRL's trainer on our ids, in float32 or as the recipe says, silent but for its milestones."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig

    from ultrachat.chatmodels import load, load_tokenizer, max_context_tokens
    from ultrachat.trainer import arguments_of, prepare_model

    plain = arguments_of(folder, recipe, len(pairs), "none")
    if plain.world_size > 1 or plain.n_gpu > 1:
        n = max(plain.world_size, plain.n_gpu)
        raise Stop(f"devices: found {n}, expected one (CUDA_VISIBLE_DEVICES=0, no torchrun)")
    given = {name: getattr(plain, name) for name in _ARGUMENTS}
    size = plain.per_device_train_batch_size
    arguments = DPOConfig(
        **given, beta=beta, max_length=None, per_device_eval_batch_size=size, eval_on_start=bool(held_out)
    )
    model = prepare_model(base, recipe)
    longest, limit = max(pair.n_tokens for pair in [*pairs, *held_out]), max_context_tokens(model)
    if limit is not None and longest > limit:
        raise Stop(f"pairs: the longest has {longest} tokens, expected at most the model's {limit}")
    # all weights are trained: the base once more. With LoRA it is the same model with its matrices switched off
    reference = None if recipe.lora_rank else load(base, dtype="float32", device=str(model.device))[0]
    trainer = _on_our_ids()(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list([_row(pair) for pair in pairs]),
        eval_dataset=Dataset.from_list([_row(pair) for pair in held_out]) if held_out else None,
        processing_class=load_tokenizer(base),  # TRL gives one without a padding token another
        callbacks=[_milestones(arguments.max_steps, recipe.n_evaluations, bool(held_out))],
    )
    if recipe.lora_rank:  # TRL's copy of the new matrices, which change nothing yet: switched off is the same
        trainer.model.delete_adapter("ref")
    trainer.remove_callback(PrinterCallback)
    return trainer


def _on_our_ids() -> type[DPOTrainer]:
    """Return TRL's trainer with three methods changed."""
    from trl import DPOTrainer

    class OnOurIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset  # TRL would make the ids itself, from text

        def _send_telemetry(self) -> None:
            """TRL counts its users; ours are not counted."""

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """TRL's says what stands in every one; it would be written into each checkpoint."""

    return OnOurIds


def _milestones(n_steps: int, n_evaluations: int, measures: bool) -> TrainerCallback:
    """Return what saves, and measures where there is something to measure with, at evenly spread steps."""
    from ultrachat.trainer import Milestones

    class Steps(Milestones):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            control.should_evaluate = control.should_evaluate and measures

    return Steps(n_steps, n_evaluations)


# of `trainer.arguments_of`, so that both kinds of training take a recipe in the same way
_ARGUMENTS = (
    "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16",
    "activation_checkpointing", "use_cpu", "seed", "logging_steps",
    "save_strategy", "dataloader_pin_memory", "disable_tqdm", "report_to",
)  # fmt: skip


def _row(pair: Pair) -> dict[str, list[int]]:
    return {f"{name}_ids": getattr(pair, name).tolist() for name in ("prompt", "chosen", "rejected")}


def _log(history: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], ...]:
    """Merge the trainer's history into one row per step; its last entry, a summary, has none of these."""
    names = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    names |= {f"eval_{theirs}": f"eval_{ours}" for theirs, ours in names.items()}
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        found = {ours: float(entry[theirs]) for theirs, ours in names.items() if theirs in entry}
        if found:
            rows.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    return tuple(rows[step] for step in sorted(rows))
