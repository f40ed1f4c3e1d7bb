"""Training by two processes: DDP gives the single process's numbers; what FSDP really shards, and when it does not.

All of it on a CPU, with gloo. The Trainer shares a model out on GPUs only, so its configuration is checked
by its arguments, and once by telling accelerate that a CPU is one of several devices; the sharding itself
is torch's own, on a mesh of CPUs. None of this has run on several GPUs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
import yaml
from fruit import FRUIT
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from ultrachat import tiny, trainer, training
from ultrachat.__main__ import main
from ultrachat.batching import collate_packed, pack
from ultrachat.chatmodels import load
from ultrachat.errors import Stop
from ultrachat.recipes import Recipe
from ultrachat.records import Dialogue, to_jsonl
from ultrachat.sft import Encoder
from ultrachat.splitting import split_all

N = 2  # processes
CLOSE = 1e-5
LIMIT_SECONDS = 120  # a run that hangs is a failure, not an endless test
DIALOGUES = [
    Dialogue.from_rounds([(f"What is a {x}?", f"A {x} is a fruit."), ("Thanks" + "!" * i, f"Enjoy the {x}!")])
    for i, x in enumerate(FRUIT)
] + [Dialogue.from_rounds([(f"Is {x} sweet?", "Yes" + " indeed" * i)]) for i, x in enumerate(FRUIT)]
RECIPE = {"lr": 0.005, "max_steps": 5, "batch": 4, "micro_batch": 2, "n_evaluations": 2, "pack_tokens": 96}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a tiny base model and a file of dialogues; runs go beside them."""
    folder = tmp_path_factory.mktemp("distributed")
    texts = [m.content for d in DIALOGUES for m in d.messages]
    tokenizer = tiny.train_tokenizer(texts * 2, 320, folder / "base")
    tiny.tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2, max_position=128).save_pretrained(
        str(folder / "base")
    )
    (folder / "dialogues.jsonl").write_text(to_jsonl(DIALOGUES), encoding="utf-8")
    return folder


def job(home: Path, name: str, **recipe: Any) -> Path:
    """The config of a run that writes into the folder `name`."""
    path = home / f"{name}.yaml"
    config = {
        "base": str(home / "base"), "dialogues": [str(home / "dialogues.jsonl")], "out": str(home / name),
        "max_tokens": 96, "n_held_out": 4, "report_to": "none", "recipe": RECIPE | recipe,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def result(home: Path, name: str) -> dict[str, Any]:
    return json.loads((home / name / "model/result.json").read_text())


def assert_same_run(home: Path, ours: str, theirs: str) -> None:
    """Losses of every step and round, tokens and weights of two runs are the same but for rounding."""
    one, two = result(home, ours), result(home, theirs)
    assert one["n_tokens"] == two["n_tokens"] > 0
    assert [sorted(row) for row in one["log"]] == [sorted(row) for row in two["log"]]
    assert sum(row["loss"] is not None for row in one["log"]) == one["n_steps"]  # every step is compared
    assert {"eval_round_1", "eval_round_2"} <= one["log"][-1].keys()
    for mine, its in zip(one["log"], two["log"], strict=True):
        assert mine == pytest.approx(its, abs=CLOSE)
    assert one["log"][0]["eval_loss"] - one["log"][-1]["eval_loss"] > 100 * CLOSE  # and something was learnt
    (mine,), (its,) = (list((home / name / "model").glob("*.safetensors")) for name in (ours, theirs))
    assert mine.name == its.name
    weights, others = load_file(mine), load_file(its)
    if one["wrapped_in"] == "FSDPLlamaForCausalLM":  # gathered, the shared embeddings are two
        assert torch.equal(weights.pop("lm_head.weight"), weights["model.embed_tokens.weight"])
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[name], others[name], rtol=0, atol=CLOSE) for name in weights)


# ---- processes as torchrun starts them --------------------------------------------------------


