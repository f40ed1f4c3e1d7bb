"""From a page-view dump and Wikidata to the popularity table, without a network."""

from __future__ import annotations

import bz2
import csv
import http.client
import io
import json
import sys
import urllib.error
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrachat import entities
from ultrachat.entities import download, fetch_json, to_table, top_titles, wikidata_ids
from ultrachat.errors import Stop
from ultrachat.taxonomy import read_entities

# Written for this test in the form of the monthly dumps:
# wiki, title, page id, access type, views in the month, views by day (a letter each, then the number).
DUMP = """\
de.wikipedia Albert_Einstein 1 desktop 999999 A999999
en.wikipedia Albert_Einstein 736 desktop 400 A200B200
en.wikipedia Albert_Einstein 736 mobile-web 500 A500
en.wikipedia Albert_Einstein 736 mobile-app 3 C3
en.wikipedia Main_Page 15580374 desktop 9000000 A9000000
en.wikipedia - null desktop 5000 A5000
en.wikipedia Special:Search null desktop 700000 A700000
en.wikipedia User_talk:Somebody 9 desktop 90000 A90000
en.wikipedia Portal:Current_events 5 desktop 80000 A80000
en.wikipedia List_of_sovereign_states 6 desktop 70000 A70000
en.wikipedia Lists_of_films 6 desktop 70000 A70000
en.wikipedia Deaths_in_2023 7 mobile-web 60000 A60000
en.wikipedia Mercury_(disambiguation) 8 desktop 50000 A50000
en.wikipedia Star_Trek:_Discovery 50 desktop 30 A30
en.wikipedia Tyler,_the_Creator 51 desktop 20 A20
en.wikipedia Zürich 52 desktop 20 A20
en.wikipedia A_title_without_an_id 53 desktop 10 A10
en.wikipedia cut_short 5
en.wikipedia odd_number 5 desktop many A1
en.wikipedia odd_digit 5 desktop ² A1
en.wikipedia huge_number 5 desktop 99999999999999999999999 A1

en.wikipedia  two  spaces desktop 5
"""
LINES = DUMP.splitlines(keepends=True)
IDS = {
    "Albert Einstein": "Q937",
    "Star Trek: Discovery": "Q18389644",
    "Tyler, the Creator": "Q167635",
    "Zürich": "Q72",
}


def wikidata(asked: list[str]) -> Callable[[str], dict]:
    """A stand-in for wbgetentities that notes the URLs: known titles get their id, others -1, -2 …"""

    def fetch(url: str) -> dict:
        asked.append(url)
        titles = parse_qs(urlsplit(url).query)["titles"][0].split("|")
        found: dict[str, dict] = {}
        for number, title in enumerate(titles, start=1):
            if title in IDS:
                entity = {"type": "item", "id": IDS[title], "sitelinks": {"enwiki": {"site": "enwiki", "title": title, "badges": []}}}  # fmt: skip
                found[IDS[title]] = entity
            else:
                found[str(-number)] = {"site": "enwiki", "title": title, "missing": ""}
        return {"entities": found, "success": 1}

    return fetch


def test_views_of_people_on_english_articles_are_summed_and_ranked():
    assert top_titles(LINES, 10) == [
        ("Albert Einstein", 903), ("Star Trek: Discovery", 30), ("Tyler, the Creator", 20), ("Zürich", 20),
        ("A title without an id", 10),
    ]  # fmt: skip
    assert top_titles(LINES, 1) == [("Albert Einstein", 903)] and top_titles([], 3) == []
    assert top_titles(LINES, 9, "de.wikipedia") == [("Albert Einstein", 999999)]


@given(st.lists(st.text(max_size=60), max_size=10), st.randoms(use_true_random=False))
def test_no_line_raises_and_their_order_plays_no_part(noise, rng):
    lines = LINES + [f"en.wikipedia {line}" for line in noise if "\n" not in line] + noise
    expected = top_titles(lines, 5)
    rng.shuffle(lines)
    assert top_titles(lines, 5) == expected


def test_the_url_asks_wikidata_for_fifty_titles_at_a_time():
    asked: list[str] = []
    titles = [f"Title {i}" for i in range(120)] + ["Zürich", "Tyler, the Creator"]
    assert wikidata_ids(titles, wikidata(asked)) == {"Zürich": "Q72", "Tyler, the Creator": "Q167635"}
    queries = [parse_qs(urlsplit(url).query) for url in asked]
    assert [len(query["titles"][0].split("|")) for query in queries] == [50, 50, 22]
    assert "|".join(query["titles"][0] for query in queries).split("|") == titles
    for url, query in zip(asked, queries, strict=True):
        assert urlsplit(url)[:3] == ("https", "www.wikidata.org", "/w/api.php") and url.isascii()
        assert (
            query["action"] == ["wbgetentities"]
            and query["sites"] == ["enwiki"]
            and query["format"] == ["json"]
        )
        assert query["props"] == ["sitelinks"] and query["sitefilter"] == ["enwiki"]


