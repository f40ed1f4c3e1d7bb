"""The one seam to a language model: always `openai.AsyncOpenAI`, recorded or live.

    teacher = Teacher(run.store_path)                                      # the recorded teacher
    teacher = Teacher(run.store_path, "http://127.0.0.1:8000/v1", "my-model")  # any live one
    text = teacher.ask(Request(task="subtopics", inputs={"topic": "Jazz", "n": 36}, messages=[...]))
    done, failed = teacher.map(ask_one, items, "subtopics")

`ask_one(ask, item)` is an async function that awaits `ask(Request(...))` as often as it likes; up
to `concurrency` items are under way at once. Every accepted answer is committed to the run's store
before it is used, so killing and repeating a run asks nothing twice. Seats ("assistant", "user",
"judge") may be different endpoints.

Retries, rate limits, deadlines and the classes of failure live in `_call` and nowhere else: the
SDK's own retries are switched off, since it replays timeouts and exhausted quotas.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import openai
from openai.types.chat import ChatCompletionMessage
from tqdm import tqdm

from ultrachat.errors import Stop
from ultrachat.recorded import HEADER, NOT_RECORDED, RecordedTransport, name_request
from ultrachat.runs import DATA
from ultrachat.store import Row, Store, canonical, key_of, open_store

RECORDED = "recorded"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOW_TO_GO_LIVE = "set base_url and model to a live teacher and OPENAI_API_KEY to its key"
MAX_WAIT_SECONDS = 600.0  # a server that asks for more is down for today
MAX_ANSWER_CHARACTERS = 200_000

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a seat. `task` and `inputs` name it; `messages` and sampling shape the answer.

    `inputs` holds short names and numbers only (ids, not texts). `temperature` and `max_tokens` are
    the teacher's unless given.

    Ours: naming a request apart from its wording keeps recordings valid when prompts are reworded.
    """

    task: str
    inputs: Mapping[str, str | int]
    messages: list[dict[str, str]]
    seat: str = "assistant"
    temperature: float | None = None
    max_tokens: int | None = None


def one_message(text: str) -> list[dict[str, str]]:
    """Return the message list of a prompt that is a single user message.

    Paper: §4.4; the user model too gets everything under the role `user` (thunlp/UltraChat#22).
    """
    return [{"role": "user", "content": text}]


