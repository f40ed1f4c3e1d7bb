"""The statistics of Table 5 beside what one would otherwise use: the same numbers, and how much faster?

    python benchmarks/text_statistics.py --data DIR --folder FOLDER

DIR holds the public samples, laid out as reference_table5.py says; FOLDER takes 2 GB for the time of the run.
Rates are megabytes (10**6 bytes of UTF-8) per CPU second of the process, so per core, whatever else the
machine does. Contestants take turns, five times round unless said otherwise, in one process; medians. Numbers are
compared in the same run, and one that differs where it must not is named and the exit status is 1.

- lexical_diversity: `LexicalRichness(text).mtld(threshold=0.72)`, with None for its ZeroDivisionError, against
  `lexical.mtlds`, on the assistant messages of real samples and on random strings of awkward characters.
- token_counts: LLaMA's SentencePiece over all messages of the samples: the package sentencepiece and Hugging Face's
  tokenizers (LLaMA's published configuration), in batches of 1,000, against `token_counter(…).many`: "first
  pass" by a new counter over text of which it knows nothing, "again" once it knows the pieces.
- topic_diversity: 10,000 random vectors of 1,536 float32, each method in a process of its own; scipy's, which
  take a minute, once. Ours goes through the vectors twice, for the jackknife error too; its memory in the last
  row includes the file's own pages.
- table5_row: rounds, dialogue tokens with labels, utterance tokens and MTLD of the same JSONL file on one process, by a
  plain loop with those packages and by `measure` from its start, with the sample of 10,000; first the samples,
  then 100 MB made up by release_text.py, where pieces met before are the rule as in a long file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics as medians
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
from release_size import N_RELEASED, ran, write_vectors
from release_text import SAMPLES, Writer, texts_of

from ultrachat.corpora import Reading, seen_format
from ultrachat.corpora.files import rows as rows_of
from ultrachat.errors import Stop
from ultrachat.lexical import mtlds
from ultrachat.measure import Plan, measure
from ultrachat.statistics import definition, labelled_text
from ultrachat.tokens import token_counter
from ultrachat.topics import topic_diversity

TURNS = 5
ENGLISH = dict(zip(("Alpaca", "Dolly", "UltraChat (short)"), SAMPLES, strict=True))
CHINESE = {"ShareGPT (Chinese)": "sharegpt/sharegpt_zh_300.jsonl"}
N_FUZZED = 30_000
MADE_UP_BYTES = 100e6
TOPICS_SHAPE = 10_000, 1_536
AT_ONCE = 1_000
# the goals, as multiples of the peer's rate
MTLD_GOAL, TOKENS_GOAL, ROW_GOAL, PDIST_GOAL, BLAS_GOAL = 10, 5, 5, 1_000, 30

# ---- contestants take turns -------------------------------------------------------------------


def taking_turns(
    contestants: dict[str, Callable[[], Any]], turns: int = TURNS
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return each contestant's median CPU seconds and what it returned at last."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results: dict[str, Any] = {}
    for _ in range(turns):
        for name, run in contestants.items():
            began = time.process_time()
            results[name] = run()
            seconds[name].append(time.process_time() - began)
    return {name: medians.median(times) for name, times in seconds.items()}, results


def size_of(texts: Sequence[str]) -> float:
    """Return the megabytes of some texts."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6


def dialogues_of(path: Path) -> list[list[str]]:
    """Return the texts of each dialogue of a file."""
    return list(Reading(rows_of(path), seen_format(path)).texts())


def share(part: float) -> str:
    """Return a ratio as the tables print it."""
    return f"{part:,.1f}" if part < 100 else f"{part:,.0f}"


# ---- lexical diversity ------------------------------------------------------------------------


def peers_mtld(texts: Sequence[str]) -> list[float | None]:
    """Return the MTLD of each text by the package LexicalRichness, None where it fails for want of words."""
    from lexicalrichness import LexicalRichness

    values = []
    for text in texts:
        try:
            values.append(LexicalRichness(text).mtld(threshold=0.72))
        except ZeroDivisionError:
            values.append(None)
    return values


def n_different(peers: Sequence[float | None], ours: np.ndarray) -> int:
    """Return how many values differ in any bit; None and NaN say the same."""
    theirs = np.array([np.nan if value is None else value for value in peers])
    return int((~((theirs == ours) | (np.isnan(theirs) & np.isnan(ours)))).sum())


