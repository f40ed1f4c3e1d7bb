"""UltraLLaMA: a base model is fine-tuned on Examples, in full or through LoRA, by Hugging Face's Trainer.

Every number of a run stands in one frozen record, and the number of steps is computed from the data:

    result = finetune(examples, held_out, base="huggyllama/llama-13b", out_dir=folder, recipe=PAPER)
    result.log    # ({"step": 0, "loss": None, "eval_loss": 1.9}, {"step": 25, "loss": 1.8, …}, …)

The sample run has no LLaMA, so it makes one: `train_tokenizer`, `tiny_llama` and `pretrain` give a
model of a million parameters that has read the sample's text and so has something to adapt.

A run that was killed goes on from its newest complete checkpoint when it is called again with the
same arguments; with others it stops and names the difference. A finished run is read back.

Absent on purpose: a training loop of our own, logging services, mixing data sets, and an entry for
several processes (the batch is divided among them already; the rest is for the day it is needed).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from ultrachat.chatmodels import load, load_tokenizer
from ultrachat.errors import Stop
from ultrachat.runs import sha256_of, write_text
from ultrachat.sft import IGNORE_INDEX, Example, collate

transformers_logging.disable_progress_bar()  # a bar for every checkpoint is noise in a notebook
COMPLETE = "complete"  # the file that marks a checkpoint as whole, written last


@dataclass(frozen=True)
class Recipe:
    """Every number of a training run.

    `batch` rows make one step, `micro_batch` of them at a time on each device; `epochs` passes over
    the data, unless `max_steps` says how many steps. The learning rate rises linearly during the
    first `warmup_fraction` of the steps and then falls to 0 along a cosine. `lora_rank` 0 trains all
    weights; `load_in_4bit` keeps the frozen base in NF4 and needs LoRA. The held-out loss and a
    checkpoint are taken `n_evaluations` times, evenly spread, the last time at the end.

    Ours: one record instead of a script's arguments.
    """

    lr: float
    epochs: float = 3.0
    max_steps: int | None = None
    batch: int = 512
    micro_batch: int = 4
    warmup_fraction: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str | tuple[str, ...] = "all-linear"
    load_in_4bit: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    n_evaluations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.load_in_4bit and not self.lora_rank:
            raise Stop("load_in_4bit: 4-bit weights cannot be trained themselves, expected lora_rank > 0")
        for name in ("lr", "epochs", "batch", "micro_batch", "n_evaluations"):
            if getattr(self, name) <= 0:
                raise Stop(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps <= 0:
            raise Stop(f"max_steps: expected more than 0 or None, got {self.max_steps}")


PAPER = Recipe(
    lr=1e-5, epochs=3, batch=512, micro_batch=4, warmup_fraction=0.03, weight_decay=0.0, max_grad_norm=1.0,
    bf16=True, gradient_checkpointing=True,
)  # fmt: skip
"""The paper's recipe for LLaMA-13B. §4.6 gives the batch of 512 on 128 GPUs (so 4 rows each) and 2,048
tokens a row. Rate, 3 epochs, cosine with 3 % warm-up, no weight decay and the clip at 1.0 are the
defaults of the authors' `train/train_bm.py`. Ours: bf16 for their scaled fp16, and checkpointing; and
the schedule's length, a constant of 2,000,000 steps there, comes from the data (8,604 steps for
1,468,352 rows), since 3 % of their constant is more than the whole run and the rate would never fall.
"""


def schedule(n_examples: int, recipe: Recipe) -> tuple[int, int]:
    """Return how many steps the run takes, and how many of them warm up.

    A last, smaller batch of an epoch is a step as well.

    Ours: the authors' constant keeps the whole run in warm-up.
    """
    n_steps = recipe.max_steps or ceil(ceil(n_examples / recipe.batch) * recipe.epochs)
    return n_steps, ceil(n_steps * recipe.warmup_fraction)


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a run: where the model is, and what it took.

    `log` has a row per logged step with `step`, `loss` (training loss per learnt token, averaged
    since the row before) and `eval_loss` (held-out loss per learnt token), None where not measured.
    `n_tokens` counts what was read, padding left out; `seconds` is the wall time of the last call.

    Ours: plain numbers, to be plotted.
    """

    folder: str
    n_steps: int
    n_tokens: int
    n_parameters: int
    n_trainable: int
    seconds: float
    resumed_from_step: int
    log: tuple[dict[str, float | None], ...]


