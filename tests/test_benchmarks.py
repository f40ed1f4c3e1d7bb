"""What the benchmarks share: tables land in the CSV and between the markers, digests tell requests apart."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ultrachat import corpora
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


SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if "\nif __name__ ==" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_is_and_a_readme_says_how_to_run_it(script):
    repo = BENCHMARKS.parent
    readmes = [BENCHMARKS / "README.md", repo / "README.md", repo / "data" / "reference" / "README.md"]
    assert any(f"benchmarks/{script.name}" in path.read_text(encoding="utf-8") for path in readmes)
    documentation = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert documentation
    if "ArgumentParser" not in script.read_text(encoding="utf-8"):
        return  # takes no parameters: whatever it is given, it measures
    command = [sys.executable, script, "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"})
    assert helped.returncode == 0 and "usage:" in helped.stdout
    assert documentation.splitlines()[0] in helped.stdout


def test_every_table_of_the_readme_is_its_csv_and_no_csv_goes_unshown(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n?<!-- end of \1 -->", text, re.S))
    assert len(blocks) == text.count("<!-- end of ")
    shown_elsewhere = {"fresh_clone"}
    assert {path.stem for path in BENCHMARKS.glob("*.csv")} - shown_elsewhere == set(blocks)
    for name, block in blocks.items():
        columns, *cells, last = csv.reader((BENCHMARKS / f"{name}.csv").open(encoding="utf-8", newline=""))
        assert block == f"{common.markdown(columns, cells)}\n\n{last[0]}", name


# ---- the texts of release_text ------------------------------------------------------------------


@pytest.fixture(scope="module")
def release_text():
    sys.path.insert(0, str(BENCHMARKS))
    import release_text

    yield release_text
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def made(release_text):
    return release_text.Writer().batch(3, 40)


def test_a_batch_is_always_the_same_and_another_is_another(release_text, made):
    again = release_text.Writer()
    assert again.batch(3, 40) == made
    assert again.batch(4, 40).split(b"data")[1] != made.split(b"data")[1]


def test_made_up_dialogues_are_read_as_the_release_is(made, tmp_path):
    path = tmp_path / "made.jsonl"
    path.write_bytes(made)
    reading = corpora.read(path)
    dialogues = list(reading)
    assert reading.format == "ultrachat" and reading.counts == corpora.Counts(40, 40)
    assert [dialogue.parent for dialogue in dialogues] == [str(number) for number in range(768, 808)]
    assert {len(dialogue.messages) for dialogue in dialogues} <= {4, 6, 8, 10, 12}


def test_lists_are_numbered_within_a_message_and_sentences_begin_with_a_capital(made):
    texts = [text for line in made.splitlines() for text in json.loads(line)["data"]]
    numbered = [[int(n) for n in re.findall(r"\n(\d+)\. ", text)] for text in texts]
    assert max(map(len, numbered)) > 3
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in numbered)
    assert all(text.endswith((".", "?")) and not text[:1].islower() for text in texts)
    assert "  " not in "".join(texts) and "\n " not in "".join(texts)


def test_a_set_that_grows_in_steps_is_the_one_made_at_once(release_text, monkeypatch, tmp_path):
    class Here:
        map = staticmethod(map)

    class Stub:
        def batch(self, number, n):
            return b"".join(b"%d\n" % (number * release_text.BATCH + i) for i in range(n))

    monkeypatch.setattr(release_text, "_writer", Stub(), raising=False)
    path, n = tmp_path / "set.jsonl", 3 * release_text.BATCH + 5
    for before, after in ((0, release_text.BATCH), (release_text.BATCH, n)):
        release_text.grow(path, before, after, Here)
    assert [int(line) for line in path.read_text().split()] == list(range(n))


# ---- what text_statistics compares --------------------------------------------------------------


@pytest.fixture()
def text_statistics(release_text):
    pytest.importorskip("lexicalrichness")
    import text_statistics

    return text_statistics


def test_values_that_differ_in_one_bit_are_found(text_statistics):
    ours = np.array([np.nan, 3.0, np.nextafter(2.0, 3), np.nan, 1.0])
    assert text_statistics.n_different([None, 3.0, 2.0, 1.0, None], ours) == 3


def test_the_random_strings_are_awkward_and_counted_alike(text_statistics):
    texts = text_statistics.fuzzed(300)
    assert texts == text_statistics.fuzzed(300)
    peers = text_statistics.peers_mtld(texts)
    assert None in peers and max(value for value in peers if value is not None) > 5
    assert any("\u2013" in text for text in texts) and any("\ud800" in text for text in texts)
    assert text_statistics.n_different(peers, text_statistics.mtlds(texts)) == 0


def test_the_ways_to_topic_diversity_agree(text_statistics):
    vectors = np.random.default_rng(0).standard_normal((70, 9), np.float32) + np.float32(0.4)
    values = {name: method(vectors) for name, method in text_statistics.METHODS.items()}
    assert max(values.values()) - min(values.values()) < 1e-6
    assert abs(values["ours"] - values["scipy pdist"]) < 1e-12
    assert abs(values["scipy cdist"] - values["scipy pdist"]) < 1e-12
