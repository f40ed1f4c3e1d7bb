"""Does a question need the dialogue before it? Signs of pronouns, ellipsis and back references, by rule.

    is_context_dependent("And in winter?")                            # 'fragment'
    is_context_dependent("How does it work?")                         # 'pronoun'
    is_context_dependent("If a plant wilts, how do I save it?")       # None: the plant is in the question
    is_context_dependent("Is it possible to fly to Malta?")           # None: that "it" points to nothing

Human follow-ups lean on what was said, prompted ones tend to say all of it again (Parrot calls the former
anaphora and ellipsis). A message counts when any part of it needs the dialogue, an aside included ("I love
these haikus!"), as in the labels the rules were written on and measured against (tests/labelled_questions.py).
On turns that no rule was written on, what they find is nearly always right (precision above 0.9), but they miss a
third or more of what a reader finds, most of all answers and new facts that lean on the dialogue without a
pronoun (tests/test_question_measures.py has the levels). A share is therefore one of *signs*, too low
everywhere, and perhaps lower for a terse user than for one who writes "in the text"; read differences with care.

Absent on purpose: other languages than English (a text without signs of English has none), a parser, resolving
what is pointed to, a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable

BRINGS_ITS_TEXT_WORDS = 90  # so long a message holds what "the poem" in it points to
SAYS_MUCH_WORDS = 12  # after so many nouns and verbs "the second one" is likely to be in the message itself
_FLAGS = re.IGNORECASE

# ---- what may stand for a pronoun in the message itself ---------------------------------------

_PEOPLE = re.compile(
    r"\b(m[uo]m|mother|dad|father|parents?|son|daughter|brother|sister|aunt|uncle|nan|gran(?:ny|dad|ma|pa)?|"
    r"grand\w+|nephew|niece|cousin|wife|husband|partner|friends?|boy|girl|lad|kids?|child(?:ren)?|baby|m[ae]n|"
    r"wom[ae]n|person|people|someone|somebody|anyone|everyone|everybody|nobody|boss|guy|lady|client|guest|king|"
    r"queen|president|poet|mates?|flatmates?|students?|pupils?|patients?|colleagues?|vets?|doctors?|nurses?|"
    r"\w{2,}(?:er|ers|or|ors|ist|ists|ian|ians))\b(?<!\bother)(?<!\bnever)(?<!\bafter)(?<!\bbetter)(?<!\bever)(?<!\bover)",
    _FLAGS,
)
# words that are no noun to point back to: what is left before a pronoun may be its antecedent
_NOT_NOUNS_LISTED = """
    a about actually add after again all also always am an and another any anything are as ask at away back be
    because been before being believe best better both but by call can can't change check come could describe did
    didn't different do does doesn't doing don't done else ever every explain fair few find first fix for from
    get give go going good got great had haha happen happened happens has have haven't he help her here hers hey
    him his hm hmm how however i i'd i'll i'm i've if in instead interesting into is isn't it it's its just keep
    kind know last let like list little lol longer look love made make many may maybe me mean means might mine more
    most much must my need never nice no not now of off oh ok okay on once one only or other our out over please
    pls put read really recommend remind right said same say says see send she should show so some something
    sounds still such suggest sure take tell than thank thanks that that's the their them then there these they
    thing things think this those though thought to told too translate true try turn two understand up use used
    using very want wants was wasn't way we well were what what's when where which while who why will with
    without won't work works would wow write wrote run sell yes yet you you've your shorten rewrite summarize summarise
    elaborate provide possibly perhaps kindly today tomorrow yesterday long far
    soon safe often big old hard easy expensive possible give example"""
_NOT_NOUNS = frozenset(_NOT_NOUNS_LISTED.split())
_NAME = re.compile(r"(?<![.!?:\n]\s)(?<!^)\b(?!I\b|I')[A-Z][\w'-]+")
_FIRST_NAME = re.compile(
    r"(?-i:[A-Z])[a-z]+(?= (?:is|was|has|had|went|says|said|wants|bought|lives|works)\b)", _FLAGS
)
_WORD = re.compile(r"[a-z][a-z'-]*", _FLAGS)

# "it" that points to nothing: weather, time, and a stand-in for what follows
_EXPLETIVE_IT = re.compile(
    r"\b(?:(?:is|was|isn't|would|does|will|could|may|might|can)\s+)?it(?:'s|s|'d|'ll)?\s+(?:\w+(?:'t)?\s+){0,5}?"
    r"(?:to|that|if|whether|for \w+ (?:\w+ )?to|worth|like)\b|"
    r"\bit(?:'s| is| was| gets| got)?\s+(?:already |about |almost |now )?(?:rain\w*|snow\w*|cold|hot|dark|late|early|"
    r"winter|summer|spring|autumn|\w+day|\d+|time|night|my|me|us|our)\b|\b(?:make|find|take)s? it \w+ to\b|\bworth it\b|"
    r"\bits (?:all|just)\b",
    _FLAGS,
)
_HE = re.compile(r"\b(?:he|she|him|her|his|hers)\b(?:'s)?", _FLAGS)
_IT = re.compile(r"\b(?:it|its|itself|they|them|their|theirs)\b(?:'s|'re|'ll|'d)?", _FLAGS)


def _pronoun(text: str) -> bool:
    """Whether a third-person pronoun has nothing before it in the message that it could stand for."""
    found = _HE.search(text)
    if found:
        before, named = text[: found.start()], _FIRST_NAME.match(text)
        if not (
            _PEOPLE.search(before) or _NAME.search(before) or (named and named[0].lower() not in _NOT_NOUNS)
        ):
            return True
    empty = [match.span() for match in _EXPLETIVE_IT.finditer(text)]
    for found in _IT.finditer(text):
        if any(start <= found.start() < end for start, end in empty):
            continue
        before = text[: found.start()]
        return not (_NAME.search(before) or _content_words(before))
    return False


def _content_words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if word.lower() not in _NOT_NOUNS]


# ---- demonstratives ---------------------------------------------------------------------------

_THESE = re.compile(r"\b(?:these|those)\b(?! (?:days|who|that|which|of|with|in|from|are the)\b)", _FLAGS)
_CLAUSE = r"(?:^|[.,;:!?\n]\s*|\b(?:and|but|so|if|is|why|how|because|or|does|did|was|do|would|will|can|could|think|know)\s+)"
_BARE_THAT = re.compile(
    rf"{_CLAUSE}that(?:'s|'ll|'d)?(?:$|[?.,!]| (?:is|isn't|was|would|will|can|could|sounds?|looks?|makes?|helps?|works?|does|"
    r"means?|happens?|really|all|true|right|change|mean|count|make|let|work|help|it|what|how|why|where|great|good)\b)|"
    r"\b(?:about|like|of|for|with|do|does|did|than|by|to|after|before|at|on|from|love|thats?|all|is|was|know|see|try|mean) that"
    r"(?=\s*(?:$|[?.,!;)]|and\b|but\b|so\b|please\b))|\w that(?=\W*$|[?])|\bthats\b",
    _FLAGS,
)
_BARE_THIS = re.compile(
    r"\bthis(?=\s*(?:$|[?.,!;)]| (?:is|was|would|will|can|could|sounds?|looks?|makes?|helps?|works?|does|means?|one|and|"
    r"properly|as|with|at|in|for|to|on|into|from|way|like)\b))",
    _FLAGS,
)
_THAT_NOUN = re.compile(
    rf"{_CLAUSE}?\b(?<!so )(?:at|in|of|for|on|with|about|to|do|from|during|is|remember|love|like|use|change|that's) "
    r"(?:this|that) (?!(?:is|was|would|will|can|could|the|a|an|i|you|he|she|it|we|they|my|your|there|case|way|year|week|"
    r"weekend|month|morning|evening|afternoon|summer|winter|spring|autumn|time|season|point|if|all|some|people|many)\b|\w+s\b)"
    r"[a-z]\w+",
    _FLAGS,
)


def _demonstrative(text: str) -> bool:
    """Whether "this", "that", "these" or "those" points out of the message."""
    for found in _THESE.finditer(text):
        noun = _WORD.match(text[found.end() :].lstrip())
        if not (noun and len(noun[0]) > 3 and re.search(rf"\b{noun[0][:-1]}", text[: found.start()], _FLAGS)):
            return True
    for pattern in (_BARE_THAT, _BARE_THIS, _THAT_NOUN):
        for found in pattern.finditer(text):
            # a clause said before, in the message, is what a bare "that" takes up
            if len(_content_words(text[: found.start()])) < 4:
                return True
    return False


# ---- references, ellipsis, comparison ---------------------------------------------------------

_TEXT_NOUNS = (
    r"(?:text|passage|article|material|paragraph|poem|story|recipe|letter|e-?mail|essay|song|lyrics|code|program|function|"
    r"script|list|table|author|writer|narrator|speaker|book|film|movie|study|ending|chorus|stanza|verse|line|draft|"
    r"answer|example|version|response|reply|summary|sentence|section|chapter|review|speech|tweet|playlist|title|plot|"
    r"characters?|protagonist|report|document|post|outline|scene|dialogue|joke|haiku|sonnet|quiz|dish|sauce|"
    r"ingredients|instructions|steps|dressing|cookies?|event|festival|wedding)"
)
_SAID = r"(?:said|say|mention\w*|wrote|gave|listed|suggest\w*|recommend\w*|provided|describ\w+|told|call\w*|created?|made)"
_BACK = re.compile(
    rf"\b(?:as|like|what|that|which|the \w+|than) you(?:'ve| have| had)? (?:just |already |also )?{_SAID}\b|"
    r"\byou(?:'ve| have)? (?:just |already )?(?:said|mentioned|wrote|forgot|listed|provided|described|gave)\b|"
    r"\b(?<!explain )(?<!describe )(?<!justify )(?<!support )(?<!write )your (?:\w+ )?(?:text|poem|story|recipe|letter|"
    r"e-?mail|essay|song|code|list|table|answer|example|version|response|reply|summary|draft|advice|suggestion|"
    r"recommendation|explanation|points?|idea|plan|description|haiku|solution)s?\b(?! should\b)|"
    r"\b(?:mentioned|above|earlier|aforementioned|given text)\b|\bi (?:requested|asked)\b|\bdo you mean\b|"
    r"\bthat (?:really )?help(?:s|ed)\b|\bline \d|\b(?:last|next|one more) (?:bit|piece|thing|question)\b",
    _FLAGS,
)
_ORDINAL = re.compile(
    r"\bthe (?:first|second|third|fourth|fifth|last|other|former|latter|next|previous) (?:one|ones|two|three|option|part|"
    rf"point|step|idea|question|{_TEXT_NOUNS})\b|\bthe (?:former|latter)(?=\W*$|[.,?!])",
    _FLAGS,
)
_DEFINITE = re.compile(
    rf"\bthe (?:given |whole |overall |\w+ )?{_TEXT_NOUNS}(?:'s)?\b"
    r"(?! \"| [a-z]\(| [a-z]\^| (?:of|by|called|about|that|where|on|in) [\w\"])",
    _FLAGS,
)
_INTRODUCED = re.compile(  # a memoir has "the author", a report "the chart"
    r"\b(?:an?|my|our|two|each|every) (?:[\w-]+ ){0,3}(?:story|poem|article|letter|e-?mail|essay|song|recipe|book|film|movie|"
    r"report|program|function|memoir|novel|blog|website|menu|speech|play|game|table|quiz|event|wedding)\b",
    _FLAGS,
)
_CONTINUE = re.compile(
    r"^\W*(?:please |ok(?:ay)? |yes,? )*(?:continue|go on|keep going|carry on|proceed|tell me more|next|more|another|"
    r"another one|again)(?: please| with \w+)?\W*$",
    _FLAGS,
)
_SO = r"^\W*(?:(?:and|but|so|ok(?:ay)?|hm+|then|now|also)\b[\s,.]*)*"
_BEGINS_ELLIPTIC = re.compile(
    rf"{_SO}(?:what|how) about\b|{_SO}(?:why|why not|how so|how come|how|when|where|who|which|since when|really|what else|"
    r"such as|like what|for example)\W*$|^\W*(?:both|neither|either|yes|no|nope|yep|yeah|definitely|exactly|agreed?|"
    r"option [a-d1-4]|[a-d])\s*[,.!]|^\W*(?:and|or)\b[^.?!]*\?$",
    _FLAGS,
)
_ELLIPSIS = re.compile(
    r"\b(?:which|what) ones?\b|\bwhich of (?:them|the (?:two|three))\b|"
    r"\b(?:(?:the|an?|any) (?:[\w-]+ )?|(?:this|that|each|every) )ones?\b(?! (?:of|who|that|is|day|night|man))|"
    r"\b(?:what|anything|who|where|something|someone) else\b|\binstead(?=\W*$|[.?!,])",
    _FLAGS,
)
_MORE = r"(?:short|long|simpl|funni|cheap|easi|small|bigg?|fast|warm|light|dark|quick|soft|strong|clear|tough|hard|old|young|slow|nic)er"
_COMPARES = re.compile(
    rf"\b(?:an?|the|any|some) (?:bit |little |much )?(?:more \w+|less \w+|better|short|simple|{_MORE}) (?:version|ones?|option|way)\b|"
    rf"\b(?:make|made|keep|half)\b[^.?!]{{0,30}}\b(?:{_MORE}|formal|casual)\b(?! than)|"
    rf"(?:^|[.,!?]\s*)(?:please |now |but |and |a bit |much |too )*(?:{_MORE}|more formal|less formal)\b(?! than)|"
    r"\b(?:shorter|simpler|longer)\W*$|\b(?:any|some|what|list of|suggest|recommend|are there|know) other\b(?! than)|"
    rf"\b(?:an?|any) other\b|\banother (?:example|one|way|idea|option|{_TEXT_NOUNS})\b|\ban example\W*$|"
    r"\b(?:more|further|additional) (?:examples|details?|ideas|tips|options|info\w*|recipes|suggestions)\W*(?:$|[?.!]|that\b|"
    r"please\b|for me\b)|\balternatives?\b|(?<!at )\bthe same\b(?! (?:time|as|\w+ as)\b)|\b(?:two|three|few|couple) more\b",
    _FLAGS,
)
_EDIT = r"(?:add|include|incorporate|shorten|expand|elaborate|rephrase|trim|swap|remove)"
_EDITS = re.compile(
    rf"\b(?:can|could|would|will|please|perhaps|possibly|if)\b(?: you)?(?: (?:please|also|perhaps|possibly|maybe|just|you))* "
    rf"{_EDIT}\b(?! up\b| \d)|(?:^|[.!?]\s+)(?:please |now )?{_EDIT}\b(?! up\b| \d)|\b(?:fix|trim|swap|use) (?:it|that|this)\b",
    _FLAGS,
)
_VERB = re.compile(
    r"\b(?:am|is|are|was|were|be|been|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must|let|"
    r"write|give|make|tell|explain|describe|list|name|show|translate|find|help|draft|compare|summari[sz]e|suggest|create|"
    r"compose|design|plan|put|prepare|produce|generate|outline|define|solve|calculate|rewrite|read|need|want|like|love|know|"
    r"think|get|go|say|says|said|\w+n't|\w+'(?:s|re|m|ve|ll|d)|im|whats|thank\w*|\w{3,}ed)\b",
    _FLAGS,
)


def _near(pattern: re.Pattern[str], text: str) -> bool:
    """Whether the pattern is found before the message has said much that it could point to."""
    return any(len(_content_words(text[: m.start()])) < SAYS_MUCH_WORDS for m in pattern.finditer(text))


def _definite(text: str) -> bool:
    """Whether "the recipe", "the text", "the ending" comes without having been introduced in the message."""
    for found in _DEFINITE.finditer(text):
        before, noun = text[: found.start()], found[0].split()[-1].removesuffix("'s")
        if not (re.search(rf"\b{re.escape(noun[:4])}", before, _FLAGS) or _INTRODUCED.search(before)):
            return True
    return False


def _fragment(text: str) -> bool:
    """Whether the message is a few words without a verb, or begins with "and" or "or" and is short."""
    words = text.split()
    if re.match(r"\W*(?:and|or)\b", text, _FLAGS) and len(words) <= 8:
        return True
    return 0 < len(words) <= 5 and not _VERB.search(text) and not re.search(r"\d\s*[-+*/=^]\s*\d", text)


_SIGNS: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("continuation", _CONTINUE.search),
    ("back reference", lambda text: _BACK.search(text) or _near(_ORDINAL, text)),
    ("ellipsis", lambda text: _BEGINS_ELLIPTIC.search(text) or _near(_ELLIPSIS, text)),
    ("comparison", lambda text: _near(_COMPARES, text)),
    ("edit", lambda text: _near(_EDITS, text)),
    ("definite", _definite),
    ("demonstrative", _demonstrative),
    ("pronoun", _pronoun),
    ("fragment", _fragment),
)
SIGNS: tuple[str, ...] = tuple(name for name, _ in _SIGNS)


def is_context_dependent(text: str) -> str | None:
    """Return the sign by which a message cannot be understood alone, one of `SIGNS`, or None where there is none.

    The first found in their order. English only. A text of `BRINGS_ITS_TEXT_WORDS` words or more is taken
    to bring what it points to.

    Ours: PlatoLM and Parrot speak of anaphora and ellipsis; how they find them is not in what we read.
    """
    text = text.strip().replace("\u2019", "'")
    if len(text.split()) >= BRINGS_ITS_TEXT_WORDS or not re.search(r"[a-z]", text, _FLAGS):
        return None
    return next((sign for sign, found in _SIGNS if found(text)), None)
