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
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from ultrachat import checkpoints
from ultrachat.batching import ByLength, Pack, collate, collate_packed, keeps_apart, lengths_of, pack
from ultrachat.chatmodels import load, load_tokenizer
from ultrachat.errors import Stop
from ultrachat.heldout import held_out_losses
from ultrachat.prepared import Rows
from ultrachat.recipes import Recipe, schedule
from ultrachat.runs import sha256_of, write_text
from ultrachat.sections import Example

transformers_logging.disable_progress_bar()  # a bar for every checkpoint is noise in a notebook
LOGGERS = ("tensorboard", "wandb", "none")


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
) -> TrainingResult:
    """Fine-tune `base` (folder or hub id) on the Examples, save the model in `out_dir`, return the result.

    The rows must have been encoded with the base's own tokenizer, which is saved along. With LoRA
    the folder holds the adapter only; `chatmodels.load` opens either. `report_to` is "tensorboard"
    (in `out_dir`), "wandb" or "none". Raises Stop when the base cannot be loaded, there is nothing to
    learn, a token is not in its vocabulary, or `out_dir` holds an unfinished run with another recipe,
    base or data.

    Paper: §4.6.
    """
    base = str(base)
    tokenizer = load_tokenizer(base)
    make_model = partial(_prepare, base, recipe)
    return train(
        make_model, tokenizer, examples, held_out, Path(out_dir), recipe, content_of(base), report_to
    )


def _prepare(base: str, recipe: Recipe) -> PreTrainedModel:
    """Load the base, and for LoRA freeze it and put trainable low-rank matrices beside its weights."""
    # all weights are trained in float32 (bf16 only computes); a frozen base may be kept in bf16
    dtype = "bfloat16" if recipe.bf16 and recipe.lora_rank else "float32"
    model, _ = load(
        base,
        dtype=dtype,
        load_in_4bit=recipe.load_in_4bit,
        device=_device(recipe),
        attention=recipe.attention,
    )
    model.config.use_cache = False
    if not recipe.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if recipe.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()  # else the frozen embeddings pass no gradient to a checkpoint
    targets = recipe.lora_targets if isinstance(recipe.lora_targets, str) else list(recipe.lora_targets)
    lora = LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=recipe.lora_dropout,
        target_modules=targets, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, lora)


def _device(recipe: Recipe) -> str:
    """Where this process's model is loaded: its own GPU, or main memory if no GPU can hold it whole."""
    if recipe.fsdp or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


