"""Training is killed and goes on: the short version of benchmarks/training_kills.py, which says what it does.

And kills that no clock hits twice, made by hand: in a folder that is emptied, in one that is just begun, after
the result; checkpoints that were damaged afterwards.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fruit import DIALOGUES

from ultrachat import checkpoints, training, training_run
from ultrachat.chatmodels import load_tokenizer
from ultrachat.recipes import Recipe
from ultrachat.records import to_jsonl
from ultrachat.sft import Encoder
from ultrachat.splitting import split_all
from ultrachat.training import finetune

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import training_kills  # noqa: E402
from training_kills import AFTER, BETWEEN, DELETED, SAVED, STARTING, WRITTEN  # noqa: E402

RECIPE = Recipe(lr=5e-3, max_steps=4, batch=4, micro_batch=2, n_evaluations=2)  # an epoch has 3 steps


def test_twenty_kills_and_the_same_end(tmp_path):
    runs = training_kills.measure(tmp_path, 20, kinds=("full, padded", "LoRA, packed"))
    kills = [kill for run in runs for kill in run.kills]
    assert len(kills) >= 20 and {run.kind for run in runs} == {"full, padded", "LoRA, packed"}
    assert all(kill.resumed for kill in kills)
    assert all(run.loss_difference <= 1e-6 and run.is_identical for run in runs)
    hits = Counter(kill.moment for kill in kills)
    # a machine under load can miss the moment in which older ones are deleted; the benchmark shows it
    assert hits[WRITTEN] and hits[SAVED] and hits[BETWEEN] + hits[STARTING], hits
    assert any(kill.steps_lost for kill in kills)  # else none came between two checkpoints


# ---- the benchmark's judges -------------------------------------------------------------------


def test_what_a_kill_cost_is_read_from_the_ledger():
    assert training_kills._after(["began 2", "3", "4"], ["began 2", "3"]) == (2, True)
    assert training_kills._after(["began 2", "3"], ["began 2"]) == (1, True)
    assert training_kills._after(["began 0"], ["began 0"]) == (0, True)
    assert training_kills._after([], ["began 4"]) == (0, True)  # killed before its first step
    assert training_kills._after(["began 6", "7", "8"], []) == (0, True)  # only the result is read back
    assert training_kills._after(["began 2", "3", "4", "5"], ["began 2"]) == (
        3,
        False,
    )  # passed a whole one over
    assert training_kills._after(["began 2", "3"], ["began 4"]) == (-1, False)  # steps that nobody took


def test_what_a_kill_hit_is_read_from_the_folder(tmp_path):
    def now(has_begun: bool = True) -> str:
        return training_kills.moment_of(tmp_path, 0, has_begun)

    assert (now(has_begun=False), now()) == (STARTING, BETWEEN)
    first, second = (tmp_path / f"checkpoints/checkpoint-{step}" for step in (2, 10))
    first.mkdir(parents=True)
    assert now() == WRITTEN
    (first / checkpoints.MARK).touch()
    assert now() == BETWEEN
    second.mkdir()
    assert now() == WRITTEN
    (second / checkpoints.MARK).touch()
    assert now() == DELETED
    shutil.rmtree(first)
    assert now() == BETWEEN
    (tmp_path / "adapter_config.json").touch()
    assert now() == SAVED
    (tmp_path / "result.json").touch()
    assert now() == AFTER


# ---- made by hand -----------------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for kill -9 at a chosen moment."""


@pytest.fixture(scope="module")
def data(small_base):
    examples, _ = split_all(DIALOGUES, Encoder(load_tokenizer(str(small_base))), 128)
    return examples[:9], examples[9:]


@pytest.fixture(scope="module")
def whole(small_base, data, tmp_path_factory):
    """The run that nobody kills."""
    return finetune(*data, small_base, tmp_path_factory.mktemp("whole"), RECIPE, report_to="none")


