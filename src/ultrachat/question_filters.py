"""Questions of a simulated user that should not be in the data: too short, repeated, sensitive.

    is_short("why?")                                              # "short"
    is_repetitive("How do I boil an egg?", ["how do I boil an egg"])    # "repeated"
    is_sensitive("My card is 4111 1111 1111 1111")                # "personal_data"
    trim(dialogue)           # what comes before the first such question, and the reason

Parrot removes "repetitive, short and sensitive" questions; how, and where its lines are, is not known to us
(its text was not at hand), so all patterns and thresholds are ours. A dialogue ends before a filtered
question, for every later message answers to it; without its first question nothing is left.

**Limits.** `is_sensitive` is a list of patterns in English. It knows the plainest wordings only: of harmful
questions that somebody else wrote expect it to find less than half, of those in another language none, and no
slur is listed. It is no moderation model and must not guard people.

Absent on purpose: rewriting a question, personal names and addresses, answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ultrachat.duplicates import similarity
from ultrachat.errors import Stop
from ultrachat.ngrams import words
from ultrachat.records import Dialogue, Dropped

if TYPE_CHECKING:
    import pandas as pd

# ---- short ------------------------------------------------------------------------------------

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")


def is_short(text: str, fewest_words: int = 3) -> str | None:
    """Return "short" for a question of fewer than `fewest_words` words, as "continue" and "why?" are, else None.

    A character of Chinese, Japanese or Korean counts as a word. People do write such questions, often:
    this is Parrot's rule for machine-made data, no mark of quality.

    Ours: three, which no source gives.
    """
    n_words = len(_UNSPACED.findall(text)) + len(words(_UNSPACED.sub(" ", text)))
    return "short" if n_words < fewest_words else None


# ---- repetitive -------------------------------------------------------------------------------

_LETTERS_AGAIN = re.compile(r"([^\W\d_]{1,4}?)\1{9,}")
_LONGEST_LOOP = 8  # words; longer loops leave too few different trigrams
_FEWEST_LOOPED = 6  # words in a loop: "very very very" is emphasis


def is_looping(text: str) -> str | None:
    """Return "looping" for a text that says the same again and again, as small models do, else None.

    One to eight words that follow themselves at least twice and fill half of the text, twenty words or more
    with fewer different trigrams than half their number, or letters ten times in a row. A loop of numbers
    alone is data, and "Day 1: 15 degrees, Day 2: 25 degrees" is no loop.

    Ours: no source says what Parrot calls repetitive.
    """
    if _LETTERS_AGAIN.search(text):
        return "looping"
    said = words(text)
    trigrams = Counter(zip(said, said[1:], said[2:], strict=False))
    worded = {trigram: n for trigram, n in trigrams.items() if not all(map(str.isdigit, trigram))}
    if len(said) >= 20 and 2 * len(worded) < sum(worded.values()):
        return "looping"
    for size in range(1, _LONGEST_LOOP + 1):
        in_a_row = longest = end = 0
        for i in range(size, len(said)):
            in_a_row = in_a_row + 1 if said[i] == said[i - size] else 0
            if in_a_row > longest:
                longest, end = in_a_row, i
        looped = longest + size if longest >= 2 * size else 0
        if looped >= max(_FEWEST_LOOPED, len(said) / 2) and not all(
            map(str.isdigit, said[end - size + 1 : end + 1])
        ):
            return "looping"
    return None


def is_repetitive(text: str, earlier: Sequence[str] = (), threshold: float = 0.8) -> str | None:
    """Return "looping" (`is_looping`), "repeated" for a question asked before, or None.

    Asked before means the words of one of the `earlier` questions, or shingles at least `threshold` similar.
    Raises Stop for a threshold not above 0 and at most 1.

    Ours: similar as `duplicates` has it, at the threshold that openings have.
    """
    if not 0 < threshold <= 1:
        raise Stop(f"threshold={threshold}: expected above 0 and at most 1")
    if looping := is_looping(text):
        return looping
    own = words(text)
    if any(own == words(other) or (own and similarity(text, other) >= threshold) for other in earlier):
        return "repeated"
    return None


# ---- sensitive: personal data -----------------------------------------------------------------

_EMAIL = re.compile(
    r"\b[\w.+-]{1,64}@(?!example\.)(?:[a-z0-9-]+\.)+(?!(?:example|test|invalid|localhost)\b)[a-z]{2,}\b",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d[\d ().-]{7,16}\d|(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-. ]\d{4})(?![\w-])|"
    r"\b(?:phone|mobile|cell|telephone|whatsapp|call me|text me|reach me)\b[^\n\d]{0,25}(?=(?:[ ()-]*\d){9})[\d ()-]+",
    re.IGNORECASE,
)
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d{2,7}){2,4}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-\d{2}-\d{4}(?![\w-])")
_SECRET = re.compile(
    r"\bpass(?:word|code|phrase)(?: is|:| ?=) ?[\"']?(?=[^\s\"']*\d)(?=[^\s\"']*[a-z])[^\s\"']{6,}|"
    r"\bpin(?: code| number)?(?: is|:| ?=) ?\d{4,6}\b",
    re.IGNORECASE,
)


def has_luhn_checksum(digits: str) -> bool:
    """Return whether digits end in the check digit of payment cards. Ours: ISO/IEC 7812."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def has_iban_checksum(text: str) -> bool:
    """Return whether an account number without blanks passes the check of IBANs. Ours: ISO 13616."""
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def has_personal_data(text: str) -> bool:
    """Return whether a text gives an e-mail address, phone, card, account or US social security number, or a secret.

    Cards and accounts must pass their checksums. Addresses at example.org, x.test
    and the like are nobody's. In a pasted web page a public contact counts as well.

    Ours: by pattern; which data Parrot means is not known.
    """
    if ("@" in text and _EMAIL.search(text)) or any(p.search(text) for p in (_PHONE, _SSN, _SECRET)):
        return True
    cards = (re.sub(r"\D", "", match.group()) for match in _CARD.finditer(text))
    if any(13 <= len(digits) <= 19 and has_luhn_checksum(digits) for digits in cards):
        return True
    return any(_ibans(match.group()) for match in _IBAN.finditer(text))


