"""Lexical diversity: how long a text goes on before it repeats itself (MTLD), and how to compute it fast.

    words_of("The well-known 3 cats, the cats!")   # ['the', 'wellknown', 'cats', 'the', 'cats']
    mtld("the quick brown fox jumps")              # 5.0
    mtlds(["a a b", "42"])                         # array([ 3., nan]), many texts at once

`words_of` and `mtld_of_words` are the definition, to be read. `mtlds` is the same on the bytes of many
texts at once, compiled, and gives the same numbers to the last bit: those of the package LexicalRichness,
which the paper used and the tests hold both against.

Absent on purpose: LexicalRichness itself (importing it takes seconds; it raises on a text without words).
"""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryDirectory

import numba
import numpy as np

from ultrachat.errors import Stop

THRESHOLD = 0.72  # LexicalRichness's default, which the paper does not override

# ---- the definition ---------------------------------------------------------------------------

DELETED = "0123456789-\u2013\u2014"  # digits, hyphen, en and em dash: what they join becomes one word
_DELETE = str.maketrans("", "", DELETED)
_SPACE = str.maketrans(string.punctuation, " " * len(string.punctuation))


def words_of(text: str) -> list[str]:
    """Return the words of `text` as LexicalRichness finds them, its preprocessing being part of the definition.

    Lower case; digits, hyphens and dashes deleted; ASCII punctuation to spaces; split at white space. Only
    ASCII marks part words: "pear,fig" is two words, Chinese "梨，无花果" is one, and often a whole answer is.

    Paper: §4.5, "with LexicalRichness".
    """
    return text.lower().translate(_DELETE).translate(_SPACE).split()


def mtld_of_words(words: Sequence[str], threshold: float = THRESHOLD) -> float | None:
    """Return the MTLD of a sequence of words, in words; None when there are none.

    Walk through the words and count how often the share of different ones sinks to `threshold` (a
    *factor*; the count then begins anew). The length divided by the number of factors, the unfinished
    last one counted in part, is the result: forwards and backwards, averaged.

    Paper: Table 5 (McCarthy and Jarvis, 2010).
    """
    _check_threshold(threshold)
    if not words:
        return None
    return (_one_way(words, threshold) + _one_way(words[::-1], threshold)) / 2


def _one_way(words: Sequence[str], threshold: float) -> float:
    factors, different, n = 0.0, set(), 0
    for word in words:
        different.add(word)
        n += 1
        if len(different) / n <= threshold:  # a tie closes the factor too
            factors, different, n = factors + 1, set(), 0
    if n:
        factors += (1 - len(different) / n) / (1 - threshold)
    return len(words) / factors if factors else float(len(words))  # no word came twice: one factor


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise Stop(f"threshold {threshold}: expected a number between 0 and 1")


def mtld(text: str, threshold: float = THRESHOLD) -> float | None:
    """Return the MTLD of `text`, in words; None where it has no words. Raises Stop unless 0 < threshold < 1.

    Paper: §4.5, Table 5.
    """
    value = mtlds([text], threshold)[0]
    return None if np.isnan(value) else float(value)


# ---- languages written without spaces ---------------------------------------------------------

_HAN_OR_KANA = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_WIDE_MARKS = re.compile(
    "[\u3001-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\u2018-\u201f\u2026]"
)
SEGMENTERS = ("none", "characters", "jieba")


def segmenter(name: str) -> Callable[[str], str]:
    """Return a function that puts spaces between the words of a Chinese text, for `mtld` to see them.

    "none" leaves the text alone (for LexicalRichness a clause in Chinese, or a whole text, is one word),
    "characters" makes every Han or kana character a word, "jieba" asks that package's dictionary; the
    last two also turn wide punctuation into spaces. Raises Stop for another name or without jieba.

    Ours: the paper prints 35.9 for BELLE and does not say how Chinese was split.
    """
    if name == "none":
        return lambda text: text
    if name == "characters":
        return lambda text: _HAN_OR_KANA.sub(r" \1 ", _WIDE_MARKS.sub(" ", text))
    if name != "jieba":
        raise Stop(f"segmenter '{name}': expected one of {', '.join(SEGMENTERS)}")
    try:
        jieba = importlib.import_module("jieba")
    except ImportError:
        raise Stop("segmenter 'jieba': needs the package jieba (pip install jieba)") from None
    jieba.setLogLevel("ERROR")  # it announces its dictionary on stderr
    with TemporaryDirectory() as private:  # it would load a cache from where any user may have put one
        jieba.dt.tmp_dir = private
        jieba.dt.initialize()
    return lambda text: " ".join(jieba.cut(_WIDE_MARKS.sub(" ", text)))


