"""The model card: what a folder of weights is, written from the run's own records and from nothing else.

    write_card(folder, {"base": "huggyllama/llama-13b", "dialogues": […], …}, result)      # folder/README.md

A hub shows it beside the weights; a reader who finds the folder years later learns how to ask the model.

Absent on purpose: praise, intended uses, and any number that the run did not measure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from typing import Any

import yaml

from ultrachat.runs import commit, write_text
from ultrachat.training import TrainingResult

ASKED = {
    "ultrallama": "`<s>User: {question}</s>\\nAssistant: `, as `ultrachat.sft.Encoder(tokenizer).prompt` makes it",
    "template": "the tokenizer's own chat template",
    "platolm": "PlatoLM's, which is its tokenizer's chat template",
    "parrot": "Parrot's, which is its tokenizer's chat template",
}


def write_card(folder: Path, job: Mapping[str, Any], result: TrainingResult) -> Path:
    """Write `README.md` into the model's folder and return its path.

    `job` holds base, dialogues, rows (what splitting did), format, learn, system, max_tokens and recipe.

    Ours: hubs show a README with a YAML head.
    """
    path = folder / "README.md"
    write_text(path, card(job, result))
    return path


def card(job: Mapping[str, Any], result: TrainingResult) -> str:
    """Return the card's text.

    Ours: see `write_card`.
    """
    recipe = job["recipe"] if isinstance(job["recipe"], dict) else asdict(job["recipe"])
    kind = "LoRA adapter" if recipe["lora_rank"] else "fine-tuned model"
    head = {"base_model": job["base"], "library_name": "peft" if recipe["lora_rank"] else "transformers",
            "pipeline_tag": "text-generation", "tags": ["ultrachat", "sft"]}  # fmt: skip
    asked = ASKED[job["format"]] + (
        f", after the system prompt {_code(repr(job['system']))}" if job["system"] else ""
    )
    return f"""---
{yaml.safe_dump(head, allow_unicode=True, sort_keys=False, width=float("inf"))}---

# A {kind} of {_code(job["base"])}

Trained on the {job["learn"]}'s messages of {", ".join(map(_code, job["dialogues"]))}:
{job["rows"]}, each row of at most {job["max_tokens"]:,} tokens.

It wants to be asked in the format it was trained in: {asked}.

| | |
|---|---|
| steps | {result.n_steps:,} |
| tokens read | {result.n_tokens:,} |
| parameters | {result.n_parameters:,}, of them trained {result.n_trainable:,} |
{_losses(result)}| code | ultrachat, commit {commit()} |

## Recipe

| | |
|---|---|
{chr(10).join(f"| {name} | {_cell(value)} |" for name, value in recipe.items())}
{"" if not recipe["load_in_4bit"] else chr(10) + "The base was held in 4 bits (NF4) while the adapter was trained." + chr(10)}"""


def _losses(result: TrainingResult) -> str:
    """Rows of the table: the held-out loss before and after, in all and by round and sector, where there is one."""
    measured = [row for row in result.log if row["eval_loss"] is not None]
    first, last = (measured[0], measured[-1]) if measured else ({}, {})
    names = [name for name in last if name.startswith("eval_") and not isnan(first.get(name, nan))]
    words = {name: name.removeprefix("eval_").replace("_", " ") for name in names} | {"eval_loss": "all"}
    return "".join(
        f"| held-out loss, {words[name]} | {first[name]:.3f} before, {last[name]:.3f} after |\n"
        for name in names
    )


def _code(text: str) -> str:
    """A name as code on one line, so that nothing in it is taken for Markdown."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))  # one more than any inside
    return f"`{line}`" if fence == "`" else f"{fence} {line} {fence}"


def _cell(value: Any) -> str:
    return _code(value).replace("|", r"\|") if isinstance(value, str) else str(value)
