"""Files of dialogues to their row of Table 5: what `python -m ultrachat stats FILE` does.

    described = describe([Path("alpaca_data.json")], Options(tokenizer="llama/tokenizer.model"))
    print(described)                                  # column, reading, value, se, n; rows read; what was bad
    described.save(Path("alpaca.csv"))                # or .md, or .json

Every column of the table has its reading beside it, and the reading is a parameter: the default readings are
those that reproduce the paper, with LLaMA's tokenizer, which may not be shipped: without `tokenizer`, words
and marks are counted and the table says so. `beside` puts the paper's own figures next to ours.

Absent on purpose: how it is measured (`measure`), what the readings mean (`statistics`), the judge's
column, which costs money (notebook 06).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ultrachat import embeddings, paper
from ultrachat.contamination import Overlap
from ultrachat.corpora import FORMATS, Counts, read, seen_format
from ultrachat.corpora.published import CATALOGUE, download
from ultrachat.duplicates import Duplicates, near_duplicates
from ultrachat.endpoints import Endpoint
from ultrachat.errors import Stop
from ultrachat.lexical import SEGMENTERS
from ultrachat.measure import Plan, Totals, forget, measure, measure_on_ray
from ultrachat.runs import runs_folder, write_bytes
from ultrachat.statistics import DEFINITIONS, SIMILARITIES, compare_definitions, definition
from ultrachat.tokens import token_counter, tokenizer_label
from ultrachat.topics import PAPER_SAMPLE, TopicDiversity, topic_diversity

FEWEST = 30  # values, below which a standard error is too rough to count distances in
NO_SERVER = ("best", "none", embeddings.MINILM, embeddings.TFIDF)
SUFFIXES = (".csv", ".md", ".json")
READ_BY = {"dialogue": "dialogue_tokens", "utterance": "utterance_tokens", "similarity": "topic_diversity"}


@dataclass(frozen=True)
class Options:
    """How files are described; every field is an option of the command line with the same name.

    Ours: definitions are parameters with names; the default readings are those that reproduce the paper.
    """

    tokenizer: str = "words"
    utterance: str = "assistant"
    dialogue: str = "labels"
    similarity: str = "pairs"
    every_reading: bool = False
    segmenter: str = "none"
    embeddings: str = "best"
    base_url: str | None = None
    price_usd: float | None = None
    budget_usd: float | None = None
    n_sample: int = PAPER_SAMPLE
    evaluation: tuple[tuple[str, str], ...] = ()
    near_duplicates: bool = False
    beside: str | None = None
    format: str | None = None
    strict: bool = False
    processes: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        definition("lexical_diversity", self.utterance)
        if self.similarity not in SIMILARITIES:
            raise Stop(f"similarity '{self.similarity}': expected one of {', '.join(SIMILARITIES)}")
        if self.n_sample < 0 or (self.processes is not None and self.processes < 1):
            raise Stop("n_sample, processes: expected whole numbers, n_sample of at least 0, processes of 1")
        if self.base_url is not None and (self.embeddings in NO_SERVER or self.embeddings.endswith(".npy")):
            raise Stop(f"base_url: expected the name of a model there in embeddings, got '{self.embeddings}'")
        if self.base_url is None and (self.price_usd is not None or self.budget_usd is not None):
            raise Stop("price_usd, budget_usd: only a server at base_url costs anything")
        if len({name for name, _ in self.evaluation}) < len(self.evaluation):
            raise Stop("evaluation: two sets of one name, expected different ones")
        if self.beside is not None:
            paper.printed("table5_statistics", self.beside, "rounds")
        definition("dialogue_tokens", self.dialogue)

    @property
    def definitions(self) -> tuple[str, ...]:
        """The keys of what is measured: one reading a column, or every one."""
        if self.every_reading:
            return tuple(d.key for d in DEFINITIONS)
        chosen = (("rounds", None), ("dialogue_tokens", self.dialogue), ("utterance_tokens", self.utterance),
                  ("lexical_diversity", self.utterance))  # fmt: skip
        return tuple(definition(column, reading).key for column, reading in chosen)


@dataclass(frozen=True)
class Description:
    """What `describe` found: the table, what became of the rows, and the evaluation questions met.

    `table` has the columns column, reading, value, se, n, and with `beside` paper and errors_apart
    ((value - paper) / se). That is missing where the two cannot be compared: lengths in other tokens than
    LLaMA's, topic diversity by whatever embedding (the paper's is not named), fewer than 30 values.

    Ours: a row of Table 5 with its errors and definitions.
    """

    files: tuple[str, ...]
    tokenizer: str
    embedding: str
    table: pd.DataFrame
    counts: Counts
    overlap: Overlap | None
    duplicates: Duplicates | None

    def __str__(self) -> str:
        parts = [
            f"{', '.join(self.files)}\ntokens: {self.tokenizer}; topic diversity: {self.embedding}",
            self.table.to_string(index=False, float_format="{:,.3f}".format, na_rep="–"),
            self.counts.summary(),
            *(f"  bad: {line}" for line in self.counts.problems[:5]),
        ]
        if self.overlap is not None:
            parts.append(self.overlap.table().reset_index().to_string(index=False, max_colwidth=60))
        if self.duplicates is not None:
            found = self.duplicates
            parts.append(
                f"openings: {found.n:,}, of them {found.n_exact:,} exact and {found.n_near:,} near duplicates"
            )
        return "\n".join(parts)

    def save(self, path: Path) -> None:
        """Write the table to `path`: .csv, .md or .json (which holds all the rest too).

        Ours: figures are copied by code, never by hand.
        """
        if path.suffix == ".csv":
            text = self.table.to_csv(index=False)
        elif path.suffix == ".md":
            text = f"{paper.to_markdown(self.table.round(3))}\n\n{self.counts.summary()}\n"
        else:
            text = json.dumps(self._as_json(), indent=1, ensure_ascii=False) + "\n"
        write_bytes(path, text.encode())

    def _as_json(self) -> dict[str, Any]:
        rows = [
            {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in row.items()
            }
            for row in self.table.to_dict("records")
        ]
        return {
            "files": self.files,
            "tokenizer": self.tokenizer,
            "embedding": self.embedding,
            "table": rows,
            "counts": {f.name: getattr(self.counts, f.name) for f in fields(Counts)},
            "overlap": None if self.overlap is None else self.overlap.model_dump(mode="json"),
            "duplicates": None
            if self.duplicates is None
            else {name: getattr(self.duplicates, name) for name in ("n", "n_exact", "n_near")},
        }


def describe(files: list[Path], options: Options, *, progress: bool = True) -> Description:
    """Return the `Description` of the dialogues in `files`, all together.

    What was measured is kept in runs/stats until everything is done: the same call goes on after a kill.
    Raises Stop for a wrong option, a file that cannot be read or is named twice, or files without a dialogue.

    Paper: Table 5.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise Stop("files: one is named twice, and its dialogues would count twice")
    vectors = _vectors_given(options.embeddings)
    model = _model(options) if vectors is None else "none"
    kept = runs_folder() / "stats"
    plans = [_plan(file, options, sampled=model != "none" and options.n_sample > 0) for file in files]
    totals: Totals | None = None
    for file, plan in zip(files, plans, strict=True):
        if options.ray is not None:
            found = measure_on_ray(file, plan, processes=options.processes, address=options.ray)
        else:
            found = measure(
                file, plan, processes=options.processes, checkpoints=kept, keep=True, progress=progress
            )
        totals = found if totals is None else totals + found
    if totals is None or not totals.counts.n_dialogues:
        raise Stop(f"{', '.join(map(str, files)) or 'files'}: no dialogue in it")
    topic, label = _topic(totals, options, model, vectors, kept, progress)
    openings = (
        texts[0] for file, plan in zip(files, plans, strict=True) for texts in read(file, plan.format).texts()
    )
    drawn = None  # beside all dialogues, the paper's way: a sample
    if vectors is not None and 0 < options.n_sample < len(vectors):
        drawn = topic_diversity(vectors, options.n_sample)
    described = Description(
        tuple(file.name for file in files), tokenizer_label(options.tokenizer), label,
        _table(totals, options, topic, drawn), totals.counts, totals.overlap,
        near_duplicates(openings) if options.near_duplicates else None,
    )  # fmt: skip
    for file, plan in zip(files, plans, strict=True):
        forget(file, plan, kept)
    return described


