"""The public samples and evaluation sets: what each is, and where it lies under the folder of the data (DIR).

    dialogues = texts_of(BY_NAME["BELLE"], data)             # lists of texts, the user first
    measured(BY_NAME["BELLE"], data, "rounds/rounds").sums["rounds/rounds"].mean()

Absent on purpose: the data. None of it is ours, and no text of it is written or printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ultrachat import corpora, paper
from ultrachat.errors import Stop
from ultrachat.measure import Plan, Totals, measure

LLAMA = "tokenizers/llama2_tokenizer.model"
Row = dict[str, Any]


class Sample(NamedTuple):
    """One public sample: name, file under DIR, format, where it is from, its licence, what it is; Chinese or not.

    Ours: what could be had offline.
    """

    dataset: str
    path: str
    format: str
    source: str
    licence: str
    note: str
    chinese: bool = False


SAMPLES = (
    Sample("Stanford Alpaca", "alpaca/alpaca_5000.json", "alpaca", "tatsu-lab/stanford_alpaca (pull request)",
           "CC BY-NC 4.0", "random sample of 52,002"),
    Sample("GPT-4-LLM", "gpt4llm/alpaca_en_demo.json", "gpt4llm", "hiyouga/LLaMA-Factory data/alpaca_en_demo.json",
           "CC BY-NC 4.0 (upstream)",
           "English Alpaca prompts only, one part of the 61,002 rows; how they were chosen is not stated"),
    Sample("BELLE", "belle/Belle_open_source_1k.json", "belle", "shibing624/MedicalGPT", "Apache-2.0 (repository)",
           "sample of 1,436,679; how it was drawn is not stated", chinese=True),
    Sample("Dolly", "dolly/databricks_dolly_15k_from_shards.jsonl", "dolly", "george186/LLM_KD", "CC BY-SA (upstream)",
           "whole set, an edition without citation marks; not in the paper's table"),
    Sample("UltraChat (short)", "ultrachat/ultrachat_200k_short_500.jsonl", "ultrachat_200k", "havenhq/mamba-chat",
           "MIT (upstream)", "short dialogues of ultrachat_200k only: no estimate of UltraChat's lengths or rounds"),
    Sample("ShareGPT (Chinese)", "sharegpt/sharegpt_zh_300.jsonl", "sharegpt", "shibing624/MedicalGPT",
           "Apache-2.0 (repository)", "nearly all Chinese; not in the paper's table", chinese=True),
)  # fmt: skip
BY_NAME = {sample.dataset: sample for sample in SAMPLES}
EVALUATION = {
    "Vicuna-80": "vicuna_bench/question.jsonl",
    "UltraChat's 385": "eval/ultra_eval.json",
    "MT-bench": "eval/mt_bench_question.jsonl",
    "AlpacaEval": "alpaca_eval/ultralm-13b.json",
    "TruthfulQA v0": "truthfulqa/v0/TruthfulQA.csv",
    "TruthfulQA v1": "truthfulqa/v1/TruthfulQA.csv",
}
SEGMENTERS = ("characters", "jieba")  # of Chinese, beside "none"


def measured(sample: Sample, data: Path, *keys: str, segmenter: str = "none", n_sample: int = 0) -> Totals:
    """Return the totals of a sample for definitions by key. Raises Stop when it or the tokenizer is missing.

    Ours: the code behind `python -m ultrachat stats`.
    """
    plan = Plan(sample.format, str(data / LLAMA), keys, segmenter, n_sample)
    return measure(data / sample.path, plan, processes=1, progress=False)


def texts_of(sample: Sample, data: Path) -> list[list[str]]:
    """Return a sample's dialogues as lists of texts, the user first.

    Ours: samples fit in memory.
    """
    return list(corpora.read(data / sample.path, sample.format).texts())


def in_paper(dataset: str) -> dict[str, Any]:
    """Return a data set's row of the paper's Table 5 by column, {} when the paper has none.

    Paper: Table 5.
    """
    table = paper.table("table5_statistics").set_index("dataset")
    return dict(table.loc[dataset]) if dataset in table.index else {}


def has(load: Callable[..., Any], *arguments: Any) -> bool:
    """Return whether something optional can be had; where not, one line says what is left out and why.

    Ours: a figure that is missing is not silently missing.
    """
    try:
        load(*arguments)
    except Stop as stop:
        print(f"left out: {stop}", file=sys.stderr)
        return False
    return True
