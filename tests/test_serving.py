"""Models served on this machine: answers that depend on the request alone, the guard, and the teacher as a client."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import chatmodels, serving, voices
from ultrachat.endpoints import Endpoint
from ultrachat.errors import Stop
from ultrachat.serving import USER_FORBIDS, Voice, served
from ultrachat.sft import Encoder
from ultrachat.teacher import Request, Teacher

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
ASKED = [("user", "What is a pear?")]
ANSWERED = [*ASKED, ("assistant", "A pear is a fruit.")]
SYSTEM = [("system", "You like plums.")]


@pytest.fixture(scope="module")
def base(small_base):
    """An untrained model, which finds all tokens about alike, and its tokenizer with a simple template."""
    model, tokenizer = chatmodels.load(small_base)
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


@pytest.fixture(scope="module")
def url(base):
    """Where the model is served plainly, and with a guard."""
    with served({"plain": Voice(*base), "guarded": Voice(*base, USER_FORBIDS)}) as url:
        yield url


def send(url: str, body, method: str = "POST", path: str = "/chat/completions"):
    """Return the status and the JSON that come back."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, at.path + path, data, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def body_of(messages, **fields):
    said = [{"role": role, "content": text} for role, text in messages]
    return {"model": "plain", "messages": said, "max_tokens": 12, **fields}


def ask(url: str, messages, **fields) -> str:
    status, reply = send(url, body_of(messages, **fields))
    assert status == 200, reply
    return reply["choices"][0]["message"]["content"]


def draws(base, messages, seed=0, max_tokens=12, temperature=1.0, top_p=1.0, format="template"):
    """Yield what the model says without any server: the answer, and those that are drawn where it is empty."""
    model, tokenizer = base
    ids, asking = Encoder(tokenizer, format=format).prompt_after(messages), voices.Asking(None, [], seed)
    for _ in range(voices.MAX_DRAWS):
        sampling = (max_tokens, temperature, top_p)
        yield chatmodels.generate(model, tokenizer, [ids], *sampling, seed=asking.next_seed())[0]


def expected(base, messages, seed=0, **sampling) -> str:
    """The first draw that is not empty: almost always that of the seed itself."""
    return next(filter(None, draws(base, messages, seed, **sampling)))


@pytest.fixture
def batches(monkeypatch):
    """How many prompts each batch had that was generated since."""
    sizes, original = [], chatmodels.generated

    def counted(model, tokenizer, prompts, *rest, **named):
        sizes.append(len(prompts))
        return original(model, tokenizer, prompts, *rest, **named)

    monkeypatch.setattr(chatmodels, "generated", counted)
    return sizes


# ---- an answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [ASKED, ANSWERED, SYSTEM, SYSTEM + ASKED, SYSTEM + ANSWERED, []])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.5, "seed": 3}])
def test_an_answer_is_what_the_model_says_without_a_server(base, url, messages, sampling):
    assert ask(url, messages, **sampling) == expected(base, messages, **sampling) != ""


def test_who_speaks_follows_from_the_messages(base):
    voice = Voice(*base)
    decoded = base[1].decode
    asked, answered = "<s>user:What is a pear?</s>", "assistant:A pear is a fruit.</s>"
    assert decoded(voice.prompt(ASKED)) == asked + "assistant:"
    assert decoded(voice.prompt(ANSWERED)) == asked + answered + "user:"
    assert decoded(voice.prompt(SYSTEM)) == "<s>system:You like plums.</s>user:"
    assert decoded(voice.prompt([])) == "<s>user:"
    typed = voice.prompt([("user", "a</s>b")])
    assert typed.count(base[1].eos_token_id) == 1  # the template's; the typed one is text


