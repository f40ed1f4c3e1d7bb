"""Hugging Face's Trainer as a recipe wants it: which model, which arguments, which batches, when to measure and save.

    arguments = arguments_of(folder, recipe, len(rows), "tensorboard")
    trainer = make_trainer(prepare_model(base, recipe), tokenizer, rows, held_out, arguments, recipe, loggers)

What is changed in it: the held-out loss (`heldout`), the count of tokens, the order of rows grouped by length, and
one step too many after going on from the last one. Everything else is its own.

Absent on purpose: what a run's folder holds (`training`, `checkpoints`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
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
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from ultrachat import checkpoints
from ultrachat.batching import ByLength, Pack, collate, collate_packed, keeps_apart, lengths_of
from ultrachat.chatmodels import load
from ultrachat.errors import Stop
from ultrachat.heldout import held_out_losses
from ultrachat.recipes import Recipe, schedule
from ultrachat.sections import Example

transformers_logging.disable_progress_bar()  # a bar for every checkpoint is noise in a notebook
LOGGERS = ("tensorboard", "wandb", "none")


def prepare_model(base: str, recipe: Recipe) -> PreTrainedModel:
    """Return the base to be trained, for LoRA frozen and with low-rank matrices beside its weights.

    Raises Stop as `chatmodels.load` does.

    Paper: §4.6 trains all weights; LoRA and 4 bits are ours.
    """
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
        self._n_tokens: torch.Tensor | int = 0  # read since they were last added up
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
        # the Trainer's own count takes the padding of a packed row for tokens, and waits for the GPU every time
        self._n_tokens = self._n_tokens + inputs.pop("n_tokens")
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        if torch.is_tensor(self._n_tokens):  # every process comes here, and always before a checkpoint
            self.state.num_input_tokens_seen += int(self.accelerator.gather(self._n_tokens).sum())
            self._n_tokens = 0
        super().log(*args, **kwargs)

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


class Milestones(TrainerCallback):
    """Evaluate, save and say a line at evenly spread steps; mark a checkpoint once it is complete.

    Ours: the paper says nothing of checkpoints.
    """

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


def arguments_of(folder: Path, recipe: Recipe, n_rows: int, report_to: str) -> TrainingArguments:
    """Return the Trainer's arguments for a recipe, `n_rows` rows (or packs) and as many processes as torchrun says.

    Raises Stop when the batch cannot be divided among them, and as `check_machine` does.

    Ours: FSDP's settings have run on forced CPU processes only; they need GPUs.
    """
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
        save_strategy="no",  # Milestones decides
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


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example] | Sequence[Pack],
    held_out: Sequence[Example],
    arguments: TrainingArguments,
    recipe: Recipe,
    loggers: Sequence[TrainerCallback],
) -> Trainer:
    """Return the Trainer of a run: batches as the recipe says, the held-out loss by round and sector, milestones.

    Raises Stop when rows would be packed that the model cannot keep apart.

    Ours: Hugging Face's Trainer, changed in four places.
    """
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
        callbacks=[Milestones(arguments.max_steps, recipe.n_evaluations), *loggers],
    )
    trainer.remove_callback(PrinterCallback)  # Milestones says less, and the same on every machine
    return trainer


def _padded(rows: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    return collate(rows, pad_id) | _count(rows)


def _packed(rows: Sequence[Pack], pad_id: int, flat: bool) -> dict[str, torch.Tensor]:
    return collate_packed(rows, pad_id, flat) | _count(rows)


def _count(rows: Sequence[Example] | Sequence[Pack]) -> dict[str, torch.Tensor]:
    """The tokens of a batch without padding, for `training_step`."""
    return {"n_tokens": torch.tensor([sum(row.n_tokens for row in rows)])}