def weights(folder: Path | str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def killed_in(monkeypatch, where, name: str, nth: int = 1, after: bool = False) -> None:
    """Have the n-th call of a function be the process's last, before it does anything or when it has."""
    original, calls = getattr(where, name), []

    def last(*args, **kwargs):
        calls.append(args)
        if len(calls) < nth or after:
            found = original(*args, **kwargs)
        if len(calls) >= nth:
            raise Killed
        return found

    monkeypatch.setattr(where, name, last)


def test_a_run_at_its_last_step_takes_no_step_more(small_base, data, whole, tmp_path, monkeypatch):
    """Going on from the last step within an epoch, the Trainer by itself takes one more."""
    killed_in(monkeypatch, training, "_save")
    with pytest.raises(Killed):
        finetune(*data, small_base, tmp_path / "run", RECIPE, report_to="none")
    monkeypatch.undo()
    resumed = finetune(*data, small_base, tmp_path / "run", RECIPE, report_to="none")
    assert resumed.resumed_from_step == resumed.n_steps == RECIPE.max_steps
    assert (resumed.log, resumed.n_tokens) == (whole.log, whole.n_tokens)
    assert weights(resumed.folder) == weights(whole.folder)


@pytest.mark.parametrize("older_is_left", [True, False])
def test_a_checkpoint_cut_short_after_its_mark_is_named_once(
    small_base, data, whole, tmp_path, monkeypatch, capsys, older_is_left
):
    folder, older = tmp_path / "run", tmp_path / "run/checkpoints/checkpoint-2"
    killed_in(monkeypatch, checkpoints, "mark", nth=2, after=True)
    delete = checkpoints.shutil.rmtree
    if older_is_left:  # killed before it was deleted
        monkeypatch.setattr(
            checkpoints.shutil, "rmtree", lambda path, **_: path == older or delete(path, **_)
        )
    with pytest.raises(Killed):
        finetune(*data, small_base, folder, RECIPE, report_to="none")
    monkeypatch.undo()
    assert older.exists() is older_is_left
    optimizer = folder / "checkpoints/checkpoint-4/optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    capsys.readouterr()
    resumed = finetune(*data, small_base, folder, RECIPE, report_to="none")
    where = "goes on from checkpoint-2" if older_is_left else "starts anew"
    lines = [line for line in capsys.readouterr().out.splitlines() if "cut short" in line]
    assert lines == [f"{folder}: checkpoint-4 was cut short; training {where}"]
    assert resumed.resumed_from_step == (2 if older_is_left else 0)
    assert resumed.log == whole.log and weights(folder) == weights(whole.folder)


def test_a_checkpoint_written_again_has_no_mark_before_it_is_whole(small_base, data, tmp_path, monkeypatch):
    """The old mark lists sizes, and those of the files that are written again are the same."""
    folder = tmp_path / "run"
    killed_in(monkeypatch, training, "_save")
    with pytest.raises(Killed):
        finetune(*data, small_base, folder, RECIPE, report_to="none")
    newest = folder / "checkpoints/checkpoint-4"
    shutil.copytree(newest, folder / "checkpoints/checkpoint-2")  # any whole one before it will do
    (newest / "optimizer.pt").write_bytes(b"")
    monkeypatch.setattr(training, "set_seed", lambda seed: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        finetune(*data, small_base, folder, RECIPE, report_to="none")
    assert not newest.exists()


def test_a_finished_run_that_kept_its_checkpoints_is_finished(small_base, data, tmp_path, monkeypatch):
    """Killed after the result, and before the checkpoints were deleted."""
    folder = tmp_path / "run"
    delete = shutil.rmtree

    def last(path, **options):
        if (folder / "result.json").exists():
            raise Killed
        delete(path, **options)

    monkeypatch.setattr(training.shutil, "rmtree", last)
    with pytest.raises(Killed):
        finetune(*data, small_base, folder, RECIPE, report_to="none")
    monkeypatch.undo()
    assert (folder / "result.json").exists() and checkpoints.newest_complete(folder)[0]
    shutil.copytree(folder, tmp_path / "again")
    assert finetune(*data, small_base, folder, RECIPE, report_to="none").n_steps == 4
    assert not (folder / "checkpoints").exists()
    other = finetune(*data, small_base, tmp_path / "again", replace(RECIPE, max_steps=1), report_to="none")
    assert other.n_steps == 1  # and not "holds an unfinished run"


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_folder_that_was_being_emptied_is_still_a_runs(tmp_path, monkeypatch, nth):
    """Whatever is deleted first, no half of an older run is taken for it, nor the rest for somebody's files."""
    old, new = {"lr": 0.1}, {"lr": 0.2}
    checkpoints.begin(tmp_path, old)
    for name in ("checkpoints/checkpoint-4/model.safetensors", "model.safetensors", "config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"old")
    checkpoints.write_text(
        tmp_path / "checkpoints/checkpoint-4" / checkpoints.MARK, '{"model.safetensors": 3}'
    )
    checkpoints.write_text(tmp_path / "result.json", "{}")
    assert checkpoints.newest_complete(tmp_path)[0]
    calls = []

    def dying(original):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == nth:
                raise Killed
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoints.shutil, "rmtree", dying(shutil.rmtree))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    with pytest.raises(Killed):
        checkpoints.begin(tmp_path, new)
    monkeypatch.undo()
    if checkpoints.finished(tmp_path, old) is not None:  # then all of it is there
        assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "config.json"}
    checkpoints.begin(tmp_path, new)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert checkpoints.finished(tmp_path, old) is None and checkpoints.newest_complete(tmp_path) == (None, [])


def test_a_folder_that_was_just_begun_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.setattr("ultrachat.runs.os.replace", lambda *paths: (_ for _ in ()).throw(Killed))
    monkeypatch.setattr("ultrachat.runs.os.unlink", lambda path: None)  # whoever is killed tidies nothing up
    with pytest.raises(Killed):
        checkpoints.begin(tmp_path / "run", {"lr": 0.1})
    monkeypatch.undo()
    assert [path.name[:10] for path in (tmp_path / "run").iterdir()] == [".run.json."]
    checkpoints.begin(tmp_path / "run", {"lr": 0.1})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_rows_that_are_there_are_not_prepared_again(small_base, tmp_path, monkeypatch):
    """Killed between training rows and held-out ones; another process may already be reading the first."""
    (tmp_path / "dialogues.jsonl").write_text(to_jsonl(DIALOGUES), encoding="utf-8")
    job = training_run.Job(str(small_base), [str(tmp_path / "dialogues.jsonl")], str(tmp_path / "out"), RECIPE, n_held_out=3)  # fmt: skip
    encoder = Encoder(load_tokenizer(str(small_base)))
    killed_in(monkeypatch, training_run, "write_rows", nth=2)
    with pytest.raises(Killed):
        training_run.prepare(job, encoder)
    monkeypatch.undo()
    ids = tmp_path / "out/rows/train/ids.bin"
    before = ids.stat().st_ino, ids.stat().st_mtime_ns
    train, held_out = training_run.prepare(job, encoder)
    assert (ids.stat().st_ino, ids.stat().st_mtime_ns) == before
    assert (len(train), len(held_out)) == (9, 3)