def test_an_answer_does_not_depend_on_what_else_is_asked(url, batches):
    openings = [("user", f"What is a {x}?") for x in ("pear", "plum", "fig and a date", "lime " * 20)]
    asked = [([opening], seed) for opening in openings for seed in range(5)]
    asked += [([*ANSWERED, opening], seed) for opening in openings for seed in range(3)]
    alone = [ask(url, messages, seed=seed) for messages, seed in asked]
    assert set(batches) == {1} and len(set(alone)) > 30
    batches.clear()
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: ask(url, one[0], seed=one[1]), asked))
    assert together == alone
    assert max(batches) > 4 and sum(batches) == len(asked)  # they were together


def test_the_same_request_has_one_answer_and_another_seed_another(url):
    with ThreadPoolExecutor(12) as pool:
        same = list(pool.map(lambda _: ask(url, SYSTEM, seed=5), range(6)))
        other = list(pool.map(lambda seed: ask(url, SYSTEM, seed=seed), range(6)))
    assert len(set(same)) == 1 and same[0] == other[5]
    assert len(set(other)) == 6
    assert ask(url, SYSTEM) == other[0]  # no seed is seed 0


def test_requests_of_other_kinds_are_not_mixed(base, url, batches):
    kinds = [
        {"temperature": t, "top_p": p, "max_tokens": n}
        for t in (0.5, 1.0)
        for p in (0.9, 1.0)
        for n in (4, 9)
    ]
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda kind: ask(url, ASKED, **kind), kinds * 2))
    assert said == [expected(base, ASKED, **kind) for kind in kinds] * 2


def test_no_batch_is_larger_than_allowed(base, batches):
    with served({"plain": Voice(*base)}, max_batch=3) as url, ThreadPoolExecutor(10) as pool:
        said = list(pool.map(lambda seed: ask(url, ASKED, seed=seed), range(10)))
    assert said == [expected(base, ASKED, seed) for seed in range(10)]
    assert 1 < max(batches) <= 3


def test_the_end_and_the_tokens_are_told(base, url):
    model, tokenizer = base
    ids = Voice(*base).prompt(ASKED)
    ends = set()
    for seed in range(40):
        [one] = chatmodels.generated(model, tokenizer, [ids], 40, 1.0, seed=[seed])
        if not one.text:
            continue
        _, reply = send(url, body_of(ASKED, seed=seed, max_tokens=40))
        choice, usage = reply["choices"][0], reply["usage"]
        assert choice["finish_reason"] == ("length" if one.cut else "stop")
        assert usage == {
            "prompt_tokens": len(ids), "completion_tokens": one.n_tokens, "total_tokens": len(ids) + one.n_tokens,
        }  # fmt: skip
        assert one.n_tokens == 40 if one.cut else one.n_tokens <= 40
        ends.add(choice["finish_reason"])
    assert ends == {"length", "stop"}


# ---- the guard --------------------------------------------------------------------------------


def test_a_users_turn_does_not_begin_with_what_is_forbidden(base):
    """The strings are what the model says unguarded; so without the guard they do come."""
    voice = Voice(*base)
    seeds = range(24)
    with served({"plain": voice}) as url:
        said = [ask(url, ANSWERED, seed=seed) for seed in seeds]
    begins = [text[: 1 + seed % 6] for seed, text in enumerate(said[:8])]
    guard = Voice(*base, tuple(begins))
    with served({"plain": guard}) as url:
        guarded = [ask(url, ANSWERED, seed=seed) for seed in seeds]
        to_users = [ask(url, ASKED, seed=seed) for seed in seeds]
    assert not any(map(guard.is_forbidden, guarded))
    for before, after in zip(said, guarded, strict=True):
        if not guard.is_forbidden(before) and after != before:  # its first token is a forbidden string
            assert any(before.startswith(begin) for begin in begins)
    assert sum(map(guard.is_forbidden, said)) > 0 and guarded != said
    # the guard is for users only
    assert to_users == [expected(base, ASKED, seed) for seed in seeds]


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.sets(st.integers(0, 319), min_size=1, max_size=300))
def test_no_token_that_is_forbidden_comes_first(base, seed, forbidden):
    model, tokenizer = base
    prompts = [Voice(*base).prompt(ANSWERED)] * 8
    seeds = [seed + i for i in range(8)]
    first = set()

    def seen(_, ids, ends, stop):
        first.add(ids[0])
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatmodels, "_answer", seen)
        chatmodels.generated(model, tokenizer, prompts, 1, 1.0, seed=seeds, forbidden_first=forbidden)
    assert first and not first & forbidden
    assert len(forbidden) < 300 or len(first) < 8


