"""Rate limits of the rehearsal server: two token buckets for each model, and their headers.

    x-ratelimit-limit-requests: 500      x-ratelimit-remaining-requests: 499
    x-ratelimit-reset-requests: 120ms    (and the same three for tokens)

A bucket holds a minute's worth and fills evenly. A request is admitted when both hold enough for it:
one request, and the tokens of its prompt plus those it allows the answer. What is refused costs nothing.

Absent on purpose: limits by day, by key or by organisation.
"""

from __future__ import annotations

import math
import time

from ultrachat.rehearsal.answers import refuse


class Bucket:
    """So many units a minute, at most a minute's worth at once. Ours: the usual token bucket."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level, self._at = float(per_minute), now

    def level(self, now: float) -> float:
        """Return what is in it at the monotonic second `now`. Ours: filled when it is looked at."""
        gained = (now - self._at) * self.per_minute / 60
        self._level, self._at = min(float(self.per_minute), self._level + gained), now
        return self._level

    def wait_seconds(self, cost: int, now: float) -> float:
        """Return how long until it holds `cost`. Ours: what Retry-After says."""
        return max(0.0, cost - self.level(now)) * 60 / self.per_minute

    def take(self, cost: int) -> None:
        """Take `cost` out. Ours: only after `wait_seconds` was 0."""
        self._level -= cost


class Limits:
    """The buckets of all models; None is no limit, and then there are no headers.

    Ours: OpenAI's limits hold for each model apart.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        per_minute = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._per_minute = {kind: n for kind, n in per_minute.items() if n is not None}
        self._buckets: dict[str, dict[str, Bucket]] = {}

    def admit(self, model: str, n_tokens: int) -> dict[str, str]:
        """Return the headers after taking one request of `n_tokens` out, or refuse it with a 429.

        The 429 has the same headers and says in `retry-after` (whole seconds) and `retry-after-ms`
        when the request would be admitted; one larger than a bucket is told that it never will.

        Ours: as OpenAI documents it.
        """
        if not self._per_minute:
            return {}
        now = time.monotonic()
        if model not in self._buckets:
            self._buckets[model] = {kind: Bucket(n, now) for kind, n in self._per_minute.items()}
        buckets = self._buckets[model]
        costs = {"requests": 1, "tokens": n_tokens}
        for kind, bucket in buckets.items():
            if costs[kind] > bucket.per_minute:
                message = (
                    f"Request too large for {model}: limit {bucket.per_minute}, requested {costs[kind]}."
                )
                refuse(message, None, "rate_limit_exceeded", 429, kind, _headers(buckets, now))
        waits = {kind: bucket.wait_seconds(costs[kind], now) for kind, bucket in buckets.items()}
        kind = max(waits, key=lambda name: waits[name])
        if waits[kind] > 0:
            milliseconds = math.ceil(waits[kind] * 1000)
            headers = _headers(buckets, now) | {
                "retry-after": str(math.ceil(waits[kind])),
                "retry-after-ms": str(milliseconds),
            }
            message = f"Rate limit reached for {model} on {kind} per minute. Try again in {milliseconds}ms."
            refuse(message, None, "rate_limit_exceeded", 429, kind, headers)
        for name, bucket in buckets.items():
            bucket.take(costs[name])
        return _headers(buckets, now)


def _headers(buckets: dict[str, Bucket], now: float) -> dict[str, str]:
    headers = {}
    for kind, bucket in buckets.items():
        level = bucket.level(now)
        headers[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
        headers[f"x-ratelimit-remaining-{kind}"] = str(int(level))
        headers[f"x-ratelimit-reset-{kind}"] = duration(bucket.wait_seconds(bucket.per_minute, now))
    return headers


def duration(seconds: float) -> str:
    """Return a time as the API's headers have it: "12ms", "1.5s", "6m0s", "1h0m0s". Ours: Go's notation."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, left = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{left / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + text