def _plan(file: Path, options: Options, sampled: bool) -> Plan:
    return Plan(
        format=options.format or seen_format(file),
        tokenizer=options.tokenizer,
        definitions=options.definitions,
        segmenter=options.segmenter,
        n_sample=options.n_sample if sampled else 0,
        evaluation=options.evaluation,
        strict=options.strict,
    )


def _topic(
    totals: Totals,
    options: Options,
    model: embeddings.Model,
    vectors: np.ndarray | None,
    kept: Path,
    progress: bool,
) -> tuple[TopicDiversity | None, str]:
    """Return topic diversity, of given vectors or of a sample to be embedded, and how the table names that."""
    n = totals.counts.n_dialogues
    if vectors is not None:
        if len(vectors) != n:
            raise Stop(
                f"{options.embeddings}: {len(vectors):,} vectors, expected one for each of the {n:,} dialogues, in their order"
            )
        return topic_diversity(vectors), f"vectors of {Path(options.embeddings).name}, all {n:,} dialogues"
    if totals.sample is None:
        return None, "not asked for"
    texts = totals.sample.texts()
    embedded = embeddings.embed(
        texts,
        model,
        cache=kept / "embeddings.sqlite",
        prices=None if options.price_usd is None else {options.embeddings: [options.price_usd, 0.0]},
        budget_usd=options.budget_usd,
        progress="embeddings" if progress else None,
    )
    return topic_diversity(embedded), f"{embeddings.label(model)}, {len(texts):,} of {n:,} dialogues"


