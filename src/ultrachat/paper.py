"""What the paper prints, and the table that closes every notebook: paper | published data | our run.

    paper.table("table7_segments")                             # a DataFrame: numbers to compute with
    paper.printed("table5_statistics", "UltraChat", "rounds")  # "3.8": one figure with the paper's own digits
    paper.side_by_side(
        [
            paper.Row("dialogues", paper=1_468_352, ours=90, comparable="no: size of the run"),
            paper.Row("rounds per dialogue", paper="3.8", published=3.848, ours=3.2, digits=2, comparable=True),
        ]
    )

The middle column answers "is our metric right?", the last figure "is our data like theirs?", and no
row goes without saying whether its figures may be compared: a count from a small run may not, a rate
may. The paper's tables are typed once, in `data/paper` (see its README for sources and known errors).

Absent on purpose: verdicts. Whether 3.2 is close to 3.8 is for the reader to judge.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from ultrachat.errors import Stop
from ultrachat.runs import DATA

FOLDER = DATA / "paper"
MISSING = "–"
COLUMNS = ("quantity", "paper says", "published data, our code", "our run", "comparable")
PROSE = ("quantity", "comparable")  # columns that are read from the left; figures align to the right
Value = int | float | str | None


# ---- the tables -------------------------------------------------------------------------------


def table(name: str) -> pd.DataFrame:
    """Return `data/paper/<name>.csv` as a frame: numbers as numbers, empty cells as NaN, text as printed.

    Raises Stop naming the available tables when there is none of that name.

    Paper: Tables 1–9 and 20, §4, as the README in data/paper lists.
    """
    return pd.read_csv(_path(name), keep_default_na=False, na_values=[""])


def printed(name: str, row: str, column: str) -> str:
    """Return one cell of a table as text with the digits it was printed with, "–" if it is empty.

    `row` is matched against the first column. Whole numbers get thousands separators: "1,468,352".
    Raises Stop naming the rows or columns there are when there is no such cell.

    Paper: Tables 1–9 and 20, §4; 0.50 must not become 0.5, nor 3.8 become 3.80.
    """
    frame = pd.read_csv(_path(name), dtype=str, keep_default_na=False)
    key = frame.columns[0]
    if column not in frame.columns:
        raise Stop(f"column: {name} has no {column!r}; it has {', '.join(frame.columns)}")
    found = frame.loc[frame[key] == row, column]
    if len(found) != 1:
        raise Stop(f"row: {name} has no {key} {row!r}; it has {', '.join(frame[key])}")
    text = found.iloc[0]
    return f"{int(text):,}" if re.fullmatch(r"\d{4,}", text) else text or MISSING


def _path(name: str) -> Path:
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
    if name not in paths:
        there = ", ".join(paths) or f"none in {FOLDER} (install with `pip install -e .` from the repository)"
        raise Stop(f"name: no table {name!r} of the paper; there are: {there}")
    return paths[name]


# ---- the closing table ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a closing table.

    `paper`, `published` and `ours` are numbers, ready text, or None where there is nothing to show.
    `digits` is the number of decimals of the two measured figures; whole numbers have none, and a
    number of the paper keeps its own. `published_by` marks a middle figure that is not our code on
    published data but, say, a count in the authors' "repository". `comparable` is True, or
    "yes: reason", or "no: reason". Raises Stop naming the field that is something else.

    Ours: a figure without the word whether it may be compared misleads.
    """

    quantity: str
    _: KW_ONLY
    comparable: bool | str
    paper: Value = None
    published: Value = None
    ours: Value = None
    digits: int = 2
    published_by: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.quantity, str) or not self.quantity.strip():
            raise Stop(f"quantity: expected the name of what was measured, got {self.quantity!r}")
        where = f"row {self.quantity!r}"
        if isinstance(self.digits, bool) or not isinstance(self.digits, int) or not 0 <= self.digits <= 9:
            raise Stop(f"{where}, digits: expected a whole number from 0 to 9, got {self.digits!r}")
        for name in ("paper", "published", "ours"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (_is_missing(value) or isinstance(value, str | Real)):
                raise Stop(f"{where}, {name}: expected a number, text or None, got {value!r}")
        ready = isinstance(self.comparable, str) and re.match(r"yes$|(yes|no):\s*\S", self.comparable)
        if self.comparable is not True and not ready:
            raise Stop(f"{where}, comparable: expected True or 'no: reason', got {self.comparable!r}")


class SideBySide(pd.DataFrame):
    """A closing table: a DataFrame of text that shows itself whole, with words left and figures right.

    Selecting from it gives an ordinary DataFrame.

    Ours: pandas cuts long cells, and the reason behind a "no" is the cell that must be read.
    """

    def __repr__(self) -> str:
        cells = [list(map(str, self.columns)), *([_shown(v) for v in row] for row in self.to_numpy())]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = [column not in PROSE for column in self.columns]
        lines = (
            "  ".join(
                c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in cells
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        aligned = ["left" if column in PROSE else "right" for column in self.columns]

        def line(tag: str, values: Iterable[Any]) -> str:
            cells = (
                f"<{tag} style='text-align:{side};vertical-align:top'>{html.escape(_shown(value))}</{tag}>"
                for value, side in zip(values, aligned, strict=True)
            )
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(line("td", row) for row in self.to_numpy())
        # the class keeps MathJax from reading "$5 or $6" as a formula
        return f"<table class='mathjax_ignore'><thead>{line('th', self.columns)}</thead><tbody>{body}</tbody></table>"


def side_by_side(rows: Iterable[Row]) -> SideBySide:
    """Return the rows as a table of text with the columns of `COLUMNS`, missing figures as "–".

    Raises Stop when there are no rows, or when one is not a `Row`.

    Ours: the same five columns close every notebook.
    """
    rows = list(rows)
    if not rows:
        raise Stop("rows: expected at least one Row, got none")
    for row in rows:
        if not isinstance(row, Row):
            raise Stop(f"rows: expected Row objects, got {row!r}")
    return SideBySide([_cells(row) for row in rows], columns=list(COLUMNS))


def _cells(row: Row) -> list[str]:
    middle = _shown(row.published, row.digits)
    if row.published_by and middle != MISSING:
        middle = f"{middle} [{row.published_by}]"
    verdict = "yes" if row.comparable is True else row.comparable
    return [
        _one_line(row.quantity),
        _shown(row.paper),
        middle,
        _shown(row.ours, row.digits),
        _one_line(verdict),
    ]


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a frame as a Markdown table without its index: one line per row, no line break at the end.

    Columns of numbers and the figures of a closing table align to the right. Bars, line breaks and
    what would open an HTML tag are made harmless.

    Ours: the README's tables come from code (and need no further package).
    """
    closing = isinstance(frame, SideBySide)
    right = [
        column not in PROSE if closing else pd.api.types.is_numeric_dtype(frame[column])
        for column in frame.columns
    ]
    lines = [frame.columns, ["---:" if r else "---" for r in right], *frame.astype(object).to_numpy()]
    return "\n".join(
        "| " + " | ".join(_shown(v).replace("|", "\\|").replace("<", "&lt;") for v in line) + " |"
        for line in lines
    )


# ---- how a cell is written --------------------------------------------------------------------


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(value: Any, digits: int | None = None) -> str:
    """Return a cell as text; `digits` None leaves a number the decimals it has."""
    if _is_missing(value):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, Real):
        return _one_line(str(value))
    if isinstance(value, Integral):
        return f"{int(value):,}"
    return f"{float(value):,}" if digits is None else f"{float(value):z,.{digits}f}"
