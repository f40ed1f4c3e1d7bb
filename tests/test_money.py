"""Known before it is spent, and never more than was allowed; the server's log is the bill."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from fault_server import FAULTS, as_json, completion
from hypothesis import given
from hypothesis import strategies as st

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.money import Budget, Forecast, Price, prompt_bytes, read_prices
from ultrachat.runs import Run, run_folder
from ultrachat.store import Batch, open_store
from ultrachat.teacher import Request, Teacher, one_message, open_teacher

PRICES = {"a-model": [100.0, 1000.0]}  # dollars per million: a call of 7 + 5 tokens costs $0.0057


def request(text: str) -> Request:
    return Request(task="t", inputs={"text": text}, messages=one_message(text), max_tokens=10)


async def put(ask, text):
    return await ask(request(text))


def teacher(tmp_path, server, **fields) -> Teacher:
    return Teacher(tmp_path / "a.sqlite", server.url, "a-model", prices=PRICES, **fields)


def on_the_books(tmp_path) -> tuple[float, float]:
    with open_store(tmp_path / "a.sqlite") as store:
        return store.money()


@pytest.mark.parametrize(
    "entry",
    [1, "12", [1], [1, 2, 3], [1, "2"], [-1, 2], [1, float("nan")], [1, float("inf")], [True, 1], None],
)
def test_a_price_that_is_none_is_named(entry):
    with pytest.raises(Stop, match=r"prices: m: expected \[prompt, completion\] in dollars per million"):
        read_prices({"m": entry})


def test_a_price_is_per_million_tokens():
    assert read_prices({"m": [2, 8]})["m"].of(1_000_000, 500_000) == 6.0


@given(st.text())
def test_no_byte_level_tokenizer_makes_more_tokens_than_the_worst_case(text):
    assert prompt_bytes(one_message(text)) >= len(text.encode("utf-8", "replace"))


def test_what_is_spent_is_what_the_server_counted(tmp_path, server):
    asked = teacher(tmp_path, server)
    asked.map(put, ["a", "b", "c"])
    assert on_the_books(tmp_path) == (pytest.approx(3 * 0.0057), 0.0)
    assert asked.usage()["spent_usd"] == pytest.approx(3 * 0.0057)
    teacher(tmp_path, server).map(put, ["a", "b", "c"])  # from the ledger: free
    assert on_the_books(tmp_path)[0] == pytest.approx(3 * 0.0057)


@pytest.mark.parametrize("usage", [None, "many", {"prompt_tokens": -3, "completion_tokens": 5}])
def test_an_answer_without_token_counts_is_charged_at_its_worst_case(tmp_path, server, usage):
    server.fault = lambda text, nth: as_json({**completion("fine"), "usage": usage})
    teacher(tmp_path, server).ask(request("abcd"))
    assert on_the_books(tmp_path)[0] == pytest.approx(((4 + 16) * 100 + 10 * 1000) / 1e6)


@pytest.mark.parametrize(
    ("name", "billed"),
    [("http_500", False), ("http_429", False), ("reset_in_body", True), ("cut_json", True), ("html", True)],
)
def test_an_unknown_outcome_counts_as_billed_and_a_refused_request_does_not(
    tmp_path, server, no_backoff, name, billed
):
    server.fault = lambda text, nth: FAULTS[name] if nth == 1 else None
    teacher(tmp_path, server).ask(request("abcd"))
    worst = ((4 + 16) * 100 + 10 * 1000) / 1e6
    assert on_the_books(tmp_path) == (pytest.approx(0.0057 + worst * billed), 0.0)


def test_a_refused_answer_is_paid_for(tmp_path, server):
    server.fault = lambda text, nth: as_json(completion("half", "length"))
    teacher(tmp_path, server).map(put, ["a"])
    assert on_the_books(tmp_path)[0] == pytest.approx(0.0057)


def test_the_run_stops_before_the_cap_and_goes_on_when_it_is_raised(tmp_path, server):
    items = [str(i) for i in range(40)]
    with pytest.raises(
        Stop, match=r"budget_usd: \$0\.\d+ of \$0.1 spent or at risk .* raise budget_usd and run again"
    ):
        teacher(tmp_path, server, budget_usd=0.1, concurrency=4).map(put, items)
    n_asked = len(server.log)
    # 0.1 / 0.0057 = 17.5, and the last call's worst case (0.012) must fit as well
    assert n_asked == int((0.1 - 0.0118) / 0.0057) + 1 and on_the_books(tmp_path)[0] <= 0.1
    with pytest.raises(Stop, match="budget_usd"):
        teacher(tmp_path, server, budget_usd=0.1).map(put, items)
    assert len(server.log) == n_asked
    done, _ = teacher(tmp_path, server, budget_usd=1.0).map(put, items)
    assert len(done) == 40 and len(server.log) == 40


def test_a_cap_needs_every_price_and_is_a_number(tmp_path, server):
    with pytest.raises(Stop, match="budget_usd: needs the price of every model; prices has none of 'other'"):
        Teacher(tmp_path / "a.sqlite", "https://example.org/v1", "other", prices=PRICES, budget_usd=1.0).ask(
            request("a")
        )
    own = Teacher(tmp_path / "a.sqlite", server.url, "other", prices=PRICES, budget_usd=1.0)
    assert own.ask(request("a")) and own.usage()["spent_usd"] == 0.0  # on this very machine: free
    with pytest.raises(Stop, match="budget_usd: expected a number of at least 0"):
        teacher(tmp_path, server, budget_usd=-1.0)
    assert len(server.log) == 1


def test_what_was_at_risk_when_a_session_died_counts_as_spent_once(tmp_path):
    path = tmp_path / "a.sqlite"

    async def die_with_two_under_way() -> None:
        with open_store(path) as store:
            budget = Budget(store, read_prices(PRICES), 1.0)
            await budget.reserve(0.3)
            await budget.reserve(0.2)

    for n in (1, 2):
        try:
            asyncio.run(die_with_two_under_way())
        except Stop as stop:
            raise AssertionError(n) from stop
    assert on_the_books(tmp_path) == (pytest.approx(0.5), pytest.approx(0.5))
    with open_store(path) as store:
        assert Budget(store, read_prices(PRICES), 1.0).spent_usd == pytest.approx(1.0)


def test_an_open_batch_is_reserved(tmp_path):
    with open_store(tmp_path / "a.sqlite") as store:
        store.put_batch(Batch("tag", "http://x/v1", "b", 0.6), [])
        budget = Budget(store, read_prices(PRICES), 1.0)
        assert budget.fits(0.4) and not budget.fits(0.41)


def test_the_ledger_never_says_less_than_what_may_be_billed(tmp_path):
    """Random reservations and bills: at every moment spent + at risk on the books covers all that is out."""
    rng = random.Random(3)

    async def play() -> None:
        with open_store(tmp_path / "a.sqlite") as store:
            budget, out, billed = Budget(store, read_prices(PRICES)), [], 0.0
            for _ in range(300):
                if out and rng.random() < 0.5:
                    worst = out.pop(rng.randrange(len(out)))
                    bill = rng.choice([0.0, worst, worst * rng.random()])
                    billed += bill
                    budget.settle(worst, bill)
                    if rng.random() < 0.7 and (spent := budget.to_commit()) is not None:
                        store.set_money(spent, store.money()[1])
                else:
                    out.append(rng.random())
                    await budget.reserve(out[-1])
                assert sum(store.money()) >= billed + sum(out) - 1e-9
            assert budget.spent_usd == pytest.approx(billed)

    asyncio.run(play())


def test_a_forecast_asks_nothing_and_comes_true(tmp_path, server):
    async def two_steps(ask, text):
        first = await ask(request(text))
        return await ask(request(first[:20] + text))

    items = [f"item {i}" for i in range(250)]
    asked = teacher(tmp_path, server)
    before = asked.forecast(two_steps, items)
    assert (
        not server.log and before.items == 250 and before.calls == pytest.approx(500) and before.stored == 0
    )
    price = Price(*PRICES["a-model"])
    assert before.usd == pytest.approx(price.of(before.prompt_tokens, before.completion_tokens))
    asked.map(two_steps, items[:50])
    assert len(server.log) == 100
    after = asked.forecast(two_steps, items[:50])
    assert after.calls == 0 and after.stored == 100 and after.usd == 0


def test_a_forecast_of_recorded_answers_has_their_length(tmp_path):
    """With the recorded teacher the stand-in for a question of the pack is of the pack."""

    async def ask_one(ask, topic):
        text = prompts.subtopics(topic, 36)
        return await ask(
            Request(task="subtopics", inputs={"topic": topic, "n": 36}, messages=one_message(text))
        )

    forecast = Teacher(tmp_path / "a.sqlite").forecast(ask_one, ["Technology", "Jazz"])
    assert forecast.calls == 2 and 100 < forecast.completion_tokens / 2 < 1000
    assert "no price of recorded" in str(forecast)


def test_a_forecast_prints_its_figures_and_its_assumptions():
    forecast = Forecast(items=2, concurrency=4)
    forecast.add("m", Price(1.0, 2.0), 1000, 500, 0.5)
    line = str(forecast.scaled(2000))
    assert (
        "items 2,000 · calls 1,000 · prompt tokens 1,000,000 · completion tokens 500,000 · dollars 1.00"
        in line
    )
    assert "hours 0.69 (at 4 under way, 50 tokens/s each)" in line


def test_a_live_map_says_what_it_will_cost_before_it_asks(tmp_path, server, capsys):
    teacher(tmp_path, server).map(put, ["a", "b"], "questions")
    assert "questions, expected: items 2 · calls 2" in capsys.readouterr().out


def test_a_shard_shares_what_the_notebooks_before_it_left(runs_home):
    run_folder("r").mkdir(parents=True)
    line = {"notebook": "02_questions_about_the_world", "outputs": {}, "inputs": {}, "parameters": {}}
    (run_folder("r") / "manifest.jsonl").write_text(json.dumps(line | {"usage": {"spent_usd": 0.4}}) + "\n")
    where = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "run_name": "r"}

    def budget(shard: str, budget_usd: float | None) -> float | None:
        parameters = where | {"shard": shard, "budget_usd": budget_usd}
        return open_teacher(Run("05_user_simulation", "r", parameters)).budget_usd

    assert budget("1/3", 1.0) == pytest.approx(0.2) and budget("1/1", 1.0) == 1.0
    assert budget("1/3", 0.0) is None and budget("1/1", None) is None
    with pytest.raises(
        Stop, match=r"budget_usd: the notebooks before have spent \$0.4000 of \$0.3; raise it"
    ):
        budget("1/3", 0.3)


def test_a_price_given_to_the_recorded_teacher_is_for_forecasts_only(tmp_path):
    teacher = Teacher(tmp_path / "a.sqlite", prices={"recorded": [1e5, 1e5]}, budget_usd=0.000001)
    asked = Request(task="meta_topics", inputs={"n": 30}, messages=one_message("x"))
    assert teacher.ask(asked) and "spent_usd" not in teacher.usage()  # there is nothing to count
    assert on_the_books(tmp_path) == (0.0, 0.0)
