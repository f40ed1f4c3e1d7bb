"""`python -m ultrachat stats`: any format in, a table with readings and errors out."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ultrachat import describe as D
from ultrachat import embeddings
from ultrachat.__main__ import main
from ultrachat.errors import Stop
from ultrachat.topics import topic_diversity

ROWS = [
    {"instruction": "Name two fruits.", "input": "", "output": "A pear, and then a pear."},
    {"instruction": "Sort:", "input": "b a", "output": "a b"},
    {"instruction": "Say nothing.", "input": "", "output": ""},
]


@pytest.fixture
def alpaca(tmp_path, runs_home):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(ROWS))
    return path


def value(described: D.Description, column: str, reading: str) -> float:
    table = described.table.set_index(["column", "reading"])
    return table.loc[(column, reading), "value"]


def test_a_file_by_hand(alpaca):
    described = D.describe([alpaca], D.Options(embeddings="tfidf"), progress=False)
    assert value(described, "rounds", "rounds") == 1
    assert value(described, "utterance_tokens", "assistant") == (8 + 2) / 2  # A pear , and then a pear .
    assert value(described, "dialogue_tokens", "labels") == (1 + 4 + 4 + 8 + 1 + 4 + 4 + 2) / 2
    assert described.counts.n_dialogues == 2 and described.counts.n_empty == 1
    assert "TF-IDF" in described.embedding and "2 of 2 dialogues" in described.embedding
    text = str(described)
    assert "not the paper's tokens" in text and "3 rows: 2 dialogues" in text


def test_definitions_are_parameters_with_names(alpaca):
    options = D.Options(utterance="all", dialogue="bare", similarity="with diagonal", embeddings="tfidf")
    table = D.describe([alpaca], options, progress=False).table
    assert table[["column", "reading"]].to_numpy().tolist() == [
        ["rounds", "rounds"], ["dialogue_tokens", "bare"], ["utterance_tokens", "all"],
        ["lexical_diversity", "all"], ["topic_diversity", "with diagonal"],
    ]  # fmt: skip
    every = D.describe([alpaca], D.Options(every_reading=True, embeddings="none"), progress=False).table
    assert len(every) == 13 and every["used"].sum() == 4


def test_several_files_are_one_set(alpaca, tmp_path):
    packed = tmp_path / "more.jsonl.gz"
    packed.write_bytes(
        gzip.compress("".join(json.dumps({"data": r}) + "\n" for r in (["Hi", "Hello"],)).encode())
    )
    together = D.describe([alpaca, packed], D.Options(embeddings="none"), progress=False)
    assert together.counts.n_dialogues == 3 and together.files == ("alpaca.json", "more.jsonl.gz")
    assert value(together, "utterance_tokens", "assistant") == (8 + 2 + 1) / 3


def test_the_papers_row_beside_it(alpaca):
    table = D.describe(
        [alpaca], D.Options(beside="Stanford Alpaca", embeddings="tfidf"), progress=False
    ).table
    table = table.set_index("column")
    assert table.loc["lexical_diversity", "paper"] == 42.8
    assert table["errors_apart"].isna().all()  # of two dialogues


def test_distances_from_the_paper_only_where_they_mean_something(tmp_path, runs_home, public):
    rows = [{"data": [f"Question {i}?", f"an answer {'very ' * (i % 7)}long"]} for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def apart(**options) -> pd.Series:
        described = D.describe(
            [path], D.Options(beside="Baize", embeddings="tfidf", **options), progress=False
        )
        return described.table.set_index("column")

    table = apart()
    expected = (table.loc["lexical_diversity", "value"] - 67.1) / table.loc["lexical_diversity", "se"]
    assert table.loc["lexical_diversity", "errors_apart"] == pytest.approx(expected)
    # other tokens and another embedding than the paper's: no distance
    assert table.loc[["dialogue_tokens", "utterance_tokens", "topic_diversity"], "errors_apart"].isna().all()
    table = apart(tokenizer=str(public("tokenizers/llama2_tokenizer.model")))
    assert table.loc[["dialogue_tokens", "utterance_tokens"], "errors_apart"].notna().all()
    assert math.isnan(table.loc["topic_diversity", "errors_apart"])


def test_given_vectors_are_used_for_all_dialogues(alpaca, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    described = D.describe([alpaca], D.Options(embeddings=str(tmp_path / "v.npy")), progress=False)
    assert value(described, "topic_diversity", "pairs") == topic_diversity(vectors).similarity
    np.save(tmp_path / "v.npy", vectors[:1])
    with pytest.raises(Stop, match="1 vectors, expected one for each of the 2 dialogues"):
        D.describe([alpaca], D.Options(embeddings=str(tmp_path / "v.npy")), progress=False)


def test_the_papers_sample_stands_beside_all_dialogues(tmp_path, runs_home):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"data": [f"Question {i}?", "An answer."]}) + "\n" for i in range(50)))
    vectors = np.random.default_rng(0).normal(size=(50, 5)) + 0.3
    np.save(tmp_path / "v.npy", vectors)
    options = D.Options(embeddings=str(tmp_path / "v.npy"), n_sample=20)
    table = D.describe([path], options, progress=False).table.set_index("reading")
    assert table.loc["pairs", "value"] == topic_diversity(vectors).similarity
    drawn = topic_diversity(vectors, 20)
    assert table.loc["pairs, 20 drawn"].to_dict() | {"column": ""} == {
        "column": "", "value": drawn.similarity, "se": drawn.se, "n": 20
    }  # fmt: skip


def test_embeddings_of_a_server(alpaca, server, monkeypatch):
    options = D.Options(embeddings="any-model", base_url=f"{server.url}")
    described = D.describe([alpaca], options, progress=False)
    assert "any-model at 127.0.0.1" in described.embedding
    assert not math.isnan(value(described, "topic_diversity", "pairs"))


def test_what_is_written(alpaca, tmp_path, capsys):
    question = tmp_path / "q.jsonl"
    question.write_text(json.dumps({"id": "1", "question": "Name two fruits.", "segment": "x"}) + "\n")
    outs = [tmp_path / f"t{suffix}" for suffix in D.SUFFIXES]
    arguments = [
        "stats",
        str(alpaca),
        "--embeddings",
        "tfidf",
        "--evaluation",
        f"Ours={question}",
        "--near-duplicates",
    ]
    assert main([*arguments, *(a for out in outs for a in ("--out", str(out)))]) == 0
    printed = capsys.readouterr().out
    assert "openings: 2, of them 0 exact" in printed and "Ours" in printed
    frame = pd.read_csv(outs[0])
    assert list(frame.columns) == ["column", "reading", "value", "se", "n"]
    assert outs[1].read_text().startswith("| column | reading |")
    kept = json.loads(outs[2].read_text())
    assert kept["counts"]["n_empty"] == 1 and kept["duplicates"]["n"] == 2
    assert kept["overlap"]["sets"]["Ours"]["n_dialogues_by_opening"] == 1
    assert kept["table"][0]["value"] == frame["value"][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.json"], "cannot be read"),
        (["FILE", "--tokenizer", "nonsense"], "tokenizer 'nonsense'"),
        (["FILE", "--embeddings", "no/such/folder"], "no/such/folder"),
        (["FILE", "--embeddings", "absent.npy"], "absent.npy: cannot be read"),
        (["FILE", "--beside", "Alpaca"], "Stanford Alpaca"),
        (["FILE", "--evaluation", "Vicuna"], "expected NAME=FILE"),
        (["FILE", "--out", "table.xlsx"], "expected a file ending in .csv"),
        (["FILE", "--processes", "0"], "processes"),
        (["FILE", "--n-sample", "-1"], "n_sample"),
        (["FILE", "--format", "baize"], "no row is of the format 'baize'"),
        (["FILE", "--base-url", "ftp://x", "--embeddings", "m"], "base_url"),
        (["FILE", "--base-url", "http://127.0.0.1:9/v1"], "expected the name of a model"),
        (["FILE", "--base-url", "http://me:secret@127.0.0.1:9/v1", "--embeddings", "m"], "user or password"),
        (["FILE", "--budget-usd", "1"], "only a server"),
        (["FILE", "FILE"], "named twice"),
        (["FILE", "--evaluation", "a=x", "--evaluation", "a=y"], "two sets of one name"),
        (["FILE", "--out", "FOLDER.csv"], "cannot be written there"),
        (["PIPE"], "no file but a pipe"),
    ],
)
def test_bad_input_is_one_line(alpaca, arguments, says, capsys):
    folder, pipe = alpaca.parent / "folder.csv", alpaca.parent / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    named = {"FILE": str(alpaca), "FOLDER.csv": str(folder), "PIPE": str(pipe)}
    assert main(["stats", *(named.get(a, a) for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert "secret" not in error
    assert error.startswith("stopped: ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize("vectors", [np.float32(1), np.zeros(3), np.zeros((2, 2), complex)])
def test_vectors_of_another_shape_stop_before_anything_is_measured(alpaca, tmp_path, vectors, monkeypatch):
    monkeypatch.setattr(D, "measure", lambda *_, **__: pytest.fail("measured"))
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(Stop, match="expected an array of numbers with a row for each dialogue"):
        D.describe([alpaca], D.Options(embeddings=str(tmp_path / "v.npy")), progress=False)
    (tmp_path / "v.npy").write_bytes(b"")
    with pytest.raises(Stop, match="cannot be read as an array"):
        D.describe([alpaca], D.Options(embeddings=str(tmp_path / "v.npy")), progress=False)


def test_what_was_measured_is_kept_until_all_is_done(alpaca, runs_home, monkeypatch):
    options = D.Options(embeddings="tfidf")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(D.embeddings, "embed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        D.describe([alpaca], options, progress=False)
    assert list((runs_home / "stats").glob("alpaca.json-*.json"))
    with monkeypatch.context() as patch:
        patch.setattr("ultrachat.measure.Measurer.__call__", lambda *_: pytest.fail("measured again"))
        D.describe([alpaca], options, progress=False)
    assert not list((runs_home / "stats").glob("alpaca.json-*.json"))


def test_a_reader_that_leaves_is_no_error(alpaca, runs_home):
    command = f"{sys.executable} -m ultrachat stats {alpaca} --embeddings none | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_a_file_without_dialogues_stops(tmp_path, runs_home):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(Stop, match="no dialogue"):
        D.describe([tmp_path / "empty.jsonl"], D.Options(), progress=False)


def test_a_name_of_the_catalogue_is_downloaded(alpaca, monkeypatch):
    name = next(iter(D.CATALOGUE))
    monkeypatch.setattr(D, "download", lambda wanted, folder: [alpaca] if wanted == name else None)
    assert D._files_of(name) == [alpaca]
    assert D._files_of(str(alpaca)) == [alpaca]


def test_the_best_offline_embedding_is_labelled(alpaca):
    described = D.describe([alpaca], D.Options(), progress=False)
    assert embeddings.label(embeddings.best_offline()) in described.embedding