# ---- a base model for the sample run ----------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path | str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from `texts`, also saved in `folder`.

    It has `<s>`, `</s>` and `<pad>` and knows every byte, so no text is unknown to it; like LLaMA's
    it puts `<s>` in front. The same texts give the same tokenizer. Raises Stop when `vocab_size`
    cannot hold the 256 bytes and the three.

    Ours: the sample run has no LLaMA tokenizer.
    """
    special = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise Stop(f"vocab_size: expected at least {len(alphabet) + len(special)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(str(folder))
    return fast


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int = 128,
    n_layers: int = 2,
    n_heads: int = 4,
    max_position: int = 1024,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Return an untrained Llama of LLaMA's make, small: RoPE, RMSNorm, SwiGLU, float32.

    Input and output embeddings are shared, for at this size they would be most of the parameters.

    Ours: LLaMA-13B stands behind a parameter; this one trains in a minute on two cores.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, max_position_embeddings=max_position, tie_word_embeddings=True,
        intermediate_size=64 * round(hidden_size / 24),  # 8/3 as in LLaMA, in steps that 4-bit kernels take
        initializer_range=0.06,  # LLaMA's 0.02 is for widths of thousands: here it learns far slower
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    set_seed(seed)
    return LlamaForCausalLM(config)


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_tokens: int) -> list[Example]:
    """Return plain texts as rows of `block_tokens` with every token learnt, for pre-training.

    Each text stands between `<s>` and `</s>`, they follow one another, and rows are cut wherever they
    are full; the last row may be shorter. Raises Stop when there is no text.

    Ours: what a base model is pre-trained on.
    """
    texts = list(texts)
    if not texts:
        raise Stop("texts: none to train on")
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    framed = ([tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows)
    stream = np.fromiter(chain.from_iterable(framed), dtype=np.int32)
    return [
        Example(block, block.copy())
        for block in (stream[i : i + block_tokens] for i in range(0, len(stream), block_tokens))
        if len(block) > 1  # a single token predicts nothing
    ]


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    held_out_texts: Sequence[str],
    out_dir: Path | str,
    recipe: Recipe,
    block_tokens: int = 256,
) -> TrainingResult:
    """Train a model on plain text, save it with its tokenizer in `out_dir` as a base, return the result.

    The model given is trained in place; of a run that is only read back it stays as it was, so load
    the base from `out_dir`. Raises Stop as `finetune` does. Held-out texts must not be among `texts`.

    Ours: stands in for LLaMA's pre-training.
    """
    examples = pack(texts, tokenizer, block_tokens)
    held_out = pack(held_out_texts, tokenizer, block_tokens)
    start = _hash(weight.detach().cpu().numpy().tobytes() for weight in model.parameters())
    return _train(lambda: model, tokenizer, examples, held_out, Path(out_dir), recipe, base=start)


# ---- fine-tuning ------------------------------------------------------------------------------


def finetune(
    examples: Sequence[Example],
    held_out: Sequence[Example],
    base: Path | str,
    out_dir: Path | str,
    recipe: Recipe,
) -> TrainingResult:
    """Fine-tune `base` (folder or hub id) on the Examples, save the model in `out_dir`, return the result.

    The rows must have been encoded with the base's own tokenizer, which is saved along. With LoRA
    the folder holds the adapter only; `chatmodels.load` opens either. Raises Stop when the base
    cannot be loaded, there is nothing to learn, a token is not in its vocabulary, or `out_dir` holds
    an unfinished run with another recipe, base or data.

    Paper: §4.6.
    """
    base = str(base)
    tokenizer = load_tokenizer(base)
    return _train(
        partial(_prepare, base, recipe), tokenizer, examples, held_out, Path(out_dir), recipe, _content(base)
    )


def _prepare(base: str, recipe: Recipe) -> PreTrainedModel:
    """Load the base, and for LoRA freeze it and put trainable low-rank matrices beside its weights."""
    # all weights are trained in float32 (bf16 only computes); a frozen base may be kept in bf16
    dtype = "bfloat16" if recipe.bf16 and recipe.lora_rank else "float32"
    model, _ = load(base, dtype=dtype, load_in_4bit=recipe.load_in_4bit)
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


class _Trainer(Trainer):
    """Trainer with a held-out loss that weighs every learnt token alike (its own averages batch means)."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        pad_id, size = self.data_collator.keywords["pad_id"], self.args.per_device_train_batch_size
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            metrics = {"eval_loss": held_out_loss(self.model, self.eval_dataset, pad_id, size)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def held_out_loss(
    model: torch.nn.Module, examples: Sequence[Example], pad_id: int, batch_size: int = 8
) -> float:
    """Return the mean cross-entropy per learnt token over all Examples, in nats; NaN without any.

    Paper: §4.6 ("standard cross-entropy loss"); on held-out dialogues it is ours.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for module in model.modules():
        if was_training and type(module).__name__ == "Linear4bit":
            # on a CPU bitsandbytes would pack the weights of a layer in eval mode into a form for
            # inference only, and the rest of the training would have no gradients, without a word
            module.training = True
    total, n_learnt = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size], pad_id)
            n = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            total += n * model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.item()
            n_learnt += n
    model.train(was_training)
    return total / n_learnt if n_learnt else float("nan")


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
        if not state.is_world_process_zero:
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (newest / COMPLETE).touch()
        for older in set(newest.parent.glob("checkpoint-*")) - {newest}:
            shutil.rmtree(older)


def _arguments(folder: Path, recipe: Recipe, n_examples: int) -> TrainingArguments:
    n_steps, n_warmup = schedule(n_examples, recipe)
    # torchrun says how many processes there are; a single one would use all GPUs it sees
    n_devices = int(os.environ.get("WORLD_SIZE") or torch.cuda.device_count() or 1)
    micro_batch = min(recipe.micro_batch, recipe.batch)
    if recipe.batch % (micro_batch * n_devices):
        raise Stop(
            f"batch: {recipe.batch} is not a multiple of micro_batch {micro_batch} x {n_devices} devices"
        )
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
        activation_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        logging_steps=max(1, n_steps // 40),
        save_strategy="no",  # _Milestones decides
        eval_on_start=True,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )


# ---- one run in one folder --------------------------------------------------------------------


def _train(
    make_model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    folder: Path,
    recipe: Recipe,
    base: str,
) -> TrainingResult:
    """Train, save and return the result; go on where an earlier call was cut off."""
    _check(examples, len(tokenizer))
    arguments = _arguments(folder, recipe, len(examples))
    identity = asdict(recipe) | {"base": base, "examples": _digest(examples), "held_out": _digest(held_out)}
    identity = json.loads(json.dumps(identity))  # as it is read back
    if (finished := _finished(folder, identity)) is not None:
        return finished
    checkpoint = _begin(folder, identity)
    began = time.monotonic()
    set_seed(recipe.seed)
    trainer = _make_trainer(make_model(), tokenizer, examples, held_out, arguments, recipe.n_evaluations)
    n_trainable, n_parameters = _count_parameters(trainer.model)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    result = TrainingResult(
        folder=str(folder),
        n_steps=trainer.state.global_step,
        n_tokens=int(trainer.state.num_input_tokens_seen),
        n_parameters=n_parameters,
        n_trainable=n_trainable,
        seconds=time.monotonic() - began,
        resumed_from_step=int(checkpoint.name.split("-")[1]) if checkpoint else 0,
        log=_log(trainer.state.log_history),
    )
    trainer.model.config.use_cache = True
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    write_text(folder / "result.json", json.dumps(asdict(result), indent=1))  # last: all of it is there
    shutil.rmtree(folder / "checkpoints")
    return result


def _make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    arguments: TrainingArguments,
    n_evaluations: int,
) -> Trainer:
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=list(examples),
        eval_dataset=list(held_out),
        data_collator=partial(collate, pad_id=pad_id),
        callbacks=[_Milestones(arguments.max_steps, n_evaluations)],
    )
    trainer.remove_callback(PrinterCallback)  # _Milestones says less, and the same on every machine
    return trainer


def _check(examples: Sequence[Example], vocab_size: int) -> None:
    if not any(example.n_learnt_tokens for example in examples):
        raise Stop("examples: no token to learn in any of them")
    largest = max(int(example.input_ids.max()) for example in examples)
    if largest >= vocab_size:
        raise Stop(
            f"examples: token id {largest} is outside the base's vocabulary of {vocab_size}; was its tokenizer used?"
        )


def _digest(examples: Sequence[Example]) -> str:
    return _hash(array.tobytes() for example in examples for array in (example.input_ids, example.labels))


def _hash(parts: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()[:16]


def _content(base: str) -> str:
    """Name a base by what is in it: a local folder also by its weights, a hub id by itself."""
    weights = sorted(Path(base).glob("*.safetensors"))
    return f"{base} ({_hash(sha256_of(path).encode() for path in weights)})" if weights else base


def _finished(folder: Path, identity: dict[str, Any]) -> TrainingResult | None:
    """Return the result of an earlier call with the same arguments that came to its end."""
    if not (folder / "result.json").exists() or _read(folder / "run.json") != identity:
        return None
    kept = _read(folder / "result.json")
    return TrainingResult(**kept | {"folder": str(folder), "log": tuple(kept["log"])})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _begin(folder: Path, identity: dict[str, Any]) -> Path | None:
    """Return the newest complete checkpoint to go on from, or None and a folder ready for a new run."""
    complete = [path.parent for path in folder.glob(f"checkpoints/checkpoint-*/{COMPLETE}")]
    if complete:
        before = _read(folder / "run.json")
        for name, value in identity.items():
            if before.get(name) != value:
                raise Stop(
                    f"{folder}: holds an unfinished run with {name} {before.get(name)!r}, now {value!r}; "
                    "call it as before, or delete the folder"
                )
        return max(complete, key=lambda path: int(path.name.split("-")[1]))
    if folder.exists() and any(folder.iterdir()) and not (folder / "run.json").exists():
        raise Stop(f"out_dir: {folder} holds other files, expected an empty or new folder")
    shutil.rmtree(folder, ignore_errors=True)  # an older run's adapter must not stay beside new weights
    write_text(folder / "run.json", json.dumps(identity, indent=1))
    return None


def _count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    if hasattr(model, "get_nb_trainable_parameters"):  # peft's also counts 4-bit weights right
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def _log(history: Iterable[dict[str, Any]]) -> tuple[dict[str, float | None], ...]:
    """Merge the Trainer's history into one row per step; its last entry, a summary, has neither loss."""
    rows: dict[int, dict[str, float | None]] = {}
    for entry in history:
        for name in ("loss", "eval_loss"):
            if name in entry:
                row = rows.setdefault(entry["step"], {"step": entry["step"], "loss": None, "eval_loss": None})
                row[name] = float(entry[name])
    return tuple(rows[step] for step in sorted(rows))
