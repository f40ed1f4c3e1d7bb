"""The rehearsal server: what it listens to, which request meets which fault, and its command line.

    with RehearsalServer(Settings(fault_fraction=0.3)) as server:
        Teacher(store, server.url, "any-model").ask(…)
        server.log        # every request: what a real server would bill

Chat completions (plain and streamed), embeddings, models, files and batches, under /v1. What it
answers is in `answers`, files and batches in `batches`, faults in `faults`.
Which request meets which fault is drawn from the seed, the request's hash and how often it came. The
log, not the client, says what was asked; its file holds neither keys nor texts.

Absent on purpose: accounts, prices (sums over the log are the caller's), state that outlives it.
"""

from __future__ import annotations

import asyncio
import json
import math
import signal
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web

from ultrachat.errors import Stop
from ultrachat.recorded import load_pack
from ultrachat.rehearsal import answers
from ultrachat.rehearsal.batches import Desk
from ultrachat.rehearsal.faults import FAULTS, GROUPS, Reply, as_json, completion, error, send, told_usage
from ultrachat.rehearsal.limits import Limits
from ultrachat.rehearsal.log import Asked, Log, draw
from ultrachat.runs import DATA

MAX_UPLOAD_BYTES = 200 * 2**20  # OpenAI's limit for a batch's input
CHAT, EMBEDDINGS = GENERATING = "/v1/chat/completions", "/v1/embeddings"
AT_ONCE = ("refused", "rate_limited")  # outcomes that take no time


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """How the server behaves. Raises Stop naming the setting that makes no sense.

    Ours: the defaults are a server that is fast, unlimited and without fault.
    """

    latency_seconds: float = _setting(0.0, "how long an answer takes")
    latency_spread: float = _setting(0.0, "its lognormal spread: 0.5 makes two in three ×0.6 to ×1.6")
    requests_per_minute: int | None = _setting(None, "rate limit for each model (default: none)")
    tokens_per_minute: int | None = _setting(None, "rate limit: prompt plus max_tokens (default: none)")
    fault_fraction: float = _setting(0.0, "how many requests meet a fault, 0 to 1")
    fault_kinds: tuple[str, ...] = _setting(("fast",), f"which: {', '.join(GROUPS)}, or names; with commas")
    batch_seconds: float = _setting(10.0, "how long a batch takes")
    batch_row_fault_fraction: float = _setting(0.0, "how many rows of a batch fail")
    batch_expired_fraction: float = _setting(0.0, "how many rows are not done when the batch expires")
    max_batch_rows: int = _setting(50_000, "the most rows a batch may have (OpenAI: 50,000)")
    seed: int = _setting(0, "another one draws other faults")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_fraction") and not 0 <= value <= 1:
                raise Stop(f"{name}: expected a number from 0 to 1, got {value!r}")
            if name.endswith(("_seconds", "_spread")) and not 0 <= value < math.inf:
                raise Stop(f"{name}: expected a number of 0 or more, got {value!r}")
            if name.endswith(("_minute", "_rows")) and value is not None and value < 1:
                raise Stop(f"{name}: expected an integer above 0, got {value!r}")
        for kind in self.fault_kinds or ("",):
            if kind not in GROUPS and kind not in FAULTS:
                raise Stop(f"fault_kinds: expected names among {', '.join((*GROUPS, *FAULTS))}, got {kind!r}")

    @property
    def fault_names(self) -> tuple[str, ...]:
        """The faults that may be drawn, the groups among them spelled out."""
        return tuple(name for kind in self.fault_kinds for name in GROUPS.get(kind, (kind,)))


Endpoint = Callable[[web.Request, dict[str, Any], Asked], Awaitable[Reply]]


