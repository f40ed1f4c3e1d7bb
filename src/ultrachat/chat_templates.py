"""A tokenizer's own chat template, as sections: its token ids exactly, with a loss on one side's texts.

A template is a program that writes a dialogue as one string. Here it is run on stand-ins (one private
character for each message), so that what the template writes and what the messages say can be told apart:

    <|im_start|>user\\n①<|im_end|>\\n<|im_start|>assistant\\n②<|im_end|>\\n

What the template writes is cut at its special tokens, and then the messages are put in their places. A stretch
between two special tokens stays one text, since a token may reach across the border between template and
message (Llama 2's "[/INST] Hello" has the token "▁Hello"). So for every message without a special token's
string the ids are those of `tokenizer.apply_chat_template`; and a `<|im_end|>` that somebody typed stays text,
where `apply_chat_template` makes it end the message.

Learnt is a message, and all that follows it up to its first special token, that one included.

A template may do anything, so nothing is assumed of it: each dialogue's sections spell what the template
writes for that dialogue, and each new shape of dialogue is tried against `apply_chat_template`, or it is a Stop.

Absent on purpose: tools, images, and templates that rewrite what was said (dropping an earlier turn's
reasoning): what the model reads in training would not be the dialogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ultrachat.errors import Stop
from ultrachat.sections import IGNORE_INDEX, Section
from ultrachat.text_only import HIDDEN, backend_of, pre_tokenizers_of, text_only

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]
Roles = tuple[str, ...]

_FIRST_STAND_IN, _LAST_STAND_IN = "\U000f0000", "\U000ffffd"  # one for each message, by its number
_STAND_IN = f"[{_FIRST_STAND_IN}-{_LAST_STAND_IN}]"
# Unicode's white space, which `lstrip` and `rstrip` tokens take in; str.strip would take U+001C to U+001F too
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_TRIALS = (lambda i: f"No. {i}, then", lambda i: f" {i}: a b,\n c\n")


# ---- dialogues to sections --------------------------------------------------------------------


def sections(tokenizer: PreTrainedTokenizerBase, messages: Messages, learn: str) -> list[Section]:
    """Return (role, text) messages as the template's sections; `learn` is the role that is learnt.

    The roles are "user" and "assistant" in turn, after a "system" if there is one. Raises Stop when there is
    no template, when it refuses the dialogue or does not write each message once and as it stands, or when no
    special token ends a learnt message.

    Ours: the paper's format is its own; other models are trained in theirs.
    """
    if learn not in ("user", "assistant"):
        raise Stop(f"learn: expected 'user' or 'assistant', got {learn!r}")
    plan, texts = _planned(tokenizer, messages, prompt=False)
    _check_ends(plan, [role for role, _ in messages], learn)
    learnt = {i for i, (role, _) in enumerate(messages) if role == learn}
    return _filled(tokenizer, plan, texts, learnt)


def prompt_sections(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[Section]:
    """Return the sections after which the other side speaks next: the assistant after a user's message.

    For the assistant that is `apply_chat_template` with its generation prompt. Templates have none for the
    user (after the assistant's message, a system prompt or nothing at all): there it is what training
    reads before a user's message that begins with a letter. Raises Stop as `sections` does.

    Ours: a trained user simulator is asked as it was trained.
    """
    if messages and messages[-1][0] == "user":
        plan, texts = _planned(tokenizer, messages, prompt=True)
        return _filled(tokenizer, plan, texts, learnt=set())
    found = sections(tokenizer, [*messages, ("user", "a"), ("assistant", "a")], "user")
    last = max(i for i, section in enumerate(found) if section.learnt_from is not None)
    text, begin = found[last].text, found[last].learnt_from
    offsets = _encoded(tokenizer, [text])["offset_mapping"][0]
    # a space before the message belongs to its first token, which is not for the prompt to begin
    earlier = [section.only_read() for section in found[:last]]
    return [*earlier, Section(text[: min(begin, offsets[_border(offsets, begin)][0])])]


# ---- sections to ids --------------------------------------------------------------------------


def encode_sections(
    tokenizer: PreTrainedTokenizerBase, sections: Iterable[Section]
) -> tuple[list[int], list[int]]:
    """Return the ids and the labels of sections, one by one and token by token.

    A token is learnt if its last character is.

    Ours: what faster code is held against.
    """
    ids: list[int] = []
    labels: list[int] = []
    for section in sections:
        encoded = _encoded(tokenizer, [section.text])
        found, offsets = encoded["input_ids"][0], encoded["offset_mapping"][0]
        first = len(found) if section.learnt_from is None else _border(offsets, section.learnt_from)
        n_learnt = section.n_marks_learnt
        ids += [*found, *section.marks]
        labels += [IGNORE_INDEX] * first + found[first:]
        labels += [*section.marks[:n_learnt], *[IGNORE_INDEX] * (len(section.marks) - n_learnt)]
    return ids, labels


def borders(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], characters: Sequence[int]) -> list[int]:
    """Return for each section's text the first token whose last character is the given one or a later one.

    Without such a token, as when nothing is learnt of an empty message, that is the number of tokens.

    Ours: a token that reaches into a message from before it is written whole when the model answers.
    """
    offsets = _encoded(tokenizer, list(texts))["offset_mapping"]
    return [_border(found, at) for found, at in zip(offsets, characters, strict=True)]


def _border(offsets: Sequence[tuple[int, int]], character: int) -> int:
    if character == 0:
        return 0
    return next((i for i, (_, end) in enumerate(offsets) if end > character), len(offsets))


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Any:
    return text_tokenizer(tokenizer)(
        texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )


# ---- a plan: the template's own text, and where the messages stand in it ----------------------


class _Stretch(NamedTuple):
    """Template text (str) and messages (their numbers) up to special tokens: `marks`, which read `written`."""

    parts: tuple[str | int, ...]
    marks: tuple[int, ...]
    written: str
    lstrip: bool  # the marks take in the white space before them
    rstrip: bool  # and that after them


class _Plan(NamedTuple):
    """Stretches for one shape of dialogue; `trims`: what is cut off each message's left and right.

    That is str.strip's argument: None for all white space, "" for nothing.
    """

    stretches: tuple[_Stretch, ...]
    trims: tuple[tuple[str | None, str | None], ...]

    def texts(self, contents: Sequence[str]) -> list[list[str]]:
        """Return the messages' texts in the stretches' parts, as the template trims them."""
        trimmed = [
            c.lstrip(left).rstrip(right) for c, (left, right) in zip(contents, self.trims, strict=True)
        ]
        return [
            [p if isinstance(p, str) else trimmed[p] for p in stretch.parts] for stretch in self.stretches
        ]

    def texts_with_blanks(self, contents: Sequence[str]) -> list[list[str]]:
        """Return the same for a template that trims its own text and a message as one: a blank one lets it."""
        found = self.texts(contents)
        for stretch, parts in zip(self.stretches, found, strict=True):
            for k, part in enumerate(stretch.parts):
                if k and isinstance(part, int) and not parts[k] and self.trims[part][0] == "":
                    parts[k - 1] = parts[k - 1].rstrip(self.trims[part][1])
        return found

    def spelled(self, texts: list[list[str]]) -> str:
        """Return the whole string."""
        return "".join("".join(parts) + s.written for s, parts in zip(self.stretches, texts, strict=True))


def _planned(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt: bool
) -> tuple[_Plan, list[list[str]]]:
    """Return the plan for messages and their texts in it, equal to what the template writes for them."""
    template, roles = _template(tokenizer), _roles(messages)
    contents = [text for _, text in messages]
    if any(HIDDEN in text for text in contents):
        raise Stop("messages: one holds U+FFFFE, which is no character, expected text")
    written = _render(tokenizer, roles, contents, prompt)
    for attempt in ("remembered", "new"):  # a template may write today's date
        plan = _plan(tokenizer, template, len(tokenizer), roles, prompt)
        for texts in (plan.texts(contents), plan.texts_with_blanks(contents)):
            if plan.spelled(texts) == written:
                return plan, texts
        if attempt == "remembered":
            _plan.cache_clear()
    raise Stop(f"chat template: {_rewritten(plan, contents, roles, written)}, expected it as it stands")


def _rewritten(plan: _Plan, contents: Sequence[str], roles: Roles, written: str) -> str:
    """Say which message is not written as it stands: the last one before what is written differs."""
    at, last = 0, 0
    for stretch, texts in zip(plan.stretches, plan.texts(contents), strict=True):
        for part, text in zip((*stretch.parts, ""), (*texts, stretch.written), strict=True):
            last = part if isinstance(part, int) else last
            if not written.startswith(text, at):
                return f"rewrites or leaves out message {last + 1} ({roles[last]}) or what is around it"
            at += len(text)
    return f"rewrites message {last + 1} ({roles[last]})"


@lru_cache(maxsize=512)
def _plan(
    tokenizer: PreTrainedTokenizerBase, template: str, n_tokens: int, roles: Roles, prompt: bool
) -> _Plan:
    """Return the plan for dialogues of these roles, tried out; `template` and `n_tokens` tell when it is stale."""
    stand_ins = [chr(ord(_FIRST_STAND_IN) + i) for i in range(len(roles))]
    written = _render(tokenizer, roles, stand_ins, prompt)
    for stand_in, (i, role) in zip(stand_ins, enumerate(roles), strict=True):
        if (n := written.count(stand_in)) != 1:
            raise Stop(
                f"chat template: writes message {i + 1} ({role}) {n} times, expected each message once"
            )
    added = _added_tokens(tokenizer)
    stretches = tuple(_stretches(written, added, _controls(tokenizer, template, n_tokens)))
    plan = _Plan(stretches, _trims(tokenizer, roles, prompt, stand_ins, written))
    for trial in _TRIALS:
        contents = [trial(i) for i in range(len(roles))]
        dialogue = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        expected = tokenizer.apply_chat_template(dialogue, add_generation_prompt=prompt, return_dict=False)
        texts = plan.texts(contents)
        if plan.spelled(texts) != _render(tokenizer, roles, contents, prompt):
            raise Stop(
                "chat template: what it writes depends on what messages say, expected them as they stand"
            )
        if encode_sections(tokenizer, _filled(tokenizer, plan, texts, set()))[0] != expected:
            raise Stop(
                "tokenizer: does not find special tokens where its chat template writes them (tokens that are "
                "normalized or single_word?), expected each to stand for itself"
            )
    return plan


def _stretches(written: str, added: dict[str, AddedToken], controls: dict[str, int]) -> Iterable[_Stretch]:
    """Cut what a template wrote with stand-ins at the special tokens in it."""
    parts: list[str | int] = []
    marks: list[str] = []
    # what the pattern does not match is split off too: the odd items are tokens and stand-ins
    for k, piece in enumerate(re.split(f"({_STAND_IN}|{_longest_first(added)})", written)):
        if k % 2 and piece in controls:
            marks.append(piece)
        elif piece:
            if marks:
                yield _stretch(parts, marks, added, controls)
                parts, marks = [], []
            is_message = re.fullmatch(_STAND_IN, piece)
            parts.append(ord(piece) - ord(_FIRST_STAND_IN) if is_message else piece)
    yield _stretch(parts, marks, added, controls)


def _stretch(
    parts: list[str | int], marks: list[str], added: dict[str, AddedToken], controls: dict[str, int]
) -> _Stretch:
    ids = tuple(controls[mark] for mark in marks)
    lstrip, rstrip = (added[marks[0]].lstrip, added[marks[-1]].rstrip) if marks else (False, False)
    return _Stretch(tuple(parts), ids, "".join(marks), lstrip, rstrip)


def _longest_first(tokens: Iterable[str]) -> str:
    """Return a pattern that finds tokens as the tokenizers library does: from the left, the longest first."""
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"


def _trims(
    tokenizer: PreTrainedTokenizerBase, roles: Roles, prompt: bool, stand_ins: list[str], written: str
) -> tuple[tuple[str | None, str | None], ...]:
    """Find out what the template cuts off messages: what is left of a space or line break put beside stand-ins."""
    rules: list[tuple[str | None, ...]] = [() for _ in roles]
    plain = re.split(f"({_STAND_IN})", written)  # template text and stand-ins in turn
    for side in ("left", "right"):
        lost = [""] * len(roles)
        for pad in " \n":
            padded = [pad + s if side == "left" else s + pad for s in stand_ins]
            found = re.split(f"({_STAND_IN})", _render(tokenizer, roles, padded, prompt))
            for k in range(1, len(plain), 2):
                beside = k - 1 if side == "left" else k + 1
                if found[k : k + 1] == plain[k : k + 1] and found[beside] == plain[beside]:
                    lost[ord(plain[k]) - ord(_FIRST_STAND_IN)] += pad
        for i, characters in enumerate(lost):
            rules[i] += (None if characters == " \n" else characters,)
    return tuple((left, right) for left, right in rules)


# ---- plans to sections ------------------------------------------------------------------------


def _filled(
    tokenizer: PreTrainedTokenizerBase, plan: _Plan, texts: list[list[str]], learnt: set[int]
) -> list[Section]:
    """Return a section for each stretch, with the loss on the messages `learnt` (their numbers)."""
    found: list[Section] = []
    spaces_taken = False
    for stretch, pieces in zip(plan.stretches, texts, strict=True):
        text, learnt_from = "", None
        for part, piece in zip(stretch.parts, pieces, strict=True):
            if not isinstance(part, str) and part in learnt:
                learnt_from = len(text)
            text += piece
        if spaces_taken:
            n_taken = len(text) - len(text.lstrip(_WHITE_SPACE))
            text, learnt_from = text[n_taken:], learnt_from and max(0, learnt_from - n_taken)
        if stretch.lstrip:
            text = text.rstrip(_WHITE_SPACE)
        spaces_taken = stretch.rstrip
        found.append(Section(text, learnt_from, stretch.marks, int(learnt_from is not None)))
    if found[0].text and _fills_the_front(tokenizer, found[0].text):
        learnt_from = found[0].learnt_from
        found[0] = found[0]._replace(text=" " + found[0].text, learnt_from=learnt_from and learnt_from + 1)
    return found


def _check_ends(plan: _Plan, roles: list[str], learn: str) -> None:
    """Raise Stop unless a special token follows each learnt message before the next message."""
    for stretch in plan.stretches:
        places = [part for part in stretch.parts if isinstance(part, int)]
        for i, after in pairwise((*places, None)):
            if roles[i] == learn and (after is not None or not stretch.marks):
                raise Stop(
                    f"chat template: no special token ends message {i + 1} ({learn}), expected one that can be "
                    "learnt as its end"
                )


# ---- the tokenizer's side ---------------------------------------------------------------------


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy for the texts of sections: it knows no special token by its text, and puts no space in front.

    Ours: a section is not the front of the string; the first one has the space written into its text.
    """
    controls = _controls(tokenizer, _template(tokenizer), len(tokenizer))
    return text_only(tokenizer, frozenset(controls.items()), inside=True)


def _fills_the_front(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer puts a space in front of a string that begins with `text`, and nowhere else.

    Such a space is written into the first section, so that all sections are tokenised alike.
    """
    words = _front_words(tokenizer, _template(tokenizer), len(tokenizer))
    if words is None or words.match(text):
        return False
    normalizer = tokenizer.backend_tokenizer.normalizer
    return not (normalizer.normalize_str(text) if normalizer else text).startswith((" ", "\u2581"))


@lru_cache(maxsize=8)
def _front_words(tokenizer: PreTrainedTokenizerBase, template: str, n_tokens: int) -> re.Pattern[str] | None:
    """Return a pattern for the words at a string's front that get no space; None where nothing gets one."""
    steps = pre_tokenizers_of(json.loads(backend_of(tokenizer).to_str()))
    if not any(step.get("prepend_scheme") == "first" for step in steps):
        return None
    controls = _controls(tokenizer, template, n_tokens)
    return re.compile(_longest_first(_added_tokens(tokenizer).keys() - controls.keys()))


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, AddedToken]:
    return {token.content: token for token in tokenizer.added_tokens_decoder.values()}


@lru_cache(maxsize=8)
def _controls(tokenizer: PreTrainedTokenizerBase, template: str, n_tokens: int) -> dict[str, int]:
    """Return the tokens that only a template may write, to their ids.

    They are the special ones, and others that were added and that the template writes (DeepSeek's
    `<｜User｜>`), unless they are white space (Gemma has added line breaks). The remaining added tokens are
    words like any other, found wherever they stand.
    """
    added = _added_tokens(tokenizer)
    written: set[str] = set()
    for roles in (("user", "assistant"), ("system", "user", "assistant", "user", "assistant"), ("user",)):
        try:
            text = _render(tokenizer, roles, [_FIRST_STAND_IN] * len(roles), prompt=len(roles) == 1)
        except Stop:  # no system prompts, say: that will be said of a dialogue that has one
            continue
        written.update(re.findall(_longest_first(added), text))
    control = {text for text, token in added.items() if token.special or text in written and text.strip()}
    return {
        token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content in control
    }


# ---- the template -----------------------------------------------------------------------------


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise Stop(
            "tokenizer: has no chat_template, expected one for format 'template' (the UltraLLaMA format needs none)"
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several, and none of them the default
        raise Stop(f"tokenizer: {str(error)[:200]}") from None


def _roles(messages: Messages) -> Roles:
    """Return the messages' roles. Raises Stop unless user and assistant take turns, after a system if any."""
    roles = tuple(role for role, _ in messages)
    n_systems = int(roles[:1] == ("system",))
    spoken = roles[n_systems:]
    sides = ("assistant", "user") if spoken[:1] == ("assistant",) else ("user", "assistant")
    for i, role in enumerate(spoken):
        if role != (expected := sides[i % 2]):
            raise Stop(
                f"messages: expected one of the {expected} as number {i + n_systems + 1}, got {role!r}"
            )
    if "user" not in spoken:
        raise Stop("messages: none of the user, expected at least one")
    return roles


def _render(tokenizer: PreTrainedTokenizerBase, roles: Roles, contents: Sequence[str], prompt: bool) -> str:
    """Return what the template writes, as text."""
    dialogue = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    try:
        return tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is a program of somebody else's
        raise Stop(f"chat template: refuses these messages ({str(error)[:200]})") from None