def fuzzed(n: int) -> list[str]:
    """Return strings of up to 60 characters of few awkward kinds, so that words repeat."""
    rng = np.random.default_rng(0)
    odd = [*"aAbB ..,'-_019\t\n\r", "\u2013", "\u2014", "\u00a0", "\u0085", "\u2003", "\u3000", "\u1680", "\u2028", "\u205f",
           "\u202f", "\u200b", "\u0130", "I\u0307", "\u03a3", "\u03c2", "\u00df", "\u1e9e", "\u01c5", "\u212a", "\ufb01", "e\u0301",
           "\u0660", "\u00b2", "\u4e2d", "\u3042", "\U0001f642", "\U00010400", "\ud800", "\x00", "\x1c", "\x1f", "\x7f"]  # fmt: skip
    texts = []
    for _ in range(n):
        few = rng.choice(len(odd), rng.integers(2, 12))
        texts.append("".join(odd[i] for i in rng.choice(few, rng.integers(0, 60))))
    return texts


def lexical_rows(data: Path) -> list[dict[str, str]]:
    """Return the table lexical_diversity."""
    rows = []
    mtlds(["compile it"])
    for name, path in (ENGLISH | CHINESE).items():
        texts = [text for texts in dialogues_of(data / path) for text in texts[1::2]]
        rows.append(_lexical_row(name, texts, TURNS, f"{MTLD_GOAL}, 0 differ"))
    rows.append(_lexical_row("random strings", fuzzed(N_FUZZED), 1, "0 differ"))
    return rows


def _lexical_row(name: str, texts: list[str], turns: int, goal: str) -> dict[str, str]:
    seconds, found = taking_turns({"peer": lambda: peers_mtld(texts), "ours": lambda: mtlds(texts)}, turns)
    size = size_of(texts)
    return {
        "texts": name,
        "n": f"{len(texts):,}",
        "MB": f"{size:.2f}",
        "without words": f"{sum(value is None for value in found['peer']):,}",
        "LexicalRichness MB per CPU second": f"{size / seconds['peer']:.1f}",
        "ours MB per CPU second": f"{size / seconds['ours']:.1f}",
        "times faster": share(seconds["peer"] / seconds["ours"]),
        "differ": str(n_different(found["peer"], found["ours"])),
        "goal": goal,
    }


# ---- token counts -----------------------------------------------------------------------------


@cache
def sentencepiece_of(model: str) -> Any:
    """Return the package sentencepiece's reading of LLaMA's file."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=model)


@cache
def hugging_face_of(model: str) -> Any:
    """Return Hugging Face's tokenizer of LLaMA's file, as in the tokenizer.json published with LLaMA.

    Built here because transformers 5 orders the merges of a bare .model file by position instead of score.
    """
    from tokenizers import Tokenizer, models, normalizers

    source = sentencepiece_of(model)
    scores = {source.id_to_piece(i): source.get_score(i) for i in range(source.get_piece_size())}
    ids = {piece: i for i, piece in enumerate(scores)}
    splits = ((piece[:cut], piece[cut:]) for piece in scores for cut in range(1, len(piece)))
    merges = [pair for pair in splits if pair[0] in ids and pair[1] in ids]
    merges.sort(key=lambda pair: (-scores["".join(pair)], ids[pair[0]], ids[pair[1]]))
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return tokenizer


def by_sentencepiece(model: str, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text."""
    encode = sentencepiece_of(model).encode
    batches = (texts[i : i + AT_ONCE] for i in range(0, len(texts), AT_ONCE))
    return [len(ids) for batch in batches for ids in encode(batch, num_threads=1)]


