"""Measuring files: blocks, processes, kills and Ray all give the last digit of one pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ultrachat import measure as M
from ultrachat import statistics as S
from ultrachat.corpora import blocks, read, seen_format
from ultrachat.errors import Stop
from ultrachat.tokens import token_counter
from ultrachat.topics import ContentSample

REPO = Path(__file__).resolve().parent.parent
EVERY = tuple(d.key for d in S.DEFINITIONS)
WORDS = [
    "the",
    "a",
    "pear",
    "fig",
    "tree",
    "grows",
    "slowly",
    "near",
    "water",
    "and",
    "bears",
    "fruit",
    "in",
    "late",
    "summer",
    "–",
    "or",
    "so",
    "“they”",
    "say",
    "42",
]


def write_set(path: Path, n: int) -> Path:
    """Dialogues of many lengths in UltraChat's format, and two bad rows among them."""
    rows = []
    for i in range(n):
        texts = [
            " ".join(WORDS[(i * j + k * k) % len(WORDS)] for k in range(3 + (i + j) % 29))
            for j in range(2 + 2 * (i % 3))
        ]
        rows.append(json.dumps({"id": str(i), "data": texts}))
    rows[1:1] = ["{broken", json.dumps({"id": "x", "data": "no list"})]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Files of a few kilobytes in many blocks."""
    monkeypatch.setattr(M, "BLOCK_BYTES", 4_000)
    monkeypatch.setattr(M, "blocks", lambda path: blocks(path, 4_000))


def plan(path: Path, **changed) -> M.Plan:
    settings = {"format": seen_format(path), "definitions": EVERY, "n_sample": 7} | changed
    return M.Plan(**settings)


def as_json(totals: M.Totals) -> str:
    return json.dumps(totals.to_json())


def test_a_file_in_blocks_is_the_file(tmp_path, small_blocks):
    path = write_set(tmp_path / "a.jsonl", 300)
    totals = M.measure(path, plan(path), processes=1, progress=False)
    reading = read(path)
    dialogues = list(reading.texts())
    assert len(list(blocks(path, 4_000))) > 10
    assert totals.counts == reading.counts and totals.counts.n_bad == 2
    assert totals.sums == S.sums_over(dialogues, token_counter("words"), S.DEFINITIONS)
    whole = ContentSample(7, M.SAMPLE_CHARACTERS)
    for texts in dialogues:
        whole.add(S.labelled_text(texts))
    assert totals.sample.texts() == whole.texts()
    assert as_json(M.Totals.from_json(json.loads(as_json(totals)))) == as_json(totals)


def test_two_processes_give_the_same_last_digit(tmp_path, small_blocks):
    path = write_set(tmp_path / "a.jsonl", 300)
    one = M.measure(path, plan(path), processes=1, progress=False)
    two = M.measure(path, plan(path), processes=2, progress=False)
    assert as_json(one) == as_json(two)


def test_shards_add_up(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 200)
    whole = M.measure(path, plan(path), processes=1, progress=False)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    added = None
    for number, part in enumerate((lines[:3], lines[3:50], lines[50:])):
        shard = tmp_path / f"{number}.jsonl"
        shard.write_text("".join(part), encoding="utf-8")
        totals = M.measure(shard, plan(path), processes=1, progress=False)
        added = totals if added is None else added + totals
    assert added.sums == whole.sums and added.sample.texts() == whole.sample.texts()
    assert added.counts.n_dialogues == whole.counts.n_dialogues and added.counts.n_bad == 2


def test_questions_are_looked_for(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 20)
    question = "why does bread rise so slowly on a cold day in winter"
    rows = [
        {"id": "q", "data": [question, "Yeast."]},
        {"id": "r", "data": ["Hello there", f"You asked: {question}"]},
    ]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        json.dumps({"question_id": 1, "text": question.capitalize() + "?", "category": "x"}) + "\n"
    )
    totals = M.measure(path, plan(path, evaluation=(("Q", str(questions)),)), processes=2, progress=False)
    found = totals.overlap.table().loc["Q"]
    assert (found["questions"], found["questions_as_opening"], found["dialogues_by_opening"]) == (1, 1, 1)
    assert found["dialogues_anywhere"] == 2


def test_what_was_measured_is_not_measured_again(tmp_path, small_blocks, monkeypatch):
    path = write_set(tmp_path / "a.jsonl", 300)
    undisturbed = M.measure(path, plan(path), processes=1, progress=False)
    monkeypatch.setattr(M, "CHECKPOINT_SECONDS", 0.0)
    measured: list[int] = []

    class Interrupted(M.Measurer):
        def __call__(self, block):
            if len(measured) == 5:
                raise KeyboardInterrupt
            measured.append(block.position)
            return super().__call__(block)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(M, "Measurer", Interrupted)
        M.measure(path, plan(path), processes=1, checkpoints=tmp_path / "kept", progress=False)
    (kept,) = (tmp_path / "kept").iterdir()
    seen: list[int] = []

    class Watched(M.Measurer):
        def __call__(self, block):
            seen.append(block.position)
            return super().__call__(block)

    monkeypatch.setattr(M, "Measurer", Watched)
    totals = M.measure(path, plan(path), processes=1, checkpoints=tmp_path / "kept", progress=False)
    assert measured == [0, 1, 2, 3, 4] and seen[0] == 5
    assert as_json(totals) == as_json(undisturbed)
    assert not kept.exists()  # complete


NOTHING = '"counts": {}, "sample": null, "overlap": null'
DAMAGES = ("", "{", "[]", '{"n_blocks": 3}', '{"n_blocks": 3, "totals": {"counts": 1}}')
DAMAGES += tuple(
    f'{{"n_blocks": 3, "totals": {{"sums": {sums}, {NOTHING}}}}}' for sums in ("[]", "{}", '{"a": 1}')
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_time_only(tmp_path, damage):
    path = write_set(tmp_path / "a.jsonl", 30)
    expected = M.measure(path, plan(path), processes=1, progress=False)
    kept = M._Checkpoint.at(tmp_path / "kept", path, plan(path))
    kept._path.parent.mkdir()
    kept._path.write_text(damage)
    assert as_json(
        M.measure(path, plan(path), processes=1, checkpoints=tmp_path / "kept", progress=False)
    ) == as_json(expected)


def test_another_plan_or_a_changed_file_begins_anew(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 30)
    kept = {M._Checkpoint.at(tmp_path, path, plan(path))._path}
    kept.add(M._Checkpoint.at(tmp_path, path, plan(path, tokenizer="whitespace"))._path)
    os.utime(path, (1, 1))
    kept.add(M._Checkpoint.at(tmp_path, path, plan(path))._path)
    assert len(kept) == 3


KILLED = """
import sys
from pathlib import Path
from ultrachat import measure as M, statistics as S
from ultrachat.corpora import blocks
M.BLOCK_BYTES = 20_000
M.blocks = lambda path: blocks(path, 20_000)
M.CHECKPOINT_SECONDS = 0.0
if __name__ == "__main__":
    path = Path(sys.argv[1])
    plan = M.Plan(format="ultrachat", definitions=tuple(d.key for d in S.DEFINITIONS), n_sample=7)
    totals = M.measure(path, plan, processes=2, checkpoints=path.parent / "kept", progress=False)
    import json
    print(json.dumps(totals.to_json()))
