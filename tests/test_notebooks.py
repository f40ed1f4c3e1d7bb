"""The sample run, end to end: the notebooks are executed once and compared with what is committed."""

import json
import re

import nbformat
import pytest

from ultrachat import launcher, runs
from ultrachat.runs import NOTEBOOKS, REPO, read_manifest

NAMES = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
# of a closing table; in 08 models talk by sampling, and a last digit of another processor's can change a word, and
# with it the rest of one of ten dialogues
TOLERANCES = dict.fromkeys(NAMES, 0.05) | {"08_trained_user_simulators": 0.2}


def load(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook, tag=None):
    return [
        c
        for c in notebook.cells
        if c.cell_type == "code" and (tag is None or tag in c.metadata.get("tags", []))
    ]


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory):
    """The folder of a fresh sample run, made by the launcher as `./run reproduce` does."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRACHAT_RUNS", str(folder))
        launcher.run(REPO / "configs/sample.yaml")
        yield runs.run_folder("sample")


def table_text(notebook):
    """The plain text of the closing table, white space normalised."""
    (cell,) = code_cells(notebook, "table")
    text = "".join(output["data"]["text/plain"] for output in cell.outputs if "data" in output)
    return " ".join(text.split())


def assert_alike(committed, fresh, tolerance):
    """Equal words; equal numbers up to what another machine's arithmetic may change."""
    assert NUMBER.sub("#", committed) == NUMBER.sub("#", fresh)
    for old, new in zip(NUMBER.findall(committed), NUMBER.findall(fresh), strict=True):
        a, b = float(old.replace(",", "")), float(new.replace(",", ""))
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance), f"{old} is committed, {new} came out"


@pytest.mark.parametrize("name", NAMES)
def test_closing_table_is_what_the_code_prints(sample_run, name):
    fresh = table_text(load(sample_run / "notebooks" / f"{name}.ipynb"))
    assert len(fresh) > 100
    assert_alike(table_text(load(NOTEBOOKS / f"{name}.ipynb")), fresh, TOLERANCES[name])


@pytest.mark.parametrize("name", NAMES)
def test_notebook_follows_the_skeleton(name):
    notebook = load(NOTEBOOKS / f"{name}.ipynb")
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for heading in ("## Set-up", "## One by hand", "## All of them", "## Look", "## Figure", "## Closing table",
                    "## How to read it", "Where we differ", "## Exercises", "only a parameter"):  # fmt: skip
        assert heading in text, heading
    assert len(code_cells(notebook, "parameters")) == 1 and len(code_cells(notebook, "table")) == 1
    for cell in code_cells(notebook):
        assert len([line for line in cell.source.splitlines() if line.strip()]) <= 30
        assert not re.search(r"sys\.path|^\s*[!%]|^\s*try:", cell.source, re.M)
        assert not any(output.output_type == "error" for output in cell.outputs)
    assert any(cell.outputs for cell in code_cells(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_small_and_clean(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    text = path.read_text()
    assert path.stat().st_size < 300_000
    assert "papermill" not in json.loads(text)["metadata"] and "injected-parameters" not in text
    assert str(REPO) not in text


def test_counts_reconcile_and_the_manifest_says_so(sample_run):
    lines = {line["notebook"]: line for line in read_manifest(sample_run)}
    assert list(lines) == NAMES
    rows = {file: output["rows"] for line in lines.values() for file, output in line["outputs"].items()}
    openings = sum(rows[f"{n}_openings.jsonl"] for n in ("02", "03", "04"))
    assert rows["05_dialogues.jsonl"] + rows["05_dropped.jsonl"] == openings  # the recording has no failures
    for line in lines.values():
        assert line["parameters"]["run_name"] == "sample" and line["versions"]["python"]
        for file in line["inputs"]:
            assert file[:2] < line["notebook"][:2]
        for file, output in line["outputs"].items():
            assert file[:2] == line["notebook"][:2]
            assert runs.sha256_of(sample_run / file) == output["sha256"]


def test_report_covers_every_notebook(sample_run):
    index = (sample_run / "report/index.html").read_text()
    for name in NAMES:
        assert f"{name}.html" in index
        assert (sample_run / "report" / f"{name}.html").stat().st_size > 10_000
    assert "not comparable" in index


def test_committed_figures_are_those_of_the_run(sample_run):
    made = {path.name for path in sample_run.glob("*.png")}
    assert made and made == {path.name for path in (REPO / "figures").glob("*.png")}


def test_readme_results_are_what_the_code_prints(sample_run):
    _, committed, _ = launcher.between((REPO / "README.md").read_text(), launcher.RESULTS)
    lines = zip(committed.strip().splitlines(), launcher.results_table(sample_run).splitlines(), strict=True)
    for old, new in lines:
        tolerance = next((t for name, t in TOLERANCES.items() if old.startswith(f"| {name[:2]} ")), 0.0)
        assert_alike(old, new, tolerance)
