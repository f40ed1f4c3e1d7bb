"""UltraLLaMA: a base model is fine-tuned on Examples, in full or through LoRA, by Hugging Face's Trainer.

Every number of a run stands in one frozen record (`recipes`), and the number of steps is computed from the data:

    result = finetune(examples, held_out, base="huggyllama/llama-13b", out_dir=folder, recipe=PAPER)
    result.log    # ({"step": 0, "loss": None, "eval_loss": 1.9, …}, {"step": 25, "loss": 1.8, …}, …)

A run that was killed goes on from its newest complete checkpoint when it is called again with the
same arguments; with others it stops and names the difference. A finished run is read back (`checkpoints`).

Under `torchrun` every process calls `finetune` alike: the batch is divided among them, the first one writes.
`fsdp` shares out the model too, and is refused where the Trainer would quietly not do so.

Absent on purpose: a training loop of our own, and mixing data sets.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.integrations import TensorBoardCallback

from ultrachat import checkpoints
from ultrachat.batching import pack
from ultrachat.chatmodels import load_tokenizer
from ultrachat.errors import Stop
from ultrachat.prepared import Rows
from ultrachat.recipes import Recipe
from ultrachat.runs import sha256_of, write_text
from ultrachat.sections import Example
from ultrachat.trainer import arguments_of, make_trainer, prepare_model


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a run: where the model is, and what it took.

    `log` has a row per logged step with `step`, `loss` (training loss per learnt token, averaged
    since the row before) and `eval_loss` (held-out loss per learnt token), None where not measured,
    and the held-out loss by round and sector where there is one (`eval_round_1` …). `n_tokens` counts
    what was read, padding left out; `seconds` is the wall time of the last call; `wrapped_in` is the class
    that divides the work among processes, "" for one.

    Ours: plain numbers, to be plotted.
    """

    folder: str
    n_steps: int
    n_tokens: int
    n_parameters: int
    n_trainable: int
    seconds: float
    resumed_from_step: int
    wrapped_in: str
    log: tuple[dict[str, float | None], ...]


def finetune(
    examples: Sequence[Example],
    held_out: Sequence[Example],
    base: Path | str,
    out_dir: Path | str,
    recipe: Recipe,
    report_to: str = "tensorboard",
    chat_template: str | None = None,
) -> TrainingResult:
    """Fine-tune `base` (folder or hub id) on the Examples, save the model in `out_dir`, return the result.

    The rows must have been encoded with the base's own tokenizer, which is saved along, with
    `chat_template` for its own if given: then the folder says how it wants to be asked. With LoRA
    the folder holds the adapter only; `chatmodels.load` opens either. `report_to` is "tensorboard"
    (in `out_dir`), "wandb" or "none". Raises Stop when the base cannot be loaded, there is nothing to
    learn, a token is not in its vocabulary, or `out_dir` holds an unfinished run with another recipe,
    base or data.

    Paper: §4.6.
    """
    base = str(base)
    tokenizer, made_of = load_tokenizer(base), content_of(base)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        made_of += f", asked by template {content_hash([chat_template.encode()])}"
    make_model = partial(prepare_model, base, recipe)
    return train(make_model, tokenizer, examples, held_out, Path(out_dir), recipe, made_of, report_to)


# ---- one run in one folder --------------------------------------------------------------------


def train(
    make_model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    folder: Path,
    recipe: Recipe,
    base: str,
    report_to: str = "tensorboard",
) -> TrainingResult:
    """Train the model that `make_model` returns, save it and return the result; go on where a call was cut off.

    `base` names what the model was made of. Raises Stop as `finetune` does.

    Ours: what pre-training the tiny base and fine-tuning have in common.
    """
    _check(examples, len(tokenizer))
    rows = pack(examples, recipe.pack_tokens) if recipe.batching == "packed" else examples
    arguments = arguments_of(folder, recipe, len(rows), report_to)
    identity = asdict(recipe) | {"base": base, "examples": _digest(examples), "held_out": _digest(held_out)}
    identity = json.loads(json.dumps(identity))  # as it is read back
    if (kept := checkpoints.finished(folder, identity)) is not None:
        if arguments.process_index == 0:  # a kill may have come before they were deleted
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return TrainingResult(**kept | {"folder": str(folder), "log": tuple(kept["log"])})
    with arguments.main_process_first(local=False):  # the others find the folder ready
        if arguments.process_index == 0:
            make_ready(folder, identity)
    checkpoint, _ = checkpoints.newest_complete(folder)
    began = time.monotonic()
    set_seed(recipe.seed)
    loggers = []
    if report_to == "tensorboard" and arguments.process_index == 0:
        from torch.utils.tensorboard import SummaryWriter

        loggers = [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))]
    trainer = make_trainer(make_model(), tokenizer, rows, held_out, arguments, recipe, loggers)
    n_trainable, n_parameters = count_parameters(trainer.model)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    result = TrainingResult(
        folder=str(folder),
        n_steps=trainer.state.global_step,
        n_tokens=int(trainer.state.num_input_tokens_seen),
        n_parameters=n_parameters,
        n_trainable=n_trainable,
        seconds=time.monotonic() - began,
        resumed_from_step=checkpoints.step_of(checkpoint) if checkpoint else 0,
        wrapped_in=_wrapper(trainer),
        log=_log(trainer.state.log_history),
    )
    _save(trainer, tokenizer, folder)
    if arguments.process_index == 0:
        write_text(folder / "result.json", json.dumps(asdict(result), indent=1))  # last: all of it is there
        shutil.rmtree(folder / "checkpoints")
    trainer.accelerator.wait_for_everyone()
    return result


