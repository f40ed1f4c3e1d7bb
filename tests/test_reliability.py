"""Short versions of benchmarks/reliability.py, and proof that its judges see what they are there to see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fault_server import as_json, completion

from ultrachat.rehearsal import RehearsalServer, Settings
from ultrachat.store import Row, open_store
from ultrachat.teacher import Request, Teacher, one_message

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "reliability"))


def missed(code: str) -> list[str]:
    """Run a benchmark's `measure` in a process of its own, which may fork; return what it missed."""
    paths = [BENCHMARKS / "reliability", BENCHMARKS, BENCHMARKS.parent / "src"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OPENAI_API_KEY": "none"}
    program = f"{code}\nprint('missed:', [line for table in tables for line in table.misses])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("missed: "), done.stdout
    return [] if last == "missed: []" else [last, done.stdout]


def test_kills_lose_and_double_nothing_and_ask_again_no_more_than_was_in_flight():
    assert missed("import kills\ntables = kills.measure(40, n_dialogues=60)") == []


def test_torn_logs_are_exact_prefixes_and_flipped_bits_never_silently_wrong():
    assert missed("import damage\ntables = damage.measure(80)") == []


@pytest.mark.skipif(sys.platform != "linux", reason="the failing disk is a preloaded library")
def test_a_failing_disk_stops_with_one_line_and_the_resume_is_exact():
    assert missed("import disk\ntables = disk.measure(7)") == []


def test_every_dialogue_finishes_whatever_three_in_ten_requests_meet():
    modes = 'Mode("none", 0.02), Mode("fast", 0.02, "fast"), Mode("slow", 0.02, "fast,slow")'
    code = f"from throughput import Mode, measure\ntables = measure(12, ({modes}), repeats=1)"
    assert missed(code) == []


def test_the_bill_stays_below_the_cap_and_what_is_shown_above_the_bill():
    code = (
        "import budget\nmode = budget.MODES[0]._replace(n_dialogues=100, cap_usd=0.6, longest_life_seconds=0.2)\n"
        "budget.KILLS_A_RUN = 4\ntables = budget.measure(1, (mode,))"
    )
    assert missed(code) == []


def test_some_faults_have_their_class_and_the_key_shows_up_nowhere():
    names = ("http_401", "insufficient_quota", "http_429", "retry_after_ms", "hang", "cut_json", "length",
             "usage_none", "redirect", "reset_in_body")  # fmt: skip
    assert missed(f"import matrix\ntables = matrix.measure(names={names!r})") == []


def test_mutated_bodies_are_answers_or_have_a_class():
    assert missed("import bodies\ntables = bodies.measure(400)") == []


# ---- found by the benchmarks ------------------------------------------------------------------


async def put(ask, text):
    return await ask(Request(task="t", inputs={"text": text}, messages=one_message(text)))


def test_a_row_of_a_batch_that_is_charged_and_set_aside_is_on_the_bill(tmp_path):
    with RehearsalServer(Settings(batch_seconds=0.0)) as server:
        teacher = Teacher(
            tmp_path / "a.sqlite", server.url, "a-model", via="batches", batch_poll_seconds=0.05,
            max_tokens=10, prices={"a-model": [1.0, 4.0]},
        )  # fmt: skip
        _, failed = teacher.map(put, ["Write poem 1.", "Write poem 2."])
        tokens = [(a.prompt_tokens, a.completion_tokens) for a in server.log if a.billed]
    assert {f.kind for f in failed} == {"length"} and len(tokens) == 2
    with open_store(tmp_path / "a.sqlite") as store:
        assert sum(store.money()) >= sum(p * 1.0 + c * 4.0 for p, c in tokens) / 1e6 / 2


def test_a_request_that_found_no_server_is_not_on_the_bill(tmp_path, no_backoff):
    with RehearsalServer() as server:
        url = server.url
    teacher = Teacher(tmp_path / "a.sqlite", url, "a-model", max_tries=3, prices={"a-model": [1.0, 4.0]})
    _, failed = teacher.map(put, ["a"])
    assert failed[0].kind == "connection"
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.money() == (0.0, 0.0)


def test_an_answer_that_ended_for_no_named_reason_has_a_class(tmp_path, server):
    server.fault = lambda text, nth: as_json(completion("half", ""))
    _, failed = Teacher(tmp_path / "a.sqlite", server.url, "a-model").map(put, ["a"])
    assert failed[0].kind == "unnamed"


# ---- the judges -------------------------------------------------------------------------------


def entry(digest: str, began: float, answered: float | None, outcome: str = "answered") -> dict:
    return {"digest": digest, "began": began, "answered": answered, "outcome": outcome}


def kept(*keys: str):
    from rig import Kept

    return Kept({key: Row(key, "t", "{}", "m", "text", 1, 1) for key in keys}, 0.0, 0)


KEYS = {"d1": "k1", "d2": "k2"}


def judged(log, at_the_kill, final=("k1", "k2")):
    from kills import Kill, judge

    return judge(log, [0.0, 10.0], [Kill(5.0, 1, kept(*at_the_kill), None)], kept(*final), KEYS)


def test_an_answer_that_was_not_kept_may_be_asked_again():
    figures = judged([entry("d1", 1, 2), entry("d2", 4, None), entry("d2", 11, 12)], ["k1"])
    assert figures.bounds == [(1, 1)] and figures.paid_twice == 1 and not figures.lost and not figures.doubled


def test_a_kept_answer_that_is_asked_again_or_goes_missing_is_lost():
    assert judged([entry("d1", 1, 2), entry("d1", 11, 12), entry("d2", 11, 12)], ["k1"]).lost == 1
    assert judged([entry("d1", 1, 2), entry("d2", 11, 12)], ["k1"], final=["k2"]).lost == 1


def test_what_is_asked_again_without_having_been_in_flight_is_paid_twice():
    figures = judged([entry("d1", 11, 12), entry("d1", 13, 14), entry("d2", 11, 12)], [])
    assert figures.bounds == [(0, 0)] and figures.paid_twice == 1


def test_a_fault_that_was_heard_is_not_in_flight():
    log = [
        entry("d1", 1, 2, "http_500"),
        entry("d2", 4, 6, "http_500"),
        entry("d1", 11, 12),
        entry("d2", 11, 12),
    ]
    assert judged(log, []).bounds == [(0, 1)]


def test_every_kill_must_keep_its_own_bound():
    from kills import Figures, misses_of

    figures = Figures(Counter({1: 2}), 2, runs=1, identical=1, bounds=[(0, 9), (3, 2)], paid_twice=3)
    assert misses_of("x", figures) == ["x: 1 kills after which more was asked again than was in flight"]


def test_a_bill_is_what_was_billed_before_a_moment_and_half_of_it_for_batches():
    from budget import bill

    log = [
        {"prompt_tokens": 10, "completion_tokens": 100, "billed": True, "batch": batch, "began": began}
        for batch, began in (("", 1.0), ("batch_1", 2.0), ("", 3.0))
    ] + [{"prompt_tokens": 10, "completion_tokens": 100, "billed": False, "batch": "", "began": 1.0}]
    assert bill(log) == pytest.approx(2.5 * 410e-6) and bill(log, 3.0) == pytest.approx(1.5 * 410e-6)


def test_only_a_whole_completion_is_acceptable():
    from bodies import acceptable, judge

    def good(content):
        return as_json(completion(content)).body

    assert acceptable(200, good("fine")) == "fine" and acceptable(200, good("a\ud800\x00")) == "a?\ufffd"
    assert acceptable(500, good("fine")) is acceptable(200, good(" ")) is acceptable(200, b"[]") is None
    rows = {"1": Row("k", "t", "{}", "m", "other", 1, 1), "2": Row("k", "t", "{}", "m", "x", 1, 1)}
    replies = {"1": (200, good("fine")), "2": (200, b"x"), "3": (200, good("fine")), "4": (200, b"x")}
    found = judge(replies, rows, {"3": "empty", "4": ""})
    assert (found["junk_rows"], found["good_refused"], found["without_a_class"]) == (2, 1, 1)


def test_what_reads_otherwise_after_a_flipped_bit_is_wrong_unless_it_is_only_missing(tmp_path):
    from damage import outcome_of

    path = tmp_path / "a.sqlite"
    for found, outcome in (({"a": 1}, "harmless"), ({}, "asked again"), ({"a": 2}, "wrong")):
        assert outcome_of(path, "get", lambda store, found=found: found, {"a": 1}) == outcome
    assert outcome_of(path, "money", lambda store: (0.0, 0.0), (1.0, 0.0)) == "wrong"
    assert outcome_of(path, "get", lambda store: 1 // 0, {}) == "traceback"
