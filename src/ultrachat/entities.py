"""How the paper's 10,000 entities are obtained: Wikipedia page views ranked, then Wikidata ids.

    python -m ultrachat.entities --month 2023-01 --n 10000 --out data/entities_10000.csv

Two public sources are joined, both by plain HTTPS and both resumable by running again:

1. The monthly page-view dump of Wikimedia, one line per article, access type and month:
       en.wikipedia Albert_Einstein 736 desktop 254643 A812B9075…
   Views by people (the "user" file) are summed over access types and ranked.
2. Wikidata's `wbgetentities`, fifty titles a call, which turns titles into ids (`Q937`).

The paper counts how often an entity occurs in Wikipedia articles and does not say how; views are
the published popularity figure nearest to it. Lists, portals and the main page are left out.

Absent on purpose: any third-party text in this repository. data/seed/entities.csv is a small
table written by hand; this module replaces it for a full run.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import http.client
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ultrachat.errors import Stop
from ultrachat.runs import write_text

DUMP = (
    "https://dumps.wikimedia.org/other/pageview_complete/monthly/{year}/{year}-{month}/"
    "pageviews-{year}{month}-user.bz2"
)
WIKIDATA = "https://www.wikidata.org/w/api.php"
AGENT = {
    "User-Agent": "ultrachat-notebooks (research; https://github.com/thunlp/UltraChat re-implementation)"
}
NOT_ENTITIES = re.compile(
    r"^(Main_Page$|-$|Deaths_in_|Lists?_of_|.*_\(disambiguation\)$|"
    r"(Special|Wikipedia|Portal|File|Help|Category|Template|User|Draft|Module|MediaWiki|Talk|\w+_talk):)"
)
TITLES_PER_CALL = 50


def top_titles(lines: Iterable[str], n: int, project: str = "en.wikipedia") -> list[tuple[str, int]]:
    """Return the `n` most viewed article titles (with spaces) and their views in the month.

    `lines` are those of a monthly page-view dump; lines of other projects, other namespaces, lists
    and malformed lines are passed over. Ties are broken by title.

    Paper: §4.1; page views as the measure of frequency are ours.
    """
    views: Counter[str] = Counter()
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 5 or fields[0] != project or NOT_ENTITIES.match(fields[1]):
            continue
        if re.fullmatch("[0-9]{1,15}", fields[4]):
            views[fields[1]] += int(fields[4])
    ranked = sorted(views.items(), key=lambda item: (-item[1], item[0]))[:n]
    return [(title.replace("_", " "), count) for title, count in ranked]


def fetch_json(url: str) -> dict:
    """Return the JSON object at a URL.

    Raises Stop naming the host when it cannot be had.

    Ours: documented download code.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=AGENT), timeout=60) as response:
            return json.load(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Stop(f"{urllib.parse.urlsplit(url).hostname}: no answer ({type(error).__name__})") from None


def wikidata_ids(titles: Sequence[str], fetch: Callable[[str], dict] = fetch_json) -> dict[str, str]:
    """Return {title: Wikidata id} for the English Wikipedia titles that have one; redirects are followed.

    Raises Stop when Wikidata refuses: entities are never left out for a rate limit.

    Paper: §4.1 ("derived from Wikidata entities").
    """
    found: dict[str, str] = {}
    for start in range(0, len(titles), TITLES_PER_CALL):
        batch = titles[start : start + TITLES_PER_CALL]
        query = {
            "action": "wbgetentities", "sites": "enwiki", "titles": "|".join(batch), "redirects": "yes",
            "props": "sitelinks", "sitefilter": "enwiki", "format": "json",
        }  # fmt: skip
        answer = fetch(f"{WIKIDATA}?{urllib.parse.urlencode(query)}")
        if not isinstance(answer, dict) or not isinstance(answer.get("entities"), dict):
            raise Stop(f"www.wikidata.org: expected 'entities', got {json.dumps(answer)[:120]}")
        for identifier, entity in answer["entities"].items():
            title = entity.get("sitelinks", {}).get("enwiki", {}).get("title")
            if identifier.startswith("Q") and title:
                found[title] = identifier
    return found


def to_table(ranked: Iterable[tuple[str, int]], ids: dict[str, str]) -> str:
    """Return the CSV text that `taxonomy.read_entities` reads; titles without an id are left out.

    Ours: the form of data/seed/entities.csv.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["entity", "wikidata_id", "popularity"])
    writer.writerows([title, ids[title], views] for title, views in ranked if title in ids)
    return out.getvalue()


def download(month: str, n: int, out: Path) -> int:
    """Stream one month's dump, rank, look up ids, and publish the table at `out`; return its rows.

    `month` is "YYYY-MM". The dump (several GB) is read as it arrives and never kept; a few more
    titles than `n` are looked up because some have no Wikidata id. Raises Stop when offline.

    Paper: §4.1 (10,000).
    """
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise Stop(f"--month: expected YYYY-MM, got {month!r}")
    year, number = month.split("-")
    request = urllib.request.Request(DUMP.format(year=year, month=number), headers=AGENT)
    try:
        with urllib.request.urlopen(request, timeout=60) as response, bz2.open(response) as dump:
            ranked = top_titles(io.TextIOWrapper(dump, "utf-8", errors="replace"), n + n // 10)
    except (OSError, EOFError, http.client.HTTPException) as error:  # EOFError: the dump broke off
        raise Stop(f"dumps.wikimedia.org: page views of {month} cannot be had ({error})") from None
    ids = wikidata_ids([title for title, _ in ranked])
    ranked = [(title, views) for title, views in ranked if title in ids][:n]
    write_text(out, to_table(ranked, ids))
    return len(ranked)


def main() -> None:
    """Command line of this module. Ours: a full run needs the table once."""
    parser = argparse.ArgumentParser(prog="python -m ultrachat.entities", description=__doc__.split("\n")[0])
    parser.add_argument("--month", required=True, help="YYYY-MM of the page views")
    parser.add_argument("--n", type=int, default=10_000, help="how many entities (the paper: 10,000)")
    parser.add_argument("--out", type=Path, required=True, help="where the CSV goes")
    arguments = parser.parse_args()
    try:
        print(f"{download(arguments.month, arguments.n, arguments.out):,} entities in {arguments.out}")
    except Stop as stop:
        raise SystemExit(str(stop)) from None


if __name__ == "__main__":
    main()
