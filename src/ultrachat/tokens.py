"""Counting tokens, by the name of a tokenizer: the paper names none, so it is a parameter.

    count = token_counter("llama/tokenizer.model")
    count("Don't panic!")
    count.many(["Don't panic!", "42"])             # the same counts, many texts at once

`many` is fast because words repeat: a text is cut before its spaces, each distinct piece is given to
the tokenizer once and its count remembered. That is exact for tokenizers none of whose tokens reaches
across such a cut, which is looked up in the vocabulary and then tried (`HARD_TEXTS`); others get
whole texts.

Absent on purpose: torch and transformers. Counting needs neither, and notebooks 01 to 06 do not load them.
"""

from __future__ import annotations

import gc
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numba
import numpy as np

from ultrachat.errors import Stop
from ultrachat.lexical import utf8_batches

_WORD = re.compile(r"\w+|[^\w\s]")


def count_words(text: str) -> int:
    r"""Return the number of words and punctuation marks in `text`: matches of `\w+|[^\w\s]`.

    "Don't panic!" has five: Don ' t panic ! These are not the paper's tokens, and in a language
    written without spaces a whole clause counts as one word.

    Ours: works offline without a vocabulary; for the sample run only.
    """
    return len(_WORD.findall(text))


# ---- tokenizers by name -----------------------------------------------------------------------


class Tokenizer(NamedTuple):
    """How a tokenizer counts: `counts` takes texts and returns one number each, no special tokens added.

    `cuttable` says that no token reaches across a space that follows no white space, so that a text may
    be cut before it; a `prefixed` tokenizer puts a space in front of every text, so a piece goes without its own.

    Ours: what must be known of a tokenizer to count fast and exactly.
    """

    counts: Callable[[Sequence[str]], list[int]]
    cuttable: bool
    prefixed: bool = False


def _tiktoken(name: str) -> Tokenizer:
    encoding = _load(name, "tiktoken", lambda package: package.get_encoding(name.split(":", 1)[1]))
    vocabulary = (token.decode("utf-8", "replace") for token in encoding.token_byte_values())
    return Tokenizer(
        lambda texts: [len(encoding.encode_ordinary(text)) for text in texts], not _crosses(vocabulary)
    )


def _sentencepiece(name: str) -> Tokenizer:
    model = _load(name, "sentencepiece", lambda p: p.SentencePieceProcessor(model_file=name))
    pieces = (model.id_to_piece(i).replace("\u2581", " ") for i in range(model.get_piece_size()))
    # a model that collapses spaces or adds none in front counts otherwise: then texts stay whole
    plain = model.encode("a  b", out_type=str)
    keeps_spaces = "".join(plain) == "\u2581a\u2581\u2581b"
    return Tokenizer(
        lambda texts: [
            len(ids) for ids in model.encode(list(texts), add_bos=False, add_eos=False, num_threads=1)
        ],
        cuttable=keeps_spaces and not _crosses(pieces),
        prefixed=True,
    )


def _json_file(name: str, load: Callable[[ModuleType], Any]) -> Tokenizer:
    tokenizer = _load(name, "tokenizers", load)
    tokenizer.no_truncation()  # a tokenizer.json may carry both, and either would falsify lengths
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # means: split special tokens found in a text like any other
    kind = _known_kind(json.loads(tokenizer.to_str()))
    vocabulary = (token.translate(_WHITE_SPACE) for token in tokenizer.get_vocab(with_added_tokens=False))
    return Tokenizer(
        lambda texts: [
            len(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ],
        cuttable=kind is not None and not _crosses(vocabulary),
        prefixed=kind == "LLaMA",
    )


# how BPE vocabularies write white space: LLaMA's, and byte-level ones
_WHITE_SPACE = {0x2581: " ", 0x120: " ", 0x10A: "\n", 0x109: "\t", 0x10D: "\r"}
_LLAMA = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}


