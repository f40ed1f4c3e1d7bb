"""MTLD: by hand, and equal to LexicalRichness to the last bit on every text there is."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import lexical as L
from ultrachat.errors import Stop

REPO = Path(__file__).resolve().parent.parent


def reference(text: str, threshold: float = 0.72) -> float | None:
    from lexicalrichness import LexicalRichness

    try:
        return LexicalRichness(text).mtld(threshold=threshold)
    except ZeroDivisionError:  # no words
        return None


def same(text: str, threshold: float = 0.72) -> None:
    expected = reference(text, threshold)
    assert L.mtld(text, threshold) == expected
    assert L.mtld_of_words(L.words_of(text), threshold) == expected


def test_mtld_by_hand():
    # a a b: TTR 1, 1/2 closes a factor; b alone adds nothing: 3 / 1. Backwards b a a: 1, 1, 2/3 closes: 3 / 1
    assert L.mtld("a a b") == 3
    # five different words: TTR stays 1, which LexicalRichness counts as one factor
    assert L.mtld("the quick brown fox jumps") == 5
    # x y x y: 1, 1, 2/3 closes, y alone: 4 / 1 both ways
    assert L.mtld("x y x y") == 4
    # a b c a: TTR ends at 3/4, a part of a factor: 4 / ((1 - 3/4) / (1 - 0.72)) both ways
    assert L.mtld("a b c a") == pytest.approx(4 * 0.28 / 0.25)


@pytest.mark.parametrize("text", ["", " ", "42", "-–—", "!?", "1.5 2,000"])
def test_text_without_words_has_no_mtld(text):
    assert L.mtld(text) is None


@pytest.mark.parametrize("threshold", [0, 1, 1.2, -1])
def test_threshold_out_of_range_stops(threshold):
    with pytest.raises(Stop, match="threshold"):
        L.mtld("a b", threshold)


WORDS = [
    "a",
    "b",
    "c",
    "d,",
    "e-f",
    "7",
    "É",
    "The",
    "the",
    "\u0130",
    "Σας",
    "ΟΔΟΣ",
    "🙂",
    "中文。",
    "\u00a0",
    "\u2014",
]
# white space, dashes and marks that share their first bytes with white space and dashes
NEAR = "\u0085\u00a0\u00a1\u1680\u1681\u2000\u200a\u200b\u2012\u2013\u2014\u2015\u2028\u202f\u205f\u2060\u3000\u3001\x1c\x1f\x00\ud800"


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=80)
    | st.text(alphabet=st.sampled_from([*NEAR, *"aàbΣσςİ -.,;7\n"]), max_size=60)
    | st.lists(st.sampled_from(WORDS), max_size=120).map(" ".join)
)
def test_mtld_equals_lexicalrichness(text):
    same(text)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.66, 0.75, 0.999])
def test_every_threshold_closes_the_same_factors(threshold):
    same("the cat sat on the mat and the dog sat on the cat " * 7, threshold)


def test_every_character_is_of_a_word_or_not_as_in_the_reference():
    # each between two letters: "xy" if deleted, two words if white space, one word otherwise
    for start in range(0, 0x110000, 0x1000):
        characters = [chr(c) for c in range(start, start + 0x1000)]
        texts = [f"x{c}y xy {c}" for c in characters]
        expected = [L.mtld_of_words(L.words_of(text)) for text in texts]
        assert L.mtlds(texts).tolist() == expected


def test_a_long_text_and_a_segment_longer_than_the_table_of_limits():
    rng = np.random.default_rng(0)
    words = [f"w{'abcdefghij'[i % 10]}{'k' * (i // 10)}" for i in range(400)]
    all_different = " ".join(words)  # TTR stays 1 for 400 words
    million = " ".join(words[i] for i in rng.integers(0, 60, 250_000))
    assert len(million) > 1_000_000
    for text in (all_different, all_different + " " + all_different, million):
        same(text)


def test_many_texts_are_as_each_alone(monkeypatch):
    texts = ["a a b", "42", "", "x y x y", "the cat, the cat", "a a b"] * 40
    alone = [L.mtld(text) for text in texts]
    monkeypatch.setattr(L, "BYTES_AT_ONCE", 20)
    together = L.mtlds(texts)
    assert [None if math.isnan(v) else v for v in together] == alone
    assert L.mtlds([]).shape == (0,)


def test_importing_loads_neither_lexicalrichness_nor_torch():
    modules = (
        "statistics, ultrachat.corpora, ultrachat.measure, ultrachat.embeddings, ultrachat.contamination"
    )
    code = (
        f"import sys, ultrachat.{modules}; "
        "print([m for m in ('torch', 'lexicalrichness', 'sklearn', 'transformers') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(REPO / "src")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "[]"


def test_real_answers_of_all_kinds(public):
    rows = json.loads(public("alpaca/alpaca_5000.json").read_text(encoding="utf-8"))[:400]
    texts = [row["output"] for row in rows]
    for line in public("sharegpt/sharegpt_zh_300.jsonl").read_text(encoding="utf-8").splitlines()[:40]:
        texts += [turn["value"] for turn in json.loads(line)["conversations"]]
    values = [None if math.isnan(v) else v for v in L.mtlds(texts)]
    assert values == [reference(text) for text in texts]


# ---- Chinese ----------------------------------------------------------------------------------


def test_characters_become_words():
    text = "我喜欢读书，也喜欢 Python。"
    assert L.words_of(text) == ["我喜欢读书，也喜欢", "python。"]  # what LexicalRichness sees
    assert L.words_of(L.segmenter("characters")(text)) == [
        "我",
        "喜",
        "欢",
        "读",
        "书",
        "也",
        "喜",
        "欢",
        "python",
    ]
    assert L.segmenter("none")(text) == text


def test_jieba_finds_words():
    pytest.importorskip("jieba")
    assert L.words_of(L.segmenter("jieba")("我喜欢读书，也喜欢写作。")) == [
        "我",
        "喜欢",
        "读书",
        "也",
        "喜欢",
        "写作",
    ]


def test_what_is_no_segmenter_stops(monkeypatch):
    with pytest.raises(Stop, match="segmenter 'words'"):
        L.segmenter("words")
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(Stop, match="pip install jieba"):
        L.segmenter("jieba")
