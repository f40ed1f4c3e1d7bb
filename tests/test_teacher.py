"""The seam to a language model, against a server that misbehaves; its log says what was really asked."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from fault_server import FAULTS, FaultServer, Reply, answer_to, as_json, completion, error
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import calls, pacing
from ultrachat import teacher as module
from ultrachat.calls import body_of
from ultrachat.errors import Stop
from ultrachat.store import open_store
from ultrachat.teacher import CallFailed, Endpoint, Request, Teacher, one_message

CANARY = "sk-canary-0123456789"
TALK = Path(__file__).with_name("talk.py")


def request(text: str, **fields) -> Request:
    return Request(task="t", inputs={"text": text}, messages=one_message(text), **fields)


async def put(ask, text):
    return await ask(request(text))


def live(tmp_path: Path, server: FaultServer, **fields) -> Teacher:
    return Teacher(tmp_path / "answers.sqlite", server.url, "a-model", **fields)


def rows(path: Path) -> int:
    with open_store(path) as store:
        return len(store)


def failures(path: Path) -> dict:
    with open_store(path) as store:
        return store.failures()


# ---- what goes in and comes out ---------------------------------------------------------------


def test_results_come_back_in_the_order_of_the_items(tmp_path, server):
    server.fault = lambda text, nth: (
        as_json(completion(answer_to(text)), delay_seconds=0.2) if text == "0" else None
    )
    items = [str(i) for i in range(20)]
    teacher = live(tmp_path, server, concurrency=5)
    assert teacher.map(put, items) == ([answer_to(i) for i in items], [])
    assert server.most_under_way <= 5
    assert teacher.usage() == {
        "answers": 20, "asked": 20, "prompt_tokens": 140, "completion_tokens": 100,
    }  # fmt: skip


def test_no_items_no_calls(tmp_path, server):
    assert live(tmp_path, server).map(put, []) == ([], []) and not server.log


def test_what_was_answered_is_not_asked_again(tmp_path, server):
    live(tmp_path, server).map(put, ["a", "b"])
    again = live(tmp_path, server)
    assert again.map(put, ["b", "c", "a"]) == ([answer_to(t) for t in "bca"], [])
    assert server.times() == {"a": 1, "b": 1, "c": 1}
    assert again.usage()["answers"] == 3 and again.usage()["asked"] == 1


def test_everything_that_shapes_an_answer_is_in_its_key(tmp_path, server):
    base = Request(task="t", inputs={"i": 1}, messages=one_message("a"))
    live(tmp_path, server).ask(base)
    changed = [
        (live(tmp_path, server), Request(task="u", inputs={"i": 1}, messages=one_message("a"))),
        (live(tmp_path, server), Request(task="t", inputs={"i": 2}, messages=one_message("a"))),
        (live(tmp_path, server), Request(task="t", inputs={"i": 1}, messages=one_message("a "))),
        (
            live(tmp_path, server),
            Request(task="t", inputs={"i": 1}, messages=[{"role": "system", "content": "a"}]),
        ),
        (live(tmp_path, server, temperature=0.5), base),
        (live(tmp_path, server, max_tokens=9), base),
        (Teacher(tmp_path / "answers.sqlite", server.url, "other"), base),
        (live(tmp_path, server), replace(base, seed=0)),
        (live(tmp_path, server), replace(base, seed=1)),
        (live(tmp_path, server), replace(base, accept_cut=True)),
        (named(tmp_path, server, "mine"), base),
        (named(tmp_path, server, "mine, trained again"), base),
    ]
    for number, (teacher, asked) in enumerate(changed, start=2):
        teacher.ask(asked)
        assert len(server.log) == number
    live(tmp_path, server).ask(base)
    Teacher(tmp_path / "answers.sqlite", server.url + "/", "a-model").ask(base)  # the same place
    assert len(server.log) == len(changed) + 1


def named(tmp_path: Path, server: FaultServer, ledger_name: str) -> Teacher:
    seats = {"assistant": Endpoint(server.url, "a-model", ledger_name=ledger_name)}
    return Teacher(tmp_path / "answers.sqlite", server.url, "a-model", seats)


def test_the_key_of_a_request_without_seed_is_what_it_always_was(tmp_path):
    """Worked out by hand: ledgers of earlier versions stay valid."""
    teacher = Teacher(tmp_path / "answers.sqlite", "http://127.0.0.1:9/v1", "a-model", temperature=0.5)
    text = (
        '{"base_url":"http://127.0.0.1:9/v1","inputs":{"text":"a"},"max_tokens":2048,'
        '"messages":[{"content":"a","role":"user"}],"model":"a-model","task":"t","temperature":0.5}'
    )
    key = hashlib.sha256(text.encode()).hexdigest()
    assert teacher._key(request("a")) == key
    assert teacher._key(request("a", accept_cut=True)) == key + calls.CUT_WILL_DO
    seeded = hashlib.sha256(text.replace('"task"', '"seed":7,"task"').encode()).hexdigest()
    assert teacher._key(request("a", seed=7)) == seeded


def test_a_ledger_name_outlives_the_port_and_is_what_people_see(tmp_path, server):
    assert named(tmp_path, server, "mine").ask(request("a")) == answer_to("a")
    with FaultServer() as elsewhere:
        again = named(tmp_path, elsewhere, "mine")
        assert again.ask(request("a")) == answer_to("a") and not elsewhere.log
    assert again.describe() == f"default: a-model at {elsewhere.url} · assistant: a-model at mine"


def test_a_seed_is_sent_and_nothing_else_of_it(tmp_path, server):
    bodies = [body_of(request("a", **fields), Endpoint(server.url, "m"), {"max_tokens": 1} | sampling) for fields, sampling in
              (({}, {}), ({"seed": 3, "accept_cut": True}, {"seed": 3}))]  # fmt: skip
    assert bodies[1] == bodies[0] | {"seed": 3} and "seed" not in bodies[0]
    teacher = live(tmp_path, server)
    assert (
        "seed" not in teacher._sampling(request("a")) and teacher._sampling(request("a", seed=0))["seed"] == 0
    )


def test_a_cut_answer_is_one_where_it_will_do(tmp_path, server):
    server.fault = lambda text, nth: as_json(completion("half an ans", "length"))
    teacher = live(tmp_path, server)
    assert teacher.ask(request("a", accept_cut=True)) == "half an ans"
    _, failed = teacher.map(put, ["a"])  # what is kept is no answer to who wants a whole one
    assert [f.kind for f in failed] == ["length"] and len(server.log) == 2
    assert teacher.ask(request("a", accept_cut=True)) == "half an ans" and len(server.log) == 2
    server.fault = lambda text, nth: as_json(completion("", "content_filter"))
    with pytest.raises(Stop, match="content_filter"):
        teacher.ask(request("b", accept_cut=True))


def test_one_question_asked_by_several_items_at_once_is_sent_once(tmp_path, server):
    server.latency_seconds = 0.05
    texts = iter(range(100))
    server.answer = lambda text: f"answer {next(texts)}"  # a real model does not repeat itself
    done, failed = live(tmp_path, server).map(put, ["same"] * 8)
    assert set(done) == {"answer 0"} and not failed and len(server.log) == 1


def test_items_are_results_plus_failures(tmp_path, server, no_backoff):
    server.fault = lambda text, nth: error(400) if int(text) % 3 == 0 else None
    done, failed = live(tmp_path, server).map(put, [str(i) for i in range(9)])
    assert [f.item for f in failed] == ["0", "3", "6"] and {f.kind for f in failed} == {"http_400"}
    assert done == [answer_to(str(i)) for i in range(9) if i % 3]
    assert max(server.times().values()) == 1  # a rejected request is not sent again


def test_an_item_may_fail_on_its_own_account(tmp_path, server):
    async def picky(ask, text):
        answer = await ask(request(text))
        if text == "b":
            raise CallFailed("picky", "not to my taste")
        return answer

    done, failed = live(tmp_path, server).map(picky, ["a", "b", "c"])
    assert len(done) == 2 and failed == [("b", "picky", "not to my taste")]


def test_a_mistake_in_the_function_comes_out_as_itself_and_calls_under_way_are_kept(tmp_path, server):
    server.latency_seconds = 0.1

    async def broken(ask, text):
        answer = await ask(request(text))
        return answer if text != "2" else {}["missing"]

    with pytest.raises(KeyError):
        live(tmp_path, server, concurrency=4).map(broken, [str(i) for i in range(40)])
    assert rows(tmp_path / "answers.sqlite") == len(server.log) < 40


def test_an_answer_is_cleaned_at_the_door(tmp_path, server):
    server.fault = lambda text, nth: Reply(
        rb'{"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "a\ud800b\u0000c"}}]}'
    )
    assert live(tmp_path, server).ask(request("a")) == "a?b\ufffdc"
    assert live(tmp_path, server).ask(request("a")) == "a?b\ufffdc" and len(server.log) == 1


def test_a_text_that_cannot_be_sent_stops_with_one_line(tmp_path, server):
    with pytest.raises(Stop, match="task 't'.*surrogate"):
        live(tmp_path, server).ask(request("\ud800"))


@pytest.mark.parametrize("usage", [None, [], "many", {"prompt_tokens": -3}, {"prompt_tokens": "7"},
                                   {"prompt_tokens": 10**30}, {"prompt_tokens": True}])  # fmt: skip
def test_odd_usage_costs_no_answer(tmp_path, server, usage):
    server.fault = lambda text, nth: as_json({**completion("fine"), "usage": usage})
    teacher = live(tmp_path, server)
    assert teacher.ask(request("a")) == "fine" and teacher.usage()["prompt_tokens"] == 0


def test_seats_may_be_two_endpoints_with_two_keys(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "first-key")
    monkeypatch.setenv("USER_KEY", "second-key")
    with FaultServer() as other:
        seats = {"user": Endpoint(other.url, "user-model", "USER_KEY")}
        teacher = live(tmp_path, server, seats=seats)

        async def both(ask, text):
            return [await ask(request(text, seat=seat)) for seat in ("user", "assistant", "judge")]

        teacher.map(both, ["a", "b"])
        assert [a.model for a in other.log] == ["user-model"] * 2
        assert {a.key for a in other.log} == {"second-key"} and {a.key for a in server.log} == {"first-key"}
    # the judge's question was the assistant's, to the same model: it is not paid for twice
    assert [a.model for a in server.log] == ["a-model"] * 2
    assert not teacher.recorded and "user: user-model" in teacher.describe()


def test_a_live_server_is_not_told_task_and_inputs(tmp_path, server):
    live(tmp_path, server).ask(Request(task="hidden", inputs={"secret": 1}, messages=one_message("a")))
    assert "hidden" not in json.dumps(server.log[0].headers)


def test_loopback_is_not_sent_through_a_proxy(tmp_path, server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert live(tmp_path, server).ask(request("a")) == answer_to("a")


# ---- the recorded teacher ---------------------------------------------------------------------


def test_the_recorded_teacher_answers_whatever_the_wording(recorded_teacher):
    inputs = {"n": 30}
    first, second = (
        recorded_teacher.ask(Request(task="meta_topics", inputs=inputs, messages=one_message(text)))
        for text in ("List topics.", "Name some topics, please.")
    )
    assert first == second and first.startswith("1. ")
    assert recorded_teacher.recorded and "recorded" in recorded_teacher.describe()


def test_what_is_not_recorded_stops_and_says_how_to_go_live(recorded_teacher):
    asked = Request(task="meta_topics", inputs={"n": 31}, messages=one_message("x"))
    with pytest.raises(Stop) as stopped:
        recorded_teacher.ask(asked)
    line = str(stopped.value)
    assert "'meta_topics'" in line and '{"n":31}' in line and "not recorded" in line
    assert "base_url" in line and "model" in line and "OPENAI_API_KEY" in line


# ---- faults that pass -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_costs_a_try(name, tmp_path, server, no_backoff):
    server.fault = lambda text, nth: FAULTS[name] if nth < 3 else None
    assert live(tmp_path, server, max_tries=3).ask(request("a")) == answer_to("a")
    assert len(server.log) == 3
    assert failures(tmp_path / "answers.sqlite") == {}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_sets_the_item_aside_and_is_never_an_answer(name, tmp_path, server, no_backoff):
    server.fault = lambda text, nth: FAULTS[name] if text == "bad" else None
    teacher = live(tmp_path, server, max_tries=2)
    done, failed = teacher.map(put, ["good", "bad"])
    assert done == [answer_to("good")] and [f.item for f in failed] == ["bad"]
    assert server.times() == {"good": 1, "bad": 2}
    expected = name if name.startswith("http") else failed[0].kind
    assert failed[0].kind == expected and expected in (name, "connection", "unreadable", "empty")
    assert failures(tmp_path / "answers.sqlite") == {("t", expected): 1}
    assert rows(tmp_path / "answers.sqlite") == 1
    server.fault = lambda text, nth: None
    _, failed_again = live(tmp_path, server).map(put, ["bad"])  # remembered: asked again only on request
    assert failed_again == failed and server.times()["bad"] == 2
    assert live(tmp_path, server, ask_failed_again=True).ask(request("bad")) == answer_to("bad")
    assert failures(tmp_path / "answers.sqlite") == {} and live(tmp_path, server).ask(request("bad"))
    assert server.times()["bad"] == 3


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (as_json(completion("half an ans", "length")), "length"),
        (as_json(completion("", "content_filter")), "content_filter"),
        (as_json(completion("hm", "tool_calls")), "tool_calls"),
        (as_json(completion("hm", None)), "None"),
        (as_json(completion("hm", {"a": "\ud800'); DROP"})), None),
        (as_json(completion(None, refusal="I won't")), "refusal"),
        (as_json(completion("I won't", refusal="I won't")), "refusal"),
        (as_json(completion("x" * 200_001)), "too_long"),
        (error(400), "http_400"),
        (error(400, code="context_length_exceeded"), "context_length_exceeded"),
        (error(400, code=["context_length_exceeded"]), "http_400"),
        (error(422, code="empty_answer"), "empty_answer"),
        (error(413), "http_413"),
        (error(422), "http_422"),
    ],
)
def test_what_is_not_a_whole_answer_is_counted_once_and_not_stored(tmp_path, server, reply, kind):
    server.fault = lambda text, nth: reply
    done, failed = live(tmp_path, server).map(put, ["a"])
    assert not done and len(failed) == 1 and len(server.log) == 1
    assert "\n" not in failed[0].line and len(failed[0].kind) <= 40
    if kind:
        assert failed[0].kind == kind
    assert failures(tmp_path / "answers.sqlite") == {("t", failed[0].kind): 1}
    assert rows(tmp_path / "answers.sqlite") == 0


def test_a_longest_answer_is_kept(tmp_path, server):
    server.answer = lambda text: "x" * 200_000
    assert len(live(tmp_path, server).ask(request("a"))) == 200_000


@pytest.mark.parametrize(
    "reply", [Reply(b"late", delay_seconds=30), Reply(b" " * 3000, trickle_seconds=0.01)]
)
def test_a_call_takes_no_longer_than_its_deadline(tmp_path, server, no_backoff, reply):
    server.fault = lambda text, nth: reply if nth == 1 else None
    assert live(tmp_path, server, deadline_seconds=0.8).ask(request("a")) == answer_to("a")
    server.fault = lambda text, nth: reply
    _, failed = live(tmp_path, server, deadline_seconds=0.2, max_tries=2).map(put, ["b"])
    assert failed[0].kind == "timeout" and server.times() == {"a": 2, "b": 2}


def test_nobody_listening(tmp_path, no_backoff):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    _, failed = Teacher(tmp_path / "a.sqlite", url, "m", max_tries=2).map(put, ["a"])
    assert failed[0].kind == "connection" and url in failed[0].line


def test_a_server_that_stays_down_stops_the_run(tmp_path, server, no_backoff):
    server.fault = lambda text, nth: FAULTS["http_503"]
    teacher = live(tmp_path, server, concurrency=4, max_tries=5, max_failed_in_a_row=12)
    with pytest.raises(Stop, match=r"1[6-9] calls failed in a row, the last: HTTP 503"):
        teacher.map(put, [str(i) for i in range(1000)])
    assert len(server.log) <= 4 * 4 + 3  # those already under way come on top
    server.fault = lambda text, nth: None  # what failed meanwhile was not the items' fault
    assert len(live(tmp_path, server).map(put, [str(i) for i in range(50)])[0]) == 50


def test_a_hiccup_that_fails_everybody_under_way_is_no_outage(tmp_path, server):
    end = time.monotonic() + 0.4
    server.fault = lambda text, nth: FAULTS["http_503"] if time.monotonic() < end else None
    teacher = live(tmp_path, server, concurrency=64, max_failed_in_a_row=20)
    done, failed = teacher.map(put, [str(i) for i in range(200)])
    assert len(done) == 200 and not failed


def test_a_server_that_rejects_everything_from_the_start_stops_the_run(tmp_path, server):
    """A wrong model name is HTTP 400 at `transformers serve`."""
    server.fault = lambda text, nth: error(400)
    with pytest.raises(
        Stop, match=r"10 requests in a row were rejected .*HTTP 400.*check model, now 'a-model'"
    ):
        live(tmp_path, server, concurrency=2).map(put, [str(i) for i in range(100)])
    assert len(server.log) <= 12


def test_rejections_after_an_answer_are_failures_of_their_items(tmp_path, server):
    server.fault = lambda text, nth: error(400) if text != "0" else None
    done, failed = live(tmp_path, server).map(put, [str(i) for i in range(30)])
    assert len(done) == 1 and len(failed) == 29


def test_success_starts_the_count_of_failures_anew(tmp_path, server, no_backoff):
    server.fault = lambda text, nth: FAULTS["http_503"] if nth < 3 else None
    items = [str(i) for i in range(20)]
    done, failed = live(tmp_path, server, concurrency=1, max_failed_in_a_row=3).map(put, items)
    assert len(done) == 20 and not failed


def test_tries_wait_longer_and_longer_and_not_after_the_last(tmp_path, server, monkeypatch):
    limits = []
    monkeypatch.setattr(calls.random, "uniform", lambda low, high: limits.append(high) or 0.0)
    server.fault = lambda text, nth: FAULTS["http_500"]
    live(tmp_path, server, max_tries=8).map(put, ["a"])
    assert limits == [0.5, 1, 2, 4, 8, 16, 30]


# ---- faults that do not pass ------------------------------------------------------------------

ECHO = f"Incorrect API key provided: {CANARY}. You can find your key at …"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (error(401, ECHO), "key refused (HTTP 401); check OPENAI_API_KEY"),
        (error(403, ECHO), "key refused (HTTP 403)"),
        (error(404, ECHO), "model: 'a-model' is not found"),
        (error(429, ECHO, code="insufficient_quota"), "quota is exhausted"),
        (error(402, ECHO), "quota is exhausted"),
        (error(429, ECHO, headers={"Retry-After": "3600"}), "asks to wait 3,600 s"),
        (error(503, ECHO, headers={"Retry-After": "inf"}), "asks to wait"),
    ],
)
def test_what_cannot_help_stops_at_once_in_our_own_words(tmp_path, server, monkeypatch, reply, expected):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server.fault = lambda text, nth: reply
    server.latency_seconds = 0.05
    with pytest.raises(Stop) as stopped:
        live(tmp_path, server, concurrency=4).map(put, [str(i) for i in range(50)])
    assert expected in str(stopped.value) and "\n" not in str(stopped.value)
    assert len(server.log) <= 4 and server.log[0].key == CANARY
    assert CANARY not in "".join(traceback.format_exception(stopped.value))


def test_the_key_is_in_no_line_and_no_file_under_any_fault(tmp_path, server, monkeypatch, no_backoff, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    shown = []
    replies = [*FAULTS.values(), error(400, ECHO), error(500, ECHO), error(401, ECHO), error(403, ECHO)]
    replies += [as_json({"error": {"message": ECHO}}), as_json(completion(None, refusal=ECHO))]
    for number, reply in enumerate(replies):
        server.fault = lambda text, nth, reply=reply: reply
        teacher = live(tmp_path, server, max_tries=1)
        try:
            _, failed = teacher.map(put, [f"{number}"])
            shown += [str(f) for f in failed]
        except Stop as stop:
            shown.append("".join(traceback.format_exception(stop)))
        shown += [repr(teacher), teacher.describe()]
    assert {asked.key for asked in server.log} == {CANARY} and len(server.log) == len(replies)
    assert CANARY not in "".join(shown) + "".join(capfd.readouterr())
    for path in tmp_path.iterdir():
        assert CANARY.encode() not in path.read_bytes()


@pytest.mark.parametrize("key", ["sk-line\n", "sk two", "sk-…"])
def test_a_key_that_no_header_can_carry(tmp_path, server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(Stop, match="OPENAI_API_KEY: holds") as stopped:
        live(tmp_path, server).ask(request("a"))
    assert key not in "".join(traceback.format_exception(stopped.value)) and not server.log


def test_no_key_for_the_public_api(tmp_path):
    with pytest.raises(Stop, match="OPENAI_API_KEY: not set"):
        Teacher(tmp_path / "a.sqlite", "https://api.openai.com/v1", "m").ask(request("a"))


@pytest.mark.parametrize(
    "url", ["", "Recorded", "api.openai.com/v1", "ftp://host/v1", "http://", "http://[::1/v1", "http://h:x/v1",
            "http://h o/v1", "http://user:secret@host/v1", "file:///etc/passwd"],
)  # fmt: skip
def test_a_base_url_that_is_none(tmp_path, url):
    with pytest.raises(Stop, match="base_url: expected 'recorded' or an http"):
        Teacher(tmp_path / "a.sqlite", url, "m")


def test_a_live_teacher_needs_a_model(tmp_path):
    for url, model in (("http://127.0.0.1:9/v1", ""), ("https://example.org/v1", "recorded")):
        with pytest.raises(Stop, match="model: expected the name of a model"):
            Teacher(tmp_path / "a.sqlite", url, model)
    for name, value in (("concurrency", 0), ("concurrency", 2.5), ("concurrency", "4"), ("max_tries", 0),
                        ("deadline_seconds", "5"), ("temperature", "x"), ("budget_usd", "3"), ("prices", [1, 2])):  # fmt: skip
        with pytest.raises(Stop, match=f"{name}: expected"):
            Teacher(tmp_path / "a.sqlite", **{name: value})
    for url in (5, "http://127.0.0.1:9/v1?key=x"):
        with pytest.raises(Stop, match="base_url: expected"):
            Endpoint(url, "m")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 +99999999999999"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "nonsense"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert pacing.retry_after_seconds(headers) == seconds


def test_a_retry_after_date_without_a_date_is_held_against_our_clock():
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < pacing.retry_after_seconds({"retry-after": until}) <= 90


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "1.5"}, {"retry-after-ms": "1500", "Retry-After": "99999"}]
)
def test_after_a_retry_after_every_worker_waits(tmp_path, server, headers, no_backoff):
    """One 429 names a time; no request of any worker comes within it but those already under way."""
    told = threading.Event()
    server.latency_seconds = 0.05

    def fault(text, nth):
        if text == "0" and nth == 1:
            told.at = time.monotonic()
            return error(429, headers=headers)
        return None

    server.fault = fault
    done, failed = live(tmp_path, server, concurrency=4).map(put, [str(i) for i in range(24)])
    assert len(done) == 24 and not failed
    # 0.7 s: the 429 itself takes the latency to arrive, and those under way may end meanwhile
    early = [a for a in server.log if told.at + 0.7 < a.began < told.at + 1.5]
    assert not early and len(server.log) == 25
    assert sum(a.began > told.at + 1.5 for a in server.log) >= 8


def test_a_later_retry_after_holds_those_already_waiting(tmp_path, server, no_backoff):
    """Two 429s, the second naming a later time, while everybody already waits for the first."""
    teacher = live(tmp_path, server, concurrency=2)
    teacher.ask(request("warm up"))  # the very first request goes alone
    server.fault = lambda text, nth: (
        None
        if nth > 1
        else error(429, headers={"Retry-After": "0.4"})
        if text == "0"
        else error(429, headers={"Retry-After": "1.2"}, delay_seconds=0.2)
    )
    teacher.map(put, ["0", "1"])
    first, second = (next(a for a in server.log if a.text == text) for text in "01")
    later = [a for a in server.log[1:] if a not in (first, second)]
    assert later and all(a.began >= second.answered + 1.1 for a in later)


# ---- anything at all in a body ----------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def bodies(draw) -> bytes:
    """A good completion with one part replaced by anything, or cut, or with bytes changed."""
    value = completion("fine")
    target = draw(
        st.sampled_from(["whole", "choices", "choice", "message", "content", "finish", "refusal", "usage"])
    )
    odd = draw(json_values)
    choice = value["choices"][0]
    if target == "whole":
        value = odd
    elif target in ("choices", "usage"):
        value[target] = odd
    elif target == "choice":
        value["choices"] = [odd]
    elif target == "message":
        choice["message"] = odd
    elif target == "finish":
        choice["finish_reason"] = odd
    else:
        choice["message"][target] = odd
    body = bytearray(json.dumps(value).encode("utf-8", "surrogatepass"))
    if draw(st.booleans()) and body:
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body)


def test_no_body_raises_anything_but_is_an_answer_or_a_counted_failure(tmp_path, server, no_backoff):
    server.fault = lambda text, nth: Reply(planned[text])
    planned: dict[str, bytes] = {}

    @settings(max_examples=30)
    @given(st.lists(bodies(), min_size=20, max_size=20))
    def check(some):
        start = len(planned)
        planned.update({str(start + i): body for i, body in enumerate(some)})
        items = [str(start + i) for i in range(len(some))]
        teacher = live(tmp_path, server, max_tries=1, max_failed_in_a_row=10**9)
        done, failed = teacher.map(put, items)
        assert len(done) + len(failed) == len(items)
        assert all(isinstance(text, str) and text.strip() for text in done)
        for item, text in zip([i for i in items if i not in {f.item for f in failed}], done, strict=True):
            assert json.loads(planned[item])["choices"][0]["finish_reason"] == "stop" and text

    check()
    path = tmp_path / "answers.sqlite"
    assert rows(path) + sum(failures(path).values()) == len(planned) >= 600


# ---- being killed, being interrupted, disks ---------------------------------------------------


def start(tmp_path: Path, url: str, *arguments: str) -> subprocess.Popen:
    """Start tests/talk.py: a batch of simulated dialogues into `tmp_path`/out.jsonl."""
    environment = {**os.environ, "PYTHONPATH": str(TALK.parent.parent / "src")}
    return subprocess.Popen(
        [sys.executable, str(TALK), url, str(tmp_path), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a process and return its status and all it printed."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


CONCURRENCY = 6  # of tests/talk.py


def test_killed_and_run_again_nothing_is_lost_doubled_or_asked_twice(tmp_path, server):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with FaultServer() as reference:
        assert finish(start(whole, reference.url))[0] == 0
    server.latency_seconds = 0.02
    under_way = 0
    for n_before_the_kill in (1, 40, 90):
        process = start(killed, server.url)
        server.wait_for(n_before_the_kill)
        os.kill(process.pid, signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        time.sleep(0.2)  # what was under way reaches the log
        with closing(sqlite3.connect(killed / "answers.sqlite")) as db:
            kept = {text for (text,) in db.execute("SELECT text FROM answers")}
        lost = {asked.text for asked in server.log if answer_to(asked.text) not in kept}
        assert len(lost) <= CONCURRENCY  # every answer but those under way was stored
        under_way += len(lost)
        assert not (killed / "out.jsonl").exists()
    status, printed = finish(start(killed, server.url))
    assert status == 0, printed
    assert (killed / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
    twice = {text: n for text, n in server.times().items() if n > 1}
    assert sum(n - 1 for n in twice.values()) <= under_way <= 3 * CONCURRENCY
    assert set(server.times()) == set(reference.times())
    n_asked = len(server.log)
    (killed / "out.jsonl").unlink()
    assert finish(start(killed, server.url))[0] == 0  # a fifth run asks nothing
    assert len(server.log) == n_asked
    assert (killed / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()


def test_after_ctrl_c_what_is_under_way_is_finished_and_kept_and_nothing_new_is_sent(tmp_path, server):
    server.latency_seconds = 0.1
    process = start(tmp_path, server.url, "--patient")
    server.wait_for(20)
    process.send_signal(signal.SIGINT)
    status, printed = finish(process)
    assert status == 0 and "interrupted" in printed and "Traceback" not in printed
    n_before = len([asked for asked in server.log if asked.text != "fresh"])
    assert f"stored {n_before}\n" in printed  # every call the server saw is in the store
    assert f"asked a fresh question: {answer_to('fresh')}" in printed  # the next cell works
    assert finish(start(tmp_path, server.url))[0] == 0
    assert set(server.times().values()) == {1} and len(server.log) > n_before + 1
    assert (tmp_path / "out.jsonl").exists()


def test_ctrl_c_does_not_wait_for_a_retry_after(tmp_path, server):
    server.fault = lambda text, nth: error(429, headers={"Retry-After": "500"})
    process = start(tmp_path, server.url, "--patient")
    server.wait_for(1, answered=True)
    time.sleep(0.7)  # all workers were told, or are about to be
    n_before = len(server.log)
    server.fault = lambda text, nth: None
    process.send_signal(signal.SIGINT)
    status, printed = finish(process)  # within 60 s, not 500
    assert status == 0 and "interrupted" in printed and "stored 0" in printed
    assert len([a for a in server.log if a.text != "fresh"]) == n_before


def test_a_second_process_on_the_same_store_is_refused(tmp_path, server):
    server.latency_seconds = 0.3
    process = start(tmp_path, server.url)
    server.wait_for(1)
    with pytest.raises(Stop, match=r"answers\.sqlite: in use by another process"):
        live(tmp_path, server).ask(request("a"))
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert live(tmp_path, server).ask(request("a")) == answer_to("a")  # the kernel freed the lock


def test_a_full_disk_stops_with_one_line_and_what_was_stored_is_safe(tmp_path, server, monkeypatch):
    path = tmp_path / "answers.sqlite"
    live(tmp_path, server).map(put, ["a", "b"])
    real = module.open_store

    @contextmanager
    def small(path):
        with real(path) as store:
            store._connection.execute("PRAGMA max_page_count = 12")
            yield store

    monkeypatch.setattr(module, "open_store", small)
    server.answer = lambda text: "long " * 2000
    with pytest.raises(Stop, match=r"answers\.sqlite: .*full; what was stored before is safe") as stopped:
        live(tmp_path, server, concurrency=2).map(put, [str(i) for i in range(50)])
    assert "\n" not in str(stopped.value) and len(server.log) < 20
    monkeypatch.setattr(module, "open_store", real)
    n_stored, n_asked = rows(path), len(server.log)
    done, _ = live(tmp_path, server).map(put, ["a", "b", *(str(i) for i in range(50))])
    assert done[:2] == [answer_to("a"), answer_to("b")]
    assert len(server.log) == n_asked + 52 - n_stored
