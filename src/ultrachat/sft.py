"""A dialogue becomes token ids and labels: what the model reads, and what it is taught to say.

UltraLLaMA reads one string per dialogue and learns only what it should say itself. Learnt is here
what stands between ⟦ and ⟧, the closing mark included, so that the model also learns to stop:

    <s>User: Hi</s>
    Assistant: ⟦Hello!</s>⟧
    User: What is a pear?</s>
    Assistant: ⟦A fruit.</s>⟧

Everything else carries the label IGNORE_INDEX. With `learn="user"` the other side is taught, as in
a trained user simulator. Three rules keep the ids honest: the learnt side's tag (`Assistant: `) is
tokenised apart from its text, so that the border falls between two tokens; special tokens come only
from the format, never from what a message says (`</s>` typed by a user stays four characters); and
`<s>` stands once, at the front.

A dialogue longer than the limit is split between rounds. Nothing that fits is lost, nothing is
learnt twice, and what cannot fit is counted.

Absent on purpose: packing several dialogues into a row, chat templates (a template tokenises tag
and text together), and torch until `collate` makes tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from ultrachat.errors import Stop
from ultrachat.records import Dialogue

if TYPE_CHECKING:
    from IPython.display import HTML
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch's cross-entropy leaves these positions out
MAX_TOKENS = 2048  # Paper: §4.6
TAGS = {"user": "User: ", "assistant": "Assistant: "}
Role = Literal["user", "assistant"]


@dataclass(frozen=True, eq=False)
class Example:
    """One row to train on: `input_ids` and `labels`, int32 arrays of the same length (tokens).

    A label is the id itself where the token is learnt and IGNORE_INDEX elsewhere. The shift by one
    (position i predicts token i + 1) is left to the model, as everywhere in transformers.

    Paper: §4.6 ("we only calculate the loss for the model's responses").
    """

    input_ids: np.ndarray
    labels: np.ndarray

    @property
    def n_tokens(self) -> int:
        """The length of the row."""
        return len(self.input_ids)

    @property
    def n_learnt_tokens(self) -> int:
        """How many of its tokens enter the loss."""
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass(frozen=True)
class SplitReport:
    """What splitting did, in counts; the reports of several dialogues are added with `+`.

    `n_context_tokens` are read once more as context, and not learnt again. `n_cut_rounds` are rounds
    longer than the limit, `n_lost_tokens` the learnt tokens beyond it, and `n_lost_rounds` those cut
    rounds of which nothing to learn was left, so that they have no row. It always holds that
    n_learnt_tokens + n_lost_tokens = the learnt tokens of the whole dialogues.

    Ours: the authors' script drops rounds without a word.
    """

    n_dialogues: int = 0
    n_rounds: int = 0
    n_rows: int = 0
    n_tokens: int = 0
    n_learnt_tokens: int = 0
    n_context_tokens: int = 0
    n_cut_rounds: int = 0
    n_lost_tokens: int = 0
    n_lost_rounds: int = 0

    def __add__(self, other: SplitReport) -> SplitReport:
        return SplitReport(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        line = (
            f"{self.n_dialogues:,} dialogues, {self.n_rounds:,} rounds -> {self.n_rows:,} rows of "
            f"{self.n_tokens:,} tokens: {self.n_learnt_tokens:,} learnt, {self.n_context_tokens:,} repeated as context"
        )
        if not self.n_cut_rounds:
            return f"{line}; no round was cut"
        return (
            f"{line}; {self.n_cut_rounds:,} rounds were longer than the limit and cut, {self.n_lost_tokens:,} "
            f"tokens of theirs are not learnt, {self.n_lost_rounds:,} of these rounds not at all"
        )


# ---- from text to ids -------------------------------------------------------------------------


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenise texts: no special token is added, and none is recognised in what they say."""
    return tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]


def _piece(head: list[int], learnt: list[int]) -> Example:
    labels = [IGNORE_INDEX] * len(head) + learnt
    return Example(np.array(head + learnt, dtype=np.int32), np.array(labels, dtype=np.int32))


