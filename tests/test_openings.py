"""Opening lines of the three sectors: how many, from what, joined by which template."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.openings import (
    choose_template,
    entity_openings,
    join,
    material_openings,
    topic_openings,
    writing_openings,
)
from ultrachat.recorded import load_pack
from ultrachat.records import Entity, Material, content_id, read_jsonl
from ultrachat.runs import DATA
from ultrachat.taxonomy import read_entities, to_topics

TOPIC = to_topics("Music", ["Jazz"])[0]
ENTITY = Entity(id="e", name="Paris", wikidata_id="Q90", popularity=1)
MATERIAL = Material(id="m", url="https://a.example/blog", text="A {text} with {braces}.")


def grow(function, item, **sizes):
    """Run a function with a stand-in teacher that lists as many lines as asked; return harvest and requests."""
    asked = []

    async def ask(request):
        asked.append(request)
        n = request.inputs.get("n")
        if n is None:
            return f" detailed {request.inputs['instruction']} \n"
        subject = request.inputs.get("question", "")
        return "Here you go:\n" + "\n".join(f"{i}. {request.task} {i}? {subject}" for i in range(1, n + 1))

    return asyncio.run(function(ask, item, **sizes)), asked


def test_a_topic_gives_its_questions_and_those_related_to_each():
    harvest, asked = grow(topic_openings, TOPIC)
    assert len(harvest.openings) == 10 + 10 * 10 and len(asked) == 11 == len(harvest.lists)
    assert Counter(o.task for o in harvest.openings) == {"questions": 10, "related_questions": 100}
    first = harvest.openings[0]
    assert (first.text, first.id) == ("questions 1?", content_id("questions 1?"))
    assert (first.sector, first.route, first.subject, first.parent) == (
        "questions_about_the_world", "topic", "Jazz", TOPIC.id,
    )  # fmt: skip
    assert asked[1].inputs == {"question": "questions 1?", "n": 10}
    assert asked[1].messages[0]["content"] == prompts.related_questions("questions 1?", 10)
    fewer, asked = grow(topic_openings, TOPIC, n_questions=4, n_expanded=1, n_related=3)
    assert len(fewer.openings) == 4 + 3 and len(asked) == 2


def test_an_entity_gives_meta_specific_and_extended_questions():
    harvest, asked = grow(entity_openings, ENTITY)
    assert Counter(o.task for o in harvest.openings) == {
        "entity_questions": 5, "specific_questions": 5 * 10, "extended_questions": 5 * 20,
    }  # fmt: skip
    assert len(asked) == 1 + 5 * 2 and {o.parent for o in harvest.openings} == {"e"}
    assert {o.route for o in harvest.openings} == {"entity"}
    assert len(grow(entity_openings, ENTITY, n_expanded=0)[0].openings) == 5


def test_a_short_list_stays_visible():
    async def ask(request):
        return "1. Why?\n2. How?"

    harvest = asyncio.run(topic_openings(ask, TOPIC, n_expanded=0))
    (task, parsed), *_ = harvest.lists
    assert (
        (task, parsed.asked, len(parsed.items))
        == ("questions", 10, 2)
        == ("questions", 10, len(harvest.openings))
    )


# ---- sector 2 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "fraction", "n_detailed"),
    [
        (10, 0.8, 8),
        (10, 1.0, 10),
        (10, 0.0, 0),
        (5, 0.5, 3),
        (3, 0.8, 2),
        (1, 0.8, 1),
        (200, 0.8, 160),
        (0, 0.8, 0),
    ],
)
def test_the_first_part_is_made_more_detailed_and_the_rest_kept(n, fraction, n_detailed):
    harvest, asked = grow(writing_openings, "Poems", n_instructions=n, detailed_fraction=fraction)
    tasks = [o.task for o in harvest.openings]
    assert tasks == ["detailed_instruction"] * n_detailed + ["writing_instructions"] * (n - n_detailed)
    assert len(asked) == 1 + n_detailed
    for number, opening in enumerate(harvest.openings, start=1):
        instruction = f"writing_instructions {number}?"
        assert opening.parent == content_id(instruction) and opening.subject == "Poems"
        assert opening.text == (f"detailed {instruction}" if number <= n_detailed else instruction)
        assert opening.id == content_id(opening.text) and opening.sector == "creation_and_generation"


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 80, float("nan")])
def test_a_fraction_is_a_fraction(fraction):
    with pytest.raises(Stop, match="detailed_fraction: expected a number from 0 to 1"):
        grow(writing_openings, "Poems", detailed_fraction=fraction)


# ---- sector 3 ---------------------------------------------------------------------------------


def test_text_and_instruction_are_joined_by_a_template_as_they_are():
    opening = join(MATERIAL, "Summarise {it}.")
    template = choose_template(opening.id)
    parts = {"{text}": MATERIAL.text, "{instruction}": "Summarise {it}."}
    before, middle, after = _split(template)
    expected = before[0] + parts[before[1]] + middle[0] + parts[middle[1]] + after
    assert opening.text == expected
    assert opening.id == content_id("m", "Summarise {it}.") and opening.parent == "m"
    assert opening.subject == "Summarise {it}."


def _split(template):
    """Cut a template at its two places without using str.format."""
    at = sorted((template.index(place), place) for place in ("{text}", "{instruction}"))
    (first, one), (second, two) = at
    return (template[:first], one), (template[first + len(one) : second], two), template[second + len(two) :]


@settings(max_examples=50)
@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_text_and_instruction_are_both_in_the_opening(text, instruction):
    material = Material(id="m", url="u", text=text)
    joined = join(material, instruction).text
    assert material.text in joined
    assert instruction.encode("utf-8", "replace").decode().replace("\x00", "\ufffd") in joined


def test_every_template_is_used_about_equally_often():
    counts = Counter(choose_template(content_id("m", str(i))) for i in range(7000))
    assert set(counts) == set(prompts.TEMPLATES) and all(850 < n < 1150 for n in counts.values())


def test_a_text_gives_five_openings_and_is_sent_fenced():
    harvest, asked = grow(material_openings, MATERIAL)
    assert len(harvest.openings) == 5 and len(asked) == 1
    assert asked[0].inputs == {"material": "m", "n": 5}
    assert prompts.fence(MATERIAL.text) in asked[0].messages[0]["content"]


# ---- on the recording -------------------------------------------------------------------------


def test_all_recorded_openings_are_grown(recorded_teacher):
    """What notebooks 02 to 04 do: every list in the recording is asked for and read."""
    topics_of = {}
    for row in _recorded("questions"):
        topics_of.setdefault(row["topic"], row["subtopic"])
    topics = [to_topics(topic, [subtopic])[0] for topic, subtopic in topics_of.items()]
    entities = read_entities(DATA / "seed" / "entities.csv")
    asked_about = {row["material"] for row in _recorded("material_instructions")}
    materials = [m for m in read_jsonl(DATA / "seed" / "materials.jsonl", Material) if m.id in asked_about]
    types = [row["material_type"] for row in _recorded("writing_instructions")]

    async def from_topic(ask, topic):
        return await topic_openings(ask, topic, n_expanded=1)

    async def from_entity(ask, entity):
        return await entity_openings(ask, entity, n_expanded=1)

    expected = ((from_topic, topics, 30 * 20), (from_entity, entities, 12 * 35), (writing_openings, types, 20 * 10),
                (material_openings, materials, 40 * 5))  # fmt: skip
    for function, items, n in expected:
        harvests, failed = recorded_teacher.map(function, items)
        assert not failed and sum(len(h.openings) for h in harvests) == n
        assert all(parsed.complete for h in harvests for _, parsed in h.lists)


def _recorded(task):
    rows = [json.loads(name) for name in load_pack(DATA / "recorded")]
    return [row["inputs"] for row in rows if row["task"] == task]
