"""A run's folder: names that are paths, publishing on failing disks, inputs that are not what was published."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ultrachat import runs
from ultrachat.errors import Stop
from ultrachat.records import Topic
from ultrachat.runs import Run, open_run, read_manifest, run_folder, sha256_of, write_text

TOPICS = [Topic(id=str(i), meta_topic="Music", subtopic=f"Jazz {i}") for i in range(3)]


def run(notebook: str = "01_taxonomy", name: str = "mine") -> Run:
    return Run(notebook, name, {"run_name": name})


def publish_topics() -> Run:
    first = run()
    first.write("01_topics.jsonl", TOPICS)
    first.finish()
    return first


# ---- names ------------------------------------------------------------------------------------

NASTY = [
    "", ".", "..", "/", "a/b", "../a", "a/../../b", "/etc/passwd", "a\\b", "..\\a", "C:\\a", "~", "~root", "a b", " a",
    "a ", "a\n", "a\x00", "a.b", ".hidden", "a:b", "a*", "$HOME", "`id`", "$(id)", "a;b", "a|b", "ä", "日本", "a\u202eb",
    "\uff0e\uff0e", "a" * 65, "%2e%2e", "file:///a", "\ud800", "a\tb", "<a>", "'", '"', None, 7, True, ["a"], Path("a"),
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_a_run_name_is_never_a_path(runs_home, name):
    for opened in (run_folder, run, lambda n: open_run("01_taxonomy", {"run_name": n})):
        with pytest.raises(Stop, match="^run_name: ") as stopped:
            opened(*([name] if opened is not run else ["01_taxonomy", name]))
        assert str(stopped.value).isprintable()
    assert not runs_home.exists() and os.listdir(runs_home.parent) == []


@pytest.mark.parametrize("name", ["a", "A-b_9", "a" * 64, "-"])
def test_other_names_are_folders_under_runs(runs_home, name):
    assert run_folder(name) == runs_home / name
    assert run(name=name).folder.is_dir() and [p.name for p in runs_home.iterdir()] == [name]


def test_without_the_variable_runs_are_in_the_repository(monkeypatch):
    monkeypatch.delenv("ULTRACHAT_RUNS")
    assert run_folder("a") == runs.REPO / "runs" / "a"


@pytest.fixture(autouse=True)
def own_home(runs_home):
    return runs_home


def test_a_notebook_writes_only_files_with_its_number(runs_home):
    third = run("03_creation_and_generation")
    for name in (
        "02_a.jsonl",
        "a.jsonl",
        "03_",
        "../03_a",
        "03_../a",
        "03_a/b",
        "manifest.jsonl",
        "answers.sqlite",
    ):
        with pytest.raises(Stop, match="writes only files named 03_"):
            third.write(name, TOPICS)
    assert list(third.folder.iterdir()) == []
    assert third.write("03_a.jsonl", TOPICS).name == "03_a.jsonl"


def test_a_notebook_reads_only_lower_numbers():
    for name in ("04_a.jsonl", "../01_a", "a.jsonl", "1_a.jsonl", "answers.sqlite"):
        with pytest.raises(Stop, match="reads only files of notebooks before it"):
            run("03_creation_and_generation").input(name)


# ---- publishing -------------------------------------------------------------------------------


def test_publishing_is_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "naïve\n\ud800")
    assert path.read_bytes() == "naïve\n?".encode() and path.stat().st_mode & 0o777 == 0o644
    write_text(path, "")
    assert path.read_bytes() == b"" and os.listdir(path.parent) == ["a.txt"]


class Disk:
    """Makes the n-th call of one function fail; `calls` counts them."""

    def __init__(self, monkeypatch, owner, name: str, number: int, fail_at: int) -> None:
        self.calls, real = 0, getattr(owner, name)

        def failing(*arguments, **named):
            self.calls += 1
            if self.calls == fail_at:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, failing)


STEPS = {
    "mkstemp": ("tempfile", "mkstemp", 1), "fdopen": ("os", "fdopen", 1), "fsync of the file": ("os", "fsync", 1),
    "chmod": ("os", "chmod", 1), "replace": ("os", "replace", 1), "open of the folder": ("os", "open", None),
    "fsync of the folder": ("os", "fsync", 2),
}  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("step", STEPS)
def test_a_failing_disk_leaves_a_whole_file_and_says_one_line(tmp_path, monkeypatch, step, number):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    module, name, fail_at = STEPS[step]
    owner = getattr(runs, module)
    if fail_at is None:  # of the opens only the one of the folder
        real = os.open
        monkeypatch.setattr(os, "open", lambda at, *rest, **named: _fail(number) if at == tmp_path else real(at, *rest, **named))  # fmt: skip
    else:
        Disk(monkeypatch, owner, name, number, fail_at)
    with pytest.raises(Stop) as stopped:
        write_text(path, "new and longer")
    monkeypatch.undo()
    assert str(stopped.value).startswith(f"{path}: cannot be written ({os.strerror(number)})")
    published = step in ("open of the folder", "fsync of the folder")  # whole, only not known to be on disk
    assert path.read_text() == ("new and longer" if published else "old")
    assert os.listdir(tmp_path) == ["a.txt"]
    write_text(path, "new and longer")  # once there is room again
    assert path.read_text() == "new and longer"


def _fail(number: int):
    raise OSError(number, os.strerror(number))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_write_that_hits_the_end_of_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(
        runs.tempfile, "mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / ".x"))
    )
    (tmp_path / ".x").write_text("half")
    with pytest.raises(Stop, match="No space left on device"):
        write_text(path, "new" * 10_000)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_when_even_tidying_up_fails_it_is_one_line(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, lambda *_, **__: _fail(errno.EIO))
    with pytest.raises(Stop, match="cannot be written"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_cannot_be_made(runs_home):
    runs_home.parent.mkdir(exist_ok=True)
    runs_home.write_text("a file")
    with pytest.raises(Stop, match="cannot be created"):
        run()
    with pytest.raises(Stop, match="cannot be written"):
        write_text(runs_home / "a.txt", "x")


# ---- reading what others published ------------------------------------------------------------


def test_what_was_published_is_read_and_noted_in_the_manifest():
    publish_topics()
    second = run("02_questions_about_the_world")
    assert second.read("01_topics.jsonl", Topic) == TOPICS
    second.finish({"answers": 3})
    first, line = read_manifest(second.folder)
    assert first["outputs"] == {"01_topics.jsonl": {"sha256": line["inputs"]["01_topics.jsonl"], "rows": 3}}
    assert line["usage"] == {"answers": 3} and line["parameters"] == {"run_name": "mine"}
    assert line["versions"]["python"] and line["commit"]


def test_a_missing_input_names_the_notebook_that_writes_it():
    with pytest.raises(Stop) as stopped:
        run("05_user_simulation").read("02_openings.jsonl", Topic)
    line = str(stopped.value)
    assert "02_openings.jsonl: missing; run notebook 02_questions_about_the_world first" in line
    assert "run_name='mine'" in line


def test_an_input_changed_since_it_was_published_is_refused():
    path = publish_topics().folder / "01_topics.jsonl"
    path.write_text(path.read_text().replace("Jazz 1", "Jazz 7"))
    with pytest.raises(Stop, match=r"01_topics\.jsonl: changed since notebook 01 published it"):
        run("02_questions_about_the_world").read("01_topics.jsonl", Topic)
    publish_topics()
    assert run("02_questions_about_the_world").read("01_topics.jsonl", Topic) == TOPICS


def publish_openings() -> None:
    second = run("02_questions_about_the_world")
    second.write("02_openings.jsonl", second.read("01_topics.jsonl", Topic))
    second.finish()


def test_an_input_made_from_an_older_file_is_refused():
    publish_topics()
    publish_openings()
    assert run("05_user_simulation").read("02_openings.jsonl", Topic) == TOPICS
    publish_topics()  # the same content again is no change
    assert run("05_user_simulation").read("02_openings.jsonl", Topic) == TOPICS
    first = run()
    first.write("01_topics.jsonl", TOPICS[:2])
    first.finish()
    with pytest.raises(
        Stop, match=r"02_openings\.jsonl: made from an older 01_topics\.jsonl; run notebook 02"
    ):
        run("05_user_simulation").read("02_openings.jsonl", Topic)
    publish_openings()
    assert run("05_user_simulation").read("02_openings.jsonl", Topic) == TOPICS[:2]


def test_a_file_of_a_notebook_that_did_not_finish_is_refused():
    publish_topics()
    opened = open_run("01_taxonomy", {"run_name": "mine"})
    opened.write("01_topics.jsonl", TOPICS)
    with pytest.raises(Stop, match=r"01_topics\.jsonl: notebook 01 wrote it and did not finish"):
        run("02_questions_about_the_world").read("01_topics.jsonl", Topic)
    opened.finish()
    assert run("02_questions_about_the_world").read("01_topics.jsonl", Topic) == TOPICS


def test_an_input_published_anew_but_not_finished_is_refused():
    publish_topics()
    run().write("01_topics.jsonl", TOPICS[:1])  # and died before finish()
    with pytest.raises(Stop, match="changed since"):
        run("02_questions_about_the_world").input("01_topics.jsonl")


def test_finishing_again_replaces_the_line_and_keeps_the_order():
    for notebook in ("02_questions_about_the_world", "01_taxonomy", "02_questions_about_the_world"):
        opened = run(notebook)
        opened.write(f"{opened.number}_a.jsonl", TOPICS)
        assert opened.finish() == f"{opened.number}_a.jsonl: 3 rows"
    assert [line["notebook"] for line in read_manifest(opened.folder)] == [
        "01_taxonomy",
        "02_questions_about_the_world",
    ]


def test_a_manifest_survives_odd_text_and_a_broken_one_is_named():
    odd = Run("01_taxonomy", "mine", {"run_name": "mine", "note": "a\u2028b\x85c\nd"})
    odd.finish()
    assert read_manifest(odd.folder)[0]["parameters"]["note"] == "a\u2028b\x85c\nd"
    path = odd.folder / "manifest.jsonl"
    good = path.read_text()
    for broken in (good + "{", good + "[1]", good + "{}", good + '{"notebook": 2, "outputs": {}}', "\xff"):
        path.write_bytes(broken.encode("latin-1" if broken == "\xff" else "utf-8"))
        with pytest.raises(Stop, match=r"manifest\.jsonl:[12]: "):
            read_manifest(odd.folder)


def test_no_manifest_is_an_empty_one(tmp_path):
    assert read_manifest(tmp_path) == []


# ---- opening ----------------------------------------------------------------------------------


def test_the_plain_values_of_the_parameters_cell_are_the_parameters():
    namespace = {
        "__name__": "__main__", "_i1": "run_name", "In": ["x"], "Out": {}, "get_ipython": print, "os": os,
        "run_name": "mine", "n": 3, "flag": True, "path": None, "sizes": [1, 2],
    }  # fmt: skip
    opened = open_run("01_taxonomy", namespace)
    assert opened.parameters == {"run_name": "mine", "n": 3, "flag": True, "path": None, "sizes": [1, 2]}
    with pytest.raises(Stop, match="run_name: missing"):
        open_run("01_taxonomy", {"n": 3})


def test_the_sample_says_what_it_is_not():
    assert "not comparable with the paper" in run(name="sample").describe()
    assert run().describe() == "run 'mine'"


def test_a_digest_is_the_files(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_kernel_shows_a_stop_as_one_line(tmp_path):
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        "shell = Shell.instance()\n"
        "from ultrachat.runs import quiet_stops; quiet_stops()\n"
        "result = shell.run_cell('from ultrachat.errors import Stop; raise Stop(\"one line\")')\n"
        "assert not result.success\n"
        "shell.run_cell('1 / 0')\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(runs.REPO / "src"), "IPYTHONDIR": str(tmp_path), "NO_COLOR": "1"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    first, rest = (shown.stdout + shown.stderr).split("\n", 1)
    assert first == "Stop: one line" and "Traceback" in rest and "ZeroDivisionError" in rest


def test_every_manifest_line_is_json_on_one_line():
    publish_topics()
    text = (run_folder("mine") / "manifest.jsonl").read_text()
    assert text.count("\n") == 1 and json.loads(text)["notebook"] == "01_taxonomy"
