"""What the tests of training share: dialogues about fruit, and a base model so small that a step takes no time."""

from __future__ import annotations

from pathlib import Path

from ultrachat.records import SECTORS, Dialogue
from ultrachat.tiny import tiny_llama, train_tokenizer

FRUIT = [
    "pear",
    "plum",
    "fig",
    "apple",
    "cherry",
    "quince",
    "peach",
    "lemon",
    "lime",
    "grape",
    "kiwi",
    "date",
]
DIALOGUES = [  # of one to four rounds, some with a sector
    Dialogue.from_rounds(
        [(f"What is a {x}?", f"A {x} is a fruit."), *[("And?", f"Enjoy the {x}!")] * (i % 4)],
        sector=[None, *SECTORS][i // 3],
    )
    for i, x in enumerate(FRUIT)
]
TEXTS = [text for dialogue in DIALOGUES for text in dialogue.texts]


def make_base(folder: Path) -> Path:
    """Write an untrained Llama of one layer, 32 numbers wide, with a tokenizer of its own; return its folder."""
    tokenizer = train_tokenizer(TEXTS * 3, 320, folder)
    tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2, max_position=256).save_pretrained(
        str(folder)
    )
    return folder
