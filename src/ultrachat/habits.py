"""Thirty countable habits of how a question is typed, by which people and models can be told apart.

    features("how do i  fix this")["starts_lower"]   # 1.0
    features("Can you provide more?")["can_you"]     # 1.0

Every feature is 0 or 1, or a share (`word_length` alone is letters), so that none can outweigh the rest on an odd
text. `FEATURES` says in a line what each counts.

Absent on purpose: topics, a vocabulary, and what tells a request from a question or a long text from a short one
(`form`): where the texts at hand differ in that, it is because of who collected them, not of who wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from ultrachat.records import content_id

MAX_WORDS = 100  # a longer message is mostly pasted text, which neither of the two wrote
LENGTHS = (8, 14, 25)  # words up to which a text is in the first, second, third band

Counter = Callable[[str, list[str]], float]  # of a text without surrounding white space, and its words
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    re.findall(r"\w+", """
    a an the and or but if of in on at by for with from to into about as than is are was were be
    been being am do does did have has had will would can could should may might must shall not no
    it its this that these those i me my we us our you your he him his she her they them their there
    here what which who whom whose when where why how so then too also just only
    """)
)  # fmt: skip


def _any(pattern: str) -> Counter:
    """Return a feature that is 1 where the pattern is found, in whatever case, else 0."""
    compiled = re.compile(pattern, re.I)
    return lambda text, words: float(compiled.search(text) is not None)


def _rate(pattern: str) -> Counter:
    """Return a feature that counts the pattern, per word and at most 1."""
    compiled = re.compile(pattern, re.I)
    return lambda text, words: min(1.0, len(compiled.findall(text)) / max(1, len(words)))


def _share(test: Callable[[str], bool]) -> Counter:
    """Return a feature that is the share of words for which `test` holds, 0 without words."""
    return lambda text, words: sum(map(test, words)) / max(1, len(words))


_COUNTED: dict[str, tuple[str, Counter]] = {
    "word_length": (
        "mean letters of a word, at most 15",
        lambda t, w: min(15.0, sum(map(len, w)) / max(1, len(w))),
    ),
    "repeated_words": (
        "share of words said before in the text",
        lambda t, w: 1 - len({x.lower() for x in w}) / len(w) if w else 0.0,
    ),
    "function_words": ("share of articles, pronouns …", _share(lambda word: word.lower() in _FUNCTION_WORDS)),
    "long_words": ("share of words of nine letters or more", _share(lambda word: len(word) >= 9)),
    "starts_lower": ("first character in lower case", lambda t, w: float(t[:1].islower())),
    "ends_bare": ("last character a letter or digit", lambda t, w: float(t[-1:].isalnum())),
    "exclaims": ("an exclamation mark", _any("!")),
    "first_person": ("share of I, me, my, we …", _rate(r"\b(i|i'm|me|my|mine|we|us|our)\b")),
    "second_person": ("share of you, your", _rate(r"\byour?s?\b")),
    "please_or_thanks": ("please, thank", _any(r"\b(please|thanks?|thank you)\b")),
    "can_you": ("can you, could you, would you", _any(r"\b(can|could|would|will) you\b")),
    "greets_or_reacts": (
        "begins with hi, ok, wow, great …",
        _any(r"^(hi|hello|hey|dear|ok|okay|oh|ah|wow|great|thanks|yes|no|yeah|sure|so|well|and|but)\b"),
    ),
    "more": ("more, other, any, some", _rate(r"\b(more|others?|another|any|some|additional|specific)\b")),
    "hedges": ("maybe, just, really, I think …", _any(r"\b(maybe|perhaps|just|really|kinda|kind of|sort of|i think|i guess|a bit|pretty|actually)\b")),
    "subordinates": ("share of that, because, if, when …", _rate(r"\b(that|which|because|if|when|while|although|though|since|where|who|whether)\b")),
    "contractions": ("an apostrophe inside a word: don't", _any(r"[^\W\d_]['’](t|s|re|ve|ll|d|m)\b")),
    "lost_apostrophe": ("dont, im, whats … without it", _any(r"\b(dont|doesnt|didnt|cant|isnt|arent|wasnt|wont|im|ive|whats|thats|lets|youre)\b")),
    "short_forms": ("u, lol, btw, gonna, vs, etc …", _any(r"\b(u|ur|pls|plz|lol|btw|gonna|wanna|gotta|vs|etc|info|tv|ok)\b")),
    "lower_i": ("the pronoun I in lower case", lambda t, w: float("i" in w)),
    "slips": (
        "double space, space before a mark, mark without space, repeated mark",
        _any(r"\S {2,}\S|\w [,;:?!]|[a-z][,;?!][a-z]|[!?]{2,}|\.{2,}|,,"),
    ),
    "capital_letters": (
        "share of letters in upper case",
        lambda t, w: sum(x.isupper() for x in t if x.isalpha()) / max(1, sum(map(str.isalpha, t))),
    ),
    "names": (
        "share of words after the first that begin with a capital",
        lambda t, w: sum(x[0].isupper() and x != "I" for x in w[1:]) / max(1, len(w) - 1),
    ),
    "digits": ("share of words with a digit", _share(lambda word: any(map(str.isdigit, word)))),
    "commas": ("commas per word", _rate(",")),
    "brackets": ("a round bracket", _any(r"[()]")),
    "quotes": ("a straight double quote", _any('"')),
    "curly": ("a typographic quote, apostrophe or dash", _any("[“”‘’–—]")),
    "hyphens": ("hyphens per word", _rate(r"[^\W_]-[^\W_]")),
    "code": ("signs of code or an address: { } ; == ` < > \\ http", _any(r"[{}`<>\\]|==|;\s*\n|https?:")),
    "foreign": (
        "share of letters outside ASCII",
        lambda t, w: sum(not x.isascii() for x in t if x.isalpha()) / max(1, sum(map(str.isalpha, t))),
    ),
}  # fmt: skip
FEATURES: dict[str, str] = {name: what for name, (what, _) in _COUNTED.items()}  # and what each counts


def features(text: str) -> dict[str, float]:
    """Return name to value of every feature of a text: 0 or 1, or a share (`word_length`: letters, to 15).

    White space around the text changes nothing; any text has finite values, the empty one too.

    Ours: PlatoLM's detector was not published; these are what anyone can count again.
    """
    text = text.strip()
    words = _WORD.findall(text)
    return {name: float(count(text, words)) for name, (_, count) in _COUNTED.items()}


def matrix(texts: Iterable[str]) -> np.ndarray:
    """Return the features of texts, (texts, features), in the order of `FEATURES`.

    Ours: see `features`.
    """
    return np.array([list(features(text).values()) for text in texts]).reshape(-1, len(FEATURES))


def n_words(text: str) -> int:
    """Return the number of words of a text; what has none, or more than `MAX_WORDS`, is not judged.

    Ours: runs of letters and digits; "don't" is one.
    """
    return len(_WORD.findall(text))


def usable(texts: Iterable[str]) -> list[str]:
    """Return the texts that are judged, without surrounding white space, each once, in id order.

    Ours: a sample of n is the first n, and files of another order train the same classifier.
    """
    kept = {text.strip() for text in texts if 1 <= n_words(text) <= MAX_WORDS}
    return sorted(kept, key=content_id)


def form(text: str) -> tuple[bool, int]:
    """Return what no side should be known by: whether the text asks ("?" in it), and its band of `LENGTHS`.

    Ours: people who fill in forms ask, and models asked for instructions instruct; that is not the habit.
    """
    return "?" in text, sum(n_words(text) > length for length in LENGTHS)
