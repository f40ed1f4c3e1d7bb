"""The formats of Table 5's data sets and their successors, one small function each.

A function takes one row (a JSON object) and returns its turns, pairs of role and text, as published:

    soda({"dialogue": ["Hi!", "Hello."], "speakers": ["Ana", "Ben"], …})
    # [("user", "Hi!"), ("assistant", "Hello.")]

What makes a dialogue of turns (alternation, whole rounds, no system messages) is the same for all and
stands in `ultrachat.corpora`. Texts are kept as they are (Alpaca's literal "<noinput>" too).

Absent on purpose: files, cleaning of texts, and columns no statistic needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from ultrachat.records import SECTORS, Dialogue, first_problem

Row = dict[str, Any]
Turns = list[tuple[str, str]]

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
BY_PARITY = ("user", "assistant")
BAIZE_TAG = re.compile(r"\[\|(Human|AI)\|\]")


class BadRow(ValueError):
    """A row that is not of its format; the message names the field and what was expected.

    Ours: a published file of a million rows has some that are broken.
    """


def self_instruct(row: Row) -> Turns:
    """Return the turns of a row of Self-Instruct's all_instances_82K.jsonl, which has Alpaca's fields.

        {"instruction": "Is this a fruit?", "input": "carrot", "output": "No"}

    Ours: joined as in `alpaca`.
    """
    return alpaca(row)


def alpaca(row: Row) -> Turns:
    """Return the turns of a Stanford Alpaca row, the input on the line after the instruction.

        {"instruction": "Sort by length", "input": "pear, fig, banana", "output": "fig, pear, banana"}

    Ours: the paper does not say how the two are joined. Table 5's 91.1 tokens a dialogue lie between
    what a line break gives (0.26 above) and a space (0.18 below); an empty line is further off.
    """
    return _instruction(row, "instruction", "input", "output")


def gpt4llm(row: Row) -> Turns:
    """Return the turns of a GPT-4-LLM row, of the Alpaca or the Unnatural part: Alpaca's form, GPT-4's answers.

        {"instruction": "Name two rivers of Europe.", "input": "", "output": "Two rivers of Europe are …"}

    The Unnatural part has one more text, `label`. Which of the two is GPT-4's is in doubt (the README says
    "same format as Alpaca data", some users train on `label`, two open issues call the pairs mismatched);
    `output` is read and `label` is not.

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


def gpt4all(row: Row) -> Turns:
    """Return the turns of a row of GPT4ALL's prompt generations; `source` says where the prompt came from.

        {"prompt": "How do I sort a list?", "response": "Call sorted().", "source": "stackoverflow"}

    Ours: the prompt is the user's message as it stands, HTML marks included.
    """
    return [("user", _field(row, "prompt", str)), ("assistant", _field(row, "response", str))]


def soda(row: Row) -> Turns:
    """Return the turns of a SODA row: the first, third … utterance the user's, the others the assistant's.

        {"head": "PersonX misses the bus", "relation": "xWant", "tail": "to call a friend",
         "narrative": "Ana missed the bus and called Ben.", "dialogue": ["Can you fetch me?", "On my way."],
         "speakers": ["Ana", "Ben"], "PersonX": "Ana", "PersonY": "Ben", "PersonZ": ""}

    Position alone decides. `speakers` is not looked at: where one speaks twice in a row or a third joins
    in, nothing is merged and nothing is lost, and the roles keep alternating.

    Ours: SODA has two friends, no user and no assistant; 3.6 rounds need utterances paired by position.
    """
    return _by_parity(row, "dialogue")


def baize(row: Row) -> Turns:
    """Return the turns of a row of Baize's four files, which hold a dialogue as one text with tags.

        {"topic": "How do I sort a list?", "input": "The conversation between human and AI assistant.\\n[|Human|] How do I sort a list?\\n[|AI|] Call sorted().\\n[|Human|] "}

    The text before the first tag is the system's; the empty human tag at the end invites no message and
    is none. White space around a message belongs to the tags.

    Ours: the inverse of how Baize's authors wrote the files.
    """
    parts = BAIZE_TAG.split(_field(row, "input", str))
    if len(parts) == 1:
        raise BadRow("field 'input': no '[|Human|]', expected a text with Baize's tags")
    names = {"Human": "user", "AI": "assistant"}
    turns = [(names[tag], text.strip()) for tag, text in zip(parts[1::2], parts[2::2], strict=True)]
    if turns[-1] == ("user", ""):
        turns.pop()
    return [("system", parts[0].strip()), *turns] if parts[0].strip() else turns


