"""The command line: run the notebooks, train, serve, evaluate, measure or clean any data set, rehearse, divide and merge.

Absent on purpose: logic. Each command calls one function of the package and shows a Stop as its line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from ultrachat.errors import Stop
from ultrachat.launcher import run, update_committed
from ultrachat.runs import run_folder

# commands with many options: the module of add_arguments(parser), that of run(chosen), and the help
WITH_OPTIONS = {
    "stats": ("describe", "describe", "the row of Table 5 for any file of dialogues"),
    "clean": ("human_turns", "human_turns", "people's conversations made ready to train a user model on"),
    "serve": ("serving", "serving", "models on this machine as an OpenAI-compatible API"),
    "evaluate": (
        "evaluation_options",
        "evaluation",
        "section 5 for any models: a page of tables and their CSV files",
    ),
}


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    from ultrachat import rehearsal

    parser = argparse.ArgumentParser(prog="python -m ultrachat", description="UltraChat, step by step.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="execute the notebooks of a config in order")
    command.add_argument("config", type=Path, help="configs/sample.yaml, say")
    command.add_argument("--only", help="which notebooks: 05, 05-07 or 02,05")
    _add_settings(command)
    rehearsal.add_arguments(
        commands.add_parser(
            "rehearse", help="serve an OpenAI-compatible API on this machine, to try a run on"
        )
    )
    command = commands.add_parser("import", help="bring in responses to the requests that via=export wrote")
    command.add_argument("run_name", help="the run that exported them")
    command.add_argument("file", type=Path, help="JSONL as the Batch API writes it")
    command = commands.add_parser("shards", help="run notebook 05 of a config in parts, on Ray")
    command.add_argument("config", type=Path)
    command.add_argument("--of", type=int, required=True, help="how many parts")
    command.add_argument("--at-once", type=int, help="how many of them at a time (default: as many as fit)")
    command.add_argument(
        "--address", help="a Ray cluster, 'auto' for the one that runs (default: this machine)"
    )
    _add_settings(command)
    command = commands.add_parser("merge", help="bring the parts of a run together")
    command.add_argument("run_name", help="the run that was divided")
    for name, (options, _, help_text) in WITH_OPTIONS.items():
        command = commands.add_parser(name, help=help_text)
        if name in arguments:  # what they need takes a second to import
            import_module(f"ultrachat.{options}").add_arguments(command)
    command = commands.add_parser("apply-delta", help="a model out of its base and published delta weights")
    for name in ("base", "delta", "out"):
        command.add_argument(
            name, type=Path, help=f"folder of the {name}" if name != "out" else "folder to write"
        )
    command.add_argument("--added-rows", choices=("mean", "delta"), default="mean", help="how the rows of added tokens "
                         "were published: as a difference from the mean row of the base, as UltraLM's, or as they are")  # fmt: skip
    _add_training(commands)
    commands.add_parser(
        "update", help="copy the sample run's executed notebooks and figures into the repository"
    )
    return parser


def _add_training(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train", help="fine-tune a model as a config says; under torchrun on several GPUs"
    )
    command.add_argument("config", type=Path, help="configs/tiny-cpu.yaml, say")
    _add_settings(command)
    command = commands.add_parser("merge-adapter", help="one model out of a LoRA adapter and its base")
    command.add_argument("adapter", type=Path, help="folder of the adapter")
    command.add_argument("out", type=Path, help="folder to write")
    command.add_argument("--base", help="folder or hub id of the base (default: the one the adapter names)")


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")


def _run_command(chosen: argparse.Namespace) -> None:
    """Call what the command stands for; modules that only one command needs are imported by it."""
    if chosen.command == "run":
        run(chosen.config, chosen.only, chosen.settings)
    elif chosen.command == "rehearse":
        from ultrachat import rehearsal

        rehearsal.serve(rehearsal.settings_from(chosen), chosen.host, chosen.port, chosen.log)
    elif chosen.command == "import":
        from ultrachat.batches import import_responses

        print(import_responses(run_folder(chosen.run_name) / "answers.sqlite", chosen.file))
    elif chosen.command == "shards":
        from ultrachat import shards

        shards.run_on_ray(chosen.config, chosen.of, chosen.settings, chosen.at_once, chosen.address)
    elif chosen.command in WITH_OPTIONS:
        import_module(f"ultrachat.{WITH_OPTIONS[chosen.command][1]}").run(chosen)
    elif chosen.command == "apply-delta":
        from ultrachat.deltas import apply_delta

        print(apply_delta(chosen.base, chosen.delta, chosen.out, added_rows=chosen.added_rows))
    elif chosen.command == "train":
        from ultrachat import training_run

        training_run.run(training_run.read_job(chosen.config, chosen.settings))
    elif chosen.command == "merge-adapter":
        from ultrachat.adapters import merge_adapter

        print(f"{merge_adapter(chosen.adapter, chosen.out, chosen.base):,} parameters")
    elif chosen.command == "merge":
        from ultrachat import shards

        print(shards.merge(chosen.run_name))
    else:
        print(*update_committed(), sep="\n")


def _let_the_first_speak() -> None:
    """Under torchrun, wait until the first process has said what all of them would say.

    Its end makes torchrun end the others. What only one of the others stops at, that one says after all.
    """
    if int(os.environ.get("RANK") or 0):
        time.sleep(10)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit status: 0, or 1 after printing one line to stderr.

    Ours: bad input gets one clear line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = _parser(arguments).parse_args(arguments)
    try:
        _run_command(chosen)
    except Stop as stop:
        _let_the_first_speak()
        print(f"stopped: {stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was done is kept, run again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