def by_hugging_face(model: str, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text."""
    encode = hugging_face_of(model).encode_batch_fast
    batches = (texts[i : i + AT_ONCE] for i in range(0, len(texts), AT_ONCE))
    return [len(found.ids) for batch in batches for found in encode(batch, add_special_tokens=False)]


def token_rows(data: Path, model: str) -> list[dict[str, str]]:
    """Return the table token_counts."""
    texts = [text for path in (ENGLISH | CHINESE).values() for text in texts_of(data / path)]
    new = iter([token_counter(model) for _ in range(TURNS)])
    known = token_counter(model)
    known.many(texts)
    contestants = {
        "Hugging Face tokenizers, batches": lambda: by_hugging_face(model, texts),
        "sentencepiece, batches": lambda: by_sentencepiece(model, texts),
        "ours, first pass": lambda: next(new).many(texts).tolist(),
        "ours, again": lambda: known.many(texts).tolist(),
    }
    seconds, found = taking_turns(contestants)
    size, (slow, *_) = size_of(texts), contestants
    return [
        {
            "counted by": name,
            "MB per CPU second": f"{size / seconds[name]:.1f}",
            "times Hugging Face's": share(seconds[slow] / seconds[name]),
            "texts": f"{len(texts):,}",
            "MB": f"{size:.1f}",
            "differ": str(
                sum(a != b for a, b in zip(found[name], found["sentencepiece, batches"], strict=True))
            ),
            "goal": f"{TOKENS_GOAL}, 0 differ" if name.startswith("ours") else "",
        }
        for name in contestants
    ]


# ---- topic diversity --------------------------------------------------------------------------


def by_pdist(vectors: np.ndarray) -> float:
    """Return the mean cosine over pairs by scipy, each pair once."""
    from scipy.spatial.distance import pdist

    return 1 - float(pdist(vectors, "cosine").mean())


def by_cdist(vectors: np.ndarray) -> float:
    """Return it by scipy's full matrix, whose diagonal is taken off."""
    from scipy.spatial.distance import cdist

    n = len(vectors)
    return 1 - float(cdist(vectors, vectors, "cosine").sum()) / (n * (n - 1))


def by_blocks(vectors: np.ndarray) -> float:
    """Return it by products of blocks of unit vectors, as BLAS likes it, in the vectors' own precision."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = sum(
        float((units[i : i + 1_000] @ units.T).sum(dtype=np.float64)) for i in range(0, len(units), 1_000)
    )
    n = len(vectors)
    return (total - n) / (n * (n - 1))


def by_ours(vectors: np.ndarray) -> float:
    """Return it in closed form."""
    return topic_diversity(vectors).similarity


METHODS = {
    "scipy cdist": by_cdist,
    "scipy pdist": by_pdist,
    "blocks of a matrix product": by_blocks,
    "ours": by_ours,
}


def part_topics(method: str, path: str, turns: str) -> dict[str, float]:
    """Measure one method in this process: median CPU seconds, mebibytes above what it began with."""
    vectors = np.load(path)
    METHODS[method](vectors[:100])  # imports, first call
    before = _peak_mebibytes()
    seconds, found = taking_turns({method: lambda: METHODS[method](vectors)}, int(turns))
    return {"cpu": seconds[method], "value": found[method], "mebibytes": _peak_mebibytes() - before}


def _peak_mebibytes() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def topic_rows(folder: Path) -> list[dict[str, str]]:
    """Return the table topic_diversity, the last row as many vectors as the release has dialogues."""
    path = folder / "vectors.npy"
    np.save(path, np.random.default_rng(0).standard_normal(TOPICS_SHAPE, np.float32) + np.float32(0.4))
    found = {}
    for method in METHODS:
        turns = 1 if method.startswith("scipy") else TURNS
        command = [sys.executable, __file__, "--part", method, str(path), str(turns)]
        found[method] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print(method, found[method], flush=True)
    ours, exact = found["ours"], found["scipy pdist"]
    goals = {"scipy pdist": PDIST_GOAL, "blocks of a matrix product": BLAS_GOAL}
    rows = [
        {
            "method": name,
            "vectors": f"{TOPICS_SHAPE[0]:,} × {TOPICS_SHAPE[1]:,}",
            "CPU seconds": f"{one['cpu']:.3f}",
            "more MiB": f"{one['mebibytes']:,.0f}",
            "ours is faster": share(one["cpu"] / ours["cpu"]),
            "goal": f"{goals[name]:,}" if name in goals else "",
            "off from pdist": f"{abs(one['value'] - exact['value']):.0e}".replace("0e+00", "0"),
        }
        for name, one in found.items()
    ]
    path.unlink()
    write_vectors(path, N_RELEASED)
    whole = ran("topics", file=path)
    path.unlink()
    rows.append(
        dict.fromkeys(rows[0], "")
        | {
            "method": "ours, float16 read from the disk, whole process",
            "vectors": f"{whole.found['n']:,} × 384",
            "CPU seconds": f"{whole.cpu:.1f}",
            "more MiB": f"{whole.mebibytes:,.0f}",
        }
    )
    return rows


# ---- the whole row ----------------------------------------------------------------------------

COLUMNS = tuple(definition(c) for c in ("rounds", "dialogue_tokens", "utterance_tokens", "lexical_diversity"))


def plain_row(path: Path, model: str, count: Callable[[str, Sequence[str]], list[int]]) -> list[float]:
    """Return the four means of a file as one would compute them: read it, count in batches, LexicalRichness."""
    with path.open(encoding="utf-8") as file:
        dialogues = [json.loads(line)["data"] for line in file]
    answers = [text for texts in dialogues for text in texts[1::2]]
    diversities = [value for value in peers_mtld(answers) if value is not None]
    return [
        medians.fmean(len(texts) // 2 for texts in dialogues),
        medians.fmean(1 + n for n in count(model, [labelled_text(texts) for texts in dialogues])),
        medians.fmean(count(model, answers)),
        medians.fmean(diversities),
    ]


def our_row(path: Path, model: str) -> list[float]:
    """Return the same by `measure`."""
    plan = Plan("ultrachat", model, tuple(d.key for d in COLUMNS))
    totals = measure(path, plan, processes=1, progress=False)
    return [totals.sums[d.key].mean().value for d in COLUMNS]


def row_rows(data: Path, folder: Path, model: str) -> list[dict[str, str]]:
    """Return the table table5_row."""
    real, made = folder / "samples.jsonl", folder / "made.jsonl"
    with real.open("w", encoding="utf-8") as file:
        for path in ENGLISH.values():
            for number, texts in enumerate(dialogues_of(data / path)):
                file.write(json.dumps({"id": str(number), "data": texts}) + "\n")
    writer = Writer()
    with made.open("wb") as file:
        for number in range(sys.maxsize):
            file.write(writer.batch(number))
            if file.tell() >= MADE_UP_BYTES:
                break
    rows = []
    for name, path, turns in (("real samples", real, 3), ("made up", made, 1)):
        contestants = {
            "LexicalRichness, Hugging Face tokenizers": lambda path=path: plain_row(
                path, model, by_hugging_face
            ),
            "LexicalRichness, sentencepiece": lambda path=path: plain_row(path, model, by_sentencepiece),
            "ours": lambda path=path: our_row(path, model),
        }
        seconds, found = taking_turns(contestants, turns)
        size, (slow, *_) = path.stat().st_size / 1e6, contestants
        for contestant in contestants:
            rows.append(
                {
                    "file": name,
                    "MB": f"{size:.1f}",
                    "by": contestant,
                    "CPU seconds": f"{seconds[contestant]:.1f}",
                    "MB per CPU second": f"{size / seconds[contestant]:.1f}",
                    "times the first": share(seconds[slow] / seconds[contestant]),
                    "greatest relative difference": f"{_apart(found[contestant], found[slow]):.0e}".replace(
                        "0e+00", "0"
                    ),
                    "goal": f"{ROW_GOAL}, stretch 12" if contestant == "ours" else "",
                }
            )
            print(rows[-1], found[contestant], flush=True)
        path.unlink()
    return rows


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(one, other, strict=True))


# ---- the whole --------------------------------------------------------------------------------


def run(data: Path, folder: Path, tables: Sequence[str]) -> int:
    """Write the tables; return 1 if numbers differ that must not."""
    from common import machine_line, write_table

    model = str(data / "tokenizers" / "llama2_tokenizer.model")
    makers: dict[str, tuple[Callable[[], list[dict[str, str]]], tuple[str, ...]]] = {
        "lexical_diversity": (lambda: lexical_rows(data), ("lexicalrichness",)),
        "token_counts": (lambda: token_rows(data, model), ("tokenizers", "sentencepiece")),
        "topic_diversity": (lambda: topic_rows(folder), ("scipy", "numpy")),
        "table5_row": (
            lambda: row_rows(data, folder, model),
            ("lexicalrichness", "tokenizers", "sentencepiece"),
        ),
    }
    wrong = []
    for name in tables:
        make, packages = makers[name]
        rows = make()
        print(*rows, sep="\n")
        print(
            write_table(name, rows, machine_line(*(f"{package} {version(package)}" for package in packages)))
        )
        wrong += [f"{name}: {row}" for row in rows if not _right(row)]
    for line in wrong:
        print(f"not equal: {line}", file=sys.stderr)
    return bool(wrong)


def _right(row: dict[str, str]) -> bool:
    """Whether the numbers of a row are the peer's; a product in float32 is not held to it, sums of floats are to 1e-9."""
    exact = row.get("differ", "0") == "0"
    off = row.get("off from pdist") or "0"
    topics = float(off) <= 1e-12 or row["method"].startswith("blocks")
    return exact and topics and float(row.get("greatest relative difference", "0")) <= 1e-9


TABLES = ("lexical_diversity", "token_counts", "topic_diversity", "table5_row")


def main() -> None:
    """Run the benchmark, or one part of it for the process that does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the public samples")
    parser.add_argument("--folder", type=Path, help="where 2 GB are free for files that are deleted again")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="only these")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(part_topics(*chosen.part)))
        return
    if chosen.data is None:
        parser.error("--data is needed")
    with TemporaryDirectory(dir=chosen.folder) as folder:
        sys.exit(run(chosen.data, Path(folder), chosen.tables))


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(str(stop))
