"""Training, beside TRL: tokens a second, memory and utilisation, full, LoRA and QLoRA, padded and packed.

    python benchmarks/train_throughput.py                   # on a GPU: LLaMA's shapes; without one: a tiny model
    python benchmarks/train_throughput.py --cpu             # the tiny model, on any machine

Needs no network: weights are random, made on the GPU; rows are random tokens of lengths as in the release, none
above 2,048. Ours is the Trainer that `training.finetune` makes, TRL (`pip install trl`) its `SFTTrainer`, given
the same model, rows (or packs, ready made, with `padding_free`), order, micro-batches and settings. What is timed
are whole steps after the first ones, which warm up; evaluation and checkpoints are left out. One combination
after the other runs in a process of its own with a time limit, so that one that runs out of memory ends alone.
One GPU is used, the first that is visible.

On a GPU (train_throughput.csv): `footprint.memory` chooses checkpointing and the micro-batch, the same for both:
first without checkpointing, then with, the largest of 8, 4, 2, 1 rows that fits; what fits in no way is
skipped with a line. Utilisation is of the dense bf16 peak, by `flops`' count of model FLOPs. A step is 16 rows
or packs; peak GiB is what PyTorch's allocator held, beside the GiB that `footprint` expects.

On a CPU (train_throughput_cpu.csv): one thread, tokens per CPU second; one epoch over rows of two spreads of
lengths, so that padding leaves about 55 % or 80 % of a batch to tokens. "More MiB" is how much the process
grew at its largest, from just before training. "Off from ours" is the largest difference between the two trainers'
losses of a step; it is held to 1e-4 in float32, full and LoRA, or the exit status is 1 (under QLoRA TRL keeps the
adapters in bfloat16, ours in float32: not the same sums).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


from train_job import MAX_TOKENS, WARM_STEPS, Found, Job, context_of, found_by

from ultrachat import flops, footprint
from ultrachat.errors import Stop
from ultrachat.footprint import GIB
from ultrachat.recipes import Recipe
from ultrachat.shapes import SHAPES, Shape

GPU_SHAPES = {"1B": "TinyLlama-1.1B", "7B": "LLaMA-7B", "13B": "LLaMA-13B"}
METHODS = ("full", "LoRA", "QLoRA")
TINY = Shape(hidden_size=256, n_layers=4, n_heads=8, n_kv_heads=8, intermediate_size=704, vocab_size=4096)
TINY_MAX_TOKENS = 512
STEP_ROWS = 16  # of a step on a GPU
MICRO_BATCHES = 8, 4, 2, 1
GPU_ROOM = 0.93  # of the memory: the rest is CUDA's own and what the allocator cannot use
# log-normal lengths (median tokens, spread): the release's; for a CPU two whose fill at 8 rows is about that, and rows
RELEASE, LENGTHS = (1_150, 0.5), {"55 %": (150, 0.6, 48), "80 %": (120, 0.18, 80)}
TINY_PADDED, TINY_PACKED = 8, 4
PACKED_GOAL = 1.5  # times padded, at a fill of 60 % at most
TOLERANCE = 1e-4  # nats


# ---- the table of a CPU -----------------------------------------------------------------------


def cpu_jobs(peers: bool) -> list[tuple[str, str, Job]]:
    """Return (fill, words, job) for each row of the table."""
    base = Recipe(
        lr=1e-3, epochs=1, batch=TINY_PADDED, micro_batch=TINY_PADDED, n_evaluations=1,
        pack_tokens=TINY_MAX_TOKENS,
    )  # fmt: skip
    packed = replace(base, batching="packed", batch=TINY_PACKED, micro_batch=TINY_PACKED)
    ways = {"padded": base, "packed": packed, "packed, bf16": replace(packed, bf16=True)}
    low_rank = {"lora_rank": 16, "lora_alpha": 32}
    jobs = []
    for fill, (*lengths, n_rows) in LENGTHS.items():
        for method in METHODS:
            if method != "full" and fill != "55 %":
                continue  # as with full, only more often
            if method == "QLoRA" and importlib.util.find_spec("bitsandbytes") is None:
                print("bitsandbytes is not installed (pip install '.[qlora]'): measured without QLoRA")
                continue
            more = {} if method == "full" else low_rank | {"load_in_4bit": method == "QLoRA"}
            for words, recipe in ways.items():
                if method == "QLoRA" and recipe.bf16:
                    continue  # on a CPU the weights are unpacked to float32
                for trainer in ("ours", "TRL") if peers else ("ours",):
                    job = Job(trainer, method, TINY, replace(recipe, **more), tuple(lengths), n_rows, True, 1)
                    jobs.append((fill, words, job))
    return jobs


def cpu_rows(peers: bool) -> tuple[list[dict[str, str]], list[str]]:
    """Return the table train_throughput_cpu, and what is not as it should be."""
    context = context_of(on_cpu=True)
    found = {(fill, job.method, words, job.trainer): found_by(job, context) for fill, words, job in _said(cpu_jobs(peers))}  # fmt: skip
    rows, wrong = [], []
    for (fill, method, words, trainer), one in found.items():
        padded, ours = found[fill, method, "padded", trainer], found[fill, method, words, "ours"]
        off = _off(one, ours) if trainer == "TRL" else None
        aim = words == "packed" and method == "full" and fill == "55 %" and trainer == "ours"
        rows.append(
            {
                "method": method,
                "batches": words,
                "by": trainer,
                "fill": f"{100 * one.fill_fraction:.0f} %",
                "tokens per CPU second": f"{one.tokens_per_second:,.0f}",
                "times padded": _ratio(one, padded),
                "times TRL": _ratio(one, found.get((fill, method, words, "TRL")))
                if trainer == "ours"
                else "",
                "more MiB": f"{one.memory_bytes / 2**20:,.0f}",
                "last loss": f"{one.losses[-1]:.4f}" if one.losses else "",
                "off from ours": "" if off is None else f"{off:.0e}",
                "goal": f"{PACKED_GOAL} times padded" if aim else "",
                "problem": one.problem,
            }
        )
        if one.problem:
            wrong.append(f"{method}, {words}, {trainer}: {one.problem}")
        if off is not None and off > TOLERANCE and "bf16" not in words and method != "QLoRA":
            wrong.append(f"{method}, {words}: losses {off:.1e} apart")
    return rows, wrong


def _said(jobs: Sequence[tuple[str, str, Job]]) -> Any:
    for fill, words, job in jobs:
        print(f"fill {fill}, {job.method}, {words}, {job.trainer} …", flush=True)
        yield fill, words, job


def _ratio(one: Found, other: Found | None) -> str:
    if other is None or not other.tokens_per_second or not one.tokens_per_second:
        return ""
    return f"{one.tokens_per_second / other.tokens_per_second:.2f}"


def _off(one: Found, other: Found) -> float | None:
    if not one.losses or len(one.losses) != len(other.losses):
        return None
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


# ---- the table of a GPU -----------------------------------------------------------------------


def gpu() -> tuple[str, int] | None:
    """Return the GPU's name and memory in bytes, None without one; asked in a process that ends."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_gpu)


