"""Runs the notebooks in order with the parameters of a config, and makes the report.

    configs/pilot.yaml:    all: {run_name: pilot, model: gpt-4o-mini}     # every notebook that has them
                           01_taxonomy: {n_subtopics: 36}
                           02_questions_about_the_world: {…}

Every name and type is checked against the notebook's parameters cell before the first notebook
starts (papermill itself only warns about an unknown name). Notebooks run in this very Python
environment; the first that fails stops the run with one line. A run leaves in `runs/<name>/` its
files, `notebooks/` (executed), `report/` (HTML with an index) and `manifest.jsonl`.

Absent on purpose: a scheduler. Notebooks are few and ordered, and resuming is running again.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ultrachat.errors import Stop
from ultrachat.runs import NOTEBOOKS, REPO, read_manifest, run_folder, write_text
from ultrachat.settings import read_yaml, value_of


@dataclass(frozen=True)
class Parameter:
    """A name in a notebook's parameters cell: its annotated type and its default.

    Ours: papermill knows the names; we also check the types.
    """

    name: str
    kind: str
    default: Any


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook by name, read from its cell tagged `parameters`.

    Every line there is `name: type = literal`. Raises Stop naming the notebook and line otherwise.

    Ours: an untyped or computed parameter cannot be checked.
    """
    import nbformat

    try:
        cells = nbformat.read(path, as_version=4).cells
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Stop(f"{path}: not a notebook") from None
    source = next((c.source for c in cells if "parameters" in c.metadata.get("tags", [])), None)
    if source is None:
        raise Stop(f"{path}: no cell is tagged 'parameters'")
    found = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise Stop(f"{path}: parameters cell, line {error.lineno}: not Python ({error.msg})") from None
    for statement in statements:
        where = f"{path}: parameters cell, line {statement.lineno}"
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise Stop(f"{where}: expected 'name: type = value'")
        name = statement.target.id
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            raise Stop(f"{where}: '{name}' should be a literal, nothing derived") from None
        found[name] = Parameter(name, ast.unparse(statement.annotation), default)
    return found


ALL = "all"  # in a config: for every notebook that has the parameter

_KINDS = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
    "None": type(None),
}


