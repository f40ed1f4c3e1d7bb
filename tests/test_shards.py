"""Shards: a partition by id, a merge that proves itself, workers killed in the middle; the server's log is the oracle."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from fault_server import FaultServer, error
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import launcher, shards
from ultrachat.errors import Stop
from ultrachat.records import SECTORS, Opening, content_id
from ultrachat.runs import Run, in_shard, open_run, parse_shard, read_manifest, run_folder, shard_of
from ultrachat.simulation import simulate
from ultrachat.store import Batch, FailedRow, Row, open_store
from ultrachat.teacher import open_teacher

TESTS = Path(__file__).parent
PRICES = {"m": [1.0, 2.0]}  # dollars per million tokens; a call of the fault server is 7 and 5 tokens
N_OPENINGS = 24


def some_openings() -> list[Opening]:
    texts = [f"Tell me about thing {i}" + ("?" if i % 8 else ", which is refused") for i in range(N_OPENINGS)]
    return [
        Opening(id=content_id(text), sector=SECTORS[i % 3], route=("topic", "writing", "material")[i % 3],
                task="t", subject="s", parent="p", text=text)
        for i, text in enumerate(texts)
    ]  # fmt: skip


def publish_openings(run_name: str, openings: list[Opening]) -> None:
    """What notebooks 02 to 04 leave."""
    for number, sector in zip(("02", "03", "04"), SECTORS, strict=True):
        run = Run(f"{number}_{sector}", run_name, {"run_name": run_name})
        run.write(f"{number}_openings.jsonl", [o for o in openings if o.sector == sector])
        run.finish()


def play(run_name: str, url: str, shard: str = "1/1", **parameters) -> dict[str, float]:
    """What notebook 05 does, without the looking; returns the teacher's usage."""
    fixed = {"run_name": run_name, "shard": shard, "base_url": url, "model": "m", "prices": PRICES}
    run = open_run("05_user_simulation", fixed | {"concurrency": 4} | parameters)
    teacher = open_teacher(run)
    openings = [o for n in ("02", "03", "04") for o in run.read(f"{n}_openings.jsonl", Opening)]
    done, failed = teacher.map(partial(simulate, stop="drawn"), run.own_share(openings))
    run.write("05_dialogues.jsonl", done)
    run.write("05_dropped.jsonl", [])
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerows([("opening", "kind"), *((f.item.id, f.kind) for f in failed)])
    run.publish("05_set_aside.csv", table.getvalue(), rows=len(failed))
    run.finish(teacher.usage())
    return teacher.usage()


