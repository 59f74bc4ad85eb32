"""Build and run the images without Docker: buildah and podman, as root, on a debootstrap base."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.checks.shared import ROOT, Skipped, run, say

WORK = Path(os.environ.get("WGAN_VERIFY_DIR", ROOT / ".tools/verify")).absolute()
"""Holds the base and the images between runs."""
PROGRAMS = ["buildah", "podman", "runc", "debootstrap", "ip", "curl"]
DEBIAN_PACKAGES = "buildah podman runc debootstrap iproute2 curl"


class Pod:
    """A container that runs, and how to talk to it."""

    def __init__(self, containers: Containers, name: str, port: int) -> None:
        self.containers, self.name, self.port = containers, name, port

    def until(self, address: str, seconds: float = 180) -> None:
        """Wait until a GET is answered with status 200."""
        deadline = time.monotonic() + seconds
        path = re.sub(r"^http://[^/]+", "", address)
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                if self.status(path) == 200:
                    return
            state = self.containers.podman(
                "inspect", "--format", "{{.State.Running}}", self.name
            ).strip()
            assert state == "true", self.containers.logs(self.name)
            time.sleep(0.2)
        raise AssertionError(f"{address} never answered 200:\n{self.containers.logs(self.name)}")

    def _curl(self, path: str, *options: str) -> str:
        address = f"http://127.0.0.1:{self.port}{path}"
        command = [
            *self.containers.inside,
            "curl",
            "--silent",
            "--max-time",
            "60",
            *options,
            address,
        ]
        return run(*command)

    def status(self, path: str, **headers: str) -> int:
        """Return the status of a GET."""
        options = ["--output", "/dev/null", "--write-out", "%{http_code}"]
        for name, value in headers.items():
            options += ["--header", f"{name}: {value}"]
        return int(self._curl(path, *options))

    def get(self, path: str) -> str:
        """Return the body of a GET."""
        return self._curl(path, "--fail")

    def ask(self, path: str, body: Any) -> Any:
        """POST JSON and return the JSON of the answer."""
        options = ["--fail", "--header", "Content-Type: application/json", "--data"]
        return json.loads(self._curl(path, *options, json.dumps(body)))

    def peak_memory(self) -> int:
        """Return the most memory used, in bytes, as the kernel counts it against the limit."""
        return int(self._read_cgroup("memory/{}/memory.max_usage_in_bytes", "{}/memory.peak"))

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used so far."""
        said = self._read_cgroup("cpuacct/{}/cpuacct.usage", "{}/cpu.stat")
        found = re.match(r"usage_usec (\d+)", said)
        return int(found[1]) / 1e6 if found else int(said) / 1e9

    def _read_cgroup(self, *files: str) -> str:
        """Return the first of the container's cgroup files that exists, of version 1 or 2."""
        group = self.containers.podman(
            "inspect", "--format", "{{.State.CgroupPath}}", self.name
        ).strip()
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                return Path("/sys/fs/cgroup", file.format(group.strip("/"))).read_text()
        raise AssertionError(f"no figures for {group}")

    def end(self) -> tuple[int, float]:
        """Send SIGTERM; return the exit code and the seconds until the end."""
        started = time.monotonic()
        self.containers.podman("kill", "--signal", "TERM", self.name)
        code = int(self.containers.podman("wait", self.name).strip())
        return code, time.monotonic() - started