def _model(options: Options) -> embeddings.Model:
    """Return what `embeddings.embed` calls the model, "none" for none; Stop where it cannot be had."""
    if options.base_url is not None:
        return Endpoint(options.base_url, options.embeddings)
    if options.embeddings == "best":
        return embeddings.best_offline()
    if options.embeddings != "none":
        embeddings.label(options.embeddings)
    return options.embeddings


def _vectors_given(name: str) -> np.ndarray | None:
    if not name.endswith(".npy"):
        return None
    try:
        vectors = np.load(name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Stop(f"{name}: cannot be read as an array of numbers ({str(error)[:100]})") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise Stop(f"{name}: expected an array of numbers with a row for each dialogue")
    return vectors


def _table(
    totals: Totals, options: Options, topic: TopicDiversity | None, drawn: TopicDiversity | None
) -> pd.DataFrame:
    chosen = [d for d in DEFINITIONS if d.key in options.definitions]
    table = compare_definitions(totals.sums, chosen, topic)
    if not options.every_reading:
        table = table[(table["column"] != "topic_diversity") | (table["reading"] == options.similarity)]
        table = table.drop(columns="used")
    if drawn is not None:
        value = getattr(drawn, SIMILARITIES[options.similarity])
        reading = f"{options.similarity}, {drawn.n:,} drawn"
        more = {"column": "topic_diversity", "reading": reading, "value": value, "se": drawn.se, "n": drawn.n}
        table = pd.concat([table, pd.DataFrame([more | ({"used": False} if options.every_reading else {})])])
    if options.beside is None:
        return table.reset_index(drop=True)
    printed = paper.table("table5_statistics").set_index("dataset").loc[options.beside]
    table = table.assign(paper=[printed[column] for column in table["column"]])
    apart = (table["value"] - table["paper"]) / table["se"].where(table["se"] > 0)
    comparable = {"rounds", "lexical_diversity"}
    if token_counter(options.tokenizer).like_llama:
        comparable |= {"dialogue_tokens", "utterance_tokens"}
    meaningful = table["column"].isin(comparable) & (table["n"] >= FEWEST)
    return table.assign(errors_apart=apart.where(meaningful)).reset_index(drop=True)


# ---- the command ------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m ultrachat stats` to a parser.

    Ours: one command for any sample in any format.
    """
    readings = {c: [d.reading for d in DEFINITIONS if d.column == c] for c in READ_BY.values()}
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="JSONL, JSON array, Parquet, .gz or .zst; or a name of the catalogue, "
        "to be downloaded: " + ", ".join(CATALOGUE))  # fmt: skip
    add(
        "--tokenizer",
        default="words",
        help="words, whitespace, a .model or tokenizer.json, tiktoken:NAME, a hub id",
    )
    add(
        "--utterance",
        default="assistant",
        choices=readings["utterance_tokens"],
        help="whose messages are utterances",
    )
    add(
        "--dialogue",
        default="labels",
        choices=readings["dialogue_tokens"],
        help="what of a dialogue is counted",
    )
    add("--similarity", default="pairs", choices=list(SIMILARITIES), help="how topic diversity is read")
    add("--every-reading", action="store_true", help="every reading of every column")
    add("--segmenter", default="none", choices=SEGMENTERS, help="words of Chinese, for lexical diversity")
    add("--embeddings", default="best", metavar="MODEL", help="minilm, tfidf, a model's folder, none, or a .npy file "
        "with a vector for each dialogue (default: minilm where installed)")  # fmt: skip
    add("--base-url", metavar="URL", help="ask this OpenAI-compatible server for the embeddings of MODEL")
    add("--price-usd", type=float, help="what a million tokens cost there")
    add("--budget-usd", type=float, help="the most that may be spent there")
    add(
        "--n-sample",
        type=int,
        default=PAPER_SAMPLE,
        help="dialogues embedded for topic diversity (default: 10000)",
    )
    add(
        "--evaluation",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="count its questions among the dialogues",
    )
    add(
        "--near-duplicates",
        action="store_true",
        help="count openings that resemble an earlier one (a kilobyte of memory each)",
    )
    add("--beside", metavar="DATASET", help="put a row of the paper's Table 5 beside, as 'Stanford Alpaca'")
    add("--format", choices=FORMATS, help="seen from the first row unless given")
    add("--strict", action="store_true", help="stop at the first bad row")
    add("--processes", type=int, help="default: all cores")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="by Ray Data: on the cluster at ADDRESS, or on this machine",
    )
    add(
        "--out", type=Path, action="append", default=[], help="also write the table to FILE.csv, .md or .json"
    )


def run(chosen: argparse.Namespace) -> None:
    """Describe what the parsed arguments of `add_arguments` name, print it, and write it where they say.

    Raises Stop as `describe` does, and before anything is measured for an --out of another kind.

    Ours: one command for any sample in any format.
    """
    for path in chosen.out:
        if path.suffix not in SUFFIXES:
            raise Stop(f"--out {path}: expected a file ending in {', '.join(SUFFIXES)}")
        if path.is_dir() or (path.parent.exists() and not os.access(path.parent, os.W_OK)):
            raise Stop(f"--out {path}: cannot be written there")
    options = Options(
        **{f.name: getattr(chosen, f.name) for f in fields(Options) if f.name != "evaluation"},
        evaluation=tuple(_named_file(text) for text in chosen.evaluation),
    )
    described = describe([file for name in chosen.files for file in _files_of(name)], options)
    print(described)
    for path in chosen.out:
        described.save(path)


def _named_file(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise Stop(f"--evaluation {text}: expected NAME=FILE")
    return name, file


def _files_of(name: str) -> list[Path]:
    """Return the file of that name, or those of the data set of that name, downloaded if need be."""
    path = Path(name)
    return download(name, runs_folder() / "corpora") if name in CATALOGUE and not path.exists() else [path]
