"""Models on this machine, served as any other model is: OpenAI-compatible chat completions.

    with served({"platolm": Voice(model, tokenizer, USER_FORBIDS)}) as base_url:
        seats = {"user": endpoint(base_url, "platolm", voice)}
        Teacher(run.store_path, seats=seats).map(…)

    python -m ultrachat serve platolm=runs/x/model --forbid-first user          # the same as a command

How a model answers, and that an answer does not depend on what else is asked, is in `voices`; here is what it is
asked with. A request that cannot be answered gets the API's error object, with one message and one code.

Absent on purpose: streaming, several choices, tools, stop strings (each a 400 that says so), keys, several machines.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

from aiohttp import web

from ultrachat.endpoints import Endpoint
from ultrachat.errors import Stop
from ultrachat.records import clean_text, content_id
from ultrachat.user_models import USER_MODELS
from ultrachat.voices import USER_FORBIDS, Asking, Kind, Refused, Voice, Worker

__all__ = ["USER_FORBIDS", "Voice", "add_arguments", "endpoint", "run", "served"]

MAX_BODY_BYTES = 4_000_000
MAX_BATCH = 32
DEFAULT_MAX_TOKENS = 512  # PlatoLM's

Json = Mapping[str, Any]


def endpoint(base_url: str, name: str, voice: Voice) -> Endpoint:
    """Return where a served voice is, under a ledger name that outlives the port and ends with the weights.

    Ours: served again, nothing is asked twice; trained again, everything is asked anew.
    """
    return Endpoint(base_url, name, ledger_name=f"served {voice.digest}")


# ---- what is asked ----------------------------------------------------------------------------


_OFF: dict[str, Any] = {  # what this server does not do, and the value that does not ask for it
    "n": 1, "stream": False, "tools": [], "functions": [], "stop": [], "logprobs": False, "logit_bias": {},
    "presence_penalty": 0, "frequency_penalty": 0, "response_format": {"type": "text"},
}  # fmt: skip


def _number(body: Json, name: str, default: float, kind: type, low: float, high: float, expected: str) -> Any:
    """Return a number of the body, `default` where it has none, or refuse the request."""
    value = body.get(name)
    value = default if value is None else value
    if type(value) not in {int, kind} or not low <= value <= high:
        said = f"{name}: expected {expected}, got {str(value)[:40]!r}"
        raise Refused(400, said, "invalid_value", name)
    return value


def _read_messages(body: Json) -> list[tuple[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise Refused(400, "messages: expected a list", "invalid_value", "messages")
    for i, message in enumerate(messages):
        texts = isinstance(message, dict) and {type(message.get(key)) for key in ("role", "content")}
        if texts != {str} or message["role"] not in ("system", "user", "assistant"):
            expected = "expected a role (system, user or assistant) and a content, which is text"
            raise Refused(400, f"messages[{i}]: {expected}", "invalid_value", f"messages[{i}]")
    return [(message["role"], clean_text(message["content"])) for message in messages]


def _read(body: Any, voices: Mapping[str, Voice]) -> Asking:
    """Return what a request's body asks for, or refuse it."""
    if not isinstance(body, dict):
        raise Refused(400, "the body: expected a JSON object", "invalid_json")
    name = body.get("model")
    if not isinstance(name, str) or name not in voices:
        raise Refused(404, f"model: expected one of {', '.join(voices)}", "model_not_found", "model")
    for off, value in _OFF.items():
        if body.get(off) not in (None, value):
            raise Refused(400, f"{off}: this server does not offer it", "unsupported_parameter", off)
    messages = _read_messages(body)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    kind = Kind(
        voice=voices[name],
        temperature=_number(body, "temperature", 1.0, float, 0, 100, "a number from 0 to 100"),
        top_p=_number(body, "top_p", 1.0, float, 1e-9, 1, "a number above 0 and up to 1"),
        max_tokens=_number(body, limit, DEFAULT_MAX_TOKENS, int, 1, inf, "a whole number of at least 1"),
        by_user=not messages or messages[-1][0] != "user",
    )
    return Asking(kind, messages, _number(body, "seed", 0, int, -inf, inf, "a whole number"))


# ---- HTTP -------------------------------------------------------------------------------------


def _app(voices: Mapping[str, Voice], worker: Worker) -> web.Application:
    async def complete(request: web.Request) -> Json:
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError):
            raise Refused(400, "the body: expected JSON", "invalid_json") from None
        asking = _read(body, voices)
        worker.put(asking)
        answer = await asyncio.wrap_future(asking.done)
        usage = {"prompt_tokens": len(asking.ids), "completion_tokens": answer.n_tokens}
        message = {"role": "assistant", "content": answer.text}  # the API's name for whoever answers
        finish_reason = "length" if answer.cut else "stop"
        return {
            "id": f"chatcmpl-{content_id(answer.text)}", "object": "chat.completion", "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }  # fmt: skip

    async def models(request: web.Request) -> Json:
        one = {"object": "model", "created": 1, "owned_by": "ultrachat"}
        return {"object": "list", "data": [{"id": name, **one} for name in voices]}

    async def health(request: web.Request) -> Json:
        return {"status": "ok"}

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_as_json])
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    return app


