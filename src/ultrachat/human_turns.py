"""Real conversations of people with an assistant, cleaned as PlatoLM's authors clean ShareGPT, every step counted.

    cleaned = clean(read("sharegpt.json"), Cleaning(language="en"))
    cleaned.kept                   # dialogues a user model may learn from
    cleaned.table()                # sessions and rounds before, changed, dropped, after each step

    html          pages to text; a dialogue in which a message has no text left is dropped
    mentions      sessions that say "openai" or "chatgpt" (off: see `mentions_assistant`)
    language      people who write another language
    rounds        too few of them
    duplicate     the whole text of an earlier dialogue

`Cleaner` does the same for files larger than memory: it holds 16 bytes of each dialogue it kept.

"Length 1" of the authors' notebook is a *segment* of one message, left over when a session is split at 2,048
tokens. A `Dialogue` has whole rounds and `splitting` makes no row without a turn to learn, so there is nothing
of that kind here to drop; `fewest_rounds` asks for more than the one round that every dialogue has.

Absent on purpose: pages (`saved_pages`), splitting (`splitting`), near duplicates (`duplicates`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ultrachat import corpora
from ultrachat.errors import Stop
from ultrachat.records import Dialogue, Dropped, content_id, to_jsonl, to_messages
from ultrachat.runs import publishing
from ultrachat.saved_pages import strip_html, strip_remains

if TYPE_CHECKING:
    import pandas as pd

# ---- pages ------------------------------------------------------------------------------------


def without_html(dialogue: Dialogue) -> Dialogue | None:
    """Return the dialogue with its messages stripped of page and remains; None if one has no text left.

    One whose text changes gets the id of its new text; `parent`, `sector` and the rest stay.

    Ours: a message without text breaks the alternation; the authors leave it empty.
    """
    texts = [strip_remains(strip_html(text)) for text in dialogue.texts]
    if texts == dialogue.texts:
        return dialogue
    if not all(map(str.strip, texts)):
        return None
    fields = dialogue.model_dump(exclude={"messages"}) | {"id": content_id(*texts)}
    return Dialogue.from_rounds(list(zip(texts[::2], texts[1::2], strict=True)), **fields)


# ---- language ---------------------------------------------------------------------------------

_CODE = re.compile(r"(?P<fence>```+|~~~+).*?(?:(?P=fence)|\Z)|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL)
_NOT_PROSE = re.compile(r"https?://\S+|<[^<>\n]{1,200}>|(?<![!-~])[!-~]*[\d/\\_{}=][!-~]*")
_HEAD_CHARACTERS = 300  # of each message: a pasted article does not outvote its reader
_READ_CHARACTERS = 20_000  # of it, to find that head behind code
_FEWEST_LETTERS = 20
_SURE = 0.7  # of py3langid's probability; below it "Generate a random pun." is Romanian
_OUT_OF_QUESTION = 0.001  # of an English question, English has more than that
_VARIETIES = ("pcm", "wuu", "yue")  # written almost as English and Chinese are, and often mistaken for them


def language_of(dialogue: Dialogue) -> str | None:
    """Return the ISO 639 code of the language that the user writes, or None where that is not certain.

    The heads of the user's messages are judged together, without code and addresses; where they are
    too short or leave doubt ("ok", "continue"), the assistant's too. By py3langid, offline.

    Ours: a user model learns the user's messages, and what it reads may be in any language.
    """
    for probabilities in _judged(dialogue):
        code = max(probabilities, key=probabilities.get)
        if probabilities[code] >= _SURE and code != "zxx":  # zxx: no language, such as code
            return code
    return None


def writes_another(dialogue: Dialogue, language: str) -> bool:
    """Return whether the user surely does not write `language`: `language_of` is another, or it is out of question.

    Ours: in doubt a dialogue stays, for most doubtful ones are short and in the language asked for.
    """
    written = language_of(dialogue)
    if written is not None:
        return written != language
    return any(probabilities[language] < _OUT_OF_QUESTION for probabilities in _judged(dialogue))


def _judged(dialogue: Dialogue) -> Iterator[dict[str, float]]:
    """Yield the probabilities of languages by the user's messages, then by all, where there is enough to judge."""
    for texts in (dialogue.texts[::2], dialogue.texts):
        prose = "\n".join(_prose(text)[:_HEAD_CHARACTERS] for text in texts)
        if (
            sum(map(str.isalpha, prose)) >= _FEWEST_LETTERS or not prose.isascii()
        ):  # of Chinese, five say enough
            yield dict(_identifier().rank(prose))


def _prose(text: str) -> str:
    """A text without code and addresses, of a very long one the beginning."""
    return _NOT_PROSE.sub(" ", _CODE.sub(" ", text[:_READ_CHARACTERS]))


