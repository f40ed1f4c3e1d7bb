"""Where texts may be cut before they are tokenised, so that the pieces' tokens are the whole's.

    LLaMA          between two bytes that no merge of its vocabulary joins: also at line breaks and marks
    byte level     where its pattern parts words anyhow, unless a merge joins the two bytes

A pair of bytes decides, so the rules are one table of 256 × 256; `token_ids` cuts by it. A tokenizer whose
pattern, normaliser or merges are not known to allow it has no rules, and its texts stay whole.

Absent on purpose: trust; `token_ids` tries every tokenizer on hard texts before it believes the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ultrachat.tokens import _LLAMA, _known_kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Rules(NamedTuple):
    """How to cut a tokenizer's texts: `cuts[a, b]` says that byte b may begin a piece after byte a, (256, 256) bool.

    `front` is the space that the tokenizer puts in front of a text: "always", "missing" (unless there is one) or
    "never". Pieces that match `mergeable` are for its merges alone, with `space` for a space; others for all of it.

    Ours: what cutting needs to know of a tokenizer.
    """

    cuts: np.ndarray
    front: str
    space: str
    mergeable: re.Pattern[str]


def rules_of(backend: Tokenizer) -> Rules | None:
    """Return how to cut a tokenizer's texts; None for one of a kind that is not known here.

    Ours: what is not known to be exact is not done.
    """
    try:
        config = json.loads(backend.to_str())
    except Exception:  # parts written in Python cannot be shown; tokenizers raises bare Exceptions
        return None
    model, before = config["model"], config["pre_tokenizer"] or {}
    if model["type"] != "BPE" or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    if before.get("pretokenizers") == []:
        return None
    # transformers' own LLaMA sees to spaces elsewhere, and puts none in front of one
    metaspace = config["normalizer"] is None and before.get("type") == "Metaspace"
    if metaspace and not before["split"] and before["replacement"] == VISIBLE_SPACE:
        front = "never" if before["prepend_scheme"] == "never" else "missing"
        return _llama_rules(config | {"normalizer": _LLAMA, "pre_tokenizer": None}, front)
    if config["normalizer"] == _LLAMA:
        return _llama_rules(config, "always")
    return _byte_level_rules(config, backend)


VISIBLE_SPACE = "\u2581"  # how LLaMA's vocabulary writes a space
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))  # for characters that it does not have


def _llama_rules(config: dict[str, Any], front: str) -> Rules | None:
    model = config["model"]
    never_unknown = model["byte_fallback"] and model["vocab"].keys() >= _BYTE_TOKENS
    # unknown characters side by side would become one token, wherever they are
    unclear = not _BYTE_TOKENS.isdisjoint(chain.from_iterable(model["merges"])) or (
        model["fuse_unk"] and not never_unknown
    )
    if unclear or _known_kind(config) != "LLaMA":
        return None
    cuts = ~_joined_bytes("".join(pair).replace(VISIBLE_SPACE, " ").encode() for pair in model["merges"])
    cuts[:, 0x80:0xC0] = False  # bytes within a character
    return Rules(cuts, front, VISIBLE_SPACE, re.compile(".+", re.DOTALL))


def _byte_level_rules(config: dict[str, Any], backend: Tokenizer) -> Rules | None:
    """Return the rules of GPT-2's kind.

    NFC, as Qwen has it, composes nothing with a space or an ASCII character before or after a cut. Added tokens
    that are not special are found in texts; without white space, and taking none in, they stay within a piece that
    ends before a space.
    """
    added = config["added_tokens"]
    found = [token for token in added if not token["special"]]
    if found and any(token["content"].split() != [token["content"]] for token in added):
        return None
    if any(token[how] for token in found for how in ("lstrip", "rstrip", "single_word", "normalized")):
        return None
    normalizer = None if config["normalizer"] == {"type": "NFC"} else config["normalizer"]
    if _known_kind(config | {"added_tokens": [], "normalizer": normalizer}) != "byte level":
        return None
    model, everything = config["model"], _parts_everything(backend)
    if model["ignore_merges"] and not everything:
        return None  # a word in the vocabulary is taken whole, and what a word is would change
    if model["fuse_unk"] and not _BYTES_OF.keys() <= model["vocab"].keys():
        return None  # unknown bytes side by side would become one token
    cuts = _parted_bytes(only_spaces=bool(found))
    cuts &= ~_joined_bytes(bytes(_BYTES_OF.get(c, 0) for c in "".join(pair)) for pair in model["merges"])
    word = re.compile(" ?[A-Z]?[a-z]+" if everything and not found else "(?!)")
    return Rules(cuts, "never", "\u0120", word)


def _parts_everything(backend: Tokenizer) -> bool:
    """Whether a pattern of the known ones takes in letters, marks, and digits or white space: so it parts at any cut."""

    def parted(text: str) -> list[str]:
        return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    words = ["Abc", "\u0120Ab", "\u0120cdefg", "\u0120H", "\u0120,,", "\u0120,,"]
    digits = all(parted(f"1{white}1")[0] == "1" for white in " \t\n\v\f\r")
    return digits and parted("".join(words).replace("\u0120", " ")) == words


def _joined_bytes(tokens: Iterable[bytes]) -> np.ndarray:
    """Return which bytes stand side by side in a token, (256, 256) bool."""
    joined = np.zeros((256, 256), bool)
    text = np.frombuffer(b"\xff".join(tokens), np.uint8)  # a byte that is in no text
    joined[text[:-1], text[1:]] = True
    joined[:, 0xFF] = joined[0xFF] = False
    return joined


def _parted_bytes(only_spaces: bool) -> np.ndarray:
    """Return which bytes side by side the patterns known to `tokens` are sure to part, (256, 256) bool.

    A space after something that is no white space (of which no character ends in a byte above 0xAF); and, in ASCII,
    a letter and what is no letter, except for an apostrophe, a digit and what is no digit.
    """
    parted = np.zeros((256, 256), bool)
    parted[0x21:0x80, 0x20] = parted[0xB0:, 0x20] = True
    if not only_spaces:
        for byte in range(0x80):
            if chr(byte).isalpha():
                parted[byte, [b for b in range(0x80) if not chr(b).isalpha() and chr(b) != "'"]] = True
            elif chr(byte).isdigit():
                parted[byte, [b for b in range(0x80) if not chr(b).isdigit()]] = True
    return parted


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for, as GPT-2 has it.

    A byte that can be seen stands for itself, the others for characters from U+0100 on.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTES_OF = _byte_level_alphabet()
