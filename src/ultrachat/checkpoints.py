"""Checkpoints that are whole: a run that was killed goes on from the newest one, and from no other.

A folder holds one run, named by what it was called with (`run.json`). The last thing written into a
checkpoint is its mark, a file that lists the size of every other:

    07_full/run.json
    07_full/checkpoints/checkpoint-200/complete.json     {"model.safetensors": 4194304, …}
    07_full/result.json                                  only when the run came to its end

A checkpoint without a mark, or whose files have other sizes than it says, was cut short and is passed over.

Absent on purpose: what is in a checkpoint (the Trainer's business), and hashes: they would take minutes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ultrachat.errors import Stop
from ultrachat.runs import write_text

MARK = "complete.json"


def mark(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, and delete the older ones beside it.

    Ours: one whole checkpoint of 13B weights with optimizer takes 156 GB.
    """
    write_text(checkpoint / MARK, json.dumps(_sizes(checkpoint), indent=1))
    for older in set(checkpoint.parent.glob("checkpoint-*")) - {checkpoint}:
        shutil.rmtree(older)


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MARK)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def step_of(checkpoint: Path) -> int:
    """Return the step a checkpoint was taken after.

    Ours: it stands in the folder's name, as the Trainer writes it.
    """
    return int(checkpoint.name.split("-")[1])


def newest_complete(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest whole checkpoint of a run, None without any, and the newer ones that were cut short.

    Ours: a kill can come while a checkpoint is written.
    """
    cut_short: list[Path] = []
    for checkpoint in sorted(folder.glob("checkpoints/checkpoint-*"), key=step_of, reverse=True):
        if _is_complete(checkpoint):
            return checkpoint, cut_short
        cut_short.append(checkpoint)
    return None, cut_short


def _is_complete(checkpoint: Path) -> bool:
    try:
        listed = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return listed == _sizes(checkpoint)


def finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what `result.json` holds if the run in the folder was called the same and came to its end.

    Ours: a notebook that is run again does not train again.
    """
    if not (folder / "result.json").exists() or _called_with(folder) != identity:
        return None
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def begin(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder ready: keep it if it holds this run unfinished, else start it anew.

    Raises Stop when it holds another run unfinished (the difference is named) or files of something else.

    Ours: hours of training are not deleted for a changed parameter.
    """
    before = _called_with(folder)
    is_finished = (folder / "result.json").exists()
    if before and not is_finished and newest_complete(folder)[0] is not None:
        for name, value in identity.items():
            if before.get(name) != value:
                raise Stop(
                    f"{folder}: holds an unfinished run with {name} {before.get(name)!r}, now {value!r}; "
                    "call it as before, or delete the folder"
                )
        return
    if folder.exists() and not (folder.is_dir() and (before or _is_new(folder))):
        raise Stop(f"out_dir: {folder} holds other files, expected an empty or new folder")
    _clear(folder)
    write_text(folder / "run.json", json.dumps(identity, indent=1))


def _is_new(folder: Path) -> bool:
    """Whether a folder is empty, or a kill came before its `run.json` was published."""
    return all(path.name.startswith(".run.json.") for path in folder.iterdir())


def _clear(folder: Path) -> None:
    """Delete an older run: its adapter, say, must not stay beside new weights.

    A kill can come in between. `run.json` stays, so that the folder is known for a run's, and the result goes
    before what it speaks of, but after checkpoints: without it they would be those of an unfinished run.
    """
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "run.json":
            path.unlink()


def _called_with(folder: Path) -> dict[str, Any]:
    """What `run.json` holds, {} where there is none that can be read."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
