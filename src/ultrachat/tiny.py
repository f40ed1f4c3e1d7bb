"""A base model for the sample run: a tokenizer, a small Llama, and a little pre-training on plain text.

The sample run has no LLaMA, so it makes one of a million parameters that has read the sample's text and so
has something to adapt: LoRA on random weights barely moves.

    tokenizer = train_tokenizer(texts, 2048, folder)
    pretrain(tiny_llama(tokenizer), tokenizer, texts, held_out_texts, out_dir, recipe)

Absent on purpose: anything that a run on a real base needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from ultrachat.errors import Stop
from ultrachat.recipes import Recipe
from ultrachat.sections import Example
from ultrachat.training import TrainingResult, content_hash, train


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path | str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from `texts`, also saved in `folder`.

    It has `<s>`, `</s>` and `<pad>` and knows every byte, so no text is unknown to it; like LLaMA's
    it puts `<s>` in front. The same texts give the same tokenizer. Raises Stop when `vocab_size`
    cannot hold the 256 bytes and the three.

    Ours: the sample run has no LLaMA tokenizer.
    """
    special = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise Stop(f"vocab_size: expected at least {len(alphabet) + len(special)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(str(folder))
    return fast


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int = 128,
    n_layers: int = 2,
    n_heads: int = 4,
    max_position: int = 2048,  # LLaMA's
    seed: int = 0,
) -> LlamaForCausalLM:
    """Return an untrained Llama of LLaMA's make, small: RoPE, RMSNorm, SwiGLU, float32.

    Input and output embeddings are shared, for at this size they would be most of the parameters.

    Ours: LLaMA-13B stands behind a parameter; this one trains in a minute on two cores.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, max_position_embeddings=max_position, tie_word_embeddings=True,
        intermediate_size=64 * round(hidden_size / 24),  # 8/3 as in LLaMA, in steps that 4-bit kernels take
        initializer_range=0.06,  # LLaMA's 0.02 is for widths of thousands: here it learns far slower
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    set_seed(seed)
    return LlamaForCausalLM(config)


def blocks(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_tokens: int) -> list[Example]:
    """Return plain texts as rows of `block_tokens` with every token learnt, for pre-training.

    Each text stands between `<s>` and `</s>`, they follow one another, and rows are cut wherever they
    are full; the last row may be shorter. Raises Stop when there is no text.

    Ours: what a base model is pre-trained on.
    """
    texts = list(texts)
    if not texts:
        raise Stop("texts: none to train on")
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    framed = ([tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows)
    stream = np.fromiter(chain.from_iterable(framed), dtype=np.int32)
    return [
        Example(block, block.copy())
        for block in (stream[i : i + block_tokens] for i in range(0, len(stream), block_tokens))
        if len(block) > 1  # a single token predicts nothing
    ]


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    held_out_texts: Sequence[str],
    out_dir: Path | str,
    recipe: Recipe,
    block_tokens: int = 256,
) -> TrainingResult:
    """Train a model on plain text, save it with its tokenizer in `out_dir` as a base, return the result.

    The model given is trained in place; of a run that is only read back it stays as it was, so load
    the base from `out_dir`. Raises Stop as `finetune` does. Held-out texts must not be among `texts`.

    Ours: stands in for LLaMA's pre-training.
    """
    examples = blocks(texts, tokenizer, block_tokens)
    held_out = blocks(held_out_texts, tokenizer, block_tokens)
    start = content_hash(weight.detach().cpu().numpy().tobytes() for weight in model.parameters())
    return train(lambda: model, tokenizer, examples, held_out, Path(out_dir), recipe, base=start)
