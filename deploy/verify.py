"""Check all of deploy/ that a machine without a cluster can: `make verify-deploy`.

Each section runs, is skipped with its reason, or fails; the list at the end says which, and the
exit code is 1 if one failed. Name sections to run only those: `python deploy/verify.py chart`.

The images are built with buildah and run with podman, as root, on a base made by debootstrap, so
that no Docker and no image registry is needed. `WGAN_BUILD_MOUNTS` lists paths that the build may
read, such as those of pip and of local wheels; `WGAN_TORCH_INDEX` replaces PyTorch's index.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml

from deploy import tools

ROOT = tools.ROOT
CHART = ROOT / "deploy/chart"
VALUES = ["values", "values-kind", "values-gpu", "values-production"]
OPERATORS = ["monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule"]
WORK = Path(os.environ.get("WGAN_VERIFY_DIR", ROOT / ".tools/verify")).absolute()
"""Holds the base and the images between runs."""
CHECKOV_SKIPS = {
    "CKV_K8S_43": "a digest is a value, which values-production.yaml sets; a laptop has none",
    "CKV_K8S_15": "Always would fail for an image that was loaded into the node, and adds nothing "
    "to a digest",
    "CKV_K8S_35": "boto and MLflow read their credentials from the environment alone; API keys, "
    "which we read, are a file",
}
PACKAGES = ["buildah", "podman", "runc", "debootstrap", "iproute2", "curl"]
COMPILERS = ["gcc", "cc", "g++", "clang", "make", "ld"]
TRAINING_ONLY = ["mlflow", "scikit-learn", "scipy", "pandas", "pyarrow", "POT", "s3fs"]
LABELS = ["title", "description", "licenses", "version", "revision", "created"]
MAX_SIZE_GB = 1.6
MEMORY = "1g"
READY_SECONDS = 15.0


class Skipped(Exception):
    """A section cannot run here; says why."""


# ---- sections ------------------------------------------------------------------------------------


def dockerfile() -> str:
    """Hadolint finds nothing in the Dockerfile."""
    run(need("hadolint"), "Dockerfile")
    return "hadolint: nothing found"


def chart() -> str:
    """The chart renders, and what comes out passes every check of the tests."""
    need("helm")
    need("kubernetes-validate")
    return pytest("tests/test_chart.py")


def security() -> str:
    """Checkov finds nothing but what is skipped for a reason."""
    checkov, helm = need("checkov"), need("helm")
    with tempfile.TemporaryDirectory() as folder:
        for values in VALUES:
            (Path(folder) / f"{values}.yaml").write_text(render(helm, values))
        output = run(
            *(checkov, "--directory", folder, "--framework", "kubernetes", "--output", "json"),
            *("--compact", "--quiet", "--skip-download", "--soft-fail"),
        )
    report = json.loads(output)
    found = {check["check_id"] for check in report["results"]["failed_checks"]}
    assert found <= set(CHECKOV_SKIPS), found - set(CHECKOV_SKIPS)
    unneeded = set(CHECKOV_SKIPS) - found
    assert not unneeded, f"skipped for nothing: {unneeded}"
    return f"checkov: {report['summary']['passed']} checks passed, {len(found)} kinds skipped"


def monitoring() -> str:
    """Rules, dashboard and alerts, against a real Prometheus, Alertmanager and service."""
    need("promtool")
    return pytest("tests/test_monitoring.py")


def image() -> str:
    """The Dockerfile's two images, built; the service's size, and what is in them."""
    box = containers()
    box.build()
    size = box.size("service")
    assert size < MAX_SIZE_GB, f"the service image has {size:.2f} GB"
    for target in ("service", "train"):
        compilers, packages = box.contents(target)
        assert not compilers, f"{target}: {compilers}"
        # Of what only training needs, the service has nothing, and the train image all.
        wanted = TRAINING_ONLY if target == "train" else []
        assert packages == wanted, f"{target}: {packages}"
        about = box.inspect(target)
        user = about["Config"]["User"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), f"{target}: user {user!r}"
        labels = {f"org.opencontainers.image.{name}" for name in LABELS}
        assert labels <= set(about["Labels"]), f"{target}: labels {about['Labels']}"
    return f"service {size:.2f} GB, train {box.size('train'):.2f} GB"


def service() -> str:
    """The service under the chart's security context and limits: requests, and SIGTERM."""
    box = containers()
    box.build()
    spec = pod_spec("Deployment", "wgan")
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        run(
            *(sys.executable, "-m", "wgan_cli", "train", "--preset", "8gaussians", "--steps", "20"),
            *("--no-register", "--out", folder),
        )
        for path in [artifact, *artifact.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        with box.running(spec, mounts={artifact: "/model"}, WGAN_MODEL="/model") as pod:
            started = time.monotonic()
            pod.until("http://127.0.0.1:3000/readyz")
            ready, work = time.monotonic() - started, pod.cpu_seconds()
            answer = pod.ask("/v1/samples", {"count": 8, "format": "json"})
            assert len(answer["samples"]) == 8
            scores = pod.ask("/v1/scores", {"samples": answer["samples"]})
            assert len(scores["scores"]) == 8
            assert "wgan_model_ready 1.0" in pod.get("/metrics")
            peak = pod.peak_memory()
            code, seconds = pod.end()
        assert code == 0, f"SIGTERM ended it with {code}"
    load = os.getloadavg()[0]
    note = (
        f"ready in {ready:.1f} s, {work:.1f} s of them on a CPU (load {load:.1f}), within {MEMORY} "
        f"(peak {peak / 2**20:.0f} MiB)"
    )
    # On a machine that has other work to do only the time on a CPU says anything.
    quiet = load < (os.cpu_count() or 1)
    assert (ready if quiet else work) < READY_SECONDS, note
    return f"{note}; SIGTERM: exit 0 after {seconds:.1f} s"


def retraining() -> str:
    """The CronJob's pod against a real S3 server and the chart's MLflow: promoted, then skipped."""
    box = containers()
    box.build()
    import numpy as np

    from tests.s3 import KEY, SECRET, s3_server

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for part in ("runs", "mlflow", "config"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
        folder.chmod(0o755)
        stack.enter_context(box.network())
        url = stack.enter_context(s3_server(folder / "s3"))
        import s3fs

        store = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url)
        store.mkdir("data")
        generator = np.random.default_rng(0)
        angles = generator.integers(8, size=25_000) * np.pi / 4
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.sqrt(2)
        with store.open("data/ring.npy", "wb") as file:
            np.save(file, ring + generator.normal(scale=0.014, size=ring.shape))
        config = {
            "preset": "8gaussians",
            "data": "s3://data/ring.npy",
            "set": {"name": "ring", "training.steps": 500},  # enough for every gate
            "folder": "/runs",
        }
        (folder / "config/retrain.json").write_text(json.dumps(config))
        (folder / "config/retrain.json").chmod(0o644)
        mlflow = pod_spec("Deployment", "wgan-mlflow")
        tracker = stack.enter_context(
            box.running(mlflow, mounts={folder / "mlflow": "/mlflow"}, port=5000)
        )
        tracker.until("http://127.0.0.1:5000/health")
        assert tracker.status("/", Host="evil.example.com") == 403
        assert tracker.status("/", Host="wgan-mlflow:5000") == 200
        environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": url,
        }
        mounts = {folder / "runs": "/runs", folder / "config": "/etc/wgan"}
        spec = pod_spec("CronJob", "wgan-retrain")
        outcomes = []
        for secret in ("wrong", SECRET, SECRET):
            environment["AWS_SECRET_ACCESS_KEY"] = secret
            code = box.once(spec, mounts, **environment)
            outcomes.append(code)
        memory = tracker.peak_memory()
        lines = (folder / "runs/outcomes.jsonl").read_text().splitlines()
        told = [json.loads(line)["outcome"] for line in lines]
    assert outcomes == [2, 0, 0], outcomes
    assert told[-2:] == ["promoted", "skipped"], told
    return (
        "wrong secret: exit 2; then promoted, then skipped; MLflow refuses a foreign Host and took "
        f"{memory / 2**20:.0f} MiB at most"
    )


