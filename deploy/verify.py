"""Check all of deploy/ that can be checked without a cluster: `make verify-deploy`.

Each section runs, is skipped for a reason, or fails. The list at the end says which, and the exit
code is 1 if one failed. Name sections to run only those: `python deploy/verify.py chart`.

The images are built with buildah and run with podman, as root, on a base made by debootstrap, so
neither Docker nor an image registry is needed. `WGAN_BUILD_MOUNTS` lists paths that the build may
read, such as pip's configuration and local wheels; `WGAN_TORCH_INDEX` replaces PyTorch's index.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deploy import tools
from deploy.checks import files, images
from deploy.checks.shared import Skipped, say

SECTIONS: list[Callable[[], str]] = [
    files.dockerfile,
    files.workflow,
    files.locks,
    files.chart,
    files.security,
    files.monitoring,
    images.image,
    images.service,
    images.retraining,
]


def main(wanted: list[str]) -> int:
    """Run sections; return 1 if one failed."""
    names = [section.__name__ for section in SECTIONS]
    unknown = set(wanted) - set(names)
    if unknown:
        say(f"error: no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
        return 2
    tools.main(list(tools.FETCH))
    rows = []
    for section in SECTIONS:
        name = section.__name__
        if wanted and name not in wanted:
            continue
        say(f"{name}: {section.__doc__}")
        started = time.monotonic()
        try:
            state, note = "ran", section()
        except Skipped as error:
            state, note = "skipped", str(error)
        except Exception as error:  # the other sections must still run
            state, note = "FAILED", f"{type(error).__name__}: {error}"
            say(note)
        rows.append((name, state, time.monotonic() - started, note.splitlines()[0]))
    say("")
    for name, state, seconds, note in rows:
        say(f"{name:11s} {state:8s} {seconds:6.0f} s  {note}")
    return int(any(state == "FAILED" for _, state, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
