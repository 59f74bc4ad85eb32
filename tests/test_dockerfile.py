"""The Dockerfile, what is sent to it and its documentation, as far as no image need be built."""

import fnmatch
import http.server
import json
import re
import shlex
import ssl
import subprocess
import sys
import threading
import tomllib
from pathlib import Path, PurePath

import pytest

from deploy import lock, tools
from tests.command_line import parsed
from tests.test_tls import write_certificate

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEPLOY = (ROOT / "docs/deploy.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HADOLINT = tools.find("hadolint")


def stages() -> dict[str, str]:
    """The instructions of each stage, by its name."""
    _, *found = re.split(r"^FROM ", DOCKERFILE.replace("\\\n", " "), flags=re.MULTILINE)
    return {re.match(r"\S+ AS (\S+)", stage)[1]: stage for stage in found}


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint: run `make tools`")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [str(HADOLINT), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def sent(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last pattern that fits it decides."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"
    ]
    kept = True
    for pattern in patterns:
        glob = pattern.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in pattern
        ways = [str(way) for way in (PurePath(path), *PurePath(path).parents)][:-1]
        if any(fnmatch.fnmatch(PurePath(way).name if anywhere else way, glob) for way in ways):
            kept = pattern.startswith("!")
    return kept


def test_what_is_packaged_is_sent_and_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    setuptools = PROJECT["tool"]["setuptools"]
    modules = [f"{name}.py" for name in setuptools["py-modules"]]
    packages = [name.removesuffix("*") for name in setuptools["packages"]["find"]["include"]]
    wanted = {"pyproject.toml", "README.md", "LICENSE", *modules}
    found = {path for path in listed if sent(path)}
    assert wanted <= found
    assert {path.split("/")[0] for path in found - wanted} == {*packages, "requirements"}
    assert not sent("models/__pycache__/config.cpython-311.pyc")


def test_each_image_installs_its_lock_and_requires_hashes() -> None:
    for line in re.findall(r"pip install ([^&\n]*)", DOCKERFILE.replace("\\\n", " ")):
        own_code = line.strip() == "--no-deps --no-build-isolation ."
        assert own_code or "--require-hashes --no-deps --requirement requirements/" in line, line
    for name in ("torch", "service", "train"):
        stage = stages()[name if name == "torch" else f"{name}-dependencies"]
        assert f"--requirement requirements/{name}.txt" in stage
        assert re.search(rf"^COPY .*requirements/{name}.txt", stage, re.MULTILINE)
        assert lock.LOCKS.joinpath(f"{name}.txt").exists()
    extras = PROJECT["project"]["optional-dependencies"].keys()
    assert lock.EXTRAS["service"] == ["service", "signing"]
    # Inception's weights are the user's own, and whoever exports a model does it by hand; the tools
    # of development are no part of an image.
    assert {*lock.EXTRAS["train"]} == extras - {"service", "inception", "export", "dev", "docs"}


@pytest.mark.parametrize("name", ["service", "train"])
def test_the_last_stages_only_copy(name: str) -> None:
    """Nothing is built in them, and their user has a number, so that a cluster can tell it."""
    stage = stages()[name]
    assert stage.startswith("runtime " if name == "service" else "train-runtime ")
    instructions = re.findall(r"^([A-Z]+) ", stage, re.MULTILINE)
    assert set(instructions) <= {"LABEL", "COPY", "CMD", "EXPOSE", "HEALTHCHECK"}
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stages()["runtime"], re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.*\])$", stage, re.MULTILINE)
    if name == "service":
        options = parsed(json.loads(command))
        assert f"EXPOSE {options.port}\n" in stage


class _Live(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("tls", "told", "status", "code"),
    [
        (False, False, 200, 0),
        (True, True, 200, 0),
        (False, False, 503, 1),
        (True, True, 503, 1),
        (True, False, 200, 1),
        (False, True, 200, 1),
    ],
)
def test_the_health_check_asks_as_the_service_speaks(
    tmp_path: Path, tls: bool, told: bool, status: int, code: int
) -> None:
    """`told`: the variable of the certificate is set. A proxy of the host is not asked."""
    stage = stages()["service"]
    program, *words = json.loads(
        re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", stage, re.MULTILINE)[1]
    )
    assert program == "python"
    certificate = write_certificate(tmp_path, "service.example.com")
    handler = type("Handler", (_Live,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        environment = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:1")
        environment["WGAN_TLS_CERT"] = str(certificate[0]) if told else ""
        done = subprocess.run(
            [sys.executable, *(word.replace("3000", str(server.server_port)) for word in words)],
            env=environment, capture_output=True, check=False,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == code, done.stderr


def test_what_is_downloaded_is_cached_and_in_no_layer() -> None:
    for name in ("torch", "service-dependencies", "train-dependencies"):
        (line,) = re.findall(r"^RUN (.*--require-hashes.*)$", stages()[name], re.MULTILINE)
        assert line.startswith("--mount=type=cache,target=/var/cache/pip,")
    assert "ENV PIP_CACHE_DIR=/var/cache/pip\n" in stages()["torch"]
    assert "PIP_NO_CACHE_DIR" not in DOCKERFILE


def test_there_is_a_compiler_where_a_step_may_be_compiled_and_nowhere_else() -> None:
    """Triton, which the CUDA build needs, calls it when it runs."""
    installs = re.findall(r"apt-get install [^;&]*", DOCKERFILE.replace("\\\n", " "))
    (install,) = installs
    assert {"gcc", "libc6-dev"} <= set(install.split())
    stage = stages()["train-runtime"]
    assert stage.startswith("runtime ")
    script = re.search(r"^RUN (.*)$", stage, re.MULTILINE)[1]
    ran = {
        compute: subprocess.run(
            ["bash", "-e", "-c", f"apt-get() {{ echo $1; }}; rm() {{ :; }}; {script}"],
            env={"COMPUTE": compute}, capture_output=True, text=True, check=True,
        ).stdout.split()
        for compute in ("cpu", "cuda")
    }  # fmt: skip
    assert ran == {"cpu": [], "cuda": ["update", "install"]}
    assert re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1] == "10001:10001"
    assert "triton==" in lock.LOCKS.joinpath("cuda.txt").read_text()


def test_the_docs_build_and_run_what_there_is() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", DEPLOY, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    builds = [line for line in lines if line.startswith("docker build ")]
    runs = [line for line in lines if line.startswith("docker run")]
    tags = set()
    for line in builds:
        assert re.search(r"--target (\S+)", line)[1] in stages()
        tags.add(re.search(r"--tag (\S+)", line)[1])
        for argument in re.findall(r"--build-arg (\w+)=", line):
            assert re.search(rf"^ARG {argument}=", DOCKERFILE, re.MULTILINE)
    assert len(builds) == 3
    for line in runs:
        words = shlex.split(line)
        (place,) = [i for i, word in enumerate(words) if word in tags]
        if arguments := words[place + 1 :]:
            parsed(arguments)
    assert len(runs) == 4
