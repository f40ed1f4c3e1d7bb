"""What UltraChat is about: meta-topics and subtopics, entities by popularity, types of material.

    data/seed/entities.csv         entity,wikidata_id,popularity   (a small committed table)
    data/seed/material_types.csv   material_type,url_keywords      (keywords separated by "|")

Topics come from the teacher; entities from a popularity table (`entities.download` makes a full
one); the type of a web text from keywords matched against its URL, never from the text itself.

Absent on purpose: questions and instructions (that is `openings`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.parsing import ParsedList, parse_list
from ultrachat.records import Entity, Topic, content_id, first_problem
from ultrachat.teacher import Ask, Request, one_message


async def meta_topics(ask: Ask, n: int) -> ParsedList:
    """Return the comprehensive topics the teacher lists when asked for `n`.

    Paper: §4.1, Table 2 (30).
    """
    prompt = prompts.meta_topics(n)
    return parse_list(
        await ask(Request(task="meta_topics", inputs={"n": n}, messages=one_message(prompt))), n
    )


async def subtopics(ask: Ask, topic: str, n: int) -> ParsedList:
    """Return the subtopics the teacher lists for one meta-topic when asked for `n`.

    Paper: §4.1 (30 to 50 for each topic).
    """
    prompt = prompts.subtopics(topic, n)
    request = Request(task="subtopics", inputs={"topic": topic, "n": n}, messages=one_message(prompt))
    return parse_list(await ask(request), n)


def to_topics(meta_topic: str, names: Sequence[str]) -> list[Topic]:
    """Return Topic records for the subtopics of one meta-topic, in the order given.

    Ours: ids hash both names, so one subtopic under two meta-topics stays two topics.
    """
    return [Topic(id=content_id(meta_topic, name), meta_topic=meta_topic, subtopic=name) for name in names]


def _read_table(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return ("file:line", row) for each row of a CSV; Stop unless it has exactly these columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Stop(f"{path}: cannot be read ({getattr(error, 'strerror', 'not UTF-8')})") from None
    reader = csv.reader(text.splitlines())
    rows = []
    try:
        header = next(reader, [])
        if header != list(columns):
            raise Stop(f"{path}:1: expected the columns {','.join(columns)}, got {','.join(header)!r:.80}")
        for cells in filter(None, reader):
            if len(cells) != len(columns):
                raise Stop(f"{path}:{reader.line_num}: expected {len(columns)} cells, got {len(cells)}")
            rows.append((f"{path}:{reader.line_num}", dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise Stop(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return rows


def read_entities(path: Path, n: int | None = None) -> list[Entity]:
    """Return the entities of a popularity table, most popular first (ties by name), at most `n`.

    Raises Stop naming file, line and field.

    Paper: §4.1 (the 10,000 most frequently occurring Wikidata entities).
    """
    entities = []
    for where, row in _read_table(path, ("entity", "wikidata_id", "popularity")):
        fields = {"name": row["entity"], "wikidata_id": row["wikidata_id"], "popularity": row["popularity"]}
        try:
            entities.append(Entity(id=content_id(row["wikidata_id"]), **fields))
        except ValidationError as error:
            raise Stop(f"{where}: {first_problem(error)}") from None
    return sorted(entities, key=lambda entity: (-entity.popularity, entity.name))[:n]


def read_material_types(path: Path) -> dict[str, tuple[str, ...]]:
    """Return {material type: its URL keywords} in the table's order.

    Raises Stop naming file and line when a type has no keyword or a keyword is not lower case.

    Paper: §4.2, §4.3, Table 3 (20 types; "manually curate keywords for each type"); the keywords are ours.
    """
    types: dict[str, tuple[str, ...]] = {}
    for where, row in _read_table(path, ("material_type", "url_keywords")):
        keywords = tuple(row["url_keywords"].split("|"))
        if not all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", keyword) for keyword in keywords):
            raise Stop(f"{where}: field 'url_keywords': expected lower-case words separated by '|'")
        types[row["material_type"]] = keywords
    return types


def url_words(url: str) -> list[str]:
    """Return the lower-case words of a URL's host and path, in order, without scheme and query.

    Ours: keywords match whole words, so that "cv" is not found in "mcvities".
    """
    without_query = re.split(r"[?#]", url.split("://", 1)[-1], maxsplit=1)[0]
    return re.findall(r"[a-z0-9]+", without_query.lower())


def classify_url(url: str, types: dict[str, tuple[str, ...]]) -> str | None:
    """Return the material type whose keyword matches the URL, or None when none does.

    A keyword of several words ("cover-letter") matches consecutive words. Of several matches the one
    with most words wins, then the one furthest right in the URL (paths go from general to specific).

    Paper: §4.3 ("classify the text by matching the keywords to the corresponding URL"); ties are ours.
    """
    words = url_words(url)
    best: tuple[int, int] | None = None
    found = None
    for material_type, keywords in types.items():
        for keyword in keywords:
            parts = keyword.split("-")
            for start in range(len(words) - len(parts) + 1):
                rank = (len(parts), start)
                if words[start : start + len(parts)] == parts and (best is None or rank > best):
                    best, found = rank, material_type
    return found
