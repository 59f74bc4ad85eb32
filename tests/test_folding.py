"""A folded generator makes the same samples, with fewer layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.artifact import load_artifact
from models.folding import fold, is_foldable
from models.networks import GeneratorConfig, build_generator
from tests.artifacts import make_artifact

BATCH = nn.modules.batchnorm._BatchNorm
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], int, int]] = {
    "dcgan": ({"architecture": "dcgan", "normalization": "batch"}, (3, 12, 9), 0, 0),
    "deep dcgan": (
        {"architecture": "dcgan", "normalization": "batch", "depth": 4},
        (1, 8, 8),
        0,
        0,
    ),
    "mlp": ({"architecture": "mlp", "normalization": "batch"}, (5,), 0, 0),
    "layer": ({"architecture": "dcgan", "normalization": "layer"}, (1, 8, 8), 0, 0),
    "conditional": ({"architecture": "dcgan", "normalization": "batch"}, (1, 8, 8), 3, 2),
    "resnet": ({"architecture": "resnet", "normalization": "batch", "depth": 4}, (1, 16, 16), 0, 3),
}
"""Settings, shape, classes, and how many batch normalisations stay."""


@pytest.mark.parametrize("name", CASES)
def test_folding_changes_rounding_alone(name: str) -> None:
    settings, shape, classes, staying = CASES[name]
    torch.manual_seed(0)
    settings = {"width": 6, "depth": 2, "latent_size": 7, **settings}
    generator = build_generator(GeneratorConfig(**settings), shape, classes).double()
    for module in generator.modules():
        if isinstance(module, BATCH):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    generator.eval()
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    folded = fold(generator)
    z = torch.randn(5, 7, dtype=torch.float64)
    labels = [torch.tensor([0, 1, 2, 1, 0])] if classes else []
    torch.testing.assert_close(folded(z, *labels), generator(z, *labels), rtol=1e-9, atol=1e-11)
    assert sum(isinstance(module, BATCH) for module in folded.modules()) == staying
    for key, value in generator.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_record_says_which_forward_is_used(tmp_path: Path) -> None:
    batch = {"normalization": "batch"}
    folded = load_artifact(make_artifact(tmp_path / "image", generator=batch))
    assert folded.run.engine.name == "torch-folded"
    assert folded.forward is not folded.generator
    as_trained = load_artifact(make_artifact(tmp_path / "vector", "vector"))
    assert not is_foldable(as_trained.generator)
    assert as_trained.run.engine.name == "torch"
    assert as_trained.forward is as_trained.generator
    whole = folded.sample(seed=3, count=40)
    assert np.array_equal(whole[:5], folded.sample(seed=3, count=5))
    old = folded.run.model_dump(mode="json")
    old["engine"]["name"] = "torch"  # a version made before
    again = type(folded.run).model_validate(old)
    assert again.engine.name == "torch"
