"""What a server can send instead of an answer: named replies, and how each of them goes out.

    server.fault = lambda text, nth: FAULTS["http_500"] if nth == 1 else None
    server.fault = lambda text, nth: error(429, headers={"Retry-After": "7"})

They are grouped by what a client should make of them:

    fast      gone at the next try: 5xx, resets, cut bodies, bodies that are no completion
    wait      a 429 that names when to come back
    slow      a call that hangs, or trickles for hours
    stop      no call will succeed: key, quota, model
    reject    this request will not succeed, and is not charged
    unusable  charged, but no answer: refused, filtered, cut at the limit, far too long
    odd       an answer with something strange about it

Absent on purpose: when a fault comes (`rehearsal`) and what the client does about it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Reply:
    """What is sent back; a `body` of None stands for the answer the server would have given.

    Ours: the ways in which servers, proxies and networks fail.
    """

    body: bytes | None = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    trickle_seconds: float = 0.0  # one byte each
    cut: int | None = None  # how many bytes of the body are sent before the connection goes
    reset: bool = False  # TCP reset instead of an orderly end
    silent: bool = False  # nothing at all is sent before the connection goes
    hang: bool = False  # nothing at all, and the connection stays
    swell_bytes: int = 0  # so many "x" are sent in place of SWELL
    retry_date_seconds: float | None = None  # a Retry-After with the date so much later
    charged: bool = True  # whether a real server would charge for this, if its status is 200


SWELL = b"-swell-"
KEY_MARK = b"-key-"  # in the body of a 401, replaced by the key that came


def completion(content: Any = "fine", finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    """Return a chat completion as the API documents it, always of 7 prompt and 5 completion tokens.

    Ours: a fixed usage keeps sums in tests countable by hand.
    """
    return {
        "id": "c-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish_reason,
                     "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }  # fmt: skip


def as_json(value: Any, **fields: Any) -> Reply:
    """Return a reply whose body is a JSON value. Ours: the usual one."""
    return Reply(json.dumps(value).encode(), **fields)


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    """Return an error in the API's form; `fields` are its code, type and param. Ours: the usual ones."""
    return as_json({"error": {"message": message, **fields}}, status=status, headers=headers or {})


def _with(**changed: Any) -> Reply:
    return as_json({**completion(), **changed})


def _with_usage(usage: Any) -> Reply:
    return _with(usage=usage)


_WHOLE = json.dumps(completion()).encode()
_ELSEWHERE = {"Location": "http://127.0.0.1:9/v1/chat/completions"}

FAST_FAULTS: dict[str, Reply] = {
    "http_408": error(408), "http_409": error(409), "http_429": error(429),
    "http_500": error(500), "http_502": error(502), "http_503": error(503), "http_529": error(529),
    "closed": Reply(None, silent=True), "reset_before": Reply(None, silent=True, reset=True),
    "reset_in_body": Reply(None, cut=40, reset=True), "short_body": Reply(None, cut=40),
    "cut_json": Reply(_WHOLE[:60]), "empty_body": Reply(b""), "bad_utf8": Reply(b'{"choices": "\xff\xfe"}'),
    "html": Reply(b"<html><body>Bad gateway</body></html>", headers={"Content-Type": "text/html"}, charged=False),
    "list": as_json([1, 2]), "object": as_json({}), "number": as_json(7), "null": as_json(None),
    "error_in_200": as_json({"error": {"message": "overloaded"}}, charged=False),
    "no_choices": _with(choices=[]), "null_choices": _with(choices=None),
    "choices_object": _with(choices={"0": 1}), "choices_number": _with(choices=5),
    "null_choice": _with(choices=[None]),
    "text_message": _with(choices=[{"finish_reason": "stop", "message": "hello"}]),
    "null_content": as_json(completion(None)), "blank_content": as_json(completion(" \n ")),
    "list_content": as_json(completion(["a"])), "object_content": as_json(completion({"a": 1})),
    "deep": Reply(b"[" * 100_000), "long_number": Reply(b"1" * 100_000),
}  # fmt: skip
WAIT_FAULTS: dict[str, Reply] = {
    "retry_after_seconds": error(429, headers={"Retry-After": "1"}),
    "retry_after_ms": error(429, headers={"retry-after-ms": "700"}),
    "retry_after_date": Reply(error(429).body, 429, retry_date_seconds=2.0),
}
SLOW_FAULTS: dict[str, Reply] = {
    "hang": Reply(None, hang=True), "trickle": Reply(None, trickle_seconds=1.0),
}  # fmt: skip
STOP_FAULTS: dict[str, Reply] = {
    "http_401": error(401, f"Incorrect API key provided: {KEY_MARK.decode()}.", code="invalid_api_key"),
    "http_403": error(403, "Country not supported", code="unsupported_country_region_territory"),
    "http_404": error(404, "The model does not exist", code="model_not_found"),
    "insufficient_quota": error(429, "You exceeded your current quota", code="insufficient_quota"),
}
REJECT_FAULTS: dict[str, Reply] = {
    "http_400": error(400, "Invalid request", type="invalid_request_error"),
    "http_400_context": error(400, "Maximum context length exceeded", code="context_length_exceeded"),
    "redirect": Reply(b"", 307, _ELSEWHERE),  # a client that follows gives the key away
}
UNUSABLE_FAULTS: dict[str, Reply] = {
    "refusal": as_json(completion(None, refusal="I cannot help with that.")),
    "content_filter": as_json(completion("", "content_filter")),
    "length": as_json(completion("half an ans", "length")),
    "huge_body": Reply(json.dumps(completion(SWELL.decode())).encode(), swell_bytes=50_000_000),
}
ODD_FAULTS: dict[str, Reply] = {
    "usage_missing": as_json({k: v for k, v in completion().items() if k != "usage"}),
    "usage_none": _with_usage(None), "usage_text": _with_usage("many"),
    "usage_negative": _with_usage({"prompt_tokens": -7, "completion_tokens": -5, "total_tokens": -12}),
    "wrong_content_type": Reply(None, headers={"Content-Type": "text/plain"}),
    "odd_text": Reply(_WHOLE.replace(b"fine", rb"a\ud800b\u0000c")),  # half a surrogate pair, and NUL
}  # fmt: skip
GROUPS: dict[str, dict[str, Reply]] = {
    "fast": FAST_FAULTS, "wait": WAIT_FAULTS, "slow": SLOW_FAULTS, "stop": STOP_FAULTS,
    "reject": REJECT_FAULTS, "unusable": UNUSABLE_FAULTS, "odd": ODD_FAULTS,
}  # fmt: skip
FAULTS: dict[str, Reply] = {name: reply for group in GROUPS.values() for name, reply in group.items()}


