"""Recipes: the schedule from the data, settings that are refused, and the committed configs."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from math import ceil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat.errors import Stop
from ultrachat.recipes import PAPER, Recipe, recipe_from, schedule
from ultrachat.training_run import read_job

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRAINING = ["ultrallama-13b", "lora-24gb", "tiny-cpu"]


# ---- the schedule -----------------------------------------------------------------------------


def test_the_papers_schedule_ends_within_the_run():
    n_steps, n_warmup = schedule(1_468_352, PAPER)
    assert n_steps == 3 * 2868  # 1,468,352 / 512 = 2,867.9
    assert n_warmup == 259  # 3 %
    assert PAPER.batch == 128 * PAPER.micro_batch
    # with the authors' constant of 2,000,000 steps warm-up alone would outlast the run
    assert n_steps < 0.03 * 2_000_000


@settings(max_examples=50)
@given(n=st.integers(1, 5000), batch=st.integers(1, 600), epochs=st.integers(1, 4))
def test_every_row_is_seen_once_per_epoch(n, batch, epochs):
    n_steps, n_warmup = schedule(n, replace(PAPER, batch=batch, epochs=epochs))
    assert n_steps * batch >= n * epochs > (n_steps - epochs) * batch
    assert 0 < n_warmup <= n_steps


def test_a_part_of_an_epoch_and_a_number_of_steps():
    assert schedule(1000, replace(PAPER, batch=10, epochs=0.5)) == (50, 2)  # 3 % of 50 is 1.5
    assert schedule(1000, replace(PAPER, batch=10, max_steps=7)) == (7, 1)
    assert schedule(1000, replace(PAPER, batch=10, max_steps=7, warmup_fraction=0)) == (7, 0)


# ---- recipes that cannot be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"load_in_4bit": True}, "load_in_4bit: .* expected lora_rank > 0"),
        ({"load_in_4bit": True, "lora_rank": 4, "fsdp": True}, "fsdp: .* expected load_in_4bit or fsdp"),
        ({"batch": 0}, "batch: expected more than 0, got 0"),
        ({"micro_batch": -1}, "micro_batch: expected more than 0, got -1"),
        ({"max_steps": 0}, "max_steps: expected more than 0 or None, got 0"),
        ({"lr": float("nan")}, "lr: expected more than 0, got nan"),
        ({"epochs": float("inf")}, "epochs: expected more than 0, got inf"),
        ({"batching": "sorted"}, "batching: expected one of padded, grouped, packed, got 'sorted'"),
        # the authors' mistake: the rate rises for longer than the run takes
        ({"warmup_fraction": 7.0}, "warmup_fraction: expected from 0 to 1, got 7.0"),
        ({"lora_dropout": -0.1}, "lora_dropout: expected from 0 to 1, got -0.1"),
        ({"lora_rank": -8}, "lora_rank: expected from 0 to inf, got -8"),
        ({"seed": -1}, "seed: expected from 0 to 4294967295, got -1"),
    ],
)
def test_impossible_recipes_are_one_line(changes, line):
    with pytest.raises(Stop, match=line):
        replace(PAPER, **changes)


# ---- recipes from YAML ------------------------------------------------------------------------


def test_what_is_not_said_is_the_default():
    assert recipe_from({"lr": 0.1}) == Recipe(lr=0.1)
    assert recipe_from({"lr": 1, "epochs": 2}) == Recipe(lr=1, epochs=2)  # a whole number is a number
    assert recipe_from({"lr": 0.1, "max_steps": None}).max_steps is None
    some = recipe_from({"lr": 0.1, "lora_rank": 4, "lora_targets": ["q_proj", "v_proj"]})
    assert some.lora_targets == ("q_proj", "v_proj") and hash(some)
    assert recipe_from({"lr": 0.1, "lora_targets": "all-linear", "batching": "packed"}).batching == "packed"


@given(st.builds(
    Recipe, lr=st.floats(1e-6, 1), epochs=st.integers(1, 9), max_steps=st.none() | st.integers(1, 99),
    lora_rank=st.integers(0, 9), lora_targets=st.just("all-linear") | st.tuples(st.text(min_size=1)),
    bf16=st.booleans(), batching=st.sampled_from(["padded", "grouped", "packed"]), attention=st.text(),
))  # fmt: skip
@settings(max_examples=50)
def test_a_recipe_survives_yaml(recipe):
    written = asdict(recipe) | {
        "lora_targets": list(recipe.lora_targets)
        if isinstance(recipe.lora_targets, tuple)
        else recipe.lora_targets
    }
    assert recipe_from(yaml.safe_load(yaml.safe_dump(written))) == recipe


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{batch: 4}", "recipe: lr is missing, expected the highest learning rate"),
        ("{lr: 0.1, learning_rate: 0.1}", "recipe: unknown setting 'learning_rate', expected one of lr, epochs,"),
        ("{lr: 0.1, 3: 4}", "recipe: unknown setting '3'"),
        # YAML has no number 1e-5, only 1.0e-5
        ("{lr: 1e-5}", "recipe: lr expected float, got '1e-5', which is text in YAML: write it with a point, such as 1.0e-5"),
        ("{lr: '0.1'}", "recipe: lr expected float, got '0.1', which is text in YAML"),
        ("{lr: high}", "recipe: lr expected float, got 'high'$"),
        ("{lr: true}", "recipe: lr expected float, got True$"),
        ("{lr: [0.1]}", r"recipe: lr expected float, got \[0.1\]$"),
        ("{lr: null}", "recipe: lr expected float, got None$"),
        ("{lr: 0.1, batch: 4.0}", "recipe: batch expected int, got 4.0$"),
        ("{lr: 0.1, batch: true}", "recipe: batch expected int, got True$"),
        ("{lr: 0.1, bf16: 1}", "recipe: bf16 expected bool, got 1$"),
        ("{lr: 0.1, bf16: 'yes'}", "recipe: bf16 expected bool, got 'yes'$"),
        ("{lr: 0.1, max_steps: all}", r"recipe: max_steps expected int \| None, got 'all'$"),
        ("{lr: 0.1, lora_targets: [1]}", r"recipe: lora_targets expected str \| tuple\[str, ...\], got \[1\]$"),
        ("{lr: 0.1, attention: {a: b}}", "recipe: attention expected str, got {'a': 'b'}$"),
        ("{lr: 0.1, attention: 2026-11-21}", "recipe: attention expected str, got datetime"),
        ("{lr: 0.1, batching: 3}", "recipe: batching expected one of padded, grouped, packed, got 3$"),
        ("{lr: 0.1, batching: sorted}", "batching: expected one of padded, grouped, packed, got 'sorted'$"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(text, line):
    with pytest.raises(Stop, match=line):
        recipe_from(yaml.safe_load(text))


def test_what_the_line_about_1e_5_says_can_be_done():
    assert recipe_from(yaml.safe_load("{lr: 1.0e-5}")).lr == 1e-5


# ---- the committed configs --------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINING)
def test_the_configs_can_be_read_and_divided_among_devices(name):
    job = read_job(CONFIGS / f"{name}.yaml")
    recipe = job.recipe
    assert recipe.batch % recipe.micro_batch == 0
    # every number of the recipe that differs from the default is written there, and is its own field
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["recipe"]
    assert written == {f.name: getattr(recipe, f.name) for f in fields(Recipe) if f.name in written}
    if recipe.batching == "packed":
        assert job.max_tokens <= recipe.pack_tokens
    assert ceil(10_000 / recipe.batch) >= recipe.n_evaluations  # else it would evaluate at every step


def test_the_papers_config_is_the_papers_recipe():
    """But for what is about the machine: weights shared out, and how often the loss is looked at."""
    job = read_job(CONFIGS / "ultrallama-13b.yaml")
    assert replace(job.recipe, fsdp=False, n_evaluations=PAPER.n_evaluations) == PAPER
    assert (job.max_tokens, job.format, job.learn, job.system) == (2048, "ultrallama", "assistant", None)


def test_the_recipe_for_one_card_trains_an_adapter_and_no_more():
    job = read_job(CONFIGS / "lora-24gb.yaml", ["load_in_4bit=true"])
    assert job.recipe.lora_rank and job.recipe.load_in_4bit and job.recipe.gradient_checkpointing
    assert not job.recipe.fsdp
