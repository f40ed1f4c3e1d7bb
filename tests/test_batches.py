"""The Batch API of the rehearsal server: the same answers, each paid for once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ultrachat import batches
from ultrachat.batches import EXPORT_FILE, import_responses, read_responses
from ultrachat.errors import Stop
from ultrachat.records import Opening, content_id, to_jsonl
from ultrachat.rehearsal import RehearsalServer, Settings
from ultrachat.simulation import simulate
from ultrachat.store import Batch, BatchRow, open_store
from ultrachat.teacher import CallFailed, Endpoint, Request, Teacher, one_message

TALK = Path(__file__).with_name("talk.py")
OPENINGS = [
    Opening(
        id=content_id(str(i)), sector="creation_and_generation", route="writing", task="t", subject="s",
        parent="p", text=f"Write poem {i}.",
    )
    for i in range(12)
]  # fmt: skip


async def talk(ask, opening):
    return await simulate(ask, opening, stop="drawn")


def request(text: str, **fields) -> Request:
    return Request(task="t", inputs={"text": text}, messages=one_message(text), **fields)


async def put(ask, text):
    return await ask(request(text))


async def put_to_both(ask, text):
    return await asyncio.gather(*(ask(request(text, seat=seat)) for seat in ("user", "assistant")))


@pytest.fixture
def quick():
    """A function from settings to a running server whose batches take no time."""
    running = []

    def start(**settings) -> RehearsalServer:
        server = RehearsalServer(Settings(batch_seconds=0.0, **settings))
        running.append(server.__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__(None, None, None)


def batched(tmp_path, server, **fields) -> Teacher:
    settings = {"via": "batches", "batch_poll_seconds": 0.05} | fields
    return Teacher(tmp_path / "a.sqlite", server.url, "a-model", **settings)


def generated(server) -> Counter[str]:
    """How often the server generated (and would charge) each request, by its digest."""
    return Counter(asked.digest for asked in server.log if asked.billed)


def n_batches(server) -> int:
    return sum(asked.text == "POST /v1/batches" and asked.status == 200 for asked in server.log)


def by_calls(tmp_path, server) -> str:
    done, failed = Teacher(tmp_path / "calls.sqlite", server.url, "a-model").map(talk, OPENINGS)
    assert not failed
    return to_jsonl(done)


def test_dialogues_by_batches_are_those_by_calls_in_one_batch_per_step(tmp_path, quick):
    expected = by_calls(tmp_path, quick())
    server = quick()
    done, failed = batched(tmp_path, server).map(talk, OPENINGS)
    assert not failed and to_jsonl(done) == expected
    assert max(generated(server).values()) == 1
    assert n_batches(server) == 2 * max(len(d.rounds) for d in done) - 1
    again, _ = batched(tmp_path, server).map(talk, OPENINGS)
    assert again == done and max(generated(server).values()) == 1


def test_rows_that_fail_or_expire_go_into_the_next_batch(tmp_path, quick):
    expected = by_calls(tmp_path, quick())
    server = quick(batch_row_fault_fraction=0.2, batch_expired_fraction=0.2)
    done, failed = batched(tmp_path, server, max_tries=30).map(talk, OPENINGS)
    assert not failed and to_jsonl(done) == expected
    assert max(generated(server).values()) == 1
    assert n_batches(server) > 2 * max(len(d.rounds) for d in done) - 1


def test_a_row_that_fails_for_ever_is_set_aside(tmp_path, quick):
    server = quick(batch_row_fault_fraction=1.0)
    teacher = batched(tmp_path, server, max_tries=3)
    done, failed = teacher.map(put, ["a", "b"])
    assert (
        not done
        and len(failed) == 2
        and {f.kind for f in failed} <= {"http_500", "http_503", "http_429", "expired"}
    )
    assert n_batches(server) == 3
    with open_store(tmp_path / "a.sqlite") as store:
        assert sum(store.failures().values()) == 2 and store.batches() == [] and len(store) == 0


def test_equal_questions_are_one_row_of_the_batch(tmp_path, quick):
    server = quick()
    done, _ = batched(tmp_path, server).map(put, ["same"] * 5 + ["other"])
    assert len(set(done[:5])) == 1 and sum(generated(server).values()) == 2


def test_two_seats_are_two_batches_at_two_servers(tmp_path, quick):
    server, other = quick(), quick()
    both = batched(tmp_path / "one", server, seats={"user": Endpoint(server.url, "user-model")})
    both.map(put_to_both, ["a", "b"])
    assert n_batches(server) == 2  # a batch may hold one model only
    server.log.clear()
    teacher = batched(tmp_path, server, seats={"user": Endpoint(other.url, "user-model")})
    done, _ = teacher.map(talk, OPENINGS[:3])
    assert len(done) == 3
    assert sum(generated(other).values()) == sum(len(d.rounds) - 1 for d in done)
    assert sum(generated(server).values()) == sum(len(d.rounds) for d in done)


def test_batches_are_cut_to_what_a_server_takes(tmp_path, quick, monkeypatch):
    server = quick()
    monkeypatch.setattr(batches, "MAX_ROWS", 4)
    done, _ = batched(tmp_path, server).map(put, [str(i) for i in range(10)])
    assert len(done) == 10 and n_batches(server) == 3
    monkeypatch.setattr(batches, "MAX_BYTES", 250)  # a row has about 200
    batched(tmp_path, server).map(put, [str(i) for i in range(20, 24)])
    assert n_batches(server) == 3 + 4


def test_half_the_price_and_never_above_the_cap(tmp_path, quick):
    server = quick()
    prices = {"a-model": [100.0, 1000.0]}
    batched(tmp_path, server, prices=prices).map(put, ["a", "b"])
    billed = [asked for asked in server.log if asked.billed]
    usd = sum(a.prompt_tokens * 100 + a.completion_tokens * 1000 for a in billed) / 1e6 / 2
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.money()[0] == pytest.approx(usd)
    with pytest.raises(Stop, match=r"budget_usd: .* run again"):
        batched(tmp_path, server, prices=prices, budget_usd=usd + 0.01).map(put, ["c", "d"])
    assert sum(generated(server).values()) == 2


def test_what_was_generated_and_will_not_do_is_paid_for(tmp_path, quick):
    server = quick()
    request_cut = Request(task="t", inputs={}, messages=one_message("Explain the sea."), max_tokens=3)

    async def ask_cut(ask, n):
        return await ask(request_cut if n else request("fine"))

    done, failed = batched(tmp_path, server, prices={"a-model": [100.0, 1000.0]}).map(ask_cut, [0, 1])
    assert len(done) == 1 and [f.kind for f in failed] == ["length"]
    billed = sum(a.prompt_tokens * 100 + a.completion_tokens * 1000 for a in server.log if a.billed) / 2e6
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.money()[0] == pytest.approx(billed)


def test_a_batch_holds_what_fits_under_the_cap_and_the_rest_follows(tmp_path, quick):
    server, prices = quick(), {"a-model": [100.0, 1000.0]}

    async def ask_short(ask, n):
        return await ask(
            Request(task="t", inputs={"n": n}, messages=one_message("Name a boat."), max_tokens=2000)
        )

    # a row may cost a dollar and costs much less: two fit at first, more when the first have come back
    done, failed = batched(tmp_path, server, prices=prices, budget_usd=2.5).map(ask_short, range(4))
    assert len(done) == 4 and not failed and n_batches(server) >= 2
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.money()[0] <= 2.5


def test_a_batch_that_the_server_has_forgotten_counts_as_billed_and_is_asked_again(tmp_path, quick):
    server, prices = quick(), {"a-model": [100.0, 1000.0]}
    with open_store(tmp_path / "a.sqlite") as store:
        store.put_batch(Batch("tag", server.url, "batch_nowhere", 0.25), [])
    done, failed = batched(tmp_path, server, prices=prices).map(put, ["a", "b"])
    assert len(done) == 2 and not failed
    with open_store(tmp_path / "a.sqlite") as store:
        assert store.batches() == [] and store.money()[0] > 0.25


# ---- killed in between ------------------------------------------------------------------------

DIE = """
import os, signal, sys
sys.argv = ["talk.py", *sys.argv[1:]]
from ultrachat import batches
real = getattr(batches.Store, {method!r})
def die(self, *a, **k):
    if {before}: os.kill(os.getpid(), signal.SIGKILL)
    real(self, *a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(batches.Store, {method!r}, die)
exec(open({talk!r}).read())
"""


@pytest.mark.parametrize("method", ["put_batch", "confirm_batch", "end_batch"])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_around_any_commit_pays_nothing_twice(tmp_path, quick, method, before):
    """Before confirm_batch the server has the batch and the ledger does not know its name."""
    server = quick()
    code = DIE.format(method=method, before=before, talk=str(TALK))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TALK.parent), *sys.path])}
    command = [sys.executable, "-c", code, server.url, str(tmp_path), "--batch"]
    killed = subprocess.run(command, env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, str(TALK), server.url, str(tmp_path), "--batch"], timeout=60, check=True)
    assert max(generated(server).values()) == 1
    reference = quick()
    (tmp_path / "whole").mkdir()
    subprocess.run(
        [sys.executable, str(TALK), reference.url, str(tmp_path / "whole"), "--batch"], timeout=60, check=True
    )
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole/out.jsonl").read_bytes()


def test_ctrl_c_leaves_the_batch_to_the_server_and_the_next_run_takes_it_in(tmp_path):
    with RehearsalServer(Settings(batch_seconds=2.0)) as server:
        command = [sys.executable, str(TALK), server.url, str(tmp_path), "--batch"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not n_batches(server):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=30)
        assert process.returncode != 0 and "KeyboardInterrupt" in printed and n_batches(server) == 1
        with open_store(tmp_path / "answers.sqlite") as store:
            assert len(store.batches()) == 1
        subprocess.run(command, timeout=120, check=True)
        assert max(generated(server).values()) == 1


# ---- elsewhere --------------------------------------------------------------------------------


def test_export_and_import_go_round_by_round(tmp_path, quick):
    expected = by_calls(tmp_path, quick())
    server = quick()
    rounds = 0
    while True:
        try:
            done, failed = batched(tmp_path, server, via="export").map(talk, OPENINGS)
            break
        except Stop as stop:
            assert "wrote" in str(stop) and f"import {tmp_path.name} FILE" in str(stop)
        rounds += 1
        requests = [json.loads(line) for line in (tmp_path / EXPORT_FILE).read_text().splitlines()]
        assert {r["url"] for r in requests} == {"/v1/chat/completions"} and requests[0]["method"] == "POST"
        responses = [elsewhere(server, r) for r in reversed(requests)]
        (tmp_path / "responses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in responses))
        line = import_responses(tmp_path / "a.sqlite", tmp_path / "responses.jsonl")
        assert (
            line
            == f"{len(requests)} requests = {len(requests)} answered + 0 set aside + 0 still without a response"
        )
    assert not failed and to_jsonl(done) == expected and rounds == 2 * max(len(d.rounds) for d in done) - 1


def elsewhere(server, line: dict) -> dict:
    """What somebody else's batch service makes of a request line."""
    import openai

    with openai.OpenAI(api_key="x", base_url=server.url) as client:
        body = client.chat.completions.create(**line["body"]).model_dump()
    return {
        "id": "x",
        "custom_id": line["custom_id"],
        "response": {"status_code": 200, "body": body},
        "error": None,
    }


def test_a_part_of_the_responses_leaves_the_rest_to_be_brought_later(tmp_path, quick):
    server = quick()
    with pytest.raises(Stop, match="wrote 3 requests"):
        batched(tmp_path, server, via="export").map(put, ["a", "b", "c"])
    lines = [json.loads(line) for line in (tmp_path / EXPORT_FILE).read_text().splitlines()]
    for part, expected in (
        (lines[:1], "3 requests = 1 answered + 0 set aside + 2 still"),
        (lines[1:], "2 requests = 2"),
    ):
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(elsewhere(server, r)) + "\n" for r in part))
        assert import_responses(tmp_path / "a.sqlite", tmp_path / "r.jsonl").startswith(expected)
    assert len(batched(tmp_path, server, via="export").map(put, ["a", "b", "c"])[0]) == 3
    with pytest.raises(Stop, match="no exported requests wait"):
        import_responses(tmp_path / "a.sqlite", tmp_path / "r.jsonl")


