"""kill -9 at chosen and at random moments of training, and what became of the run: see benchmarks/README.md.

    python benchmarks/training_kills.py              100 kills; writes training_kills.csv and the README
    python benchmarks/training_kills.py --n 20       fewer; prints the table only

A run is some steps on a tiny model, in a process of its own, killed about five times and then left to finish.
Nothing in it is changed: the parent watches the run's folder and kills when it sees what it waits for (or
at a random moment), and what the kill hit is read from the folder afterwards. A callback, the Trainer's own
means, notes each step in a ledger:

    began 4    5    6    began 4    5 …       killed after step 6, went on from 4: two steps were lost

Its result is held against a run of the same kind that was never killed: the last held-out loss, all others and
the bytes of the weights. Runs are full and LoRA, padded, grouped and packed, in turn.

Absent on purpose: power cuts (nothing is synced but the marks), and kills of one process among several.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import machine_line, markdown, write_table

from ultrachat import checkpoints, training
from ultrachat.errors import Stop
from ultrachat.prepared import Rows, write_rows
from ultrachat.recipes import Recipe
from ultrachat.records import Dialogue
from ultrachat.sft import Encoder
from ultrachat.splitting import split_each
from ultrachat.tiny import tiny_llama, train_tokenizer

STARTING = "while it starts"
BETWEEN = "between two checkpoints"
WRITTEN = "while a checkpoint is written"
DELETED = "while older ones are deleted"
SAVED = "while the model is saved"
AFTER = "after the result"
MOMENTS = (STARTING, BETWEEN, WRITTEN, DELETED, SAVED, AFTER)

FRUIT = ["pear", "plum", "fig", "apple", "cherry", "quince", "peach", "lemon", "lime", "grape", "kiwi"]
BASICS = {"lr": 5e-3, "max_steps": 8, "batch": 4, "micro_batch": 2, "n_evaluations": 4, "pack_tokens": 96}
KINDS = {  # dropout draws random numbers, which a checkpoint has to bring back too
    "full, padded": Recipe(**BASICS),
    "LoRA, packed": Recipe(**BASICS, batching="packed", lora_rank=4, lora_dropout=0.1),
    "full, packed": Recipe(**BASICS, batching="packed"),
    "LoRA, grouped": Recipe(**BASICS, batching="grouped", lora_rank=4, lora_dropout=0.1),
}
N_STEPS = BASICS["max_steps"]
STEPS_A_CHECKPOINT = N_STEPS // BASICS["n_evaluations"]
LIMIT_SECONDS = 120
N_LITTER = 300


# ---- a life: one process that trains until it is killed ---------------------------------------


def make_base(home: Path) -> None:
    """Write a tiny untrained model and rows to train on and to hold out."""
    dialogues = [
        Dialogue.from_rounds([(f"What is a {x}?", f"A {x} is a fruit."), ("And?", f"Enjoy the {x}!")])
        for x in FRUIT
    ]
    texts = [text for dialogue in dialogues for text in dialogue.texts]
    tokenizer = train_tokenizer(texts * 3, 320, home / "base")
    tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2, max_position=128).save_pretrained(
        str(home / "base")
    )
    for name, part in (("train", dialogues[2:]), ("held_out", dialogues[:2])):
        write_rows(home / name, split_each(part, Encoder(tokenizer), 96), {})


def live(home: Path, folder: Path, recipe: Recipe) -> None:
    """Train in this process, which somebody may kill; note every step."""
    from transformers import TrainerCallback, trainer

    ledger = os.open(ledger_of(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    output = os.open(output_of(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)

    class Ledger(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.write(ledger, f"began {state.global_step}\n".encode())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.write(ledger, f"{state.global_step}\n".encode())

    trainer.DEFAULT_CALLBACKS.append(Ledger)
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage first; what the server has imported is none
    rows, held_out = Rows(home / "train"), Rows(home / "held_out")
    training.finetune(rows, held_out, home / "base", folder, recipe, report_to="none")


def ledger_of(folder: Path) -> Path:
    """Beside the run's folder, which holds nothing but the run."""
    return folder.with_suffix(".ledger")


def output_of(folder: Path) -> Path:
    """What all processes of a run printed."""
    return folder.with_suffix(".output")


