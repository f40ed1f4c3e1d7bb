"""Dialogues to rows of ids and labels, beside TRL: how fast, and what is lost on the way?

    python benchmarks/sft_preparation.py --data DIR

DIR holds the public samples and tokenizers, laid out as reference_table5.py says; without it the dialogues are
made up (release_text.py: nonsense of the release's lengths) and the tokenizer is a byte-level BPE trained on
them. TRL (`pip install trl`) is what `SFTTrainer` does to a data set of messages before training, with
`assistant_only_loss=True`, `max_length=2048` and UltraLLaMA's format written as a chat template; ours is
`splitting.split_all`, in that format and, from the same template, in the format "template".

Both begin with dialogues in memory and end with rows in memory, in one process. Rates are tokens of the whole
dialogues per CPU second (user and system, all threads); contestants take turns, medians. "First pass" is by a
new Encoder over text of which it knows nothing, "again" once it knows the pieces, as in the later parts of a long
file; "packed" adds `batching.pack`, which TRL's packing is compared with. Making an Encoder, or a trainer, is not in
it; the seconds that an Encoder takes are printed.

- times TRL: our tokens a second by those of TRL's fastest, unpacked or packed as ours is.
- learnt tokens kept: of those of the whole dialogues in the same format; a message's end mark is one of them.
- rounds lost: rounds of which no token is learnt any more.
- begin in mid-message: rows (documents of a pack) whose first token stands inside a message.
- differ from TRL: dialogues whose ids or labels, whole, are others than TRL's; for the same template it is 0 or
  a line on stderr, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics as medians
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ultrachat import corpora
from ultrachat.batching import pack
from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.sft import Encoder
from ultrachat.splitting import MAX_TOKENS, split_all
from ultrachat.tiny import tiny_llama, train_tokenizer

TURNS = 3
N_BATCHES, N_LONG_BATCHES = 2, 10  # of 256 made-up dialogues; the long set is for ours only
VOCAB_SIZE = 8_000
GOAL = 8  # times TRL
REAL = ("UltraChat (short), real", "ultrachat/ultrachat_200k_short_500.jsonl")
# UltraLLaMA's format, with the marks from which TRL takes what the assistant says
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '' if loop.first else '\\n' }}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + eos_token }}"
    "{% else %}{{ 'Assistant: ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
Row = tuple[np.ndarray, np.ndarray]  # ids and labels of one document

# ---- dialogues and tokenizers -----------------------------------------------------------------


def made_up(n_batches: int) -> list[Dialogue]:
    """Return dialogues of nonsense with the release's rounds and lengths."""
    from release_text import Writer

    writer = Writer()
    lines = [line for number in range(n_batches) for line in writer.batch(number).splitlines()]
    texts = [json.loads(line)["data"] for line in lines]
    return [Dialogue.from_rounds(list(zip(t[::2], t[1::2], strict=True))) for t in texts]


def tokenizers_of(data: Path | None, dialogues: Sequence[Dialogue]) -> dict[str, PreTrainedTokenizerBase]:
    """Return the tokenizers by name: one trained on the dialogues, and those found in the folder."""
    with TemporaryDirectory() as folder:
        texts = [m.content for d in dialogues for m in d.messages]
        found: dict[str, PreTrainedTokenizerBase] = {
            f"byte-level BPE of {VOCAB_SIZE:,}": train_tokenizer(texts, VOCAB_SIZE, folder)
        }
    folder = data / "tokenizers" if data else Path()
    if data and (folder / "gpt2_vocab.bpe").exists():
        found["GPT-2"] = _gpt2(folder)
    if data and (folder / "llama2_tokenizer.model").exists():
        found["LLaMA"] = _llama(folder / "llama2_tokenizer.model")
    for tokenizer in found.values():
        tokenizer.chat_template = TEMPLATE
    return found


