"""How fast a server allows, read from its headers and not exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrachat import pacing
from ultrachat.pacing import Pace, duration_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing.time, "monotonic", clock.monotonic)
    return clock


def headers(limit, remaining, reset, kind="requests") -> dict[str, str]:
    return {
        f"x-ratelimit-{n}-{kind}": str(v)
        for n, v in (("limit", limit), ("remaining", remaining), ("reset", reset))
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12ms", 0.012), ("1s", 1), ("1.5s", 1.5), ("6m0s", 360), ("1h2m3s", 3723), ("2d", 172800), ("7", 7), (" 0.5 ", 0.5),
     ("", None), ("soon", None), ("1.2.3s", None), ("-1s", None), ("5x", None), ("s", None), ("1e9s", None)],
)  # fmt: skip
def test_durations_in_all_their_forms(text, seconds):
    assert duration_seconds(text) == seconds


@given(
    st.dictionaries(
        st.sampled_from(list(headers(1, 1, 1)) + list(headers(1, 1, 1, "tokens"))), st.text(max_size=12)
    )
)
def test_no_header_whatever_breaks_or_stops_the_pace(odd):
    pace = Pace()
    pace.heard_of(pace.sending(10), odd)
    assert 0 <= pace.wait_seconds(10) < float("inf")


def test_the_first_request_goes_alone_until_it_is_answered_or_two_seconds_have_passed(clock):
    pace = Pace()
    assert pace.wait_seconds(1) == 0
    sent = pace.sending(1)
    assert pace.wait_seconds(1) > 0
    clock.now += 2.1
    assert pace.wait_seconds(1) == 0
    other = Pace()
    sent = other.sending(1)
    other.heard_of(sent, {})
    assert other.wait_seconds(1) == 0


def test_without_headers_nothing_is_held_back(clock):
    pace = Pace()
    pace.heard_of(pace.sending(1), {"content-type": "x"})
    for _ in range(1000):
        assert pace.wait_seconds(1e9) == 0
        pace.sending(1e9)


def test_what_is_left_may_be_sent_at_once_and_the_rest_as_it_comes_in(clock):
    pace = Pace()
    pace.heard_of(pace.sending(1), headers(600, 4, "59.6s"))  # ten a second
    for _ in range(4):
        assert pace.wait_seconds(1) == 0
        pace.sending(1)
    assert pace.wait_seconds(1) == pytest.approx(0.1)
    clock.now += 0.1
    assert pace.wait_seconds(1) == pytest.approx(0, abs=1e-9)


def test_replies_speak_of_the_time_their_request_was_sent(clock):
    pace = Pace()
    pace.heard_of(pace.sending(1), headers(600, 100, "50s"))
    sent = [pace.sending(1) for _ in range(50)]
    clock.now += 1.0
    # the server had 99 left when the first of the fifty came; since then 49 went and ten came in
    pace.heard_of(sent[0], headers(600, 99, "50.1s"))
    assert pace.buckets["requests"].level == pytest.approx(99 - 49 + 10)


def test_a_rate_is_not_learned_from_one_or_two_requests(clock):
    pace = Pace()
    pace.heard_of(pace.sending(1), headers(600, 599, "1ms"))  # rounding would make that a thousand a second
    assert pace.buckets["requests"].per_second == 10


def test_the_scarcer_of_requests_and_tokens_decides(clock):
    pace = Pace()
    pace.heard_of(pace.sending(100), headers(600, 500, "10s") | headers(60_000, 1_000, "59s", "tokens"))
    assert pace.wait_seconds(1_000) == 0
    assert pace.wait_seconds(2_000) == pytest.approx(1.0)
    assert pace.wait_seconds(1e9) == pytest.approx(59.0)  # more than ever fits: a full bucket will do


def test_retry_after_holds_back_and_a_shorter_one_does_not_shorten_it(clock):
    pace = Pace()
    pace.heard_of(pace.sending(1), {})
    pace.hold(5)
    pace.hold(2)
    assert pace.wait_seconds(1) == 5


def test_over_a_minute_the_allowed_rate_is_used_and_not_exceeded(clock):
    """A token bucket at the server, replies half a second late, whoever may send does."""
    limit, level, at = 600, 600.0, clock.now
    pace, under_way, refused, accepted = Pace(), [], 0, 0
    while clock.now < 1120:
        while pace.wait_seconds(1) <= 1e-9 and len(under_way) < 200:
            sent = pace.sending(1)
            level = min(limit, level + (clock.now - at) * 10)
            at = clock.now
            if level >= 1:
                level, accepted = level - 1, accepted + 1
            else:
                refused += 1
            reset = f"{(limit - level) / 10 * 1000:.0f}ms"
            under_way.append((clock.now + 0.5, sent, headers(limit, int(level), reset)))
        clock.now += 0.01
        while under_way and under_way[0][0] <= clock.now:
            _, sent, said = under_way.pop(0)
            pace.heard_of(sent, said)
    assert refused == 0 and accepted > 0.97 * (600 + 10 * 120)
