"""The key that `woodfrog chat` sends."""

import pytest

from woodfrog.cli import chat
from woodfrog.errors import InvalidArgument


def test_a_key_from_a_file_ends_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WOODFROG_API_KEY", "wf-1-x\n")
    assert chat._authorization() == {"authorization": "Bearer wf-1-x"}
    for wrong in ("a\nb", "schlüssel"):
        monkeypatch.setenv("WOODFROG_API_KEY", wrong)
        with pytest.raises(InvalidArgument, match="is no API key"):
            chat._authorization()