def _gpu() -> tuple[str, int] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory


def gpu_jobs(chosen: argparse.Namespace, memory: int) -> list[tuple[str, Job | str, float]]:
    """Return (words, job or why there is none, the GiB expected) for each combination."""
    found: list[tuple[str, Job | str, float]] = []
    for name in chosen.shapes:
        for method in chosen.methods:
            if method == "QLoRA" and importlib.util.find_spec("bitsandbytes") is None:
                found.append(
                    (f"{name}, {method}", "bitsandbytes is not installed (pip install '.[qlora]')", 0)
                )
                continue
            for batching in chosen.batching:
                for attention in chosen.attention:
                    recipe = Recipe(
                        lr=1e-5, max_steps=WARM_STEPS + chosen.steps, batch=STEP_ROWS, bf16=True, n_evaluations=1,
                        batching=batching, pack_tokens=MAX_TOKENS, attention=attention, liger=chosen.liger,
                        compile=chosen.compile, lora_rank=0 if method == "full" else 16, load_in_4bit=method == "QLoRA",
                    )  # fmt: skip
                    fitting, gib = fit(SHAPES[GPU_SHAPES[name]], recipe, memory, chosen.micro_batch)
                    words = f"{name}, {method}, {batching}, {attention}"
                    if fitting is None:
                        room = GPU_ROOM * memory / GIB
                        found.append(
                            (words, f"does not fit: {gib:.0f} GiB expected, room for {room:.0f}", gib)
                        )
                        continue
                    n_rows = 3 * STEP_ROWS * recipe.max_steps  # a pack takes fewer than three
                    for trainer in ("ours", "TRL") if chosen.peers else ("ours",):
                        job = Job(trainer, method, SHAPES[GPU_SHAPES[name]], fitting, RELEASE, n_rows, False)
                        found.append((words, job, gib))
    return found


