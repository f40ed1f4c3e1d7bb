"""The rehearsal server as the benchmark's other side: 100 fixed words after a fixed latency.

    python server.py LATENCY_SECONDS     prints its base URL, serves until it reads a line, prints its log

The log's summary is one JSON object: the number of calls, the seconds from the first one's arrival to the
last answer, the most calls under way, the CPU seconds of serving, and the digest of all messages, which
proves that a generator asked what the job says.
"""

from __future__ import annotations

import json
import sys
import time

from job import digest

from ultrachat.rehearsal import RehearsalServer, Settings

WORDS = "the answer takes a few plain words and says what one could say about it in short "
ANSWER = " ".join((WORDS * 6).split()[:100]) + "."


def main() -> None:
    server = RehearsalServer(Settings(latency_seconds=float(sys.argv[1])))
    server.answer = lambda text: ANSWER
    with server:
        print(server.url, flush=True)
        cpu_seconds = time.process_time()
        sys.stdin.readline()
        cpu_seconds = time.process_time() - cpu_seconds
        # refused: curator asks for the rate limits with a request that has no messages
        calls = [asked for asked in server.log if asked.messages and asked.outcome == "answered"]
        summary = {
            "n_calls": len(calls),
            "seconds": max(asked.answered or 0.0 for asked in calls) - min(asked.began for asked in calls),
            "most_in_flight": server.most_under_way,
            "cpu_seconds": cpu_seconds,
            "digest": digest(asked.messages for asked in calls),
        }
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