def test_a_forbidden_string_of_one_token_is_forbidden_as_a_token(base):
    tokenizer = base[1]
    voice = Voice(*base, ("A", "pear", "Certainly not"))
    one_token = {tokenizer.convert_tokens_to_ids(t) for t in ("A", "ĠA", "Ġpear")}
    assert one_token & voice.forbidden_tokens and voice.forbidden_tokens >= set(tokenizer.all_special_ids)
    long = tokenizer("Certainly not", add_special_tokens=False)["input_ids"]
    assert len(long) > 1 and long[0] not in voice.forbidden_tokens
    assert Voice(*base).forbidden_tokens == frozenset()


@pytest.mark.parametrize(
    "text",
    ["Certainly! Here", "Absolutely.", "As an AI language model, I", "I\u2019m sorry, but I cannot", "Sure! Here is",
     " Here are some ideas", "You're welcome!"],
)  # fmt: skip
def test_assistants_beginnings_are_forbidden(base, text):
    assert Voice(*base, USER_FORBIDS).is_forbidden(text)


@pytest.mark.parametrize(
    "text",
    ["I have a question", "As a teacher, how do I", "Here is my essay: ", "Sorry, I meant the second one", "Sure, but why?",
     "Certainlyish", "are you sure", "Of course I tried that", "I'm stuck", "Thank you for this. Now", "Unfortunately not"],
)  # fmt: skip
def test_human_beginnings_are_not(base, text):
    assert not Voice(*base, USER_FORBIDS).is_forbidden(text)


def test_the_guard_is_no_single_string(base):
    with pytest.raises(Stop, match="forbid_first: expected strings, none of them empty, got 'Sure'"):
        Voice(*base, "Sure")


def rigged(small_base, ends: list[int]):
    """The same model, with many tokens that end an answer."""
    model, tokenizer = chatmodels.load(small_base)
    model.generation_config.eos_token_id = ends
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


def test_an_empty_answer_is_drawn_again(small_base):
    base = rigged(small_base, list(range(0, 320, 2)))
    again = 0
    with served({"plain": Voice(*base)}) as url:
        for seed in range(12):
            first = next(draws(base, SYSTEM, seed))
            again += not first
            found = ask(url, SYSTEM, seed=seed)
            assert found == first if first else found == expected(base, SYSTEM, seed)
    assert again > 2


@pytest.mark.parametrize(("sampling", "n_draws"), [({}, 9), ({"temperature": 0}, 1)])
def test_nothing_but_empty_answers_is_an_error(small_base, batches, sampling, n_draws):
    base = rigged(small_base, list(range(320)))
    with served({"plain": Voice(*base)}) as url:
        status, reply = send(url, body_of(ASKED, **sampling))
    assert status == 422 and reply["error"]["code"] == "empty_answer" and len(batches) == n_draws


