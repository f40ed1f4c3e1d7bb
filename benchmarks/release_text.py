"""A data set as large as UltraChat's release, made up: nonsense that costs what English costs.

    writer = Writer()
    writer.batch(0)      # the first 256 dialogues, b'{"id": "0", "data": ["Date let in …", "…", …]}\\n…'
    text_rows(file, data, tokenizer)     # the table `release_text`: these texts beside real ones

Words come by Zipf's law out of 400,000 (the recorded pack's by frequency, then compounds of those) or repeat
one shortly before, with sentences, paragraphs, numbered lists and typographic marks; numbers and made-up names keep
bringing pieces never met before, since what is new costs more than what is known. Everything is drawn from
seed 0, batch by batch.

Absent on purpose: meaning. What is counted is time; the statistics of these texts say nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from ultrachat.corpora import Reading, seen_format
from ultrachat.corpora.files import rows as rows_of
from ultrachat.lexical import mtlds
from ultrachat.recorded import load_pack
from ultrachat.runs import DATA
from ultrachat.tokens import token_counter

SEED = 0
N_WORDS = 400_000
# a word of rank r comes about as (r + 2.7) ** -1.2: near the samples from "the" on
ZIPF, MANDELBROT = 1.2, 2.7
REPEATED_SHARE, REPEATED_WITHIN = 0.3, 80  # words taken over from so far back at most: texts have a subject
BATCH = 256  # dialogues; their numbers fit the cache
ROUNDS, ROUNDS_SHARES = (2, 3, 4, 5, 6), (0.12, 0.285, 0.31, 0.195, 0.09)  # 3.85 on average
WORDS_OF = ((42, 0.8), (194, 0.5))  # of a user's, an assistant's message: median and log-normal spread
MARKS = ("", ",", ".", "?", ".\n\n", ".\n")
NONE, COMMA, STOP, QUESTION, PARAGRAPH, ITEM = range(len(MARKS))
NOVEL_SHARE, LISTS_SHARE, TYPOGRAPHIC_SHARE = 0.015, 0.25, 0.15
TYPOGRAPHIC = ("\u201c{}\u201d", "{}\u2019s", "{} \u2013", "caf\u00e9-{}")


def vocabulary() -> list[str]:
    """Return N_WORDS different words: the recorded pack's, most frequent first, then compounds of them."""
    texts = load_pack(DATA / "recorded").values()
    words = [word for word, _ in Counter(re.findall(r"[a-z']+", " ".join(texts).lower())).most_common()]
    rng = np.random.default_rng(SEED)
    known = dict.fromkeys(words)
    parts = [word for word in words if len(word) > 2]
    while len(known) < N_WORDS:
        pairs = rng.integers(len(parts), size=(N_WORDS, 2)).tolist()
        known.update(dict.fromkeys(parts[a] + parts[b][-5:] for a, b in pairs))
    return list(known)[:N_WORDS]


class Writer:
    """Makes batches of the data set; a batch's number decides everything in it."""

    def __init__(self) -> None:
        words = vocabulary()
        self._parts = [word for word in words[500:9_000] if len(word) > 2]
        # a word's row: plain and capitalised, each with every mark
        self._forms = [form + mark for word in words for form in (word, word.capitalize()) for mark in MARKS]

    def batch(self, number: int, n: int = BATCH) -> bytes:
        """Return the lines of `n` dialogues, the first of number `number` × BATCH."""
        rng = np.random.default_rng([SEED, number])
        n_messages = 2 * rng.choice(ROUNDS, n, p=ROUNDS_SHARES)
        by_assistant = np.arange(n_messages.sum()) % 2
        median, spread = np.array(WORDS_OF).T
        drawn = median[by_assistant] * np.exp(spread[by_assistant] * rng.standard_normal(len(by_assistant)))
        sizes = np.maximum(drawn, 4).astype(np.int64)
        words = self._words(rng, sizes)
        bounds = [0, *accumulate(sizes.tolist())]
        texts = [" ".join(words[a:b]).replace("\n ", "\n") for a, b in pairwise(bounds)]
        bounds = [0, *accumulate(n_messages.tolist())]
        lines = [
            json.dumps({"id": str(number * BATCH + i), "data": texts[a:b]})
            for i, (a, b) in enumerate(pairwise(bounds))
        ]
        return ("\n".join(lines) + "\n").encode()

    def _words(self, rng: np.random.Generator, sizes: np.ndarray) -> list[str]:
        """Return the words of messages of these sizes, one after another, with their marks."""
        n, first = int(sizes.sum()), np.cumsum(sizes) - sizes
        last = first + sizes - 1
        ranks = _ranks(rng, n)
        chance = rng.random(n, dtype=np.float32)
        marks = np.select(
            [chance < 0.06, chance < 0.064, chance < 0.10, chance < 0.125],
            [STOP, QUESTION, COMMA, PARAGRAPH],
            NONE,
        )
        listing = np.repeat(rng.random(len(sizes)) < LISTS_SHARE, sizes)
        marks[listing & (marks == PARAGRAPH)] = ITEM
        marks[last] = STOP
        items = np.flatnonzero(marks[:-1] == ITEM) + 1  # a number stands there
        marks[items[marks[items] == ITEM]] = NONE
        items = np.flatnonzero(marks[:-1] == ITEM) + 1
        capital = np.zeros(n, bool)
        capital[1:] = marks[:-1] > COMMA
        capital[first] = True
        capital[np.minimum(items + 1, n - 1)] = True
        codes = (ranks * 2 + capital) * len(MARKS) + marks
        words = list(map(self._forms.__getitem__, codes.tolist()))
        self._novel(rng, words, marks)
        typographic = np.repeat(rng.random(len(sizes)) < TYPOGRAPHIC_SHARE, sizes)
        typographic &= (rng.random(n, dtype=np.float32) < 0.04) & (marks == NONE)
        for at in np.flatnonzero(typographic).tolist():
            words[at] = TYPOGRAPHIC[at % len(TYPOGRAPHIC)].format(words[at])
        of_message = np.repeat(np.arange(len(sizes)), sizes)[items]
        numbers = np.arange(len(items)) - np.searchsorted(items, first)[of_message] + 1
        for at, number in zip(items.tolist(), numbers.tolist(), strict=True):
            words[at] = f"{number}."
        return words

    def _novel(self, rng: np.random.Generator, words: list[str], marks: np.ndarray) -> None:
        """Put numbers and made-up names in place of some words."""
        places = np.flatnonzero(rng.random(len(words), dtype=np.float32) < NOVEL_SHARE)
        parts, n = self._parts, len(self._parts)
        drawn = rng.integers(n, size=(len(places), 3)).tolist()
        values = (10 ** (6 * rng.random(len(places)))).astype(np.int64).tolist()
        after = marks[places].tolist()
        for at, mark, (a, b, c), value in zip(places.tolist(), after, drawn, values, strict=True):
            name = f"{value:,}" if c % 3 == 0 else (parts[a][:4] + parts[b][-4:]).capitalize()
            words[at] = name + MARKS[mark]