SECTIONS: list[Callable[[], str]] = [
    dockerfile,
    chart,
    security,
    monitoring,
    image,
    service,
    retraining,
]


# ---- helpers -------------------------------------------------------------------------------------


def need(program: str) -> Path:
    """A program, or Skipped."""
    found = tools.find(program)
    if found is None:
        raise Skipped(f"no {program}, and it could not be fetched")
    return found


def run(*command: object, **options: Any) -> str:
    """Run a command and return what it printed; its output is in the error if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=options.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    line = shlex.join(map(str, command))
    assert done.returncode == 0, f"$ {line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def pytest(*files: str) -> str:
    """Run tests, slow ones too, and return their count; a skip is no success here."""
    output = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    summary = output.strip().splitlines()[-1]
    assert "skipped" not in summary, output[-3000:]
    return summary.strip("= ")


def render(helm: Path, values: str, *more: str) -> str:
    """The chart's manifests, with the operators' kinds."""
    kinds = [f"--api-versions={kind}" for kind in OPERATORS]
    file = CHART / f"{values}.yaml"
    return run(helm, "template", "wgan", CHART, "--namespace", "gan", "-f", file, *kinds, *more)


def pod_spec(kind: str, name: str) -> dict[str, Any]:
    """A workload's pod specification, for one node."""
    more = ["--set", "s3.secret=s3"]
    for document in yaml.safe_load_all(render(need("helm"), "values-kind", *more)):
        if document and (document["kind"], document["metadata"]["name"]) == (kind, name):
            spec = document["spec"]
            spec = spec["jobTemplate"]["spec"] if kind == "CronJob" else spec
            return spec["template"]["spec"]
    raise AssertionError(f"the chart has no {kind} {name}")