class _Trainer(Trainer):
    """Trainer with our held-out loss, a count of the tokens read, and rows grouped by length if asked."""

    def __init__(self, lengths: Sequence[int] | None, pad_id: int, **kwargs: Any) -> None:
        self._lengths, self._pad_id = lengths, pad_id
        super().__init__(**kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        size = self.args.per_device_train_batch_size
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            losses = held_out_losses(self.model, self.eval_dataset, self._pad_id, size)
        metrics = {f"eval_{name}": value for name, value in losses.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        # the Trainer's own count takes the padding of a packed row for tokens
        self.state.num_input_tokens_seen += int(self.accelerator.gather(inputs.pop("n_tokens")).sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            return super()._run_epoch(*args, **kwargs)
        # going on from the last step within an epoch, the Trainer would take one step more before it stops
        self.control.should_training_stop = True

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self._lengths is None:
            return super()._get_train_sampler(*args, **kwargs)
        rows_a_step = (
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        )
        return ByLength(self._lengths, rows_a_step, self.args.seed)


class _Milestones(TrainerCallback):
    """Evaluate, save and say a line at evenly spread steps; mark a checkpoint once it is complete."""

    def __init__(self, n_steps: int, n_evaluations: int) -> None:
        self.steps = {ceil(n_steps * k / n_evaluations) for k in range(1, n_evaluations + 1)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_log = control.should_evaluate = control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        line = f"step {state.global_step:,} of {state.max_steps:,}: held-out loss {metrics['eval_loss']:.3f}"
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        print(line + (f", training loss {losses[-1]:.3f}" if losses else ""), flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes a part of it
        if state.is_world_process_zero:
            checkpoints.mark(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _arguments(folder: Path, recipe: Recipe, n_rows: int, report_to: str) -> TrainingArguments:
    check_machine(recipe, report_to)
    n_steps, n_warmup = schedule(n_rows, recipe)
    # torchrun says how many processes there are; a single one would use all GPUs it sees
    n_devices = int(os.environ.get("WORLD_SIZE") or torch.cuda.device_count() or 1)
    micro_batch = min(recipe.micro_batch, recipe.batch)
    if recipe.batch % (micro_batch * n_devices):
        raise Stop(
            f"batch: {recipe.batch} is not a multiple of micro_batch {micro_batch} x {n_devices} devices"
        )
    # FSDP checkpoints by itself, which gathers a layer's weights once less; it also gives the layers other
    # names, and of a LoRA adapter peft would then save no weight at all
    by_fsdp = recipe.fsdp and not recipe.lora_rank
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=n_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.batch // (micro_batch * n_devices),
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=n_warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=recipe.gradient_checkpointing and not by_fsdp,
        fsdp=recipe.fsdp,
        fsdp_config={
            "version": 2,
            "activation_checkpointing": recipe.gradient_checkpointing and by_fsdp,
            # every process writes its own part; the default gathers all of it, twice, in the first one's memory
            "state_dict_type": "SHARDED_STATE_DICT",
        }
        if recipe.fsdp
        else None,
        use_liger_kernel=recipe.liger,
        torch_compile=recipe.compile,
        seed=recipe.seed,
        logging_steps=max(1, n_steps // 40),
        save_strategy="no",  # _Milestones decides
        eval_on_start=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=["wandb"] if report_to == "wandb" else [],  # TensorBoard is given its folder below
    )


def check_machine(recipe: Recipe, report_to: str) -> None:
    """Raise Stop where the recipe needs what this machine or installation has not.

    Ours: said before hours of preparing.
    """
    if report_to not in LOGGERS:
        raise Stop(f"report_to: expected one of {', '.join(LOGGERS)}, got {report_to!r}")
    for package, wanted, name in (
        ("wandb", report_to == "wandb", "report_to"), ("tensorboard", report_to == "tensorboard", "report_to"),
        ("liger_kernel", recipe.liger, "liger"),
    ):  # fmt: skip
        if wanted and importlib.util.find_spec(package) is None:
            raise Stop(f"{name}: needs the package {package.replace('_', '-')}, which is not installed")
    if recipe.fsdp and not (torch.cuda.is_available() and os.environ.get("WORLD_SIZE")):
        # on a CPU the Trainer wraps in DDP instead, and says nothing
        raise Stop("fsdp: needs GPUs and torchrun; expected false here")


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
    arguments = _arguments(folder, recipe, len(rows), report_to)
    identity = asdict(recipe) | {"base": base, "examples": _digest(examples), "held_out": _digest(held_out)}
    identity = json.loads(json.dumps(identity))  # as it is read back
    if (kept := checkpoints.finished(folder, identity)) is not None:
        if arguments.process_index == 0:  # a kill may have come before they were deleted
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return TrainingResult(**kept | {"folder": str(folder), "log": tuple(kept["log"])})
    with arguments.main_process_first(local=False):  # the others find the folder ready
        if arguments.process_index == 0:
            _begin(folder, identity)
    checkpoint, _ = checkpoints.newest_complete(folder)
    began = time.monotonic()
    set_seed(recipe.seed)
    loggers = []
    if report_to == "tensorboard" and arguments.process_index == 0:
        from torch.utils.tensorboard import SummaryWriter

        loggers = [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))]
    trainer = _make_trainer(make_model(), tokenizer, rows, held_out, arguments, recipe, loggers)
    n_trainable, n_parameters = _count_parameters(trainer.model)
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


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder ready, and say which checkpoints were cut short."""
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


def _make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example] | Sequence[Pack],
    held_out: Sequence[Example],
    arguments: TrainingArguments,
    recipe: Recipe,
    loggers: Sequence[TrainerCallback],
) -> Trainer:
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    collator = partial(_padded, pad_id=pad_id)
    if recipe.batching == "packed":
        flat = "flash" in recipe.attention  # its kernels heed row lengths, and positions only in one long row
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
            # flash kernels do not run where FSDP's model is loaded; they are told the rows' lengths
            apart = (flat and model.device.type == "cpu") or keeps_apart(model, flat)
        if not apart:
            raise Stop(
                f"batching: packed rows would read one another in {type(model).__name__} with attention "
                f"{recipe.attention!r}, expected 'grouped' or 'padded'"
            )
        collator = partial(_packed, pad_id=pad_id, flat=flat)
    trainer = _Trainer(
        lengths=lengths_of(rows) if recipe.batching == "grouped" else None,
        pad_id=pad_id,
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=collator,
        callbacks=[_Milestones(arguments.max_steps, recipe.n_evaluations), *loggers],
    )
    trainer.remove_callback(PrinterCallback)  # _Milestones says less, and the same on every machine
    return trainer


def _padded(rows: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    return collate(rows, pad_id) | {"n_tokens": torch.tensor([sum(row.n_tokens for row in rows)])}


def _packed(rows: Sequence[Pack], pad_id: int, flat: bool) -> dict[str, torch.Tensor]:
    return collate_packed(rows, pad_id, flat) | {
        "n_tokens": torch.tensor([sum(row.n_tokens for row in rows)])
    }


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


def _count_parameters(model: PreTrainedModel) -> tuple[int, int]:
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