# ---- what cannot be answered ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status", "code", "said"),
    [
        ({"model": "other"}, 404, "model_not_found", "model: expected one of plain, guarded"),
        ({"model": None}, 404, "model_not_found", "model: expected"),
        ({"n": 2}, 400, "unsupported_parameter", "n: this server"),
        ({"stream": True}, 400, "unsupported_parameter", "stream: this server"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools: "),
        ({"stop": ["x"]}, 400, "unsupported_parameter", "stop: "),
        ({"temperature": -1}, 400, "invalid_value", "temperature: expected a number from 0 to 100, got '-1'"),
        ({"temperature": "hot"}, 400, "invalid_value", "temperature: "),
        ({"temperature": float("nan")}, 400, "invalid_value", "temperature: "),
        ({"top_p": 0}, 400, "invalid_value", "top_p: expected a number above 0 and up to 1, got '0'"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens: expected a whole number of at least 1"),
        ({"max_completion_tokens": 1.5}, 400, "invalid_value", "max_completion_tokens: "),
        ({"seed": True}, 400, "invalid_value", "seed: expected a whole number, got 'True'"),
        ({"messages": "Hi"}, 400, "invalid_value", "messages: expected a list"),
        ({"messages": ["Hi"]}, 400, "invalid_value", "messages[0]: expected a role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "invalid_value", "messages[0]: expected a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, 400, "invalid_messages", "expected one of the assistant"),
        ({"messages": [{"role": "user", "content": "\U000ffffe"}]}, 400, "invalid_messages", "no character"),
        ({"max_tokens": 300}, 400, "context_length_exceeded", "+ max_tokens 300 exceed the model's 256"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_message_and_a_code(url, changed, status, code, said):
    found, reply = send(url, body_of(ASKED) | changed)
    error = reply["error"]
    assert (found, error["code"]) == (status, code) and said in error["message"]
    assert "\n" not in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b'"a"', b"[" * 100_000])
def test_a_body_that_is_no_json_object(url, data):
    status, reply = send(url, data)
    assert status == 400 and reply["error"]["code"] == "invalid_json"


def test_other_paths_and_a_body_that_is_too_long(url):
    assert send(url, {}, path="/completions")[0] == 404
    status, reply = send(url, b"", "GET")
    assert status == 405 and reply["error"]["code"] == "method_not_allowed"
    status, reply = send(url, b" " * (serving.MAX_BODY_BYTES + 1))
    assert status == 413 and reply["error"]["code"]
    assert [m["id"] for m in send(url, b"", "GET", "/models")[1]["data"]] == ["plain", "guarded"]
    assert send(url[: -len("/v1")], b"", "GET", "/health") == (200, {"status": "ok"})


def test_a_prompt_may_fill_the_context_to_its_last_token(base, url):
    left = 256 - len(Voice(*base).prompt(ASKED))
    assert send(url, body_of(ASKED, max_tokens=left))[0] == 200
    assert send(url, body_of(ASKED, max_tokens=left + 1))[0] == 400


def test_half_a_surrogate_costs_nobody_an_answer(url):
    status, _ = send(
        url, rb'{"model": "plain", "max_tokens": 3, "messages": [{"role": "user", "content": "\ud800"}]}'
    )
    assert status == 200


def test_a_model_that_fails_says_so_without_a_traceback_and_the_next_is_answered(base, url, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("SECRET: CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(chatmodels, "generated", failing)
        status, reply = send(url, body_of(ASKED))
    assert status == 500 and reply["error"]["message"] == "generation failed (RuntimeError)"
    assert ask(url, ASKED) == expected(base, ASKED)


def test_a_client_that_gives_up_is_not_generated_for(base, batches, monkeypatch):
    begun, go_on, original = threading.Event(), threading.Event(), chatmodels.generated

    def slow(*rest, **named):
        begun.set()
        go_on.wait(20)
        return original(*rest, **named)

    monkeypatch.setattr(chatmodels, "generated", slow)
    with served({"plain": Voice(*base)}) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, url, ASKED)
        begun.wait(20)
        at = urlsplit(url)
        gone = http.client.HTTPConnection(at.hostname, at.port)
        gone.request("POST", "/v1/chat/completions", json.dumps(body_of(ANSWERED)).encode())
        gone.close()
        second = pool.submit(ask, url, SYSTEM)
        assert not second.done()
        threading.Event().wait(0.2)
        go_on.set()
        assert first.result() and second.result()
    assert batches == [1, 1]


def test_nothing_to_serve_and_a_port_that_is_taken(base, url):
    with pytest.raises(Stop, match="voices: expected at least one"), served({}):
        pass
    with pytest.raises(Stop, match="max_batch: .* got 0"), served({"a": Voice(*base)}, max_batch=0):
        pass
    port, before = urlsplit(url).port, threading.active_count()
    for wrong in (port, 99_999):
        with (
            pytest.raises(Stop, match=f"--port: cannot listen on 127.0.0.1:{wrong}"),
            served({"a": Voice(*base)}, port=wrong),
        ):
            pass
    assert threading.active_count() == before


# ---- the teacher as its client ----------------------------------------------------------------


def question(seed: int, **fields) -> Request:
    messages = [{"role": role, "content": text} for role, text in ANSWERED]
    fields = {"max_tokens": 12, "accept_cut": True} | fields
    return Request(task="user_turn", inputs={"n": 1}, messages=messages, seat="user", seed=seed, **fields)


async def put(ask, request):
    return await ask(request)


def at_seat(path, endpoint: Endpoint, **fields) -> Teacher:
    return Teacher(path / "answers.sqlite", "http://127.0.0.1:9/v1", "nobody", {"user": endpoint}, **fields)


def test_thirty_dialogues_at_once_are_those_one_by_one_in_few_batches(base, tmp_path, batches):
    voice = Voice(*base)

    async def talk(ask, seed):
        said = [*SYSTEM]
        for number in range(4):
            messages = [{"role": role, "content": text} for role, text in said]
            text = await ask(
                Request(task="turn", inputs={"round": number}, messages=messages, max_tokens=6, seed=seed, accept_cut=True)
            )  # fmt: skip
            said.append((("user", "assistant")[number % 2], text))
        return said

    made = []
    for concurrency in (1, 30):
        batches.clear()
        with served({"m": voice}) as url:
            where = serving.endpoint(url, "m", voice)
            teacher = Teacher(
                tmp_path / f"{concurrency}.sqlite", url, "m", {"assistant": where}, concurrency=concurrency
            )
            made.append(teacher.map(talk, range(30)))
        assert sum(batches) >= 120  # more where one was empty and drawn again
        assert set(batches) == {1} if concurrency == 1 else len(batches) < 60
    assert made[0] == made[1] and len(made[0][0]) == 30


def test_served_again_nothing_is_asked_twice_and_other_weights_are_asked_anew(small_base, base, tmp_path):
    voice, requests = Voice(*base), [question(seed) for seed in range(4)]
    found = []
    for _ in range(2):
        with served({"m": voice}) as url:
            teacher = at_seat(tmp_path, serving.endpoint(url, "m", voice))
            found.append((url, teacher.map(put, requests), teacher.usage()["asked"]))
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]
    assert [n for _, _, n in found] == [4, 0]
    said = [expected(base, ANSWERED, seed) for seed in range(4)]
    assert found[0][1] == ([text.replace("\x00", "\ufffd") for text in said], [])

    model, tokenizer = chatmodels.load(small_base)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    tokenizer.chat_template = TEMPLATE
    trained = Voice(model, tokenizer)
    others = [
        trained,
        Voice(*base, ("Sure!",)),
        Voice(*base, format="platolm"),
        Voice(*base, format="parrot"),
    ]
    assert len({v.digest for v in (voice, *others)}) == 5
    with served({"m": trained}) as url:
        teacher = at_seat(tmp_path, serving.endpoint(url, "m", trained))
        again = teacher.map(put, requests)
    assert teacher.usage()["asked"] == 4 and again != found[0][1]
    assert "127.0.0.1" not in teacher.describe().split("user: ")[1]


def test_a_cut_question_is_an_answer_only_where_it_will_do(base, tmp_path):
    voice = Voice(*base)
    with served({"m": voice}) as url:
        teacher = at_seat(tmp_path, serving.endpoint(url, "m", voice))
        seeds = [
            s
            for s in range(9)
            if chatmodels.generated(*base, [voice.prompt(ANSWERED)], 12, 1.0, seed=[s])[0].cut
        ]
        done, failed = teacher.map(put, [question(seed, accept_cut=False) for seed in seeds])
        assert not done and {f.kind for f in failed} == {"length"}
        assert len(teacher.map(put, [question(seed) for seed in seeds])[0]) == len(seeds) > 3
        done, failed = teacher.map(put, [question(seed, accept_cut=False) for seed in seeds])
        assert not done and len(failed) == len(seeds)  # what is kept is not taken for a whole answer


def test_what_does_not_fit_is_a_failure_of_its_own_kind(base, tmp_path):
    voice = Voice(*base)
    with served({"m": voice}) as url:
        teacher = at_seat(tmp_path, serving.endpoint(url, "m", voice))
        wrong = [
            question(seed, max_tokens=250) for seed in range(12)
        ]  # more than a server may reject at first
        done, failed = teacher.map(put, wrong)
    assert not done and {f.kind for f in failed} == {"context_length_exceeded"} and len(failed) == 12
    assert failed[0].line == "the dialogue and its answer do not fit into the model's context"


def test_a_model_that_is_not_served_and_a_server_that_is_gone_are_one_line(base, tmp_path, no_backoff):
    voice = Voice(*base)
    with served({"m": voice}) as url, pytest.raises(Stop, match=f"^model: 'other' is not found at {url} "):
        at_seat(tmp_path, serving.endpoint(url, "other", voice)).ask(question(0))
    with pytest.raises(Stop, match=f"no connection to {url}") as stopped:
        at_seat(tmp_path, serving.endpoint(url, "m", voice), max_tries=2).ask(question(0))
    assert "\n" not in str(stopped.value)


def test_closing_while_requests_wait_ends_in_order(base, tmp_path, no_backoff, monkeypatch):
    """The with block ends while a batch is under way: who waits hears that the connection is gone."""
    voice, begun, original = Voice(*base), threading.Event(), chatmodels.generated

    def slow(*rest, **named):
        begun.set()
        threading.Event().wait(0.5)
        return original(*rest, **named)

    monkeypatch.setattr(chatmodels, "generated", slow)
    with ThreadPoolExecutor(1) as pool:
        with served({"m": voice}) as url:
            teacher = at_seat(tmp_path, serving.endpoint(url, "m", voice), max_tries=2)
            asked = pool.submit(teacher.map, put, [question(seed) for seed in range(5)])
            begun.wait(20)
        done, failed = asked.result()
    assert not done and {f.kind for f in failed} == {"connection"} and len(failed) == 5
    assert not [t for t in threading.enumerate() if t.name in ("serving", "generation") and not t.daemon]


# ---- the command ------------------------------------------------------------------------------


CODE = (
    "import argparse, sys; from ultrachat import serving\n"
    "parser = argparse.ArgumentParser(); serving.add_arguments(parser)\n"
    "serving.run(parser.parse_args())"
)


def test_the_command_serves_a_folder_until_ctrl_c(small_base, base):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, f"m={small_base}", "--template=parrot", "--forbid-first=user", "--port=0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("serving m at http://127.0.0.1:"), line
        url = line.split(";")[0].split()[-1]
        assert f"--set base_url={url} --set model=m" in process.stdout.readline()
        assert ask(url, ASKED, model="m") == expected(base, ASKED, format="parrot")
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in printed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nameless", "serve nameless: expected NAME=FOLDER_OR_HUB_ID"),
        ("a=", "serve a=: expected NAME=FOLDER_OR_HUB_ID"),
        ("a=no/such/folder/here", "neither a folder nor a hub id"),
    ],
)
def test_a_model_that_is_none_is_one_line(text, line):
    import argparse

    parser = argparse.ArgumentParser()
    serving.add_arguments(parser)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(Stop, match=line):
            serving.run(parser.parse_args([text, "--port=0"]))
    finally:
        for signum, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(signum, handler)
