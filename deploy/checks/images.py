"""Checks of the images: what is in them, and how they run under the chart's limits."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import s3fs

from deploy.checks.containers import Containers
from deploy.checks.shared import pod_spec, run
from tests.s3 import KEY, SECRET, s3_server

COMPILERS = ["gcc", "cc", "g++", "clang", "make", "ld"]
TRAINING_ONLY = ["mlflow", "scikit-learn", "scipy", "pandas", "POT", "s3fs"]
LABELS = ["title", "description", "licenses", "version", "revision", "created"]
MAX_SIZE_GB = 1.6
MEMORY = "1g"
READY_SECONDS = 15.0


@functools.cache
def built_images() -> Containers:
    """Build the images, once for all checks; raise Skipped where that is impossible."""
    images = Containers()
    images.build()
    return images


def image() -> str:
    """Both images build, the service's is small, and they hold what they should."""
    images = built_images()
    size = images.size("service")
    assert size < MAX_SIZE_GB, f"the service image has {size:.2f} GB"
    for target in ("service", "train"):
        compilers, packages = images.contents(target, COMPILERS, TRAINING_ONLY)
        assert not compilers, f"{target}: {compilers}"
        # The train image has everything that only training needs; the service's has none of it.
        wanted = TRAINING_ONLY if target == "train" else []
        assert packages == wanted, f"{target}: {packages}"
        about = images.inspect(target)
        user = about["Config"]["User"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), f"{target}: user {user!r}"
        labels = {f"org.opencontainers.image.{name}" for name in LABELS}
        assert labels <= set(about["Labels"]), f"{target}: labels {about['Labels']}"
    return f"service {size:.2f} GB, train {images.size('train'):.2f} GB"


def service() -> str:
    """The service answers and ends within the chart's security context and limits."""
    images = built_images()
    spec = pod_spec("Deployment", "wgan")
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        run(
            *(sys.executable, "-m", "wgan_cli", "train", "--preset", "8gaussians", "--steps", "20"),
            *("--no-register", "--out", folder),
        )
        for path in [artifact, *artifact.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        with images.running(spec, mounts={artifact: "/model"}, WGAN_MODEL="/model") as pod:
            started = time.monotonic()
            pod.until("http://127.0.0.1:3000/readyz")
            ready, work = time.monotonic() - started, pod.cpu_seconds()
            answer = pod.ask("/v1/samples", {"count": 8, "format": "json"})
            assert len(answer["samples"]) == 8
            scores = pod.ask("/v1/scores", {"samples": answer["samples"]})
            assert len(scores["scores"]) == 8
            assert 'wgan_model_ready{model="model"} 1.0' in pod.get("/metrics")
            peak = pod.peak_memory()
            code, seconds = pod.end()
        assert code == 0, f"SIGTERM ended it with {code}"
    load = os.getloadavg()[0]
    note = (
        f"ready in {ready:.1f} s, {work:.1f} s of them on a CPU (load {load:.1f}), within {MEMORY} "
        f"(peak {peak / 2**20:.0f} MiB)"
    )
    # On a busy machine only the CPU time tells how fast the service starts.
    quiet = load < (os.cpu_count() or 1)
    assert (ready if quiet else work) < READY_SECONDS, note
    return f"{note}; SIGTERM: exit 0 after {seconds:.1f} s"


def retraining() -> str:
    """The CronJob's pod promotes a model and then skips, with a real S3 server and MLflow."""
    images = built_images()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for part in ("runs", "mlflow", "config"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
        folder.chmod(0o755)
        stack.enter_context(images.network())
        url = stack.enter_context(s3_server(folder / "s3"))
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
            images.running(mlflow, mounts={folder / "mlflow": "/mlflow"}, port=5000)
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
            code = images.once(spec, mounts, **environment)
            outcomes.append(code)
        memory = tracker.peak_memory()
        lines = (folder / "runs/outcomes.jsonl").read_text().splitlines()
        recorded = [json.loads(line)["outcome"] for line in lines]
    assert outcomes == [2, 0, 0], outcomes
    assert recorded[-2:] == ["promoted", "skipped"], recorded
    return (
        "wrong secret: exit 2; then promoted, then skipped; MLflow refuses a foreign Host and took "
        f"{memory / 2**20:.0f} MiB at most"
    )
