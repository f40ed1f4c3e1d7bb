"""One training run to be timed, ours or TRL's, in a process of its own: what train_throughput.py puts together.

    found = found_by(Job("ours", "LoRA", shape, recipe, lengths, n_rows, on_cpu=True), context_of(on_cpu=True))
    found.tokens_per_second, found.memory_bytes, found.losses       # or found.problem, a line

Both trainers get the same random weights, the same rows (or packs, ready made), the same order and settings.

Absent on purpose: which runs there are, and how their figures are shown.
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ultrachat.recipes import Recipe
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.shapes import Shape

MAX_TOKENS = 2048
WARM_STEPS = 2
LIMIT_SECONDS = 1_500


@dataclass(frozen=True)
class Job:
    """One combination: what is trained, how, by whom; `lengths` as RELEASE, `n_rows` of them are made."""

    trainer: str  # "ours" or "TRL"
    method: str
    shape: Shape
    recipe: Recipe
    lengths: tuple[float, float]
    n_rows: int
    on_cpu: bool
    warm_steps: int = WARM_STEPS


@dataclass
class Found:
    """What a combination's process reports; `problem` says in a line why there is nothing else."""

    tokens_per_second: float = 0.0
    memory_bytes: int = 0
    fill_fraction: float = 0.0
    row_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    problem: str = ""


# ---- rows and weights, made up ----------------------------------------------------------------


def rows_of(job: Job) -> list[Example]:
    """Return rows of random tokens, each a few messages of which every other one is learnt."""
    rng = np.random.default_rng(0)
    median, spread = job.lengths
    longest = job.recipe.pack_tokens
    rows = []
    for n in np.clip(median * np.exp(spread * rng.standard_normal(job.n_rows)), 16, longest).astype(int):
        ids = rng.integers(3, job.shape.vocab_size, n, dtype=np.int32)
        asked = np.arange(n) % 300 < 60  # the release's users say about a fifth
        rows.append(Example(ids, np.where(asked, np.int32(IGNORE_INDEX), ids)))
    return rows


def batches_of(job: Job) -> list[Any]:
    """Return the rows, or packs of them in random order, that the run goes through."""
    from ultrachat.batching import pack

    rows = rows_of(job)
    if job.recipe.batching == "packed":
        packs = pack(rows, job.recipe.pack_tokens)  # the longest rows first: training shuffles them
        rows = [packs[i] for i in np.random.default_rng(1).permutation(len(packs))]
    n_steps = job.recipe.max_steps
    return rows[: n_steps * job.recipe.batch] if n_steps else rows


def fill_and_length(job: Job, batches: Sequence[Any]) -> tuple[float, int]:
    """Return the share of tokens in the micro-batches, and the length of the dialogue a token stands in (mean)."""
    from ultrachat.batching import padding_fraction

    lengths = [batch.n_tokens for batch in batches]
    rows = [row for batch in batches for row in getattr(batch, "examples", (batch,))]
    sizes = np.array([row.n_tokens for row in rows], np.float64)
    fill = 1 - padding_fraction(lengths, job.recipe.micro_batch)
    return fill, round(float((sizes**2).sum() / sizes.sum()))


