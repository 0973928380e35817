"""A snapshot holds the code of packages and maps their libraries, so the fingerprint names each that an engine imports."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import woodfrog.engine
import woodfrog.llamacpp
import woodfrog.replica
from woodfrog.model.spec import ENGINES, ModelSpec
from woodfrog.node_agent import fingerprint

SPEC = ModelSpec("frog", "sha256:" + "0" * 64, 0)
NOT_EVERYWHERE = {"cuda": "cuda-bindings"}


def imported(engine: ModuleType) -> Iterator[str]:
    """Top names of what is neither Python's nor ours."""
    for package in (engine, woodfrog.replica):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize(
    ("spec", "engine", "elsewhere"),
    [
        (SPEC, woodfrog.engine, set()),
        (
            replace(SPEC, engine="llamacpp"),
            woodfrog.llamacpp,
            {"torch", "cuda"},
        ),  # where a GPU wants them
    ],
)
def test_every_package_that_an_engine_imports_is_named(
    spec: ModelSpec, engine: ModuleType, elsewhere: set[str]
) -> None:
    owners = metadata.packages_distributions()
    names = set(imported(engine)) - sys.stdlib_module_names - {"woodfrog", "", *elsewhere}
    packages = {owners[n][0] if n in owners else NOT_EVERYWHERE[n] for n in names}
    assert len(packages) > 2
    assert {name.lower() for name in packages} <= fingerprint.of_engine(spec).keys()


def test_engines_differ_by_their_code() -> None:
    prints = [fingerprint.of_engine(replace(SPEC, engine=name)) for name in ENGINES]
    assert len({each["code"] for each in prints}) == len(ENGINES)


def test_versions_are_those_that_are_installed() -> None:
    found = fingerprint.of_engine(SPEC)
    assert found["transformers"] == metadata.version("transformers")
    assert found["diffusers"] == metadata.version("diffusers")