@cache
def _identifier() -> Any:
    """py3langid's model with probabilities, loaded from its package; takes most of a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in identifier.labels if code not in _VARIETIES])
    return identifier


_NON_ASCII = re.compile("[\u0080-\uffff]")
_TRANSLATION = re.compile(r"\b[Tt]ranslat\w+")


def is_ascii(dialogue: Dialogue) -> bool:
    """Return whether the authors' rule keeps the dialogue: no character of U+0080 to U+FFFF, or translation.

    Curly quotes, accents and dashes are such characters, emoji beyond them are not; a session whose user
    says "translate", "translation" … is kept whatever it holds.

    Ours: the rule as it stands in the authors' notebook, which calls it English.
    """
    if any(map(_TRANSLATION.search, dialogue.texts[::2])):
        return True
    return not any(map(_NON_ASCII.search, dialogue.texts))


# ---- the other steps --------------------------------------------------------------------------


def mentions_assistant(dialogue: Dialogue) -> bool:
    """Return whether any message says "openai" or "chatgpt", in capitals or not.

    Off by default. The rule comes from Vicuna's code, where it keeps an assistant from calling itself ChatGPT.
    A user model learns none of the assistant's words, and loses real questions ("ChatGPT, write a …").

    Ours: the authors' rule, where it has a name and a count of its own.
    """
    low = "\n".join(dialogue.texts).lower()
    return "openai" in low or "chatgpt" in low


def repeats_a_dialogue() -> Callable[[Dialogue], bool]:
    """Return the rule that a dialogue has exactly the messages of an earlier one; it holds 16 bytes of each.

    Ours: the authors compare whole texts with a list of all before them, which takes hours.
    """
    seen: set[bytes] = set()

    def rule(dialogue: Dialogue) -> bool:
        whole = "".join(f"{len(text)}:{text}" for text in dialogue.texts)
        digest = blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        repeated = digest in seen
        seen.add(digest)
        return repeated

    return rule


@dataclass(frozen=True)
class Cleaning:
    """What is cleaned: `language` is an ISO 639 code ("en"), "ascii" (`is_ascii`) or None for any.

    Raises Stop for a language py3langid does not know and for `fewest_rounds` below 1.

    Ours: the authors' steps as options; theirs are html, "ascii", mentions, 1.
    """

    html: bool = True
    language: str | None = "en"
    mentions: bool = False
    fewest_rounds: int = 1

    def __post_init__(self) -> None:
        if self.fewest_rounds < 1:
            raise Stop(f"fewest_rounds={self.fewest_rounds}: expected 1 or more")
        if self.language not in (None, "ascii", "en") and self.language not in _identifier().labels:
            raise Stop(
                f"language '{self.language}': expected ascii, none or an ISO 639 code such as en, de or zh"
            )

    def steps(self) -> dict[str, Callable[[Dialogue], Dialogue | None]]:
        """Return the steps asked for, in order, by their `drop_reason`: a dialogue to what is left of it, or None."""
        steps: dict[str, Callable[[Dialogue], Dialogue | None]] = {}
        if self.html:
            steps["html"] = without_html
        if self.mentions:
            steps["mentions"] = _unless(mentions_assistant)
        if self.language == "ascii":
            steps["language"] = _unless(lambda dialogue: not is_ascii(dialogue))
        elif self.language is not None:
            steps["language"] = _unless(lambda dialogue: writes_another(dialogue, self.language))
        if self.fewest_rounds > 1:
            steps["rounds"] = _unless(lambda dialogue: len(dialogue.rounds) < self.fewest_rounds)
        return steps | {"duplicate": _unless(repeats_a_dialogue())}


def _unless(rule: Callable[[Dialogue], bool]) -> Callable[[Dialogue], Dialogue | None]:
    return lambda dialogue: None if rule(dialogue) else dialogue


class Step(NamedTuple):
    """One line of the cascade, in sessions and in rounds: before = dropped + after.

    Ours: counts that add up, where the authors give sessions at some steps and segments at others.
    """

    rule: str
    before: int
    changed: int
    dropped: int
    after: int
    rounds_before: int
    rounds_dropped: int
    rounds_after: int


@dataclass
class _Tally:
    """What one step has met so far; counted apart, so that the sums can be wrong and are checked."""

    before: list[int] = field(default_factory=lambda: [0, 0])
    dropped: list[int] = field(default_factory=lambda: [0, 0])
    after: list[int] = field(default_factory=lambda: [0, 0])
    changed: int = 0

    @staticmethod
    def add(counts: list[int], dialogue: Dialogue) -> None:
        counts[0] += 1
        counts[1] += len(dialogue.messages) // 2


class Cleaner(Iterator[Dialogue]):
    """The dialogues that cleaning keeps, one at a time, and `steps` so far, complete once it is exhausted.

    `on_drop`, where given, gets what a step drops, as the step found it, with the step's name.

    Ours: files may be larger than memory.
    """

    def __init__(
        self,
        dialogues: Iterable[Dialogue],
        cleaning: Cleaning = Cleaning(),
        on_drop: Callable[[Dropped], Any] | None = None,
    ) -> None:
        self._dialogues, self._on_drop = iter(dialogues), on_drop
        self._steps = cleaning.steps()
        self._tallies = {name: _Tally() for name in self._steps}

    def __next__(self) -> Dialogue:
        while (kept := self._cleaned(next(self._dialogues))) is None:
            pass
        return kept

    def _cleaned(self, dialogue: Dialogue) -> Dialogue | None:
        for name, step in self._steps.items():
            tally = self._tallies[name]
            tally.add(tally.before, dialogue)
            left = step(dialogue)
            if left is None:
                tally.add(tally.dropped, dialogue)
                if self._on_drop is not None:
                    self._on_drop(Dropped(drop_reason=name, dialogue=dialogue))
                return None
            tally.add(tally.after, left)
            tally.changed += left is not dialogue
            dialogue = left
        return dialogue

    @property
    def steps(self) -> list[Step]:
        """The counts of each step so far, checked: before = dropped + after, and after = the next one's before."""
        steps = [
            Step(
                name, t.before[0], t.changed, t.dropped[0], t.after[0], t.before[1], t.dropped[1], t.after[1]
            )
            for name, t in self._tallies.items()
        ]
        assert all(
            s.before == s.dropped + s.after and s.rounds_before == s.rounds_dropped + s.rounds_after
            for s in steps
        )
        assert all(a.after == b.before for a, b in zip(steps, steps[1:], strict=False))
        return steps


