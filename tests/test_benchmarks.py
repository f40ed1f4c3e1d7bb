"""What the benchmarks share: tables land in the CSV and between the markers, digests tell requests apart."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from ultrachat.errors import Stop

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture()
def common(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    monkeypatch.setattr(common, "FOLDER", tmp_path)
    monkeypatch.setattr(common, "README", tmp_path / "README.md")
    common.README.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    return common


@pytest.fixture()
def job(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "generators"))
    import job

    yield job
    sys.modules.pop("job")


def test_a_table_is_written_twice_and_what_stands_around_it_stays(common):
    rows = [{"what": "a|b", "n_calls": "1,200"}, {"what": "c", "n_calls": "85 %"}]
    for _ in range(2):
        path = common.write_table("speed", rows, "machine: two stones")
    assert list(csv.reader(path.open())) == [
        ["what", "n_calls"], ["a|b", "1,200"], ["c", "85 %"], ["machine: two stones", ""]
    ]  # fmt: skip
    assert common.README.read_text() == (
        "before\n<!-- speed -->\n| what | n calls |\n| --- | ---: |\n| a\\|b | 1,200 |\n| c | 85 % |\n\n"
        "machine: two stones\n<!-- end of speed -->\nafter\n"
    )


def test_a_readme_without_markers_is_named_after_the_csv_is_safe(common, tmp_path):
    with pytest.raises(Stop, match="<!-- memory -->"):
        common.write_table("memory", [{"a": "1"}])
    assert (tmp_path / "memory.csv").read_text().startswith('a\n1\n"machine: ')
    with pytest.raises(Stop, match="same keys"):
        common.write_table("speed", [{"a": "1"}, {"b": "1"}])


def test_the_requests_behind_a_dialogue_are_its_prefixes_and_their_order_does_not_matter(job):
    opening = job.Opening("o1", "Why?", "casual")
    one = job.Job("", "", "", 1, 2, [opening], Path())
    requests = list(job.requests_behind(one, [["Why?", "Because.", "Really?", "Yes."]]))
    assert requests[0] == [{"role": "user", "content": "Why?"}]
    assert requests[1] == job.user_prompt(["Why?", "Because."], opening)
    assert [m["content"] for m in requests[2]] == ["Why?", "Because.", "Really?"]
    assert job.digest(requests) == job.digest(requests[::-1]) != job.digest(requests[:2])
