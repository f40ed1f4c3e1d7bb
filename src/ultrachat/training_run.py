"""A training run as one file: what `python -m ultrachat train configs/….yaml` does, alone or under torchrun.

    base: huggyllama/llama-13b
    dialogues: [data/ultrachat.jsonl]       # whatever `corpora` reads
    out: runs/ultrallama-13b
    recipe: {lr: 0.00001, epochs: 3, batch: 512, …}

    out/rows/train, out/rows/held_out       the dialogues split (`prepared`), by the first process
    out/model                               the model, its card, its log (`training`)

Every process of `torchrun` runs this alike, on a file system that all of them share. Called again, it goes
on where it was: prepared rows are kept, training resumes from its newest whole checkpoint.

Absent on purpose: notebooks. Notebook 07 trains the sample's tiny model with the same functions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from ultrachat import corpora
from ultrachat.errors import Stop
from ultrachat.prepared import Rows, open_rows, write_rows
from ultrachat.recipes import Recipe, recipe_from
from ultrachat.records import Dialogue, sample_by_id
from ultrachat.settings import read_yaml, value_of
from ultrachat.sft import Encoder
from ultrachat.splitting import MAX_TOKENS, split_each
from ultrachat.user_models import USER_MODELS

TYPES = {"base": str, "dialogues": list, "out": str, "recipe": dict, "format": str, "learn": str,
         "system": (str, type(None)), "max_tokens": int, "n_held_out": int, "report_to": str}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a training run is called with; the fields are those of its YAML file.

    `base` is a folder or hub id, `dialogues` files that `corpora.read` reads, or patterns such as
    train_*.jsonl. `format`, `learn` and `system` are as in `sft.Encoder`, `max_tokens` as in `splitting`; `n_held_out`
    dialogues, the first by their ids, are kept out of training; `report_to` is as in `training.finetune`.

    Ours: the authors' scripts have their numbers in several places.
    """

    base: str
    dialogues: Sequence[str]
    out: str
    recipe: Recipe
    format: str = "ultrallama"
    learn: str = "assistant"
    system: str | None = None
    max_tokens: int = MAX_TOKENS
    n_held_out: int = 1000
    report_to: str = "tensorboard"
    source: str = field(default="", compare=False)


def read_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """Return the Job of a YAML file, changed by "name=value" settings, of the job's own names or the recipe's.

    Raises Stop naming the file (and line where there is one) and the field, and what was expected.

    Ours: a config holds every number of a run and nothing else.
    """
    config = read_yaml(path)
    if not isinstance(config, dict) or not isinstance(config.get("recipe"), dict):
        raise Stop(f"{path}: expected base, dialogues, out and recipe: {{lr: …}}")
    for setting in settings:
        _change(config, setting)
    for name, value in config.items():
        if name not in TYPES:
            raise Stop(f"{path}: unknown setting '{name}', expected one of {', '.join(TYPES)}")
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            raise Stop(f"{path}: {name}: got {value!r}, expected {_words(TYPES[name])}")
    if missing := [name for name in ("base", "dialogues", "out") if not config.get(name)]:
        raise Stop(f"{path}: {missing[0]} is missing")
    if not all(isinstance(file, str) for file in config["dialogues"]):
        raise Stop(f"{path}: dialogues: got {config['dialogues']!r}, expected a list of files")
    if config.get("n_held_out", 0) < 0:
        raise Stop(f"{path}: n_held_out: expected 0 or more, got {config['n_held_out']}")
    try:
        job = Job(**config | {"recipe": recipe_from(config["recipe"]), "source": str(path)})
    except Stop as stop:
        raise Stop(f"{path}: {stop}") from None
    if job.recipe.batching == "packed" and job.recipe.pack_tokens < job.max_tokens:
        raise Stop(
            f"{path}: recipe: pack_tokens: got {job.recipe.pack_tokens}, expected at least max_tokens {job.max_tokens}"
        )
    return job


def _change(config: dict[str, Any], setting: str) -> None:
    name, equals, _ = setting.partition("=")
    recipe_names = [f.name for f in fields(Recipe)]
    if not equals or name not in (*TYPES, *recipe_names) or name == "recipe":
        names = ", ".join([*(t for t in TYPES if t != "recipe"), *recipe_names])
        raise Stop(f"--set {setting}: expected name=value with a name among {names}")
    (config if name in TYPES else config["recipe"])[name] = value_of(setting)


