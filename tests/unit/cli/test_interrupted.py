"""Ctrl-C at any moment: no traceback."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import woodfrog.cli
from woodfrog.cli import __main__ as entry

# Its command ends as told; the interrupt comes after that, while Python ends.
LATE = """
import os, signal, sys, types
from woodfrog.cli import __main__ as entry

class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGINT):
        kill(own, number)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
sys.modules["woodfrog.cli.program"] = types.SimpleNamespace(main=lambda: sys.exit(int(sys.argv[1])))
late = Late()
entry.main()
"""


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


@pytest.mark.parametrize("status", [0, 1])
def test_one_that_comes_when_the_command_is_done_changes_nothing(status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE, str(status)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")
