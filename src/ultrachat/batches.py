"""The Batch API: half the price for whoever can wait. The same pipeline, one batch per step.

Every item of a `map` runs until it waits for an answer; when all of them wait, what they ask goes
off as one batch per endpoint, and what comes back, in any order, lets them run on. So dialogues
advance round by round without a line of their own about it.

    a batch is written down in the ledger   before it is submitted, under a tag of ours
    it is looked for by its tag             whenever nobody knows whether the server has it
    its results, its bill and its end       are one transaction

so a kill at any moment pays nothing twice. Rows that failed or expired go into the next batch.

With via="export" the requests are written to a file and the run stops; whoever runs them elsewhere
brings the responses back with `python -m ultrachat import RUN FILE`.

Absent on purpose: what makes an answer acceptable (`calls`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import openai

from ultrachat.calls import (
    CUT_WILL_DO,
    CallFailed,
    Halted,
    Patience,
    Request,
    TryAgain,
    accepted_text,
    asked_to_wait,
    backoff_seconds,
    body_of,
    read_completion,
    read_status,
    sleep_unless,
    token_counts,
)  # fmt: skip
from ultrachat.endpoints import LOOPBACK, Endpoint
from ultrachat.errors import Stop
from ultrachat.money import BATCH_DISCOUNT, Budget, prompt_bytes
from ultrachat.recorded import Reply
from ultrachat.records import iter_rows
from ultrachat.runs import write_text
from ultrachat.store import Batch, BatchRow, FailedRow, Row, Store, canonical, open_store

PATH = "/v1/chat/completions"
WINDOW = "24h"
MAX_ROWS, MAX_BYTES = 50_000, 190_000_000  # what a batch may hold: OpenAI's limits, with a margin
OPERATION_SECONDS = 600.0  # for one try: a large file takes its time
OVER = ("completed", "failed", "expired", "cancelled")
EXPORTED = "exported"  # the tag of what was written to a file
EXPORT_FILE = "batch_requests.jsonl"

Result = TypeVar("Result")


@dataclass
class _Waiting:
    """A question on the desk, and who waits for its answer."""

    row: BatchRow
    endpoint: Endpoint
    line: str  # of the batch file
    answer: asyncio.Future[Row]
    tries: int = 0


class Results(NamedTuple):
    """What response lines brought: rows for the ledger, failures for good, and what to ask again; and the
    token counts of whatever was generated, which is charged whether it will do or not.

    Ours: every row of a batch ends in one of the three.
    """

    answers: list[Row]
    failures: list[FailedRow]
    again: dict[str, TryAgain]
    generated: dict[str, tuple[int | None, int | None]]
    stop: Stop | None = None  # to be raised once the rest is safe


def _nothing() -> Results:
    return Results([], [], {}, {})


class Desk:
    """Where requests wait until everybody waits, and are then sent as batches; an async context manager.

    `everybody_waits` is set whenever that may have come about, and `quiet()` says whether it has.

    Ours: that all items step together is all that makes rounds.
    """

    def __init__(
        self, store: Store, budget: Budget, via: str, endpoints: Iterable[Endpoint], patience: Patience,
        poll_seconds: float, halting: threading.Event, quiet: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.everybody_waits = asyncio.Event()
        self._store = store
        self._budget = budget
        self._export_only = via == "export"
        self._endpoints = {endpoint.base_url: endpoint for endpoint in endpoints}
        self._patience = patience
        self._poll_seconds = poll_seconds
        self._halting = halting
        self._quiet = quiet
        self._waiting: dict[str, _Waiting] = {}
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    async def __aenter__(self) -> Desk:
        self._work = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await self._work
        finally:
            for client in self._clients.values():
                await client.close()

    async def row(self, key: str, request: Request, endpoint: Endpoint, sampling: Mapping[str, Any]) -> Row:
        """Return the ledger's row for a request once a batch has brought it.

        Raises CallFailed when there is no answer, Stop when nothing more can come, Halted when not sent.
        """
        worst = self._budget.worst_usd(endpoint.model, prompt_bytes(request.messages), sampling["max_tokens"])
        inputs = canonical(dict(request.inputs))
        row = BatchRow("", key, request.task, inputs, endpoint.model, worst * BATCH_DISCOUNT)
        body = body_of(request, endpoint, sampling)
        line = json.dumps({"custom_id": key, "method": "POST", "url": PATH, "body": body}, ensure_ascii=False)
        self._waiting[key] = _Waiting(row, endpoint, line, asyncio.Future())
        return await self._waiting[key].answer

    # ---- rounds -------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Send what waits whenever everybody waits, until cancelled."""
        while True:
            await self.everybody_waits.wait()
            self.everybody_waits.clear()
            n_waiting = len(self._waiting)
            if not n_waiting or not self._quiet():
                continue
            try:
                if self._export_only:
                    self._export()
                await self._round()
            except Exception as error:  # whoever waits is told, in the order in which they came
                for waiting in self._waiting.values():
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                self._waiting.clear()
            if len(self._waiting) == n_waiting:
                self.everybody_waits.set()  # nobody moved on: every row is to be asked again

    async def _round(self) -> None:
        """Submit what waits and is under way nowhere, then take in every open batch."""
        for batch in self._open_batches():
            if batch.batch_id is None:  # a session was killed while it submitted this one
                batch_id = await self._find(batch)
                if batch_id:
                    self._store.confirm_batch(batch, batch_id)
                else:
                    self._end(batch, _nothing(), 0.0)
        under_way = {key for batch in self._open_batches() for key in self._store.batch_rows(batch.tag)}
        for endpoint in {w.endpoint for w in self._waiting.values()}:  # a batch holds one model only
            new = [w for key, w in self._waiting.items() if w.endpoint == endpoint and key not in under_way]
            for part in _parts(new):
                await self._submit(endpoint.base_url, part)
        for batch in self._open_batches():
            await self._take_in(batch)

    def _open_batches(self) -> list[Batch]:
        """Return the ledger's batches at the endpoints of this run."""
        return [b for b in self._store.batches() if b.base_url in self._endpoints and b.tag != EXPORTED]

    async def _submit(self, base_url: str, part: list[_Waiting]) -> None:
        """Write a batch of what fits under the cap down, send it, and write down what the server calls it."""
        if self._halting.is_set():
            raise Halted
        worst = 0.0
        for n, waiting in enumerate(part):
            if not self._budget.fits(worst + waiting.row.worst_usd):
                part = part[:n]
                break
            worst += waiting.row.worst_usd
        if not part:
            if not self._open_batches():
                raise self._budget.exhausted(waiting.row.worst_usd)
            return  # what they cost in the end may leave enough
        keys = "".join(f"{w.row.key}{w.tries}" for w in part)
        tag = hashlib.sha256(f"{keys}{random.random()}".encode()).hexdigest()[:32]
        batch = Batch(tag, base_url, None, worst)
        self._store.put_batch(batch, [w.row for w in part])
        self._budget.add_batch(worst)
        data = "".join(w.line + "\n" for w in part).encode()
        client = self._client(base_url)

        tried = False

        async def upload() -> str:
            return _text((await client.files.create(file=("requests.jsonl", data), purpose="batch")).id)

        async def create() -> str:
            nonlocal tried
            if tried and (found := await self._find(batch)):  # the try before this one got through
                return found
            tried = True
            made = await client.batches.create(
                input_file_id=file_id, endpoint=PATH, completion_window=WINDOW, metadata={"ultrachat": tag}
            )
            return _text(made.id)

        file_id = await self._steadily(base_url, upload)
        self._store.confirm_batch(batch, await self._steadily(base_url, create))

    async def _find(self, batch: Batch) -> str | None:
        """Return the server's id of the batch that has our tag, None when it never arrived."""

        async def look() -> str | None:
            async for candidate in self._client(batch.base_url).batches.list(limit=100):
                if (candidate.metadata or {}).get("ultrachat") == batch.tag:
                    return _text(candidate.id)
            return None

        return await self._steadily(batch.base_url, look)

    async def _take_in(self, batch: Batch) -> None:
        """Wait for a batch to be over, commit what it brought, and let those who waited for it run on."""
        client, rows = self._client(batch.base_url), self._store.batch_rows(batch.tag)
        state = await self._over(batch)
        lines: list[bytes] = []
        for file_id in (state.output_file_id, state.error_file_id) if state else ():
            if file_id:
                lines += await self._steadily(batch.base_url, lambda id=file_id: _download(client, id))
        if state and state.status == "failed" and not lines:
            self._end(batch, _nothing(), 0.0)
            raise Stop(
                f"{batch.base_url}: the batch was rejected before it began; run again later, or via calls"
            )
        results = read_responses(map(_parsed, lines), rows, self._endpoints[batch.base_url])
        read = {row.key for row in (*results.answers, *results.failures)} | results.again.keys()
        for key in rows.keys() - read:
            results.again[key] = TryAgain("expired", "the batch ended without this row")
            if state and state.status == "completed":  # it was done, and its line is lost
                results.generated[key] = None, None
        for key, failed in results.again.items():
            waiting = self._waiting.get(key)
            if waiting and waiting.tries + 1 >= self._patience.max_tries:
                results.failures.append(FailedRow(key, rows[key].task, failed.kind, str(failed)))
        price = self._budget.usd
        bill = sum(
            price(rows[key].model, tokens, rows[key].worst_usd / BATCH_DISCOUNT) * BATCH_DISCOUNT
            for key, tokens in results.generated.items()
        )
        self._end(batch, results, bill if state else batch.worst_usd)
        if results.stop:
            raise results.stop

    async def _over(self, batch: Batch) -> Any:
        """Return the server's word on a batch once it is over, None when the server has forgotten it."""

        async def look() -> Any:
            try:
                state = await self._client(batch.base_url).batches.retrieve(batch.batch_id or "")
                _text(state.status)
                return state
            except openai.NotFoundError:
                return None

        wait_seconds = min(1.0, self._poll_seconds)
        while (state := await self._steadily(batch.base_url, look)) and state.status not in OVER:
            await sleep_unless(self._halting, wait_seconds)
            wait_seconds = min(1.5 * wait_seconds, self._poll_seconds)
        return state

    def _end(self, batch: Batch, results: Results, usd: float) -> None:
        """Commit a batch's results, bill and end together, and tell those who waited."""
        self._budget.end_batch(batch.worst_usd, usd)
        self._store.end_batch(batch.tag, results.answers, results.failures, self._budget.spent_usd)
        for row in results.answers:
            waiting = self._waiting.pop(row.key, None)
            if waiting and not waiting.answer.done():
                waiting.answer.set_result(row)
        for failed in results.failures:
            waiting = self._waiting.pop(failed.key, None)
            if waiting and not waiting.answer.done():
                waiting.answer.set_exception(CallFailed(failed.kind, failed.line))
        for key in results.again:
            if waiting := self._waiting.get(key):
                waiting.tries += 1

    def _export(self) -> None:
        """Write what waits to a file, remember what is in it, and stop the run."""
        path = self._store.path.parent / EXPORT_FILE
        ordered = [self._waiting[key] for key in sorted(self._waiting)]
        write_text(path, "".join(waiting.line + "\n" for waiting in ordered))
        self._store.put_batch(Batch(EXPORTED, "", None, 0.0), [w.row for w in ordered])
        raise Stop(
            f"wrote {len(ordered):,} requests to {path}; have them answered, bring the responses back with "
            f"'python -m ultrachat import {path.parent.name} FILE', and run again"
        )

    # ---- the wire -----------------------------------------------------------------------------

    def _client(self, base_url: str) -> openai.AsyncOpenAI:
        """Return the SDK's client of an endpoint, made once; it retries nothing by itself."""
        if base_url not in self._clients:
            endpoint = self._endpoints[base_url]
            http = openai.DefaultAsyncHttpxClient(
                trust_env=endpoint.host not in LOOPBACK,
                follow_redirects=False,  # as in `endpoints`
            )
            self._clients[base_url] = openai.AsyncOpenAI(
                api_key=endpoint.key(),
                base_url=base_url,
                http_client=http,
                max_retries=0,
                timeout=OPERATION_SECONDS,
            )
        return self._clients[base_url]

    async def _steadily(self, base_url: str, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Return what an operation on files or batches returns, after as many tries as it takes."""
        for attempt in range(self._patience.max_tries):
            if attempt:
                await sleep_unless(self._halting, backoff_seconds(attempt))
            try:
                async with asyncio.timeout(OPERATION_SECONDS):
                    return await operation()
            except openai.APIStatusError as error:
                reply = Reply(error.status_code, error.response.headers, error.response.content)
                try:
                    raise read_status(reply, self._endpoints[base_url], "batch", "{}") from None
                except TryAgain:
                    await sleep_unless(self._halting, asked_to_wait(error.response.headers))
                except CallFailed as failed:
                    raise Stop(f"{base_url}: batch refused: {failed}") from None
                except Stop as stop:
                    raise stop from None  # the SDK's error, which may echo the key, stays out of a traceback
            except (openai.APIError, ValueError, TypeError, AttributeError, TimeoutError):
                # no connection, or a reply that is not what the API says: the SDK checks nothing
                continue
        raise Stop(
            f"{base_url}: no answer about a batch in {self._patience.max_tries} tries; run again later"
        )


def _text(value: Any) -> str:
    """Return an id or status; ValueError when the server gave something else."""
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value


def _parts(waiting: list[_Waiting]) -> Iterator[list[_Waiting]]:
    """Cut what waits into batches that a server takes."""
    part: list[_Waiting] = []
    n_bytes = 0
    for one in waiting:
        size = len(one.line.encode()) + 1
        if part and (len(part) == MAX_ROWS or n_bytes + size > MAX_BYTES):
            yield part
            part, n_bytes = [], 0
        part.append(one)
        n_bytes += size
    if part:
        yield part


async def _download(client: openai.AsyncOpenAI, file_id: str) -> list[bytes]:
    return (await client.files.content(file_id)).content.splitlines()


def _parsed(line: bytes) -> Any:
    """Return a line's JSON value, None when it is not JSON: its row is then asked again."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_responses(lines: Iterable[Any], rows: Mapping[str, BatchRow], endpoint: Endpoint | None) -> Results:
    """Return what the objects of an output or error file, in any order, mean for the questions in `rows`.

    Lines about other questions, and second lines about one, are ignored. A row that says that nothing more
    can come (key refused, model gone) makes the `stop` to raise once the others are safe.

    Ours: the same judgement as over single calls.
    """
    results, seen = _nothing(), set()
    for line in lines:
        key = line.get("custom_id") if isinstance(line, dict) else None
        row = rows.get(key) if isinstance(key, str) else None
        if row is None or row.key in seen:
            continue
        seen.add(row.key)
        response = line.get("response")
        try:
            if not isinstance(response, dict) or not isinstance(response.get("body"), dict):
                if isinstance(response, dict) and response.get("status_code") == 200:
                    results.generated[row.key] = None, None
                raise TryAgain("expired", "the batch ended without an answer to this row")
            reply = Reply(response.get("status_code"), {}, json.dumps(response["body"]).encode())
            if reply.status != 200:
                raise read_status(reply, endpoint or Endpoint(), row.task, row.inputs)
            results.generated[row.key] = None, None
            completion = read_completion(reply)
            tokens = results.generated[row.key] = token_counts(completion)
            text = accepted_text(completion, accept_cut=row.key.endswith(CUT_WILL_DO))
            results.answers.append(Row(row.key, row.task, row.inputs, row.model, text, *tokens))
        except Stop as stop:
            results.again[row.key] = TryAgain("stopped", str(stop))
            results = results._replace(stop=results.stop or stop)
        except TryAgain as failed:
            results.again[row.key] = failed
        except CallFailed as failed:
            results.failures.append(FailedRow(row.key, row.task, failed.kind, str(failed)))
    return results


def import_responses(store_path: Path, file: Path) -> str:
    """Take the responses to exported requests into a run's ledger and return what became of them, in a line.

    The file is the Batch API's output format, one object a line; several files may be brought one after
    another. Raises Stop naming file and line of what is not JSON, and when nothing was exported.

    Ours: for people who run their batches elsewhere.
    """
    with open_store(store_path) as store:
        rows = store.batch_rows(EXPORTED)
        if not rows:
            raise Stop(f"{store_path}: no exported requests wait for responses; run with via=export first")
        results = read_responses((row for _, row in iter_rows(file)), rows, None)
        done = {row.key for row in (*results.answers, *results.failures)}
        rest = [row for key, row in rows.items() if key not in done]
        store.end_batch(EXPORTED, results.answers, results.failures, store.money()[0])
        if rest:
            store.put_batch(Batch(EXPORTED, "", None, 0.0), rest)
    if results.stop:
        raise results.stop
    return (
        f"{len(rows):,} requests = {len(results.answers):,} answered + {len(results.failures):,} set aside + "
        f"{len(rest):,} still without a response"
    )