def test_a_response_file_that_is_not_json_is_named_by_line_and_nothing_is_taken_in(tmp_path, quick):
    server = quick()
    with pytest.raises(Stop, match="wrote 1 requests"):
        batched(tmp_path, server, via="export").map(put, ["a"])
    line = json.loads((tmp_path / EXPORT_FILE).read_text())
    (tmp_path / "r.jsonl").write_text(json.dumps(elsewhere(server, line)) + "\n{\n")
    with pytest.raises(Stop, match=r"r\.jsonl:2: not JSON"):
        import_responses(tmp_path / "a.sqlite", tmp_path / "r.jsonl")
    with open_store(tmp_path / "a.sqlite") as store:
        assert len(store) == 0 and len(store.batch_rows("exported")) == 1


# ---- what lines mean --------------------------------------------------------------------------


def said(key: str, status: int = 200, **body) -> dict:
    return {"custom_id": key, "response": {"status_code": status, "body": body}, "error": None}


def whole(text: str, finish: str = "stop") -> dict:
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }


def test_every_line_is_an_answer_a_failure_or_asked_again():
    rows = {k: BatchRow("tag", k, "t", "{}", "m", 0.5) for k in "abcdefgh"}
    lines = [
        said("a", **whole("fine")), said("a", **whole("second line")), said("zzz", **whole("not ours")),
        said("b", **whole("cut", "length")), said("c", 500), said("d", 400), said("e", **{"choices": None}),
        {"custom_id": "f", "response": None, "error": {"code": "batch_expired"}}, {"custom_id": "g"}, None, 7, [],
        {"custom_id": ["x"]}, {"custom_id": "h", "response": {"status_code": "200", "body": {}}},
    ]  # fmt: skip
    results = read_responses(lines, rows, None)
    assert [(r.key, r.text, r.prompt_tokens) for r in results.answers] == [("a", "fine", 3)]
    assert {f.key: f.kind for f in results.failures} == {"b": "length", "d": "http_400"}
    assert results.generated == {
        "a": (3, 4),
        "b": (3, 4),
        "e": (None, None),
    }  # charged, whether it will do or not
    assert {k: f.kind for k, f in results.again.items()} == {
        "c": "http_500", "e": "unreadable", "f": "expired", "g": "expired", "h": "unreadable",
    }  # fmt: skip