def fit(shape: Shape, recipe: Recipe, memory: int, micro_batch: int | None) -> tuple[Recipe | None, float]:
    """Return the recipe with checkpointing and micro-batch chosen, None if none fits, and the GiB expected."""
    n_bytes = 0
    for checkpointing in (False, True):
        for size in (micro_batch,) if micro_batch else MICRO_BATCHES:
            tried = replace(recipe, gradient_checkpointing=checkpointing, micro_batch=size)
            n_bytes = footprint.memory(shape, tried, MAX_TOKENS).total
            if n_bytes <= GPU_ROOM * memory:
                return tried, n_bytes / GIB
    return None, n_bytes / GIB


def gpu_rows(chosen: argparse.Namespace, name: str, memory: int) -> list[dict[str, str]]:
    """Return the table train_throughput."""
    try:
        peak = flops.peak_of(name)
    except Stop as stop:
        print(f"{stop}; utilisation is left out")
        peak = None
    context, rows, losses = context_of(on_cpu=False), [], {}
    for words, job, gib in gpu_jobs(chosen, memory):
        one = Found(problem=job) if isinstance(job, str) else found_by(job, context)
        key = words, getattr(job, "recipe", None)
        losses.setdefault(key, one)
        rows.append(_gpu_row(words, job, gib, one, losses[key], peak))
        print(" | ".join(filter(None, rows[-1].values())), flush=True)
    return rows


def _gpu_row(
    words: str, job: Job | str, gib: float, one: Found, first: Found, peak: float | None
) -> dict[str, str]:
    recipe = None if isinstance(job, str) else job.recipe
    used = ""
    if peak and recipe and one.tokens_per_second:
        per_token = flops.flops_per_token(job.shape, recipe, one.row_tokens)
        used = f"{100 * flops.mfu(one.tokens_per_second, per_token, peak):.1f} %"
    off = _off(one, first) if recipe and job.trainer == "TRL" else None
    return {
        "what": words,
        "by": job.trainer if recipe else "",
        "micro-batch": str(recipe.micro_batch) if recipe else "",
        "checkpointing": ("yes" if recipe.gradient_checkpointing else "no") if recipe else "",
        "fill": f"{100 * one.fill_fraction:.0f} %" if one.fill_fraction else "",
        "tokens per second": f"{one.tokens_per_second:,.0f}" if one.tokens_per_second else "",
        "utilisation": used,
        "peak GiB": f"{one.memory_bytes / GIB:.1f}" if one.memory_bytes else "",
        "expected GiB": f"{gib:.1f}",
        "off from ours": "" if off is None else f"{off:.0e}",
        "problem": one.problem,
    }


# ---- the whole --------------------------------------------------------------------------------


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="the tiny model on a CPU, even beside a GPU")
    parser.add_argument("--shapes", nargs="+", choices=GPU_SHAPES, default=list(GPU_SHAPES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batching", nargs="+", choices=("padded", "packed"), default=("padded", "packed"))
    parser.add_argument(
        "--attention", nargs="+", default=["sdpa"], help="transformers' names of implementations"
    )
    parser.add_argument("--steps", type=int, default=6, help="that are timed, after 2 that are not")
    parser.add_argument(
        "--micro-batch", type=int, choices=MICRO_BATCHES, help="instead of the largest that fits"
    )
    parser.add_argument("--liger", action="store_true", help="Liger's fused kernels")
    parser.add_argument("--compile", action="store_true", help="torch's compiler")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="TRL beside ours"
    )
    return parser.parse_args()


def main() -> int:
    """Run the benchmark."""
    from common import machine_line, write_table

    chosen = _options()
    if chosen.steps < 1:
        raise Stop(f"--steps: expected at least 1, got {chosen.steps}")
    if chosen.peers and importlib.util.find_spec("trl") is None:
        print("TRL is not installed (pip install trl): measured without it")
        chosen.peers = False
    found = None if chosen.cpu else gpu()
    packages = [
        f"{p} {version(p)}"
        for p in ("torch", "transformers", "trl", "bitsandbytes")
        if importlib.util.find_spec(p)
    ]
    if found is None:
        if not chosen.cpu:
            print("no CUDA device here: a tiny model is trained on the CPU instead (as --cpu does)")
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        rows, wrong = cpu_rows(chosen.peers)
        name, machine = "train_throughput_cpu", machine_line(*packages)
    else:
        rows, wrong = gpu_rows(chosen, *found), []
        name, machine = "train_throughput", machine_line(f"{found[0]} of {found[1] / GIB:.0f} GiB", *packages)
    print(json.dumps(rows, indent=1, ensure_ascii=False))
    try:
        print(write_table(name, rows, machine))
    except Stop as stop:  # the CSV is safe; the README may not show this table yet
        print(stop)
    for line in wrong:
        print(f"not as it should be: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stop as stop:
        sys.exit(str(stop))
