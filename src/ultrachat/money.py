"""What a run costs: known before it is spent, never more than was allowed.

Prices are dollars per million tokens, by model:   {"gpt-4o-mini": [0.15, 0.6]}   (prompt, completion)

Before a call is sent its worst case is reserved, durably: a token per byte of the prompt (no
byte-level tokenizer makes more) and all the tokens that it may answer with. The reply settles it at
what was really used. A call whose outcome nobody knows (cut off, timed out, killed) counts as billed
in full. So the spend shown is never below the true bill, and the bill never above `budget_usd`.

Absent on purpose: a list of prices. They change; whoever pays looks them up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ultrachat.errors import Stop
from ultrachat.store import Store

BATCH_DISCOUNT = 0.5  # what the Batch API charges of the price
BYTES_PER_TOKEN = 4  # of English text; for forecasts and rate limits only, never for the cap
TOKENS_PER_SECOND = 50  # of one call; what forecasts assume of a server nobody has measured
FIXED_TOKENS = 16  # a message's role and separators, as an upper bound


class Price(NamedTuple):
    """Dollars per million tokens.

    Ours: as providers print them.
    """

    prompt_usd: float
    completion_usd: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the dollars that so many tokens cost."""
        return (prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd) / 1e6


def read_prices(prices: Mapping[str, Sequence[float]]) -> dict[str, Price]:
    """Return {model: Price}; Stop naming the model whose entry is not two numbers of at least 0.

    Ours: prices live in the config of a run.
    """
    read = {}
    for model, pair in prices.items():
        numbers = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not numbers or not all(type(p) in (int, float) and 0 <= p < 1e6 for p in pair):
            raise Stop(
                f"prices: {model}: expected [prompt, completion] in dollars per million tokens, got {pair!r}"
            )
        read[str(model)] = Price(*map(float, pair))
    return read


def prompt_bytes(messages: Sequence[Mapping[str, str]]) -> int:
    """Return the UTF-8 bytes of a prompt, with an allowance for each message's role.

    Ours: an upper bound of its tokens.
    """
    return sum(len(m["content"].encode("utf-8", "replace")) + FIXED_TOKENS for m in messages)


@dataclass
class Budget:
    """The money of one run while its ledger is open. Without prices nothing is counted.

    `spent_usd` is settled; `reserved_usd` is what calls under way and open batches may cost at most, of
    which `batched_usd` is the batches' share (the ledger has that with them).
    Raises Stop on opening when there is a cap and a live model has no price.

    Ours: exactly-once billing is impossible without the server's help; an upper bound is not.
    """

    store: Store
    prices: Mapping[str, Price]
    cap_usd: float | None = None
    models: Sequence[str] = ()
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        unpriced = [model for model in self.models if model not in self.prices]
        if self.cap_usd is not None and unpriced:
            raise Stop(f"budget_usd: needs the price of every model; prices has none of '{unpriced[0]}'")
        self._committed_usd, at_risk = self.store.money()
        # calls that were under way when a session was killed: billed, as far as anybody knows
        self.spent_usd = self._committed_usd + at_risk
        self._at_risk_usd = at_risk
        self.batched_usd = sum(batch.worst_usd for batch in self.store.batches())
        self.reserved_usd = self.batched_usd
        self._n_reserved = 0

    @property
    def counts(self) -> bool:
        """Whether there is anything to count: without prices there is not."""
        return bool(self.prices)

    def worst_usd(self, model: str, prompt_bytes: int, max_tokens: int) -> float:
        """Return the most that one call can cost: a token per byte, and all that it may answer with."""
        price = self.prices.get(model)
        return price.of(prompt_bytes, max_tokens) if price else 0.0

    def usd(self, model: str, tokens: tuple[int | None, int | None], worst: float) -> float:
        """Return what an answer cost by the token counts it came with; the worst case without them."""
        price = self.prices.get(model)
        if not price:
            return 0.0
        return worst if None in tokens else price.of(*tokens)

    def fits(self, usd: float) -> bool:
        """Whether so much more stays below the cap, whatever happens."""
        return self.cap_usd is None or self.spent_usd + self.reserved_usd + usd <= self.cap_usd

    async def reserve(self, usd: float) -> None:
        """Return once so much is set aside, durably; Stop when it will not fit under the cap any more."""
        if not usd:
            return
        while not self.fits(usd):
            if not self._n_reserved:
                raise self.exhausted(usd)
            self._settled.clear()  # calls under way mostly cost less than their worst case
            await self._settled.wait()
        self.reserved_usd += usd
        self._n_reserved += 1
        under_way = self.reserved_usd - self.batched_usd
        # the ledger must never promise less than what may be billed; mostly it already promises enough
        if self.spent_usd + under_way > self._committed_usd + self._at_risk_usd:
            try:
                self._commit(under_way)
            except BaseException:  # nothing will be sent: others must not wait for it
                self.settle(usd, 0.0)
                raise

    def settle(self, reserved: float, usd: float) -> None:
        """Turn a reservation into what was paid; until that is committed the ledger still has it at risk."""
        if not reserved:
            return
        self.reserved_usd -= reserved
        self._n_reserved -= 1
        self.spent_usd += usd
        self._settled.set()

    def add_batch(self, usd: float) -> None:
        """Count a batch that the ledger has just been told of."""
        self.reserved_usd += usd
        self.batched_usd += usd

    def end_batch(self, reserved: float, usd: float) -> None:
        """Turn a batch's reservation into what it cost; whoever calls this commits `spent_usd` with its end."""
        self.reserved_usd -= reserved
        self.batched_usd -= reserved
        self.spent_usd += usd

    def to_commit(self) -> float | None:
        """Return what the next row of the ledger is to say was spent, None where nothing is counted."""
        if not self.counts:
            return None
        self._committed_usd = self.spent_usd
        return self.spent_usd

    def close(self) -> None:
        """Commit that nothing is under way any more."""
        if self.counts:
            self._commit(0.0)

    def _commit(self, at_risk: float) -> None:
        self._committed_usd, self._at_risk_usd = self.spent_usd, at_risk
        self.store.set_money(self.spent_usd, at_risk)

    def exhausted(self, usd: float) -> Stop:
        """Return the line that says the cap is reached."""
        return Stop(
            f"budget_usd: ${self.spent_usd:.4f} of ${self.cap_usd:g} spent or at risk and the next call may cost "
            f"${usd:.4f}; what was answered is kept, raise budget_usd and run again"
        )


