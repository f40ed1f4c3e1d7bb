"""What survives: kills, damaged files, failing disks, faults of every kind, and a budget; see README.md.

    python benchmarks/reliability.py all             every figure, at full size
    python benchmarks/reliability.py kills --n 60    one of them, smaller; writes no files

kills, damage, faults, budget and fuzz are in files of their own in reliability/, which say what they do and
what their columns mean. Each prints its tables, writes them to benchmarks/reliability_*.csv and README.md, and
names every target that was missed; the exit status is then 1. The oracle is the rehearsal server's log.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time

from common import FOLDER, machine_line, markdown, write_table

from ultrachat.errors import Stop

sys.path.insert(0, str(FOLDER / "reliability"))

MEASURED_BY = {
    "kills": ("kills",),
    "damage": ("damage", "disk"),
    "faults": ("throughput",),
    "budget": ("budget",),
    "fuzz": ("matrix", "bodies"),
}


def show(command: str, n: int | None) -> list[str]:
    """Measure and print what a command stands for; return a line for every target that was missed."""
    misses = []
    for module in MEASURED_BY[command]:
        begin = time.monotonic()
        measure = importlib.import_module(module).measure
        for table in measure() if n is None else measure(n):
            seconds = f"{time.monotonic() - begin:.0f} s"
            print(markdown(list(table.rows[0]), [list(row.values()) for row in table.rows]), "\n", flush=True)
            misses += [f"{table.name}: {line}" for line in table.misses]
            if n is None:
                write_table(table.name, table.rows, machine_line(f"measured in {seconds}"))
    return misses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=[*MEASURED_BY, "all"])
    parser.add_argument("--n", type=int, help="another size than the issue's; writes no files")
    chosen = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = "none"
    misses = []
    for command in MEASURED_BY if chosen.command == "all" else [chosen.command]:
        misses += show(command, chosen.n)
    print(*(f"MISSED {line}" for line in misses), sep="\n")
    print("every target was met" if not misses else f"{len(misses)} targets were missed")
    return bool(misses)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stop as stop:
        sys.exit(f"reliability: {stop}")