def refuses_some(text: str, nth: int):
    return error(400) if "which is refused" in text else None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A server, and runs it answered: "mine" has its openings, "whole" was made of the same without shards,
    "shards" in three."""
    home = tmp_path_factory.mktemp("prepared")
    with FaultServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRACHAT_RUNS", str(home))
        server.fault = refuses_some
        for name in ("mine", "whole", "shards"):
            publish_openings(name, some_openings())
        play("whole", server.url)
        server.log.clear()
        play_all(server, "shards")
        yield server, home, list(server.log)


@pytest.fixture
def mine(prepared, runs_home) -> FaultServer:
    """The server, nothing on its log, and in the runs folder "mine" and "whole"."""
    server, home, _ = prepared
    server.log.clear()
    server._seen_texts.clear()
    server.latency_seconds = 0.0
    shutil.copytree(home, runs_home)
    return server


@pytest.fixture
def played(mine, prepared, runs_home) -> list:
    """The same with the three shards of "mine"; returns the log of what they asked."""
    shutil.copytree(runs_home / "shards/shards", runs_home / "mine/shards")
    for manifest in (runs_home / "mine/shards").glob("*/manifest.jsonl"):
        manifest.write_text(manifest.read_text().replace('"run_name": "shards"', '"run_name": "mine"'))
    return prepared[2]


def play_all(server: FaultServer, run_name: str) -> None:
    for number in (1, 2, 3):
        play(run_name, server.url, f"{number}/3")


def published(name: str, run_name: str) -> bytes:
    return (run_folder(run_name) / name).read_bytes()


def same_as_whole() -> bool:
    names = ("05_dialogues.jsonl", "05_set_aside.csv")
    return all(published(name, "mine") == published(name, "whole") for name in names)


def answers(path: Path) -> dict[str, str]:
    with open_store(path) as store:
        return {row[0]: row[4] for row in store.stream("answers")}


def stopped(call: Callable, *arguments) -> str:
    with pytest.raises(Stop) as caught:
        call(*arguments)
    return str(caught.value)


# ---- which shard ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "1/0", "1/10001", "-1/4", "1/4/2", " 1/4", "1/4\n", "a/b", "1.0/4", "٣/٤", 3, None]
)  # fmt: skip
def test_another_shard_is_refused(runs_home, text):
    for call in (
        parse_shard,
        partial(run_folder, "mine"),
        lambda t: open_run("05_a", {"run_name": "mine", "shard": t}),
    ):
        assert stopped(call, text).startswith("shard: expected i/n")
    assert not runs_home.exists()


def test_folders_of_shards(runs_home):
    assert run_folder("mine", "1/1") == run_folder("mine") == runs_home / "mine"
    assert run_folder("mine", "3/16") == runs_home / "mine/shards/03-of-16"
    assert run_folder("mine", "10000/10000") == runs_home / "mine/shards/10000-of-10000"


@given(st.text("0123456789abcdef", min_size=1, max_size=16), st.integers(1, 50))
@settings(max_examples=50)
def test_every_id_is_in_exactly_one_shard(identifier, n_shards):
    own = [i for i in range(1, n_shards + 1) if in_shard(identifier, i, n_shards)]
    assert own == [shard_of(identifier, n_shards)] == [int(identifier, 16) % n_shards + 1]


def test_ids_that_are_no_hashes_are_refused(runs_home):
    for identifier in ("", "xyz", "0x1", "-1", "1_0", " 1"):
        assert stopped(in_shard, identifier, 1, 2).startswith("id: expected hexadecimal digits")


def test_a_shard_reads_the_runs_files_and_writes_its_own(runs_home):
    openings = some_openings()
    publish_openings("mine", openings)
    shares = []
    for number in (1, 2, 3):
        run = open_run("05_user_simulation", {"run_name": "mine", "shard": f"{number}/3"})
        assert run.describe() == f"run 'mine' · shard {number} of 3"
        assert run.read("02_openings.jsonl", Opening) == openings[::3]
        shares.append(run.own_share(openings))
        run.write("05_dialogues.jsonl", [])
        run.finish()
        assert run.store_path.parent == run.folder == runs_home / f"mine/shards/{number}-of-3"
    assert sorted(o.id for share in shares for o in share) == sorted(o.id for o in openings)
    assert [line["notebook"][:2] for line in read_manifest(runs_home / "mine")] == ["02", "03", "04"]
    whole = open_run("05_user_simulation", {"run_name": "mine"})
    assert whole.own_share(openings) == openings and whole.describe() == "run 'mine'"


def test_a_shard_makes_the_checks_on_the_runs_files(runs_home):
    publish_openings("mine", some_openings())
    run = open_run("05_user_simulation", {"run_name": "mine", "shard": "1/2"})
    with (runs_home / "mine/02_openings.jsonl").open("a") as file:
        file.write("\n")
    assert "changed since notebook 02 published it" in stopped(run.input, "02_openings.jsonl")
    assert "missing; run notebook 01" in stopped(run.input, "01_topics.jsonl")


def test_a_shard_without_openings_says_so(runs_home):
    one = some_openings()[0]
    run = open_run("05_a", {"run_name": "mine", "shard": f"{shard_of(one.id, 9) % 9 + 1}/9"})
    assert stopped(run.own_share, [one]).startswith("shard: none of 1 is in shard")


# ---- merging ----------------------------------------------------------------------------------


def test_merged_shards_are_the_run_without_shards(mine, played):
    n_asked = len(played)
    proof = shards.merge("mine")
    assert {"02_openings.jsonl", "03_openings.jsonl", "04_openings.jsonl"} <= set(
        proof.replace(",", "").split()
    )
    n_failed = N_OPENINGS // 8
    total = proof.splitlines()[4].split()
    n_answers = n_asked - n_failed
    assert total == [
        "all",
        *map(str, (N_OPENINGS, N_OPENINGS - n_failed, n_failed, n_answers, n_answers, n_failed)),
    ]
    assert play("mine", mine.url)["asked"] == 0 and not mine.log
    assert same_as_whole()
    assert answers(run_folder("mine") / "answers.sqlite") == answers(run_folder("whole") / "answers.sqlite")


def test_merging_again_changes_nothing_and_money_is_added_once(mine, played):
    shards.merge("mine")
    with open_store(run_folder("mine") / "answers.sqlite") as store:
        first = list(store.stream("answers")), list(store.stream("failed")), store.money()
    assert first[2] == (pytest.approx(sum(a.billed for a in played) * 17e-6), 0.0)
    proof = shards.merge("mine")
    assert f"{len(first[0])} answers before + 0 new = {len(first[0])}" in proof
    with open_store(run_folder("mine") / "answers.sqlite") as store:
        assert (list(store.stream("answers")), list(store.stream("failed")), store.money()) == first
        store.set_money(1.0, 0.5)  # the run goes on spending
    with open_store(run_folder("mine", "2/3") / "answers.sqlite") as store:
        spent = store.money()[0]
        store.set_money(spent + 0.25, 0.125)  # and so does a shard, of which some may have been billed
    shards.merge("mine")
    with open_store(run_folder("mine") / "answers.sqlite") as store:
        assert store.money() == (pytest.approx(1.375), 0.5)


def test_a_failure_that_was_answered_elsewhere_is_none(tmp_path):
    with open_store(tmp_path / "a") as run, open_store(tmp_path / "b") as shard:
        run.put_failure(FailedRow("1", "t", "rejected", "no"))
        run.put(Row("2", "t", "{}", "m", "yes", 1, 1))
        shard.put(Row("1", "t", "{}", "m", "yes", 1, 1))
        shard.put_failure(FailedRow("2", "t", "rejected", "no"))
        shard.put_failure(FailedRow("3", "t", "rejected", "no"))
        assert run.absorb("1-of-2", shard) == 1
        assert [row[0] for row in run.stream("failed")] == ["3"]


@pytest.mark.parametrize("n_rows", [0, 1, 999, 1000, 1001, 2500])
def test_streams_give_every_row_once_as_they_came(tmp_path, n_rows):
    with open_store(tmp_path / "a") as store:
        store.put(*(Row(f"{i:05}", "t", "{}", "m", str(i), None, None) for i in reversed(range(n_rows))))
        assert [row[4] for row in store.stream("answers")] == [str(i) for i in reversed(range(n_rows))]


def drop_shard(home: Path) -> None:
    shutil.rmtree(home / "2-of-3")


def add_shard_of_another_size(home: Path) -> None:
    (home / "1-of-4").mkdir()


def unfinish(home: Path) -> None:
    open_run("05_user_simulation", {"run_name": "mine", "shard": "2/3"})


def change_parameter(home: Path) -> None:
    path = home / "2-of-3/manifest.jsonl"
    path.write_text(path.read_text().replace('"model": "m"', '"model": "n"'))


def change_input(home: Path) -> None:
    publish_openings("mine", some_openings()[:-1])


def lose_a_dialogue(home: Path) -> None:
    path = home / "2-of-3/05_dialogues.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def lose_a_dialogue_and_publish(home: Path) -> None:
    publish_anew(lambda lines: lines[1:])


def double_a_dialogue(home: Path) -> None:
    publish_anew(lambda lines: [*lines, lines[0]])


def publish_anew(change: Callable) -> None:
    """The file as if the notebook had written it so."""
    folder = run_folder("mine", "2/3")
    (line,) = read_manifest(folder)
    run = Run("05_user_simulation", "mine", {"shard": "2/3"})
    lines = (folder / "05_dialogues.jsonl").read_text().splitlines(keepends=True)
    run.publish("05_dialogues.jsonl", "".join(change(lines)), rows=1)
    line["outputs"] |= run._outputs
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")


def open_a_batch(home: Path) -> None:
    with open_store(home / "2-of-3/answers.sqlite") as store:
        store.put_batch(Batch("tag", "http://a", None, 1.0), [])


def flip_a_bit(home: Path) -> None:
    with closing(sqlite3.connect(home / "2-of-3/answers.sqlite", isolation_level=None)) as raw:
        last = raw.execute("SELECT max(key) FROM answers").fetchone()[0]
        raw.execute("UPDATE answers SET text = 'anower' WHERE key = ?", (last,))


def answer_twice(home: Path) -> None:
    row = max(answers(home / "2-of-3/answers.sqlite"))
    with open_store(run_folder("mine") / "answers.sqlite") as store:
        store.put(Row(row, "t", "{}", "m", "another answer", 1, 1))


@pytest.mark.parametrize(
    "damage, line",
    [
        (shutil.rmtree, "no shards"),
        (drop_shard, "2-of-3: is missing; run notebook 05 with --set shard=2/3"),
        (add_shard_of_another_size, "holds shards of 3 and of 4"),
        (unfinish, "2-of-3: did not finish; run notebook 05 with --set shard=2/3"),
        (change_parameter, "2-of-3: model: 'm' in 1-of-3, 'n' here"),
        (change_input, "1-of-3: made from another 04_openings.jsonl than the run has now"),
        (lose_a_dialogue, "05_dialogues.jsonl: not what notebook 05 published"),
        (lose_a_dialogue_and_publish, "came to 0 dialogues or failures, expected 1"),
        (double_a_dialogue, "came to 2 dialogues or failures, expected 1"),
        (open_a_batch, "a batch was not taken in yet"),
        (flip_a_bit, "is damaged"),
        (answer_twice, "is another one in"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_fit_is_not_merged(mine, played, damage, line):
    home, ledger = run_folder("mine") / "shards", run_folder("mine") / "answers.sqlite"
    damage(home)
    assert line in stopped(shards.merge, "mine")
    # of the shard that did not fit nothing was taken
    if ledger.exists() and (home / "2-of-3/answers.sqlite").exists() and damage is not flip_a_bit:
        text = set(answers(ledger).items()) & set(answers(home / "2-of-3/answers.sqlite").items())
        assert not text


def test_a_shard_still_at_work_is_not_merged(mine, played):
    with open_store(run_folder("mine", "3/3") / "answers.sqlite"):
        assert "in use by another process" in stopped(shards.merge, "mine")
    shards.merge("mine")
    play("mine", mine.url)
    assert same_as_whole()


def test_shards_may_differ_in_what_shapes_no_answer(mine):
    play("mine", mine.url, "1/2", concurrency=2, budget_usd=1.0)
    play("mine", mine.url, "2/2", concurrency=5, budget_usd=2.0)
    assert "next: run notebook 05" in shards.merge("mine")


# ---- workers that are killed ------------------------------------------------------------------


def play_in_process(shard: str, url: str) -> subprocess.Popen:
    code = f"from test_shards import play; play('mine', {url!r}, {shard!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def asked_again(server: FaultServer) -> int:
    """How many questions came more than once (all texts of a run differ)."""
    return sum(n - 1 for n in server.times().values())


def test_a_process_killed_in_the_middle_loses_and_doubles_nothing(mine):
    mine.latency_seconds = 0.03
    processes = [play_in_process(f"{number}/2", mine.url) for number in (1, 2)]
    mine.wait_for(30)
    processes[0].kill()
    assert [p.wait() for p in processes] == [-signal.SIGKILL, 0]
    assert "1-of-2: did not finish" in stopped(shards.merge, "mine")
    assert play_in_process("1/2", mine.url).wait() == 0
    assert asked_again(mine) <= 4  # what was under way
    n_asked = len(mine.log)
    shards.merge("mine")
    play("mine", mine.url)
    assert same_as_whole() and len(mine.log) == n_asked


def test_the_ledger_of_a_dead_worker_is_waited_for(tmp_path):
    ledger = tmp_path / "answers.sqlite"
    code = f"""
