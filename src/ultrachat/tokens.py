"""Counting tokens, by the name of a tokenizer: the paper names none, so it is a parameter.

    count = token_counter("llama/tokenizer.model")
    count("Don't panic!")
    count.many(["Don't panic!", "42"])             # the same counts, many texts at once

`many` is fast because words repeat: a text is cut before its spaces, and the count of each distinct
piece is remembered (`pieces`). That is exact for tokenizers none of whose tokens reaches across such a cut,
which is looked up in the vocabulary and then tried (`HARD_TEXTS`); others get whole texts.

Absent on purpose: torch and transformers. Counting needs neither, and notebooks 01 to 06 do not load them.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ultrachat.errors import Stop
from ultrachat.lexical import utf8_batches
from ultrachat.pieces import Pieces

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
    be cut before it; `prefixed` and `lines_apart` are as in `pieces.Pieces`.

    Ours: what must be known of a tokenizer to count fast and exactly.
    """

    counts: Callable[[Sequence[str]], list[int]]
    cuttable: bool
    prefixed: bool = False
    lines_apart: bool = False
    n_tokens: int = 0  # in its vocabulary, where it has one


def _tiktoken(name: str) -> Tokenizer:
    encoding = _load(name, "tiktoken", lambda package: package.get_encoding(name.split(":", 1)[1]))
    vocabulary = (token.decode("utf-8", "replace") for token in encoding.token_byte_values())
    return Tokenizer(
        lambda texts: [len(encoding.encode_ordinary(text)) for text in texts],
        cuttable=_is_known_pattern(encoding._pat_str) and not _crosses(vocabulary),
    )


def _sentencepiece(name: str) -> Tokenizer:
    model = _load(name, "sentencepiece", lambda p: p.SentencePieceProcessor(model_file=name))
    vocabulary = [model.id_to_piece(i).replace("\u2581", " ") for i in range(model.get_piece_size())]
    # a model that collapses spaces or adds none in front counts otherwise: then texts stay whole
    plain = model.encode("a  b", out_type=str)
    keeps_spaces = "".join(plain) == "\u2581a\u2581\u2581b"
    return Tokenizer(
        lambda texts: [
            len(ids) for ids in model.encode(list(texts), add_bos=False, add_eos=False, num_threads=1)
        ],
        cuttable=keeps_spaces and not _crosses(vocabulary),
        prefixed=True,
        lines_apart=_lines_are_apart(vocabulary),
        n_tokens=len(vocabulary),
    )


def _json_file(name: str, load: Callable[[ModuleType], Any]) -> Tokenizer:
    tokenizer = _load(name, "tokenizers", load)
    tokenizer.no_truncation()  # a tokenizer.json may carry both, and either would falsify lengths
    tokenizer.no_padding()
    if hasattr(tokenizer.model, "dropout"):
        tokenizer.model.dropout = None  # of merges, for training: the same text would count differently twice
    tokenizer.encode_special_tokens = True  # means: split special tokens found in a text like any other
    kind = _known_kind(json.loads(tokenizer.to_str()))
    vocabulary = [token.translate(_WHITE_SPACE) for token in tokenizer.get_vocab(with_added_tokens=False)]
    return Tokenizer(
        lambda texts: [
            len(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ],
        cuttable=kind is not None and not _crosses(vocabulary),
        prefixed=kind == "LLaMA",
        lines_apart=kind == "LLaMA" and _lines_are_apart(vocabulary),
        n_tokens=len(vocabulary),
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
        # with ignore_merges a whole text that is in the vocabulary is a token that its pieces are not
        return None if config["model"].get("ignore_merges") else "LLaMA"
    steps = before["pretokenizers"] if before and before["type"] == "Sequence" else [before]
    *splits, last = [step or {"type": ""} for step in steps]
    byte_level = last["type"] == "ByteLevel" and not last["add_prefix_space"]
    regular = all(
        step["type"] == "Split"
        and (step["behavior"], step["invert"]) == ("Isolated", False)
        and _is_known_pattern(step["pattern"].get("Regex", ""))
        for step in splits
    )
    return "byte level" if config["normalizer"] is None and byte_level and regular else None


# What the patterns of GPT-2, cl100k_base, o200k_base, Llama 3, Qwen 2 and DeepSeek are made of. None of these takes
# in a space after something that is no white space, or looks back: a cut there changes no match.
_KNOWN_PATTERNS = frozenset(
    r"""'s
't
're
've
'm
'll
'd
(?i:'s|'t|'re|'ve|'m|'ll|'d)
'(?i:[sdmt]|ll|ve|re)
'(?:[sdmt]|ll|ve|re)
 ?\p{L}+
 ?\p{N}+
 ?[^\s\p{L}\p{N}]+
 ?[^\s\p{L}\p{N}]+[\r\n]*
 ?[^\s\p{L}\p{N}]+[\r\n/]*
[^\r\n\p{L}\p{N}]?\p{L}+
[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?
[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
\p{N}
\p{N}{1,3}
\s*[\r\n]+
\s*[\r\n]
\s+(?!\S)
\s+$
\s+
\s""".splitlines()
)


def _is_known_pattern(regex: str) -> bool:
    """Whether a regular expression's alternatives are all among those known to allow cutting."""
    regex = re.sub(r"([+*?]|\{\d[\d,]*\})\+", r"\1", regex)  # a possessive quantifier matches the same here
    alternatives, depth = [""], 0
    for character in regex:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and not depth:
            alternatives.append("")
        else:
            alternatives[-1] += character
    return set(alternatives) <= _KNOWN_PATTERNS


def _crosses(vocabulary: Iterable[str]) -> bool:
    """Whether a token reaches from something that is no white space across a space."""
    return any(re.search(r"\S ", token) for token in vocabulary)


def _lines_are_apart(vocabulary: Iterable[str]) -> bool:
    """Whether no token has a line break and something else: then each is a token, or a byte, by itself."""
    return not any("\n" in token and token != "\n" for token in vocabulary)


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

    `like_llama` says whether it is LLaMA's own tokenizer, by what can be seen of it.

    Ours: the paper does not name its tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._counts_of = tokenizer.counts
        counts_of, cuttable, prefixed, lines_apart, n_tokens = tokenizer
        self.like_llama = prefixed and n_tokens == LLAMA_TOKENS
        self._known = Pieces(counts_of, prefixed, lines_apart) if cuttable else None
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


LLAMA_TOKENS = 32_000  # of LLaMA's vocabulary, by which its tokenizer is recognised under any name

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