# ---- the same, on the bytes of many texts -----------------------------------------------------

BYTES_AT_ONCE = 4_000_000  # of text; bounds the buffers
_START, _TIMES = np.uint64(14695981039346656037), np.uint64(1099511628211)  # FNV-1a, a hash
_KEEP, _PART, _DROP, _LEAD = 0, 1, 2, 3  # what a byte is: of a word, between words, nothing, first of several


def _byte_classes() -> np.ndarray:
    """Return the class of each byte. White space and dashes beyond ASCII begin with one of the lead bytes."""
    classes = np.zeros(256, np.uint8)
    classes[[ord(c) for c in map(chr, range(128)) if c.isspace() or c in string.punctuation]] = _PART
    classes[[ord(c) for c in DELETED if ord(c) < 128]] = _DROP
    beyond = [chr(c) for c in range(128, 0x10000) if chr(c).isspace()] + [c for c in DELETED if ord(c) > 127]
    classes[[c.encode()[0] for c in beyond]] = _LEAD
    return classes


_CLASSES = _byte_classes()
_LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)  # of ASCII; other texts come in lower case


@numba.njit(cache=True, inline="always")
def _rare(a: int, b: int, c: int) -> tuple[int, int]:
    """Return (class, length) of the character whose bytes, in UTF-8, begin with a, b, c."""
    if a == 0xC2:
        return (_PART if b == 0x85 or b == 0xA0 else _KEEP), 2
    if a == 0xE1:
        return (_PART if b == 0x9A and c == 0x80 else _KEEP), 3
    if a == 0xE2 and b == 0x80:
        if c <= 0x8A or c == 0xA8 or c == 0xA9 or c == 0xAF:
            return _PART, 3
        return (_DROP if c == 0x93 or c == 0x94 else _KEEP), 3
    if a == 0xE2:
        return (_PART if b == 0x81 and c == 0x9F else _KEEP), 3
    return (_PART if b == 0x80 and c == 0x80 else _KEEP), 3  # a == 0xE3


@numba.njit(cache=True)
def _walk(
    ids: np.ndarray, n: int, step: int, last: np.ndarray, mark: int, threshold: float, limits: np.ndarray
) -> tuple[float, int]:
    """Return `_one_way` over the first n word ids, forwards or backwards, and the next unused mark.

    `last[id]` is the mark of the factor in which a word was met last: nothing needs clearing.
    """
    factors, different, length = 0.0, 0, 0
    at = 0 if step > 0 else n - 1
    for _ in range(n):
        word = ids[at]
        at += step
        length += 1
        if last[word] != mark:
            last[word] = mark
            different += 1
        # the very comparison of the definition, made once for every length: a division is slow
        if different <= limits[length] if length < len(limits) else different / length <= threshold:
            factors += 1.0
            different, length = 0, 0
            mark += 1
    if length:
        factors += (1 - different / length) / (1 - threshold)
    return (n / factors if factors != 0.0 else float(n)), mark + 1


@numba.njit(cache=True, inline="always")
def _id_of(
    clean: np.ndarray, begin: int, end: int, code: np.uint64, number: int, n_different: int,
    slots: np.ndarray, begins: np.ndarray, ends: np.ndarray, hashes: np.ndarray,
) -> int:  # fmt: skip
    """Return the id of the word `clean[begin:end]` among those of text `number`; `n_different` if it is new.

    A slot holds the number of a text and a word's id: what is left over from an earlier text counts as free.
    """
    mask = len(slots) - 1
    slot = np.int64((code ^ (code >> np.uint64(32))) & np.uint64(mask))
    while slots[slot] >> 32 == number:
        word = slots[slot] & 0xFFFFFFFF
        if hashes[word] == code and ends[word] - begins[word] == end - begin:
            same = True
            for k in range(end - begin):
                if clean[begins[word] + k] != clean[begin + k]:
                    same = False
                    break
            if same:
                return word
        slot = (slot + 1) & mask
    slots[slot] = (np.int64(number) << 32) | n_different
    begins[n_different], ends[n_different], hashes[n_different] = begin, end, code
    return n_different


