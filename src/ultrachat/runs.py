"""Where a run's files live, how they are published, and one manifest line per notebook.

    run = open_run("02_questions_about_the_world", globals())
    topics = run.read("01_topics.jsonl", Topic)      # checked against what notebook 01 published
    run.write("02_openings.jsonl", openings)         # all of it or nothing
    run.finish(teacher.usage())                      # the manifest line

A notebook writes only files that start with its own number and reads only lower ones, so data
flows forward and a missing input can name the notebook that writes it. With `shard="3/16"` a notebook
has a folder of its own, `runs/<name>/shards/03-of-16/`; what it reads is the run's (see `shards`).

Absent on purpose: a workflow manager. Content hash in, content hash out is enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from ultrachat.errors import Stop
from ultrachat.records import Record, WithId, iter_rows, read_jsonl, to_jsonl

REPO = Path(__file__).resolve().parents[2]
DATA = REPO / "data"
NOTEBOOKS = REPO / "notebooks"
VERSIONS_OF = ("openai", "transformers", "torch", "peft", "pandas", "numpy", "lexicalrichness", "papermill")
if TYPE_CHECKING:
    from pandas import DataFrame

R = TypeVar("R", bound=Record)


def runs_folder() -> Path:
    """Return the folder that holds all runs: $ULTRACHAT_RUNS, or `runs/` in the repository.

    Ours: the tests need a place of their own.
    """
    return Path(os.environ.get("ULTRACHAT_RUNS") or REPO / "runs")


MAX_SHARDS = 10_000


def parse_shard(text: str) -> tuple[int, int]:
    """Return (3, 16) for "3/16", the third of sixteen; Stop unless it is i/n with 1 <= i <= n <= 10,000.

    Ours: one parameter says which part of a run this is.
    """
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text) if isinstance(text, str) else None
    shard, n_shards = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard <= n_shards <= MAX_SHARDS:
        raise Stop(
            f"shard: expected i/n such as 3/16 with 1 <= i <= n <= {MAX_SHARDS:,}, got {str(text)[:80]!r}"
        )
    return shard, n_shards


def shard_of(identifier: str, n_shards: int) -> int:
    """Return the one shard, from 1 to `n_shards`, that a record belongs to by its id.

    Raises Stop when the id is no hexadecimal number.

    Ours: the same division on every machine, and adding records moves none of the others.
    """
    if not re.fullmatch(r"[0-9a-f]+", identifier):
        raise Stop(f"id: expected hexadecimal digits to divide into shards by, got {identifier[:80]!r}")
    return int(identifier, 16) % n_shards + 1


def in_shard(identifier: str, shard: int, n_shards: int) -> bool:
    """Return whether a record belongs to a shard; Stop as `shard_of`. Ours: see there."""
    return shard_of(identifier, n_shards) == shard


def run_folder(run_name: str, shard: str = "1/1") -> Path:
    """Return the folder of one run, or of one shard of it, which may not exist yet.

    Raises Stop unless the name is 1–64 letters, digits, "_" or "-": a name is never a path.

    Ours: nothing is written outside the runs folder.
    """
    if not isinstance(run_name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_name):
        raise Stop(f"run_name: expected 1 to 64 letters, digits, '_' or '-', got {run_name!r}")
    number, n_shards = parse_shard(shard)
    folder = runs_folder() / run_name
    return folder if n_shards == 1 else folder / "shards" / f"{number:0{len(str(n_shards))}}-of-{n_shards}"


def write_text(path: Path, text: str) -> None:
    """Publish `text` as UTF-8 at `path`; see `write_bytes`.

    Ours: a file that exists is complete.
    """
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Publish `data` at `path`; see `publishing`.

    Ours: a file that exists is complete.
    """
    with publishing(path) as file:
        file.write(data)


