"""Vectors from an OpenAI-compatible server, asked for by the same caller as every chat answer.

    POST {base_url}/embeddings {"model": "text-embedding-3-small", "input": ["a text", "another"]}
    {"data": [{"index": 0, "embedding": [0.1, …]}, …], "usage": {"prompt_tokens": 3}}

`calls` knows what to retry, when to stop and how to keep under a budget, for chat completions. So an
embeddings request is put to it as one: the messages are the texts, and the answer is the name under
which `_AsChat` has put the vectors by. What is not a finite vector for each text is no answer.

Absent on purpose: what is kept, and where (`embeddings`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np

from ultrachat.calls import Caller, CallFailed, Halted, Patience, Request, TryAgain
from ultrachat.endpoints import LOOPBACK, Endpoint, HttpConnection
from ultrachat.errors import Stop
from ultrachat.interrupts import run_interruptibly
from ultrachat.money import BYTES_PER_TOKEN, Budget, read_prices
from ultrachat.pacing import Pace
from ultrachat.recorded import Reply, completion
from ultrachat.store import Store

AT_ONCE = 8  # requests under way
Keep = Callable[[Sequence[str], np.ndarray, float | None], None]


def read_vectors(body: bytes, n: int) -> tuple[np.ndarray, int | None]:
    """Return the (n, d) float32 array in an embeddings reply and the tokens it says it read (None: does not say).

    Numbers may come as a list or in base64. Raises TryAgain unless there are n finite vectors of one length.

    Ours: servers that run out of numbers send NaN, or null, with status 200.
    """
    try:
        reply = json.loads(body)
        rows = {row["index"]: _numbers(row["embedding"]) for row in reply["data"]}
        vectors = np.array([rows[i] for i in range(n)])
        if len(reply["data"]) != n or vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fi":
            raise ValueError
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        raise TryAgain(
            "unreadable", f"the server's reply does not hold {n} finite vectors of one length"
        ) from None
    usage = reply.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return vectors, tokens


def _numbers(value: Any) -> Any:
    return np.frombuffer(base64.b64decode(value, validate=True), "<f4") if isinstance(value, str) else value


class _AsChat:
    """A connection to an embeddings endpoint in the form of one to chat completions; see the module's lines."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._http = HttpConnection(endpoint, "/embeddings")
        self._names = map(str, count())
        self.vectors: dict[str, np.ndarray] = {}

    async def post(self, body: dict[str, Any]) -> Reply:
        texts = [message["content"] for message in body["messages"]]
        reply = await self._http.post({"model": body["model"], "input": texts})
        if reply.status != 200 or reply.body is None:
            return reply
        vectors, tokens = read_vectors(reply.body, len(texts))
        name = next(self._names)
        self.vectors[name] = vectors
        answer = completion(body["model"], name)
        answer["usage"] = {"prompt_tokens": tokens, "completion_tokens": 0}
        return Reply(200, reply.headers, json.dumps(answer).encode())

    async def close(self) -> None:
        await self._http.close()


class Remote:
    """An embeddings endpoint while its ledger is open; see `embeddings.Source`.

    Raises Stop for a budget without the model's price.

    Ours: the paper's embedding came from OpenAI's API.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        prices: Mapping[str, Sequence[float]],
        budget_usd: float | None,
    ) -> None:
        if endpoint.recorded:
            raise Stop("base_url: no embeddings are recorded; give that of a server")
        if budget_usd is not None and not (
            type(budget_usd) in (int, float) and 0 <= budget_usd < float("inf")
        ):
            raise Stop(f"budget_usd: expected a number of at least 0, got {budget_usd!r}")
        self.endpoint = endpoint
        self.label = f"{endpoint.model} at {endpoint.host}"
        self.identity = {"base_url": endpoint.base_url, "model": endpoint.model}
        self.d = 0
        paid = [] if endpoint.host in LOOPBACK else [endpoint.model]
        self._budget = Budget(store, read_prices(prices), budget_usd, paid)
        self._pace = Pace()
        self._patience = Patience()
        self._halting = threading.Event()

    def close(self) -> None:
        """Commit that nothing is under way any more."""
        self._budget.close()

    def get(self, batches: list[list[str]], keep: Keep) -> None:
        """Hand each batch with its vectors to `keep`, and what was spent by then, as they arrive.

        Prints what is expected, and how many texts the server would not embed. Raises Stop before the
        first request when the budget cannot be enough, and where `calls` stops.
        """
        self._forecast(batches)
        failed: list[tuple[str, CallFailed]] = []
        run_interruptibly(self._get(batches, keep, failed), self._halting)
        if later := [failure for _, failure in failed if _may_pass(failure)]:
            raise Stop(
                f"{len(later):,} texts got no vector, the last: {later[-1]}; run again, what came is kept"
            )
        if failed:
            print(f"{len(failed):,} texts got no vector and are rows of zeros, the last: {failed[-1][1]}")

    def _forecast(self, batches: list[list[str]]) -> None:
        tokens = sum(len(text.encode()) for batch in batches for text in batch) / BYTES_PER_TOKEN
        usd = self._budget.worst_usd(self.endpoint.model, tokens, 0)
        n_texts = sum(map(len, batches))
        dollars = f"${usd:,.4f}" if self.endpoint.model in self._budget.prices else "no price given"
        print(  # on a line of its own: a progress bar is being drawn
            f"\nembeddings, expected: texts {n_texts:,} · calls {len(batches):,} · tokens {tokens:,.0f} · {dollars}"
        )
        if not self._budget.fits(usd):
            raise Stop(
                f"budget_usd: ${self._budget.spent_usd:.4f} of ${self._budget.cap_usd:g} spent and the embeddings "
                f"are expected to cost ${usd:.4f}; nothing was asked, raise budget_usd or take fewer texts"
            )

    async def _get(self, batches: list[list[str]], keep: Keep, failed: list[tuple[str, CallFailed]]) -> None:
        connection = _AsChat(self.endpoint)
        caller = Caller(self.endpoint, connection, self._pace, self._budget, self._patience, self._halting)
        queue, stops = iter(batches), []

        async def ask(batch: list[str]) -> None:
            # an empty text is refused by servers, and a blank one says as little
            messages = [{"role": "user", "content": text or " "} for text in batch]
            try:
                answer = await caller.answer(
                    Request(task="embedding", inputs={}, messages=messages), {"max_tokens": 0}
                )
            except CallFailed as failure:
                if len(batch) > 1 and not _may_pass(failure):  # one text's fault is not the others'
                    for text in batch:
                        await ask([text])
                else:
                    failed.extend((text, failure) for text in batch)
            else:
                keep(batch, connection.vectors.pop(answer.text), self._budget.to_commit())

        async def worker() -> None:
            for batch in queue:
                with suppress(Halted):
                    try:
                        await ask(batch)
                    except Stop as stop:  # what is under way is finished and kept
                        stops.append(stop)
                        self._halting.set()
                if self._halting.is_set():
                    return

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(batches))):
                    group.create_task(worker())
        finally:
            await connection.close()
        if stops:
            raise stops[0]


def _may_pass(failure: CallFailed) -> bool:
    """Whether a server that is better later may embed the text."""
    return isinstance(failure, TryAgain) and failure.kind != "unreadable"