def test_a_cut_answer_in_a_batch_is_one_where_it_will_do(tmp_path, quick):
    """Through the server, which cuts answers at `max_tokens`, and with the bodies' seed."""

    async def cut(ask, accept_cut):
        fields = {"max_tokens": 2, "seed": 5, "accept_cut": accept_cut}
        return await ask(Request(task="t", inputs={}, messages=one_message("Tell me much"), **fields))

    with RehearsalServer(Settings(batch_seconds=0.1)) as server:
        teacher = Teacher(tmp_path / "answers.sqlite", server.url, "filler", via="batches")
        done, failed = teacher.map(cut, [True, False])
        assert len(done) == 1 and done[0] and [f.kind for f in failed] == ["length"]
        n_asked = len(server.log)
        assert teacher.map(cut, [True, False]) == (done, failed) and len(server.log) == n_asked


def test_a_row_that_says_the_model_is_gone_stops_the_run_once_the_others_are_safe():
    rows = {k: BatchRow("tag", k, "t", "{}", "m", 0.5) for k in "ab"}
    lines = [said("a", 404), said("b", **whole("fine"))]
    results = read_responses(lines, rows, Endpoint("http://127.0.0.1:9/v1", "m"))
    assert "is not found" in str(results.stop) and list(results.again) == ["a"]
    assert [row.key for row in results.answers] == ["b"]