def context() -> Any:
    """Processes forked from a server that has imported what they need: a start takes no ten seconds."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        ["peft", "transformers.models.llama.modeling_llama", "ultrachat.training", "ultrachat.tiny"]
    )
    return found


# ---- what a folder looks like, and when to kill -----------------------------------------------


def moment_of(folder: Path, since_ns: int, has_begun: bool) -> str:
    """Return which of MOMENTS a run was in, by what is in its folder and what was touched since it started."""

    if not has_begun:
        return STARTING
    if (folder / "result.json").exists():
        return AFTER
    if is_saving(folder, since_ns):
        return SAVED
    found = sorted(folder.glob("checkpoints/checkpoint-*"), key=checkpoints.step_of)
    if found and _touched(found[-1], since_ns):
        if not (found[-1] / checkpoints.MARK).exists():
            return WRITTEN
        if len(found) > 1:
            return DELETED
    return BETWEEN


def is_saving(folder: Path, since_ns: int) -> bool:
    """Whether the model that training ends with is on its way into the folder."""
    names = ("config.json", "adapter_config.json", "adapter_model.safetensors", "model.safetensors")
    return any(_touched(folder / name, since_ns) for name in names)


def _touched(path: Path, since_ns: int) -> bool:
    try:
        return path.stat().st_mtime_ns >= since_ns
    except FileNotFoundError:  # not there yet, or no more
        return False


def wants(moment: str, since_ns: int) -> Callable[[Path], bool] | None:
    """Return the question whether a folder is at a moment, None for STARTING and BETWEEN: they are met by chance."""

    def newest(folder: Path) -> tuple[Path | None, int]:
        found = sorted(folder.glob("checkpoints/checkpoint-*"), key=checkpoints.step_of)
        return (found[-1] if found and _touched(found[-1], since_ns) else None), len(found)

    def written(folder: Path) -> bool:
        checkpoint, _ = newest(folder)
        return checkpoint is not None and not (checkpoint / checkpoints.MARK).exists()

    def deleted(folder: Path) -> bool:
        checkpoint, n = newest(folder)
        return checkpoint is not None and n > 1 and (checkpoint / checkpoints.MARK).exists()

    return {
        WRITTEN: written, DELETED: deleted, SAVED: lambda folder: is_saving(folder, since_ns),
        AFTER: lambda folder: (folder / "result.json").exists(),
    }.get(moment)  # fmt: skip


def make_litter(folder: Path) -> Path:
    """Return a folder of many small files beside the run's.

    Put among its checkpoints it looks like what a kill in the first steps leaves, and takes long to delete.
    """
    left = folder.with_suffix(".litter")
    if not left.exists():
        left.mkdir(parents=True)
        for number in range(N_LITTER):
            (left / f"{number}").touch()
    return left


def drop(litter: Path, folder: Path) -> None:
    """Put the litter among a run's checkpoints, at one stroke, once there are any."""
    if litter.exists() and (folder / "checkpoints").exists():
        with suppress(OSError):  # meanwhile the folder can be gone
            litter.rename(folder / "checkpoints/checkpoint-0")


# ---- a run, killed again and again ------------------------------------------------------------


class Kill(NamedTuple):
    """What a kill hit, how many of the steps done then had to be done again, whether the next life went on."""

    moment: str
    steps_lost: int
    resumed: bool


@dataclass
class Run:
    """A finished run: its kills, and how far its end is from that of a run that was never killed."""

    kind: str
    kills: list[Kill]
    loss_difference: float
    is_identical: bool


class Killer:
    """Runs of each kind beside one that is left alone. Where a kill aims is drawn from `seed`."""

    def __init__(self, home: Path, seed: int = 0) -> None:
        self.home, self.rng, self.context = home, random.Random(seed), context()
        self.whole: dict[str, tuple[Path, float]] = {}
        make_base(home)

    def start(self, folder: Path, kind: str) -> Any:
        """Return a process that trains in the folder."""
        process = self.context.Process(target=live, args=(self.home, folder, KINDS[kind]))
        process.start()
        return process

    def undisturbed(self, kind: str) -> tuple[Path, float]:
        """Return the folder of the run that nobody kills, and how long it trained (seconds)."""
        if kind not in self.whole:
            folder = self.home / f"whole {kind}"
            process = self.start(folder, kind)
            while process.is_alive() and not _ledger(folder):
                time.sleep(0.001)
            began = time.monotonic()
            process.join(LIMIT_SECONDS)
            if process.exitcode:
                raise Stop(f"the run that nobody killed failed: {output_of(folder).read_text()[-500:]}")
            self.whole[kind] = folder, time.monotonic() - began
        return self.whole[kind]

    def run(self, kind: str, aims: Sequence[str], name: str) -> Run:
        """Kill a run once for each aim, one of MOMENTS, let it finish, and compare.

        STARTING is a random moment from the start of the process, BETWEEN one from the start of training.
        There are fewer kills than aims when the run comes to its end before.
        """
        whole, seconds = self.undisturbed(kind)
        folder = self.home / name
        hits: list[tuple[str, int, int]] = []  # the moment, and where in the ledger that life begins and ends
        for aim in aims:
            begin = len(_ledger(folder))
            moment = self.kill(folder, kind, aim, seconds)
            if moment is None:
                break
            hits.append((moment, begin, len(_ledger(folder))))
        last = self.start(folder, kind)
        last.join(LIMIT_SECONDS)
        if last.exitcode != 0:
            raise Stop(f"{kind}: did not go on: {output_of(folder).read_text()[-500:]}")
        ledger = _ledger(folder)
        kills = [Kill(moment, *_after(ledger[begin:end], ledger[end:])) for moment, begin, end in hits]
        return Run(kind, kills, *_compare(folder, whole))

    def kill(self, folder: Path, kind: str, aim: str, seconds: float) -> str | None:
        """Start a run and kill it; return the moment that was hit, None when it ended before."""
        n_lines = len(_ledger(folder))
        litter = make_litter(folder) if aim == DELETED else None
        since_ns, limit = time.time_ns(), time.monotonic() + LIMIT_SECONDS
        process = self.start(folder, kind)
        if aim == BETWEEN:
            while process.is_alive() and len(_ledger(folder)) == n_lines:
                time.sleep(0.001)
        at = time.monotonic() + self.rng.uniform(0, seconds / 2)
        is_there = wants(aim, since_ns) or (lambda folder: time.monotonic() > at)
        while process.is_alive() and time.monotonic() < limit:
            if litter:
                drop(litter, folder)
            if is_there(folder):
                if aim == WRITTEN:  # anywhere in it
                    time.sleep(self.rng.choice((0, 0, 0.002, 0.01)))
                process.kill()
                break
            time.sleep(0.0005)
        process.join(LIMIT_SECONDS)
        if process.exitcode == 0:
            return None
        if process.exitcode != -9:
            raise Stop(f"{kind}: failed by itself: {output_of(folder).read_text()[-500:]}")
        return moment_of(folder, since_ns, has_begun=len(_ledger(folder)) > n_lines)


