"""How we know what Table 5 means: its columns in every reading on two samples, and UltraChat's arithmetic.

A dialogue's length minus its answer's is what settles the format: both vary from row to row by the
answer's length, their difference does not, so its standard error is a quarter as large.

Absent on purpose: a search that stops at the first fit. Every reading tried is a row.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rows import apart
from samples import BY_NAME, LLAMA, SEGMENTERS, Row, has, in_paper, measured, texts_of

from ultrachat import lexical
from ultrachat.statistics import DEFINITIONS, Batch, definition, labelled_text, one_each
from ultrachat.sums import Mean, Sums
from ultrachat.tokens import TokenCounter, Tokenizer, token_counter

Texts = Sequence[str]


# ---- tokenizers -------------------------------------------------------------------------------


def _whole_texts(counts: Callable[[Texts], list[int]]) -> TokenCounter:
    return TokenCounter(Tokenizer(counts, cuttable=False))


def llama(data: Path, marks: int = 0) -> TokenCounter:
    """Return LLaMA's counter; `marks` are counted with every text, as its default settings do.

    Paper: Table 5 (the one of which Alpaca's figures come out).
    """
    count = token_counter(data / LLAMA)
    return _whole_texts(lambda texts: (count.many(texts) + marks).tolist())


def gpt2(data: Path) -> TokenCounter:
    """Return GPT-2's counter, put together from its two files.

    Ours: a tokenizer of the time.
    """
    import tokenizers

    files = [str(data / "tokenizers" / name) for name in ("gpt2_encoder.json", "gpt2_vocab.bpe")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _whole_texts(lambda texts: [len(one.ids) for one in tokenizer.encode_batch_fast(list(texts))])


def cl100k(data: Path) -> TokenCounter:
    """Return the counter of cl100k_base; tiktoken checks the digest of its merges. Raises Stop without tiktoken.

    Ours: ChatGPT's tokenizer, which somebody who measures ChatGPT's dialogues might take.
    """
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    kept = os.environ.get("TIKTOKEN_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:  # where tiktoken looks before it asks the network
        name = hashlib.sha1(url.encode()).hexdigest()
        shutil.copyfile(data / "tokenizers" / "cl100k_base.tiktoken", Path(folder, name))
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            return token_counter("tiktoken:cl100k_base")
        finally:
            os.environ.pop("TIKTOKEN_CACHE_DIR")
            if kept is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = kept


def chinese_words(segmenter: str, data: Path) -> TokenCounter:
    """Return a counter of the words a segmenter finds; needs no data. Raises Stop as `lexical.segmenter` does.

    Ours: BELLE's lengths are not in LLaMA's tokens.
    """
    segment = lexical.segmenter(segmenter)
    return _whole_texts(lambda texts: [len(segment(text).split()) for text in texts])


COUNTERS: dict[str, Callable[[Path], TokenCounter]] = {
    "LLaMA": llama,
    "LLaMA, beginning mark": partial(llama, marks=1),
    "GPT-2": gpt2,
    "cl100k_base": cl100k,
    "white space": lambda data: token_counter("whitespace"),
}
CHINESE_COUNTERS = {name: COUNTERS[name] for name in ("LLaMA", "GPT-2", "cl100k_base")} | {
    name: partial(chinese_words, name) for name in SEGMENTERS
}


# ---- definitions.csv --------------------------------------------------------------------------

Found = tuple[str, str, Mean]  # column, reading, mean
_U, _D, _MINUS, _L = "utterance_tokens", "dialogue_tokens", "dialogue_minus_utterance", "lexical_diversity"
# for other tokenizers than LLaMA's: readings that differ by more than a constant
TRIED = (f"{_U}/assistant", f"{_U}/user", f"{_U}/all", f"{_D}/bare", f"{_D}/labels, no beginning mark")
SEGMENTED_BY = {"none": "LexicalRichness", "characters": "characters", "jieba": "jieba"}


def definition_rows(
    data: Path,
    dataset: str = "Stanford Alpaca",
    counters: Mapping[str, Callable[[Path], TokenCounter]] = COUNTERS,
    segmenters: Sequence[str] = ("none",),
) -> Iterator[Row]:
    """Yield the rows of definitions.csv for one sample: every reading by every tokenizer and segmenter.

    Ours: how we know what Table 5 means.
    """
    dialogues, printed = texts_of(BY_NAME[dataset], data), in_paper(dataset)
    printed[_MINUS] = round(printed[_D] - printed[_U], 1)  # of two figures with one digit after the point
    for split_by, load in counters.items():
        if has(load, data):
            found = _lengths(load(data), dialogues, every=split_by == "LLaMA")
            if dataset == "Stanford Alpaca" and split_by == "LLaMA":
                found += _templates(data)
            yield from _rows(dataset, split_by, found, printed)
    for name in segmenters:
        if has(lexical.segmenter, name):
            yield from _rows(dataset, SEGMENTED_BY[name], _diversities(dialogues, name), printed)


def all_definition_rows(data: Path) -> Iterator[Row]:
    """Yield the rows of definitions.csv: the sample that settles the definitions, and the one that does not.

    Ours: BELLE stays open, and one can see why.
    """
    yield from definition_rows(data)
    yield from definition_rows(data, "BELLE", CHINESE_COUNTERS, tuple(SEGMENTED_BY))


def _rows(dataset: str, split_by: str, found: list[Found], printed: Row) -> Iterator[Row]:
    for column, reading, mean in sorted(found, key=lambda one: (_U, _D, _MINUS, _L).index(one[0])):
        ours = definition(_D if column == _MINUS else column).reading
        used = "yes" if split_by in ("LLaMA", "LexicalRichness") and reading == ours else "no"
        which = {"dataset": dataset, "column": column, "reading": reading, "split_by": split_by}
        yield which | {"used": used} | apart(mean, printed[column])


def _lengths(count: TokenCounter, dialogues: list[list[str]], every: bool) -> list[Found]:
    """Both length columns in `every` reading or in those of `TRIED`, and their difference."""
    batch = Batch(dialogues, count)
    chosen = [d for d in DEFINITIONS if d.key in TRIED or (every and d.column == _D)]
    found = [(d.column, d.reading, Sums.of(*d.measure(batch)).mean()) for d in chosen]
    answers = batch.tokens_by("assistant")[0]
    for d in chosen:
        if d.column == _D:
            rest = one_each(d.measure(batch)[0] - answers)
            found.append((_MINUS, d.reading, Sums.of(*rest).mean()))
    return found


def _diversities(dialogues: list[list[str]], segmenter: str) -> list[Found]:
    batch = Batch(dialogues, token_counter("words"), lexical.segmenter(segmenter))
    chosen = [d for d in DEFINITIONS if d.column == _L]
    return [(d.column, d.reading, Sums.of(*d.measure(batch)).mean()) for d in chosen]


# ---- formats of Alpaca's own fields: instruction, input, output -------------------------------


def labels(between: str, instruction: str, extra: str, output: str) -> str:
    """Return a row with role labels, `between` standing between the instruction and an input that is not empty.

    Ours: the paper does not say how the two are joined.
    """
    return labelled_text([instruction + (between + extra if extra else ""), output])


def fields(instruction: str, extra: str, output: str, empty_too: bool = False) -> str:
    """Return a row with its fields' names, without an input that is empty unless `empty_too`.

    Ours: the format of Alpaca's own prompts, shortened.
    """
    middle = f"\nInput: {extra}" if extra or empty_too else ""
    return f"Instruction: {instruction}{middle}\nOutput: {output}"


TEMPLATES: dict[str, tuple[Callable[[str, str, str], str], int]] = {  # and the marks beside the text
    "labels, input after a space": (partial(labels, " "), 1),
    "labels, input after an empty line": (partial(labels, "\n\n"), 1),
    "Instruction/Input/Output": (fields, 0),
    "Instruction/Input/Output, beginning mark": (fields, 1),
    "Instruction/Input/Output, empty inputs too": (partial(fields, empty_too=True), 0),
}


def _templates(data: Path) -> list[Found]:
    """Dialogue lengths in formats that need the input as a field of its own, with LLaMA's tokenizer."""
    count = token_counter(data / LLAMA)
    raw = json.loads((data / BY_NAME["Stanford Alpaca"].path).read_bytes())
    rows = [(row["instruction"], row["input"], row["output"]) for row in raw]
    rows = [row for row in rows if row[0].strip() and row[2].strip()]  # as the reader: no blank message
    answers, ones = count.many([row[2] for row in rows]), np.ones(len(rows), np.int64)
    found = []
    for reading, (text_of, marks) in TEMPLATES.items():
        lengths = count.many([text_of(*row) for row in rows]) + marks
        found.append((_D, reading, Sums.of(lengths, ones).mean()))
        found.append((_MINUS, reading, Sums.of(lengths - answers, ones).mean()))
    return found


# ---- ultrachat_arithmetic.csv -----------------------------------------------------------------

PUBLIC_COUNTS = "public counts of 10,000 UltraChat dialogues (FreedomIntelligence/ReaLM)"
ROUNDS, BARE, ALL_MESSAGES = 3.848, 1_441.0, 187.2  # from there, not measured by us


def ultrachat_arithmetic_rows(data: Path) -> Iterator[Row]:
    """Yield what follows for UltraChat's row from printed and public figures, each with where it is from.

    Ours: no UltraChat of natural length could be had.
    """
    printed = in_paper("UltraChat")
    dialogue, utterance, rounds = (float(printed[column]) for column in (_D, _U, "rounds"))
    sample = BY_NAME["UltraChat (short)"]
    keys = ("rounds/rounds", f"{_D}/labels", f"{_D}/bare", f"{_U}/user")
    sums = measured(sample, data, *keys).sums
    own_rounds, labelled, bare, user = (sums[key].mean().value for key in keys)
    per_round = (labelled - bare) / own_rounds
    table, public, ours = "Table 5", PUBLIC_COUNTS, f"our code on {sample.dataset}"
    for name, value, unit, how, source in (
        ("D, dialogue length", dialogue, "tokens", "printed", table),
        ("U, utterance length", utterance, "tokens", "printed", table),
        ("R, rounds", rounds, "rounds", "printed", table),
        ("r, rounds", ROUNDS, "rounds", "from public counts", public),
        ("b, dialogue length, bare texts", BARE, "tokens", "from public counts", public),
        ("m, message length, all messages", ALL_MESSAGES, "tokens", "from public counts", public),
        ("l, labels a round", per_round, "tokens", "measured: (with labels - bare) / rounds", ours),
        ("u, user message length in short dialogues", user, "tokens", "measured", ours),
        ("message length if utterances were all messages", dialogue / (2 * rounds), "tokens",
         "D / (2 R); at most D / (2 (R - 0.05)); U is far above it, m is not", table),
        ("dialogue length of all messages", ALL_MESSAGES * 2 * ROUNDS, "tokens", "m 2 r; from the same counts, so it must agree with b", public),
        ("user message length if utterances are the assistant's", BARE / ROUNDS - utterance, "tokens",
         "b / r - U; compare u", f"{table}; {public}"),
        ("dialogue length with labels", BARE + per_round * ROUNDS, "tokens", "b + l r; compare D",
         f"{public}; {ours}"),
    ):  # fmt: skip
        yield {"quantity": name, "value": value, "unit": unit, "how": how, "source": source}
