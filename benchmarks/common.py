"""What every benchmark shares: the line that names the machine, and figures that are never typed by hand.

    write_table("generators", [{"generator": "ours", "dialogues_per_second": "120"}, ...])

writes benchmarks/generators.csv (the machine in its last row, as in fresh_clone.csv) and shows the same
rows in benchmarks/README.md between the lines `<!-- generators -->` and `<!-- end of generators -->`.
Prose there says what a table shows; the figures come from here only.

Absent on purpose: how anything is measured; each benchmark says that in its own docstring.
"""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from ultrachat.errors import Stop

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"


def machine_line(*more: str) -> str:
    """Return "machine: 2 cores, Python 3.11.7", followed by whatever else mattered, as "openai 3.52.0".

    Ours: a figure without its machine is none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([f"machine: {cores} cores, Python {platform.python_version()}", *more])


def write_table(name: str, rows: Sequence[Mapping[str, object]], machine: str | None = None) -> Path:
    """Write benchmarks/<name>.csv, show it in benchmarks/README.md, and return the path of the CSV.

    The columns are the keys of the first row; cells are written as they are, so round them before.
    `machine` is `machine_line()` unless given. Raises Stop for rows of unlike keys and, after the CSV is
    safe, when README.md lacks the two marker lines.

    Ours: the CSV is the figure, the README only shows it.
    """
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise Stop(f"rows of {name}: expected at least one, all with the same keys in the same order")
    columns = list(rows[0])
    cells = [[str(row[column]) for column in columns] for row in rows]
    machine = machine or machine_line()
    path = FOLDER / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(cells)
        writer.writerow([machine, *[""] * (len(columns) - 1)])
    _show(name, f"{markdown(columns, cells)}\n\n{machine}")
    return path


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, columns of numbers to the right, underscores of the names as spaces.

    Ours: the README is read on the web and in a terminal.
    """
    ruler = ["---:" if all(_is_number(row[i]) for row in cells) else "---" for i in range(len(columns))]
    lines = [[column.replace("_", " ") for column in columns], ruler, *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number as we print them: "1,234", "0.5", "12 %", or nothing."""
    return not cell.strip(" %").replace(",", "").replace(".", "", 1).lstrip("-")[:20].strip("0123456789")


def _show(name: str, block: str) -> None:
    """Put `block` between the marker lines of `name` in README.md."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise Stop(f"{README.name} of benchmarks: expected the lines '{first}' and '{last}' once, in order")
    before, rest = text.split(first)
    after = rest.split(last)[1]
    partial = README.with_suffix(".partial")
    partial.write_text(f"{before}{first}\n{block}\n{last}{after}", encoding="utf-8")
    os.replace(partial, README)