def _is_url(text: str) -> bool:
    """Whether it is an http(s) URL without a password in it (that would be printed)."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https") and re.fullmatch(r"[^\s@]+", parts.netloc) and parts.port != 0
        )
    except ValueError:  # a port that is no number, an unclosed bracket
        return False


@dataclass(frozen=True)
class Endpoint:
    """Where a seat's model is: "recorded" or a base URL, a model name, and the key's variable name.

    Paper: "two separate ChatGPT Turbo APIs" (§1); the key itself is never kept in an object.
    """

    base_url: str = RECORDED
    model: str = RECORDED
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if self.base_url != RECORDED and not _is_url(self.base_url):
            raise Stop(
                f"base_url: expected 'recorded' or an http(s) URL ending in /v1, got {self.base_url!r}"
            )
        if self.base_url != RECORDED and self.model in (RECORDED, ""):
            raise Stop(f"model: expected the name of a model at {self.base_url}, got {self.model!r}")

    @property
    def recorded(self) -> bool:
        """Whether answers come from data/recorded."""
        return self.base_url == RECORDED

    def client(self) -> openai.AsyncOpenAI:
        """Return a new client; it belongs to the running event loop and is closed in it."""
        if self.recorded:
            http = openai.DefaultAsyncHttpxClient(transport=RecordedTransport(DATA / "recorded"))
            return openai.AsyncOpenAI(
                api_key="none", base_url="http://recorded.invalid/v1", http_client=http, max_retries=0
            )
        host = urlsplit(self.base_url).hostname
        key = os.environ.get(self.key_variable)
        if not key and host == "api.openai.com":
            raise Stop(f"{self.key_variable}: not set; export the key of {self.base_url} in the environment")
        if key and not re.fullmatch(r"[!-~]+", key):
            raise Stop(f"{self.key_variable}: holds a space, line break or other character no key has")
        # a proxy variable would otherwise send requests for this very machine through the proxy
        http = openai.DefaultAsyncHttpxClient(trust_env=host not in LOOPBACK)
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.base_url, http_client=http, max_retries=0
        )


class CallFailed(Exception):
    """A question that got no acceptable answer: `kind` counts it, the text says why in one line.

    Ours: a failure is never an answer.
    """

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(line)
        self.kind = kind


class Failure(NamedTuple):
    """An item that was set aside: the item, the kind of failure, and one line of explanation.

    Ours: items = results + failures, always.
    """

    item: Any
    kind: str
    line: str


class _Halted(Exception):
    """Raised by `ask` once the run is stopping: what is under way finishes, nothing new is sent."""


@dataclass
class _Session:
    """What one `map` shares between its workers; gone when it returns."""

    store: Store
    clients: dict[str, openai.AsyncOpenAI]
    not_before: float = 0.0  # monotonic; every worker waits for it after a 429
    failed_in_a_row: int = 0
    stop: Exception | None = None
    asking: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)


@dataclass
class Teacher:
    """Asks questions and keeps the answers; see the module's docstring.

    `concurrency` items are under way at once; one try of a call may take `deadline_seconds`, and
    after `max_tries` tries the item is set aside. `seats` names endpoints that differ from the default.

    Ours: temperature 1.0 is the API's default; the paper names none.
    """

    store_path: Path
    base_url: str = RECORDED
    model: str = RECORDED
    seats: Mapping[str, Endpoint] = field(default_factory=dict)
    temperature: float = 1.0
    max_tokens: int = 2048
    concurrency: int = 16
    deadline_seconds: float = 120.0
    max_tries: int = 6
    max_failed_in_a_row: int = 200

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise Stop(f"concurrency: expected a whole number of at least 1, got {self.concurrency!r}")
        self._endpoint = Endpoint(self.base_url, self.model)
        self._halting = threading.Event()
        self._usage = {"answers": 0, "asked": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def endpoint(self, seat: str) -> Endpoint:
        """Return the endpoint that serves a seat."""
        return self.seats.get(seat, self._endpoint)

    @property
    def recorded(self) -> bool:
        """Whether every seat is served by the recorded teacher."""
        return all(endpoint.recorded for endpoint in (self._endpoint, *self.seats.values()))

    def describe(self) -> str:
        """Return one line: which model sits where."""
        if self.recorded:
            return "recorded teacher (answers shipped in data/recorded; no model is called)"
        seats = {"default": self._endpoint, **self.seats}
        return " · ".join(f"{seat}: {e.model} at {e.base_url}" for seat, e in seats.items())

    def usage(self) -> dict[str, int]:
        """Return counts since this object was made: answers used, of these asked now, and tokens asked now.

        The recorded teacher reports no tokens.
        """
        return dict(self._usage)

    def ask(self, request: Request) -> str:
        """Return the answer to one request; raises Stop when there is none."""

        async def once(ask: Ask, request: Request) -> str:
            return await ask(request)

        done, failed = self.map(once, [request])
        if failed:
            raise Stop(f"task '{request.task}': {failed[0].line}")
        return done[0]

    def map(
        self,
        function: Callable[[Ask, Item], Awaitable[Result]],
        items: Iterable[Item],
        label: str | None = None,
    ) -> tuple[list[Result], list[Failure]]:
        """Return `await function(ask, item)` for every item, in order, and the items that were set aside.

        With a `label` a progress bar is shown. Raises Stop when the run cannot go on (no key, model
        gone, not recorded, server down) and KeyboardInterrupt after Ctrl-C; what was under way is
        finished and kept in both cases.
        """
        items = list(items)
        self._halting.clear()
        finished: dict[str, Any] = {}
        done = threading.Event()

        def in_own_loop() -> None:
            try:
                finished["value"] = asyncio.run(self._map(function, items, label))
            except BaseException as error:
                finished["error"] = error
            done.set()

        # a thread of its own: a notebook's main thread already runs an event loop
        threading.Thread(target=in_own_loop, daemon=True).start()
        interrupted = False
        while not done.is_set():
            try:
                done.wait(60.0)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                self._halting.set()
        if "error" in finished:
            raise finished["error"]
        if interrupted:
            raise KeyboardInterrupt
        return finished["value"]

    async def _map(
        self, function: Callable, items: list[Any], label: str | None
    ) -> tuple[list[Any], list[Failure]]:
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        queue = iter(enumerate(items))
        bar = _progress_bar(len(items), label, live=not self.recorded)
        async with AsyncExitStack() as stack:
            session = _Session(stack.enter_context(open_store(self.store_path)), {})
            for seat in ("", *self.seats):
                client = await stack.enter_async_context(self.endpoint(seat).client())
                session.clients[seat] = client

            async def ask(request: Request) -> str:
                return await self._ask(session, request)

            async def worker() -> None:
                for index, item in queue:
                    try:
                        results[index] = await function(ask, item)
                    except CallFailed as failed:
                        failures[index] = Failure(item, failed.kind, str(failed))
                    except _Halted:
                        pass
                    except Exception as error:  # a Stop, or a mistake in `function`
                        session.stop = session.stop or error
                        self._halting.set()
                    if self._halting.is_set():
                        return
                    bar.update()

            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(items))):
                    group.create_task(worker())
        bar.close()
        if session.stop:
            raise session.stop
        return [results[i] for i in sorted(results)], [failures[i] for i in sorted(failures)]

    async def _ask(self, session: _Session, request: Request) -> str:
        """Answer from the store, or call and commit."""
        endpoint = self.endpoint(request.seat)
        sampling = {
            "temperature": self.temperature if request.temperature is None else request.temperature,
            "max_tokens": request.max_tokens or self.max_tokens,
        }
        key = key_of(
            task=request.task,
            inputs=dict(request.inputs),
            base_url=endpoint.base_url,
            model=endpoint.model,
            messages=request.messages,
            **sampling,
        )
        # two items with one question: the second waits for the first one's answer and shares it
        async with session.asking.setdefault(key, asyncio.Lock()):
            row = session.store.get(key)
            if row is None:
                try:
                    text, usage = await self._call(session, request, endpoint, sampling)
                except CallFailed as failed:
                    session.store.count_failure(request.task, failed.kind)
                    raise
                row = Row(key, request.task, canonical(dict(request.inputs)), endpoint.model, text, *usage)
                session.store.put(row)
                self._usage["asked"] += 1
                self._usage["prompt_tokens"] += row.prompt_tokens or 0
                self._usage["completion_tokens"] += row.completion_tokens or 0
        self._usage["answers"] += 1
        return row.text

    async def _call(
        self, session: _Session, request: Request, endpoint: Endpoint, sampling: dict[str, Any]
    ) -> tuple[str, tuple[int | None, int | None]]:
        """Return (text, token counts) after as many tries as it takes; the only place that retries."""
        client = session.clients[request.seat if request.seat in session.clients else ""]
        # only the recorded teacher needs the name; a stranger's server is not told our inputs
        headers = {HEADER: name_request(request.task, request.inputs)} if endpoint.recorded else None
        failed = CallFailed("untried", "never tried")
        for attempt in range(self.max_tries):
            await self._wait_to_send(session, attempt)
            try:
                async with asyncio.timeout(self.deadline_seconds):
                    completion = await client.chat.completions.create(
                        model=endpoint.model, messages=request.messages, extra_headers=headers, **sampling
                    )
                answer = _accept(completion)
                session.failed_in_a_row = 0
                return answer
            except openai.APIStatusError as error:
                failed = _read_status(error, request, endpoint)
                _hold_everyone_back(session, error)
            except (TimeoutError, openai.APITimeoutError):
                failed = CallFailed("timeout", f"no answer within {self.deadline_seconds:g} s")
            except openai.APIConnectionError:
                failed = CallFailed("connection", f"no connection to {endpoint.base_url}")
            except (ValueError, RecursionError, openai.APIError):  # cut JSON, not UTF-8, nested too deep
                failed = CallFailed("unreadable", "the server's reply is not a chat completion")
            except CallFailed as error:
                if error.kind not in ("unreadable", "empty"):
                    raise  # a refusal or a cut-off answer would only be paid for again
                failed = error
            session.failed_in_a_row += 1
            if session.failed_in_a_row >= self.max_failed_in_a_row:
                raise Stop(
                    f"{session.failed_in_a_row} calls failed in a row, the last: {failed}; run again later"
                )
        raise failed

    async def _wait_to_send(self, session: _Session, attempt: int) -> None:
        """Return when this try may be sent; raise _Halted, without waiting further, once the run is stopping."""
        jitter = random.uniform(0, min(30.0, 0.5 * 2 ** (attempt - 1))) if attempt else 0.0
        not_before = time.monotonic() + jitter
        while not self._halting.is_set():
            # looked at again and again: another worker's 429 may move it while this one sleeps
            left = max(not_before, session.not_before) - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, 0.2))
        raise _Halted


Ask = Callable[[Request], Awaitable[str]]


def _accept(completion: Any) -> tuple[str, tuple[int | None, int | None]]:
    """Return the text and token counts of a completion, or raise CallFailed naming what is wrong with it."""
    choices = getattr(completion, "choices", None)  # the SDK checks nothing: these may be of any type
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if not isinstance(message, ChatCompletionMessage):
        raise CallFailed("unreadable", "the server's reply is not a chat completion")
    if choice.finish_reason != "stop":
        kind = re.sub(r"[^A-Za-z0-9_]", "?", str(choice.finish_reason))[:40]
        raise CallFailed(kind, f"answer ended with finish_reason '{kind}'")
    if getattr(message, "refusal", None):
        raise CallFailed("refusal", "the model refused")
    text = message.content
    if not isinstance(text, str) or not text.strip():
        raise CallFailed("empty", "the answer is empty")
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise CallFailed("too_long", f"the answer is longer than {MAX_ANSWER_CHARACTERS:,} characters")
    text = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return text, tuple(_count(completion, name) for name in ("prompt_tokens", "completion_tokens"))


def _count(completion: Any, name: str) -> int | None:
    """Return a token count the server reported, None for a missing, negative or odd one."""
    value = getattr(getattr(completion, "usage", None), name, None)
    return value if type(value) is int and 0 <= value < 2**53 else None


def _read_status(error: openai.APIStatusError, request: Request, endpoint: Endpoint) -> CallFailed:
    """Return the failure to retry, or raise Stop (nothing will help) or CallFailed (this item will not).

    The words are ours, `from None` at that: a server's own text can echo the key.
    """
    code, status = getattr(error, "code", None), error.status_code
    if code == NOT_RECORDED:
        inputs = canonical(dict(request.inputs))
        raise Stop(
            f"task '{request.task}' with inputs {inputs[:200]} is not recorded; {HOW_TO_GO_LIVE}"
        ) from None
    if status in (401, 403):
        raise Stop(
            f"{endpoint.base_url}: key refused (HTTP {status}); check {endpoint.key_variable}"
        ) from None
    if status == 404:
        raise Stop(f"model: '{endpoint.model}' is not found at {endpoint.base_url} (HTTP 404)") from None
    if code == "insufficient_quota":
        raise Stop(
            f"{endpoint.base_url}: the account's quota is exhausted; run again when it is not"
        ) from None
    if status in (408, 409, 429) or status >= 500:
        return CallFailed(f"http_{status}", f"HTTP {status} from {endpoint.base_url}")
    raise CallFailed(f"http_{status}", f"request rejected with HTTP {status}") from None


def _hold_everyone_back(session: _Session, error: openai.APIStatusError) -> None:
    """After a Retry-After no worker sends before it has passed."""
    seconds = retry_after_seconds(error.response.headers)
    if seconds is None:
        return
    if seconds > MAX_WAIT_SECONDS:
        raise Stop(f"the server asks to wait {seconds:,.0f} s; run again then, nothing is lost") from None
    session.not_before = max(session.not_before, time.monotonic() + seconds)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long a server asks to wait, in seconds, from any form of Retry-After; None without one.

    The forms are `retry-after-ms`, a number of seconds, and an HTTP date, which is held against the
    response's own Date where it has one: our clock may be wrong.

    Ours: the paper does not say how it met rate limits.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return float(headers.get(name, "")) * unit
        except ValueError:
            continue
    try:
        until = parsedate_to_datetime(headers["retry-after"])
        sent = parsedate_to_datetime(headers["date"]) if headers.get("date") else datetime.now(UTC)
        return max(0.0, (until - sent).total_seconds())
    except (KeyError, TypeError, ValueError):  # none, not a date, or only one of the two has a time zone
        return None


def _progress_bar(total: int, label: str | None, live: bool) -> tqdm:
    """A plain-text bar; without clock times for the recorded teacher, so that saved outputs do not differ."""
    clock = " [{elapsed}<{remaining}]" if live else ""
    return tqdm(
        total=total,
        desc=label,
        disable=label is None,
        file=sys.stdout,
        ascii=" #",
        ncols=78,
        mininterval=0.5,
        bar_format="{desc}: {bar} {n_fmt}/{total_fmt}" + clock,
    )