def test_a_question_in_a_batch_under_way_is_not_asked_by_a_call(tmp_path):
    with RehearsalServer(Settings(batch_seconds=3.0)) as server:
        command = [sys.executable, str(TALK), server.url, str(tmp_path), "--batch"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not n_batches(server):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        by_calls = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60, check=False)
        assert by_calls.returncode != 0 and "take it in with via=batches" in by_calls.stderr
        assert not any(asked.path.endswith("/chat/completions") and not asked.batch for asked in server.log)


def test_the_recorded_teacher_has_no_batches(tmp_path):
    with pytest.raises(Stop, match="via: batches needs a live teacher"):
        Teacher(tmp_path / "a.sqlite", via="batches")
    with pytest.raises(Stop, match="via: expected one of calls, batches, export, got 'mail'"):
        Teacher(tmp_path / "a.sqlite", "http://127.0.0.1:9/v1", "m", via="mail")


def test_one_question_alone_is_not_worth_a_batch(tmp_path, quick):
    server = quick()
    batched(tmp_path, server).ask(request("a"))
    assert n_batches(server) == 0 and [a.path for a in server.log] == ["/v1/chat/completions"]


def test_failures_of_the_function_itself_do_not_hold_up_a_batch(tmp_path, quick):
    async def picky(ask, text):
        if text == "no":
            raise CallFailed("picky", "not to my taste")
        return await ask(request(text))

    done, failed = batched(tmp_path, quick()).map(picky, ["a", "no", "b"])
    assert len(done) == 2 and failed == [("no", "picky", "not to my taste")]