def _known_kind(config: dict[str, Any]) -> str | None:
    """Return "LLaMA" or "byte level" for a BPE tokenizer.json of that kind, None for what is not known here."""
    added = all(token["special"] for token in config["added_tokens"])  # others are found in texts first
    if config["model"]["type"] != "BPE" or not added:
        return None
    before = config["pre_tokenizer"]
    if config["normalizer"] == _LLAMA and before is None:
        return "LLaMA"
    steps = before["pretokenizers"] if before and before["type"] == "Sequence" else [before]
    *splits, last = [step or {"type": ""} for step in steps]
    byte_level = last["type"] == "ByteLevel" and not last["add_prefix_space"]
    regular = all(step["type"] == "Split" and step["behavior"] == "Isolated" for step in splits)
    return "byte level" if config["normalizer"] is None and byte_level and regular else None


def _crosses(vocabulary: Iterable[str]) -> bool:
    """Whether a token reaches from something that is no white space across a space."""
    return any(re.search(r"\S ", token) for token in vocabulary)


def _load(name: str, package: str, load: Callable[[ModuleType], Any]) -> Any:
    try:
        return load(importlib.import_module(package))
    except ImportError:
        raise Stop(f"tokenizer '{name}': needs the package {package} (pip install {package})") from None
    except Exception as error:  # these packages raise anything, bare Exception included
        raise Stop(f"tokenizer '{name}': {package} cannot load it ({str(error)[:160]})") from None


def _tokenizer(name: str) -> Tokenizer:
    path = Path(name)
    if name == "words":
        return Tokenizer(lambda texts: [count_words(text) for text in texts], cuttable=True)
    if name == "whitespace":
        return Tokenizer(lambda texts: [len(text.split()) for text in texts], cuttable=True)
    if name.startswith("tiktoken:"):
        return _tiktoken(name)
    if name.endswith(".model"):
        return _sentencepiece(name)
    if name.endswith(".json") or path.is_dir():
        file = path / "tokenizer.json" if path.is_dir() else path
        return _json_file(name, lambda p: p.Tokenizer.from_file(str(file)))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _json_file(name, lambda p: p.Tokenizer.from_pretrained(name))
    raise Stop(
        f"tokenizer '{name}': expected words, whitespace, a SentencePiece .model file, a tokenizer.json or its "
        "folder, tiktoken:NAME, or a hub id owner/name"
    )


def tokenizer_label(name: str | Path) -> str:
    """Return how a table names the tokenizer: a file or folder without its path, "words" with a warning.

    Ours: figures in other units than the paper's must say so.
    """
    name = str(name)
    if name == "words":
        return "words and marks (not the paper's tokens)"
    return Path(name).name if name.endswith((".model", ".json")) or Path(name).is_dir() else name


# ---- counting ---------------------------------------------------------------------------------


class TokenCounter:
    """A function from text to its number of tokens, and from many texts to an array of them (`many`).

    Ours: the paper does not name its tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._counts_of = tokenizer.counts
        self._known = _Pieces(tokenizer) if tokenizer.cuttable else None
        if self._known and self.many(HARD_TEXTS).tolist() != tokenizer.counts(HARD_TEXTS):
            self._known = None

    @property
    def remembers(self) -> bool:
        """Whether counts of pieces are remembered, or whole texts given to the tokenizer."""
        return self._known is not None

    def __call__(self, text: str) -> int:
        return self._counts_of([_without_surrogates(text)])[0]

    def many(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text as an (n,) int64 array, equal to calling for each."""
        if not len(texts):
            return np.zeros(0, np.int64)
        if self._known is None:
            return np.array(self._counts_of([_without_surrogates(text) for text in texts]), np.int64)
        batches = utf8_batches(texts, errors="replace")
        return np.concatenate([self._known.count(buffer, starts) for buffer, starts in batches])

    def many_after_labels(
        self, texts: Sequence[str], tokens: np.ndarray, suffixes: Sequence[str]
    ) -> np.ndarray | None:
        """Return the tokens of " " + text + suffix as what follows a label such as "User:", (n,) int64.

        `tokens` are those of the texts alone: of a long text only the first and the last word are
        counted again. None when whole texts must be given to the tokenizer, or one is empty.
        """
        if self._known is None or not all(texts):
            return None
        prefixed = self._known.prefixed
        spans = [_first_and_last_cut(text) for text in texts]
        before, after = [], []
        for text, suffix, (first, last) in zip(texts, suffixes, spans, strict=True):
            if prefixed:  # its own space is in front of the text already
                before.append(text[last + 1 :])
                after.append(text[last + 1 :] + suffix)
            elif first < 0:
                before += [text, ""]
                after += [f" {text}{suffix}", ""]
            else:
                before += [text[:first], text[last:]]
                after += [" " + text[:first], text[last:] + suffix]
        difference = self.many(after) - self.many(before)
        return tokens + (difference if prefixed else difference[::2] + difference[1::2])


