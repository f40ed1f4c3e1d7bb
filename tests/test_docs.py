"""What the documentation says exists: commands, parameters, packages, links, and the source of every choice."""

import ast
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ultrachat.launcher import notebook_parameters, plan
from ultrachat.recipes import Recipe
from ultrachat.runs import NOTEBOOKS, REPO
from ultrachat.training_run import Job, read_job

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
CONSTRAINTS = (REPO / "constraints.txt").read_text().splitlines()
README = (REPO / "README.md").read_text()
MODULES = sorted((REPO / "src/ultrachat").rglob("*.py"))


def bare_name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def pinned() -> dict[str, str]:
    return dict(line.lower().replace("_", "-").split("==") for line in CONSTRAINTS if line.strip())


def test_every_constraint_is_an_exact_public_version():
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line


def test_every_direct_dependency_is_pinned():
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    direct = [*PYPROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    missing = [name for name in map(bare_name, direct) if name not in pinned()]
    assert not missing


def test_every_line_of_the_dependency_lists_says_where_it_is_used():
    text = (REPO / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[tool.setuptools")]
    for line in block.splitlines():
        if re.match(r'\s*"|\w+ = \["', line):
            assert "#" in line, line


def test_environment_file_is_in_step():
    text = (REPO / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    python, pip, nested = environment["dependencies"]
    assert environment["name"] == "ultrachat" and pip == "pip"
    floor = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert f">={floor}" in python
    constraints, package = nested["pip"]
    assert constraints == "-c constraints.txt"
    extras = set(re.fullmatch(r"-e \.\[(.*)\]", package)[1].split(","))
    assert extras == set(PYPROJECT["project"]["optional-dependencies"])
    for line in text.splitlines():
        if line.strip().startswith("- ") and line.strip() != "- pip:":
            assert "#" in line, f"{line!r} does not say where it is used"


@pytest.mark.parametrize("config", sorted((REPO / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_parameter_exists_and_has_its_type(config):
    if "recipe" in yaml.safe_load(config.read_text()):
        assert read_job(config).out.startswith("runs/")
        return
    planned = plan(config, None, [])
    assert list(planned) == [p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb"))]


def test_every_notebook_parameter_says_what_it_is_or_takes_its_name_from_the_paper():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        assert "run_name" in notebook_parameters(path)


def public_definitions():
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if definition and not node.name.startswith("_"):
                yield f"{path.stem}.{node.name}", ast.get_docstring(node) or ""


def test_every_public_definition_names_its_source():
    # the source is the last paragraph of the docstring, or its last sentence when it is one line
    missing = [
        name
        for name, text in public_definitions()
        if not re.search(r"\b(Paper|Ours): \S", text.strip().split("\n\n")[-1])
    ]
    assert not missing


def test_every_module_opens_with_its_idea():
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring and len(docstring) > 60, path


def test_modules_that_know_torch_are_few():
    knows = {
        p.stem
        for p in MODULES
        if re.search(r"^\s*(import|from) (torch|transformers|peft)\b", without_types(p.read_text()), re.M)
    }
    # embeddings imports it in a child process only (test_lexical: importing it loads no torch)
    assert knows <= {
        "batching",
        "heldout",
        "trainer",
        "training",
        "tiny",
        "chatmodels",
        "logprobs",
        "deltas",
        "embeddings",
        "dpo",
    }


def without_types(source):
    """A module without what only type checkers import."""
    return re.sub(r"^if TYPE_CHECKING:\n(?:(?: {4}.*)?\n)+", "", source, flags=re.M)


def test_readme_commands_exist():
    commands = set(re.findall(r"\./run ([a-z]+)", README))
    script = (REPO / "run").read_text()
    assert {"reproduce", "test", "lab"} <= commands
    for command in commands:
        assert re.search(rf"^    {command}\)", script, re.M), command
    for module in re.findall(r"python -m (ultrachat[.\w]*)", README):
        path = REPO / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_readme_files_exist():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (REPO / link).exists(), link
    for row in re.findall(r"^(\w[\w./-]*/?) {2,}\S", README, re.M):
        if "/" in row or "." in row:
            assert (REPO / row).exists() or row.startswith("runs/"), row


def test_readme_set_parameters_exist():
    names = {name for path in NOTEBOOKS.glob("*.ipynb") for name in notebook_parameters(path)}
    names |= {field.name for kind in (Job, Recipe) for field in fields(kind)}
    used = set(re.findall(r"--set (\w+)=", README))
    assert used and used <= names


def test_readme_names_every_module_and_notebook():
    for path in [*MODULES, *NOTEBOOKS.glob("*.ipynb")]:
        if not path.stem.startswith("__"):
            assert path.stem in README, path.stem


def test_citation_is_readable():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["cff-version"] and citation["title"] and citation["authors"]
    assert Path(REPO / "LICENSE").exists()
