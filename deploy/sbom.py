"""Write a bill of materials (CycloneDX, JSON) of each image: `make sbom`.

It lists the Python packages that the image's locks install on Linux, with the hashes that pip
asks for. What the base image brings is not in the locks: the builder lists it (docs/deploy.md).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
IMAGES = {
    "service": ["torch", "service"],
    "train": ["torch", "train"],
    "service-cuda": ["torch", "cuda", "service"],
    "train-cuda": ["torch", "cuda", "train"],
}
"""Locks that each image installs: see the Dockerfile."""
LINUX = {
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.2",
    "python_version": "3.11",
    "sys_platform": "linux",
}
"""The images' environment, as markers of requirements see it; the machine makes no difference."""


def main(folder: Path, images: list[str]) -> int:
    """Write ``IMAGE.cdx.json`` for some images, or else all, and return the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images or IMAGES:
        requirements = "".join(map(of_linux, IMAGES[image]))
        command = [sys.executable, "-m", "cyclonedx_py", "requirements", "-"]
        command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
        command += ["--output-file", str(folder / f"{image}.cdx.json")]
        subprocess.run(command, input=requirements, text=True, check=True)
    return 0


def of_linux(lock: str) -> str:
    """The requirements of a lock that Linux installs, with their hashes, a line each."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text().replace("\\\n", " ")
    lines = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        requirement, *hashes = re.split(r"\s+(?=--hash=)", line)
        parsed = Requirement(requirement)
        if parsed.marker is None or parsed.marker.evaluate(LINUX):
            lines.append(" ".join([f"{parsed.name}{parsed.specifier}", *hashes]) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
