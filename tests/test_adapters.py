"""What comes after training: an adapter merged into its base, and the card written beside the weights."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import mistune
import pytest
import torch
import yaml
from fruit import DIALOGUES
from transformers import AutoModelForCausalLM

from ultrachat import adapters, modelcard
from ultrachat.adapters import merge_adapter
from ultrachat.chatmodels import load, load_tokenizer
from ultrachat.errors import Stop
from ultrachat.recipes import Recipe
from ultrachat.sft import Encoder
from ultrachat.splitting import split_all
from ultrachat.training import TrainingResult, finetune

RECIPE = Recipe(
    lr=2e-2, max_steps=4, batch=4, n_evaluations=2, lora_rank=4, lora_targets=("q_proj", "down_proj")
)


@pytest.fixture(scope="module")
def trained(small_base, tmp_path_factory) -> TrainingResult:
    """A LoRA run; nobody writes into its folder."""
    encoder = Encoder(load_tokenizer(small_base))
    train, held_out = split_all(DIALOGUES[:9], encoder, 64)[0], split_all(DIALOGUES[9:], encoder, 64)[0]
    return finetune(train, held_out, small_base, tmp_path_factory.mktemp("lora") / "run", RECIPE, "none")


@pytest.fixture(scope="module")
def job(small_base) -> dict:
    """What a card is written from."""
    _, report = split_all(DIALOGUES[:9], Encoder(load_tokenizer(small_base)), 64)
    return {
        "base": "some/base", "dialogues": ["fruit.jsonl", "more.jsonl"], "rows": str(report), "system": None,
        "format": "ultrallama", "learn": "assistant", "max_tokens": 64, "recipe": asdict(RECIPE),
    }  # fmt: skip


def logits(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    row = Encoder(load_tokenizer(folder)).encode(DIALOGUES[0])
    with torch.no_grad():
        return model(input_ids=torch.tensor([row.input_ids.tolist()])).logits[0]


# ---- merging ----------------------------------------------------------------------------------


def test_merged_says_what_the_adapter_on_its_base_says(trained, small_base, tmp_path):
    from peft import PeftModel

    n_parameters = merge_adapter(Path(trained.folder), tmp_path / "deep/merged")
    base = AutoModelForCausalLM.from_pretrained(small_base).eval()
    before = logits(base, small_base)
    expected = logits(PeftModel.from_pretrained(base, trained.folder).eval(), small_base)
    merged, tokenizer = load(tmp_path / "deep/merged")
    found = logits(merged, tmp_path / "deep/merged")
    assert (found - expected).abs().max() < 1e-5 < 0.01 < (expected - before).abs().max()
    assert n_parameters == trained.n_parameters - trained.n_trainable
    assert n_parameters == sum(p.numel() for p in merged.parameters())
    assert tokenizer.get_vocab() == load_tokenizer(small_base).get_vocab()
    assert merged.config.use_cache


def test_merged_is_safetensors_and_nothing_of_the_adapter(trained, tmp_path):
    merge_adapter(Path(trained.folder), tmp_path / "merged")
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert "model.safetensors" in files and "tokenizer.json" in files
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".jinja"}
    assert not any("adapter" in name for name in files)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_the_base_can_be_elsewhere_and_in_another_number_type(trained, small_base, tmp_path):
    shutil.copytree(small_base, tmp_path / "base")
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.folder, adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(Stop, match="gone is neither a folder nor a hub id"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge_adapter(adapter, tmp_path / "merged", tmp_path / "base", "bfloat16")
    assert load(tmp_path / "merged")[0].dtype == torch.bfloat16


def test_what_cannot_be_merged_is_one_line(trained, small_base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    with pytest.raises(Stop, match="out: .*mine exists, expected a new folder"):
        merge_adapter(Path(trained.folder), tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "precious"
    for folder in (small_base, tmp_path / "nothing"):
        with pytest.raises(Stop, match="has no adapter_config.json, expected the folder of a LoRA run"):
            merge_adapter(folder, tmp_path / "out")
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.folder, adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(Stop, match="adapter: has an adapter but no adapter_model.safetensors"):
        merge_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_kill_while_merging_leaves_no_model_and_the_next_call_makes_it(trained, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def loaded(*args, **kwargs):
        model, tokenizer = load(*args, **kwargs)

        def killed(folder):  # the weights are there by now
            assert list(Path(folder).glob("*.safetensors"))
            (Path(folder) / "tokenizer.json").write_text('{"version":')
            raise Killed

        tokenizer.save_pretrained = killed
        return model, tokenizer

    monkeypatch.setattr(adapters, "load", loaded)
    with pytest.raises(Killed):
        merge_adapter(Path(trained.folder), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    monkeypatch.undo()
    merge_adapter(Path(trained.folder), tmp_path / "merged")
    assert len(load(tmp_path / "merged")[1]) == 320
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


# ---- the card ---------------------------------------------------------------------------------


def head_and_body(card: str) -> tuple[dict, str]:
    empty, head, body = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    assert empty == ""
    return yaml.safe_load(head), body


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![a-z_\d.,])\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?", text))


def test_the_head_is_what_hubs_read(trained, job):
    head, _ = head_and_body(modelcard.card(job, trained))
    assert head == {"base_model": "some/base", "library_name": "peft", "pipeline_tag": "text-generation",
                    "tags": ["ultrachat", "sft"]}  # fmt: skip
    full = job | {"recipe": replace(RECIPE, lora_rank=0)}
    head, body = head_and_body(modelcard.card(full, trained))
    assert head["library_name"] == "transformers" and "# A fine-tuned model of `some/base`" in body
    for name in ("a: b", "- x", "'", '"', "@x", "x #y", "ünïcödé 🍐", "\x7f", "a\n---\nb", "{a", "null", "3"):
        assert head_and_body(modelcard.card(job | {"base": name}, trained))[0]["base_model"] == name


def test_every_number_was_measured_or_chosen(trained, job):
    path = modelcard.write_card(Path(trained.folder).parent, job, trained)
    card = path.read_text(encoding="utf-8")
    _, body = head_and_body(card)
    body = re.sub(r"^\| code \|.*$", "", body, flags=re.MULTILINE)
    result = json.loads((Path(trained.folder) / "result.json").read_text())
    measured = {row["step"]: row for row in result["log"] if row["eval_loss"] is not None}
    first, last = measured[0], measured[result["n_steps"]]
    allowed = {f"{result[name]:,}" for name in ("n_steps", "n_tokens", "n_parameters", "n_trainable")}
    allowed |= {f"{value:.3f}" for row in (first, last) for name, value in row.items() if "eval" in name}
    allowed |= {name.split("_")[2] for name in last if name.startswith("eval_round_")}
    chosen = set().union(*(numbers(str(value)) for value in job["recipe"].values()))
    assert numbers(body) <= allowed | chosen | numbers(job["rows"]) | {"64"}
    assert allowed <= numbers(body)  # and nothing that was measured is left out
    assert f"| held-out loss, all | {first['eval_loss']:.3f} before, {last['eval_loss']:.3f} after |" in body
    for name, value in asdict(RECIPE).items():
        assert re.search(rf"^\| {name} \| `?{re.escape(str(value))}`? \|$", body, re.MULTILINE), name


def test_what_was_not_measured_is_not_there(trained, job):
    log = tuple(row | {"eval_loss": None} for row in trained.log)
    nan = tuple({"step": row["step"], "loss": None, "eval_loss": float("nan")} for row in trained.log)
    for rows in ((), log, nan):  # nothing logged, nothing held out
        card = modelcard.card(job, replace(trained, log=rows))
        assert "held-out" not in card and "nan" not in card and "| code |" in card
    some = tuple(row | {"eval_round_7": float("nan")} for row in trained.log)
    card = modelcard.card(job, replace(trained, log=some))
    assert "nan" not in card and "round 7" not in card and "held-out loss, round 1" in card


def test_the_card_says_how_to_ask(trained, job):
    assert "`<s>User: {question}</s>\\nAssistant: `" in modelcard.card(job, trained)
    other = job | {"format": "template", "system": "Be brief.", "learn": "user"}
    card = modelcard.card(other, trained)
    assert "chat template, after the system prompt `'Be brief.'`" in card and "the user's messages" in card
    assert "4 bits" not in card
    card = modelcard.card(job | {"recipe": replace(RECIPE, load_in_4bit=True)}, trained)
    assert "held in 4 bits (NF4)" in card


NASTY = "x`y``\n\n# Owned\n\n<script>alert(1)</script> **bold** | [a](b)\n---\n```"


@pytest.mark.parametrize("field", ["base", "dialogues", "system", "attention"])
def test_no_name_breaks_out_of_its_code(trained, job, field):
    """As rendered, with raw HTML let through: the same structure as with a harmless name."""
    render = mistune.create_markdown(escape=False, plugins=["table"])

    def rendered(name: str) -> str:
        if field == "attention":
            changed = job | {"recipe": asdict(replace(RECIPE, attention=name))}
        else:
            changed = job | {field: ["a.jsonl", name] if field == "dialogues" else name}
        return render(head_and_body(modelcard.card(changed, trained))[1])

    tags = re.compile(r"</?[a-z0-9]+[^>]*>")
    nasty = rendered(NASTY)
    assert tags.findall(nasty) == tags.findall(rendered("harmless"))
    assert "<script" not in nasty and "&lt;script&gt;" in nasty and nasty.count("<h1") == 1