"""


def test_kill_9_in_the_middle(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 20_000)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(path)]
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept = tmp_path / "kept"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    for _ in range(3_000):
        found = list(kept.glob("a.jsonl-*.json"))
        if found and json.loads(found[0].read_bytes())["n_blocks"] >= 2:
            break
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(kept.iterdir())
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == expected
    assert not list(kept.glob("a.jsonl-*.json"))


def test_bad_input_is_one_line(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 3)
    for changed, says in (
        ({"tokenizer": "nonsense"}, "tokenizer 'nonsense'"),
        ({"segmenter": "scissors"}, "segmenter 'scissors'"),
        ({"format": "baize"}, "no row is of the format 'baize'"),
        ({"evaluation": (("Q", str(tmp_path / "none.jsonl")),)}, "none.jsonl"),
        ({"strict": True}, ":2: not JSON"),
    ):
        for processes in (1, 2):
            with pytest.raises(Stop, match=says):
                M.measure(path, plan(path, **changed), processes=processes, progress=False)
    with pytest.raises(Stop, match="cannot be read"):
        M.measure(tmp_path / "absent.jsonl", plan(path), processes=1, progress=False)


def test_ray_gives_the_same_last_digit(tmp_path, small_blocks, monkeypatch):
    pytest.importorskip("ray")
    path = write_set(tmp_path / "a.jsonl", 200)
    one = M.measure(path, plan(path), processes=1, progress=False)
    assert as_json(M.measure_on_ray(path, plan(path), processes=1)) == as_json(one)


def test_without_ray_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_set(tmp_path / "a.jsonl", 3)
    with pytest.raises(Stop, match="cluster"):
        M.measure_on_ray(path, plan(path))


# ---- what must not be believed ----------------------------------------------------------------


def test_other_questions_or_another_tokenizer_under_the_same_name_begin_anew(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 3)
    questions = tmp_path / "q.jsonl"
    identities = set()
    for text in ("Why is the sky blue?", "Why is the sea blue?"):
        questions.write_text(json.dumps({"question_id": 1, "text": text, "category": "x"}) + "\n")
        identities.add(
            M._Checkpoint.at(tmp_path, path, plan(path, evaluation=(("Q", str(questions)),)))._path
        )
    tokenizer = tmp_path / "tokenizer.json"
    for text in ("{}", "{ }"):
        tokenizer.write_text(text)
        for name in (tokenizer, tmp_path):
            identities.add(M._Checkpoint.at(tmp_path, path, plan(path, tokenizer=str(name)))._path)
    assert len(identities) == 6


def test_totals_stay_until_they_are_forgotten(tmp_path, monkeypatch):
    path, kept = write_set(tmp_path / "a.jsonl", 30), tmp_path / "kept"
    first = M.measure(path, plan(path), processes=1, checkpoints=kept, keep=True, progress=False)
    monkeypatch.setattr(M.Measurer, "__call__", lambda self, block: pytest.fail("measured again"))
    again = M.measure(path, plan(path), processes=1, checkpoints=kept, keep=True, progress=False)
    assert as_json(again) == as_json(first)
    M.forget(path, plan(path), kept)
    assert not list(kept.iterdir())
    M.forget(path, plan(path), kept)  # nothing left to forget is fine


def test_a_file_that_changes_meanwhile_stops(tmp_path, small_blocks, monkeypatch):
    path = write_set(tmp_path / "a.jsonl", 300)
    whole = path.read_bytes()

    class Disturbed(M.Measurer):
        def __call__(self, block):
            if block.position == 2:
                path.write_bytes(self.instead)
            return super().__call__(block)

    monkeypatch.setattr(M, "Measurer", Disturbed)
    for Disturbed.instead, says in (
        (whole[:9_000], "changed while it was read"),
        (whole + b"\n", "changed while"),
    ):
        path.write_bytes(whole)
        with pytest.raises(Stop, match=says):
            M.measure(path, plan(path), processes=1, checkpoints=tmp_path / "kept", progress=False)


def test_a_worker_that_dies_is_one_line_and_costs_nothing_done(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 20_000)
    script = tmp_path / "dies.py"
    script.write_text(
        KILLED.replace(
            "    totals = M.measure",
            "    import os, signal, threading, multiprocessing as mp\n"
            "    def kill():\n"
            "        while not list((path.parent / 'kept').glob('*.json')): pass\n"
            "        os.kill(mp.active_children()[0].pid, signal.SIGKILL)\n"
            "    threading.Thread(target=kill, daemon=True).start()\n"
            "    totals = M.measure",
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "Stop" in done.stderr.splitlines()[-1] and "a worker process died" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "kept").glob("a.jsonl-*.json"))


def test_an_interrupt_ends_both_processes_and_keeps_what_is_done(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 20_000)
    script = tmp_path / "stopped.py"
    script.write_text(KILLED)
    kept = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell that starts the tests in the background has them ignore it, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(kept.glob("a.jsonl-*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    process.communicate(timeout=60)
    assert process.returncode != 0 and list(kept.glob("a.jsonl-*.json"))
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        for _ in range(200):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_nobody_is_left_when_only_the_parent_is_killed(tmp_path):
    path = write_set(tmp_path / "a.jsonl", 20_000)
    script = tmp_path / "alone.py"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(script), str(path)], start_new_session=True)
    while not list((tmp_path / "kept").glob("a.jsonl-*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ProcessLookupError):  # its children are of its group
        for _ in range(200):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_what_is_too_much_for_ray_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": "1", "data": ["Hi", "Hello"]}] * 30))
    monkeypatch.setattr(M, "MOST_SENT_BYTES", 100)
    with pytest.raises(Stop, match="unpack it to plain JSONL"):
        list(M._to_send(path))


def test_a_cluster_that_is_not_there_is_one_line():
    pytest.importorskip("ray")
    from ultrachat.clusters import start_ray

    with pytest.raises(Stop, match="ray: cannot be reached at 127.0.0.1:9"):
        start_ray(1, "127.0.0.1:9")
