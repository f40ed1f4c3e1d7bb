"""One progress bar for everything that takes long: plain text, the same in a terminal and a saved notebook.

Absent on purpose: ipywidgets, whose bars freeze at 0 % in saved notebooks.
"""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int, label: str | None, *, clock: bool) -> tqdm:
    """Return a bar of `total` steps, drawn unless `label` is None.

    With `clock` it shows times too, which make the saved outputs of two runs differ. It is drawn on a
    terminal's error stream, where it does not mix with what a command prints, and else on the output.

    Ours: a long step shows that it lives.
    """
    return tqdm(
        total=total,
        desc=label,
        disable=label is None,
        file=sys.stderr if sys.stderr.isatty() else sys.stdout,
        ascii=" #",
        ncols=78,
        mininterval=0.5,
        bar_format="{desc}: {bar} {n_fmt}/{total_fmt}" + (" [{elapsed}<{remaining}]" if clock else ""),
    )
