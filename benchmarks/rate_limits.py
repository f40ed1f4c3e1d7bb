"""How much of an allowed rate is used, and how often it is exceeded, with many more workers than it takes.

    python benchmarks/rate_limits.py

The rehearsal server enforces limits as OpenAI does (buckets that refill evenly, full at the start) and says
so in its headers. `allowed` is what it would have let through in the time from the first request to the last
answer: the bucket and what came in since. About three minutes; writes benchmarks/rate_limits.csv.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import write_table

from ultrachat.rehearsal import RehearsalServer, Settings
from ultrachat.teacher import Request, Teacher, one_message

MAX_TOKENS = 100
CASES = [  # requests a minute, tokens a minute, requests in all, seconds a call, workers
    (300, None, 450, 0.5, 100),
    (600, None, 900, 2.0, 200),
    (None, 60_000, 800, 0.5, 100),
    (600, 60_000, 800, 0.5, 100),
]


def measure(
    folder: Path, per_minute: int | None, tokens: int | None, n: int, latency: float, workers: int
) -> dict:
    """Return one row of the table: the server's log says what was let through and what was not."""
    settings = Settings(latency_seconds=latency, requests_per_minute=per_minute, tokens_per_minute=tokens)
    with RehearsalServer(settings) as server:
        server.answer = lambda text: "Sea Breeze"
        teacher = Teacher(
            folder / "a.sqlite", server.url, "a-model", concurrency=workers, max_tokens=MAX_TOKENS
        )
        begin = time.monotonic()
        done, failed = teacher.map(ask_one, range(n))
        seconds = time.monotonic() - begin
        answered = [asked for asked in server.log if asked.outcome == "answered"]
        refused = sum(asked.outcome == "rate_limited" for asked in server.log)
    span = max(asked.began for asked in answered) - min(asked.began for asked in answered)
    # what the server counts for a request: its prompt and all that it may answer with
    units = [
        (per_minute, len(answered)),
        (tokens, sum(len(asked.text) // 4 + MAX_TOKENS for asked in answered)),
    ]
    used = max(count / (limit * (1 + span / 60)) for limit, count in units if limit)
    return {
        "requests a minute": per_minute or "",
        "tokens a minute": f"{tokens:,}" if tokens else "",
        "workers": workers,
        "seconds a call": latency,
        "requests": n,
        "answered": len(done),
        "set aside": len(failed),
        "refused with 429": refused,
        "seconds": f"{seconds:.0f}",
        "share of the allowed rate": f"{used:.0%}",
    }


async def ask_one(ask, number: int) -> str:
    text = f"Question {number}: what is a good name for a boat?"
    return await ask(Request(task="name", inputs={"number": number}, messages=one_message(text)))


def main() -> None:
    rows = []
    for case in CASES:
        with TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), *case))
            print(rows[-1], flush=True)
    write_table("rate_limits", rows)


if __name__ == "__main__":
    main()