@web.middleware
async def _as_json(request: web.Request, handler: Callable[[web.Request], Awaitable[Json]]) -> web.Response:
    """Send what a handler returns, and whatever it raises as the API's error object."""
    try:
        return web.json_response(await handler(request))
    except Refused as refused:
        problem = refused
    except web.HTTPException as error:  # no such path, a body that is too large
        problem = Refused(error.status, error.reason, error.reason.lower().replace(" ", "_"))
    except Exception as error:
        logging.getLogger(__name__).exception("a request failed")
        problem = Refused(500, f"the server failed ({type(error).__name__})", "server_error")
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    value = {"message": str(problem), "type": kind, "param": problem.param, "code": problem.code}
    return web.json_response({"error": value}, status=problem.status)


@contextmanager
def served(
    voices: Mapping[str, Voice], host: str = "127.0.0.1", port: int = 0, max_batch: int = MAX_BATCH
) -> Iterator[str]:
    """Serve voices under their names for the length of a `with` block, which is given the base URL.

    `port` 0 takes any that is free; at most `max_batch` requests are generated together. At the end the batch under way
    is finished and other requests are dropped. Raises Stop when the port is taken or there is nothing to serve.

    Ours: a trained user model takes its seat as any other model does.
    """
    if not voices or not all(voices):
        raise Stop("voices: expected at least one, each with a name")
    if type(max_batch) is not int or max_batch < 1:
        raise Stop(f"max_batch: expected a whole number of at least 1, got {max_batch!r}")
    worker, loop = Worker(max_batch), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="serving", daemon=True)
    thread.start()

    def finished(work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    runner = web.AppRunner(
        _app(voices, worker), access_log=None, shutdown_timeout=0.1, handler_cancellation=True
    )
    try:
        yield f"http://{host}:{finished(_listen(runner, host, port))}/v1"
    finally:
        finished(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        worker.close()


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    """Return the port that is listened to."""
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except (OSError, OverflowError) as problem:  # it is taken, or none; the host is not ours
        raise Stop(f"--port: cannot listen on {host}:{port} ({problem})") from None
    return runner.addresses[0][1]


# ---- the command line -------------------------------------------------------------------------


def add_arguments(parser: ArgumentParser) -> None:
    """Give a parser the models and the options of `serve`. Ours: all but the models have defaults."""
    parser.add_argument(
        "models", nargs="+", metavar="NAME=FOLDER_OR_HUB_ID", help="what to serve, and as what"
    )
    parser.add_argument("--template", choices=("own", "ultrallama", *USER_MODELS), default="own",
                        help="how a dialogue is written (default: by the tokenizer's own chat template)")  # fmt: skip
    parser.add_argument(
        "--forbid-first", choices=("user",), help="keep user turns from beginning as assistants do"
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=int, default=8124, help="default: 8124")
    parser.add_argument(
        "--max-batch", type=int, default=MAX_BATCH, help=f"generated together (default: {MAX_BATCH})"
    )
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, … (default: that of the weights)")
    parser.add_argument("--load-in-4bit", action="store_true")


def run(chosen: Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises Stop when a model cannot be loaded or the port is taken.

    Ours: it prints where it is and how to point the pipeline at it.
    """
    for signum in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell's background jobs do not hear Ctrl-C by themselves
        signal.signal(signum, signal.default_int_handler)
    names = [text.partition("=")[0] for text in chosen.models]
    if len(set(names)) < len(names):
        raise Stop(f"serve {' '.join(chosen.models)}: one name stands twice, expected different ones")
    voices = dict(_loaded(text, chosen) for text in chosen.models)
    with served(voices, chosen.host, chosen.port, chosen.max_batch) as base_url:
        print(f"serving {', '.join(voices)} at {base_url}; Ctrl-C ends it", flush=True)
        name = next(iter(voices))
        print(f"point a notebook at it:  --set base_url={base_url} --set model={name}")
        print(f"as notebook 08's user:   --set 'usergpt=[\"{base_url}\", {name}]'", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        print("\nending; what was asked is dropped, once the batch under way is done", flush=True)


def _loaded(text: str, chosen: Namespace) -> tuple[str, Voice]:
    from ultrachat.chatmodels import load

    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise Stop(f"serve {text}: expected NAME=FOLDER_OR_HUB_ID, such as usergpt=runs/platolm-7b/model")
    model, tokenizer = load(place, chosen.dtype, chosen.load_in_4bit)
    forbid_first = USER_FORBIDS if chosen.forbid_first else ()
    return name, Voice(
        model, tokenizer, forbid_first, "template" if chosen.template == "own" else chosen.template
    )
