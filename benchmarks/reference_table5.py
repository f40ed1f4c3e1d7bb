"""Our figures on published samples: is our metric right, and how do we know what Table 5 means?

    python benchmarks/reference_table5.py --data DIR                        every file of data/reference
    python benchmarks/reference_table5.py --data DIR --only definitions     one of them

DIR holds the samples, evaluation sets and tokenizers under the paths that reference/samples.py and
reference/definitions.py give. data/reference/README.md says what each file holds and how to read it.
A kill costs little: embeddings are kept under runs/reference and asked for once.

Absent on purpose: texts. Only derived numbers are written and printed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "reference"))

from definitions import all_definition_rows, ultrachat_arithmetic_rows  # noqa: E402
from rows import (  # noqa: E402
    N_SAMPLE,
    beside_paper_rows,
    contamination_rows,
    duplicate_openings_rows,
    table5_rows,
)
from samples import Row  # noqa: E402

from ultrachat.errors import Stop  # noqa: E402
from ultrachat.runs import runs_folder  # noqa: E402

OUT = HERE.parent / "data" / "reference"
PARTS = {
    "definitions": all_definition_rows,
    "ultrachat_arithmetic": ultrachat_arithmetic_rows,
    "contamination": contamination_rows,
    "duplicate_openings": duplicate_openings_rows,
}
DIGITS = {"topic_similarity": 4, "topic_similarity_se": 5, "repeated_fraction": 4, "errors_apart": 1}
NOT_PRINTED = ("source", "licence", "note")


def as_text(row: Row) -> Row:
    """Return a row as its CSV has it: three digits after the point unless `DIGITS` says otherwise.

    Ours: finer than any standard error here.
    """
    return {k: f"{v:.{DIGITS.get(k, 3)}f}" if isinstance(v, float) else str(v) for k, v in row.items()}


def write(path: Path, rows: Iterator[Row]) -> list[Row]:
    """Write rows to a CSV file and print them as they come; return them as text.

    Ours: figures are copied by code, never by hand.
    """
    print(f"\n{path.name}")
    written = []
    for row in map(as_text, rows):
        written.append(row)
        print(
            " · ".join(f"{key} {value}" for key, value in row.items() if key not in NOT_PRINTED), flush=True
        )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    return written


def main() -> None:
    """Write all CSV files, or those asked for, and print them.

    Ours: the middle column of `paper says | published data, our code | our run`.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    names = ("table5", *PARTS)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the public samples")
    add("--out", type=Path, default=OUT, help="folder of the CSV files (default: data/reference)")
    add("--n-sample", type=int, default=N_SAMPLE, help="dialogues embedded a sample (default: %(default)s)")
    add("--only", nargs="+", choices=names, default=names, help="table5 writes beside_paper.csv too")
    chosen = parser.parse_args()
    if "table5" in chosen.only:
        cache = runs_folder() / "reference" / "embeddings.sqlite"
        cache.parent.mkdir(parents=True, exist_ok=True)
        rows = write(chosen.out / "table5.csv", table5_rows(chosen.data, chosen.n_sample, cache))
        write(chosen.out / "beside_paper.csv", beside_paper_rows(rows))
    for name, part in PARTS.items():
        if name in chosen.only:
            write(chosen.out / f"{name}.csv", part(chosen.data))


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(str(stop))
