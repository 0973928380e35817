"""Grafana's own models of its files read our dashboards, and lose nothing of them: a field that it does not know would go."""

import json
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.capabilities import ROOT

register_default_plugins()  # of queries and kinds of panels
FILES = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


def read_by_grafana(value: Any) -> Any:
    return json.loads(JSONEncoder().encode(Dashboard.from_json(value)))


def within(ours: Any, theirs: Any) -> bool:
    """Whether all of ours is in theirs, which adds defaults."""
    if isinstance(ours, dict):
        return all(key in theirs and within(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(within, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grafana_knows_each_field(file: Any) -> None:
    value = json.loads(file.read_text())
    assert value["panels"]
    assert within(value, read_by_grafana(value))
    for place in (value, value["panels"][0], value["panels"][0]["targets"][0]):
        place["misspelt"] = 1
        assert not within(value, read_by_grafana(value))
        del place["misspelt"]