def check_value(where: str, parameter: Parameter, value: Any) -> Any:
    """Return the value if it has the parameter's type (an int is a float too), else raise Stop.

    Ours: `n: 10.0` and `flag: "true"` are mistakes worth a line before the first call is paid.
    """
    kinds = [re.split(r"\[", part.strip())[0] for part in parameter.kind.split("|")]
    allowed = [_KINDS[kind] for kind in kinds]
    if type(value) is int and "float" in kinds and "int" not in kinds:
        return float(value)
    if type(value) not in allowed:
        raise Stop(f"{where}: {parameter.name}: expected {parameter.kind}, got {value!r}")
    return value


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Return {notebook: {parameter: value}} from a YAML file, in notebook order, what is for all of them first.

    Raises Stop naming file and line (or notebook) when it has another form.

    Ours: a config holds every number of a run and nothing else.
    """
    config = read_yaml(path)
    if not isinstance(config, dict) or not config.keys() - {ALL}:
        raise Stop(f"{path}: expected 'notebook: {{parameter: value}}' entries")
    known = [p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb"))]
    for notebook, values in config.items():
        if notebook not in (ALL, *known):
            raise Stop(f"{path}: no notebook '{notebook}'; there are {', '.join(known)}")
        if not isinstance(values, dict):
            raise Stop(f"{path}: {notebook}: expected 'parameter: value' entries, got {values!r}")
    return {ALL: config.pop(ALL, {})} | {notebook: config[notebook] for notebook in sorted(config)}


def parse_only(text: str | None, notebooks: list[str]) -> list[str]:
    """Return the notebooks named by "05", "05-07" or "02,05-07", all of them for None.

    Raises Stop when the text has another form or names none.

    Ours: rerun one step without the others.
    """
    if text is None:
        return notebooks
    chosen: set[str] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{2})(?:-([0-9]{2}))?\s*", part)
        if not match:
            raise Stop(f"--only: expected numbers such as 05 or 05-07, got {text!r}")
        first, last = match[1], match[2] or match[1]
        chosen.update(name for name in notebooks if first <= name[:2] <= last)
    if not chosen:
        raise Stop(f"--only: no notebook of the config matches {text!r}")
    return [name for name in notebooks if name in chosen]


def plan(config_path: Path, only: str | None, settings: list[str]) -> dict[str, dict[str, Any]]:
    """Return {notebook: parameters} to run, every name and type checked.

    `settings` are "name=value" strings that apply to every chosen notebook with such a parameter;
    the value is read as YAML (true, 3, [a, b]). Raises Stop naming the parameter.

    Ours: papermill's own checks are warnings.
    """
    config = read_config(config_path)
    common = config.pop(ALL)
    chosen = parse_only(only, list(config))
    known = {notebook: notebook_parameters(NOTEBOOKS / f"{notebook}.ipynb") for notebook in chosen}
    everywhere = {name for parameters in known.values() for name in parameters}
    if only is None and (nowhere := sorted(common.keys() - everywhere)):
        raise Stop(f"{config_path}: {ALL}: no notebook has a parameter '{nowhere[0]}'")
    planned: dict[str, dict[str, Any]] = {}
    for notebook in chosen:
        planned[notebook] = {}
        shared = {name: value for name, value in common.items() if name in known[notebook]}
        for name, value in (shared | config[notebook]).items():
            if name not in known[notebook]:
                names = ", ".join(known[notebook])
                raise Stop(f"{config_path}: {notebook}: unknown parameter '{name}'; there are {names}")
            where = f"{config_path}: {notebook}"
            planned[notebook][name] = check_value(where, known[notebook][name], value)
    for setting in settings:
        name, equals, _ = setting.partition("=")
        takers = [notebook for notebook in chosen if name in known[notebook]]
        if not equals or not takers:
            names = sorted({name for parameters in known.values() for name in parameters})
            raise Stop(f"--set {setting}: expected name=value with a name among {', '.join(names)}")
        value = value_of(setting)
        for notebook in takers:
            planned[notebook][name] = check_value("--set", known[notebook][name], value)
    return planned


def run_name_of(planned: dict[str, dict[str, Any]]) -> str:
    """Return the one run that all planned notebooks belong to; Stop when they differ.

    Ours: one folder holds a run.
    """
    names = {values.get("run_name", "sample") for values in planned.values()}
    if len(names) != 1:
        raise Stop(f"run_name: expected the same in every notebook, got {', '.join(sorted(names))}")
    return names.pop()


def shard_of_plan(planned: dict[str, dict[str, Any]]) -> str:
    """Return the shard that all planned notebooks belong to; Stop when one of them cannot be divided.

    Ours: a shard has a folder of its own, into which only notebook 05 writes.
    """
    shards = {values.get("shard", "1/1") for values in planned.values()}
    if len(shards) != 1:
        raise Stop(f"shard: only notebook 05 can be divided; run --only 05 with --set shard={max(shards)}")
    return shards.pop()


def _own_kernel() -> str:
    """Return the name of a kernel that runs this very interpreter, or raise Stop."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    os.environ.pop("JUPYTER_PATH", None)  # it beats the environment, and exits with 0
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    try:
        argv = KernelSpecManager().get_kernel_spec("python3").argv
    except NoSuchKernel:
        raise Stop("kernel 'python3': not installed in this environment; pip install ipykernel") from None
    if Path(argv[0]).name != argv[0] and Path(argv[0]) != Path(sys.executable):
        raise Stop(f"kernel 'python3': runs {argv[0]}, expected {sys.executable}")
    return "python3"


