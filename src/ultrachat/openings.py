"""The opening lines of the three sectors, from topics, entities, material types and web texts.

    sector 1  subtopic → questions → related questions
              entity → meta-questions → specific and extended questions
    sector 2  material type → instructions → about 80 % of them made more detailed
    sector 3  web text → instructions → text and instruction joined by a template of Table 4

Each function takes `ask` and one item, and returns a `Harvest`: openings, and for every list the
teacher returned what was asked for and what came.

Absent on purpose: duplicates and drops (`refinement`), sampling (`records.sample_by_id`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.parsing import ParsedList, parse_list
from ultrachat.records import Entity, Material, Opening, Topic, content_id
from ultrachat.teacher import Ask, Request, one_message


class Harvest(NamedTuple):
    """The openings grown from one item and the (task, parsed list) pairs they were read from.

    Ours: a shortfall ("asked 20, got 17") stays visible.
    """

    openings: list[Opening]
    lists: list[tuple[str, ParsedList]]


async def _ask_list(ask: Ask, task: str, prompt: str, n: int, **inputs: Any) -> tuple[str, ParsedList]:
    request = Request(task=task, inputs={**inputs, "n": n}, messages=one_message(prompt))
    return task, parse_list(await ask(request), n)


def _openings(lists: list[tuple[str, ParsedList]], **fields: Any) -> list[Opening]:
    return [
        Opening(id=content_id(text), task=task, text=text, **fields)
        for task, parsed in lists
        for text in parsed.items
    ]


async def topic_openings(
    ask: Ask, topic: Topic, n_questions: int = 10, n_expanded: int = 10, n_related: int = 10
) -> Harvest:
    """Return the questions about a subtopic and those related to its first `n_expanded` questions.

    Paper: §4.1 (10 questions, 10 more based on each original one).
    """
    prompt = prompts.questions(topic.meta_topic, topic.subtopic, n_questions)
    names = {"topic": topic.meta_topic, "subtopic": topic.subtopic}
    lists = [await _ask_list(ask, "questions", prompt, n_questions, **names)]
    for question in lists[0][1].items[:n_expanded]:
        prompt = prompts.related_questions(question, n_related)
        lists.append(await _ask_list(ask, "related_questions", prompt, n_related, question=question))
    fields = {"sector": "questions_about_the_world", "route": "topic"}
    return Harvest(_openings(lists, **fields, subject=topic.subtopic, parent=topic.id), lists)


async def entity_openings(
    ask: Ask, entity: Entity, n_meta: int = 5, n_expanded: int = 5, n_specific: int = 10, n_extended: int = 20
) -> Harvest:
    """Return an entity's meta-questions, and specific and extended ones for the first `n_expanded` of them.

    Paper: §4.1 (5 meta-questions, then 10 more specific and 20 extended ones).
    """
    name = entity.name
    prompt = prompts.entity_questions(name, n_meta)
    lists = [await _ask_list(ask, "entity_questions", prompt, n_meta, entity=name)]
    for question in lists[0][1].items[:n_expanded]:
        for task, write, n in (
            ("specific_questions", prompts.specific_questions, n_specific),
            ("extended_questions", prompts.extended_questions, n_extended),
        ):
            prompt = write(name, question, n)
            lists.append(await _ask_list(ask, task, prompt, n, entity=name, question=question))
    fields = {"sector": "questions_about_the_world", "route": "entity"}
    return Harvest(_openings(lists, **fields, subject=name, parent=entity.id), lists)


async def writing_openings(
    ask: Ask, material_type: str, n_instructions: int = 10, detailed_fraction: float = 0.8
) -> Harvest:
    """Return instructions to write one type of material; the first `detailed_fraction` made more detailed.

    The remaining instructions are kept as they are. Raises Stop when the fraction is not in [0, 1].

    Paper: §4.2 ("approximately 80 %"); which ones is ours: the first, in the order given.
    """
    if not 0 <= detailed_fraction <= 1:
        raise Stop(f"detailed_fraction: expected a number from 0 to 1, got {detailed_fraction!r}")
    prompt = prompts.writing_instructions(material_type, n_instructions)
    listed = await _ask_list(ask, "writing_instructions", prompt, n_instructions, material_type=material_type)
    instructions = listed[1].items
    n_detailed = math.floor(detailed_fraction * len(instructions) + 0.5)
    openings = []
    for position, instruction in enumerate(instructions):
        task, text = "writing_instructions", instruction
        if position < n_detailed:
            task = "detailed_instruction"
            prompt = prompts.detailed_instruction(material_type, instruction)
            inputs = {"material_type": material_type, "instruction": instruction}
            text = (await ask(Request(task=task, inputs=inputs, messages=one_message(prompt)))).strip()
        openings.append(
            Opening(
                id=content_id(text), sector="creation_and_generation", route="writing", task=task,
                subject=material_type, parent=content_id(instruction), text=text,
            )
        )  # fmt: skip
    return Harvest(openings, [listed])


def choose_template(opening_id: str) -> str:
    """Return the template of Table 4 that joins this pair of text and instruction, chosen by its id.

    Paper: §4.3, Table 4; the choice by content is ours, so that it is the same on every machine.
    """
    return prompts.TEMPLATES[int(opening_id, 16) % len(prompts.TEMPLATES)]


def join(material: Material, instruction: str) -> Opening:
    """Return the opening that joins a web text and an instruction.

    Paper: §4.3, Table 4.
    """
    identifier = content_id(material.id, instruction)
    text = choose_template(identifier).format(text=material.text, instruction=instruction)
    return Opening(
        id=identifier, sector="assistance_on_existing_materials", route="material",
        task="material_instructions", subject=instruction, parent=material.id, text=text,
    )  # fmt: skip


async def material_openings(ask: Ask, material: Material, n_instructions: int = 5) -> Harvest:
    """Return one opening per instruction the teacher gives for a web text; `subject` is the instruction.

    Paper: §4.3 (five distinct instructions for each piece).
    """
    prompt = prompts.material_instructions(material.text, n_instructions)
    listed = await _ask_list(ask, "material_instructions", prompt, n_instructions, material=material.id)
    return Harvest([join(material, instruction) for instruction in listed[1].items], [listed])
