"""Where a model is, and one POST to it: the wire, without any judgement of what comes back.

    connection = Endpoint("http://127.0.0.1:8000/v1", "my-model").connection()
    reply = await connection.post(body)          # Reply(status, headers, bytes)

A model named "recorded" is told each request's task and inputs in the body's `metadata`: that is
what it answers from. With base URL "recorded" it is read from data/recorded without any network;
behind any other URL it is `python -m ultrachat rehearse`. No other server is told our inputs.

Chat completions go over aiohttp and not through the openai SDK: walking and validating every message
costs the SDK several times the CPU of the call itself (benchmarks/README.md), and what it validates
is not what goes wrong. Batches, where speed is no matter, use the SDK (`batches`).

Absent on purpose: retries, deadlines, meaning (`calls`).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from ultrachat.errors import Stop
from ultrachat.recorded import RECORDED, RecordedConnection, Reply
from ultrachat.runs import DATA

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY_BYTES = 4_000_000  # far more than any answer; what is longer is not read to its end
KEEP_ALIVE_SECONDS = 4.0  # shorter than most servers': one that closes first would cost a paid try


class Connection(Protocol):
    """A way to one endpoint; it belongs to the running event loop and is closed in it.

    Ours: the recorded teacher is only another connection under the same caller.
    """

    async def post(self, body: dict[str, Any]) -> Reply:
        """Return the reply to a chat completion request; raises ConnectionError when there is none."""

    async def close(self) -> None:
        """Let go of every socket."""


class HttpConnection:
    """Sends requests (chat completions unless `path` is another) to a server, keeping sockets open in between.

    Ours: aiohttp; proxies of the environment are used except for this very machine.
    """

    def __init__(self, endpoint: Endpoint, path: str = "/chat/completions") -> None:
        self._url = endpoint.base_url + path
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None),  # `calls` holds the deadline
            headers={"Authorization": f"Bearer {endpoint.key()}", "Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(endpoint),  # and no ~/.netrc, whose passwords would go where the key does
        )

    async def post(self, body: dict[str, Any]) -> Reply:
        """Return the server's reply; raises ConnectionError, with nothing of the server's in it."""
        data = json.dumps(body, ensure_ascii=False).encode()
        try:
            # a redirected POST would arrive as a GET
            async with self._session.post(self._url, data=data, allow_redirects=False) as response:
                read = bytearray()
                async for chunk in response.content.iter_any():
                    read += chunk
                    if len(read) > MAX_BODY_BYTES:
                        return Reply(response.status, response.headers, None)
                return Reply(response.status, response.headers, bytes(read))
        except aiohttp.ClientConnectorError as error:  # nothing was sent: nobody can charge for it
            raise ConnectionRefusedError(type(error).__name__) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a header nobody can read
            raise ConnectionError(type(error).__name__) from None

    async def close(self) -> None:
        """Let go of every socket."""
        await self._session.close()


def _proxy(endpoint: Endpoint) -> str | None:
    """Return the environment's proxy for an endpoint, None for this very machine and where it says so."""
    if endpoint.host in LOOPBACK or proxy_bypass(endpoint.host):
        return None
    return getproxies().get(urlsplit(endpoint.base_url).scheme)


def _is_url(text: Any) -> bool:
    """Whether it is an http(s) URL without a password in it (that would be printed)."""
    if not isinstance(text, str) or "?" in text or "#" in text:
        return False
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(re.fullmatch(r"[^\s@]+", parts.netloc))
            and parts.port != 0
        )
    except ValueError:  # a port that is no number, an unclosed bracket
        return False


@dataclass(frozen=True)
class Endpoint:
    """Where a seat's model is: "recorded" or a base URL, a model name, and the key's variable name.

    A `ledger_name` stands for the base URL in the ledger's keys: a model of one's own is at another port every time
    it is served, and another model under the same name once it was trained again (`serving.endpoint`).

    Paper: "two separate ChatGPT Turbo APIs" (§1); the key itself is never kept in an object of ours.
    """

    base_url: str = RECORDED
    model: str = RECORDED
    key_variable: str = "OPENAI_API_KEY"
    ledger_name: str = ""

    def __post_init__(self) -> None:
        if isinstance(
            self.base_url, str
        ):  # with and without the slash it is one place, and one key of the ledger
            object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        if self.base_url != RECORDED and not _is_url(self.base_url):
            # one with a password in it is not repeated
            got = "one with a user or password" if "@" in str(self.base_url) else repr(self.base_url)
            raise Stop(f"base_url: expected 'recorded' or an http(s) URL ending in /v1, got {got}")
        if not self.model or (self.model == RECORDED and not self.recorded and self.host not in LOOPBACK):
            raise Stop(f"model: expected the name of a model at {self.base_url}, got {self.model!r}")

    @property
    def recorded(self) -> bool:
        """Whether answers come from data/recorded without a server."""
        return self.base_url == RECORDED

    @property
    def place(self) -> str:
        """What tells this place from others, for people and the ledger: the ledger name, or else the base URL."""
        return self.ledger_name or self.base_url

    @property
    def wants_names(self) -> bool:
        """Whether requests say their task and inputs: the recorded teacher's key, and nobody else's business."""
        return self.recorded or self.model == RECORDED

    @property
    def host(self) -> str:
        """The host of the base URL."""
        return urlsplit(self.base_url).hostname or ""

    def key(self) -> str:
        """Return the key from the environment, "none" where a server on one's own needs none.

        Raises Stop naming the variable when it is missing or cannot be a key.
        """
        key = os.environ.get(self.key_variable)
        if not key and self.host == "api.openai.com":
            raise Stop(f"{self.key_variable}: not set; export the key of {self.base_url} in the environment")
        if key and not re.fullmatch(r"[!-~]+", key):
            raise Stop(f"{self.key_variable}: holds a space, line break or other character no key has")
        return key or "none"

    def connection(self) -> Connection:
        """Return a new connection; it belongs to the running event loop and is closed in it."""
        return RecordedConnection(DATA / "recorded") if self.recorded else HttpConnection(self)