class Pod:
    """One container that runs."""

    def __init__(self, box: Containers, name: str, port: int) -> None:
        self.box, self.name, self.port = box, name, port

    def until(self, address: str, seconds: float = 180) -> None:
        """Wait for a 200."""
        deadline = time.monotonic() + seconds
        path = re.sub(r"^http://[^/]+", "", address)
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                if self.status(path) == 200:
                    return
            state = self.box.podman("inspect", "--format", "{{.State.Running}}", self.name).strip()
            assert state == "true", self.box.logs(self.name)
            time.sleep(0.2)
        raise AssertionError(f"{address} never answered 200:\n{self.box.logs(self.name)}")

    def _curl(self, path: str, *options: str) -> str:
        address = f"http://127.0.0.1:{self.port}{path}"
        command = [*self.box.inside, "curl", "--silent", "--max-time", "60", *options, address]
        return run(*command)

    def status(self, path: str, **headers: str) -> int:
        """The status of a GET."""
        options = ["--output", "/dev/null", "--write-out", "%{http_code}"]
        for name, value in headers.items():
            options += ["--header", f"{name}: {value}"]
        return int(self._curl(path, *options))

    def get(self, path: str) -> str:
        """The body of a GET."""
        return self._curl(path, "--fail")

    def ask(self, path: str, body: Any) -> Any:
        """The JSON that a POST of JSON is answered with."""
        options = ["--fail", "--header", "Content-Type: application/json", "--data"]
        return json.loads(self._curl(path, *options, json.dumps(body)))

    def peak_memory(self) -> int:
        """Bytes, as the kernel counts them against the limit."""
        return int(self._accounts("memory/{}/memory.max_usage_in_bytes", "{}/memory.peak"))

    def cpu_seconds(self) -> float:
        """Time that its processes have had on a CPU so far."""
        said = self._accounts("cpuacct/{}/cpuacct.usage", "{}/cpu.stat")
        found = re.match(r"usage_usec (\d+)", said)
        return int(found[1]) / 1e6 if found else int(said) / 1e9

    def _accounts(self, *files: str) -> str:
        """What the kernel's control groups say of it, of version 1 or 2."""
        group = self.box.podman("inspect", "--format", "{{.State.CgroupPath}}", self.name).strip()
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                return Path("/sys/fs/cgroup", file.format(group.strip("/"))).read_text()
        raise AssertionError(f"no figures for {group}")

    def end(self) -> tuple[int, float]:
        """Send SIGTERM; the exit code, and seconds until the end."""
        started = time.monotonic()
        self.box.podman("kill", "--signal", "TERM", self.name)
        code = int(self.box.podman("wait", self.name).strip())
        return code, time.monotonic() - started