class RehearsalServer:
    """Listens from `with` on, in a thread and event loop of its own; port 0 takes any that is free.

    `fault(text, nth)` may name a reply to the request with this last message, asked for the nth time.
    `answer(text)`, when set, makes the text of every answer, with the usage of `faults.completion`.
    These two and `latency_seconds` may be changed while it runs.

    Ours: tests, benchmarks and rehearsals use one server.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        log_path: Path | None = None,
        keep_messages: bool = True,
    ) -> None:
        self.settings = settings or Settings()
        self.host, self.port, self.keep_messages = host, port, keep_messages
        self._log = Log(log_path, keep_messages)
        self.log: list[Asked] = self._log.entries
        self.fault: Callable[[str, int], Reply | None] = lambda text, nth: None
        self.answer: Callable[[str], str] | None = None
        self.latency_seconds = self.settings.latency_seconds
        self.under_way = self.most_under_way = 0
        self._pack = load_pack(DATA / "recorded")
        self._seen_texts: Counter[str] = Counter()
        self._fault_names = self.settings.fault_names
        # files and batches meet those that are not about completions
        about_any = {n for n, reply in FAULTS.items() if reply.body is None or reply.status != 200}
        self._plain_fault_names = [name for name in self._fault_names if name in about_any]
        self._limits = Limits(self.settings.requests_per_minute, self.settings.tokens_per_minute)
        self._desk = Desk(self)

    # ---- starting, looking on, stopping -------------------------------------------------------

    def __enter__(self) -> RehearsalServer:
        self._log.open()
        started = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        if self._problem:
            raise Stop(f"--port: cannot listen on {self.host}:{self.port} ({self._problem})") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        self._log.close()

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://{self.host}:{self.port}/v1"

    def times(self) -> Counter[str]:
        """Return how often each text was asked; needs `keep_messages`. Ours: what was paid twice shows."""
        return Counter(asked.text for asked in list(self.log))

    def wait_for(self, n: int, answered: bool = False) -> None:
        """Return once `n` requests have come (or, with `answered`, been answered); fail after 60 s.

        Ours: tests wait for what happens, not for a time.
        """
        for _ in range(6000):
            log = list(self.log)
            if (sum(asked.answered is not None for asked in log) if answered else len(log)) >= n:
                return
            time.sleep(0.01)
        raise AssertionError(f"the server saw {len(self.log)} requests in 60 s, expected {n}")

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._listen(started))
        except (OSError, OverflowError) as problem:  # the port is taken, or none; the host is not ours
            self._problem = problem
        finally:
            started.set()

    async def _listen(self, started: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=MAX_UPLOAD_BYTES)
        for method, path, endpoint in (
            ("POST", CHAT, self._generate),
            ("POST", EMBEDDINGS, self._generate),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{id:.+}", self._models),
            *self._desk.endpoints(),
            ("*", "/{rest:.*}", self._other),
        ):
            app.router.add_route(method, path, self._handler(endpoint))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, self.host, self.port, backlog=1024).start()
        self.port = runner.addresses[0][1]
        started.set()
        await self._stopping.wait()
        self._desk.close()
        await runner.cleanup()

    # ---- one request --------------------------------------------------------------------------

    def _handler(self, endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            asked = Asked(request.path, f"{request.method} {request.path}")
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                reply = await self._reply(endpoint, request, asked)
                delay_seconds = self._delay_seconds(reply, asked)
                if delay_seconds:
                    await asyncio.sleep(delay_seconds)
                response = await send(request, reply)
                asked.answered = time.monotonic()
                return response
            except ConnectionError:  # clients that were killed or gave up are what this server is for
                return web.Response()
            finally:
                self.under_way -= 1
                self._log.finish(asked)

        return handle

    async def _reply(self, endpoint: Endpoint, request: web.Request, asked: Asked) -> Reply:
        """Return what is to be sent, and note in the entry what was decided."""
        headers: dict[str, str] = {}
        try:
            # an uploaded file is read by its endpoint
            raw = b"" if request.content_type.startswith("multipart/") else await request.read()
            generates = endpoint == self._generate
            body = self._enter(request, raw, asked, generates)
            if generates:
                limit_tokens = answers.max_tokens_of(body) or 0
                headers = self._limits.admit(asked.model, asked.prompt_tokens + limit_tokens)
            name, fault = self._fault(asked)
            if fault and (fault.status != 200 or not fault.charged):
                reply = fault
            else:
                reply = await endpoint(request, body, asked)
                reply = _spoil(reply, fault, asked) if fault else reply
            asked.outcome = name
        except answers.Refused as refused:
            reply = refused.reply
            asked.outcome = "rate_limited" if reply.status == 429 else "refused"
        except web.HTTPException as problem:  # aiohttp's own: the body is too large
            reply = error(problem.status, problem.reason)
        asked.status = reply.status
        return replace(reply, headers=headers | reply.headers) if headers else reply

    def _enter(self, request: web.Request, raw: bytes, asked: Asked, generates: bool) -> dict[str, Any]:
        """Put the request on the log, wrong as it may be, and return its body."""
        if self.keep_messages:
            asked.headers = {name.lower(): value for name, value in request.headers.items()}
            asked.key = asked.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            body = answers.read_body(raw)
            if generates:
                self.describe(asked, body)
            return body
        finally:
            self._log.add(asked, raw or asked.text.encode())

    def describe(self, asked: Asked, body: Mapping[str, Any]) -> None:
        """Fill in what a body that asks for generation says; refuse it when it says too little.

        Ours: HTTP requests and rows of batches alike.
        """
        asked.model = answers.model_of(body)
        texts = answers.inputs_of(body) if asked.path == EMBEDDINGS else answers.texts_of(body)
        asked.text, asked.prompt_tokens = texts[-1], answers.n_tokens("".join(texts))
        if self.keep_messages and asked.path == CHAT:
            asked.messages = body["messages"]

    def _fault(self, asked: Asked) -> tuple[str, Reply | None]:
        """Return the outcome and, where that is a fault, its reply."""
        nth = asked.nth
        if self.keep_messages:  # the same text may have come in another body
            self._seen_texts[asked.text] += 1
            nth = self._seen_texts[asked.text]
        reply = self.fault(asked.text, nth)
        if reply is not None:
            return next((name for name, known in FAULTS.items() if known is reply), "fault"), reply
        names = self._fault_names if asked.path in GENERATING else self._plain_fault_names
        if names and draw(self.settings.seed, "fault", asked) < self.settings.fault_fraction:
            name = names[int(draw(self.settings.seed, "kind", asked) * len(names))]
            return name, FAULTS[name]
        return "answered", None

    def _delay_seconds(self, reply: Reply, asked: Asked) -> float:
        if reply.delay_seconds or asked.path not in GENERATING or asked.outcome in AT_ONCE:
            return reply.delay_seconds
        if not self.settings.latency_spread:
            return self.latency_seconds
        gauss = Random(draw(self.settings.seed, "latency", asked)).gauss(0.0, self.settings.latency_spread)
        return self.latency_seconds * math.exp(gauss)

    # ---- endpoints ----------------------------------------------------------------------------

    def generate(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response object for a request to CHAT or EMBEDDINGS, or refuse it.

        Ours: HTTP requests and rows of batches alike.
        """
        if path == EMBEDDINGS:
            return answers.embed(body)
        if self.answer:
            return completion(self.answer(answers.texts_of(body)[-1]))
        return answers.complete(body, self._pack)

    def answer_row(self, url: str, body: dict[str, Any], batch: str) -> tuple[Asked, dict[str, Any]]:
        """Return the entry and the response object (or error) of one row of a batch, faults drawn.

        The entry has the status, and as outcome "answered", "refused", "row_fault" or "batch_expired".

        Ours: a row is billed like a request, at half the price.
        """
        asked, settings = Asked(url, "", batch=batch), self.settings
        self._log.add(asked, json.dumps(body).encode())
        try:
            self.describe(asked, body)
            if draw(settings.seed, "expired", asked) < settings.batch_expired_fraction:
                asked.outcome, value = "batch_expired", {}
            elif draw(settings.seed, "row", asked) < settings.batch_row_fault_fraction:
                asked.outcome, asked.status = "row_fault", 500
                value = {"error": {"message": "The server had an error.", "type": "server_error"}}
            else:
                value = self.generate(url, body)
                asked.bill(value)
                asked.outcome, asked.status = "answered", 200
        except answers.Refused as refused:
            asked.status, value = refused.reply.status, json.loads(refused.reply.body or b"{}")
        asked.answered = time.monotonic()
        self._log.finish(asked)
        return asked, value

    async def _generate(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        value = self.generate(asked.path, body)
        asked.bill(value)
        if not body.get("stream"):
            return as_json(value)
        options = body.get("stream_options") or {}
        events = answers.as_events(value, bool(isinstance(options, dict) and options.get("include_usage")))
        return Reply(events, headers={"Content-Type": "text/event-stream"})

    async def _models(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        one = request.match_info.get("id")
        names = [one] if one else ["recorded", "filler"]
        models = [{"id": n, "object": "model", "created": 1, "owned_by": "ultrachat"} for n in names]
        return as_json(models[0] if one else {"object": "list", "data": models})

    async def _other(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        if request.path == "/health":
            return as_json({"status": "ok"})
        answers.refuse(f"Unknown request URL: {request.method} {request.path}.", None, "unknown_url", 404)


def _spoil(reply: Reply, fault: Reply, asked: Asked) -> Reply:
    """Return the fault that comes instead of a reply that was generated, which stays charged."""
    if fault.body is None:
        return replace(fault, body=reply.body, headers=reply.headers | fault.headers)
    told = told_usage(fault.body)
    if told and asked.billed:
        asked.prompt_tokens, asked.completion_tokens = told
    return fault


# ---- the command line -------------------------------------------------------------------------


def add_arguments(parser: ArgumentParser) -> None:
    """Give a parser one option for each setting, and --host, --port and --log. Ours: all have defaults."""
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", default="8123", help="default: 8123")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append a line for each request here")
    for setting in fields(Settings):
        option = "--" + setting.name.replace("_", "-")
        parser.add_argument(option, metavar="VALUE", help=setting.metadata["help"])


def settings_from(chosen: Namespace) -> Settings:
    """Return the settings that were chosen; raises Stop naming the option that makes no sense.

    Ours: an option left out has its default.
    """
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        text = getattr(chosen, setting.name)
        if text is not None and setting.name == "fault_kinds":
            values[setting.name] = tuple(text.split(","))
        elif text is not None:
            values[setting.name] = _number(setting.name, text, "int" if "int" in setting.type else "float")
    try:
        return Settings(**values)
    except Stop as stop:
        name, colon, rest = str(stop).partition(":")
        raise Stop(f"--{name.replace('_', '-')}{colon}{rest}") from None


def _number(name: str, text: str, kind: str) -> Any:
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        expected = "an integer" if kind == "int" else "a number"
        raise Stop(f"--{name.replace('_', '-')}: expected {expected}, got {text!r}") from None


def serve(settings: Settings, host: str, port: str, log_path: Path | None) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises Stop when the port is taken or the log cannot be written.

    Ours: it prints where it is, how to point the pipeline at it and, at the end, what it billed.
    """
    number = _number("port", port, "int")
    for signum in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell's background jobs do not hear Ctrl-C by themselves
        signal.signal(signum, signal.default_int_handler)
    with RehearsalServer(settings, host, number, log_path, keep_messages=False) as server:
        print(f"rehearsal server at {server.url}; Ctrl-C ends it", flush=True)
        print(
            "point the pipeline at it:  python -m ultrachat run configs/pilot.yaml "
            f"--set base_url={server.url} --set model=filler",
            flush=True,
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            billed = [asked for asked in server.log if asked.billed]
            n_tokens = sum(asked.prompt_tokens + asked.completion_tokens for asked in billed)
            print(f"\n{len(server.log):,} requests, {len(billed):,} billed, {n_tokens:,} tokens")
