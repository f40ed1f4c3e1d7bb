"""A model that answers whoever asks: each request with noise of its own, and what waits together as one batch.

    voice = Voice(model, tokenizer, USER_FORBIDS)
    asking = Asking(Kind(voice, temperature=0.7, top_p=1.0, max_tokens=512, by_user=True), messages, seed=0)
    worker.put(asking)
    asking.done.result()                             # Generated(text, cut, n_tokens), or raises Refused

Whose turn it is follows from the messages: after the user's the assistant speaks, after the assistant's (or a system
message, or nothing) the user. So one model that was trained for it can hold either side.

An answer depends on the prompt, the sampling and the request's seed, and on nothing that is asked at the same time, up
to the rounding of scores (`chatmodels`). Only the worker's thread touches models and tokenizers.

Absent on purpose: HTTP (`serving`).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ultrachat.errors import Stop
from ultrachat.records import content_id
from ultrachat.user_models import USER_MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ultrachat.chatmodels import Generated
    from ultrachat.sft import Encoder

MAX_DRAWS = 9  # of one answer: the first, and eight more where it is empty or begins as it must not
GATHER_SECONDS = (
    0.02  # without a newcomer: who were answered together ask again together, but not in one instant
)

USER_FORBIDS = (
    "Certainly", "Absolutely", "Of course!", "Sure!", "Sure, here", "Sure thing", "As an AI", "As a language model",
    "I'm an AI", "I am an AI", "I'm sorry, but I", "I am sorry, but I", "Sorry, but I", "I apologize", "My apologies",
    "Here are some", "Here are a few", "Here is a", "Here's a", "You're welcome", "How can I help", "How may I assist",
)  # fmt: skip
"""How assistants begin and people who ask do not. Whole phrases, for their first words alone ("I", "As", "Here", "Sorry",
"Sure") begin many a human message: "Here is my essay", "Sorry, I meant the second", "Sure, but why?". The idea is that of
UserLM-8b, whose list we know at second hand only; this one is ours."""


class Refused(Exception):
    """A request that gets no answer: the HTTP status and the API's error, for the client to read.

    Ours: what is wrong is said in one message and one code.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


# ---- a voice ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Voice:
    """A model that is served. `format` is `sft.Encoder`'s: the tokenizer's own chat template unless it says otherwise.

    A user's turn begins with none of `forbid_first`, nor, where there are any, with its end. A string that is one
    token cannot be drawn; an answer that begins with a longer one is drawn again, since the first token of "As an AI"
    begins much else. Raises Stop when the tokenizer lacks what the format needs.

    Ours: the guard is UserLM-8b's idea.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forbid_first: Sequence[str] = ()
    format: str = "template"

    def __post_init__(self) -> None:
        if isinstance(self.forbid_first, str) or not all(self.forbid_first):
            raise Stop(f"forbid_first: expected strings, none of them empty, got {self.forbid_first!r}")
        _ = self._encoder

    @cached_property
    def _encoder(self) -> Encoder:
        from ultrachat.sft import Encoder  # it takes a second to import

        return Encoder(
            self.tokenizer, self.format, learn="user" if self.format in USER_MODELS else "assistant"
        )

    @property
    def digest(self) -> str:
        """16 hex digits that tell what shapes this voice's answers: weights, template and guard."""
        from ultrachat.chatmodels import weights_digest

        template = str(self._encoder.tokenizer.chat_template)
        return content_id(weights_digest(self.model), self.format, template, *self.forbid_first)

    @property
    def max_context_tokens(self) -> float:
        """How many tokens a prompt and its answer may have, infinite where the model does not say."""
        from ultrachat.chatmodels import max_context_tokens

        return max_context_tokens(self.model) or float("inf")

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Return the ids after (role, text) messages up to where the other side speaks.

        A special token that somebody typed stays text. Raises Stop when the template refuses the messages.
        """
        return self._encoder.prompt_after(messages)

    @cached_property
    def forbidden_tokens(self) -> frozenset[int]:
        """The ids that no user's turn begins with: ends of a turn, and the forbidden strings of one token."""
        from ultrachat.chatmodels import end_ids

        if not self.forbid_first:
            return frozenset()
        written = [space + text for text in self.forbid_first for space in ("", " ")]
        ids = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        return frozenset(end_ids(self.model, self.tokenizer)) | {row[0] for row in ids if len(row) == 1}

    def is_forbidden(self, text: str) -> bool:
        """Whether a user's turn begins with one of the forbidden strings, as a word or words of its own."""
        text = text.lstrip().replace("\u2019", "'")
        return any(
            text.startswith(first) and not (first[-1].isalnum() and text[len(first) :][:1].isalnum())
            for first in self.forbid_first
        )


