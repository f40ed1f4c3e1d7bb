"""The command line: `python -m ultrachat run configs/sample.yaml [--only 05-07] [--set name=value]`.

Absent on purpose: logic. Each command calls one function of the package and shows a Stop as its line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ultrachat.errors import Stop
from ultrachat.launcher import run, update_committed


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit status: 0, or 1 after printing one line to stderr.

    Ours: bad input gets one clear line.
    """
    parser = argparse.ArgumentParser(prog="python -m ultrachat", description="UltraChat, step by step.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="execute the notebooks of a config in order")
    command.add_argument("config", type=Path, help="configs/sample.yaml, say")
    command.add_argument("--only", help="which notebooks: 05, 05-07 or 02,05")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    commands.add_parser(
        "update", help="copy the sample run's executed notebooks and figures into the repository"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "run":
            run(chosen.config, chosen.only, chosen.settings)
        else:
            for path in update_committed():
                print(path)
    except Stop as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was answered is kept, run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