def _ledger(folder: Path) -> list[str]:
    path = ledger_of(folder)
    return path.read_text().splitlines() if path.exists() else []


def _after(life: Sequence[str], later: Sequence[str]) -> tuple[int, bool]:
    """Return how many steps a kill cost, and whether the run went on where it could.

    `life` are the ledger's lines of the life that ended, `later` those of all that came after it.
    """
    again = next((int(line.split()[1]) for line in later if line.startswith("began")), N_STEPS)
    if not life:  # killed before the first step
        return 0, True
    lost = int(life[-1].split()[-1]) - again
    return lost, 0 <= lost <= STEPS_A_CHECKPOINT


def _compare(folder: Path, whole: Path) -> tuple[float, bool]:
    """Return the difference of the last held-out losses, and whether losses, weights and counts are the same."""
    mine, its = (json.loads((f / "result.json").read_text()) for f in (folder, whole))
    difference = abs(mine["log"][-1]["eval_loss"] - its["log"][-1]["eval_loss"])
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    same = names == sorted(path.name for path in folder.glob("*.safetensors"))
    same &= all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names)
    same &= mine["log"] == its["log"] and mine["n_tokens"] == its["n_tokens"]
    return difference, same and not (folder / "checkpoints").exists()


# ---- all of them ------------------------------------------------------------------------------


def measure(home: Path, n: int, kinds: Sequence[str] = tuple(KINDS), seed: int = 0) -> list[Run]:
    """Return runs of these kinds in turn with `n` kills in all, or a few more."""
    killer = Killer(home, seed)
    runs: list[Run] = []
    while (n_done := sum(len(run.kills) for run in runs)) < n:
        aims = ([BETWEEN, WRITTEN, DELETED, BETWEEN, SAVED], [WRITTEN, STARTING, BETWEEN, DELETED, AFTER])[
            len(runs) % 2
        ]
        kind = kinds[len(runs) // 2 % len(kinds)]
        runs.append(killer.run(kind, aims, f"run {len(runs)}"))
        print(f"{n_done + len(runs[-1].kills)} of {n} kills", file=sys.stderr, flush=True)
    return runs


def rows_of(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return a row for each moment that was hit; of a run's loss every kill in it is guilty."""
    rows = []
    for moment in MOMENTS:
        hit = [(run, kill) for run in runs for kill in run.kills if kill.moment == moment]
        if hit:
            lost = [kill.steps_lost for _, kill in hit]
            rows.append({
                "moment_of_the_kill": moment, "kills": f"{len(hit)}",
                "resumed": f"{sum(kill.resumed for _, kill in hit)}",
                "steps_lost_on_average": f"{sum(lost) / len(lost):.1f}", "steps_lost_at_most": f"{max(lost)}",
                "final_loss_difference": f"{max(run.loss_difference for run, _ in hit):g}",
                "identical_weights": f"{sum(run.is_identical for run, _ in hit)}",
            })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, help="how many kills (default: 100); writes no files")
    n = parser.parse_args().n
    with tempfile.TemporaryDirectory() as home:
        runs = measure(Path(home), n or 100)
    rows = rows_of(runs)
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))
    if n is None:
        machine = machine_line(
            f"{len(runs)} runs of {N_STEPS} steps, a checkpoint every {STEPS_A_CHECKPOINT}"
        )
        write_table("training_kills", rows, machine)
    return int(
        any(row["kills"] != row["resumed"] or row["kills"] != row["identical_weights"] for row in rows)
    )


if __name__ == "__main__":
    sys.exit(main())
