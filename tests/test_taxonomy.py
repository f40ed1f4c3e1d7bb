"""Topics from the teacher, entities and types from tables, and the type of a web text from its URL alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultrachat import taxonomy
from ultrachat.errors import Stop
from ultrachat.records import Material, content_id, read_jsonl
from ultrachat.runs import DATA
from ultrachat.taxonomy import classify_url, read_entities, read_material_types, to_topics, url_words

TYPES = read_material_types(DATA / "seed" / "material_types.csv")


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ---- topics -----------------------------------------------------------------------------------


def test_the_recorded_teacher_knows_30_topics_with_36_subtopics_each(recorded_teacher):
    (parsed,), _ = recorded_teacher.map(taxonomy.meta_topics, [30])
    assert parsed.complete and len(set(parsed.items)) == 30

    async def under(ask, topic):
        return to_topics(topic, (await taxonomy.subtopics(ask, topic, 36)).items)

    grown, failed = recorded_teacher.map(under, parsed.items)
    topics = [topic for some in grown for topic in some]
    assert not failed and len(topics) == 1080
    assert len({t.id for t in topics}) == len({t.subtopic for t in topics}) == 1080


def test_one_subtopic_under_two_topics_stays_two():
    first, second = to_topics("Music", ["Jazz"]) + to_topics("Dance", ["Jazz"])
    assert first.id == content_id("Music", "Jazz") != second.id and to_topics("Music", []) == []


# ---- tables -----------------------------------------------------------------------------------


def test_entities_are_ranked_by_views_then_name(tmp_path):
    path = table(tmp_path, 'entity,wikidata_id,popularity\nB,Q2,5\n"A, the",Q1,5\n\nC,Q3,9\nD,Q4,0\n')
    assert [e.name for e in read_entities(path)] == ["C", "A, the", "B", "D"]
    assert [e.name for e in read_entities(path, 2)] == ["C", "A, the"]
    assert read_entities(path, 1)[0].id == content_id("Q3")


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    path = table(tmp_path, "\ufeffentity,wikidata_id,popularity\r\nZürich,Q72,12\r\n")
    assert read_entities(path)[0].name == "Zürich"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ":1: expected the columns entity,wikidata_id,popularity"),
        ("entity,popularity\n", ":1: expected the columns"),
        ("entity,wikidata_id,popularity,more\n", ":1: expected the columns"),
        ("entity,wikidata_id,popularity\nA,Q1,5\nB,Q2\n", ":3: expected 3 cells, got 2"),
        ("entity,wikidata_id,popularity\nA,Q1,1,000\n", ":2: expected 3 cells, got 4"),
        ("entity,wikidata_id,popularity\nA,Q1,many\n", ":2: field 'popularity'"),
        ("entity,wikidata_id,popularity\nA,Q1,-1\n", ":2: field 'popularity'"),
        ("entity,wikidata_id,popularity\nA,1,5\n", ":2: field 'wikidata_id'"),
        ("entity,wikidata_id,popularity\n\n,Q1,5\n", ":3: field 'name'"),
        (b"entity,wikidata_id,popularity\n\xe9,Q1,5\n", "cannot be read"),
        ("entity,wikidata_id,popularity\n" + "A" * 200_000 + ",Q1,5\n", ":2: not CSV"),
    ],
)
def test_a_bad_table_is_named_with_file_and_line(tmp_path, text, line):
    path = table(tmp_path, text)
    with pytest.raises(Stop) as stopped:
        read_entities(path)
    assert str(path) in str(stopped.value) and line in str(stopped.value)
    assert len(str(stopped.value)) < len(str(path)) + 250


@pytest.mark.parametrize("words", ["", "Blog", "a b", "a||b", "-a", "a-", "a|", "é"])
def test_keywords_are_lower_case_words(tmp_path, words):
    path = table(tmp_path, f"material_type,url_keywords\nPoems,poem\nEmails,{words}\n")
    with pytest.raises(Stop, match=r"table\.csv:3: field 'url_keywords'"):
        read_material_types(path)


def test_absent_tables(tmp_path):
    for read in (read_entities, read_material_types):
        with pytest.raises(Stop, match=r"none\.csv: cannot be read"):
            read(tmp_path / "none.csv")


def test_the_committed_tables_hold_what_they_should():
    assert len(TYPES) == 20 and all(TYPES.values())
    keywords = [word for words in TYPES.values() for word in words]
    assert len(keywords) == len(set(keywords))  # a keyword of two types would decide nothing
    entities = read_entities(DATA / "seed" / "entities.csv")
    assert len(entities) == len({e.id for e in entities}) == 12
    assert entities[0].name == "Albert Einstein"


# ---- URLs -------------------------------------------------------------------------------------


def test_words_of_a_url():
    assert url_words("https://www.A-b.example/C_d/2019?blog=1#recipe") == ["www", "a", "b", "example", "c", "d", "2019"]  # fmt: skip
    assert url_words("") == [] and url_words("no-scheme/blog") == ["no", "scheme", "blog"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/blog/x", "one"),
        ("https://BLOG.example/", "one"),
        ("https://a.example/blogger/x", None),  # whole words only
        ("https://a.example/?q=blog", None),  # not in the query
        ("https://a.example/#blog", None),
        ("https://a.example/cover-letter/1", "two"),
        ("https://a.example/cover_letter/1", "two"),
        ("https://a.example/cover/letter", "two"),  # words that follow each other
        ("https://a.example/letter-cover", None),
        ("https://a.example/blog/poem", "three"),  # further right
        ("https://a.example/poem/blog", "one"),
        ("https://a.example/cover-letter/blog", "two"),  # more words before further right
        ("", None),
    ],
)
def test_the_most_special_keyword_wins(url, expected):
    types = {"one": ("blog", "blogs"), "two": ("cover-letter",), "three": ("poem",)}
    assert classify_url(url, types) == expected
    assert classify_url(url, dict(reversed(types.items()))) == expected


def test_the_text_plays_no_part_and_the_sample_is_mostly_right():
    materials = read_jsonl(DATA / "seed" / "materials.jsonl", Material)
    intended = [m for m in materials if m.intended_type]
    right = sum(classify_url(m.url, TYPES) == m.intended_type for m in intended)
    assert len(intended) == 40 and right / len(intended) >= 0.9
    assert {m.intended_type for m in intended} == set(TYPES)