def _first_and_last_cut(text: str) -> tuple[int, int]:
    """Return where a text may be cut first and last: at a space after no white space; (-1, -1) for nowhere."""
    first, last = text.find(" ", 1, -1), text.rfind(" ", 1, -1)
    if first < 0 or text[first - 1].isspace() or text[last - 1].isspace():
        return -1, -1  # or not there: then the whole text is counted again
    return first, last


# what a tokenizer believed to be cuttable is tried on before it is cut
HARD_TEXTS = (
    "", " ", "  ", "a ", " a", "a  b   c ", "\n a\n\n  b \t c\r\n d", "I'm it's  WE'LL 'S 's  t", "x = {\n    'a' :  1 }\n ",
    "3.14  2,000 +- 12345678 9 %", "«é» \u00a0 \u3000 \u2003a\u2009b \u0085 c", "\u732b \u732b\u732b  \u3002 a", "\U0001f642 \U0001f642", "</s> <s>  [INST] <|endoftext|> ",
    "\u2581 a\u2581 \u2581\u2581b", "\u0120a \u010a b", "e\u0301 \u0301 a \u0308",
)  # fmt: skip


def _without_surrogates(text: str) -> str:
    """Return `text`, a lone surrogate (half a character) as a question mark: no tokenizer accepts one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def token_counter(name: str | Path) -> TokenCounter:
    """Return the counter that `name` stands for; no special tokens are added.

    `name` is "words" (`count_words`, the offline default), "whitespace", a SentencePiece file `….model` (LLaMA's
    gives the paper's figures), a `tokenizer.json` or the folder that holds it, "tiktoken:NAME" or a
    hub id "owner/name" (both may need a network). A literal `</s>` in a text counts as plain text.
    Raises Stop when `name` is none of these or cannot be loaded.

    Ours: the paper does not name its tokenizer.
    """
    return TokenCounter(_tokenizer(str(name)))


LONGEST = 64  # bytes of a piece that is remembered
N_SLOTS = 1 << 23  # of the table; when it fills up it is emptied, which costs time and changes nothing
UNKNOWN = -1


class _Pieces:
    """Counts of pieces met before: an open-addressing table over their bytes, compared in full."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._counts_of, self.prefixed = tokenizer.counts, tokenizer.prefixed
        self._slots = np.full(N_SLOTS, -1, np.int32)
        self._hashes = np.zeros(N_SLOTS // 2, np.uint64)
        self._spans = np.zeros((N_SLOTS // 2, 2), np.int32)  # begin and end in `_bytes`
        self._bytes = np.zeros(N_SLOTS // 2 * 12, np.uint8)
        self._counts = np.full(N_SLOTS // 2, UNKNOWN, np.int32)
        self._used = np.zeros(2, np.int64)  # pieces and bytes in use

    def count(self, buffer: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return the tokens of each text `buffer[starts[i]:starts[i + 1]]`."""
        if self._used[0] > 0.75 * len(self._counts) or self._used[1] > 0.75 * len(self._bytes):
            self._slots.fill(-1)
            self._counts.fill(UNKNOWN)
            self._used[:] = 0
        totals = np.zeros(len(starts) - 1, np.int64)
        known = self._used[0]
        later = np.empty((len(buffer) // 2 + len(starts), 3), np.int64)
        n_later = _count_pieces(
            buffer, starts, self.prefixed, self._slots, self._hashes, self._spans, self._bytes, self._counts,
            self._used, totals, later,
        )  # fmt: skip
        self._learn(int(known))
        raw = buffer.tobytes() if n_later else b""
        of_text, begin, end = later[:n_later].T
        new = begin == UNKNOWN  # the piece was met for the first time in this batch; `end` is its number
        np.add.at(totals, of_text[new], self._counts[end[new]])
        long = ~new
        if long.any():
            texts = [raw[b:e].decode() for b, e in zip(begin[long], end[long], strict=True)]
            np.add.at(totals, of_text[long], self._counts_of(texts))
        return totals

    def _learn(self, first: int) -> None:
        """Ask the tokenizer for the counts of the pieces from number `first` on."""
        last = int(self._used[0])
        if first == last:
            return
        base = int(self._spans[first, 0])
        raw = self._bytes[base : int(self._used[1])].tobytes()
        with _without_collector():
            spans = (self._spans[first:last] - base).tolist()
            self._counts[first:last] = self._counts_of([raw[b:e].decode() for b, e in spans])


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles among many thousand short lists: there are none, and it takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@numba.njit(cache=True)
def _count_pieces(
    text: np.ndarray, starts: np.ndarray, prefixed: bool, slots: np.ndarray, hashes: np.ndarray,
    spans: np.ndarray, kept: np.ndarray, counts: np.ndarray, used: np.ndarray, totals: np.ndarray, later: np.ndarray,
) -> int:  # fmt: skip
    """Add up the known counts of each text's pieces in `totals`; return how many rows of `later` were filled.

    A row of `later` is a piece to be added when its count is known: (text, -1, number of the piece), or
    (text, begin, end) in `text` for one that is too long to be remembered, or that found the table full. Pieces met for the first time are
    entered in the table with the count UNKNOWN.
    """
    mask = len(slots) - 1
    n_later = 0
    for i in range(len(totals)):
        begin, stop = starts[i], starts[i + 1]
        first = True
        while begin < stop:
            end = begin + 1
            code = np.uint64(14695981039346656037)
            # a piece's own space is the one that a prefixing tokenizer puts in front by itself
            skip = 1 if prefixed and not first and text[begin] == 32 else 0
            if skip == 0:
                code = (code ^ np.uint64(text[begin])) * np.uint64(1099511628211)
            previous = text[begin]
            while end < stop:
                byte = text[end]
                # no white space ends in a byte above 0xAF; a space that ends the text stays where it is
                if byte == 32 and (32 < previous < 128 or previous > 0xAF) and end + 1 < stop:
                    break
                code = (code ^ np.uint64(byte)) * np.uint64(1099511628211)
                previous = byte
                end += 1
            first = False
            slot = np.int64((code ^ (code >> np.uint64(32))) & np.uint64(mask))
            size = end - begin - skip
            piece = -1
            full = used[0] == len(counts) or used[1] + size > len(kept)
            while size <= LONGEST and slots[slot] >= 0:
                candidate = slots[slot]
                if hashes[candidate] == code and spans[candidate, 1] - spans[candidate, 0] == size:
                    same = True
                    for k in range(size):
                        if kept[spans[candidate, 0] + k] != text[begin + skip + k]:
                            same = False
                            break
                    if same:
                        piece = candidate
                        break
                slot = (slot + 1) & mask
            if piece < 0 and (full or size > LONGEST):
                later[n_later, 0], later[n_later, 1], later[n_later, 2] = i, begin + skip, end
                n_later += 1
                begin = end
                continue
            if piece < 0:
                piece = used[0]
                used[0] += 1
                slots[slot] = piece
                hashes[piece] = code
                spans[piece, 0] = used[1]
                for k in range(size):
                    kept[used[1] + k] = text[begin + skip + k]
                used[1] += size
                spans[piece, 1] = used[1]
            if counts[piece] >= 0:
                totals[i] += counts[piece]
            else:
                later[n_later, 0], later[n_later, 1], later[n_later, 2] = i, -1, piece
                n_later += 1
            begin = end
    return n_later