class Containers:
    """Builds and runs images without Docker: buildah and podman, their state below WORK."""

    BASE = "localhost/python:3.11-slim-bookworm"
    SPACE = f"wgan-verify-{os.getpid()}"

    def __init__(self) -> None:
        missing = [
            p
            for p in ("buildah", "podman", "runc", "debootstrap", "ip", "curl")
            if not shutil.which(p)
        ]
        if missing:
            raise Skipped(f"no {', '.join(missing)}; apt-get install {' '.join(PACKAGES)}")
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
        self.built = False

    def podman(self, *arguments: object) -> str:
        """Run podman on our images; what it printed."""
        # A container that runs out of memory leaves a file where podman was started.
        return run("podman", *arguments, env=self.environment, cwd=WORK)

    def logs(self, name: str) -> str:
        """The last that a container said."""
        return self.podman("logs", "--tail", "40", name)

    def build(self) -> None:
        """Both images, from the Dockerfile as it is."""
        if self.built:
            return
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
        self.built = True

    def _has(self, name: str) -> bool:
        command = ["podman", "image", "exists", name]
        return subprocess.run(command, env=self.environment, check=False).returncode == 0

    def _make_base(self) -> None:
        """Debian's own Python, where the official image has it."""
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
        """What podman knows of an image."""
        (about,) = json.loads(self.podman("image", "inspect", f"localhost/wgan-foundry:{target}"))
        return dict(about)

    def size(self, target: str) -> float:
        """Gigabytes, as `docker images` counts them."""
        return float(self.inspect(target)["Size"]) / 1e9

    def contents(self, target: str) -> tuple[list[str], list[str]]:
        """Which compilers and which of training's distributions an image holds."""
        code = (
            "import importlib.metadata as m, json, shutil, sys; d = {x.name for x in "
            "m.distributions()}; programs, names = map(json.loads, sys.argv[1:]); print(json.dumps("
            "[[p for p in programs if shutil.which(p)], [n for n in names if n in d]]))"
        )
        image = f"localhost/wgan-foundry:{target}"
        options = ["--rm", "--network", "none", "--entrypoint", "python"]
        names = map(json.dumps, (COMPILERS, TRAINING_ONLY))
        compilers, packages = json.loads(self.podman("run", *options, image, "-c", code, *names))
        return compilers, packages

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """The host's own network: other servers of this section listen there, on loopback."""
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
        """What a kubelet would make of a pod with one container."""
        (container,) = spec["containers"]
        pod, own = spec["securityContext"], container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        variables = {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}
        arguments = container["args"]
        if not self.inside:  # on the host's network: not where others could reach it
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
        """Run a pod's container for a while, in a network of its own unless there is one."""
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
        """Run a pod's container to its end; its exit code."""
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


_BOX: list[Containers] = []


def containers() -> Containers:
    """The one set of images, or Skipped."""
    if not _BOX:
        _BOX.append(Containers())
    return _BOX[0]


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


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
        except Exception as error:  # the other sections are to run all the same
            state, note = "FAILED", f"{type(error).__name__}: {error}"
            say(note)
        rows.append((name, state, time.monotonic() - started, note.splitlines()[0]))
    say("")
    for name, state, seconds, note in rows:
        say(f"{name:11s} {state:8s} {seconds:6.0f} s  {note}")
    return int(any(state == "FAILED" for _, state, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
