"""The sample run's base: its tokenizer, its model, and plain text as rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fruit import TEXTS

from ultrachat import tiny
from ultrachat.errors import Stop


def test_the_tokenizer_is_repeatable_and_knows_every_text(tmp_path):
    first = tiny.train_tokenizer(TEXTS, 300, tmp_path / "a")
    tiny.train_tokenizer(iter(TEXTS), 300, tmp_path / "b")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    special = (first.bos_token, first.eos_token, first.pad_token)
    assert len(first) == 300 and special == ("<s>", "</s>", "<pad>")
    for text in ("A pear", "ünïcödé 你好 🍐", "</s> <s>\n\t  "):
        ids = first(text, split_special_tokens=True)["input_ids"]
        assert ids[0] == first.bos_token_id and first.decode(ids[1:]) == text
    with pytest.raises(Stop, match="vocab_size: expected at least 259, got 100"):
        tiny.train_tokenizer(TEXTS, 100, tmp_path / "c")


def test_the_model_is_small_and_repeatable(tmp_path):
    tokenizer = tiny.train_tokenizer(TEXTS * 50, 400, tmp_path)
    model, again = (tiny.tiny_llama(tokenizer, seed=7) for _ in range(2))
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = tiny.tiny_llama(tokenizer, seed=8)
    assert not torch.equal(model.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_blocks_keep_every_token_in_order(tmp_path):
    tokenizer = tiny.train_tokenizer(TEXTS, 300, tmp_path)
    blocks = tiny.blocks(["A pear", "</s> fig"], tokenizer, 4)
    stream = np.concatenate([block.input_ids for block in blocks]).tolist()
    expected = []
    for text in ("A pear", "</s> fig"):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        expected += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    assert stream == expected[: len(stream)] and len(expected) - len(stream) <= 1
    assert all(b.n_tokens == 4 for b in blocks[:-1]) and all((b.labels == b.input_ids).all() for b in blocks)
    with pytest.raises(Stop, match="texts: none"):
        tiny.blocks([], tokenizer, 4)