# ---- what waits ---------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What requests must share to be generated together; `by_user`: it is the user's turn.

    Ours: one batch has one sampling.
    """

    voice: Voice
    temperature: float
    top_p: float
    max_tokens: int
    by_user: bool


@dataclass(eq=False)
class Asking:
    """A request that waits: (role, text) messages and a seed; `done` will hold its answer, or raise Refused.

    Ours: a draw that will not do is drawn again from a seed that follows from the request's.
    """

    kind: Kind
    messages: list[tuple[str, str]]
    seed: int
    ids: list[int] = field(default_factory=list)
    n_draws: int = 0
    done: Future[Generated] = field(default_factory=Future)

    def next_seed(self) -> int:
        """Return the request's seed, and for each further draw another that follows from it."""
        self.n_draws += 1
        if self.n_draws == 1:
            return self.seed
        digest = hashlib.sha256(f"{self.seed} {self.n_draws}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def settle(self, result: Generated | Exception) -> None:
        """Hand over the answer, or the exception that comes instead; nobody may be waiting any more."""
        with suppress(InvalidStateError):
            if isinstance(result, Exception):
                self.done.set_exception(result)
            else:
                self.done.set_result(result)


class Worker:
    """A thread of its own that generates: the request that waits longest, and all others of its kind with it.

    At most `max_batch` are generated at once. An answer that is empty, or begins as a user's turn must not, is drawn
    again up to eight times.

    Ours: a batch of thirty takes little longer than one answer.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._waiting: list[Asking] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def put(self, *askings: Asking) -> None:
        """Have requests wait for their turn."""
        with self._changed:
            self._waiting += askings
            self._changed.notify()

    def close(self) -> None:
        """Return once the batch under way is over; whoever still waits gets no answer."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            batch = self._next()
            try:
                self._answer(batch)
            except Exception as error:  # no memory, say: the next batch may fare better
                logging.getLogger(__name__).exception("generation failed")
                for asking in batch:
                    asking.settle(Refused(500, f"generation failed ({type(error).__name__})", "server_error"))

    def _next(self) -> list[Asking]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            n_seen = 0
            while n_seen < len(self._waiting) < self._max_batch and not self._stopping:
                n_seen = len(self._waiting)
                self._changed.wait_for(lambda: len(self._waiting) >= self._max_batch, GATHER_SECONDS)
            # a client that gave up has cancelled what it waited for
            waiting = [asking for asking in self._waiting if not asking.done.cancelled()]
            batch = [asking for asking in waiting if asking.kind == waiting[0].kind][: self._max_batch]
            self._waiting = [asking for asking in waiting if asking not in batch]
        return batch

    def _answer(self, batch: list[Asking]) -> None:
        from ultrachat.chatmodels import generated

        batch = [asking for asking in batch if asking.ids or self._prepare(asking)]
        if not batch:
            return
        voice, temperature, top_p, max_tokens, by_user = batch[0].kind
        made = generated(
            voice.model, voice.tokenizer, [asking.ids for asking in batch], max_tokens, temperature, top_p,
            batch_size=len(batch), seed=[asking.next_seed() for asking in batch],
            forbidden_first=voice.forbidden_tokens if by_user else (),
        )  # fmt: skip
        for asking, answer in zip(batch, made, strict=True):
            if answer.text and not (by_user and voice.is_forbidden(answer.text)):
                asking.settle(answer)
            elif asking.n_draws < MAX_DRAWS and temperature > 0:
                self.put(asking)
            else:  # not a 500: asked again it would be the same
                asking.settle(
                    Refused(422, f"no answer that will do in {asking.n_draws} draws", "empty_answer")
                )

    def _prepare(self, asking: Asking) -> bool:
        """Make the prompt of a request; refuse it, and return False, where there is none or it is too long."""
        try:
            asking.ids = asking.kind.voice.prompt(asking.messages)
        except Stop as stop:
            asking.settle(Refused(400, str(stop), "invalid_messages", "messages"))
            return False
        n_tokens, limit = len(asking.ids) + asking.kind.max_tokens, asking.kind.voice.max_context_tokens
        if n_tokens > limit:
            said = (
                f"{len(asking.ids)} tokens + max_tokens {asking.kind.max_tokens} exceed the model's {limit}"
            )
            asking.settle(Refused(400, said, "context_length_exceeded", "messages"))
            return False
        return True
