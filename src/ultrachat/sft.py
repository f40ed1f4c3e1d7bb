"""A dialogue becomes token ids and labels: what the model reads, and what it is taught to say.

UltraLLaMA reads one string per dialogue and learns only what it should say itself. Learnt is here
what stands between ⟦ and ⟧, the closing mark included, so that the model also learns to stop:

    <s>User: Hi</s>
    Assistant: ⟦Hello!</s>⟧
    User: What is a pear?</s>
    Assistant: ⟦A fruit.</s>⟧

Everything else carries the label IGNORE_INDEX. With `format="template"` the text is that of the tokenizer's own
chat template, with "platolm" or "parrot" that of a published user model (`user_models`).

With `learn="user"` the other side is taught, as in a trained user simulator. Its messages too are learnt with
their closing mark, and the first one as well, so that the model can open a conversation; the last answer is left
out, for nothing is learnt after it.

    encoder = Encoder(tokenizer)                      # or Encoder(tokenizer, format="platolm", learn="user")
    encoder.encode(dialogue)                          # an Example
    encoder.prompt("What is a pear?", history)        # the ids an answer is asked for with
    encoder.prompt_after(messages)                    # the same for whoever speaks next

Three rules keep the ids honest: the learnt side's tag (`Assistant: `) is tokenised apart from its text, so
that the border falls between two tokens; special tokens come only from the format, never from what a
message says (`</s>` typed by a user stays four characters); and `<s>` stands once, at the front.

Absent on purpose: the limit of 2,048 tokens (`splitting`), batches (`batching`), and torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Literal, get_args

from ultrachat import chat_templates, user_models
from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sections import IGNORE_INDEX, Example, Remembered, Section, assemble
from ultrachat.text_only import text_only
from ultrachat.token_ids import TokenIds

if TYPE_CHECKING:
    from IPython.display import HTML
    from transformers import PreTrainedTokenizerBase

TAGS = {
    "system": "User: ",
    "user": "User: ",
    "assistant": "Assistant: ",
}  # a system prompt is one more user turn
Role = Literal["user", "assistant"]
Format = Literal["ultrallama", "template", "platolm", "parrot"]
Rounds = Sequence[tuple[str, str]]
Messages = Sequence[tuple[str, str]]


def ultrallama_sections(messages: Messages, bos_id: int | None, eos_id: int, learn: Role) -> list[Section]:
    """Return (role, text) messages in UltraLLaMA's format, with the ids of `<s>` (None for no such) and `</s>`.

    Paper: §4.6; the format is that of the authors' `train/ultrachat_dataset.py`.
    """
    end = (eos_id,)
    found = [] if bos_id is None else [Section("", marks=(bos_id,))]
    for position, (role, text) in enumerate(messages):
        tag = "\n" + TAGS[role] if position else TAGS[role]
        if role == learn:
            found += [Section(tag), Section(text, learnt_from=0, marks=end, n_marks_learnt=1)]
        else:  # what is not learnt is tokenised in one piece with its tag, as the authors' code does
            found.append(Section(tag + text, marks=end))
    return found


def _messages(rounds: Rounds) -> list[tuple[str, str]]:
    return [m for user, assistant in rounds for m in (("user", user), ("assistant", assistant))]


class Encoder:
    """A dialogue to ids and labels, for one tokenizer, one format and one side to learn.

    `format` is "ultrallama", "template" (the tokenizer's own), "platolm" or "parrot", whose template the
    encoder's `tokenizer`, a copy, then has as its own; `system` is put in front: as one more user turn in UltraLLaMA's
    format, as its system message in a template. Raises Stop when `learn` or `format` is none of these, or the tokenizer lacks
    what the format needs (`eos_token`, a template).

    Paper: §4.6 (the assistant is learnt); learning the user and other formats are ours.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        format: Format = "ultrallama",
        learn: Role = "assistant",
        system: str | None = None,
    ) -> None:
        if learn not in ("assistant", "user"):
            raise Stop(f"learn: expected 'assistant' or 'user', got {learn!r}")
        if format not in get_args(Format):
            raise Stop(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
        if format in user_models.USER_MODELS:
            tokenizer = user_models.with_template(tokenizer, format, learn)
        self.tokenizer, self.format, self.learn, self.system = tokenizer, format, learn, system
        plain = text_only if format == "ultrallama" else chat_templates.text_tokenizer
        self._tokens = TokenIds(plain(tokenizer)).many_flat
        # looked up once: a tokenizer takes ten times as long to say as a message takes
        self._marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        if format == "ultrallama" and tokenizer.eos_token_id is None:
            raise Stop("tokenizer: has no eos_token, expected one to close every message")
        self.sections([("", "")])  # a tokenizer that lacks something is found before any work
        self._begins_with_answer = learn == "user" and self._takes_an_answer_first()

    def _takes_an_answer_first(self) -> bool:
        try:
            self._formatted([("assistant", "a"), ("user", "a")])
        except Stop:  # some templates insist on the user as the first to speak
            return False
        return True

    def sections(
        self, rounds: Rounds, begin: int = 0, start: int = 0, end: int | None = None
    ) -> list[Section]:
        """Return the turns from `begin` to `end` of (user, assistant) rounds as sections; those before `start` are
        read and not learnt.

        A turn is one message to learn and what it answers to: for the assistant a round, for the user the answer
        before and then the user's message (the first turn has none). A template that refuses to begin with an
        answer gets the question before it too, which is only read.

        Ours: what an Example is assembled from. PlatoLM's rows may begin with an answer as well.
        """
        messages, n_read = _messages(rounds), start - begin
        last = 2 * (len(rounds) if end is None else end)
        if self.learn == "assistant":
            found = self._formatted(messages[2 * begin : last])
        elif begin and not self._begins_with_answer:
            found, n_read = self._formatted(messages[2 * begin - 2 : last - 1]), n_read + 1
        else:
            found = self._formatted(messages[max(0, 2 * begin - 1) : last - 1])
        for position, section in enumerate(found):
            if n_read and section.learnt_from is not None:  # one for each learnt message, in their order
                found[position], n_read = section.only_read(), n_read - 1
        return found

    def _formatted(self, messages: Messages, prompt: bool = False) -> list[Section]:
        if self.system:
            messages = [("system", self.system), *messages]
        if self.format == "ultrallama":
            return ultrallama_sections(messages, *self._marks, self.learn)
        if prompt:
            return chat_templates.prompt_sections(self.tokenizer, messages)
        return chat_templates.sections(self.tokenizer, messages, self.learn)

    def assemble(self, rows: Sequence[Sequence[Section]], tokens: Remembered | None = None) -> list[Example]:
        """Return an Example for each list of sections; `tokens` are those of `remembered`, if there are.

        Ours: many at once are several times as fast as one by one.
        """
        return assemble(rows, tokens or self._tokens, partial(chat_templates.borders, self.tokenizer))

    def remembered(self) -> Remembered:
        """Return what keeps the ids of sections' texts, to be given to `assemble` again and again.

        Ours: splitting tries lengths before it makes a row.
        """
        return Remembered(self._tokens)

    def encode_all(self, dialogues: Iterable[Dialogue]) -> list[Example]:
        """Return each whole dialogue as one Example, however long.

        Paper: §4.6.
        """
        return self.assemble([self.sections(dialogue.rounds) for dialogue in dialogues])

    def encode(self, dialogue: Dialogue) -> Example:
        """Return the whole dialogue as one Example, however long, with the loss on one side's messages; a user
        model's ends with the user's last message.

        Paper: §4.6.
        """
        return self.encode_all([dialogue])[0]

    def prompt(self, question: str, history: Rounds = ()) -> list[int]:
        """Return the ids up to where the assistant speaks after a question, token for token as in training.

        `history` holds earlier (user, assistant) rounds.

        Paper: the authors' `UltraLM/13b/inference_cli.py`; only there the history is tokenised as one string.
        """
        return self.prompt_after([*_messages(history), ("user", question)])

    def prompt_after(self, messages: Messages) -> list[int]:
        """Return the ids after (role, text) messages up to where the other side speaks, as in training.

        After the user's message that is the assistant, after the assistant's or nothing at all the user.

        Ours: a trained user model is asked as it was trained.
        """
        if self.format != "ultrallama":
            return self.assemble([self._formatted(messages, prompt=True)])[0].input_ids.tolist()
        # an empty message stands in for the one to come; its closing mark is taken off again
        speaker = "assistant" if messages and messages[-1][0] == "user" else "user"
        return self.assemble([self._formatted([*messages, (speaker, "")])])[0].input_ids[:-1].tolist()


# ---- to look at -------------------------------------------------------------------------------


def show_mask(example: Example, tokenizer: PreTrainedTokenizerBase) -> HTML:
    """Return a row as text one can read: learnt tokens on colour, bold and underlined, the rest plain.

    The text is escaped; special tokens are shown as they are written.

    Ours: a mask should be seen before it is trained on.
    """
    from IPython.display import HTML

    from ultrachat.figures import NO_MATH, safe

    learnt = example.labels != IGNORE_INDEX
    parts = []
    for is_learnt, group in groupby(range(example.n_tokens), key=lambda i: bool(learnt[i])):
        # whole runs are decoded, since a character can be made of several tokens
        text = safe(tokenizer.decode(example.input_ids[list(group)].tolist(), skip_special_tokens=False))
        style = "background:#f3d9c9;color:#1b1b1b;font-weight:bold;text-decoration:underline"
        parts.append(f"<span style='{style}'>{text}</span>" if is_learnt else f"<span>{text}</span>")
    legend = f"{example.n_learnt_tokens:,} of {example.n_tokens:,} tokens are learnt (bold, underlined)"
    return HTML(
        f"<div {NO_MATH} style='max-width:60em;line-height:1.5'><div style='font-size:80%;opacity:.75'>{legend}</div>"
        f"<div style='white-space:pre-wrap;font-family:monospace;font-size:90%'>{''.join(parts)}</div></div>"
    )
