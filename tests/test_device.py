"""Where commands, judging and the service compute, and what depends on it."""

from pathlib import Path

import numpy as np
import pytest
import torch

import wgan
from models.artifact import load_artifact
from models.command_line import EXIT_MISTAKE
from models.config import EvaluationConfig
from models.device import require_device
from models.errors import ConfigError, UserError
from models.sampling import chunk_rows
from service.served import load
from service.settings import Settings
from tests.artifacts import make_artifact, tiny_config
from training.judging.extractors import DIGITS, load_extractor
from training.run import run_training
from wgan_cli import main

WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("device", "shape", "is_table", "rows"),
    [
        ("cpu", (1, 28, 28), False, 16),
        ("cpu", (9,), True, 256),
        ("cuda", (1, 28, 28), False, 1024),
        ("cuda", (3, 64, 64), False, 64),
        ("cuda", (3, 1024, 1024), False, 16),
        ("cuda", (2,), False, 4096),
        ("cuda", (9,), True, 4096),
    ],
)
def test_the_rows_of_a_forward(
    device: str, shape: tuple[int, ...], is_table: bool, rows: int
) -> None:
    assert chunk_rows(device, shape, is_table) == rows


def test_a_version_keeps_the_rows_of_the_device_that_it_was_made_for(tmp_path: Path) -> None:
    config = tiny_config("vector", serving={"device": "cuda"}, evaluation={"samples": 60})
    run_training(config, tmp_path, torch.device("cpu"), register=False)
    model = load_artifact(tmp_path / "artifact")
    seen: list[int] = []
    model.forward.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model.sample(0, 5000)
    assert seen == [4096, 4096]


def test_full_float32_is_what_a_cuda_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with torch.backends.cudnn.flags(allow_tf32=True):
        torch.backends.cuda.matmul.allow_tf32 = True
        assert require_device("cpu") == torch.device("cpu")
        assert torch.backends.cudnn.allow_tf32  # it is the caller's affair
        assert require_device("cuda") == torch.device("cuda")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


def test_another_device_is_refused(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    with pytest.raises(UserError, match=r"^device gpu: use cpu or cuda$"):
        wgan.load(folder, device="gpu")


def test_an_extractor_on_another_device_leaves_the_first_one_where_it_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    extractor = load_extractor(DIGITS, EvaluationConfig())
    features = extractor(images)
    moved = extractor.on(torch.device("meta"))
    assert {p.device.type for p in moved.network.parameters()} == {"meta"}
    assert np.array_equal(extractor(images), features)


@WITHOUT_CUDA
@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "ARTIFACT", "--out", "OUT.npz"],
        ["score", "ARTIFACT", "x.npz"],
        ["impute", "ARTIFACT", "x.csv", "--out", "OUT.csv"],
        ["evaluate", "ARTIFACT"],
        ["diagnose", "ARTIFACT"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_device_that_is_not_there_is_told_in_a_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_artifact(tmp_path / "artifact")
    texts = [a.replace("ARTIFACT", str(folder)) for a in arguments]
    assert main([*texts, "--device", "cuda"]) == EXIT_MISTAKE
    told = "error: device cuda: torch sees no CUDA device; use cpu\n"
    assert capsys.readouterr().err == told


def test_samples_of_the_default_device_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    for name, options in (("a", []), ("b", ["--device", "cpu"])):
        out = str(tmp_path / f"{name}.npy")
        assert main(["sample", str(folder), "--out", out, *options]) == 0
    samples = [np.load(tmp_path / f"{name}.npy") for name in "ab"]
    assert np.array_equal(*samples)
    assert np.array_equal(samples[0], load_artifact(folder).sample(0, 16))


def test_the_service_takes_its_device_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read().device == "cpu"
    monkeypatch.setenv("WGAN_DEVICE", "cuda")
    assert Settings.read().device == "cuda"
    assert Settings.read().environment()["WGAN_DEVICE"] == "cuda"  # for the workers
    monkeypatch.setenv("WGAN_DEVICE", "gpu")
    with pytest.raises(ConfigError, match=r"^WGAN_DEVICE=gpu: write 'cpu' or 'cuda'$"):
        Settings.read()


@WITHOUT_CUDA
def test_the_service_does_not_fall_back_to_another_device(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        load(folder, None, "digits", "champion", "cuda")
