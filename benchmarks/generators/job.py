"""The job every generator gets: two models talk, `n_rounds` rounds from each opening line.

A generator runs as `python <its file> JOB.json` and ends with `report(job, dialogues, meter)`. Everyone
sends the same requests: the assistant gets the dialogue as chat messages (`chat`), the user model gets
one user message, our own prompt (`user_prompt`), so the benchmark compares machinery and not wording.
The meter starts after the imports and stops when all dialogues are in hand.

Only pydantic and the standard library are needed here: every peer's environment has them.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ultrachat import prompts

SAMPLING = {"temperature": 1.0, "max_tokens": 2048}


class Opening(NamedTuple):
    """An opening line with what the user's prompt needs. Ours: invented, all different."""

    id: str
    text: str
    persona: str


class Job(NamedTuple):
    """What to do and where: as the driver wrote it into JOB.json. Ours: the paper has no such figures."""

    variant: str
    base_url: str
    model: str
    in_flight: int
    n_rounds: int
    openings: list[Opening]
    folder: Path


class Meter(NamedTuple):
    """Wall and CPU seconds at one moment, the CPU with all child processes that have ended.

    Ours: process time leaves out what others do on the machine.
    """

    wall_seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> Meter:
        """Return the reading of this moment. Ours: children count, distilabel works in them."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.monotonic(), time.process_time() + children.ru_utime + children.ru_stime)


def load() -> Job:
    """Return the job named on the command line. Ours: one file per run."""
    fields = json.loads(Path(sys.argv[1]).read_text())
    openings = [Opening(*row) for row in fields.pop("openings")]
    return Job(**fields | {"openings": openings, "folder": Path(fields["folder"])})


def chat(texts: list[str]) -> list[dict[str, str]]:
    """Return the alternating texts as chat messages, the user's first. Paper: §4.4."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def user_prompt(texts: list[str], opening: Opening) -> list[dict[str, str]]:
    """Return the one message that asks the user model for its next turn. Paper: §4.4."""
    text = prompts.user_turn(texts, "questions_about_the_world", opening.persona)
    return [{"role": "user", "content": text}]


def digest(requests: Iterable[list[dict[str, str]]]) -> str:
    """Return a digest of the messages of many requests in any order. Ours: same digest, same questions."""
    each = sorted(hashlib.sha256(json.dumps(m, sort_keys=True).encode()).hexdigest() for m in requests)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def requests_behind(job: Job, dialogues: list[list[str]]) -> Iterator[list[dict[str, str]]]:
    """Yield the messages of every request that should have led to these dialogues. Paper: §4.4."""
    opening_of = {opening.text: opening for opening in job.openings}
    for texts in dialogues:
        for n in range(1, len(texts)):
            yield chat(texts[:n]) if n % 2 else user_prompt(texts[:n], opening_of[texts[0]])


def report(job: Job, dialogues: list[list[str]], begin: Meter) -> None:
    """Stop the meter and write result.json: seconds, CPU seconds, complete dialogues, digest.

    A dialogue is its texts in order, from the opening on; complete means that it has all its rounds,
    none empty, and that its opening was asked for.

    Ours: a fast generator that loses dialogues is not fast.
    """
    end = Meter.now()
    asked = {opening.text for opening in job.openings}
    complete = {
        texts[0] for texts in dialogues if len(texts) == 2 * job.n_rounds and all(texts) and texts[0] in asked
    }
    result = {
        "job_seconds": end.wall_seconds - begin.wall_seconds,
        "job_cpu_seconds": end.cpu_seconds - begin.cpu_seconds,
        "n_complete": len(complete),
        "digest": digest(requests_behind(job, dialogues)),
    }
    (job.folder / "result.json").write_text(json.dumps(result))
