"""Records and their files: ids, alternation, formats, and one line for every broken file."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import records
from ultrachat.errors import Stop
from ultrachat.records import (
    Answer,
    Dialogue,
    Entity,
    Judgement,
    Material,
    Message,
    Opening,
    Question,
    Topic,
    content_id,
    from_texts,
    iter_rows,
    read_jsonl,
    sample_by_id,
    to_jsonl,
    to_messages,
    to_sharegpt,
    to_ultrachat,
)

ROUNDS = [("Hi there", "Hello!"), ("A fruit?", "A ripe pear.")]
TWO = Dialogue.from_rounds(ROUNDS)

texts = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=20)  # lone surrogates and NUL too


# ---- ids and samples --------------------------------------------------------------------------


def test_an_id_is_the_sha256_of_the_parts():
    assert content_id("a", "b") == hashlib.sha256(b"a\nb").hexdigest()[:16]
    assert TWO.id == content_id("Hi there", "Hello!", "A fruit?", "A ripe pear.")
    assert content_id("ä") != content_id("a\u0308") and len(content_id("\ud800")) == 16


def test_a_sample_is_the_first_in_id_order_whatever_the_order_given():
    topics = [Topic(id=content_id(str(i)), meta_topic="m", subtopic=str(i)) for i in range(50)]
    sample = sample_by_id(topics, 10)
    random.Random(1).shuffle(topics)
    assert sample_by_id(topics, 10) == sample == sorted(topics, key=lambda t: t.id)[:10]
    assert sample_by_id(topics, 99) == sample_by_id(topics, 50) and sample_by_id([], 3) == []


@given(st.lists(st.integers(0, 999), unique=True, max_size=40), st.integers(0, 20), st.integers(0, 999))
def test_a_newcomer_displaces_at_most_one(numbers, n, newcomer):
    topics = [Topic(id=content_id(str(i)), meta_topic="m", subtopic="s") for i in numbers]
    before = {t.id for t in sample_by_id(topics, n)}
    after = {t.id for t in sample_by_id([*topics, Topic(id=content_id("new", str(newcomer)), meta_topic="m", subtopic="s")], n)}  # fmt: skip
    assert len(before - after) <= 1


# ---- what a record accepts --------------------------------------------------------------------


def test_a_dialogue_alternates_and_ends_with_the_assistant():
    assert TWO.rounds == ROUNDS
    for roles in (["assistant", "user"], ["user", "user"], ["user"], [], ["user", "assistant", "user"]):
        with pytest.raises(ValueError):
            Dialogue(id="d", messages=[Message(role=role, content="x") for role in roles])
    with pytest.raises(ValueError):
        Dialogue.from_rounds([("Hi", "")])


def test_records_are_frozen_and_refuse_unknown_fields():
    with pytest.raises(ValueError):
        TWO.id = "other"
    with pytest.raises(ValueError):
        Topic(id="a", meta_topic="b", subtopic="c", extra="d")


@pytest.mark.parametrize("identifier", ["937", "Q0", "Q", "q937", "Q937 ", "P31", "Q9a"])
def test_a_wikidata_id_is_q_and_a_number(identifier):
    with pytest.raises(ValueError):
        Entity(id="e", name="Albert Einstein", wikidata_id=identifier, popularity=1)


def test_verdicts_and_models_are_bounded():
    good = {"question_id": "q", "models": ("a", "b"), "scores": (8, 7.5), "verdict": "win", "raw": "8 7.5"}
    assert Judgement(**good).scores == (8.0, 7.5)
    for change in ({"verdict": "won"}, {"models": ()}, {"models": ("a", "b", "c")}, {"models": ("a", "")}):
        with pytest.raises(ValueError):
            Judgement(**{**good, **change})


@given(texts, texts)
def test_any_text_survives_the_file(tmp_path_factory, user, assistant):
    dialogue = Dialogue.from_rounds([(user, assistant)])
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text(to_jsonl([dialogue]), encoding="utf-8", newline="")
    assert read_jsonl(path, Dialogue) == [dialogue]
    clean = "".join("?" if 0xD800 <= ord(c) < 0xE000 else c for c in user.replace("\x00", "\ufffd"))
    assert dialogue.messages[0].content == clean


# ---- files ------------------------------------------------------------------------------------

ONE_OF_EACH = [
    Topic(id="a", meta_topic="Music", subtopic="Jazz"),
    Entity(id="a", name="Paris", wikidata_id="Q90", popularity=0),
    Material(id="a", url="https://a.example/blog", text="text\u2028more", intended_type=None),
    Opening(id="a", sector="creation_and_generation", route="writing", task="t", subject="s", parent="p", text="ü"),
    TWO,
    Dialogue.from_rounds(ROUNDS, sector="questions_about_the_world", parent="p", persona="casual", role_exchanges=(2,)),
    records.Dropped(drop_reason="r", dialogue=TWO),
    Answer(question_id="q", model="m", text=""),
    Question(id="q", segment="s", question="?"),
    Judgement(question_id="q", models=("a",), scores=(), verdict=None, raw=""),
]  # fmt: skip


@pytest.mark.parametrize("record", ONE_OF_EACH, ids=lambda record: type(record).__name__)
def test_every_record_comes_back_as_it_went(tmp_path, record):
    path = tmp_path / "a.jsonl"
    path.write_text(to_jsonl([record, record]), encoding="utf-8")
    assert read_jsonl(path, type(record)) == [record, record]
    assert to_jsonl(read_jsonl(path, type(record))) == path.read_text(encoding="utf-8")


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path):
    path = tmp_path / "a.jsonl"
    line = to_jsonl([ONE_OF_EACH[0]])
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\n  \n{line}".encode())
    assert read_jsonl(path, Topic) == [ONE_OF_EACH[0]] * 2


GOOD = '{"id": "a", "meta_topic": "Music", "subtopic": "Jazz"}'
BAD_TOPICS = {
    '{"id": "a", "meta_topic": "Music"}': "field 'subtopic' is missing",
    '{"id": "a", "meta_topic": "Music", "subtopic": 7}': "field 'subtopic'",
    '{"id": "a", "meta_topic": "Music", "subtopic": ""}': "field 'subtopic'",
    '{"id": "a", "meta_topic": "Music", "subtopic": "Jazz", "more": 1}': "field 'more'",
    '{"id": "a", "meta_topic": "Music", "subtopic": "Jazz"': "not JSON",
    "[1, 2]": "a JSON list, expected an object",
    "null": "expected an object",
    '"text"': "a JSON str",
    "not json": "not JSON",
    '{"id": ' + "[" * 100_000: "not JSON",
    '{"id": ' + "9" * 10_000 + "}": "not JSON",
}


@pytest.mark.parametrize("line", BAD_TOPICS, ids=lambda line: line[:40])
def test_a_bad_line_is_named_with_file_line_and_field(tmp_path, line):
    path = tmp_path / "topics.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(Stop) as stopped:
        read_jsonl(path, Topic)
    message = str(stopped.value)
    assert message.startswith(f"{path}:3: ") and BAD_TOPICS[line] in message
    assert len(message) < len(str(path)) + 300 and "\n" not in message


def test_a_field_inside_a_list_is_named_by_its_place(tmp_path):
    path = tmp_path / "d.jsonl"
    row = json.loads(to_jsonl([TWO]))
    row["messages"][1]["content"] = None
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(Stop, match=r"d\.jsonl:1: field 'messages\.1\.content'"):
        read_jsonl(path, Dialogue)


@pytest.mark.parametrize("content", [b"\xff\xfe", GOOD.encode("utf-16"), b'{"id": "\xe4"}', b"\x00\x00"])
def test_what_is_not_utf8_json_is_refused(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(Stop, match=r"a\.jsonl:1: "):
        read_jsonl(path, Topic)


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    exactly = GOOD + " " * (999 - len(GOOD)) + "\n"
    path.write_text(exactly + exactly, encoding="utf-8")
    assert len(read_jsonl(path, Topic)) == 2
    path.write_text(exactly + "x" * 5000, encoding="utf-8")
    with pytest.raises(Stop, match=r"a\.jsonl:2: line longer than 1,000 bytes"):
        read_jsonl(path, Topic)


def test_files_that_cannot_be_opened(tmp_path):
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(Stop, match="cannot be read"):
            read_jsonl(path, Topic)


def test_nesting_right_at_the_limit_is_one_line_too(tmp_path):
    path = tmp_path / "a.jsonl"
    for depth in (*range(850, 1010, 3), 5_000, 50_000):
        nested = "[" * depth + "1" + "]" * depth
        path.write_text(f'{{"id": "a", "meta_topic": {nested}}}', encoding="utf-8")
        with pytest.raises(Stop, match=r"a\.jsonl:1: "):
            read_jsonl(path, Topic)


KINDS = {
    "topic": (ONE_OF_EACH[0], Topic),
    "dialogue": (TWO, Dialogue),
    "judgement": (ONE_OF_EACH[-1], Judgement),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_with_bytes_changed_gives_records_or_one_line(tmp_path, name):
    record, kind = KINDS[name]
    whole = to_jsonl([record] * 3).encode()
    rng = random.Random(7)
    path = tmp_path / "a.jsonl"
    stopped = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            content[at : at + rng.choice((0, 1, 1, 1, 9))] = rng.choice(
                (
                    b"",
                    b"\n",
                    b'"',
                    b"{",
                    b"\\",
                    b"null",
                    b"\xff",
                    b"\\ud800",
                    b"\x1b[2J",
                    bytes([rng.randrange(256)]),
                )
            )
        path.write_bytes(content[: rng.randint(1, len(content))])
        try:
            assert all(isinstance(one, kind) for one in read_jsonl(path, kind))
        except Stop as stop:
            stopped += 1
            assert str(stop).startswith(f"{path}:") and str(stop).isprintable()
    assert stopped > 75


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["id", "messages", "role", "content", "sector", "\ud800", "\x1b[1m"]), inner, max_size=5),
                    max_leaves=12))  # fmt: skip
def test_no_json_value_raises_anything_but_a_stop(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(Stop) as stopped:
        read_jsonl(path, Dialogue)
    assert str(stopped.value).isprintable()


def test_rows_come_with_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert list(iter_rows(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]


# ---- the formats others use -------------------------------------------------------------------


def test_the_three_formats():
    assert to_ultrachat(TWO) == {"id": TWO.id, "data": ["Hi there", "Hello!", "A fruit?", "A ripe pear."]}
    assert to_messages(TWO)["messages"][1] == {"role": "assistant", "content": "Hello!"}
    assert to_sharegpt(TWO)["conversations"][0] == {"from": "human", "value": "Hi there"}
    assert [turn["from"] for turn in to_sharegpt(TWO)["conversations"]] == ["human", "gpt"] * 2


def test_a_dialogue_from_texts():
    assert from_texts(["Hi there", "Hello!", "A fruit?", "A ripe pear."]) == TWO
    assert from_texts(["Hi", "Hello!", "unanswered"]).rounds == [("Hi", "Hello!")]
    for bad in ([], ["only"], ["Hi", ""]):
        with pytest.raises(Stop, match="dialogue: field 'messages"):
            from_texts(bad)


# ---- the one exception ------------------------------------------------------------------------


def test_a_stop_is_one_printable_line():
    assert str(Stop("a\n  b\tc\x1b[31m\u202ed\ud800")) == "a b c\ufffd[31m\ufffdd\ufffd"
    assert str(Stop("naïve – 日本 · “ok”")) == "naïve – 日本 · “ok”"
