"""Our code's figures on published data, as committed in `data/reference`: is our metric right?

    reference.table("definitions")     # a CSV there as a frame
    reference.beside_paper()           # the paper's rows and ours, one line a data set, with a verdict

The data are not in the repository; `benchmarks/reference_table5.py` makes the files from them.

Absent on purpose: computing anything.
"""

from __future__ import annotations

import pandas as pd

from ultrachat import paper
from ultrachat.errors import Stop
from ultrachat.runs import DATA

COLUMNS = {
    "rounds": ("rounds", 2),
    "dialogue_tokens": ("dialogue length", 1),
    "utterance_tokens": ("utterance length", 1),
    "lexical_diversity": ("lexical diversity", 1),
}
OTHERS = {
    "UltraChat (short)": "short ones only: no estimate of the row above"
}  # of what is in no row of the paper


def table(name: str) -> pd.DataFrame:
    """Return `data/reference/<name>.csv` as a frame; raises Stop when there is none.

    Ours: the middle column of *paper says | published data, our code | our run*.
    """
    path = DATA / "reference" / f"{name}.csv"
    if not path.exists():
        raise Stop(f"{path}: not there; benchmarks/reference_table5.py writes it")
    return pd.read_csv(path)


def beside_paper() -> pd.DataFrame:
    """Return a line for each row of Table 5, and for samples that are in no row, as text to be shown.

    Cells: "ours ± standard error (paper)", or "– (paper)" where nobody had the data. `topic similarity` is
    ours alone: the paper's embedding is not named, and another one has another scale.

    Paper: Table 5; ours are the figures in front of the parentheses.
    """
    ours = table("table5").set_index("dataset")
    verdicts = table("verdicts").set_index("dataset")["verdict"]
    printed = paper.table("table5_statistics").set_index("dataset")
    lines = []
    others = [name for name in ours.index if name not in printed.index]
    for name in [*printed.index, *sorted(others, key=lambda name: name not in OTHERS)]:
        mine = ours.loc[name] if name in ours.index else None
        line = {"data set": name, "dialogues": "–" if mine is None else f"{mine['n_dialogues']:,}"}
        for column, (title, digits) in COLUMNS.items():
            cell = "–" if mine is None else f"{mine[column]:,.{digits}f} ± {mine[column + '_se']:,.{digits}f}"
            says = paper.printed("table5_statistics", name, column) if name in printed.index else "–"
            line[title] = f"{cell} ({says})"
        has_topic = mine is not None and mine["topic_n"] > 0
        line["topic similarity"] = (
            f"{mine['topic_similarity']:.3f} ± {mine['topic_similarity_se']:.3f}" if has_topic else "–"
        )
        line["verdict"] = verdicts.get(name, OTHERS.get(name, "not in the paper"))
        lines.append(line)
    return pd.DataFrame(lines)
