"""The one seam to a language model: questions in, answers out, every answer kept in the run's ledger.

    teacher = Teacher(run.store_path)                                      # the recorded teacher
    teacher = Teacher(run.store_path, "http://127.0.0.1:8000/v1", "my-model")  # any live one
    text = teacher.ask(Request(task="subtopics", inputs={"topic": "Jazz", "n": 36}, messages=[...]))
    print(teacher.forecast(ask_one, items))                                # calls, tokens, dollars, hours
    done, failed = teacher.map(ask_one, items, "subtopics")

`ask_one(ask, item)` is an async function that awaits `ask(Request(...))` as often as it likes; up
to `concurrency` items are under way at once. Every accepted answer is committed to the run's ledger
before it is used, so killing and repeating a run asks nothing twice. Seats ("assistant", "user",
"judge") may be different endpoints. With via="batches" the same functions go through the Batch API:
all items advance together, one batch per step.

Absent on purpose: what may go wrong with one call (`calls`), at what speed calls go (`pacing`), what
they cost (`money`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from ultrachat.calls import CUT_WILL_DO, Caller, CallFailed, Halted, Patience, Request, ServerDown, TryAgain
from ultrachat.endpoints import LOOPBACK, Endpoint
from ultrachat.errors import Stop
from ultrachat.interrupts import run_interruptibly
from ultrachat.money import BATCH_DISCOUNT, BYTES_PER_TOKEN, Budget, Forecast, prompt_bytes, read_prices
from ultrachat.pacing import Pace
from ultrachat.progress import progress_bar
from ultrachat.recorded import RECORDED, stand_in
from ultrachat.runs import Run, read_manifest
from ultrachat.store import FailedRow, Row, Store, canonical, key_of, open_store

if TYPE_CHECKING:
    from ultrachat.batches import Desk

WAYS = ("calls", "batches", "export")
ITEMS_FORECAST = 100  # of a `map`, from which the rest is scaled
COMMON_PARAMETERS = ("concurrency", "via", "prices", "budget_usd", "ask_failed_again")

Item = TypeVar("Item")
Result = TypeVar("Result")
Ask = Callable[[Request], Awaitable[str]]


def one_message(text: str) -> list[dict[str, str]]:
    """Return the message list of a prompt that is a single user message.

    Paper: §4.4; the user model too gets everything under the role `user` (thunlp/UltraChat#22).
    """
    return [{"role": "user", "content": text}]


class Failure(NamedTuple):
    """An item that was set aside: the item, the kind of failure, and one line of explanation.

    Ours: items = results + failures, always.
    """

    item: Any
    kind: str
    line: str


@dataclass
class _Session:
    """What one `map` shares between its items while the ledger is open; gone when it returns."""

    store: Store
    budget: Budget
    callers: dict[Endpoint, Caller]
    desk: Desk | None = None
    stop: Exception | None = None
    n_items: int = 0  # being worked on
    n_blocked: int = 0  # of these, waiting for an answer
    asking: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    arrived: list[tuple[Row, asyncio.Future[None]]] = field(default_factory=list)
    in_batches: set[str] = field(default_factory=set)  # asked already, and not by this `map`
    failed_since: list[str] = field(default_factory=list)  # the last answer came

    def forget_outage(self) -> None:
        """Take the failures back that came of a server's being down."""
        for key in self.failed_since:
            self.store.forget_failure(key)

    async def keep(self, row: Row) -> None:
        """Return once an answer is safe on disk; answers that arrive together share a commit, since syncing
        the disk for every one would hold up all the others."""
        loop = asyncio.get_running_loop()
        if not self.arrived:
            loop.call_soon(self._commit)
        kept = loop.create_future()
        self.arrived.append((row, kept))
        await kept

    def _commit(self) -> None:
        arrived, self.arrived = self.arrived, []
        try:
            self.store.put(*(row for row, _ in arrived), spent_usd=self.budget.to_commit())
        except Exception as error:
            for _, kept in arrived:
                if not kept.done():  # a second Ctrl-C cancels those who wait
                    kept.set_exception(error)
        else:
            for _, kept in arrived:
                if not kept.done():
                    kept.set_result(None)

    def everybody_waits(self) -> bool:
        """Whether no item can go on without an answer: what they ask is then a batch."""
        return 0 < self.n_items <= self.n_blocked

    def item_moved(self, items: int = 0, blocked: int = 0) -> None:
        """Keep count of who waits."""
        self.n_items += items
        self.n_blocked += blocked
        if self.desk and self.everybody_waits():
            self.desk.everybody_waits.set()


@dataclass
class Teacher:
    """Asks questions and keeps the answers; see the module's docstring.

    `concurrency` items are under way at once; one try of a call may take `deadline_seconds`, and
    after `max_tries` tries the item is set aside: it is asked again when `ask_failed_again` says so.
    `seats` names endpoints that differ from the default. `prices` are dollars per million tokens,
    {model: [prompt, completion]}; `budget_usd` caps what the whole run may cost. `via` is "calls",
    "batches" (the Batch API, for every `map` of more than one item) or "export" (requests to a file).

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
    max_tries: int = 8
    max_failed_in_a_row: int = 200
    prices: Mapping[str, Sequence[float]] = field(default_factory=dict)
    budget_usd: float | None = None
    via: str = "calls"
    batch_poll_seconds: float = 30.0
    ask_failed_again: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("concurrency", 1),
            ("max_tries", 1),
            ("max_tokens", 1),
            ("max_failed_in_a_row", 1),
        ):
            if type(value := getattr(self, name)) is not int or value < least:
                raise Stop(f"{name}: expected a whole number of at least {least}, got {value!r}")
        for name in ("temperature", "deadline_seconds", "budget_usd"):
            value = getattr(self, name)
            if (value is not None or name != "budget_usd") and not _is_amount(value):
                raise Stop(f"{name}: expected a number of at least 0, got {value!r}")
        if not isinstance(self.prices, Mapping):
            raise Stop(f"prices: expected {{model: [prompt, completion]}}, got {self.prices!r}")
        self._endpoint = Endpoint(self.base_url, self.model)
        if self.via not in WAYS:
            raise Stop(f"via: expected one of {', '.join(WAYS)}, got {self.via!r}")
        if self.via != "calls" and any(e.recorded for e in self._endpoints()):
            raise Stop(f"via: {self.via} needs a live teacher; set base_url and model to one")
        self._prices = read_prices(self.prices)
        # one hiccup fails everybody who is under way: that is no outage yet
        in_a_row = max(self.max_failed_in_a_row, 4 * self.concurrency)
        self._patience = Patience(self.deadline_seconds, self.max_tries, in_a_row)
        self._paces = {endpoint: Pace() for endpoint in self._endpoints()}
        self._halting = threading.Event()
        self._usage: dict[str, float] = {"answers": 0, "asked": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def _endpoints(self) -> set[Endpoint]:
        return {self._endpoint, *self.seats.values()}

    def endpoint(self, seat: str) -> Endpoint:
        """Return the endpoint that serves a seat."""
        return self.seats.get(seat, self._endpoint)

    @property
    def recorded(self) -> bool:
        """Whether every seat is served by the recorded teacher, shipped or rehearsed."""
        return all(endpoint.wants_names for endpoint in self._endpoints())

    def describe(self) -> str:
        """Return one line: which model sits where."""
        if all(endpoint.recorded for endpoint in self._endpoints()):
            return "recorded teacher (answers shipped in data/recorded; no model is called)"
        seats = {"default": self._endpoint, **self.seats}
        line = " · ".join(f"{seat}: {e.model} at {e.place}" for seat, e in seats.items())
        return line if self.via == "calls" else f"{line} · via {self.via}"

    def usage(self) -> dict[str, float]:
        """Return counts since this object was made: answers used, of these asked now, tokens asked now, and,
        where there are prices, `spent_usd`: the upper bound of what the whole run was billed so far.

        The recorded teacher reports no tokens.
        """
        return dict(self._usage)

    def ask(self, request: Request) -> str:
        """Return the answer to one request; raises Stop when there is none."""

        async def once(ask: Ask, request: Request) -> str:
            return await ask(request)

        done, failed = self.map(once, [request])
        if failed:
            hint = "" if self.ask_failed_again else "; ask_failed_again asks once more"
            raise Stop(f"task '{request.task}': {failed[0].line}{hint}")
        return done[0]

    def map(
        self,
        function: Callable[[Ask, Item], Awaitable[Result]],
        items: Iterable[Item],
        label: str | None = None,
    ) -> tuple[list[Result], list[Failure]]:
        """Return `await function(ask, item)` for every item, in order, and the items that were set aside.

        With a `label` a progress bar is shown, and before a live run what it is expected to cost, for which
        `function` is played through with some of the items.
        Raises Stop when the run cannot go on (no key, model gone, not recorded, server down, budget
        reached) and KeyboardInterrupt after Ctrl-C; what was under way is finished and kept in both cases.
        """
        items = list(items)
        if label and not self.recorded:
            print(f"{label}, {self.forecast(function, items)}")
        return run_interruptibly(self._map(function, items, label), self._halting)

    def forecast(
        self, function: Callable[[Ask, Item], Awaitable[Any]], items: Iterable[Item], anew: bool = False
    ) -> Forecast:
        """Return what `map` of the same is expected to ask and cost; nothing is sent.

        Some of the items are played through with what the ledger has (unless `anew`) and, for the rest,
        recorded answers to the same kind of question as stand-ins; this is scaled to all items.
        """
        items = list(items)
        every = -(-len(items) // ITEMS_FORECAST) or 1  # from all over: they are not alike, nor answered alike
        played = self._forecast(function, items[::every], anew)
        return run_interruptibly(played, self._halting).scaled(len(items))

    async def _map(
        self, function: Callable, items: list[Any], label: str | None
    ) -> tuple[list[Any], list[Failure]]:
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        queue = iter(enumerate(items))
        bar = progress_bar(len(items), label, clock=not self.recorded)
        async with self._session(len(items)) as session:

            async def ask(request: Request) -> str:
                return await self._ask(session, request)

            async def worker() -> None:
                for index, item in queue:
                    session.item_moved(items=1)
                    try:
                        results[index] = await function(ask, item)
                    except CallFailed as failed:
                        failures[index] = Failure(item, failed.kind, str(failed))
                    except Halted:
                        pass
                    except Exception as error:  # a Stop, or a mistake in `function`
                        session.stop = session.stop or error
                        self._halting.set()
                        if isinstance(error, ServerDown):
                            session.forget_outage()
                    session.item_moved(items=-1)
                    if self._halting.is_set():
                        return
                    bar.update()

            async with asyncio.TaskGroup() as group:
                # a batch is worth waiting for when everybody is in it
                for _ in range(len(items) if session.desk else min(self.concurrency, len(items))):
                    group.create_task(worker())
        bar.close()
        if session.stop:
            raise session.stop
        return [results[i] for i in sorted(results)], [failures[i] for i in sorted(failures)]

    @asynccontextmanager
    async def _session(self, n_items: int) -> AsyncIterator[_Session]:
        """Open the ledger, the budget and a way to every endpoint; close them whatever happens."""
        async with AsyncExitStack() as stack:
            store = stack.enter_context(open_store(self.store_path))
            # a model on this very machine costs nothing unless it is given a price
            paid = sorted({e.model for e in self._endpoints() if not e.recorded and e.host not in LOOPBACK})
            # and a price of the recorded teacher is for forecasts only
            live = {e.model for e in self._endpoints() if not e.recorded}
            prices = {m: price for m, price in self._prices.items() if m != RECORDED or m in live}
            budget = Budget(store, prices, self.budget_usd, paid)
            session = _Session(store, budget, {})
            stack.callback(self._close_money, budget)
            for endpoint in self._endpoints():
                connection = endpoint.connection()
                self._paces[endpoint].not_before = 0.0  # whoever asks anew may try
                stack.push_async_callback(connection.close)
                session.callers[endpoint] = Caller(
                    endpoint, connection, self._paces[endpoint], budget, self._patience, self._halting
                )
            in_batches = {key for b in store.batches() if b.base_url for key in store.batch_rows(b.tag)}
            # one question alone is not worth a day's wait, unless it is waited for already
            if self.via == "export" or (self.via == "batches" and (n_items > 1 or in_batches)):
                from ultrachat.batches import Desk  # the SDK takes half a second to import

                desk = Desk(
                    store, budget, self.via, self._endpoints(), self._patience, self.batch_poll_seconds,
                    self._halting, session.everybody_waits,
                )  # fmt: skip
                session.desk = await stack.enter_async_context(desk)
            else:
                session.in_batches = in_batches
            yield session

    def _close_money(self, budget: Budget) -> None:
        budget.close()
        if budget.counts and all(model in self._prices for model in budget.models):
            self._usage["spent_usd"] = round(budget.spent_usd + budget.batched_usd, 6)

    def _sampling(self, request: Request) -> dict[str, Any]:
        seed = {} if request.seed is None else {"seed": request.seed}
        return {
            "temperature": self.temperature if request.temperature is None else request.temperature,
            "max_tokens": request.max_tokens or self.max_tokens,
            **seed,
        }

    def _key(self, request: Request) -> str:
        endpoint = self.endpoint(request.seat)
        key = key_of(
            task=request.task, inputs=dict(request.inputs), base_url=endpoint.place, model=endpoint.model,
            messages=request.messages, **self._sampling(request),
        )  # fmt: skip
        return key + CUT_WILL_DO if request.accept_cut else key

    async def _ask(self, session: _Session, request: Request) -> str:
        """Answer from the ledger, or get an answer and commit it."""
        key = self._key(request)
        # two items with one question: the second waits for the first one's answer and shares it
        session.item_moved(blocked=1)
        try:
            async with session.asking.setdefault(key, asyncio.Lock()):
                row = session.store.get(key) or await self._get(session, key, request)
        finally:
            session.item_moved(blocked=-1)
        self._usage["answers"] += 1
        return row.text

    async def _get(self, session: _Session, key: str, request: Request) -> Row:
        """Get an answer that the ledger has not, unless it is known to fail."""
        known = session.store.failure(key)
        if known and not self.ask_failed_again:
            raise CallFailed(known.kind, known.line)
        if key in session.in_batches:
            raise Stop(
                f"task '{request.task}': asked in a batch that is under way; take it in with via=batches"
            )
        endpoint, sampling = self.endpoint(request.seat), self._sampling(request)
        if session.desk:
            row = await session.desk.row(key, request, endpoint, sampling)
        else:
            try:
                answer = await session.callers[endpoint].answer(request, sampling)
            except CallFailed as failed:
                session.store.put_failure(FailedRow(key, request.task, failed.kind, str(failed)))
                if isinstance(failed, TryAgain):
                    session.failed_since.append(key)
                raise
            session.failed_since.clear()
            row = Row(
                key,
                request.task,
                canonical(dict(request.inputs)),
                endpoint.model,
                answer.text,
                *answer.tokens,
            )
            await session.keep(row)
        if known:
            session.store.forget_failure(key)
        self._usage["asked"] += 1
        self._usage["prompt_tokens"] += row.prompt_tokens or 0
        self._usage["completion_tokens"] += row.completion_tokens or 0
        return row

    async def _forecast(self, function: Callable, items: list[Any], anew: bool) -> Forecast:
        """Play some items through without asking anybody."""
        forecast = Forecast(items=len(items), concurrency=self.concurrency)
        asked: set[str] = set()
        with open_store(self.store_path) as store:

            async def ask(request: Request) -> str:
                key, endpoint = self._key(request), self.endpoint(request.seat)
                row = None if anew else store.get(key)
                if row:
                    forecast.stored += key not in asked
                    asked.add(key)
                    return row.text
                known = None if anew or self.ask_failed_again else store.failure(key)
                if known:
                    raise CallFailed(known.kind, known.line)
                text = stand_in(request.task, request.inputs)
                if key not in asked:
                    asked.add(key)
                    price = self._prices.get(endpoint.model)
                    tokens = (
                        prompt_bytes(request.messages) / BYTES_PER_TOKEN,
                        len(text.encode()) / BYTES_PER_TOKEN,
                    )
                    forecast.add(
                        endpoint.model, price, *tokens, BATCH_DISCOUNT if self.via == "batches" else 1.0
                    )
                return text

            for item in items:
                with suppress(CallFailed, Stop):  # a stand-in answers another question and may not do here
                    await function(ask, item)
        return forecast


def open_teacher(run: Run, seats: Mapping[str, Endpoint] | None = None, **settings: Any) -> Teacher:
    """Return the teacher that a notebook's parameters describe: base_url, model, and what all notebooks have.

    A shard of a run may spend its share of `budget_usd`. Raises Stop naming the parameter that is wrong.

    Ours: one line opens a teacher.
    """
    common = {name: run.parameters[name] for name in COMMON_PARAMETERS if name in run.parameters}
    common["budget_usd"] = _share_of_budget(run, common.get("budget_usd") or 0.0)
    where = run.parameters["base_url"], run.parameters["model"]
    return Teacher(run.store_path, *where, seats or {}, **(common | settings))


def _share_of_budget(run: Run, budget_usd: float) -> float | None:
    """Return what this run or shard may cost, None for no cap; a shard shares what the notebooks before left."""
    if not budget_usd or run.n_shards == 1:
        return budget_usd or None
    spent = [line.get("usage", {}).get("spent_usd", 0.0) for line in read_manifest(run.inputs_folder)]
    left = budget_usd - max(spent, default=0.0)
    if left <= 0:
        raise Stop(
            f"budget_usd: the notebooks before have spent ${max(spent):.4f} of ${budget_usd:g}; raise it"
        )
    return left / run.n_shards


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")