class Cleaned(NamedTuple):
    """What `clean` returns; kept + dropped = dialogues given. Ours: nothing vanishes without a reason."""

    kept: list[Dialogue]
    dropped: list[Dropped]
    steps: list[Step]

    def table(self) -> pd.DataFrame:
        """Return the steps as a table, one row each; see `steps_table`. Ours: printed in notebook 08."""
        return steps_table(self.steps)


def clean(dialogues: Iterable[Dialogue], cleaning: Cleaning = Cleaning()) -> Cleaned:
    """Return the dialogues cleaned, in order, those dropped with the step that did, and the counts of each step.

    Ours: the authors' cascade (HTML, language, length, duplicates) with their optional drop of mentions.
    """
    dropped: list[Dropped] = []
    cleaner = Cleaner(dialogues, cleaning, dropped.append)
    return Cleaned(list(cleaner), dropped, cleaner.steps)


def steps_table(steps: Iterable[Step]) -> pd.DataFrame:
    """Return steps as a table indexed by rule, with the columns of `Step`: sessions, then rounds.

    Ours: the counts are for reading.
    """
    import pandas as pd

    return pd.DataFrame(steps, columns=Step._fields).set_index("rule")


# ---- the command ------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m ultrachat clean` to a parser.

    Ours: the same cleaning for files of any format and size.
    """
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="JSONL, JSON array, Parquet, .gz or .zst, in any known format",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.jsonl",
        help="where the dialogues kept go, as `messages`",
    )
    add(
        "--dropped",
        type=Path,
        metavar="FILE.jsonl",
        help="where the others go, each with the step that dropped it",
    )
    add("--language", default="en", metavar="en|ascii|none|xx", help="of the user's messages (default: en)")
    add("--keep-html", action="store_true", help="leave messages as they are")
    add("--mentions", action="store_true", help='drop sessions that say "openai" or "chatgpt"')
    add("--fewest-rounds", type=int, default=1, help="drop dialogues with fewer (default: 1)")


def run(chosen: argparse.Namespace) -> None:
    """Clean what the parsed arguments of `add_arguments` name, write what is kept, print the table of steps.

    Files appear whole at the end or not at all. Raises Stop for wrong options or files, and where nothing is kept.

    Ours: the same cleaning for files of any format and size.
    """
    language = None if chosen.language == "none" else chosen.language
    cleaning = Cleaning(not chosen.keep_html, language, chosen.mentions, chosen.fewest_rounds)
    outputs = [chosen.out] if chosen.dropped is None else [chosen.out, chosen.dropped]
    paths = [path.resolve() for path in (*chosen.files, *outputs)]
    if len(set(paths)) < len(paths):
        raise Stop("files, --out, --dropped: one is named twice, expected different ones")
    readings = [corpora.read(file) for file in chosen.files]
    with ExitStack() as stack:
        files = [stack.enter_context(publishing(path)) for path in outputs]
        on_drop = (lambda dropped: files[1].write(to_jsonl([dropped]).encode())) if files[1:] else None
        cleaner = Cleaner(chain.from_iterable(readings), cleaning, on_drop)
        for dialogue in cleaner:
            files[0].write(json.dumps(to_messages(dialogue), ensure_ascii=False).encode() + b"\n")
        if not cleaner.steps[-1].after:
            raise Stop(f"{', '.join(map(str, chosen.files))}: no dialogue is left, so nothing is written; "
                       + ", ".join(f"{s.rule} dropped {s.dropped:,} of {s.before:,}" for s in cleaner.steps))  # fmt: skip
    for file, reading in zip(chosen.files, readings, strict=True):
        print(f"{file}: {reading.summary()}")
    print(steps_table(cleaner.steps).to_string(formatters={name: "{:,}".format for name in Step._fields[1:]}))