def _ranks(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return the ranks of n words from 0, by the inverse of the distribution; some repeat one before them."""
    head, tail = MANDELBROT ** (1 - ZIPF), (N_WORDS + MANDELBROT) ** (1 - ZIPF)
    drawn = head - rng.random(n) * (head - tail)
    ranks = (drawn ** (1 / (1 - ZIPF)) - MANDELBROT).astype(np.int64)
    again = np.flatnonzero(rng.random(n, dtype=np.float32) < REPEATED_SHARE)
    ranks[again] = ranks[np.maximum(again - rng.integers(1, REPEATED_WITHIN, len(again)), 0)]
    return np.minimum(ranks, N_WORDS - 1)


_writer: Writer  # of a worker process


def begin() -> None:
    """Make ready a process whose part is to write batches; see `grow`."""
    global _writer
    _writer = Writer()


def _batch(number_and_size: tuple[int, int]) -> bytes:
    return _writer.batch(*number_and_size)


def grow(path: Path, n_before: int, n: int, pool: ProcessPoolExecutor) -> None:
    """Append the dialogues from `n_before`, a multiple of BATCH, up to `n`, and let them reach the disk."""
    batches = [(start // BATCH, min(BATCH, n - start)) for start in range(n_before, n, BATCH)]
    with path.open("ab") as file:
        for at in range(0, len(batches), 16):  # bounds what waits to be written
            for lines in pool.map(_batch, batches[at : at + 16]):
                file.write(lines)
        file.flush()
        os.fsync(file.fileno())


# ---- how like English? ------------------------------------------------------------------------

SAMPLES = (
    "alpaca/alpaca_5000.json",
    "dolly/databricks_dolly_15k_from_shards.jsonl",
    "ultrachat/ultrachat_200k_short_500.jsonl",
)
AFTER_A_WORD = re.compile(r"(?<=\S) ")


def text_rows(path: Path, data: Path, tokenizer: str) -> list[dict[str, str]]:
    """Return the properties and the speeds of real texts and of as many bytes of ours."""
    real = [text for name in SAMPLES for text in texts_of(data / name)]
    n_bytes = sum(len(text.encode()) for text in real)
    np.random.default_rng(SEED).shuffle(real)
    made, size = [], 0
    for text in texts_of(path):
        made.append(text)
        size += len(text.encode())
        if size >= n_bytes:
            break
    both = {"real samples": real, "made up": made}
    return [_properties(what, texts, tokenizer) for what, texts in both.items()]


def texts_of(path: Path) -> Iterator[str]:
    """Yield all messages of a file."""
    for texts in Reading(rows_of(path), seen_format(path)).texts():
        yield from texts


def _properties(what: str, texts: list[str], tokenizer: str) -> dict[str, str]:
    n_bytes = sum(len(text.encode()) for text in texts)
    pieces = [piece for text in texts for piece in AFTER_A_WORD.split(text)]
    tenth = len(pieces) // 10
    met, later = set(pieces[:-tenth]), pieces[-tenth:]
    counter = token_counter(tokenizer)
    began = time.process_time()
    n_tokens = int(counter.many(texts).sum())
    cold = time.process_time() - began
    began = time.process_time()
    counter.many(texts)
    warm = time.process_time() - began
    mtlds(texts[:10])
    began = time.process_time()
    values = mtlds(texts)
    diversity = time.process_time() - began
    return {
        "text": what,
        "MB": f"{n_bytes / 1e6:.1f}",
        "bytes per piece": f"{n_bytes / len(pieces):.2f}",
        "bytes per token": f"{n_bytes / n_tokens:.2f}",
        "different pieces": f"{len(met | set(later)):,}",
        "new in the last tenth": f"{len(set(later) - met) / tenth:.1%}".replace("%", " %"),
        "texts not ASCII": f"{sum(not text.isascii() for text in texts) / len(texts):.0%}".replace("%", " %"),
        "line breaks per 1,000 pieces": f"{1000 * sum(text.count(chr(10)) for text in texts) / len(pieces):.0f}",
        "mean MTLD": f"{np.nanmean(values):.1f}",
        "MTLD, MB per CPU second": f"{n_bytes / 1e6 / diversity:.0f}",
        "tokens, first pass": f"{n_bytes / 1e6 / cold:.1f}",
        "tokens, second pass": f"{n_bytes / 1e6 / warm:.1f}",
    }