def told_usage(body: bytes | None) -> tuple[int, int] | None:
    """Return the (prompt, completion) tokens that a body tells its reader, None where it tells none.

    Ours: what a client could read is what it was charged; else the charge is the answer it did not get.
    """
    try:
        usage = json.loads(body or b"")["usage"]
        counts = usage["prompt_tokens"], usage["completion_tokens"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return counts if all(type(n) is int and n >= 0 for n in counts) else None


async def send(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Send a reply whose body is bytes, misbehaving as it says; return once it was written out.

    Raises ConnectionError when the client went away first.

    Ours: aiohttp keeps to the rules, so what breaks them is written to the transport.
    """
    body, headers = reply.body or b"", {"Content-Type": "application/json"} | reply.headers
    if reply.status == 401 and KEY_MARK in body:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = body.replace(KEY_MARK, json.dumps(key).strip('"').encode())
    if reply.retry_date_seconds is not None:
        headers["Retry-After"] = formatdate(time.time() + reply.retry_date_seconds, usegmt=True)
    if reply.hang:
        while not _gone(request):
            await asyncio.sleep(0.05)
    if reply.hang or reply.silent or reply.reset or reply.cut is not None:
        return _break_off(request, reply, body, headers)
    if not reply.trickle_seconds and not reply.swell_bytes:
        response = web.Response(body=body, status=reply.status, headers=headers)
        await response.prepare(request)
    else:
        response = await _stream(request, reply, body, headers)
    await response.write_eof()
    return response


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _break_off(request: web.Request, reply: Reply, body: bytes, headers: dict[str, str]) -> web.Response:
    """Write what is to be seen of the reply and let the connection go."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    if not reply.silent and not reply.hang:
        lines = [f"HTTP/1.1 {reply.status} x"]
        lines += [f"{name}: {value}" for name, value in {**headers, "Content-Length": len(body)}.items()]
        transport.write("\r\n".join([*lines, "", ""]).encode() + body[: reply.cut])
    if reply.reset:  # closing with this option set sends RST
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        transport.abort()
    else:
        transport.close()
    return web.Response()  # never sent: aiohttp finds the connection gone


async def _stream(
    request: web.Request, reply: Reply, body: bytes, headers: dict[str, str]
) -> web.StreamResponse:
    """Send a body one byte at a time, or one too large to be kept in memory."""
    response = web.StreamResponse(status=reply.status, headers=headers)
    head, mark, tail = body.partition(SWELL) if reply.swell_bytes else (body, b"", b"")
    response.content_length = len(head) + len(tail) + (reply.swell_bytes if mark else 0)
    await response.prepare(request)
    if reply.trickle_seconds:
        for position in range(len(head)):
            if _gone(request):
                raise ConnectionResetError
            await response.write(head[position : position + 1])
            await asyncio.sleep(reply.trickle_seconds)
        return response
    await response.write(head)
    for start in range(0, reply.swell_bytes if mark else 0, 65_536):
        await response.write(b"x" * min(65_536, reply.swell_bytes - start))
    await response.write(tail)
    return response