def together(home: Path, function: Callable[..., Any], *args: Any, n: int = N) -> tuple[list[int], list[str]]:
    """Call a function in `n` processes with torchrun's environment; return their exit statuses and outputs.

    They are forked from a server that has imported what they need, so that a start takes no ten seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "ultrachat.training_run", "ultrachat.training", "peft"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [home / f"{function.__name__}-{rank}.txt" for rank in range(n)]
    children = [
        context.Process(target=_child, args=(rank, n, port, outputs[rank], function, args))
        for rank in range(n)
    ]
    for child in children:
        child.start()
    _wait(children)
    return [child.exitcode for child in children], [path.read_text() for path in outputs]


def _wait(children: Sequence[multiprocessing.Process]) -> None:
    """Wait for all, and end the others when one fails, as torchrun does."""
    limit = time.monotonic() + LIMIT_SECONDS
    running = list(children)
    while running and time.monotonic() < limit and not any(child.exitcode for child in children):
        running[0].join(0.05)
        running = [child for child in running if child.exitcode is None]
    for child in running:
        child.kill()
        child.join()


def _child(rank: int, n: int, port: int, output: Path, function: Callable[..., Any], args: Sequence[Any]):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.exit(function(*args))


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    """`torchrun --nproc-per-node 2 -m ultrachat …`"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(N)]
    return subprocess.run(
        [*command, "-m", "ultrachat", *arguments], capture_output=True, text=True, timeout=LIMIT_SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


# ---- DDP --------------------------------------------------------------------------------------


def test_torchrun_gives_the_single_processs_numbers_padded(home):
    assert main(["train", str(job(home, "one"))]) == 0
    done = torchrun("train", str(job(home, "two")))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "held-out loss" in line or "steps" in line]
    assert len(lines) == 3 + 1 and len(set(lines)) == len(lines)  # each is said by one process
    assert_same_run(home, "two", "one")
    assert result(home, "one")["wrapped_in"] == ""
    assert result(home, "two")["wrapped_in"] == "DistributedDataParallel"
    assert (home / "two/model/README.md").exists()


def test_two_processes_give_the_single_ones_numbers_packed_and_with_lora(home):
    names = {"packed": {"batching": "packed"}, "grouped_lora": {"batching": "grouped", "lora_rank": 4}}
    for name, recipe in names.items():
        assert main(["train", str(job(home, f"{name}_one", **recipe))]) == 0
    status, outputs = together(home, _train_each, [str(job(home, f"{n}_two", **r)) for n, r in names.items()])
    assert status == [0, 0], outputs
    for name in names:
        assert_same_run(home, f"{name}_two", f"{name}_one")
        assert result(home, f"{name}_two")["wrapped_in"] == "DistributedDataParallel"


def _train_each(configs: Sequence[str]) -> int:
    return max(main(["train", config]) for config in configs)


def test_rows_that_do_not_divide_are_filled_up_with_some_that_are_learnt_again(home):
    """accelerate's `even_batches`: no process may wait for a batch that another has not, so rows are repeated.

    Of 19 rows the single process's last step has 3; two processes of 2 rows each take 4.
    """
    recipe = {"max_steps": None, "epochs": 1}
    assert main(["train", str(job(home, "uneven_one", **recipe)), "--set", "n_held_out=5"]) == 0
    job(home, "uneven_two", **recipe)
    status, outputs = together(home, _train_uneven, str(home / "uneven_two.yaml"))
    assert status == [0, 0], outputs
    one, two = result(home, "uneven_one"), result(home, "uneven_two")
    assert one["n_steps"] == two["n_steps"] == 5  # 19 / 4
    losses = [[row["loss"] for row in each["log"] if row["loss"] is not None] for each in (one, two)]
    assert losses[1][:4] == pytest.approx(losses[0][:4], abs=CLOSE)  # four full steps, then one filled up
    assert losses[1][4] != pytest.approx(losses[0][4], abs=CLOSE)
    lengths = [row.n_tokens for row in _rows(home, 5)[0]]
    assert one["n_tokens"] == sum(lengths)
    assert two["n_tokens"] - one["n_tokens"] in lengths  # one row twice


def _train_uneven(config: str) -> int:
    return main(["train", config, "--set", "n_held_out=5"])


def _rows(home: Path, n_held_out: int) -> tuple[list, list]:
    tokenizer = load(home / "base")[1]
    ordered = sorted(DIALOGUES, key=lambda dialogue: dialogue.id)
    encoder = Encoder(tokenizer)
    return tuple(split_all(part, encoder, 96)[0] for part in (ordered[n_held_out:], ordered[:n_held_out]))


# ---- FSDP -------------------------------------------------------------------------------------


def test_fsdp_without_gpus_is_refused_with_one_line(home):
    status, outputs = together(home, _train_each, [str(job(home, "refused", fsdp=True))])
    assert status[0] == 1
    assert outputs[0].endswith("stopped: fsdp: needs GPUs and torchrun; expected false here\n")
    assert "stopped: " not in outputs[1] + outputs[0].replace("stopped: ", "", 1)  # not once for each process
    assert not (home / "refused/model").exists()


def test_fsdp2_shares_a_model_out_and_changes_no_loss_and_no_gradient(home):
    status, outputs = together(home, _shard_by_hand, home)
    assert status == [0, 0], outputs