@numba.njit(cache=True)
def _word_ids(
    text: np.ndarray, at: int, stop: int, number: int, classes: np.ndarray, lower: np.ndarray, clean: np.ndarray,
    slots: np.ndarray, begins: np.ndarray, ends: np.ndarray, hashes: np.ndarray, ids: np.ndarray,
) -> int:  # fmt: skip
    """Fill `ids` with the ids of the words in `text[at:stop]`, equal words alike; return how many words there are.

    `clean` takes the bytes of the different words, without what is deleted; the other arrays are `_id_of`'s.
    """
    begin = filled = n = n_different = 0
    code = _START
    while at <= stop:
        kind, length, byte = _PART, 1, 0  # past the end: what parts words
        if at < stop:
            byte = text[at]
            kind = classes[byte]
            if kind == _LEAD:
                kind, length = _rare(byte, text[at + 1], text[at + 2] if at + 2 < stop else 0)
        if kind == _KEEP:
            for k in range(at, at + length):
                low = lower[text[k]]
                clean[filled] = low
                filled += 1
                code = (code ^ np.uint64(low)) * _TIMES
        elif kind == _PART and filled > begin:
            word = _id_of(clean, begin, filled, code, number, n_different, slots, begins, ends, hashes)
            if word == n_different:
                n_different += 1
                begin = filled
            else:
                filled = begin  # its bytes are there already
            ids[n] = word
            n += 1
            code = _START
        at += length
    return n


@numba.njit(cache=True)
def _mtlds(
    text: np.ndarray, starts: np.ndarray, threshold: float, classes: np.ndarray, lower: np.ndarray, out: np.ndarray
) -> None:  # fmt: skip
    """Fill `out` with the MTLD of each text `text[starts[i]:starts[i + 1]]` (lower case, UTF-8); NaN: no words."""
    longest = 0
    for i in range(len(out)):
        longest = max(longest, starts[i + 1] - starts[i])
    most = longest // 2 + 2  # words in a text
    bits = 4
    while (1 << bits) < 2 * most:
        bits += 1
    slots = np.zeros(1 << bits, np.int64)
    clean = np.empty(longest + 1, np.uint8)
    begins, ends, hashes = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint64)
    ids, last = np.empty(most, np.int32), np.zeros(most, np.int64)
    mark = 1
    limits = np.zeros(256, np.int64)  # the most different words among so many that close a factor
    for length in range(1, len(limits)):
        while (limits[length] + 1) / length <= threshold:
            limits[length] += 1
    for i in range(len(out)):
        at, stop = starts[i], starts[i + 1]
        n = _word_ids(text, at, stop, i + 1, classes, lower, clean, slots, begins, ends, hashes, ids)
        if n == 0:
            out[i] = np.nan
            continue
        forward, mark = _walk(ids, n, 1, last, mark, threshold, limits)
        backward, mark = _walk(ids, n, -1, last, mark, threshold, limits)
        out[i] = (forward + backward) / 2


def mtlds(texts: Sequence[str], threshold: float = THRESHOLD) -> np.ndarray:
    """Return the MTLD of each text as an (n,) float64 array, NaN where a text has no words.

    Equal to `mtld_of_words(words_of(text))` to the last bit. Raises Stop unless 0 < threshold < 1.

    Ours: LexicalRichness's numbers at a fraction of its time (benchmarks/README.md).
    """
    _check_threshold(threshold)
    out = np.empty(len(texts))
    done = 0
    for buffer, starts in utf8_batches(t if t.isascii() else t.lower() for t in texts):
        n = len(starts) - 1
        _mtlds(buffer, starts, threshold, _CLASSES, _LOWER, out[done : done + n])
        done += n
    return out


def utf8_batches(
    texts: Iterable[str], errors: str = "surrogatepass"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield texts in batches as (bytes in UTF-8, (n + 1,) offsets); `errors` is what to do with lone surrogates.

    Ours: compiled code wants bytes, and few of them at a time.
    """
    parts: list[bytes] = []
    size = 0
    for text in texts:
        parts.append(text.encode("utf-8", errors))
        size += len(parts[-1])
        if size >= BYTES_AT_ONCE:
            yield _joined(parts)
            parts, size = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return np.frombuffer(b"".join(parts), np.uint8), starts
