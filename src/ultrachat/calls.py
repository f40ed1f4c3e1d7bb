"""One question to one endpoint until it has an answer or a named failure: the only place that retries.

What may come back, and what becomes of it:

    try again, with full jitter     429, 5xx, 408, 409 · no connection, cut off · past the deadline ·
                                    a reply that is no chat completion · an empty answer
    set aside                       refusal · finish_reason other than "stop" ("length" too, where a request takes
                                    cut answers) · too long · other 4xx
    stop the run, in one line       key refused · model gone · quota exhausted · told to wait for long ·
                                    so many failures in a row that the server must be down

A failure is never an answer and an answer never a failure. No word of a server's own text is ever
shown: it can echo the key.

Absent on purpose: who asks what, and where answers are kept (`teacher`).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ultrachat.endpoints import Connection, Endpoint
from ultrachat.errors import Stop
from ultrachat.money import BYTES_PER_TOKEN, Budget, prompt_bytes
from ultrachat.pacing import Pace, Sent, retry_after_seconds
from ultrachat.recorded import NOT_RECORDED, Reply, name_request
from ultrachat.store import canonical

HOW_TO_GO_LIVE = "set base_url and model to a live teacher and OPENAI_API_KEY to its key"
MAX_WAIT_SECONDS = 600.0
MAX_ANSWER_CHARACTERS = 200_000
MAX_REJECTED_AT_FIRST, MAX_REJECTED = 10, 100  # in a row: before any answer, and after one
CUT_WILL_DO = (
    "-cut"  # ends the ledger key of a request that takes cut answers: a batch keeps of it only the key
)
# the codes of a 400 or 422 that are about this one question, and will come again however often it is asked
NO_ANSWER = {
    "context_length_exceeded": "the dialogue and its answer do not fit into the model's context",
    "empty_answer": "every answer that was drawn is empty or begins with forbidden words",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a seat. `task` and `inputs` name it; `messages` and sampling shape the answer.

    `inputs` holds short names and numbers only (ids, not texts). `temperature` and `max_tokens` are
    the teacher's unless given. A `seed` is sent to servers that know one; other seeds are other questions.
    With `accept_cut` an answer that ran into `max_tokens` is an answer like any other.

    Paper: PlatoLM takes questions that were cut at 512 tokens. Ours: naming a request apart from its wording keeps
    recordings valid when prompts are reworded.
    """

    task: str
    inputs: Mapping[str, str | int]
    messages: list[dict[str, str]]
    seat: str = "assistant"
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    accept_cut: bool = False


class CallFailed(Exception):
    """A question that got no acceptable answer: `kind` counts it, the text says why in one line.

    Ours: a failure is never an answer.
    """

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(line)
        self.kind = kind


class ServerDown(Stop):
    """The run stops because a server answers nobody any more; what failed meanwhile is not the items' fault.

    Ours: an outage sets nothing aside.
    """


class TryAgain(CallFailed):
    """A failure that may pass.

    Ours: a refusal or a cut-off answer is none, it would only be paid for again.
    """


class Halted(Exception):
    """Raised instead of sending once the run is stopping: what is under way finishes, nothing new begins.

    Ours: interrupting loses nothing that was paid for.
    """


async def sleep_unless(halting: threading.Event, seconds: float) -> None:
    """Return after so many seconds; raise Halted, without waiting further, once the run is stopping.

    Ours: an interrupted cell gives the prompt back at once.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if halting.is_set():
            raise Halted
        await asyncio.sleep(min(left, 0.2))


def backoff_seconds(attempt: int) -> float:
    """Return how long to wait before a try that follows `attempt` others: full jitter, at most 30 seconds.

    Ours: without jitter everybody comes back at the same moment.
    """
    return random.uniform(0, min(30.0, 0.5 * 2 ** (attempt - 1)))


class Answer(NamedTuple):
    """An accepted answer and the (prompt, completion) tokens the server counted, None where it did not.

    Ours: token counts come from the server or not at all.
    """

    text: str
    tokens: tuple[int | None, int | None]


class Patience(NamedTuple):
    """How long to go on: seconds for one try, tries for one question, failures in a row for a server.

    Ours: a trickle of bytes cannot outlive the deadline.
    """

    deadline_seconds: float = 120.0
    max_tries: int = 8
    max_failed_in_a_row: int = 200


def body_of(request: Request, endpoint: Endpoint, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON body of a chat completion request.

    Ours: a request is named only to the recorded teacher.
    """
    body = {"model": endpoint.model, "messages": request.messages, **sampling}
    if endpoint.wants_names:
        body["metadata"] = name_request(request.task, request.inputs)
    return body