def random_base(shape: Shape, dtype: str, load_in_4bit: bool, device: str, attention: str | None) -> Any:
    """Return a Llama of random weights as `chatmodels.load` would return one from a folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=shape.hidden_size, num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, max_position_embeddings=MAX_TOKENS, tie_word_embeddings=shape.tied,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    if not load_in_4bit:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), attn_implementation=attention
            )
        return model.eval()
    return _random_in_4bit(config, device, attention).eval()


def _random_in_4bit(config: Any, device: str, attention: str | None) -> Any:
    """Return a Llama in NF4; matrices of one shape are quantised from the same random numbers."""
    import torch
    from transformers import LlamaForCausalLM

    from ultrachat.chatmodels import _nf4

    options = _nf4(device)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    shared: dict[Any, Any] = {}
    state = {}
    for name, size in shapes.items():
        if "layers" in name and len(size) == 2:
            if size not in shared:
                shared[size] = 0.02 * torch.randn(size, dtype=options["dtype"], device=device)
            state[name] = shared[size]
        else:  # not quantised: it must have a place of its own
            make = torch.ones if "norm" in name else torch.randn
            state[name] = make(size, dtype=options["dtype"], device=device) * (1 if "norm" in name else 0.02)
    return LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=state, attn_implementation=attention, **options
    )


def tokenizer_of(folder: str) -> Any:
    """Return a tokenizer trained here; the trainers want one for its padding token."""
    from ultrachat.tiny import train_tokenizer

    return train_tokenizer(["User: Hi\nAssistant: Hello!"], 300, folder)


# ---- the two trainers -------------------------------------------------------------------------


def our_trainer(job: Job, batches: Sequence[Any], tokenizer: Any, folder: Path) -> Any:
    """Return the Trainer that `training.finetune` would train with, without evaluation and checkpoints."""
    from transformers import set_seed

    from ultrachat import trainer

    def load(base: str, **options: Any) -> tuple[Any, Any]:
        model = random_base(job.shape, **options)
        set_seed(job.recipe.seed)  # TRL does so before it puts on LoRA's random matrices
        return model, tokenizer

    trainer.load = load
    arguments = trainer.arguments_of(folder, job.recipe, len(batches), "none")
    arguments.eval_on_start, arguments.train_sampling_strategy = False, "sequential"
    arguments.logging_steps = 1
    model = trainer.prepare_model("random", job.recipe)
    made = trainer.make_trainer(model, tokenizer, batches, batches[:1], arguments, job.recipe, [])
    made.remove_callback(trainer.Milestones)
    return made


def trl_trainer(job: Job, batches: Sequence[Any], tokenizer: Any, folder: Path) -> Any:
    """Return TRL's SFTTrainer with the settings of ours; LoRA is put on by it, as its users have it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from ultrachat import trainer

    recipe = job.recipe
    like = trainer.arguments_of(folder, recipe, len(batches), "none")
    names = (
        "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16", "use_cpu", "use_liger_kernel",
        "torch_compile", "seed", "dataloader_pin_memory", "disable_tqdm",
    )  # fmt: skip
    packed = recipe.batching == "packed"
    config = SFTConfig(
        **{name: getattr(like, name) for name in names},
        gradient_checkpointing=recipe.gradient_checkpointing, logging_steps=1, save_strategy="no", report_to=[],
        train_sampling_strategy="sequential", max_length=None, padding_free=packed,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    lora = None
    if recipe.lora_rank:
        lora = LoraConfig(
            r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=recipe.lora_dropout,
            target_modules=recipe.lora_targets, task_type="CAUSAL_LM",
        )  # fmt: skip
    dtype = "bfloat16" if recipe.bf16 and recipe.lora_rank else "float32"
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = random_base(job.shape, dtype, recipe.load_in_4bit, device, recipe.attention)
    return SFTTrainer(
        model, config, train_dataset=Dataset.from_dict(_columns(batches, packed)), processing_class=tokenizer,
        peft_config=lora,
    )  # fmt: skip


def _columns(batches: Sequence[Any], packed: bool) -> dict[str, list[Any]]:
    """Return rows as TRL wants them; of a pack the lengths of its rows too."""
    groups = [getattr(batch, "examples", (batch,)) for batch in batches]
    columns = {
        "input_ids": [np.concatenate([row.input_ids for row in group]) for group in groups],
        "labels": [np.concatenate([row.labels for row in group]) for group in groups],
    }
    return columns | (
        {"seq_lengths": [[row.n_tokens for row in group] for group in groups]} if packed else {}
    )


# ---- timed, in a process of its own -----------------------------------------------------------


def measured(job: Job) -> Found:
    """Train as the job says and return what was found."""
    import torch

    if job.on_cpu:
        torch.set_num_threads(1)
    batches = batches_of(job)
    fill, row_tokens = fill_and_length(job, batches)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = tokenizer_of(folder)
        make = our_trainer if job.trainer == "ours" else trl_trainer
        trainer = make(job, batches, tokenizer, Path(folder))
        clock = _clock(job, trainer)
        gc.collect()
        before = _reset_peak(job.on_cpu)
        trainer.train()
        peak = _peak(job.on_cpu) - before
    tokens, seconds = clock.measured()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Found(tokens / seconds, peak, fill, row_tokens, losses)


def _clock(job: Job, trainer: Any) -> Any:
    """Count tokens and note the time after each step of a trainer; return what `measured()` adds up."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.n_tokens, self.steps = 0, []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if not job.on_cpu:
                torch.cuda.synchronize()
            self.steps.append((self.n_tokens, time.process_time() if job.on_cpu else time.perf_counter()))

        def measured(self) -> tuple[int, float]:
            (n_before, began), (n, ended) = self.steps[job.warm_steps - 1], self.steps[-1]
            return n - n_before, ended - began

    clock, step = Clock(), trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "n_tokens" in inputs:  # ours says it: a padded pack has no mask
            clock.n_tokens += int(inputs["n_tokens"].sum())
        else:
            mask = inputs.get("attention_mask")
            clock.n_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = counted
    trainer.add_callback(clock)
    return clock


def _reset_peak(on_cpu: bool) -> int:
    """Forget the largest use of memory so far; return what is to be subtracted from the next."""
    if not on_cpu:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return 0  # the weights are on the GPU too
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(on_cpu)


def _peak(on_cpu: bool) -> int:
    """Return the largest use of memory since then, in bytes."""
    if not on_cpu:
        import torch

        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/status").exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _child(job: Job, pipe: Any) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - trainers print a line for each step
    try:
        found = measured(job)
    except BaseException as error:  # whatever ends it is a line in the table
        words = " ".join(str(error).split())
        found = Found(
            problem="out of memory" if "out of memory" in words else f"{type(error).__name__}: {words[:150]}"
        )
    pipe.send(found)


def found_by(job: Job, context: Any) -> Found:
    """Run a combination in a process of its own; what ends it otherwise than well is its `problem`."""
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(job, there), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(LIMIT_SECONDS):
            process.kill()
            return Found(problem=f"not ready after {LIMIT_SECONDS:,} s")
        found = here.recv()
    except EOFError:
        process.join()
        return Found(problem=f"ended by signal or exit status {process.exitcode}")
    process.join()
    return found


def context_of(on_cpu: bool) -> Any:
    """Return where processes come from; on a CPU they find the libraries imported."""
    context = multiprocessing.get_context("forkserver" if on_cpu else "spawn")
    if on_cpu:  # not on a GPU: a library might touch it, and a process forked after that cannot
        names = ["ultrachat.training", "ultrachat.tiny", "peft", "bitsandbytes", "datasets", "trl.trainer.sft_trainer"]  # fmt: skip
        context.set_forkserver_preload([n for n in names if importlib.util.find_spec(n.split(".")[0])])
    return context