class Containers:
    """The images and the containers made from them. All their state is below WORK."""

    BASE = "localhost/python:3.11-slim-bookworm"
    SPACE = f"wgan-verify-{os.getpid()}"

    def __init__(self) -> None:
        missing = [program for program in PROGRAMS if not shutil.which(program)]
        if missing:
            raise Skipped(f"no {', '.join(missing)}; apt-get install {DEBIAN_PACKAGES}")
        if os.geteuid() != 0:
            raise Skipped("building and running containers here needs root")
        WORK.mkdir(parents=True, exist_ok=True)
        (WORK / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{WORK}/storage"\nrunroot = "{WORK}/run"\n'
        )
        (WORK / "containers.conf").write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        )
        (WORK / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(WORK / "storage.conf"),
            "CONTAINERS_CONF": str(WORK / "containers.conf"),
        }
        self.inside: list[str] = []

    def podman(self, *arguments: object) -> str:
        """Run podman on our images; return what it printed."""
        # A container that runs out of memory leaves a file where podman was started.
        return run("podman", *arguments, env=self.environment, cwd=WORK)

    def logs(self, name: str) -> str:
        """Return the last lines that a container wrote."""
        return self.podman("logs", "--tail", "40", name)

    def build(self) -> None:
        """Build both images from the Dockerfile."""
        if not self._has(self.BASE):
            self._make_base()
        index = os.environ.get("WGAN_TORCH_INDEX")
        arguments = ["--build-arg", f"PYTHON_IMAGE={self.BASE}"]
        arguments += ["--build-arg", f"TORCH_INDEX={index}"] if index else []
        for path in os.environ.get("WGAN_BUILD_MOUNTS", "").split():
            arguments += ["--volume", f"{path}:{path}:ro"]
        for target in ("service", "train"):
            say(f"  building {target}")
            run(
                *("buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never"),
                *("--format", "docker", "--layers", "--target", target, *arguments),
                *("--signature-policy", WORK / "policy.json"),
                *("--tag", f"localhost/wgan-foundry:{target}", "."),
                env=self.environment,
            )

    def _has(self, name: str) -> bool:
        command = ["podman", "image", "exists", name]
        return subprocess.run(command, env=self.environment, check=False).returncode == 0

    def _make_base(self) -> None:
        """Make the base image: Debian with its own Python, at the official image's paths."""
        say("  making a base with debootstrap")
        root = WORK / "base"
        shutil.rmtree(root, ignore_errors=True)
        targets = ["apt-get", "indextargets", "Created-By: Packages", "--format", "$(REPO_URI)"]
        mirror = run(*targets).split()[0]
        packages = "python3,python3-pip,python3-venv,ca-certificates"
        run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root, mirror)
        for name in ("python", "python3", "pip"):
            target = "pip3" if name == "pip" else "python3"
            (root / "usr/local/bin" / name).symlink_to(f"/usr/bin/{target}")
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        archive = WORK / "base.tar"
        run("tar", "--create", "--file", archive, "--directory", root, ".")
        self.podman("import", "--quiet", archive, self.BASE)
        archive.unlink()
        shutil.rmtree(root)

    def inspect(self, target: str) -> dict[str, Any]:
        """Return podman's description of an image."""
        (about,) = json.loads(self.podman("image", "inspect", f"localhost/wgan-foundry:{target}"))
        return dict(about)

    def size(self, target: str) -> float:
        """Return an image's size in gigabytes, as `docker images` counts it."""
        return float(self.inspect(target)["Size"]) / 1e9

    def contents(
        self, target: str, programs: list[str], distributions: list[str]
    ) -> tuple[list[str], list[str]]:
        """Return which of some programs and of some Python distributions an image holds."""
        code = (
            "import importlib.metadata as m, json, shutil, sys; d = {x.name for x in "
            "m.distributions()}; programs, names = map(json.loads, sys.argv[1:]); print(json.dumps("
            "[[p for p in programs if shutil.which(p)], [n for n in names if n in d]]))"
        )
        image = f"localhost/wgan-foundry:{target}"
        options = ["--rm", "--network", "none", "--entrypoint", "python"]
        names = map(json.dumps, (programs, distributions))
        found = json.loads(self.podman("run", *options, image, "-c", code, *names))
        return found[0], found[1]

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Use the host's own network, where other servers of a check listen on loopback."""
        self.inside = []
        self.options = ["--network", "host", "--add-host", "wgan-mlflow:127.0.0.1"]
        try:
            yield
        finally:
            del self.options

    @contextlib.contextmanager
    def _own_network(self) -> Iterator[None]:
        run("ip", "netns", "add", self.SPACE)
        run("ip", "-n", self.SPACE, "link", "set", "lo", "up")
        self.inside = ["ip", "netns", "exec", self.SPACE]
        self.options = ["--network", f"ns:/run/netns/{self.SPACE}"]
        try:
            yield
        finally:
            self.inside = []
            del self.options
            run("ip", "netns", "delete", self.SPACE)

    def _command(
        self, spec: dict[str, Any], mounts: dict[Path, str], environment: dict[str, str]
    ) -> list[object]:
        """Return what follows `podman run` to run a pod as a kubelet would."""
        (container,) = spec["containers"]
        pod, own = spec["securityContext"], container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        variables = {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}
        arguments = container["args"]
        if not self.inside:  # on the host's network, listen where only this host can connect
            arguments = [word.replace("0.0.0.0", "127.0.0.1") for word in arguments]
        command: list[object] = ["--read-only", "--tmpfs", "/tmp:rw,mode=1777", "--no-healthcheck"]
        command += ["--user", f"{pod['runAsUser']}:{pod['runAsGroup']}"]
        command += [f"--cap-drop={c}" for c in own["capabilities"]["drop"]]
        command += ["--security-opt", "no-new-privileges"]
        limits = container["resources"]["limits"]
        command += ["--memory", limits["memory"].replace("i", "").lower()]
        command += ["--cpus", str(limits["cpu"])]
        if "workingDir" in container:
            command += ["--workdir", container["workingDir"]]
        for name, value in {**variables, **environment}.items():
            command += ["--env", f"{name}={value}"]
        for path, target in mounts.items():
            command += ["--volume", f"{path}:{target}"]
        words = list(container.get("command", []))
        if words:
            command += ["--entrypoint", json.dumps(words)]
        return [*command, f"localhost/{container['image']}", *arguments]

    @contextlib.contextmanager
    def running(
        self,
        spec: dict[str, Any],
        mounts: dict[Path, str],
        port: int = 3000,
        **environment: str,
    ) -> Iterator[Pod]:
        """Run a pod's container within the block, in a network of its own unless one is in use."""
        with contextlib.ExitStack() as stack:
            if not hasattr(self, "options"):
                stack.enter_context(self._own_network())
            command = self._command(spec, mounts, environment)
            name = f"wgan-verify-{port}-{os.getpid()}"
            self.podman("run", "--detach", "--name", name, *self.options, *command)
            try:
                yield Pod(self, name, port)
            finally:
                self.podman("rm", "--force", "--time", "5", name)

    def once(self, spec: dict[str, Any], mounts: dict[Path, str], **environment: str) -> int:
        """Run a pod's container to its end; return the exit code."""
        command = self._command(spec, mounts, environment)
        line = ["podman", "run", "--rm", *self.options, *command]
        done = subprocess.run(
            [str(word) for word in line],
            env=self.environment,
            cwd=WORK,
            capture_output=True,
            text=True,
            check=False,
        )
        say("  " + (done.stdout + done.stderr).strip().splitlines()[-1])
        return done.returncode