class Caller:
    """Asks one endpoint; shared by every worker of a `map`, so that one 429 holds back all of them.

    Ours: one retry layer; three of them, one in another, multiply.
    """

    def __init__(
        self, endpoint: Endpoint, connection: Connection, pace: Pace, budget: Budget, patience: Patience,
        halting: threading.Event,
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self._connection = connection
        self._pace = pace
        self._budget = budget
        self._patience = patience
        self._halting = halting
        self._gate = asyncio.Lock()
        self._failed_in_a_row = 0
        self._rejected = 0  # requests in a row
        self._max_rejected = MAX_REJECTED_AT_FIRST

    async def answer(self, request: Request, sampling: Mapping[str, Any]) -> Answer:
        """Return the answer after as many tries as it takes.

        Raises CallFailed when there is none, Stop when nothing more can come, Halted when not sent.
        """
        body = body_of(request, self.endpoint, sampling)
        n_bytes = prompt_bytes(request.messages)
        tokens = n_bytes / BYTES_PER_TOKEN + sampling["max_tokens"]
        worst = self._budget.worst_usd(self.endpoint.model, n_bytes, sampling["max_tokens"])
        for attempt in range(self._patience.max_tries):
            sent = await self._wait_to_send(attempt, tokens)
            try:
                answer = await self._try(request, body, sent, worst)
            except TryAgain as failed:
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= self._patience.max_failed_in_a_row:
                    raise ServerDown(
                        f"{self._failed_in_a_row} calls failed in a row, the last: {failed}; run again later"
                    ) from None
                if attempt + 1 == self._patience.max_tries:
                    raise
            except CallFailed as failed:
                self._failed_in_a_row = 0  # the server did answer: it is not down
                self._count_rejection(failed)
                raise
            else:
                self._failed_in_a_row = self._rejected = 0
                self._max_rejected = MAX_REJECTED
                return answer
        raise AssertionError("at least one try")

    def _count_rejection(self, failed: CallFailed) -> None:
        """Raise Stop when a server rejects everything: from the start, some say so of a wrong model name."""
        if not failed.kind.startswith("http_"):
            return
        self._rejected += 1
        if self._rejected >= self._max_rejected:
            raise Stop(
                f"{self.endpoint.base_url}: {self._rejected} requests in a row were rejected ({failed}); "
                f"check model, now {self.endpoint.model!r}, and the account"
            ) from None

    async def _wait_to_send(self, attempt: int, tokens: float) -> Sent:
        """Return when this try may be sent; raise Halted, without waiting further, once the run is stopping."""
        if attempt:
            await sleep_unless(self._halting, backoff_seconds(attempt))
        # one at a time looks at the pace: a thousand would all wake up for the next free place
        async with self._gate:
            while left := self._pace.wait_seconds(tokens):
                await sleep_unless(
                    self._halting, min(left, 0.2)
                )  # looked at again: a 429 may move it meanwhile
            if self._halting.is_set():
                raise Halted
            return self._pace.sending(tokens)

    async def _try(self, request: Request, body: dict[str, Any], sent: Sent, worst: float) -> Answer:
        """Send once, settle what it cost, and return the answer or raise what came instead."""
        await self._budget.reserve(worst)
        bill = worst  # until the reply says otherwise: a server may charge what we never saw
        try:
            if self._halting.is_set():  # it was set while waiting for money
                bill = 0.0
                raise Halted
            async with asyncio.timeout(self._patience.deadline_seconds):
                reply = await self._connection.post(body)
            self._pace.heard_of(sent, reply.headers)
            if reply.status != 200:
                bill = 0.0
                raise self._read_status(reply, request)
            completion = read_completion(reply)
            tokens = token_counts(completion)
            bill = self._budget.usd(self.endpoint.model, tokens, worst)
            return Answer(accepted_text(completion, request.accept_cut), tokens)
        except TimeoutError:
            raise TryAgain("timeout", f"no answer within {self._patience.deadline_seconds:g} s") from None
        except ConnectionError as error:
            if isinstance(error, ConnectionRefusedError):
                bill = 0.0
            raise TryAgain("connection", f"no connection to {self.endpoint.base_url}") from None
        finally:
            self._budget.settle(worst, bill)

    def _read_status(self, reply: Reply, request: Request) -> CallFailed:
        """Return the failure that an HTTP status stands for; a Retry-After holds back every worker."""
        failed = read_status(reply, self.endpoint, request.task, canonical(dict(request.inputs)))
        self._pace.hold(asked_to_wait(reply.headers))
        return failed


def read_status(reply: Reply, endpoint: Endpoint, task: str, inputs: str) -> CallFailed:
    """Return the failure that an HTTP status stands for; raises Stop when nothing more can come.

    Ours: an exhausted quota comes as a 429 like any other, and must not be retried like one.
    """
    url, status, code = endpoint.base_url, reply.status, error_code(reply)
    if code == NOT_RECORDED:
        raise Stop(f"task '{task}' with inputs {inputs[:200]} is not recorded; {HOW_TO_GO_LIVE}")
    if status in (401, 403):
        raise Stop(f"{url}: key refused (HTTP {status}); check {endpoint.key_variable}")
    if status == 404:
        raise Stop(f"model: '{endpoint.model}' is not found at {url} (HTTP 404)")
    if status in (301, 302, 303, 307, 308):
        raise Stop(f"base_url: {url} leads elsewhere (HTTP {status}); give the address it leads to")
    if status == 402 or code in ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"):
        raise Stop(f"{url}: the account's quota is exhausted; run again when it is not")
    if type(status) is not int:
        return TryAgain("unreadable", "a row without an HTTP status")
    if status in (408, 409, 429) or status >= 500:
        return TryAgain(f"http_{status}", f"HTTP {status} from {url}")
    if status in (400, 422) and code in NO_ANSWER:
        return CallFailed(code, NO_ANSWER[code])
    return CallFailed(f"http_{status}", f"request rejected with HTTP {status}")


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0 when it does not; Stop when that is too long.

    Ours: ten minutes; a server that asks for more is down for today.
    """
    seconds = retry_after_seconds(headers) or 0.0
    if seconds > MAX_WAIT_SECONDS:
        raise Stop(f"the server asks to wait {seconds:,.0f} s; run again then, nothing is lost")
    return seconds


def error_code(reply: Reply) -> str | None:
    """Return the `code` of an error body, None where there is none to be read.

    Ours: the code is the API's; its message may be anything.
    """
    try:
        code = json.loads(reply.body or b"")["error"]["code"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return None
    return code if isinstance(code, str) else None


def read_completion(reply: Reply) -> dict[str, Any]:
    """Return the JSON object in a reply; raises TryAgain when it is none, CallFailed when it is too long.

    Ours: HTML with status 200, cut JSON and bad UTF-8 all come from real servers.
    """
    if reply.body is None:
        raise CallFailed("too_long", "the reply is longer than any answer")
    try:
        completion = json.loads(reply.body)
    except (ValueError, RecursionError):
        completion = None
    if not isinstance(completion, dict):
        raise TryAgain("unreadable", "the server's reply is not a chat completion")
    return completion


def accepted_text(completion: Mapping[str, Any], accept_cut: bool = False) -> str:
    """Return the text of a completion; raises CallFailed or TryAgain naming what is wrong with it.

    Ours: only a whole answer is an answer, unless it is said that a cut one will do (`accept_cut`).
    """
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise TryAgain("unreadable", "the server's reply is not a chat completion")
    if choice.get("finish_reason") not in (("stop", "length") if accept_cut else ("stop",)):
        kind = re.sub(r"[^A-Za-z0-9_]", "?", str(choice.get("finish_reason")))[:40] or "unnamed"
        raise CallFailed(kind, f"answer ended with finish_reason '{kind}'")
    if message.get("refusal"):
        raise CallFailed("refusal", "the model refused")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise TryAgain("empty", "the answer is empty")
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise CallFailed("too_long", f"the answer is longer than {MAX_ANSWER_CHARACTERS:,} characters")
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def token_counts(completion: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the (prompt, completion) tokens a server reported, None for a missing, negative or odd count.

    Ours: what cannot be a count is not one.
    """
    usage = completion.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    return tuple(n if type(n) is int and 0 <= n < 2**53 else None for n in counts)
