"""Counting tokens, by the name of a tokenizer: the paper names none, so it is a parameter.

    count = token_counter("llama/tokenizer.model")
    count("Don't panic!")

Absent on purpose: torch and transformers. Counting needs neither, and notebooks 01 to 06 do not load them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ultrachat.errors import Stop

TokenCounter = Callable[[str], int]


def count_words(text: str) -> int:
    r"""Return the number of words and punctuation marks in `text`: matches of `\w+|[^\w\s]`.

    "Don't panic!" has five: Don ' t panic ! These are not the paper's tokens, and in a language
    written without spaces a whole clause counts as one word.

    Ours: works offline without a vocabulary; for the sample run only.
    """
    return len(re.findall(r"\w+|[^\w\s]", text))


def token_counter(name: str | Path) -> TokenCounter:
    """Return a function from text to its number of tokens; no special tokens are added.

    `name` is "words" (`count_words`, the offline default), a SentencePiece file `….model` (LLaMA's
    gives the paper's figures), a `tokenizer.json` or the folder that holds it, "tiktoken:NAME" or a
    hub id "owner/name" (both may need a network). A literal `</s>` in a text counts as plain text.
    Raises Stop when `name` is none of these or cannot be loaded.

    Ours: the paper does not name its tokenizer.
    """
    name = str(name)
    path = Path(name)
    if name == "words":
        return count_words
    if name.startswith("tiktoken:"):
        encoding = _load(name, "tiktoken", lambda package: package.get_encoding(name.split(":", 1)[1]))
        return lambda text: len(encoding.encode_ordinary(text))
    if name.endswith(".model"):
        model = _load(name, "sentencepiece", lambda p: p.SentencePieceProcessor(model_file=name))
        return lambda text: len(model.encode(text, add_bos=False, add_eos=False))
    if name.endswith(".json") or path.is_dir():
        file = path / "tokenizer.json" if path.is_dir() else path
        tokenizer = _load(name, "tokenizers", lambda p: p.Tokenizer.from_file(str(file)))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        tokenizer = _load(name, "tokenizers", lambda p: p.Tokenizer.from_pretrained(name))
    else:
        raise Stop(
            f"tokenizer '{name}': expected words, a SentencePiece .model file, a tokenizer.json or its "
            "folder, tiktoken:NAME, or a hub id owner/name"
        )
    tokenizer.no_truncation()  # a tokenizer.json may carry both, and either would falsify lengths
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # means: split special tokens found in a text like any other
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _load(name: str, package: str, load: Callable[[ModuleType], Any]) -> Any:
    try:
        return load(importlib.import_module(package))
    except ImportError:
        raise Stop(f"tokenizer '{name}': needs the package {package} (pip install {package})") from None
    except Exception as error:  # these packages raise anything, bare Exception included
        raise Stop(f"tokenizer '{name}': {package} cannot load it ({str(error)[:160]})") from None


def tokenizer_label(name: str | Path) -> str:
    """Return how a table names the tokenizer: a file or folder without its path, "words" with a warning.

    Ours: figures in other units than the paper's must say so.
    """
    name = str(name)
    if name == "words":
        return "words and marks (not the paper's tokens)"
    return Path(name).name if name.endswith((".model", ".json")) or Path(name).is_dir() else name