def _ibans(text: str) -> bool:
    """Whether an IBAN is at the head of the match, which may run into the words that follow."""
    bare = text.replace(" ", "")
    return any(has_iban_checksum(bare[:length]) for length in range(15, min(34, len(bare)) + 1))


# ---- sensitive: harm --------------------------------------------------------------------------

_HOW = (
    r"\b(?:how (?:do|can|could|would|should|to|does)|where (?:do|can|could|should|is)|(?:ways?|steps|methods?|plan|place|process) (?:of|to|for)|"
    r"steps|instructions?|recipe|guide|(?:tell|teach|show|help) me|explain|what can i do to|i (?:want|need|plan|am going) to)\b"
)
_PERSON = (
    r"(?:him|her|them|someone|somebody|people|humans?|humanity|an?other person|(?:my|a|the|his|her|this|that|our|some|an) (?:\w+ ){0,2}"
    r"(?:husband|wife|boyfriend|girlfriend|ex|date|boss|neighbou?r|teacher|classmate|colleague|co-?worker|roommate|parents?|mother|father|"
    r"mom|dad|brother|sister|grand\w+|family|person|human|man|woman|boy|girl|child|kid|cop|police \w+|politician|president|minister|gr?oup of people))\b"
)
_GROUP = (
    r"(?:jews?|muslims?|christians?|black people|blacks|white people|whites|asians?|mexicans?|arabs?|immigrants?|refugees?|foreigners|"
    r"gays?|gay people|lesbians?|trans(?:gender)? people|women|disabled people|roma|gypsies)"
)
_KILL = r"(?:kill|murder|poison|stab|strangl|chok|drown|behead|execut|assassinat|butcher|slay|shoot|shot|exterminat|eradicat|push)(?:e|ing|ting)?"
_WEAPON = (
    r"(?:(?<!bath )(?<!seed )(?<!photo )(?<!stink )(?<!smoke )(?<!f-)bombs?(?! (?:calorimeter|shelter|cyclone))|explosives?|grenades?|"
    r"molotovs?|detonators?|napalm|landmines?|nerve agents?|nerve gas|mustard gas|sarin|ricin|anthrax|novichok|weapons?|bioweapons?|"
    r"(?:ghost|untraceable|machine) guns?|silencers?)\b"
)
_MAKE = r"(?:mak(?:e|ing)|build(?:ing)?|construct|assembl(?:e|ing)|synthesi[sz](?:e|ing)|cook|print|produc(?:e|ing)|creat(?:e|ing)|prepar(?:e|ing))"
_PLACE = r"(?:schools?|hospitals?|church|mosque|synagogue|airport|station|train|plane|concert|building|embassy|house|office|mall|city|army base)"
# games, stories and cameras
_PLAYED = (
    r"(?![^.?!\n]*\b(?:games?|gaming|minecraft|call of duty|battlefield|gta|chess|judo|films?|movies?|novels?|books?|stor(?:y|ies)|"
    r"screenplay|fiction\w*|photos?|portraits?|pictures?|videos?|camera|lens|light)\b)"
)

