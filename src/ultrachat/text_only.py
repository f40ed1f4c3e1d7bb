"""A tokenizer that takes every text as text: what somebody typed never becomes a special token.

`split_special_tokens` is not enough for that. A Unigram model has `</s>` among its own pieces and finds it in any
text; a BPE model may get there by its merges. So a copy is made in which special tokens are spelled as no
text is, under their old ids:

    text_only(tokenizer)("a</s>")        # a, <, /, s, >: whatever the tokenizer itself would make of it

Absent on purpose: decoding; the tokenizer itself does that.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ultrachat.errors import Stop

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

HIDDEN = "\U000ffffe"  # no character, by Unicode's own word: no text has it


def text_only(
    tokenizer: PreTrainedTokenizerBase,
    controls: frozenset[tuple[str, int]] | None = None,
    inside: bool = False,
) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer that knows none of `controls` by its text, for encoding only.

    They are (text, id) pairs, all special tokens unless given. With `inside` the copy puts no space in front of
    a text where the tokenizer does so at the front of a string only. A tokenizer written in Python (not of
    the tokenizers library) is returned as it is, unless `inside`. Raises Stop when it cannot be copied.

    Ours: the authors' code takes a typed `</s>` for the end of the message.
    """
    if not getattr(tokenizer, "is_fast", False) and not inside:
        return tokenizer
    if controls is None:
        added = tokenizer.added_tokens_decoder.items()
        controls = frozenset((token.content, i) for i, token in added if token.special)
    return _copied(tokenizer, controls, inside, len(tokenizer))


@lru_cache(maxsize=8)
def _copied(
    tokenizer: PreTrainedTokenizerBase, controls: frozenset[tuple[str, int]], inside: bool, n_tokens: int
) -> PreTrainedTokenizerBase:
    """Make the copy, anew when tokens were added meanwhile (`n_tokens`)."""
    from tokenizers import Tokenizer

    backend = backend_of(tokenizer)
    try:
        state = json.loads(backend.to_str())
    except Exception as error:  # parts written in Python; tokenizers raises bare Exceptions
        raise Stop(f"tokenizer: cannot be copied ({str(error)[:120]}), expected a tokenizer.json") from None
    state |= {"truncation": None, "padding": None, "post_processor": None}  # the last trims offsets
    for step in pre_tokenizers_of(state):
        if inside and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    _hide(state, {text: f"{HIDDEN}{i}" for text, i in controls})
    found = copy.copy(tokenizer)
    found._tokenizer = Tokenizer.from_str(json.dumps(state))
    return found


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizers library's object behind a tokenizer. Raises Stop when there is none.

    Ours: offsets and copies need it.
    """
    if not tokenizer.is_fast:
        raise Stop(
            f"tokenizer: {type(tokenizer).__name__} is not of the tokenizers library, expected a fast one"
        )
    return tokenizer.backend_tokenizer


def pre_tokenizers_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pre-tokenizers of a tokenizer.json, those in a sequence one by one.

    Ours: some are nested and some are not.
    """
    step = state["pre_tokenizer"]
    return (step or {}).get("pretokenizers") or ([step] if step else [])


def _hide(state: dict[str, Any], hidden: dict[str, str]) -> None:
    """Rename tokens in a tokenizer.json to what no text has; their ids, and those of all others, stay."""
    for token in state["added_tokens"]:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "special": True, "normalized": False}
    model = state["model"]
    model["dropout"] = None
    model["unk_token"] = hidden.get(model.get("unk_token"), model.get("unk_token"))
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(text, text): i for text, i in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(text, text), score] for text, score in model["vocab"]]
    if model.get("merges"):
        model["merges"] = [
            (a, b) for a, b in model["merges"] if not (a in hidden or b in hidden or a + b in hidden)
        ]
