"""Which checkpoint counts, and when a folder is kept, read back or started anew: with files made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ultrachat import checkpoints
from ultrachat.errors import Stop

RUN = {"lr": 0.1, "lora_targets": ["q"], "base": "b"}


def write(folder: Path, step: int, whole: bool = True) -> Path:
    """A checkpoint as the Trainer leaves it, marked only when it is whole."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    (checkpoint / "part").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"w" * 100)
    (checkpoint / "part/optimizer.bin").write_bytes(b"o" * 50)
    if whole:
        older = sorted(checkpoint.parent.glob("checkpoint-*"))
        checkpoints.write_text(checkpoint / checkpoints.MARK, json.dumps(checkpoints._sizes(checkpoint)))
        assert sorted(checkpoint.parent.glob("checkpoint-*")) == older
    return checkpoint


def names(found: list[Path]) -> list[str]:
    return [path.name for path in found]


# ---- checkpoints ------------------------------------------------------------------------------


def test_the_mark_lists_every_file_and_older_checkpoints_go(tmp_path):
    old, torn = write(tmp_path, 5), write(tmp_path, 7, whole=False)
    new = write(tmp_path, 10, whole=False)
    checkpoints.mark(new)
    listed = json.loads((new / "complete.json").read_text())
    assert listed == {"model.safetensors": 100, "part/optimizer.bin": 50}
    assert not old.exists() and not torn.exists()
    assert checkpoints.newest_complete(tmp_path) == (new, [])
    checkpoints.mark(new)  # once more, as where a milestone is both
    assert checkpoints.newest_complete(tmp_path) == (new, [])


def test_the_newest_is_the_one_of_the_most_steps(tmp_path):
    for step in (9, 100, 20):  # 100 < 20 < 9 as text
        write(tmp_path, step)
    newest, cut_short = checkpoints.newest_complete(tmp_path)
    assert checkpoints.step_of(newest) == 100 and cut_short == []


@pytest.mark.parametrize("how", ["no mark", "mark cut short", "file missing", "file cut short", "file grew", "one more"])  # fmt: skip
def test_a_checkpoint_cut_short_is_passed_over(tmp_path, how):
    write(tmp_path, 2)
    torn = write(tmp_path, 4)
    weights, mark = torn / "model.safetensors", torn / "complete.json"
    {
        "no mark": mark.unlink,
        "mark cut short": lambda: mark.write_text(mark.read_text()[:-3]),
        "file missing": (torn / "part/optimizer.bin").unlink,
        "file cut short": lambda: weights.write_bytes(b"w" * 99),
        "file grew": lambda: weights.write_bytes(b"w" * 101),
        "one more": lambda: (torn / "trainer_state.json").write_text("{}"),
    }[how]()
    newest, cut_short = checkpoints.newest_complete(tmp_path)
    assert newest.name == "checkpoint-2" and names(cut_short) == ["checkpoint-4"]


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    assert checkpoints.newest_complete(tmp_path) == (None, [])
    write(tmp_path, 2, whole=False)
    write(tmp_path, 10, whole=False)
    newest, cut_short = checkpoints.newest_complete(tmp_path)
    assert newest is None and names(cut_short) == ["checkpoint-10", "checkpoint-2"]


# ---- folders ----------------------------------------------------------------------------------


def test_a_new_folder_says_what_it_was_called_with(tmp_path):
    checkpoints.begin(tmp_path / "new/run", RUN)
    assert json.loads((tmp_path / "new/run/run.json").read_text()) == RUN
    (tmp_path / "empty").mkdir()
    checkpoints.begin(tmp_path / "empty", RUN)
    assert checkpoints.finished(tmp_path / "empty", RUN) is None


def test_a_finished_run_is_read_back_for_the_same_call_only(tmp_path):
    checkpoints.begin(tmp_path / "run", RUN)
    checkpoints.write_text(tmp_path / "run/result.json", '{"n_steps": 8}')
    assert checkpoints.finished(tmp_path / "run", RUN) == {"n_steps": 8}
    assert checkpoints.finished(tmp_path / "run", RUN | {"lr": 0.2}) is None
    assert checkpoints.finished(tmp_path / "run", RUN | {"seed": 0}) is None  # called by older code
    (tmp_path / "run/adapter_model.safetensors").write_bytes(b"old")
    checkpoints.begin(tmp_path / "run", RUN | {"lr": 0.2})
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]


def test_an_unfinished_run_is_kept_and_not_mixed_with_another(tmp_path):
    checkpoints.begin(tmp_path, RUN)
    whole = write(tmp_path, 4)
    checkpoints.begin(tmp_path, RUN)
    assert checkpoints.newest_complete(tmp_path) == (whole, [])
    with pytest.raises(Stop, match=r"holds an unfinished run with lr 0\.1, now 0\.2; call it as before, or"):
        checkpoints.begin(tmp_path, RUN | {"lr": 0.2})
    with pytest.raises(Stop, match="unfinished run with seed None, now 0"):
        checkpoints.begin(tmp_path, RUN | {"seed": 0})
    assert checkpoints.newest_complete(tmp_path) == (whole, [])
    assert json.loads((tmp_path / "run.json").read_text()) == RUN


def test_a_run_without_a_whole_checkpoint_starts_anew_with_any_call(tmp_path):
    checkpoints.begin(tmp_path, RUN)
    torn = write(tmp_path, 4, whole=False)
    checkpoints.begin(tmp_path, RUN | {"lr": 0.2})
    assert not torn.exists() and json.loads((tmp_path / "run.json").read_text())["lr"] == 0.2


@pytest.mark.parametrize("theirs", ["notes.txt", "result.json", "checkpoints/checkpoint-3/x", "run.json"])
def test_files_of_something_else_are_left_alone(tmp_path, theirs):
    """A result or a checkpoint without our `run.json` is not ours, and neither is one that cannot be read."""
    (tmp_path / theirs).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / theirs).write_text("precious")
    assert checkpoints.finished(tmp_path, RUN) is None
    with pytest.raises(Stop, match="out_dir: .* holds other files, expected an empty or new folder"):
        checkpoints.begin(tmp_path, RUN)
    assert (tmp_path / theirs).read_text() == "precious"


def test_whole_checkpoints_of_something_else_are_left_alone(tmp_path):
    whole = write(tmp_path, 3)
    with pytest.raises(Stop, match="holds other files"):
        checkpoints.begin(tmp_path, RUN)
    assert checkpoints.newest_complete(tmp_path) == (whole, [])


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(Stop, match="out_dir: .*file holds other files"):
        checkpoints.begin(tmp_path / "file", RUN)