def execute(notebook: str, parameters: dict[str, Any], folder: Path, kernel: str) -> float:
    """Execute one notebook into `folder`/notebooks and return the seconds it took.

    Raises Stop with the notebook, cell and last line of the error; the partly executed notebook stays.

    Ours: papermill under one readable line.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    out = folder / "notebooks" / f"{notebook}.ipynb"
    began = time.monotonic()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # sockets in a private folder: over TCP anybody on this machine could read along
        with TemporaryDirectory(prefix="ultrachat-") as sockets:
            private = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
            papermill.execute_notebook(
                NOTEBOOKS / f"{notebook}.ipynb", out, parameters=parameters, kernel_name=kernel, cwd=REPO,
                coalesce_streams=True, progress_bar=sys.stderr.isatty(), log_output=False, config=private,
                start_timeout=300,  # several kernels may start at once on a busy machine
                extra_arguments=["--log-level=50"],  # a kernel that is shut down after an error would say so
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        message = f"{error.ename}: {error.evalue}" if error.ename != "Stop" else error.evalue
        raise Stop(f"{notebook}, cell {error.exec_count}: {message}") from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise Stop(
            f"{notebook}: the kernel died ({type(error).__name__}); out of memory? see {out}"
        ) from None
    except OSError as error:
        raise Stop(f"{out}: cannot be written ({error.strerror})") from None
    return time.monotonic() - began


def run(config_path: Path, only: str | None = None, settings: list[str] | None = None) -> Path:
    """Run the notebooks of a config in order, print progress, write the report, return its index.

    Raises Stop at the first notebook that fails; the report then covers those that finished.

    Ours: one command for the whole paper.
    """
    from ultrachat.report import write_report

    planned = plan(config_path, only, settings or [])
    folder = run_folder(run_name_of(planned), shard_of_plan(planned))
    kernel = _own_kernel()
    began = time.monotonic()
    try:
        for position, (notebook, parameters) in enumerate(planned.items(), start=1):
            print(f"[{position}/{len(planned)}] {notebook} ...", flush=True)
            seconds = execute(notebook, parameters, folder, kernel)
            lines = [line for line in read_manifest(folder) if line["notebook"] == notebook]
            outputs = lines[0]["outputs"] if lines else {}
            rows = " · ".join(f"{name} {output['rows']:,}" for name, output in outputs.items())
            print(f"      {seconds:.0f} s · {rows}", flush=True)
    except BaseException:
        with suppress(
            Exception
        ):  # what stopped the run is the error to show; a full disk stops the report too
            write_report(folder)
        raise
    index = write_report(folder)
    print(f"all {len(planned)} notebooks in {time.monotonic() - began:.0f} s · open {_relative(index)}")
    return index


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


RESULTS = ("<!-- results: written by `python -m ultrachat update` -->", "<!-- end of results -->")
MEASURED = ("<!-- measured: written by `python -m ultrachat update` -->", "<!-- end of measured -->")
REFERENCE = ("<!-- reference: written by `python -m ultrachat update` -->", "<!-- end of reference -->")
RESULTS_OF = ("05", "06", "07", "08")  # notebooks whose closing tables README shows


def results_table(folder: Path) -> str:
    """Return the README's results: closing tables of a run as one Markdown table.

    Ours: no measured number is typed into prose.
    """
    import pandas as pd

    from ultrachat.paper import to_markdown

    tables = {n: pd.read_csv(folder / f"{n}_table.csv", dtype=str) for n in RESULTS_OF}
    return to_markdown(pd.concat(tables, names=["notebook", ""]).reset_index(level="notebook"))


def between(text: str, marks: tuple[str, str]) -> tuple[str, str, str]:
    """Return what stands before, between and after two marker lines; Stop when one is missing.

    Ours: the generated parts of the README.
    """
    before, begin, rest = text.partition(marks[0])
    middle, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise Stop(f"README.md: expected the line {marks[0]!r} and after it {marks[1]!r}")
    return before + begin, middle, end + after


def _update_readme(folder: Path) -> Path:
    import pandas as pd

    from ultrachat.paper import to_markdown
    from ultrachat.reference import beside_paper

    path = REPO / "README.md"
    text = path.read_text(encoding="utf-8")
    measured = pd.read_csv(REPO / "benchmarks/fresh_clone.csv", dtype=str)
    parts = {
        RESULTS: results_table(folder),
        MEASURED: to_markdown(measured),
        REFERENCE: to_markdown(beside_paper()),
    }
    for marks, table in parts.items():
        before, _, after = between(text, marks)
        text = f"{before}\n\n{table}\n\n{after}"
    write_text(path, text)
    return path


def update_committed(run_name: str = "sample") -> list[Path]:
    """Copy a run's executed notebooks, cleaned, over notebooks/, its figures into figures/, its closing
    tables into the README; return the files written.

    Ours: committed outputs are those of the sample run and a test re-runs them.
    """
    import nbformat

    from ultrachat.report import cleaned

    folder = run_folder(run_name)
    finished = {line["notebook"] for line in read_manifest(folder)}
    unfinished = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path.stem not in finished]
    if unfinished:
        raise Stop(f"{folder}: {', '.join(unfinished)} did not finish; run configs/sample.yaml first")
    written = []
    for executed in sorted((folder / "notebooks").glob("*.ipynb")):
        target = NOTEBOOKS / executed.name
        write_text(target, nbformat.writes(cleaned(nbformat.read(executed, as_version=4))) + "\n")
        written.append(target)
    for figure in sorted(folder.glob("*.png")):
        target = REPO / "figures" / figure.name
        shutil.copyfile(figure, target)
        written.append(target)
    return [*written, _update_readme(folder)]
