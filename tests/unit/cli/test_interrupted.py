"""Ctrl-C at any moment: no traceback."""

import sys
from types import SimpleNamespace

import pytest

import woodfrog.cli
from woodfrog.cli import __main__ as entry


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["importing", "running"])
def test_an_interrupt_ends_it_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    name = "woodfrog.cli.program"
    monkeypatch.delattr(woodfrog.cli, "program", raising=False)
    if when == "importing":
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=interrupted)])
    else:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(main=interrupted))
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")