import sys, time
from pathlib import Path
from ultrachat.store import open_store
with open_store(Path({str(ledger)!r})) as store:
    store.put_failure(("key", "t", "kind", "line"))
    print("open", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    assert "in use by another process" in stopped(shards.wait_until_free, ledger, 0.2)
    threading.Timer(0.5, holder.kill).start()
    shards.wait_until_free(ledger, 30.0)
    assert holder.wait() == -signal.SIGKILL
    with open_store(ledger) as store:
        assert store.failures() == {("t", "kind"): 1}


def play_on_ray(home: str, url: str, number: int, n_shards: int) -> None:
    """A worker that says who it is before it starts."""
    if number == 3:
        raise Stop("no third shard today")
    with Path(home, f"pids-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    play("mine", url, f"{number}/{n_shards}")


def test_a_ray_worker_killed_in_the_middle_is_started_again(mine, monkeypatch, tmp_path, capsys):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]))
    mine.latency_seconds = 0.03
    pids = tmp_path / "pids-1"

    def kill_the_first() -> None:
        mine.wait_for(30)
        os.kill(int(pids.read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    work = partial(play_on_ray, str(tmp_path), mine.url)
    assert shards.on_ray(work, 2, at_once=2) == {}
    killer.join()
    assert len(set(pids.read_text().split())) == 2  # two processes worked on the first shard
    printed = capsys.readouterr().out
    assert (
        "shard 1: its worker died" in printed
        and "2 done · 0 running · 0 waiting · 0 stopped · 1 restarts" in printed
    )
    assert asked_again(mine) <= 4
    n_asked = len(mine.log)
    shards.merge("mine")
    play("mine", mine.url)
    assert same_as_whole() and len(mine.log) == n_asked


# ---- with real notebooks ----------------------------------------------------------------------

PARAMETERS = """\
run_name: str = "mine"
shard: str = "1/1"
"""
DIES_ONCE = """\
import os, signal
from ultrachat.runs import open_run
run = open_run("05_user_simulation", globals())
if not (run.folder / "died").exists():
    (run.folder / "died").touch()
    os.kill(os.getpid(), signal.SIGKILL)
print(run.finish())
"""


def test_a_kernel_that_is_killed_is_a_worker_that_died(runs_home, tmp_path, monkeypatch):
    from test_launcher import notebook  # not above: workers import this file

    monkeypatch.setattr(launcher, "NOTEBOOKS", tmp_path)
    notebook(tmp_path, "05_user_simulation", DIES_ONCE, parameters=PARAMETERS)
    config = tmp_path / "config.yaml"
    config.write_text("05_user_simulation: {run_name: mine}\n")
    with pytest.raises(shards.WorkerDied, match="the kernel died"):
        shards.run_shard(config, [], 2, 3)
    shards.run_shard(config, [], 2, 3)
    (line,) = read_manifest(run_folder("mine", "2/3"))
    assert line["parameters"] == {"run_name": "mine", "shard": "2/3"}


def test_what_ray_is_asked_for_is_checked_first(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("05_user_simulation: {run_name: mine, no_such: 1}\n")
    assert "unknown parameter 'no_such'" in stopped(shards.run_on_ray, config, 2)
    assert stopped(shards.run_on_ray, config, 1).startswith("--of: expected")
    assert stopped(shards.run_on_ray, config, 2, [], 0).startswith("--at-once: expected")


def test_without_ray_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install" in stopped(shards.on_ray, print, 2)
