"""The rehearsal server as clients see it: the openai SDK, raw HTTP and raw sockets against its log."""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Thread

import openai
import pytest
from fault_server import FaultServer, answer_to

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.parsing import parse_dialogue, parse_list
from ultrachat.recorded import NOT_RECORDED, load_pack
from ultrachat.rehearsal import RehearsalServer, Settings, add_arguments, settings_from
from ultrachat.rehearsal import filler as filler_module
from ultrachat.rehearsal.answers import n_tokens
from ultrachat.rehearsal.faults import FAST_FAULTS, FAULTS, GROUPS, Reply, as_json, error, told_usage
from ultrachat.rehearsal.filler import filler
from ultrachat.rehearsal.limits import Bucket, duration
from ultrachat.runs import DATA
from ultrachat.simulation import role_exchange
from ultrachat.verdicts import parse_comparison, parse_score

KEY = "sk-canary-0123456789"
REPO = Path(__file__).resolve().parent.parent


def one(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def sdk(server: RehearsalServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=20)


def call(server, method="POST", path="/chat/completions", body=None, raw=None, key=KEY):
    """Return (status, headers, body bytes) of one request over a connection of its own."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
    try:
        connection.request(method, f"/v1{path}", data, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def chat(server, text="hello", **fields):
    return call(server, body={"model": "filler", "messages": one(text), **fields})


@contextmanager
def running(**settings):
    with RehearsalServer(Settings(**settings)) as server:
        yield server


@pytest.fixture
def rehearsal():
    with running() as server:
        yield server


# ---- with the openai SDK ----------------------------------------------------------------------


def test_chat_through_the_sdk_is_what_the_log_says(rehearsal):
    answer = sdk(rehearsal).chat.completions.create(
        model="gpt-x", messages=one("Why does bread rise?"), seed=3
    )
    text = answer.choices[0].message.content
    assert text == filler("gpt-x", one("Why does bread rise?"), None, 3)
    assert answer.choices[0].finish_reason == "stop" and answer.model == "gpt-x"
    assert answer.usage.prompt_tokens == len("Why does bread rise?") // 4 == 5
    assert answer.usage.completion_tokens == len(text.encode()) // 4
    [asked] = rehearsal.log
    assert (asked.prompt_tokens, asked.completion_tokens) == (5, answer.usage.completion_tokens)
    assert asked.billed and asked.outcome == "answered" and asked.status == 200 and asked.key == KEY
    assert (
        asked.text == "Why does bread rise?"
        and asked.messages == one(asked.text)
        and asked.n == asked.nth == 1
    )


def test_a_stream_says_the_same_as_the_plain_answer(rehearsal):
    asked = {"model": "filler", "messages": one("Tell me.")}
    plain = sdk(rehearsal).chat.completions.create(**asked)
    chunks = list(
        sdk(rehearsal).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert len(chunks) > 20 and chunks[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == plain.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == plain.usage and not chunks[-1].choices
    status, headers, body = chat(rehearsal, stream=True)
    assert status == 200 and headers["content-type"] == "text/event-stream"
    assert body.endswith(b"data: [DONE]\n\n") and b'"usage"' not in body


def test_embeddings_of_like_texts_are_near(rehearsal):
    texts = ["the red bread oven", "an oven of red bread", "taxes on imported cars"]
    reply = sdk(rehearsal).embeddings.create(model="m", input=texts)  # base64 underneath
    plain = sdk(rehearsal).embeddings.create(model="m", input=texts, encoding_format="float")
    vectors = [row.embedding for row in reply.data]
    for got, told in zip(vectors, plain.data, strict=True):
        assert got == pytest.approx(told.embedding)
        assert sum(x * x for x in got) == pytest.approx(1.0)

    def near(a, b):
        return sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))

    assert near(0, 1) > 0.5 > 0.3 > near(0, 2)
    assert reply.usage.prompt_tokens == 18 // 4 + 20 // 4 + 22 // 4
    assert rehearsal.log[0].billed and rehearsal.log[0].completion_tokens == 0
    single = sdk(rehearsal).embeddings.create(model="m", input="one text", dimensions=8)
    assert len(single.data) == 1 and len(single.data[0].embedding) == 8
    _, _, body = call(rehearsal, path="/embeddings", body={"model": "m", "input": "the red bread oven", "encoding_format": "base64"})  # fmt: skip
    packed = base64.b64decode(json.loads(body)["data"][0]["embedding"])
    assert list(struct.unpack("<256f", packed)) == pytest.approx(vectors[0])


def test_models_and_health(rehearsal):
    assert [model.id for model in sdk(rehearsal).models.list()] == ["recorded", "filler"]
    assert sdk(rehearsal).models.retrieve("org/any-model").id == "org/any-model"
    connection = http.client.HTTPConnection(rehearsal.host, rehearsal.port)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    connection.close()


def test_the_recorded_model_answers_by_name_whatever_the_wording(rehearsal):
    name, response = next(iter(load_pack(DATA / "recorded").items()))
    create = sdk(rehearsal).chat.completions.create
    answer = create(model="recorded", messages=one("anything"), metadata={"ultrachat": name})
    assert answer.choices[0].message.content == response
    for metadata in ({"ultrachat": '{"inputs":{},"task":"none"}'}, {}):
        with pytest.raises(openai.NotFoundError) as refused:
            create(model="recorded", messages=one("anything"), metadata=metadata)
        assert refused.value.code == NOT_RECORDED and "not recorded" in str(refused.value)
    assert [asked.billed for asked in rehearsal.log] == [True, False, False]


def test_errors_have_the_form_of_the_api(rehearsal):
    wrong = [
        (call(rehearsal, raw=b'{"model": '), 400, None),
        (call(rehearsal, raw=b"[1]"), 400, None),
        (call(rehearsal, raw=b""), 400, "model"),
        (call(rehearsal, body={"messages": one("a")}), 400, "model"),
        (call(rehearsal, body={"model": "m"}), 400, "messages"),
        (call(rehearsal, body={"model": "m", "messages": []}), 400, "messages"),
        (call(rehearsal, body={"model": "m", "messages": [{"role": "user"}]}), 400, "messages[0].content"),
        (chat(rehearsal, max_tokens=0), 400, "max_tokens"),
        (chat(rehearsal, n=2), 400, "n"),
        (call(rehearsal, path="/embeddings", body={"model": "m", "input": [""]}), 400, "input"),
        (call(rehearsal, path="/embeddings", body={"model": "m", "input": [1]}), 400, "input"),
        (call(rehearsal, "GET", "/nowhere"), 404, None),
        (call(rehearsal, "GET", "/chat/completions"), 404, None),
        (call(rehearsal, "GET", "/files/none"), 404, "id"),
        (call(rehearsal, "GET", "/batches?limit=x"), 400, "limit"),
        (call(rehearsal, "POST", "/files", body={}), 400, None),
        (call(rehearsal, "POST", "/batches", body={"endpoint": "/v1/x"}), 400, "endpoint"),
    ]
    for (status, headers, body), expected, param in wrong:
        told = json.loads(body)["error"]
        assert status == expected and told["message"] and told["param"] == param
        assert told["type"] == "invalid_request_error" and headers["content-type"].startswith(
            "application/json"
        )
    assert len(rehearsal.log) == len(wrong)
    assert {(asked.outcome, asked.billed) for asked in rehearsal.log} == {("refused", False)}


# ---- generated texts --------------------------------------------------------------------------


def ask(text: str, **fields) -> str:
    return filler("filler", one(text), **fields)


@pytest.mark.parametrize("n", [1, 5, 36])
def test_lists_have_the_number_asked_for_and_items_of_their_own(n):
    written = [
        prompts.meta_topics(n), prompts.subtopics("Food", n), prompts.questions("Food", "bread", n),
        prompts.related_questions("Write 99 words?", n), prompts.entity_questions("Rome", n),
        prompts.specific_questions("Rome", "Why?", n), prompts.extended_questions("Rome", "Why?", n),
        prompts.writing_instructions("poem", n), prompts.material_instructions("List 77 things.", n),
    ]  # fmt: skip
    items = [item for prompt in written for item in parse_list(ask(prompt), n).items]
    assert len(items) == len(written) * n == len(set(items))


def test_other_prompts_get_texts_of_their_form():
    history = ["How?", "So."]
    for i in range(40):
        assert parse_score(ask(prompts.single_score(f"q{i}", "a"))) in range(5, 10)
        assert parse_score(ask(prompts.coherence([*history, str(i)]))) in range(5, 10)
        assert parse_comparison(ask(prompts.comparison(f"q{i}", "a", "b"))) is not None
        direct = parse_dialogue(ask(prompts.direct_dialogue(f"How {i}?")))
        assert len(direct) in (3, 4) and direct[0][0] == f"How {i}?"
        turn = ask(prompts.user_turn([*history, str(i)], "questions_about_the_world", "casual"))
        assert turn.endswith("?") and len(turn.split()) < 120 and role_exchange(turn) is None
    instruction = ask(prompts.detailed_instruction("poem", "Write a poem."))
    assert 10 < len(instruction.split()) < 200
    may_end = [
        ask(prompts.user_turn([*history, str(i)], "questions_about_the_world", "casual", may_end=True))
        for i in range(300)
    ]
    assert 70 < may_end.count(prompts.END) < 130  # a third


def test_the_filler_depends_on_the_request_alone_and_has_the_stated_length():
    assert ask("a") == ask("a") == filler("filler", [{"content": "a", "role": "user"}])
    others = [ask("b"), ask("a", seed=1), ask("a", temperature=0.5), filler("n", one("a"))]
    assert len({ask("a"), *others}) == 5
    lengths = [len(ask(f"question {i}").encode()) for i in range(1500)]
    assert statistics.mean(lengths) == pytest.approx(filler_module.ANSWER_BYTES, rel=0.05)
    assert min(lengths) > 300 and max(lengths) < 4.2 * filler_module.ANSWER_BYTES


def test_a_limit_in_tokens_cuts_and_says_so(rehearsal):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = json.loads(chat(rehearsal, "long", **{name: 10})[2])
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 10
        assert ask("long").startswith(answer["choices"][0]["message"]["content"])
    assert rehearsal.log[0].billed and rehearsal.log[0].completion_tokens == 10
    assert [n_tokens(t) for t in ("", "abc", "abcdefgh", "éééé")] == [1, 1, 2, 2]


# ---- rate limits and latency ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.012, "12ms"),
        (1.5, "1.5s"),
        (1, "1s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (61.25, "1m1.25s"),
    ],
)
def test_durations_are_written_as_the_api_does(seconds, text):
    assert duration(seconds) == text


def test_a_bucket_fills_evenly_up_to_a_minutes_worth():
    bucket = Bucket(120, now=100.0)
    bucket.take(120)
    assert bucket.wait_seconds(1, 100.0) == 0.5 and bucket.level(101.0) == 2.0
    assert bucket.wait_seconds(10, 101.0) == 4.0 and bucket.level(1000.0) == 120.0


def test_requests_beyond_the_limit_are_refused_with_the_time_to_come_back():
    with running(requests_per_minute=3, tokens_per_minute=100_000) as server:
        replies = [chat(server, max_tokens=50) for _ in range(5)]
        assert [status for status, _, _ in replies] == [200, 200, 200, 429, 429]
        assert replies[0][1]["x-ratelimit-limit-requests"] == "3"
        assert [h["x-ratelimit-remaining-requests"] for _, h, _ in replies] == ["2", "1", "0", "0", "0"]
        # "hello" is one token, and fifty are allowed to the answer
        assert replies[0][1]["x-ratelimit-remaining-tokens"] == str(100_000 - 51)
        assert replies[0][1]["x-ratelimit-reset-tokens"].endswith("ms")
        _, headers, body = replies[-1]
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        assert 18 < float(headers["retry-after-ms"]) / 1000 <= 20 and headers["retry-after"] in ("19", "20")
        assert [a.outcome for a in server.log] == ["answered"] * 3 + ["rate_limited"] * 2
        assert [a.billed for a in server.log] == [True] * 3 + [False] * 2
        assert chat(server, model="another")[0] == 200  # limits hold for each model apart
        with pytest.raises(openai.RateLimitError):
            sdk(server).chat.completions.create(model="filler", messages=one("a"))


def test_after_the_time_named_the_request_is_admitted():
    with running(requests_per_minute=240) as server:
        statuses = [chat(server)[0] for _ in range(240)]
        waited = 0
        while True:
            status, headers, _ = chat(server)
            statuses.append(status)
            if status == 429:
                waited += 1
                time.sleep(float(headers["retry-after-ms"]) / 1000)
                assert chat(server)[0] == 200
                break
        assert waited == 1


def test_a_request_larger_than_the_limit_is_never_admitted():
    with running(tokens_per_minute=100) as server:
        status, headers, body = chat(server, max_tokens=2048)
        assert status == 429 and "retry-after" not in headers and b"too large" in body
        assert chat(server, max_tokens=20)[0] == 200


def test_without_limits_there_are_no_headers_and_latency_is_kept(rehearsal):
    began = time.monotonic()
    assert not [name for name in chat(rehearsal)[1] if name.startswith("x-ratelimit")]
    rehearsal.latency_seconds = 0.2
    chat(rehearsal)
    rehearsal.wait_for(2, answered=True)
    assert rehearsal.log[1].answered - rehearsal.log[1].began >= 0.2 and time.monotonic() - began < 20
    assert [asked.nth for asked in rehearsal.log] == [1, 2]


def test_latencies_spread_and_are_the_same_for_the_same_request():
    with running(latency_seconds=0.01, latency_spread=0.5) as server:
        for i in range(30):
            chat(server, str(i))
        drawn = [server._delay_seconds(Reply(), asked) for asked in server.log]
        assert len(set(drawn)) == 30 and drawn == [server._delay_seconds(Reply(), a) for a in server.log]
        assert statistics.median(drawn) == pytest.approx(0.01, rel=0.4)


# ---- faults -----------------------------------------------------------------------------------


def test_every_fault_of_one_try_is_on_the_log_and_the_next_is_answered(rehearsal):
    for number, (name, reply) in enumerate(FAULTS.items()):
        if name in ("hang", "trickle", "huge_body"):
            continue
        rehearsal.fault = lambda text, nth, reply=reply: reply if nth == 1 else None
        try:
            status, _, body = chat(rehearsal, f"text {number}")
        except (http.client.HTTPException, ConnectionError):
            status, body = None, b""
        rehearsal.wait_for(len(rehearsal.log))
        asked = rehearsal.log[-1]
        assert asked.outcome == name and asked.status == reply.status
        whole = reply.body is not None and not reply.silent
        if whole and name != "http_401":
            assert (status, body) == (reply.status, reply.body), name
        assert asked.billed == (reply.status == 200 and name not in ("html", "error_in_200")), name
        status, _, body = chat(rehearsal, f"text {number}")
        text = json.loads(body)["choices"][0]["message"]["content"]
        assert status == 200 and text == ask(f"text {number}")
        if asked.billed:  # what a client could read it was charged; else the answer that it did not get
            told = told_usage(reply.body)
            again = rehearsal.log[-1]
            assert (asked.prompt_tokens, asked.completion_tokens) == (
                told or (again.prompt_tokens, again.completion_tokens)
            ), name


def test_a_reset_is_a_reset_and_a_cut_body_is_cut(rehearsal):
    def exchange(fault) -> bytes:
        rehearsal.fault = lambda text, nth: fault
        body = json.dumps({"model": "m", "messages": one("a")}).encode()
        with socket.create_connection((rehearsal.host, rehearsal.port), timeout=10) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                % len(body)
            )
            raw.sendall(body)
            received = b""
            while piece := raw.recv(4096):
                received += piece
        return received

    for name in ("reset_before", "reset_in_body"):
        with pytest.raises(ConnectionResetError):
            exchange(FAULTS[name])
    assert exchange(FAULTS["closed"]) == b""
    head, _, body = exchange(FAULTS["short_body"]).partition(b"\r\n\r\n")
    assert len(body) == 40 and body.startswith(b'{"id": "chatcmpl-')
    announced = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert announced > 400
    slow = Reply(b"slow", trickle_seconds=0.01)
    assert exchange(slow).endswith(b"\r\n\r\nslow")


def test_a_hang_is_billed_and_ends_when_the_client_goes_or_the_server_stops():
    with running() as server:
        server.fault = lambda text, nth: FAULTS["hang"] if text == "hang" else None
        client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=0.3)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="m", messages=one("hang"))
        for _ in range(500):
            if not server.under_way:
                break
            time.sleep(0.01)
        assert not server.under_way and server.log[0].billed and server.log[0].outcome == "hang"

        def linger():
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                chat(server, "hang")

        lingering = Thread(target=linger)
        lingering.start()
        server.wait_for(2)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    lingering.join(10)
    assert not lingering.is_alive()


def test_a_huge_body_is_streamed_and_whole(rehearsal):
    rehearsal.fault = lambda text, nth: FAULTS["huge_body"]
    _, headers, body = chat(rehearsal)
    assert len(body) == int(headers["content-length"]) > 50_000_000
    assert set(json.loads(body)["choices"][0]["message"]["content"]) == {"x"}


def test_the_key_is_echoed_only_where_that_is_the_fault_and_dates_are_ahead(rehearsal):
    rehearsal.fault = lambda text, nth: FAULTS["http_401"]
    assert KEY.encode() in chat(rehearsal)[2]
    rehearsal.fault = lambda text, nth: FAULTS["retry_after_date"]
    status, headers, _ = chat(rehearsal)
    ahead = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    assert status == 429 and 0 < ahead.total_seconds() <= 3
    rehearsal.fault = lambda text, nth: FAULTS["redirect"]
    status, headers, _ = chat(rehearsal)
    assert status == 307 and "127.0.0.1:9" in headers["location"]


def outcomes(server, n=60) -> list[str]:
    for i in range(n):
        with suppress(http.client.HTTPException, ConnectionError):
            chat(server, str(i))
    return [asked.outcome for asked in server.log[-n:]]


def test_drawn_faults_come_as_often_as_set_and_the_same_each_time():
    settings = {"fault_fraction": 0.3, "fault_kinds": ("fast", "length"), "seed": 5}
    with (
        running(**settings) as first,
        running(**settings) as second,
        running(**settings | {"seed": 6}) as other,
    ):
        drawn = outcomes(first)
        assert drawn == outcomes(second) != outcomes(other)
        assert {*drawn} <= {"answered", "length", *FAST_FAULTS} and 8 <= 60 - drawn.count("answered") <= 30
        assert outcomes(first) != drawn  # asked again, they are drawn anew
    with running(fault_fraction=1.0, fault_kinds=("odd",)) as server:
        assert "answered" not in outcomes(server, 10)


def test_all_groups_are_different_names():
    assert sum(len(group) for group in GROUPS.values()) == len(FAULTS)
    assert Settings(fault_kinds=("slow", "length")).fault_names == ("hang", "trickle", "length")


def test_the_server_of_the_tests_answers_in_five_tokens():
    with FaultServer() as server:
        answer = sdk(server).chat.completions.create(model="m", messages=one("a"))
        assert answer.choices[0].message.content == answer_to("a")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 5)
        server.fault = lambda text, nth: error(503) if nth == 2 else as_json({"x": 1}) if nth == 3 else None
        statuses = [call(server, body={"model": str(i), "messages": one("a")})[0] for i in range(3)]
        assert statuses == [503, 200, 200]  # the nth time this text came, in whatever body
        assert server.times() == {"a": 4} and [a.outcome for a in server.log][1:3] == ["fault", "fault"]


# ---- files and batches ------------------------------------------------------------------------


def row(name: str, text: str, **fields) -> str:
    body = {"model": "filler", "messages": one(text), **fields}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def submit(client: openai.OpenAI, lines: list[str]) -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"run": "a"}
    )


def finished(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    for _ in range(1000):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.01)
    raise AssertionError(f"still {batch.status}")


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


def test_files_through_the_sdk(rehearsal):
    client = sdk(rehearsal)
    file = client.files.create(file=("in.jsonl", b'{"a": 1}\n'), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (9, "in.jsonl", "batch")
    assert client.files.retrieve(file.id) == file and [f.id for f in client.files.list()] == [file.id]
    assert client.files.content(file.id).read() == b'{"a": 1}\n'
    assert client.files.delete(file.id).deleted and not list(client.files.list())
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("in.jsonl", b"a"), purpose="vision")


def test_a_batch_gives_the_answers_of_single_calls_in_another_order():
    with running(batch_seconds=0.3) as server:
        client = sdk(server)
        batch = submit(client, [row(f"r{i}", f"text {i}") for i in range(45)])
        assert batch.status == "validating" and batch.metadata == {"run": "a"}
        done = finished(client, batch)
        assert done.status == "completed" and done.error_file_id is None and done.completed_at
        assert (done.request_counts.total, done.request_counts.completed) == (45, 45)
        rows = lines_of(client, done.output_file_id)
        names = [r["custom_id"] for r in rows]
        assert sorted(names) == sorted(f"r{i}" for i in range(45)) and names != [f"r{i}" for i in range(45)]
        for r in rows:
            text = r["response"]["body"]["choices"][0]["message"]["content"]
            assert r["error"] is None and text == ask(f"text {r['custom_id'][1:]}")
        in_batch = [asked for asked in server.log if asked.batch]
        assert {asked.batch for asked in in_batch} == {batch.id} and all(asked.billed for asked in in_batch)
        usage = [r["response"]["body"]["usage"]["completion_tokens"] for r in rows]
        assert sum(usage) == sum(asked.completion_tokens for asked in in_batch)
        assert not any(asked.billed for asked in server.log if not asked.batch)


def test_rows_that_fail_or_expire_are_not_billed_and_come_through_in_a_later_batch():
    with running(batch_seconds=0.0, batch_row_fault_fraction=0.3, batch_expired_fraction=0.2) as server:
        client, left, taken, n_batches = sdk(server), {f"r{i}": f"text {i}" for i in range(60)}, {}, 0
        statuses, codes = set(), set()
        while left:
            n_batches += 1
            done = finished(client, submit(client, [row(name, text) for name, text in left.items()]))
            statuses.add(done.status)
            errors = lines_of(client, done.error_file_id)
            codes |= {r["error"]["code"] if r["error"] else r["response"]["status_code"] for r in errors}
            output = lines_of(client, done.output_file_id)
            assert len(errors) + len(output) == len(left)
            codes |= {f"output {r['response']['status_code']}" for r in output}
            for r in output:
                if r["response"]["status_code"] == 200:
                    taken[r["custom_id"]] = r["response"]["body"]
                    del left[r["custom_id"]]
        assert len(taken) == 60 and 1 < n_batches < 20
        assert statuses == {"completed", "expired"} or statuses == {"expired"}
        assert codes == {"batch_expired", 500, "output 200", "output 500"}
        assert sum(asked.billed for asked in server.log) == 60


def test_a_batch_can_be_cancelled_and_keeps_what_was_done():
    with running(batch_seconds=2.0) as server:
        client = sdk(server)
        batch = submit(client, [row(f"r{i}", f"text {i}") for i in range(40)])
        while client.batches.retrieve(batch.id).request_counts.completed < 4:
            time.sleep(0.02)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = finished(client, batch)
        n_done = len(lines_of(client, done.output_file_id))
        assert done.status == "cancelled" and 4 <= n_done < 40
        assert n_done == sum(asked.billed for asked in server.log)
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["{"], "invalid_json_line"),
        ([""], "empty_file"),
        ([row("a", "x"), row("a", "y")], "duplicate_custom_id"),
        ([row("a", "x").replace("/v1/chat/completions", "/v1/embeddings")], "mismatched_endpoint"),
        ([row(str(i), "x") for i in range(6)], "too_many_tasks"),
    ],
)
def test_a_batch_that_is_no_batch_fails_at_once(lines, code):
    with running(batch_seconds=0.0, max_batch_rows=5) as server:
        client = sdk(server)
        done = finished(client, submit(client, lines))
        assert done.status == "failed" and code in {problem.code for problem in done.errors.data}
        assert done.output_file_id is None and not any(asked.billed for asked in server.log)


def test_rows_may_be_wrong_one_by_one_and_embeddings_go_too():
    with running(batch_seconds=0.0) as server:
        client = sdk(server)
        done = finished(client, submit(client, [row("good", "x"), row("bad", "x", model="recorded")]))
        [bad] = lines_of(client, done.error_file_id)
        assert bad["custom_id"] == "bad" and bad["response"]["status_code"] == 404
        assert bad["response"]["body"]["error"]["code"] == NOT_RECORDED
        line = {
            "custom_id": "e",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "m", "input": "a b"},
        }
        file = client.files.create(file=json.dumps(line).encode(), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        [embedded] = lines_of(client, finished(client, batch).output_file_id)
        assert len(embedded["response"]["body"]["data"][0]["embedding"]) == 256


def test_batches_are_listed_newest_first_page_by_page():
    with running(batch_seconds=0.0) as server:
        client = sdk(server)
        made = [submit(client, [row("a", str(i))]).id for i in range(5)]
        page = client.batches.list(limit=2)
        assert [b.id for b in page.data] == made[::-1][:2] and page.has_more
        assert [b.id for b in client.batches.list(limit=2)] == made[::-1]
        assert [b.id for b in client.batches.list(after=made[1])] == made[:1]


def test_a_reply_that_is_lost_leaves_the_batch_made():
    with running(batch_seconds=0.0) as server:
        client = sdk(server)
        file = client.files.create(file=row("a", "x").encode(), purpose="batch")
        server.fault = lambda text, nth: FAULTS["reset_before"] if text == "POST /v1/batches" else None
        with pytest.raises(openai.APIConnectionError):
            client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert len(client.batches.list().data) == 1


# ---- the log file and the command line --------------------------------------------------------


def test_the_log_file_has_a_line_for_each_request_and_neither_key_nor_text(tmp_path):
    path = tmp_path / "log.jsonl"
    for _ in range(2):  # appended to
        with RehearsalServer(log_path=path, keep_messages=False) as server:
            chat(server, "SECRET TEXT")
            chat(server, max_tokens=0)
            assert server.log[0].text == "" and not server.log[0].messages and not server.log[0].key
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["outcome"] for r in rows] == ["answered", "refused"] * 2
    assert rows[0]["digest"] == rows[2]["digest"] != rows[1]["digest"]
    assert rows[0]["billed"] and rows[0]["prompt_tokens"] == 2 and rows[0]["status"] == 200
    assert "SECRET" not in path.read_text() and "canary" not in path.read_text()
    with pytest.raises(Stop, match="--log: .*cannot be written"), RehearsalServer(log_path=tmp_path):
        pass


def parsed(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_from(parser.parse_args(arguments))


def test_options_become_settings():
    assert parsed() == Settings()
    chosen = parsed("--latency-seconds", "0.5", "--requests-per-minute=500", "--fault-kinds", "fast,hang")
    assert chosen == Settings(0.5, requests_per_minute=500, fault_kinds=("fast", "hang"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--latency-seconds", "-1"), ("--latency-seconds", "nan"), ("--latency-spread", "inf"),
        ("--requests-per-minute", "0"), ("--requests-per-minute", "1.5"), ("--tokens-per-minute", "x"),
        ("--fault-fraction", "1.1"), ("--fault-kinds", "fast,none"), ("--fault-kinds", ""),
        ("--batch-seconds", "soon"), ("--max-batch-rows", "0"), ("--seed", "one"),
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_named(option, value):
    with pytest.raises(Stop, match=rf"^{option}: expected"):
        parsed(f"{option}={value}")


def test_a_port_that_is_taken_is_named(rehearsal):
    with pytest.raises(Stop, match=f"--port: .*{rehearsal.port}"), RehearsalServer(port=rehearsal.port):
        pass


def test_serving_from_the_command_line_until_ctrl_c(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ultrachat.rehearsal import Settings, serve\n"
        "serve(Settings(), '127.0.0.1', '0', Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log.jsonl")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"PYTHONPATH": str(REPO / "src"), "PATH": ""},
    )  # fmt: skip
    url = process.stdout.readline().split(";")[0].split()[-1]
    how_to = process.stdout.readline()
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    tokens = client.chat.completions.create(model="filler", messages=one("a")).usage.total_tokens
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and f"--set base_url={url} --set model=filler" in how_to
    assert f"1 requests, 1 billed, {tokens} tokens" in printed and "Traceback" not in printed
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
