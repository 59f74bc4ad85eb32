"""Write the locks in requirements/, with hashes for every platform: `make lock`.

Versions stay as they are and what pyproject.toml newly asks for is added; `--upgrade` brings
everything up to date. At the end each requirement must have a wheel for Linux on x86-64 and arm64.

| file | holds |
|---|---|
| torch.txt | torch alone, with the hashes of the CPU builds and of the CUDA builds |
| cuda.txt | what the CUDA builds of torch need besides |
| service.txt, train.txt | what an image needs, without torch |
| dev.txt | what `make install` needs, without torch |
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "requirements"
EXTRAS = {
    "dev": ["train", "arrays", "export", "privacy", "service", "signing", "dev", "docs"],
    "service": ["service", "signing"],
    "train": ["train", "arrays", "features", "postgres", "privacy", "s3", "signing"],
}
TORCH = "torch==2.13.0"
"""One release of those that pyproject.toml allows, as a CPU build and as a CUDA build."""
PYTHONS = ["3.11", "3.14"]
PLATFORMS = ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28"]
CUDA_PACKAGE = re.compile(r"nvidia-|cuda-|triton$")
HEADER = "# Written by `make lock`.\n"
EVERYWHERE = ["--universal", "--generate-hashes", "--python-version=3.11"]


def main(options: list[str]) -> int:
    """Write and check the locks, and return the exit code; the options are those of uv."""
    lock_torch()
    cuda = lock_cuda(options)
    with tempfile.TemporaryDirectory() as folder:
        excludes = Path(folder) / "excludes.txt"
        excludes.write_text("\n".join(cuda))
        for name, extras in EXTRAS.items():
            # An image has the versions that the tests ran with.
            dev = [] if name == "dev" else ["--constraints", LOCKS / "dev.txt"]
            compile_lock(
                name,
                ROOT / "pyproject.toml",
                *(f"--extra={extra}" for extra in extras),
                *("--excludes", excludes, "--no-emit-package=torch"),
                *(*dev, *options),
            )
    check_wheels()
    return 0


def lock_torch() -> None:
    """Write torch.txt, unless it is about this release, whose files never change.

    The builds for CPUs are in PyTorch's own index, those for CUDA (and macOS) in the ordinary one.
    """
    lock = LOCKS / "torch.txt"
    if lock.exists() and TORCH in lock.read_text():
        return
    found = "".join(
        uv(TORCH, *EVERYWHERE, "--no-deps", f"--torch-backend={backend}")
        for backend in ("cpu", "pypi")
    )
    hashes = sorted(set(re.findall(r"--hash=sha256:[0-9a-f]{64}", found)))
    lock.write_text(HEADER + " \\\n    ".join([TORCH, *hashes]) + "\n")


def lock_cuda(options: list[str]) -> list[str]:
    """Write cuda.txt and return the names in it."""
    names = re.findall(r"^([a-z0-9-]+)==", uv(TORCH, *EVERYWHERE), re.MULTILINE)
    others = {name for name in names if not CUDA_PACKAGE.match(name)}
    compile_lock("cuda", TORCH, *(f"--no-emit-package={name}" for name in sorted(others)), *options)
    return [name for name in names if name not in others]


def compile_lock(name: str, requirements: str | Path, *options: object) -> None:
    """Write a lock with the hashes of every platform's files."""
    lock = LOCKS / f"{name}.txt"
    uv(requirements, *EVERYWHERE, *options, "--output-file", lock)
    lock.write_text(HEADER + lock.read_text().removeprefix(HEADER))


def check_wheels() -> None:
    """Raise CalledProcessError if a requirement has no wheel for a platform and Python.

    What the images need is in dev.txt too, so that is checked with it.
    """
    for name, platform, python in itertools.product(("cuda", "dev"), PLATFORMS, PYTHONS):
        target = f"--python-platform={platform}", f"--python-version={python}"
        uv(LOCKS / f"{name}.txt", *target, "--no-deps", "--only-binary=:all:")


def uv(requirements: str | Path, *options: object) -> str:
    """Run `uv pip compile` on a requirement or a file; return what it printed."""
    given = requirements if isinstance(requirements, str) else None
    command = [sys.executable, "-m", "uv", "pip", "compile", "-" if given else requirements]
    command += ["--quiet", "--no-annotate", "--no-header", "--no-emit-index-url", *options]
    words = [str(word) for word in command]
    done = subprocess.run(words, input=given, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
