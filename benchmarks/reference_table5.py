"""Our Table 5 figures on public samples, with LLaMA's tokenizer: is our metric right?

    python benchmarks/reference_table5.py --data DIR

DIR is laid out as `SAMPLES` says and holds `tokenizers/llama2_tokenizer.model`. Writes
`data/reference/table5.csv` (derived numbers only; what each sample is stands in the README there)
and prints the counts of rows read and, for Alpaca, every reading of every column.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ultrachat import corpora, statistics
from ultrachat.errors import Stop
from ultrachat.records import Dialogue

OUT = Path(__file__).resolve().parent.parent / "data" / "reference" / "table5.csv"
TOKENIZER = "tokenizers/llama2_tokenizer.model"
COLUMNS = (
    "dataset",
    "source",
    "n_dialogues",
    "rounds",
    "dialogue_tokens",
    "dialogue_tokens_se",
    "utterance_tokens",
    "utterance_tokens_se",
    "lexical_diversity",
    "lexical_diversity_se",
    "n_utterances",
    "note",
)


class Sample(NamedTuple):
    """One public sample: name, file under DIR, format, where it is from, what it is; Chinese or not.

    Ours: what could be had offline.
    """

    dataset: str
    path: str
    format: str
    source: str
    note: str
    chinese: bool = False


SAMPLES = (
    Sample(
        "Stanford Alpaca",
        "alpaca/alpaca_5000.json",
        "alpaca",
        "tatsu-lab/stanford_alpaca (pull request)",
        "random sample of 52,002",
    ),
    Sample(
        "GPT-4-LLM",
        "gpt4llm/alpaca_en_demo.json",
        "gpt4llm",
        "hiyouga/LLaMA-Factory data/alpaca_en_demo.json",
        "English Alpaca prompts only, one part of the 61,002 rows; how they were chosen is not stated",
    ),
    Sample(
        "Dolly",
        "dolly/databricks_dolly_15k_from_shards.jsonl",
        "dolly",
        "george186/LLM_KD",
        "whole set, an edition without citation marks; not in the paper's table",
    ),
    Sample(
        "UltraChat (short)",
        "ultrachat/ultrachat_200k_short_500.jsonl",
        "ultrachat_200k",
        "havenhq/mamba-chat",
        "short dialogues of ultrachat_200k only: no estimate of UltraChat's lengths or rounds",
    ),
    Sample(
        "BELLE",
        "belle/Belle_open_source_1k.json",
        "belle",
        "shibing624/MedicalGPT",
        "sample of 1,436,679; how it was drawn is not stated",
        chinese=True,
    ),
    Sample(
        "ShareGPT (Chinese)",
        "sharegpt/sharegpt_zh_300.jsonl",
        "sharegpt",
        "shibing624/MedicalGPT",
        "nearly all Chinese; not in the paper's table",
        chinese=True,
    ),
)


def chinese_note(dialogues: list[Dialogue]) -> str:
    """Return what LexicalRichness does with these answers, in figures.

    Ours: the paper prints 35.9 for BELLE and does not say how Chinese was split into words.
    """
    from lexicalrichness import LexicalRichness

    answers = [text for dialogue in dialogues for text in statistics.texts_of(dialogue)]
    n_words = np.median([LexicalRichness(text).words for text in answers])
    n_characters = np.median([len(text) for text in answers])
    return (
        "Chinese: LexicalRichness splits at white space and ASCII punctuation and its 'word' is about a "
        f"clause (median {n_words:.0f} in an answer of median {n_characters:.0f} characters): the MTLD is "
        "not comparable with English"
    )


def reference_row(sample: Sample, data: Path) -> dict[str, Any]:
    """Return the CSV row of one sample under `data`; prints how many rows were read.

    Raises Stop when the sample or the tokenizer is missing.

    Paper: Table 5, in the readings `ultrachat.statistics` takes for the paper's.
    """
    reading = corpora.read(data / sample.path, sample.format)
    dialogues = list(reading)
    print(f"{sample.dataset}: {reading.summary()}")
    row = statistics.table5_row(dialogues, tokenizer=data / TOKENIZER, name=sample.dataset)
    notes = [sample.note]
    if reading.n_empty:
        notes.append(f"left out for an empty message: {reading.n_empty}")
    if sample.chinese:
        notes.append(chinese_note(dialogues))
    row |= {"source": sample.source, "n_utterances": row["utterance_tokens_n"], "note": "; ".join(notes)}
    return {name: f"{row[name]:.3f}" if isinstance(row[name], float) else row[name] for name in COLUMNS}


def main() -> None:
    """Write the CSV and print it.

    Ours: the middle column of `paper says | published data, our code | our run`.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public samples")
    parser.add_argument("--out", type=Path, default=OUT, help="the CSV to write (default: data/reference)")
    arguments = parser.parse_args()
    rows = [reference_row(sample, arguments.data) for sample in SAMPLES]
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(" · ".join(f"{name} {row[name]}" for name in COLUMNS if name not in ("source", "note")))
    alpaca = corpora.read(arguments.data / SAMPLES[0].path)
    print(statistics.compare_definitions(alpaca, tokenizer=arguments.data / TOKENIZER).round(2).to_string())


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(str(stop))
