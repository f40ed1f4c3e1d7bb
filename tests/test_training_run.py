"""A training run from its YAML file: what is refused, what is kept, and one whole run on a tiny base."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fruit import DIALOGUES

from ultrachat import training
from ultrachat.__main__ import main
from ultrachat.chatmodels import load, load_tokenizer
from ultrachat.errors import Stop
from ultrachat.heldout import held_out_loss
from ultrachat.records import Dialogue, to_jsonl
from ultrachat.sft import Encoder
from ultrachat.splitting import split_all
from ultrachat.tiny import train_tokenizer
from ultrachat.training_run import Job, prepare, read_job, run

RECIPE = {"lr": 0.005, "max_steps": 4, "batch": 4, "micro_batch": 2, "n_evaluations": 2}
IN_ID_ORDER = sorted(DIALOGUES, key=lambda dialogue: dialogue.id)


def write_config(folder: Path, **changes: Any) -> Path:
    config = {"base": "b/c", "dialogues": ["d.jsonl"], "out": "o", "recipe": RECIPE} | changes
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not ...}), encoding="utf-8")
    return path


@pytest.fixture
def job(small_base, tmp_path) -> Job:
    (tmp_path / "fruit.jsonl").write_text(to_jsonl(DIALOGUES), encoding="utf-8")
    dialogues, out = [str(tmp_path / "fruit.jsonl")], str(tmp_path / "out")
    return read_job(
        write_config(
            tmp_path, base=str(small_base), dialogues=dialogues, out=out, max_tokens=64, n_held_out=3
        )
    )


def prepared(job: Job):
    return prepare(job, Encoder(load_tokenizer(job.base), job.format, job.learn, job.system))


def ids(rows) -> list[list[int]]:
    return [row.input_ids.tolist() for row in rows]


def rows_of(job: Job, dialogues: list[Dialogue]) -> list[list[int]]:
    return ids(split_all(dialogues, Encoder(load_tokenizer(job.base)), job.max_tokens)[0])


# ---- the config -------------------------------------------------------------------------------


def test_what_the_file_says_and_what_it_leaves_out(tmp_path):
    job = read_job(write_config(tmp_path, learn="user", system="Be brief."))
    assert (job.base, job.dialogues, job.out, job.learn, job.system) == ("b/c", ["d.jsonl"], "o", "user", "Be brief.")  # fmt: skip
    assert (job.format, job.max_tokens, job.n_held_out, job.report_to) == ("ultrallama", 2048, 1000, "tensorboard")  # fmt: skip
    assert job.recipe.lr == 0.005 and job.recipe.epochs == 3


def test_settings_change_the_job_and_the_recipe(tmp_path):
    changes = ["out=elsewhere", "lr=0.1", "dialogues=[a.jsonl, b.jsonl]", "batching=packed", "system=a=b"]
    changes += ["max_steps=null", "lora_targets=[q_proj]"]
    job = read_job(write_config(tmp_path), changes)
    assert (job.out, job.dialogues, job.system) == ("elsewhere", ["a.jsonl", "b.jsonl"], "a=b")
    assert (job.recipe.lr, job.recipe.batching, job.recipe.max_steps) == (0.1, "packed", None)
    assert job.recipe.lora_targets == ("q_proj",)
    assert read_job(write_config(tmp_path, base=...), ["base=x/y"]).base == "x/y"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"bass": 1}, "job.yaml: unknown setting 'bass', expected one of base, dialogues, out, recipe"),
        ({"lr": 0.1}, "job.yaml: unknown setting 'lr'"),  # it belongs into the recipe
        ({"base": ...}, "job.yaml: base is missing$"),
        ({"dialogues": ...}, "job.yaml: dialogues is missing$"),
        ({"dialogues": []}, "job.yaml: dialogues is missing$"),
        ({"out": ""}, "job.yaml: out is missing$"),
        ({"recipe": ...}, r"job.yaml: expected base, dialogues, out and recipe: \{lr"),
        ({"recipe": 3}, "job.yaml: expected base, dialogues, out and recipe"),
        ({"base": None}, "job.yaml: base: got None, expected a text$"),
        ({"dialogues": "d.jsonl"}, "job.yaml: dialogues: got 'd.jsonl', expected a list of files$"),
        ({"dialogues": ["d.jsonl", 5]}, r"job.yaml: dialogues: got \['d.jsonl', 5\], expected a list of files$"),
        ({"max_tokens": "many"}, "job.yaml: max_tokens: got 'many', expected a whole number$"),
        ({"max_tokens": True}, "job.yaml: max_tokens: got True, expected a whole number$"),
        ({"max_tokens": 2048.0}, "job.yaml: max_tokens: got 2048.0, expected a whole number$"),
        ({"n_held_out": -1}, "job.yaml: n_held_out: expected 0 or more, got -1$"),
        ({"system": 3}, "job.yaml: system: got 3, expected a text or nothing$"),
        ({"recipe": {"lr": "1e-5"}}, "job.yaml: recipe: lr expected float, got '1e-5'"),
        ({"recipe": {}}, "job.yaml: recipe: lr is missing"),
        ({"recipe": {"lr": 0.1, "batch": 0}}, "job.yaml: batch: expected more than 0, got 0$"),
        ({"recipe": {"lr": 0.1, "sead": 0}}, "job.yaml: recipe: unknown setting 'sead'"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_line(tmp_path, changes, line):
    with pytest.raises(Stop, match=line):
        read_job(write_config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("lr", "--set lr: expected name=value with a name among base, dialogues, out, format"),
        ("learning_rate=1", "--set learning_rate=1: expected name=value with a name among"),
        ("recipe={lr: 1}", "--set recipe={lr: 1}: expected name=value"),
        ("=1", "--set =1: expected name=value"),
        ("out=[a", r"--set out=\[a: the value is not readable; quote it as YAML wants"),
        ("out=@a", "--set out=@a: the value is not readable"),
        ("lr=1e-5", "recipe: lr expected float, got '1e-5', which is text in YAML"),
        ("out=3", "out: got 3, expected a text"),
        ("base=", "base: got None, expected a text"),
    ],
)
def test_a_wrong_change_is_one_line(tmp_path, setting, line):
    with pytest.raises(Stop, match=line):
        read_job(write_config(tmp_path), [setting])


def test_a_file_that_is_no_config_is_one_line(tmp_path):
    path = tmp_path / "job.yaml"
    with pytest.raises(Stop, match=r"job.yaml: cannot be read \(No such file"):
        read_job(path)
    with pytest.raises(Stop, match=r"cannot be read \(Is a directory"):
        read_job(tmp_path)
    for content, line in (
        (b"base: \xff", r"job.yaml: cannot be read \(not UTF-8\)"),
        (b"base: a\nout: [b\nrecipe: {lr: 1}\n", r"job.yaml:3: not YAML \("),
        (b"base: a\n\tout: b\n", r"job.yaml:2: not YAML \(found character '\\t' that cannot"),
        (b"base: \x00", r"job.yaml: not YAML \("),
        (b"[" * 5000, r"job.yaml.*: not YAML \("),
        (b"", "job.yaml: expected base, dialogues, out and recipe"),
        (b"- a\n- b\n", "job.yaml: expected base, dialogues, out and recipe"),
    ):
        path.write_bytes(content)
        with pytest.raises(Stop, match=line):
            read_job(path)


# ---- rows -------------------------------------------------------------------------------------


def test_what_is_held_out_is_not_trained_on(job):
    train, held_out = prepared(job)
    assert ids(held_out) == rows_of(job, [d for d in DIALOGUES if d in IN_ID_ORDER[:3]])
    assert ids(train) == rows_of(job, [d for d in DIALOGUES if d not in IN_ID_ORDER[:3]])
    assert held_out.report.n_dialogues == 3 and train.report.n_dialogues == len(DIALOGUES) - 3


def test_a_dialogue_that_comes_twice_is_on_one_side(job, tmp_path):
    """In the same file, in another one, and in another format, where its id is that of its content."""
    Path(job.dialogues[0]).write_text(to_jsonl(IN_ID_ORDER[:2] + DIALOGUES), encoding="utf-8")
    (tmp_path / "more.jsonl").write_text(to_jsonl(IN_ID_ORDER[:4]), encoding="utf-8")
    with (tmp_path / "ultrachat.jsonl").open("w") as file:
        for dialogue in DIALOGUES:
            print(json.dumps({"id": "7", "data": dialogue.texts}), file=file)
    files = [*job.dialogues, str(tmp_path / "more.jsonl"), str(tmp_path / "ultrachat.jsonl")]
    train, held_out = prepared(replace(job, dialogues=files))
    assert train.report.n_dialogues + held_out.report.n_dialogues == 2 + len(DIALOGUES) + 4 + len(DIALOGUES)
    assert held_out.report.n_dialogues >= 3
    apart = {tuple(row) for row in ids(train)} & {tuple(row) for row in ids(held_out)}
    assert not apart


def test_rows_are_prepared_once(job):
    before = [ids(rows) for rows in prepared(job)]
    files = sorted((Path(job.out) / "rows").rglob("*.*"))
    times = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 10
    assert [ids(rows) for rows in prepared(job)] == before
    # what says how to train does not change them
    assert [ids(rows) for rows in prepared(replace(job, recipe=replace(job.recipe, lr=1.0)))] == before
    assert [file.stat().st_mtime_ns for file in files] == times


@pytest.mark.parametrize(
    "change", ["file", "time", "max_tokens", "n_held_out", "learn", "system", "one missing"]
)
def test_rows_are_prepared_anew_when_something_changed(job, change):
    before = [ids(rows) for rows in prepared(job)]
    path = Path(job.dialogues[0])
    if change == "file":
        path.write_text(to_jsonl(DIALOGUES[:-1]), encoding="utf-8")
    elif change == "time":  # as many bytes, and others
        stat = path.stat()
        path.write_text(path.read_text().replace("pear", "bear"), encoding="utf-8")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    elif change == "one missing":
        shutil.rmtree(Path(job.out) / "rows/train")
    else:
        value = {"max_tokens": 48, "n_held_out": 4, "learn": "user", "system": "Be brief."}[change]
        job = replace(job, **{change: value})
    after = prepared(job)
    assert (list(map(ids, after)) == before) == (change == "one missing")
    if change == "learn":  # labels on the other side
        labels = after[0][0].labels
        assert load_tokenizer(job.base).decode(labels[labels >= 0].tolist()).startswith("What is a")


def test_rows_are_prepared_anew_for_a_base_made_anew(job, small_base, tmp_path):
    """Under the same name it may have another tokenizer, and then the old ids mean nothing."""
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    job = replace(job, base=str(base))
    before = [ids(rows) for rows in prepared(job)]
    train_tokenizer(["pear plum"], 270, base)
    assert [ids(rows) for rows in prepared(job)] != before


def test_nothing_to_train_on_is_one_line(job):
    with pytest.raises(Stop, match="job.yaml: dialogues: none left to train on after 12 held out"):
        prepared(replace(job, n_held_out=12))
    Path(job.dialogues[0]).write_text("", encoding="utf-8")
    with pytest.raises(Stop, match="job.yaml: dialogues: none left to train on after 3 held out"):
        prepared(job)


def test_paths_that_are_no_files_are_one_line(job, tmp_path):
    for path in (tmp_path, tmp_path / "nothing.jsonl"):
        with pytest.raises(Stop, match=re.escape(f"job.yaml: dialogues: {path} is not a file")):
            prepared(replace(job, dialogues=[*job.dialogues, str(path)]))
    (tmp_path / "prose.jsonl").write_text("Once upon a time\n")
    with pytest.raises(Stop, match="prose.jsonl:1: .*JSON"):
        prepared(replace(job, dialogues=[str(tmp_path / "prose.jsonl")]))


def test_no_held_out_dialogues(job):
    train, held_out = prepared(replace(job, n_held_out=0))
    assert len(held_out) == 0 and ids(train) == rows_of(job, DIALOGUES)


# ---- bases ------------------------------------------------------------------------------------


def changed_base(small_base: Path, folder: Path, without: str) -> str:
    """A copy of the base whose tokenizer lacks a special token."""
    shutil.copytree(small_base, folder)
    for path in folder.glob("*token*.json"):
        settings = json.loads(path.read_text())
        settings.pop(without, None)
        path.write_text(json.dumps(settings))
    assert getattr(load_tokenizer(folder), without) is None
    return str(folder)


def test_a_tokenizer_without_padding_token_is_trained_alike(job, small_base, tmp_path):
    with_pad = training.finetune(*prepared(job), job.base, tmp_path / "with", job.recipe, "none")
    base = changed_base(small_base, tmp_path / "base", "pad_token")
    without = run(replace(job, base=base, report_to="none"))
    assert json.loads((without / "result.json").read_text())["log"] == list(with_pad.log)


def test_dialogues_can_be_a_pattern(job, tmp_path):
    (file,) = job.dialogues
    lines = Path(file).read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("part_2", lines[3:]), ("part_1", lines[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    whole, _ = prepared(job)
    parts = replace(job, dialogues=[str(tmp_path / "part_*.jsonl")], out=str(tmp_path / "parts"))
    rows, _ = prepared(parts)
    assert rows.digest == whole.digest
    with pytest.raises(Stop, match=r"dialogues: .*nothing_\*\.jsonl is not a file"):
        prepared(replace(job, dialogues=["nothing_*.jsonl"]))


def test_bases_that_lack_something_are_one_line(job, small_base, tmp_path):
    base = changed_base(small_base, tmp_path / "base", "eos_token")
    with pytest.raises(Stop, match="tokenizer: has no eos_token, expected one to close every message"):
        run(replace(job, base=base))
    with pytest.raises(Stop, match="tokenizer: has no chat_template"):
        run(replace(job, format="template"))
    with pytest.raises(Stop, match="nowhere is neither a folder nor a hub id"):
        run(replace(job, base=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Stop, match=r"base: .*empty has no weights as \*\.safetensors"):
        run(replace(job, base=str(tmp_path / "empty")))


def test_a_base_that_is_a_pickle_is_one_line(job, small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    torch.save(load(small_base)[0].state_dict(), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(Stop, match=r"base: .*base has no weights as \*\.safetensors") as caught:
        run(replace(job, base=str(base)))
    assert len(str(caught.value).splitlines()) == 1
    weights = (small_base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(Stop, match="base: cannot be loaded as safetensors"):
        run(replace(job, base=str(base)))


# ---- a whole run ------------------------------------------------------------------------------


def test_a_run_from_end_to_end_and_again(job, tmp_path, capsys, monkeypatch):
    folder = run(job)
    said = capsys.readouterr().out
    assert folder == Path(job.out) / "model" and "4 steps" in said and "12 dialogues" in said
    result = json.loads((folder / "result.json").read_text())
    model, tokenizer = load(folder)
    _, held_out = prepared(job)
    last = [row["eval_loss"] for row in result["log"] if row["eval_loss"]][-1]
    assert held_out_loss(model, held_out, tokenizer.pad_token_id) == pytest.approx(last, abs=1e-5)
    assert list((folder / "tensorboard").glob("events*"))
    card = (folder / "README.md").read_text()
    assert (
        f"| steps | {result['n_steps']:,} |" in card and f"| tokens read | {result['n_tokens']:,} |" in card
    )
    assert f"{last:.3f} after" in card and job.base in card and "fruit.jsonl" in card
    assert "9 dialogues" in card  # what was trained on, without the held-out ones

    times = {path: path.stat().st_mtime_ns for path in Path(job.out).rglob("*") if path.name != "README.md"}
    monkeypatch.setattr(training, "prepare_model", lambda *args: pytest.fail("trained again"))
    assert run(job) == folder
    again = {path: path.stat().st_mtime_ns for path in Path(job.out).rglob("*") if path.name != "README.md"}
    assert {p: t for p, t in again.items() if p.is_file()} == {p: t for p, t in times.items() if p.is_file()}
    assert (folder / "README.md").read_text() == card


def test_the_command_shows_one_line(job, capsys):
    path = Path(job.source)
    assert main(["train", str(path), "--set", "lr=fast"]) == 1
    stderr = capsys.readouterr().err
    assert (
        stderr.startswith("stopped: ")
        and stderr.count("\n") == 1
        and "lr expected float, got 'fast'" in stderr
    )
    assert main(["train", str(path), "--set", "max_steps=1", "--set", "report_to=none"]) == 0
    assert (Path(job.out) / "model/README.md").exists()


def test_a_user_model_says_in_its_folder_how_it_is_asked(job):
    """Trained by the same entry point as an assistant; any server that applies its template lets the user speak."""
    folder = run(replace(job, format="platolm", learn="user", max_tokens=400))
    tokenizer = load_tokenizer(str(folder))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    asked = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert asked.startswith("<s>A chat between a curious human") and asked.endswith("Hello!</s>Human: <s>")
    assert "PlatoLM's, which is its tokenizer's chat template" in (folder / "README.md").read_text()
    assert not load_tokenizer(job.base).chat_template
