"""Not a test: a run that test_teacher.py starts as a process of its own, to kill or interrupt it.

python talk.py URL FOLDER [--patient] [--batch]    writes FOLDER/out.jsonl; with --patient it lives through a
Ctrl-C, with --batch it goes through the Batch API
"""

from __future__ import annotations

import sys
from pathlib import Path

from ultrachat.records import Opening, content_id, to_jsonl
from ultrachat.runs import write_text
from ultrachat.simulation import simulate
from ultrachat.store import open_store
from ultrachat.teacher import Request, Teacher, one_message

url, folder, patient = sys.argv[1], Path(sys.argv[2]), "--patient" in sys.argv
openings = [
    Opening(
        id=content_id(str(i)), sector="creation_and_generation", route="writing", task="t", subject="s",
        parent="p", text=f"Write poem {i}.",
    )
    for i in range(20)
]  # fmt: skip
teacher = Teacher(
    folder / "answers.sqlite", url, "a-model", concurrency=6, via="batches" if "--batch" in sys.argv else "calls",
    batch_poll_seconds=0.05,
)  # fmt: skip


async def talk(ask, opening):
    return await simulate(ask, opening, stop="drawn")


try:
    done, failed = teacher.map(talk, openings)
except KeyboardInterrupt:
    if not patient:
        raise
    with open_store(teacher.store_path) as store:
        print(f"interrupted, stored {len(store)}")
    answer = teacher.ask(Request(task="f", inputs={}, messages=one_message("fresh")))
    print(f"asked a fresh question: {answer}")
else:
    assert not failed
    write_text(folder / "out.jsonl", to_jsonl(done))