PATTERNS: dict[str, tuple[str, ...]] = {
    "self_harm": (
        r"\b(?:kill|hang|drown|stab|shoot|starve|poison|hurt|harm) myself\b(?! (?:laughing|with laughter))",
        r"\b(?:end|take|ending|taking) my (?:own )?life\b(?! (?:insurance|story|lessons?))",
        r"\b(?:i|me) (?:\w+ ){0,4}(?:commit(?:ted|ting)?|attempt(?:ed|ing)?) suicide\b",
        r"\b(?:i (?:want|wish) to die|i (?:don'?t|do not) want to (?:live|be alive|exist)\b|i'?m suicidal)\b",
        r"\b(?:painless(?:ly)?|peaceful(?:ly)?|easiest|quickest|best)\b[^.?!\n]{0,30}\b(?:to die|suicide|kill myself)\b",
        r"\b(?:pills|overdose|medication)\b[^.?!\n]{0,40}\b(?:to die|kill myself)\b",
        r"\b(?:cut|slit|slash|sever|pierce|carve|open)\b[^.?!\n]{0,20}\bmy (?:own )?(?:\w+ )?(?:wrists?|arter(?:y|ies)|veins?|throat|arms?|skin)\b",
        r"\b(?:i|been|keep) (?:\w+ )?cutting myself\b|\bself[- ]harm (?:methods?|without|tips)\b",
    ),
    "minors": (
        r"\b(?:sexual(?:ly)?|(?:have|having|had) sex|sex (?:with|scenes?|stor(?:y|ies))|erotic\w*|porn\w*|nudes?|naked|fetish\w*|intercourse|seduc\w+)\b(?! (?:education|ratio))"
        r"[^.?!\n]{0,60}(?:\b(?:underage\w*|minors?\b(?! (?:scale|chord|key))|child(?:ren)?|kids?|preteens?|toddlers?|school(?:girl|boy)s?|little (?:girl|boy)s?)\b|\b(?:[1-9]|1[0-7])[- ]year[- ]old)",
        r"(?:\b(?:underage\w*|child(?:ren)?|kids?|preteens?|toddlers?|school(?:girl|boy)s?|little (?:girl|boy)s?)\b|\b(?:[1-9]|1[0-7])[- ]year[- ]old)"
        r"[^.?!\n]{0,60}\b(?:sexual acts?|erotic\w*|porn\w*|nudes?|naked|having sex|seduc\w+)\b",
    ),
    "violence": (
        rf"{_HOW}[^.?!\n]{{0,60}}\b{_MAKE}\b[^.?!\n]{{0,40}}\b{_WEAPON}{_PLAYED}",
        rf"\b(?:recipe|instructions|blueprints?|homemade|home-made)\b[^.?!\n]{{0,40}}\b{_WEAPON}{_PLAYED}",
        rf"{_HOW}[^.?!\n]{{0,40}}\b{_KILL} (?:{_PERSON}|{_GROUP}\b){_PLAYED}",
        rf"\b(?:commit|committing|plan|planning|get away with)\b[^.?!\n]{{0,15}}\b(?:murder|massacre|assassination|(?:mass|school) shooting|terror(?:ist)? attack){_PLAYED}",
        rf"{_HOW}[^.?!\n]{{0,30}}\b(?<!not )(?:bomb(?:ing)?|blow(?:ing)? up|burn(?:ing)? down|explod(?:e|ing) a bomb)\b[^.?!\n]{{0,20}}\b{_PLACE}\b{_PLAYED}",
    ),
    "hate": (
        rf"\b{_GROUP}\b[^.?!\n]{{0,25}}\b(?:are|being|is|as|were)\b[^.?!\n]{{0,15}}\b(?:vermin|subhumans?|inferior|parasites|animals|savages|filth|scum|a plague|a disease)\b",
        rf"\bare (?:all )?{_GROUP} (?:\w+ )?(?:inferior|subhuman|so (?:stupid|lazy|dirty|evil))\b",
        rf"\b{_GROUP} (?:should|must|deserve to|need to|ought to) (?:all )?(?:be (?:shot|killed|hanged|gassed|exterminated|wiped out|enslaved)|die)\b",
        r"\b(?:write|tell|give|make|compose|help me)\b[^.?!\n]{0,30}\b(?:racist|antisemitic|anti-semitic|homophobic|transphobic|sexist|islamophobic|misogynistic)"
        r" (?:\w+ )?(?:jokes?|rants?|speech(?:es)?|slogans?|poems?|songs?|tweets?|posts?|stor(?:y|ies)|insults?)\b",
    ),
}
_COMPILED = {
    reason: [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    for reason, patterns in PATTERNS.items()
}
# a word of which every pattern has one: long texts without any are passed over ten times as fast
_HINTS = {
    "self_harm": re.compile(r"my|suicid|die|live|exist|alive|self", re.IGNORECASE),
    "minors": re.compile(r"sex|erotic|porn|nude|naked|fetish|intercourse|seduc", re.IGNORECASE),
    "violence": re.compile(
        rf"\b(?:{_KILL} |{_WEAPON}|murder|massacre|assassination|shooting|terror|bomb|blow|burn|explod)",
        re.IGNORECASE,
    ),
    "hate": re.compile(
        rf"\b(?:{_GROUP}\b|racist|anti-?semitic|\w+phobic|sexist|misogynistic)", re.IGNORECASE
    ),
}


def is_sensitive(text: str) -> str | None:
    """Return "personal_data", "self_harm", "minors", "violence" or "hate" for a text with such a pattern, else None.

    "violence" is asking how to make a weapon or kill a person. See the limits above.

    Ours: what Parrot calls sensitive is not known.
    """
    if has_personal_data(text):
        return "personal_data"
    text = text.replace("\u2019", "'")
    for reason, patterns in _COMPILED.items():
        if _HINTS[reason].search(text) and any(pattern.search(text) for pattern in patterns):
            return reason
    return None


# ---- dialogues --------------------------------------------------------------------------------

Filter = Callable[[str, Sequence[str]], str | None]
FILTERS: dict[str, Filter] = {
    "short": lambda text, earlier: is_short(text),
    "repetitive": lambda text, earlier: is_repetitive(text, earlier),
    "sensitive": lambda text, earlier: is_sensitive(text),
}
REASONS = ("short", "looping", "repeated", "personal_data", *PATTERNS)


def first_filtered(dialogue: Dialogue, filters: Sequence[str] = tuple(FILTERS)) -> tuple[int, str] | None:
    """Return the round (from 0) of the first question that a filter names a reason for, and the reason; or None.

    Raises Stop for a filter that is none of `FILTERS`.

    Ours: filters are asked in the order given.
    """
    unknown = [name for name in filters if name not in FILTERS]
    if unknown:
        raise Stop(f"filters: '{unknown[0]}' is none of {', '.join(FILTERS)}")
    questions = dialogue.texts[::2]
    for i, question in enumerate(questions):
        for name in filters:
            if reason := FILTERS[name](question, questions[:i]):
                return i, reason
    return None


def trim(dialogue: Dialogue, filters: Sequence[str] = tuple(FILTERS)) -> tuple[Dialogue | None, str | None]:
    """Return what comes before the first filtered question, and why it was; (the dialogue itself, None) if none is.

    None stands for a dialogue whose first question is filtered. A shorter dialogue has the id of its text,
    the reason as its `stop`, and of `role_exchanges` those in rounds that are left.

    Ours: Parrot is said to remove questions; what became of the rounds after them is not known.
    """
    found = first_filtered(dialogue, filters)
    if found is None:
        return dialogue, None
    n_left, reason = found
    if not n_left:
        return None, reason
    fields = dialogue.model_dump(exclude={"id", "messages"}) | {
        "stop": reason,
        "role_exchanges": tuple(i for i in dialogue.role_exchanges if i <= n_left),
    }
    return Dialogue.from_rounds(dialogue.rounds[:n_left], **fields), reason


class Removed(NamedTuple):
    """What one reason removed: whole dialogues, ends of dialogues, and the rounds of both. Ours: counts that add up."""

    reason: str
    dialogues_dropped: int
    dialogues_shortened: int
    rounds_removed: int


class Filtered(NamedTuple):
    """What `filter_questions` returns; rounds given = rounds kept + those removed, by reason.

    Ours: nothing vanishes without a reason.
    """

    kept: list[Dialogue]
    dropped: list[Dropped]
    steps: list[Removed]

    def table(self) -> pd.DataFrame:
        """Return the steps as a table indexed by reason, every reason in it. Ours: printed in notebook 08."""
        import pandas as pd

        return pd.DataFrame(self.steps, columns=Removed._fields).set_index("reason")


def filter_questions(dialogues: Iterable[Dialogue], filters: Sequence[str] = tuple(FILTERS)) -> Filtered:
    """Return the dialogues, each up to its first filtered question; those with nothing left; counts by reason.

    Raises Stop for a filter that is none of `FILTERS`.

    Ours: Parrot's three filters with the names and counts they lack.
    """
    filters = tuple(filters)
    kept: list[Dialogue] = []
    dropped: list[Dropped] = []
    whole, shortened, rounds = Counter[str](), Counter[str](), Counter[str]()
    n_rounds = 0
    for dialogue in dialogues:
        n_rounds += len(dialogue.rounds)
        left, reason = trim(dialogue, filters)
        if left is None:
            dropped.append(Dropped(drop_reason=reason, dialogue=dialogue))
            whole[reason] += 1
        else:
            kept.append(left)
            shortened[reason] += reason is not None
        if reason is not None:
            rounds[reason] += len(dialogue.rounds) - (len(left.rounds) if left else 0)
    steps = [Removed(reason, whole[reason], shortened[reason], rounds[reason]) for reason in REASONS]
    assert n_rounds == sum(len(d.rounds) for d in kept) + sum(step.rounds_removed for step in steps)
    return Filtered(kept, dropped, steps)
