"""Artifacts that an earlier commit wrote keep loading, and keep their samples' bytes."""

import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from models.artifact import load_artifact
from models.record import Run

RELEASED = Path(__file__).parent / "released"
PROCESSOR = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


@pytest.mark.parametrize("name", ["images", "vectors"])
def test_an_artifact_of_an_earlier_commit_gives_the_same_bytes(name: str) -> None:
    model = load_artifact(RELEASED / name)
    samples = model.sample(7, 40)
    found = {
        "samples": samples,
        "refined": model.refined.sample(7, 40),
        "walk": np.concatenate(list(model.walk(1, 2, np.linspace(0, 1, 9)))),
        "scores": model.score(samples, model.labels(7, 40)),
    }
    with np.load(RELEASED / "expected.npz") as file:
        expected = {key: file[f"{name}_{key}"] for key in found}
        same_processor = str(file["cpu"]) == PROCESSOR
    for key, values in found.items():
        assert values.dtype == expected[key].dtype
        if same_processor and key != "scores":
            np.testing.assert_array_equal(values, expected[key])
        else:  # other processors, and other orders of a sum, round differently
            tolerance = 1 if values.dtype == np.uint8 else 1e-4
            np.testing.assert_allclose(
                values.astype(np.float64), expected[key].astype(np.float64), atol=tolerance
            )


@pytest.mark.parametrize("name", ["images", "vectors"])
def test_the_record_of_an_earlier_commit_is_written_again_byte_for_byte(name: str) -> None:
    text = (RELEASED / name / "run.json").read_text()
    run = Run.model_validate_json(text)
    assert run.model_dump_json(indent=2) + "\n" == text
    assert run.findings[0].name == "critic_too_simple"
    assert run.lipschitz.gradient_norm["between"].mean > 0
