"""Readers for the published data sets of Table 5, one small function per format.

A reader takes one row (a JSON object) and returns its turns, pairs of role and text; `read` does the
rest for all of them alike and gives `Dialogue` records:

    reading = read("alpaca_data.json")          # a JSON array or JSONL; format seen from the first row
    dialogues = list(reading)
    print(reading.summary())                    # 52,002 rows: 51,974 dialogues, 28 with an empty message, …

Every row is accounted for: a dialogue, a row with an empty message, or a bad row, which is named.
Texts are kept as published (Alpaca's literal "<noinput>" too).

Absent on purpose: downloading, parquet, compressed files, cleaning of texts, and streaming of JSON
arrays (an array is held in memory; JSONL is read line by line).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ultrachat.errors import Stop
from ultrachat.records import MAX_LINE_BYTES, Dialogue, first_problem, from_texts

Row = dict[str, Any]
Turns = list[tuple[str, str]]

MAX_PROBLEMS_KEPT = 20
BOM = b"\xef\xbb\xbf"  # editors on Windows put it in front of UTF-8; json.loads skips it in bytes
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class BadRow(ValueError):
    """A row that is not of its format; the message names the field and what was expected.

    Ours: a published file of a million rows has some that are broken.
    """


# ---- one reader per format --------------------------------------------------------------------


def alpaca(row: Row) -> Turns:
    """Return the turns of a Stanford Alpaca row, the input on the line after the instruction.

        {"instruction": "Sort by length", "input": "pear, fig, banana", "output": "fig, pear, banana"}

    Ours: the paper does not say how the two are joined. Table 5's 91.1 tokens a dialogue lie between
    what a line break gives (0.26 above) and a space (0.18 below); an empty line is further off.
    """
    return _instruction(row, "instruction", "input", "output")


def gpt4llm(row: Row) -> Turns:
    """Return the turns of a GPT-4-LLM row: Alpaca's prompts and form, answers by GPT-4.

        {"instruction": "Name two rivers of Europe.", "input": "", "output": "Two rivers of Europe are …"}

    Ours: joined as in `alpaca`.
    """
    return alpaca(row)


def belle(row: Row) -> Turns:
    """Return the turns of a BELLE row: Alpaca's form in Chinese, the input always empty.

        {"instruction": "将以下句子翻译成英文。\\n我喜欢读书。", "input": "", "output": "I like reading."}

    Ours: joined as in `alpaca`.
    """
    return alpaca(row)


def dolly(row: Row) -> Turns:
    """Return the turns of a databricks-dolly-15k row, the context on the line after the instruction.

        {"instruction": "When did it open?", "context": "The bridge opened in 1932.", "response": "In 1932.",
         "category": "closed_qa"}

    Ours: not in Table 5; joined as in `alpaca`.
    """
    return _instruction(row, "instruction", "context", "response")


def ultrachat(row: Row) -> Turns:
    """Return the turns of a row of UltraChat as its authors released it, the user first.

        {"id": "0", "data": ["How can I cook rice?", "Rinse it first …", "And brown rice?", "It takes …"]}

    Paper: the format of thunlp/UltraChat.
    """
    texts = _field(row, "data", list)
    for position, text in enumerate(texts):
        _check(text, f"data[{position}]", str)
    return [(("user", "assistant")[position % 2], text) for position, text in enumerate(texts)]


def ultrachat_200k(row: Row) -> Turns:
    """Return the turns of an ultrachat_200k row; `prompt`, where present, repeats the first message.

        {"prompt": "Hi …", "prompt_id": "f0e3…", "messages": [{"content": "Hi …", "role": "user"},
         {"content": "Hello …", "role": "assistant"}]}

    Ours: the form of chat templates, see `records.to_messages`.
    """
    return _speakers(row, "messages", "role", "content")


def sharegpt(row: Row) -> Turns:
    """Return the turns of a ShareGPT row, as its many dumps have it.

        {"id": "a1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}

    Ours: not in Table 5; the data of the trained user simulators.
    """
    return _speakers(row, "conversations", "from", "value")


def _instruction(row: Row, instruction: str, extra: str, answer: str) -> Turns:
    asked = _field(row, instruction, str)
    if row.get(extra) not in (None, ""):
        asked += "\n" + _field(row, extra, str)
    return [("user", asked), ("assistant", _field(row, answer, str))]


def _speakers(row: Row, field: str, speaker_key: str, text_key: str) -> Turns:
    turns = []
    for position, message in enumerate(_field(row, field, list)):
        where = f"{field}[{position}]"
        _check(message, where, dict)
        speaker = _field(message, speaker_key, str, where + ".")
        if speaker not in ROLES:
            raise BadRow(
                f"field '{where}.{speaker_key}': '{speaker[:40]}', expected one of {', '.join(ROLES)}"
            )
        turns.append((ROLES[speaker], _field(message, text_key, str, where + ".")))
    return turns


def _field(row: Row, name: str, kind: type, prefix: str = "") -> Any:
    if name not in row:
        raise BadRow(f"field '{prefix}{name}' is missing")
    return _check(row[name], prefix + name, kind)


def _check(value: Any, name: str, kind: type) -> Any:
    if not isinstance(value, kind):
        expected = {str: "a text", list: "a list", dict: "an object"}[kind]
        raise BadRow(f"field '{name}': a {type(value).__name__}, expected {expected}")
    return value


READERS: dict[str, Callable[[Row], Turns]] = {
    "alpaca": alpaca,
    "gpt4llm": gpt4llm,
    "belle": belle,
    "dolly": dolly,
    "ultrachat": ultrachat,
    "ultrachat_200k": ultrachat_200k,
    "sharegpt": sharegpt,
}
OWN = "own"  # `Dialogue` records as `records.to_jsonl` writes them
FORMATS = (*READERS, OWN)


def guess_format(row: Row) -> str | None:
    """Return the name of the format whose fields `row` has, None if it is none of them.

    GPT-4-LLM and BELLE have Alpaca's fields and are read the same way: all three are "alpaca".

    Ours: saves naming the format of a file that shows it.
    """
    if {"messages", "id", "sector"} <= row.keys():
        return OWN
    for name, fields in (
        ("dolly", {"instruction", "context", "response"}),
        ("alpaca", {"instruction", "output"}),
        ("ultrachat", {"data"}),
        ("ultrachat_200k", {"messages"}),
        ("sharegpt", {"conversations"}),
    ):
        if fields <= row.keys():
            return name
    return None


# ---- reading a file ---------------------------------------------------------------------------


def read(path: Path | str, format: str | None = None, *, strict: bool = False) -> Reading:
    """Return an iterator over the dialogues of the file at `path`, which counts what it met.

    `format` is one of `FORMATS`, guessed from the first row when None. A bad row is named in
    `Reading.problems` and counted; with `strict` it raises Stop. Raises Stop as well when the file
    cannot be read, its format cannot be guessed, or not one row is of its format.

    Ours: the paper lists the data sets and not how they were read.
    """
    return Reading(path, format, strict)


class Reading(Iterator[Dialogue]):
    """Dialogues of one file in order, and the counts so far, complete once it is exhausted.

    n_rows = n_dialogues + n_empty + n_bad. `n_empty` counts rows set aside because one of their
    messages is blank (a missing answer has no length to average); `n_left_out` counts single
    messages left out of dialogues: system messages, an assistant's before the first user message,
    and a last user message without answer. `problems` holds the first bad rows, one line each.

    Ours: no row disappears without a count.
    """

    def __init__(self, path: Path | str, format: str | None, strict: bool) -> None:
        self.path, self.strict = Path(path), strict
        self.n_rows = self.n_dialogues = self.n_empty = self.n_bad = self.n_left_out = 0
        self.problems: list[str] = []
        self._rows = _raw_rows(self.path)
        self.format = self._guessed() if format is None else format
        if self.format not in FORMATS:
            raise Stop(f"format '{self.format}': expected one of {', '.join(FORMATS)}")

    def _guessed(self) -> str:
        first = next(self._rows, None)
        if first is None:  # an empty file has no dialogues in any format
            return OWN
        self._rows = chain([first], self._rows)
        where, raw = first
        try:
            row = _object(raw)
        except BadRow as problem:
            raise Stop(f"{where}: {problem}; the first row is needed to see the format") from None
        guess = guess_format(row)
        if guess is None:
            fields = ", ".join(map(repr, list(row)[:8])) or "none"
            raise Stop(f"{where}: fields {fields} are of no known format ({', '.join(FORMATS)})")
        return guess

    def __next__(self) -> Dialogue:
        for where, raw in self._rows:
            self.n_rows += 1
            try:
                dialogue = self._dialogue(_object(raw))
            except BadRow as problem:
                self._note(f"{where}: {problem}")
                continue
            if dialogue is None:
                self.n_empty += 1
                continue
            self.n_dialogues += 1
            return dialogue
        if self.n_rows and self.n_bad == self.n_rows:
            raise Stop(f"no row is of the format '{self.format}'; the first: {self.problems[0]}")
        raise StopIteration

    def _note(self, line: str) -> None:
        if self.strict:
            raise Stop(f"{line} (format '{self.format}')")
        self.n_bad += 1
        if len(self.problems) < MAX_PROBLEMS_KEPT:
            self.problems.append(line)

    def _dialogue(self, row: Row) -> Dialogue | None:
        """Return the row's dialogue, None where a message is blank; raise BadRow."""
        if self.format == OWN:
            try:
                return Dialogue.model_validate(row)
            except ValidationError as error:
                raise BadRow(first_problem(error)) from None
        turns = READERS[self.format](row)
        kept = _alternating(turns)
        if not all(text.strip() for _, text in kept):
            return None
        self.n_left_out += len(turns) - len(kept)
        own_id = row.get("id", row.get("prompt_id"))
        return from_texts([text for _, text in kept], parent=None if own_id is None else str(own_id))

    def summary(self) -> str:
        """Return the counts as one line.

        Ours: printed under every table made from a file.
        """
        return (
            f"{self.n_rows:,} rows: {self.n_dialogues:,} dialogues, {self.n_empty:,} with an empty message, "
            f"{self.n_bad:,} bad; {self.n_left_out:,} messages left out of dialogues"
        )


def _alternating(turns: Turns) -> Turns:
    """Return the turns as whole rounds, without system messages and unpaired ends; raise BadRow."""
    kept: Turns = []
    for position, (role, text) in enumerate(turns):
        if role == "system" or (role == "assistant" and not kept):
            continue
        if kept and kept[-1][0] == role:
            raise BadRow(f"message {position + 1}: two by the {role} in a row, expected alternation")
        kept.append((role, text))
    kept = kept[: len(kept) - len(kept) % 2]
    if not kept:
        raise BadRow("no user message with an answer")
    return kept


def _raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Return an iterator over (place, row): undecoded lines of JSONL, elements of a JSON array."""
    try:
        with path.open("rb") as file:
            head = file.read(4_096).removeprefix(BOM).lstrip()
    except OSError as error:
        raise Stop(f"{path}: cannot be read ({error.strerror})") from None
    return _elements(path) if head.startswith(b"[") else _lines(path)


def _elements(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Stop(f"{path}: not a JSON array ({str(error)[:120]})") from None
    for position, row in enumerate(rows):
        yield f"{path}[{position}]", row


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = line
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):  # skip what is left of a giant
                rest = file.readline(MAX_LINE_BYTES + 1)
            if line.strip():
                yield f"{path}:{number}", line


def _object(raw: Any) -> Row:
    if isinstance(raw, bytes):
        if len(raw) > MAX_LINE_BYTES:
            raise BadRow(f"line longer than {MAX_LINE_BYTES:,} bytes, expected one row a line")
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"not JSON ({str(error)[:120]})") from None
    if not isinstance(raw, dict):
        raise BadRow(f"a JSON {type(raw).__name__}, expected an object")
    return raw