def _join(parts: Iterable[Example]) -> Example:
    parts = list(parts)
    return Example(np.concatenate([p.input_ids for p in parts]), np.concatenate([p.labels for p in parts]))


def _unlearnt(part: Example) -> Example:
    return Example(part.input_ids, np.full_like(part.labels, IGNORE_INDEX))


def _messages(
    messages: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, learn: str, opens: bool
) -> list[Example]:
    """Encode (role, text) messages one by one; `opens` says that the first stands at the very front."""
    if tokenizer.eos_token_id is None:
        raise Stop("tokenizer: has no eos_token, expected one to close every message")
    texts = []
    for position, (role, text) in enumerate(messages):
        tag = TAGS[role] if opens and position == 0 else "\n" + TAGS[role]
        # what is not learnt is tokenised in one piece with its tag, as the authors' code does
        texts += [tag, text] if role == learn else [tag + text]
    ids, end = iter(_ids(texts, tokenizer)), [tokenizer.eos_token_id]
    return [
        _piece(next(ids), next(ids) + end) if role == learn else _piece(next(ids) + end, [])
        for role, _ in messages
    ]


def _rounds(
    rounds: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, learn: str, opens: bool
) -> list[Example]:
    """Encode (user, assistant) rounds one by one."""
    messages = [m for user, assistant in rounds for m in (("user", user), ("assistant", assistant))]
    encoded = _messages(messages, tokenizer, learn, opens)
    return [_join(pair) for pair in zip(encoded[::2], encoded[1::2], strict=True)]


def _front(tokenizer: PreTrainedTokenizerBase, system: str | None) -> Example:
    """Encode what stands before the first round: `<s>`, and the system prompt as one more user turn."""
    front = [_piece([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], [])]
    if system:
        front += _messages([("user", system)], tokenizer, learn="assistant", opens=True)
    return _join(front)


def encode(
    dialogue: Dialogue,
    tokenizer: PreTrainedTokenizerBase,
    learn: Role = "assistant",
    system: str | None = None,
) -> Example:
    """Return the whole dialogue as one Example, however long, with the loss on one side's messages.

    `system` is put in front as one more `User: ` turn. Raises Stop when `learn` names no role or
    the tokenizer has no eos_token.

    Paper: §4.6; the format is that of the authors' `train/ultrachat_dataset.py`.
    """
    if learn not in TAGS:
        raise Stop(f"learn: expected 'assistant' or 'user', got {learn!r}")
    rounds = _rounds(dialogue.rounds, tokenizer, learn, opens=not system)
    return _join([_front(tokenizer, system), *rounds])


def encode_prompt(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    history: Sequence[tuple[str, str]] = (),
    system: str | None = None,
) -> list[int]:
    """Return the ids up to and including `Assistant: ` after a question, token for token as in training.

    `history` holds earlier (user, assistant) rounds. Raises Stop without an eos_token.

    Paper: the authors' `UltraLM/13b/inference_cli.py`; only there the history is tokenised as one string.
    """
    # an empty answer stands in for the one to come; its closing mark is taken off again
    rounds = _rounds([*history, (question, "")], tokenizer, "assistant", opens=not system)
    return _join([_front(tokenizer, system), *rounds]).input_ids[:-1].tolist()


# ---- splitting --------------------------------------------------------------------------------