@contextmanager
def publishing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, which takes its name at `path` when the block ends: the whole of it, durably, or nothing.

    Raises Stop naming the file when the disk is full or the write fails; the old file then stays
    (only if the folder itself cannot be synced is it the new one, whole).

    Ours: a file that exists is complete.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp made it private to its owner
        os.replace(temporary, path)
        temporary = None
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise Stop(f"{path}: cannot be written ({error.strerror}); no half-written file is left") from None
    finally:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex digits.

    Ours: content hash in, content hash out.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str:
    """Return the short git commit of the repository, "+" appended if tracked files differ, or "unknown".

    Ours: every run says which code made it.
    """
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=REPO, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def _parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the plain values out of a notebook's globals: right after the parameters cell these are they."""
    plain = (str, int, float, bool, list, dict, type(None))
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out") and type(value) in plain
    }


def quiet_stops() -> None:
    """Show a Stop as its one line instead of a traceback in this IPython kernel; papermill still fails.

    Ours: bad input gets one clear line.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return

    def show(shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: Any = None) -> list[str]:
        line = f"Stop: {error}"
        shell._showtraceback(kind, error, [line])  # what nbclient records is this list, nothing else
        return [line]

    shell.set_custom_exc((Stop,), show)


class Run:
    """One notebook's view of a run's folder: it reads lower-numbered files and writes its own.

    Ours: the paper describes stages, not files.
    """

    def __init__(self, notebook: str, run_name: str, parameters: Mapping[str, Any]) -> None:
        self.notebook = notebook
        self.number = notebook[:2]
        self.name = run_name
        self.parameters = dict(parameters)
        shard = self.parameters.get("shard", "1/1")
        self.inputs_folder = run_folder(run_name)  # of a shard too: the notebooks before it ran once for all
        self.folder = run_folder(run_name, shard)
        self.shard, self.n_shards = parse_shard(shard)
        self._inputs: dict[str, str] = {}
        self._outputs: dict[str, dict[str, Any]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Stop(f"{self.folder}: cannot be created ({error.strerror})") from None

    @property
    def store_path(self) -> Path:
        """The SQLite file that keeps every answer of this run."""
        return self.folder / "answers.sqlite"

    def path(self, name: str) -> Path:
        """Return where this notebook may write `name`; Stop unless the name starts with its number."""
        if not re.fullmatch(re.escape(self.number) + r"_[A-Za-z0-9_.-]+", name):
            raise Stop(f"{name}: notebook {self.notebook} writes only files named {self.number}_…")
        return self.folder / name

    def input(self, name: str) -> Path:
        """Return the path of an earlier notebook's file after checking that it is what was published.

        Raises Stop when it is missing (naming the notebook that writes it), later, altered, left by a
        notebook that did not finish, or made from a file that has been published anew since.
        """
        if not re.fullmatch(r"[0-9]{2}_[A-Za-z0-9_.-]+", name) or name[:2] > self.number:
            raise Stop(f"{name}: notebook {self.notebook} reads only files of notebooks before it")
        path = self.inputs_folder / name
        if not path.exists():
            writer = next((p.stem for p in sorted(NOTEBOOKS.glob(f"{name[:2]}_*.ipynb"))), name[:2])
            raise Stop(f"{path}: missing; run notebook {writer} first (with run_name='{self.name}')")
        digest = sha256_of(path)
        lines = {file: line for line in read_manifest(self.inputs_folder) for file in line["outputs"]}
        if name not in lines:
            raise Stop(f"{path}: notebook {name[:2]} wrote it and did not finish; run it to its last cell")
        if lines[name]["outputs"][name]["sha256"] != digest:
            raise Stop(f"{path}: changed since notebook {name[:2]} published it; run that notebook again")
        for older, used in lines[name]["inputs"].items():
            if older in lines and lines[older]["outputs"][older]["sha256"] != used:
                raise Stop(f"{path}: made from an older {older}; run notebook {name[:2]} again")
        self._inputs[name] = digest
        return path

    def input_folder(self, name: str) -> Path:
        """Return an earlier notebook's folder (a model, say); Stop naming that notebook when it is missing."""
        path = self.inputs_folder / name
        if not path.is_dir():
            raise Stop(f"{path}: missing; run notebook {name[:2]} first (with run_name='{self.name}')")
        return path

    def read(self, name: str, kind: type[R]) -> list[R]:
        """Return the records in an earlier notebook's JSONL file; Stop as `input` and `read_jsonl` do."""
        return read_jsonl(self.input(name), kind)

    def own_share(self, records: Iterable[WithId]) -> list[WithId]:
        """Return the records that belong to this shard, in order: all of them when the run has no shards.

        Raises Stop when there is none, or an id is no content id.
        """
        records = list(records)
        if self.n_shards == 1:
            return records
        own = [record for record in records if in_shard(record.id, self.shard, self.n_shards)]
        if not own:
            raise Stop(
                f"shard: none of {len(records):,} is in shard {self.shard} of {self.n_shards}; use fewer shards"
            )
        return own

    def write(self, name: str, records: Iterable[Record]) -> Path:
        """Publish records as JSONL under this notebook's number and return the path."""
        records = list(records)
        return self.publish(name, to_jsonl(records), rows=len(records))

    def publish(self, name: str, text: str, rows: int) -> Path:
        """Publish text (a CSV, say) under this notebook's number and return the path."""
        path = self.path(name)
        write_text(path, text)
        self._outputs[name] = {"sha256": sha256_of(path), "rows": rows}
        return path

    def describe(self) -> str:
        """Return the line a notebook's setup cell prints: run and, for the sample, what it is not."""
        line = f"run '{self.name}'"
        if self.n_shards > 1:
            line += f" · shard {self.shard} of {self.n_shards}"
        if self.name == "sample":
            line += " · illustrates the pipeline; not comparable with the paper"
        return line

    def begin(self) -> None:
        """Take this notebook's line out of the manifest: one that is running has not finished."""
        if any(line["notebook"] == self.notebook for line in read_manifest(self.folder)):
            self._replace_line([])

    def _replace_line(self, own: list[dict[str, Any]]) -> None:
        lines = [line for line in read_manifest(self.folder) if line["notebook"] != self.notebook] + own
        lines.sort(key=lambda line: line["notebook"])
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
        write_text(self.folder / "manifest.jsonl", text)

    def finish(self, usage: Mapping[str, Any] | None = None, closing: DataFrame | None = None) -> str:
        """Publish the closing table as `NN_table.csv`, write this notebook's manifest line, and return a
        one-line summary of what was published."""
        if closing is not None:
            self.publish(f"{self.number}_table.csv", closing.to_csv(index=False), rows=len(closing))
        line = {
            "notebook": self.notebook,
            "parameters": self.parameters,
            "inputs": self._inputs,
            "outputs": self._outputs,
            "usage": dict(usage or {}),
            "versions": {"python": platform.python_version()} | _versions(),
            "commit": commit(),
        }
        self._replace_line([line])
        return " · ".join(f"{name}: {output['rows']:,} rows" for name, output in self._outputs.items())


def open_run(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Return the Run of a notebook, called right after its parameters cell with `globals()`.

    The plain values found there (the parameters) go into the manifest; `run_name` names the folder and
    `shard`, where a notebook has it, the part. Raises Stop when `run_name` is missing or one is no such thing.

    Ours: one line opens a run.
    """
    quiet_stops()
    parameters = _parameters(namespace)
    if "run_name" not in parameters:
        raise Stop("run_name: missing from the parameters cell")
    run = Run(notebook, parameters["run_name"], parameters)
    run.begin()
    return run


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the manifest lines of a run folder, one per notebook that finished, in notebook order.

    Raises Stop naming the line that is not one.

    Ours: parameters, digests, row counts, tokens and versions of everything in the folder.
    """
    path = folder / "manifest.jsonl"
    if not path.exists():
        return []
    lines = []
    for where, line in iter_rows(path):
        for field, kind in (("notebook", str), ("parameters", dict), ("inputs", dict), ("outputs", dict)):
            if not isinstance(line.get(field), kind):
                raise Stop(
                    f"{where}: field '{field}' is missing; delete the file and run the notebooks again"
                )
        lines.append(line)
    return lines


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an optional package that is not installed shaped nothing
    return versions
