"""Folders that are removed whole."""

import os
from pathlib import Path


def remove_tree(folder: Path) -> None:
    """Removes a folder and what is below it; one that is gone already is fine. Never follows a link."""
    if not folder.exists():
        return
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(root, name))
        for name in folders:
            path = os.path.join(root, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    folder.rmdir()