def make_ready(folder: Path, identity: dict[str, Any]) -> None:
    """Make a run's folder ready to begin or go on in, and say which checkpoints were cut short.

    Raises Stop when it holds an unfinished run of another identity.

    Ours: what every kind of training begins with.
    """
    checkpoint, cut_short = checkpoints.newest_complete(folder)
    checkpoints.begin(folder, identity)
    if cut_short:
        where = f"goes on from {checkpoint.name}" if checkpoint else "starts anew"
        print(f"{folder}: {', '.join(c.name for c in cut_short)} was cut short; training {where}", flush=True)
    for one in cut_short:  # written once more, it must not have a mark before it is whole
        shutil.rmtree(one, ignore_errors=True)


def _wrapper(trainer: Trainer) -> str:
    """Return the class that divides the work among processes; FSDP2 makes the model itself of another class."""
    wrapped = trainer.model_wrapped
    is_wrapped = wrapped is not trainer.model or trainer.is_fsdp_enabled
    return type(wrapped).__name__ if is_wrapped else ""


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model and its tokenizer, gathered from all processes, by the first of them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        model.save_pretrained(str(folder), state_dict=state)
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # peft's says nothing; `modelcard` writes one


def _check(examples: Sequence[Example], vocab_size: int) -> None:
    if isinstance(examples, Rows):
        learns, largest = examples.report.n_learnt_tokens > 0, examples.largest_id
    else:
        learns = any(example.n_learnt_tokens for example in examples)
        largest = max((int(example.input_ids.max()) for example in examples), default=-1)
    if not learns:
        raise Stop("examples: no token to learn in any of them")
    if largest >= vocab_size:
        raise Stop(
            f"examples: token id {largest} is outside the base's vocabulary of {vocab_size}; was its tokenizer used?"
        )


def _digest(examples: Sequence[Example]) -> str:
    if isinstance(examples, Rows):
        return examples.digest
    return content_hash(
        part
        for e in examples
        for part in (e.input_ids.tobytes(), e.labels.tobytes(), f"{e.first_round} {e.sector}".encode())
    )


def content_hash(parts: Iterable[bytes]) -> str:
    """Return the first 16 hex digits of the sha256 of all parts.

    Ours: names a run's data and weights.
    """
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()[:16]


def content_of(base: str) -> str:
    """Return the name of a base by what is in it: a local folder also by its weights, a hub id by itself.

    Ours: a folder's weights can change under its name.
    """
    weights = sorted(Path(base).glob("*.safetensors"))
    return f"{base} ({content_hash(sha256_of(path).encode() for path in weights)})" if weights else base


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many of a model's parameters are trained, and how many there are.

    Ours: printed with every run.
    """
    if hasattr(model, "get_nb_trainable_parameters"):  # peft's also counts 4-bit weights right
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def _log(history: Iterable[dict[str, Any]]) -> tuple[dict[str, float | None], ...]:
    """Merge the Trainer's history into one row per step; its last entry, a summary, has neither loss."""
    rows: dict[int, dict[str, float | None]] = {}
    for entry in history:
        found = {
            name: float(value) for name, value in entry.items() if name == "loss" or name.startswith("eval_")
        }
        if found:
            row = rows.setdefault(entry["step"], {"step": entry["step"], "loss": None, "eval_loss": None})
            row.update(found)
    return tuple(rows[step] for step in sorted(rows))