def _words(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = {
        str: "a text",
        list: "a list of files",
        dict: "a mapping",
        int: "a whole number",
        type(None): "nothing",
    }
    return " or ".join(names[one] for one in kinds)


# ---- rows -------------------------------------------------------------------------------------


def prepare(job: Job, encoder: Encoder) -> tuple[Rows, Rows]:
    """Return the rows to train on and the held-out ones, prepared by the first process, kept on disk.

    Raises Stop when a file cannot be read, nothing is left to train on, or the limit leaves no room.

    Ours: as many processes as there are GPUs need the same rows.
    """
    identity = _identity(job)
    folders = {name: Path(job.out) / "rows" / name for name in ("train", "held_out")}
    is_first = int(os.environ.get("RANK") or 0) == 0
    # what is there is left alone: another process may be reading it
    missing = [name for name, folder in folders.items() if open_rows(folder, identity) is None]
    if is_first and missing:
        held_out = {d.id for d in sample_by_id(_dialogues(job, say=True), job.n_held_out)}
        for name in missing:
            chosen = (d for d in _dialogues(job) if (d.id in held_out) == (name == "held_out"))
            report = write_rows(folders[name], split_each(chosen, encoder, job.max_tokens), identity)
            print(f"{name}: {report}", flush=True)
    # not a barrier: preparing a million dialogues takes longer than a barrier waits
    while any(open_rows(folder, identity) is None for folder in folders.values()):
        time.sleep(1)
    train, held_out = (open_rows(folder, identity) for folder in folders.values())
    if not len(train):
        raise Stop(f"{job.source}: dialogues: none left to train on after {job.n_held_out} held out")
    return train, held_out


def _dialogues(job: Job, say: bool = False) -> Iterator[Dialogue]:
    for path in _files(job):
        reading = corpora.read(path)
        yield from reading
        if say:
            print(f"{path}: {reading.counts.summary()}", flush=True)


def _files(job: Job) -> list[Path]:
    """The files of dialogues, those that match a pattern in the order of their names."""
    found = []
    for name in job.dialogues:
        paths = sorted(map(Path, glob(name))) if has_magic(name) and not Path(name).exists() else [Path(name)]
        if not paths or not all(path.is_file() for path in paths):
            raise Stop(f"{job.source}: dialogues: {name} is not a file")
        found += paths
    return found


def _identity(job: Job) -> dict[str, Any]:
    """What rows depend on; a file is taken for the same by its size and time, as it may be of many gigabytes."""
    paths = _files(job)
    # a base that was made anew under its old name may have another tokenizer
    paths += sorted(p for p in Path(job.base).glob("*") if p.is_file() and p.suffix != ".safetensors")
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    names = ("base", "format", "learn", "system", "max_tokens", "n_held_out")
    return {"files": files} | {name: getattr(job, name) for name in names}


# ---- the run ----------------------------------------------------------------------------------


def run(job: Job) -> Path:
    """Train as the job says, write the model's card, and return the model's folder.

    Raises Stop as `prepare` and `training.finetune` do.

    Paper: §4.6.
    """
    from ultrachat.chatmodels import load_tokenizer
    from ultrachat.modelcard import write_card
    from ultrachat.trainer import check_machine
    from ultrachat.training import finetune

    check_machine(job.recipe, job.report_to)  # said now, and not after hours of preparing
    base = Path(job.base)
    if base.is_dir() and not any(base.glob("*.safetensors")):
        raise Stop(f"{job.source}: base: {base} has no weights as *.safetensors")
    encoder = Encoder(load_tokenizer(job.base), job.format, job.learn, job.system)
    train, held_out = prepare(job, encoder)
    folder = Path(job.out) / "model"
    template = encoder.tokenizer.chat_template if job.format in USER_MODELS else None
    result = finetune(train, held_out, job.base, folder, job.recipe, job.report_to, template)
    if int(os.environ.get("RANK") or 0) == 0:
        write_card(folder, asdict(job) | {"rows": str(train.report)}, result)
        print(f"{folder}: {result.n_steps:,} steps, {result.n_tokens:,} tokens read", flush=True)
    return folder