def _gpt2(folder: Path) -> PreTrainedTokenizerBase:
    lines = (folder / "gpt2_vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    vocab = json.loads((folder / "gpt2_encoder.json").read_text(encoding="utf-8"))
    backend = Tokenizer(models.BPE(vocab, [tuple(line.split()) for line in lines]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def _llama(path: Path) -> PreTrainedTokenizerBase:
    from text_statistics import hugging_face_of

    backend = hugging_face_of(str(path))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


# ---- contestants ------------------------------------------------------------------------------


def ours(
    dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase, format: str
) -> dict[str, tuple[float, list[Example]]]:
    """Return the CPU seconds and the rows of the first pass, of another, and of packing besides."""
    encoder = Encoder(tokenizer, format=format)
    first, again = timed(lambda: _split(dialogues, encoder)), timed(lambda: _split(dialogues, encoder))
    packing, _ = timed(lambda: pack(again[1], MAX_TOKENS))
    return {"first pass": first, "again": again, "again, packed": (again[0] + packing, again[1])}


def _split(dialogues: Sequence[Dialogue], encoder: Encoder) -> list[Example]:
    return split_all(dialogues, encoder, MAX_TOKENS)[0]


def trl(
    dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None, packing: str
) -> tuple[float, list[Row]]:
    """Return the CPU seconds of SFTTrainer's preparation and its documents; `packing` "" for none."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    seconds = []

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            taken, dataset = timed(lambda: super(Timed, self)._prepare_dataset(*args, **kwargs))
            seconds.append(taken)
            return dataset

    messages = [[{"role": m.role, "content": m.content} for m in d.messages] for d in dialogues]
    model = tiny_llama(tokenizer, hidden_size=16, n_layers=1, n_heads=2)  # never trained
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = SFTConfig(
            output_dir=folder, max_length=max_tokens, assistant_only_loss=True, packing=bool(packing),
            packing_strategy=packing or "bfd", bf16=False, use_cpu=True, report_to=[],
        )  # fmt: skip
        trainer = Timed(
            model, config, train_dataset=datasets.Dataset.from_dict({"messages": messages}),
            processing_class=tokenizer,
        )  # fmt: skip
    return seconds[0], _documents(trainer.train_dataset)


def _documents(dataset: Any) -> list[Row]:
    """Return the rows of a prepared data set; of packs their documents."""
    rows = []
    for row in dataset.with_format("numpy"):
        ends = np.cumsum(row["seq_lengths"])[:-1] if "seq_lengths" in row else []
        rows += zip(np.split(row["input_ids"], ends), np.split(row["labels"], ends), strict=True)
    return rows


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of this process that a call takes, and its result."""
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


# ---- what became of the dialogues -------------------------------------------------------------


def kept(rows: Sequence[Row], whole: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the cells that say what rows keep of whole dialogues."""
    n_learnt, n_all = (sum(int((labels != IGNORE_INDEX).sum()) for _, labels in r) for r in (rows, whole))
    # a document that begins with a learnt token goes on with a message that another one began
    n_rounds, n_whole = (sum(_n_begun(labels) for _, labels in r) for r in (rows, whole))
    in_mid = sum(_in_mid_message(ids, tokenizer) for ids, _ in rows)
    lost = 0 if n_learnt == n_all else n_whole - n_rounds
    return {
        "learnt tokens kept": f"{100 * n_learnt / n_all:.2f} %",
        "rounds lost": f"{lost:,} of {n_whole:,}",
        "begin in mid-message": f"{in_mid:,} of {len(rows):,}",
    }


def _n_begun(labels: np.ndarray) -> int:
    learnt = labels != IGNORE_INDEX
    return int((learnt[1:] & ~learnt[:-1]).sum())


def _in_mid_message(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> bool:
    if ids[0] == tokenizer.bos_token_id:
        return False
    return not tokenizer.decode(ids[:8].tolist()).lstrip().startswith(("User:", "Assistant:"))


def n_different(some: Sequence[Row], others: Sequence[Row]) -> int:
    """Return how many rows differ in an id or a label."""
    pairs = zip(some, others, strict=True)
    return sum(not all(map(np.array_equal, one, other)) for one, other in pairs)


def pairs_of(examples: Sequence[Example]) -> list[Row]:
    """Return Examples as bare ids and labels."""
    return [(e.input_ids, e.labels) for e in examples]


# ---- the table --------------------------------------------------------------------------------


FORMATS = {"UltraLLaMA's format": "ultrallama", "its template": "template"}


class Contest:
    """What all contestants made of one set of dialogues, by one tokenizer: seconds of each turn, and the last rows."""

    def __init__(self, dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase) -> None:
        self.dialogues, self.tokenizer = dialogues, tokenizer
        self.seconds: dict[str, list[float]] = {}
        self.rows: dict[str, list[Row]] = {}
        self.whole: dict[str, list[Row]] = {}  # the dialogues uncut, in the contestant's format
        self._uncut = {
            f: pairs_of(Encoder(tokenizer, format=f).encode_all(dialogues)) for f in FORMATS.values()
        }

    def note(self, by: str, taken: float, rows: list[Row], whole: list[Row]) -> None:
        """Keep what a contestant took and made."""
        self.seconds.setdefault(by, []).append(taken)
        self.rows[by], self.whole[by] = rows, whole

    def turn(self, peer: bool) -> None:
        """Let each contestant do it once."""
        for packing in ("", "bfd", "bfd_split") if peer else ():
            by = f"TRL, packing {packing}" if packing else "TRL"
            self.note(by, *trl(self.dialogues, self.tokenizer, MAX_TOKENS, packing), self._uncut["template"])
        for words, format in FORMATS.items():
            for part, (taken, examples) in ours(self.dialogues, self.tokenizer, format).items():
                self.note(f"ours, {words}, {part}", taken, pairs_of(examples), self._uncut[format])

    def first_pass_over(self, long: Sequence[Dialogue]) -> None:
        """Let ours alone go through more dialogues."""
        whole = pairs_of(Encoder(self.tokenizer).encode_all(long))
        encoder = Encoder(self.tokenizer)
        taken, examples = timed(lambda: _split(long, encoder))
        by = f"ours, UltraLLaMA's format, first pass over {len(long):,} dialogues"
        self.note(by, taken, pairs_of(examples), whole)

    def rate(self, by: str) -> float:
        """Return a contestant's tokens per CPU second, context that ours repeats not counted."""
        return sum(len(ids) for ids, _ in self.whole[by]) / medians.median(self.seconds[by])

    def times_trl(self, by: str) -> str:
        """Return the rate in multiples of TRL's best, packed or not; "" without TRL and for TRL."""
        peers = [b for b in self.rows if b.startswith("TRL") and ("pack" in b) == ("packed" in by)]
        if by in peers or not peers or by.startswith("TRL"):
            return ""
        return f"{self.rate(by) / max(map(self.rate, peers)):.1f}"

    def n_unlike_trl(self) -> str:
        """Return how many dialogues, whole, have other ids or labels than TRL makes of them."""
        theirs = trl(self.dialogues, self.tokenizer, None, "")[1]
        return f"{n_different(self._uncut['template'], theirs):,} of {len(theirs):,}"


def rows_of(
    names: dict[str, str], dialogues: Sequence[Dialogue], long: Sequence[Dialogue],
    tokenizer: PreTrainedTokenizerBase, peer: bool,
) -> list[dict[str, str]]:  # fmt: skip
    """Return the table's rows for one set of dialogues and one tokenizer; `long` is more of them, if there is."""
    contest = Contest(dialogues, tokenizer)
    for _ in range(TURNS):
        contest.turn(peer)
    if long:
        contest.first_pass_over(long)
    unlike = contest.n_unlike_trl() if peer else ""
    table = []
    for by in contest.rows:
        is_ours = by.startswith("ours")
        cells = {
            "by": by,
            "CPU seconds": f"{medians.median(contest.seconds[by]):.2f}",
            "thousand tokens per CPU second": f"{contest.rate(by) / 1e3:,.0f}",
            "times TRL": contest.times_trl(by),
            **kept(contest.rows[by], contest.whole[by], tokenizer),
            "differ from TRL": unlike if is_ours and "template" in by else "",
            "goal": f"{GOAL}, none lost" if is_ours else "",
        }
        table.append(names | cells)
        print(table[-1], flush=True)
    return table


def run(data: Path | None) -> int:
    """Write the table; return 1 if the template's rows are not TRL's."""
    from common import machine_line, write_table

    peer = importlib.util.find_spec("trl") is not None
    logging.getLogger("ultrachat").setLevel(
        logging.ERROR
    )  # rounds that were cut: the table counts what is lost
    long = made_up(N_LONG_BATCHES)
    sets = {"made up, lengths of the release": (long[: 256 * N_BATCHES], long)}
    if data and (data / REAL[1]).exists():
        sets[REAL[0]] = list(corpora.read(data / REAL[1])), []
    rows = []
    for tokenizer_name, tokenizer in tokenizers_of(data, long[: 256 * N_BATCHES]).items():
        begun, _ = timed(lambda t=tokenizer: Encoder(t))
        begun_again, _ = timed(lambda t=tokenizer: Encoder(t, format="template"))
        print(f"{tokenizer_name}: Encoders made in {begun:.2f} and {begun_again:.2f} CPU s", flush=True)
        for name, (dialogues, more) in sets.items():
            names = {"dialogues": name, "tokenizer": tokenizer_name}
            rows += rows_of(names, dialogues, more, tokenizer, peer)
    if not peer:
        print("TRL is not installed (pip install trl): measured without it, no table written")
        return 0
    packages = (f"{name} {version(name)}" for name in ("trl", "transformers", "tokenizers"))
    print(write_table("sft_preparation", rows, machine_line(*packages)))
    wrong = [row for row in rows if row["differ from TRL"] and not row["differ from TRL"].startswith("0 of")]
    for row in wrong:
        print(f"other ids or labels than TRL's: {row}", file=sys.stderr)
    return bool(wrong)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the public samples and tokenizers")
    sys.exit(run(parser.parse_args().data))


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(str(stop))