def split(
    dialogue: Dialogue,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = MAX_TOKENS,
    learn: Role = "assistant",
    system: str | None = None,
) -> tuple[list[Example], SplitReport]:
    """Return the dialogue as Examples of at most `max_tokens`, split between rounds, and what was done.

    Each row takes as many new rounds as fit; then the rounds before them, nearest first, go in front
    as context while there is room, read but not learnt again. A round that is too long by itself is
    cut at the limit. Raises Stop when the limit leaves no room for any round, and as `encode` does.

    Paper: §4.6 names the limit of 2,048 tokens only; the authors' `split_long.py` loses rounds.
    """
    whole, front = encode(dialogue, tokenizer, learn, system), _front(tokenizer, system)
    if front.n_tokens >= max_tokens:
        raise Stop(f"max_tokens: {max_tokens} leaves no room after the {front.n_tokens} tokens in front")
    if whole.n_tokens <= max_tokens:  # the usual case
        rows = [(whole, 0)]
    else:
        # the round at the front of a row has no newline before its "User: ", so every round has two forms
        later = _rounds(dialogue.rounds, tokenizer, learn, opens=False)
        first = later
        if not system:
            first = [_rounds([pair], tokenizer, learn, opens=True)[0] for pair in dialogue.rounds]
        rows = []
        for begin, start, end in _plan(first, later, max_tokens - front.n_tokens):
            parts = [first[begin], *later[begin + 1 : end]]
            context = [_unlearnt(part) for part in parts[: start - begin]]
            n_context_tokens = sum(part.n_tokens for part in context)
            rows.append((_join([front, *context, *parts[start - begin :]]), n_context_tokens))
    examples, report = [], SplitReport(n_dialogues=1, n_rounds=len(dialogue.rounds))
    for row, n_context_tokens in rows:
        kept = Example(row.input_ids[:max_tokens], row.labels[:max_tokens])
        report += _count(row, kept, n_context_tokens)
        if kept.n_learnt_tokens:  # the loss of a row without labels is 0 / 0
            examples.append(kept)
    return examples, report


def _plan(first: list[Example], later: list[Example], room: int) -> list[tuple[int, int, int]]:
    """Return for each row (begin, start, end): rounds begin..start are its context, start..end are new.

    `room` is what a row holds (tokens); a round longer than that gets a row of its own.
    """
    rows, start = [], 0
    while start < len(later):
        end, used = start + 1, first[start].n_tokens
        while end < len(later) and used + later[end].n_tokens <= room:
            used += later[end].n_tokens
            end += 1
        begin = start
        while begin > 0 and sum(p.n_tokens for p in [first[begin - 1], *later[begin:end]]) <= room:
            begin -= 1
        rows.append((begin, start, end))
        start = end
    return rows


def _count(row: Example, kept: Example, n_context_tokens: int) -> SplitReport:
    """Count one row before and after it was cut at the limit."""
    return SplitReport(
        n_rows=int(kept.n_learnt_tokens > 0),
        n_tokens=kept.n_tokens if kept.n_learnt_tokens else 0,
        n_learnt_tokens=kept.n_learnt_tokens,
        n_context_tokens=n_context_tokens,
        n_cut_rounds=int(row.n_tokens > kept.n_tokens),
        n_lost_tokens=row.n_learnt_tokens - kept.n_learnt_tokens,
        n_lost_rounds=int(kept.n_learnt_tokens == 0),
    )


def split_all(
    dialogues: Iterable[Dialogue],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = MAX_TOKENS,
    learn: Role = "assistant",
    system: str | None = None,
) -> tuple[list[Example], SplitReport]:
    """Return the Examples of all dialogues in order and the sum of their reports; raises as `split`.

    Paper: §4.6.
    """
    examples: list[Example] = []
    report = SplitReport()
    for dialogue in dialogues:
        rows, counts = split(dialogue, tokenizer, max_tokens, learn, system)
        examples += rows
        report += counts
    return examples, report


# ---- from ids to a batch, and to something to look at -----------------------------------------


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Return a batch: `input_ids`, `labels`, `attention_mask`, int64 of (rows, longest row), padded right.

    The mask comes from the lengths and not from `ids != pad_id`, which would hide every real `</s>`
    of a model whose padding token is its end mark.

    Ours: the authors pad to the longest row too, with a token added for the purpose.
    """
    import torch

    shape = (len(examples), max(example.n_tokens for example in examples))
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, IGNORE_INDEX),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for row, example in enumerate(examples):
        batch["input_ids"][row, : example.n_tokens] = torch.from_numpy(example.input_ids)
        batch["labels"][row, : example.n_tokens] = torch.from_numpy(example.labels)
        batch["attention_mask"][row, : example.n_tokens] = 1
    return batch


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