@dataclass
class Forecast:
    """What a `map` will ask, before it asks: scaled from some of its items to all of them.

    Tokens are estimated at four bytes each; hours at `concurrency` calls of 50 tokens a second.

    Ours: cost estimates are what users of such tools ask for first (distilabel#462, curator#559).
    """

    items: int = 0
    calls: float = 0
    stored: float = 0
    prompt_tokens: float = 0
    completion_tokens: float = 0
    usd: float = 0
    concurrency: int = 1
    unpriced: frozenset[str] = frozenset()

    def add(self, model: str, price: Price | None, prompt: float, completion: float, share: float) -> None:
        """Count one call of so many tokens at a share of the price."""
        self.calls += 1
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        if price:
            self.usd += price.of(prompt, completion) * share
        else:
            self.unpriced |= {model}

    def scaled(self, items: int) -> Forecast:
        """Return the forecast for so many items of the same kind."""
        by = items / max(1, self.items)
        numbers = ("calls", "stored", "prompt_tokens", "completion_tokens", "usd")
        return Forecast(
            items,
            **{n: getattr(self, n) * by for n in numbers},
            concurrency=self.concurrency,
            unpriced=self.unpriced,
        )

    @property
    def hours(self) -> float:
        """Return the hours it takes with `concurrency` calls under way all the time."""
        return self.completion_tokens / TOKENS_PER_SECOND / self.concurrency / 3600

    def row(self) -> dict[str, Any]:
        """Return the figures by name, for a table."""
        dollars = f"no price of {', '.join(sorted(self.unpriced))}" if self.unpriced else f"{self.usd:,.2f}"
        return {
            "items": f"{self.items:,}", "calls": f"{self.calls:,.0f}",
            "prompt tokens": f"{self.prompt_tokens:,.0f}", "completion tokens": f"{self.completion_tokens:,.0f}",
            "dollars": dollars, "hours": f"{self.hours:,.2f}",
        }  # fmt: skip

    def __str__(self) -> str:
        figures = " · ".join(f"{name} {value}" for name, value in self.row().items())
        kept = f" · {self.stored:,.0f} answers are there already" if self.stored else ""
        return (
            f"expected: {figures} (at {self.concurrency} under way, {TOKENS_PER_SECOND} tokens/s each){kept}"
        )