def ultrachat(row: Row) -> Turns:
    """Return the turns of a row of UltraChat as its authors released it, the user first.

        {"id": "0", "data": ["How can I cook rice?", "Rinse it first …", "And brown rice?", "It takes …"]}

    Paper: the format of thunlp/UltraChat.
    """
    return _by_parity(row, "data")


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


def own(row: Row) -> Turns:
    """Return the turns of a `Dialogue` record as `records.to_jsonl` writes it.

        {"id": "8b51…", "sector": null, "parent": null, "messages": [{"role": "user", "content": "Hi"},
         {"role": "assistant", "content": "Hello"}], "persona": null, "stop": null, "role_exchanges": []}

    Ours: a run's own dialogues are measured like everybody's. Rows that show at a glance that they are
    such a record are not validated by pydantic, which takes longer than decoding them.
    """
    if _plainly_a_dialogue(row):
        return [(message["role"], message["content"]) for message in row["messages"]]
    try:
        dialogue = Dialogue.model_validate(row)
    except ValidationError as error:
        raise BadRow(first_problem(error)) from None
    return [(message.role, message.content) for message in dialogue.messages]


READERS: dict[str, Callable[[Row], Turns]] = {
    "self_instruct": self_instruct,
    "alpaca": alpaca,
    "gpt4llm": gpt4llm,
    "belle": belle,
    "dolly": dolly,
    "gpt4all": gpt4all,
    "soda": soda,
    "baize": baize,
    "ultrachat": ultrachat,
    "ultrachat_200k": ultrachat_200k,
    "sharegpt": sharegpt,
    "own": own,
}
OWN = "own"
FORMATS = tuple(READERS)


def guess_format(row: Row) -> str | None:
    """Return the name of the format whose fields `row` has, None if it is none of them.

    Self-Instruct, GPT-4-LLM and BELLE have Alpaca's fields and are read the same way: all are "alpaca".

    Ours: saves naming the format of a file that shows it.
    """
    text = row.get("input")
    if isinstance(text, str) and BAIZE_TAG.search(text) and "output" not in row:
        return "baize"
    for name, fields in (
        ("own", {"messages", "id", "sector"}),
        ("dolly", {"instruction", "context", "response"}),
        ("alpaca", {"instruction", "output"}),
        ("soda", {"dialogue", "speakers"}),
        ("ultrachat", {"data"}),
        ("ultrachat_200k", {"messages"}),
        ("sharegpt", {"conversations"}),
        ("gpt4all", {"prompt", "response"}),
    ):
        if fields <= row.keys():
            return name
    return None


# ---- what several formats share ---------------------------------------------------------------


def _instruction(row: Row, instruction: str, extra: str, answer: str) -> Turns:
    asked = _field(row, instruction, str)
    if row.get(extra) not in (None, ""):
        asked += "\n" + _field(row, extra, str)
    return [("user", asked), ("assistant", _field(row, answer, str))]


def _by_parity(row: Row, field: str) -> Turns:
    texts = _field(row, field, list)
    for position, text in enumerate(texts):
        _check(text, f"{field}[{position}]", str)
    return [(BY_PARITY[position % 2], text) for position, text in enumerate(texts)]


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


def _plainly_a_dialogue(row: Row) -> bool:
    """Return whether pydantic would certainly accept the row; False means that it has to be asked."""
    messages = row.get("messages")
    return (
        row.keys() <= Dialogue.model_fields.keys()
        and isinstance(row.get("id"), str)
        and row["id"] != ""
        and row.get("sector") in (None, *SECTORS)
        and all(row.get(name) is None or type(row[name]) is str for name in ("parent", "persona", "stop"))
        and row.get("role_exchanges", []) == []
        and isinstance(messages, list)
        and len(messages) >= 2
        and len(messages) % 2 == 0
        and all(
            isinstance(message, dict)
            and len(message) == 2
            and message.get("role") == BY_PARITY[position % 2]
            and isinstance(message.get("content"), str)
            and message["content"] != ""
            for position, message in enumerate(messages)
        )
    )
