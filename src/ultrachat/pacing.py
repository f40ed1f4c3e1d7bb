"""When the next request may go: as fast as a server allows, and no faster.

Servers say in every reply how much of a rate limit is left and when it is full again:

    x-ratelimit-limit-requests: 600      x-ratelimit-remaining-requests: 599
    x-ratelimit-reset-requests: 100ms    … and the same three for tokens

That describes a bucket that refills evenly. `Pace` keeps a copy of it, takes out what it sends and
corrects the copy by every reply, so that the allowed rate is used and not exceeded. Until the first
reply has taught it the limits, one request goes ahead alone. `Retry-After` holds back every worker.

Absent on purpose: counting tokens exactly. A request's share of the token limit is estimated as the
servers do: a token per four characters, and all the tokens that it may answer with.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

ALONE_SECONDS = 2.0  # how long the first request keeps the others waiting, at most
SURE_UNITS = 10  # fewer used up, and rounding spoils the refill rate that follows from the reset time


class Sent(NamedTuple):
    """What is remembered of a request: when it was sent and how much had been taken by then.

    Ours: a reply speaks of the moment its own request came in.
    """

    at: float
    taken: Mapping[str, float]


@dataclass
class Bucket:
    """One rate limit, as far as it is known: `level` units are left at time `at`, `per_second` come in.

    Ours: servers describe a bucket; a fixed window is met by its 429 and Retry-After.
    """

    limit: float = float("inf")
    level: float = float("inf")
    per_second: float = 0.0
    at: float = 0.0
    taken: float = 0.0

    def _refill(self, now: float) -> None:
        self.level = min(self.limit, self.level + (now - self.at) * self.per_second)
        self.at = now

    def wait_seconds(self, units: float, now: float) -> float:
        """Return how long until `units` are there (a full bucket will do for more than it holds)."""
        self._refill(now)
        missing = min(units, self.limit) - self.level
        return missing / self.per_second if missing > 0 and self.per_second else 0.0

    def take(self, units: float) -> None:
        """Take units out for a request that is sent now."""
        self.level -= units
        self.taken += units

    def learn(self, limit: float, remaining: float, reset_seconds: float, sent: Sent, name: str) -> None:
        """Correct the copy: what a server said, plus what came in since, less what was taken since."""
        used = limit - remaining
        sure = used >= SURE_UNITS and reset_seconds > 0
        self.per_second = used / reset_seconds if sure else self.per_second or limit / 60
        now = time.monotonic()
        came_in = (now - sent.at) * self.per_second
        self.limit, self.at = limit, now
        self.level = min(limit, remaining + came_in) - (self.taken - sent.taken[name])


@dataclass
class Pace:
    """When one endpoint may be asked; shared by all workers and kept from one call of `map` to the next.

    Ours: the paper does not say how it met rate limits.
    """

    buckets: dict[str, Bucket] = field(default_factory=lambda: {"requests": Bucket(), "tokens": Bucket()})
    not_before: float = 0.0  # monotonic: set by Retry-After
    first_sent: float | None = None
    heard: bool = False

    def wait_seconds(self, tokens: float) -> float:
        """Return how long a request of so many tokens has to wait, as far as is known now; 0: send it."""
        now = time.monotonic()
        if not self.heard and self.first_sent is not None and now < self.first_sent + ALONE_SECONDS:
            return 0.005
        waits = (
            self.buckets["requests"].wait_seconds(1, now),
            self.buckets["tokens"].wait_seconds(tokens, now),
        )
        return max(self.not_before - now, *waits, 0.0)

    def sending(self, tokens: float) -> Sent:
        """Take a request out of the buckets and return what `heard_of` will need when its reply is there."""
        self.buckets["requests"].take(1)
        self.buckets["tokens"].take(tokens)
        now = time.monotonic()
        self.first_sent = self.first_sent or now
        return Sent(now, {name: bucket.taken for name, bucket in self.buckets.items()})

    def heard_of(self, sent: Sent, headers: Mapping[str, str]) -> None:
        """Learn from the headers of a reply."""
        self.heard = True
        if "x-ratelimit-limit-requests" not in headers and "x-ratelimit-limit-tokens" not in headers:
            return
        for name, bucket in self.buckets.items():
            limit = _number(headers.get(f"x-ratelimit-limit-{name}"))
            remaining = _number(headers.get(f"x-ratelimit-remaining-{name}"))
            reset = duration_seconds(headers.get(f"x-ratelimit-reset-{name}", ""))
            if limit and limit > 0 and remaining is not None and reset is not None:
                bucket.learn(limit, max(0.0, min(remaining, limit)), reset, sent, name)

    def hold(self, seconds: float) -> None:
        """Let nobody send for so long."""
        self.not_before = max(self.not_before, time.monotonic() + seconds)


def _number(text: str | None) -> float | None:
    """Return a plain number of a header, None for anything else."""
    return float(text) if text and re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text) else None


_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_seconds(text: str) -> float | None:
    """Return the seconds in "12ms", "1.5s", "6m0s", "1h2m" or a bare number; None for anything else.

    Ours: the forms that rate-limit headers come in.
    """
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    if not re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ms|s|m|h|d))+", text):
        return None
    return sum(
        float(n) * _UNIT_SECONDS[unit] for n, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|s|m|h|d)", text)
    )


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
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ):  # none, not a date, or only one of the two has a time zone
        return None