@pytest.mark.parametrize(
    "answer",
    [{"error": {"code": "maxlag", "info": "waiting"}}, {}, [], None, {"entities": []}, {"entities": None}],
)
def test_a_refusal_is_no_empty_table(answer):
    with pytest.raises(Stop, match="wikidata"):
        wikidata_ids(["Zürich"], lambda url: answer)


def test_the_table_is_the_one_the_taxonomy_reads(tmp_path):
    path = tmp_path / "entities.csv"
    path.write_text(to_table(top_titles(LINES, 10), IDS), encoding="utf-8")
    read = read_entities(path)
    assert [(e.name, e.wikidata_id, e.popularity) for e in read] == [
        ("Albert Einstein", "Q937", 903), ("Star Trek: Discovery", "Q18389644", 30),
        ("Tyler, the Creator", "Q167635", 20), ("Zürich", "Q72", 20),
    ]  # fmt: skip


def test_real_titles_and_views_come_through_unchanged(public, tmp_path):
    """Titles with commas, quotes and accents, and their real page views, through dump and table."""
    with public("wikidata/popqa_entities.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {row["title"]: row["qid"] for row in rows}
    views = {row["title"]: int(row["monthly_page_views"]) for row in rows}
    dump = [f"en.wikipedia {title.replace(' ', '_')} 1 desktop {n} A{n}\n" for title, n in views.items()]
    path = tmp_path / "entities.csv"
    path.write_text(to_table(top_titles(dump, len(dump)), known), encoding="utf-8")
    read = read_entities(path)
    assert {e.name: (e.wikidata_id, e.popularity) for e in read} == {t: (known[t], views[t]) for t in views}
    assert [e.popularity for e in read] == sorted(views.values(), reverse=True)


# ---- the download, on a fixture ---------------------------------------------------------------


class Web:
    """Answers urlopen: the dump for Wikimedia's address, `wikidata` for the other; notes the addresses."""

    def __init__(self, monkeypatch, dump: bytes) -> None:
        self.dump, self.urls = dump, []
        self.lookup = wikidata([])
        monkeypatch.setattr(entities.urllib.request, "urlopen", self.open)

    def open(self, request, timeout):
        assert timeout and "UltraChat" in request.get_header("User-agent")
        self.urls.append(request.full_url)
        if "dumps.wikimedia.org" in request.full_url:
            return io.BytesIO(self.dump)
        return io.BytesIO(json.dumps(self.lookup(request.full_url)).encode())


def test_a_month_becomes_a_table(tmp_path, monkeypatch):
    web = Web(monkeypatch, bz2.compress(DUMP.encode()))
    out = tmp_path / "new" / "entities.csv"
    assert download("2023-01", 3, out) == 3
    assert web.urls[0] == (
        "https://dumps.wikimedia.org/other/pageview_complete/monthly/2023/2023-01/pageviews-202301-user.bz2"
    )
    assert out.read_text(encoding="utf-8") == (
        "entity,wikidata_id,popularity\nAlbert Einstein,Q937,903\nStar Trek: Discovery,Q18389644,30\n"
        '"Tyler, the Creator",Q167635,20\n'
    )


@pytest.mark.parametrize("month", ["2023", "2023-13", "2023-1", "23-01", "2023-01-01", "../2023-01", ""])
def test_a_month_is_a_month(tmp_path, month):
    with pytest.raises(Stop, match="--month: expected YYYY-MM"):
        download(month, 3, tmp_path / "a.csv")


@pytest.mark.parametrize("broken", [bz2.compress(DUMP.encode())[:-20], b"not bzip2", b"<html>"])
def test_a_dump_that_broke_off_is_one_line_and_no_table(tmp_path, monkeypatch, broken):
    Web(monkeypatch, broken)
    with pytest.raises(Stop, match="dumps.wikimedia.org: page views of 2023-01 cannot be had"):
        download("2023-01", 3, tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fault",
    [urllib.error.URLError("no route"), TimeoutError(), http.client.IncompleteRead(b""), ConnectionError()],
)
def test_offline_is_one_line(tmp_path, monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(entities.urllib.request, "urlopen", fail)
    with pytest.raises(Stop, match="dumps.wikimedia.org"):
        download("2023-01", 3, tmp_path / "a.csv")
    with pytest.raises(Stop, match=r"www\.wikidata\.org: no answer"):
        fetch_json("https://www.wikidata.org/w/api.php")


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff\xfe", b'{"a": '])
def test_an_answer_that_is_no_json_is_one_line(monkeypatch, body):
    monkeypatch.setattr(entities.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(body))
    with pytest.raises(Stop, match="no answer"):
        fetch_json("https://www.wikidata.org/w/api.php")


def test_the_command_line_shows_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["entities", "--month", "soon", "--out", str(tmp_path / "a.csv")])
    with pytest.raises(SystemExit) as left:
        entities.main()
    assert left.value.code == "--month: expected YYYY-MM, got 'soon'"
    Web(monkeypatch, bz2.compress(DUMP.encode()))
    monkeypatch.setattr(
        sys, "argv", ["entities", "--month", "2023-01", "--n", "2", "--out", str(tmp_path / "a.csv")]
    )
    entities.main()
    assert capsys.readouterr().out.startswith("2 entities in ")
