"""Start is recovery: what a crashed predecessor left is found by name and removed before anything is served."""

import logging
import shutil
from pathlib import Path

from woodfrog.host.cgroup import Cgroups
from woodfrog.host.folders import remove_tree

log = logging.getLogger(__name__)


def recover(cgroups: Cgroups, run_dir: Path, staging: Path) -> int:
    """Ends the predecessor's sandboxes and removes its folders; how many sandboxes there were."""
    leftovers = cgroups.leftovers()
    for cgroup in leftovers:
        cgroup.kill()
        try:
            cgroup.remove()
        except OSError as error:  # a process that cannot be killed; the next start tries again
            log.error("sandbox left behind", extra={"error": str(error)})
    for folder in run_dir.iterdir() if run_dir.exists() else ():
        remove_tree(folder)
    shutil.rmtree(staging, ignore_errors=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    staging.mkdir(parents=True)
    if leftovers:
        log.info("predecessor's sandboxes removed", extra={"count": len(leftovers)})
    return len(leftovers)
