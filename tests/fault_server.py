"""A loopback OpenAI-compatible server that misbehaves on request and writes down what it was asked.

    with FaultServer() as server:
        server.fault = lambda text, nth: FAULTS["http_500"] if nth == 1 else None
        Teacher(store, server.url, "any-model").ask(…)
        server.log        # every request, with when it came and when its answer was sent

`text` is the content of the request's last message, `nth` how often (from 1) that text was asked.
The log, not the client, says what was asked: it is what a real server would bill.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What is sent back. `cut` is how many bytes of the body are sent before the connection goes."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    trickle_seconds: float = 0.0  # one byte each
    cut: int | None = None
    reset: bool = False  # TCP reset instead of an orderly end
    silent: bool = False  # nothing at all is sent before the connection goes


@dataclass
class Asked:
    """One request as the server saw it; `answered` stays None until the reply was written out."""

    text: str
    messages: list[dict[str, str]]
    model: str
    key: str
    headers: dict[str, str]
    began: float
    answered: float | None = None


def answer_to(text: str) -> str:
    """The text the server answers by default: the same for the same question, different for others."""
    return "answer " + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def completion(content: Any = "fine", finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion object as the API documents it."""
    return {
        "id": "c-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish_reason,
                     "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }  # fmt: skip


def as_json(value: Any, **fields: Any) -> Reply:
    """A reply whose body is a JSON value."""
    return Reply(json.dumps(value).encode(), **fields)


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    """An error in the API's form."""
    return as_json({"error": {"message": message, **fields}}, status=status, headers=headers or {})


WHOLE = json.dumps(completion()).encode()
FAULTS: dict[str, Reply] = {
    "http_408": error(408), "http_409": error(409), "http_429": error(429),
    "http_500": error(500), "http_502": error(502), "http_503": error(503), "http_529": error(529),
    "closed": Reply(WHOLE, silent=True), "reset_before": Reply(WHOLE, silent=True, reset=True),
    "reset_in_body": Reply(WHOLE, cut=40, reset=True), "short_body": Reply(WHOLE, cut=40),
    "cut_json": Reply(WHOLE[:60]), "empty_body": Reply(b""), "bad_utf8": Reply(b'{"choices": "\xff\xfe"}'),
    "html": Reply(b"<html><body>Bad gateway</body></html>", headers={"Content-Type": "text/html"}),
    "list": as_json([1, 2]), "object": as_json({}), "number": as_json(7), "null": as_json(None),
    "error_in_200": as_json({"error": {"message": "overloaded"}}),
    "no_choices": as_json({**completion(), "choices": []}),
    "null_choices": as_json({**completion(), "choices": None}),
    "choices_object": as_json({**completion(), "choices": {"0": 1}}),
    "choices_number": as_json({**completion(), "choices": 5}),
    "null_choice": as_json({**completion(), "choices": [None]}),
    "text_message": as_json({**completion(), "choices": [{"finish_reason": "stop", "message": "hello"}]}),
    "null_content": as_json(completion(None)), "blank_content": as_json(completion(" \n ")),
    "list_content": as_json(completion(["a"])), "object_content": as_json(completion({"a": 1})),
    "deep": Reply(b"[" * 100_000), "long_number": Reply(b"1" * 100_000),
}  # fmt: skip


class FaultServer:
    """Listens on 127.0.0.1 from `with` on; answers are `answer_to(text)` unless `fault` says otherwise."""

    def __init__(self) -> None:
        self.log: list[Asked] = []
        self.fault: Callable[[str, int], Reply | None] = lambda text, nth: None
        self.answer: Callable[[str], str] = answer_to
        self.latency_seconds = 0.0
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()

    def __enter__(self) -> FaultServer:
        self._http = _Quiet(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def times(self) -> Counter[str]:
        """How often each text was asked."""
        with self._lock:
            return Counter(asked.text for asked in self.log)

    def wait_for(self, n: int, answered: bool = False) -> None:
        """Return once `n` requests have come (or, with `answered`, been answered); fail after 60 s."""
        for _ in range(6000):
            with self._lock:
                seen = sum(asked.answered is not None for asked in self.log) if answered else len(self.log)
            if seen >= n:
                return
            time.sleep(0.01)
        raise AssertionError(f"the server saw {len(self.log)} requests in 60 s, expected {n}")

    def _enter(self, asked: Asked) -> int:
        with self._lock:
            self.log.append(asked)
            self._seen[asked.text] += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            return self._seen[asked.text]

    def _leave(self) -> None:
        with self._lock:
            self.under_way -= 1


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that were killed or gave up are what these tests are about


def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(
                text=body["messages"][-1]["content"], messages=body["messages"], model=body["model"],
                key=self.headers.get("Authorization", "").removeprefix("Bearer "),
                headers={name.lower(): value for name, value in self.headers.items()}, began=time.monotonic(),
            )  # fmt: skip
            nth = server._enter(asked)
            try:
                reply = server.fault(asked.text, nth)
                if reply is None:
                    reply = as_json(completion(server.answer(asked.text)))
                time.sleep(reply.delay_seconds or server.latency_seconds)
                self._send(reply)
                asked.answered = time.monotonic()
            finally:
                server._leave()

        def _send(self, reply: Reply) -> None:
            if not reply.silent:
                headers = {"Content-Type": "application/json", "Content-Length": str(len(reply.body))}
                lines = [f"HTTP/1.1 {reply.status} x"]
                lines += [f"{name}: {value}" for name, value in (headers | reply.headers).items()]
                head = ("\r\n".join(lines) + "\r\n\r\n").encode()
                if reply.trickle_seconds:
                    self.wfile.write(head)
                    for position in range(len(reply.body)):
                        self.wfile.write(reply.body[position : position + 1])
                        time.sleep(reply.trickle_seconds)
                else:
                    self.wfile.write(head + reply.body[: reply.cut])
            if reply.reset:  # closing with this option set sends RST
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if reply.silent or reply.reset or reply.cut is not None:
                self.close_connection = True
                if not reply.reset:
                    self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