def _shard_by_hand(home: Path) -> None:
    distributed.init_process_group("gloo")
    mesh = distributed.init_device_mesh("cpu", (N,))
    packs = pack(_rows(home, 4)[0], 96)
    batch = collate_packed(packs, pad_id=0)
    whole, _ = load(home / "base", dtype="float32", device="cpu")
    sharded, _ = load(home / "base", dtype="float32", device="cpu")
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert isinstance(sharded, FSDPModule) and isinstance(sharded.model.layers[0], FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    n_local = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    n_whole = sum(parameter.numel() for parameter in whole.parameters())
    assert abs(n_local / n_whole - 1 / N) < 0.01  # each process holds half of it
    losses = [model(**batch, use_cache=False).loss for model in (whole, sharded)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=CLOSE)
    for (name, mine), its in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(mine.grad, DTensor) and mine.grad.to_local().numel() < its.numel(), name
        torch.testing.assert_close(mine.grad.full_tensor(), its.grad, rtol=0, atol=CLOSE)
    distributed.destroy_process_group()


def test_the_trap_the_trainer_takes_ddp_where_fsdp_is_asked_for_on_a_cpu(home):
    status, outputs = together(home, _fall_into_the_trap, home)
    assert status == [0, 0], outputs


def _fall_into_the_trap(home: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(home / "trap"), fsdp=True, use_cpu=True, max_steps=1, save_strategy="no", report_to=[]
    )
    model, _ = load(home / "base", dtype="float32", device="cpu")
    rows = [{"input_ids": [1, 5, 6, 7], "labels": [1, 5, 6, 7]} for _ in range(4)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2  # it was asked for …
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"  # … and nothing was said
    assert not any(isinstance(module, FSDPModule) for module in trainer.model_wrapped.modules())
    assert not any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())


@pytest.mark.parametrize(("checkpointing", "lora_rank"), [(True, 0), (False, 0), (True, 4)])
def test_the_trainers_fsdp_arguments(home, monkeypatch, checkpointing, lora_rank):
    """FSDP2 with its own activation checkpointing. This configuration needs GPUs and has not run on any."""
    recipe = Recipe(
        lr=1e-5, batch=8, micro_batch=2, fsdp=True, gradient_checkpointing=checkpointing, lora_rank=lora_rank
    )
    seen = {}
    monkeypatch.setattr(trainer.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trainer, "TrainingArguments", lambda **given: seen.update(given))
    with pytest.raises(Stop, match="fsdp: needs GPUs and torchrun"):
        trainer.arguments_of(home / "x", recipe, 100, "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    trainer.arguments_of(home / "x", recipe, 100, "none")
    assert seen["per_device_train_batch_size"] == 2 and seen["gradient_accumulation_steps"] == 1
    assert seen["use_cpu"] is False
    monkeypatch.undo()  # what is left is read where there is no GPU
    arguments = TrainingArguments(**seen | {"use_cpu": True, "dataloader_pin_memory": False})
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["reshard_after_forward"] is True
    assert arguments.fsdp_plugin_args["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    # both at once are refused by the Trainer; FSDP's own would leave an adapter without weights
    assert arguments.fsdp_plugin_args["activation_checkpointing"] is (checkpointing and not lora_rank)
    assert arguments.activation_checkpointing is (checkpointing and bool(lora_rank))


def test_the_whole_run_where_accelerate_takes_a_cpu_for_a_device(home):
    """Held-out losses, checkpoints, resuming and the saved model with weights that are shared out.

    Only `DistributedType` is forced; on GPUs, which this has not run on, nothing needs to be.
    """
    adapter = {"lora_rank": 4, "batching": "packed", "gradient_checkpointing": True}
    assert main(["train", str(job(home, "whole_model"))]) == 0
    assert main(["train", str(job(home, "whole_adapter", **adapter))]) == 0
    model = str(job(home, "shared_out", fsdp=True))
    lora = str(job(home, "shared_adapter", fsdp=True, **adapter))
    for configs, killed in (([model], "shared_out"), ([model, lora], "shared_adapter"), ([lora], None)):
        status, outputs = together(home, _train_shared_out, configs, killed)
        assert status[0] == (9 if killed else 0), outputs
    assert result(home, "shared_out")["resumed_from_step"] == 3
    assert result(home, "shared_adapter")["resumed_from_step"] == 3
    assert result(home, "shared_out")["wrapped_in"] == "FSDPLlamaForCausalLM"
    assert result(home, "shared_adapter")["wrapped_in"] == "FSDPPeftModelForCausalLM"
    assert_same_run(home, "shared_out", "whole_model")
    assert_same_run(home, "shared_adapter", "whole_adapter")
    trained, _ = load(home / "shared_out/model")
    assert trained.config.architectures == ["LlamaForCausalLM"]


def _train_shared_out(configs: Sequence[str], killed: str | None) -> int:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    began = AcceleratorState.__init__

    def begin(self, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        began(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    marked = training.checkpoints.mark

    def mark(checkpoint: Path) -> None:
        marked(checkpoint)
        if checkpoint.name == "checkpoint-3" and killed == checkpoint.parents[2].name:
            os._exit(9)

    AcceleratorState.__init__ = begin
    trainer.check_machine = lambda *args: None
    training.checkpoints.mark = mark
    return _train_each(configs)
