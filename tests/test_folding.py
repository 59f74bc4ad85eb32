"""A folded generator makes the same samples, with fewer layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.artifact import load_artifact
from models.folding import fold
from models.networks import GeneratorConfig, build_generator
from models.networks.piecewise import LeakyReLU, ReLU
from tests.artifacts import make_artifact, tiny_config
from tests.runs import trained

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
    "equalized": (
        {"architecture": "dcgan", "normalization": "batch", "equalized": True},
        (3, 12, 9),
        0,
        0,
    ),
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


def test_a_folded_generator_writes_over_nothing_of_its_input() -> None:
    network = nn.Sequential(nn.Flatten(), ReLU(), nn.Linear(4, 4), LeakyReLU(0.2), ReLU()).eval()
    folded = fold(network)
    x = torch.linspace(-1, 1, 8).view(2, 2, 2)
    before = x.clone()
    assert torch.equal(folded(x), network(x))
    assert torch.equal(x, before)
    assert [type(module) for module in folded[1:]] == [ReLU, nn.Linear, nn.LeakyReLU, ReLU]


def normalised(kind: type[Any], features: int, **own: Any) -> Any:
    """A batch normalisation that has seen data."""
    module = kind(features, eps=0.1, **own)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            nn.init.uniform_(value.data, 0.3, 2) if "var" in name else nn.init.normal_(value.data)
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("own", [{}, {"affine": False}, {"track_running_stats": False}])
def test_normalisations_of_all_layers_are_folded(bias: bool, own: dict[str, Any]) -> None:
    torch.manual_seed(0)
    flat, maps = nn.BatchNorm1d, nn.BatchNorm2d
    networks: list[tuple[tuple[int, ...], int, list[nn.Module]]] = [
        ((4,), 1, [nn.Linear(4, 5, bias=bias), normalised(flat, 5, **own)]),
        ((2, 6, 6), 1, [nn.Conv2d(2, 3, 3, bias=bias), normalised(maps, 3, **own), nn.ReLU()]),
        ((2, 6, 6), 1, [nn.ConvTranspose2d(2, 3, 3, bias=bias), normalised(maps, 3, **own)]),
        (
            (4,),
            2,
            [
                nn.Linear(4, 12, bias=bias),
                nn.Unflatten(1, (3, 2, 2)),
                normalised(maps, 3, **own),
                ReLU(),
                nn.ConvTranspose2d(3, 2, 3, bias=bias),
                normalised(maps, 2, **own),
            ],
        ),
        (  # of two in a row the first alone follows a layer
            (4,),
            2,
            [
                normalised(flat, 4, **own),
                nn.Linear(4, 6, bias=bias),
                normalised(flat, 6, **own),
                normalised(flat, 6, **own),
                nn.Linear(6, 5, bias=bias),
                normalised(flat, 5, **own),
            ],
        ),
    ]
    for shape, folding, layers in networks:
        network = nn.Sequential(*layers).eval().double()
        folded: Any = fold(network)
        x = torch.randn(7, *shape, dtype=torch.float64)
        torch.testing.assert_close(folded(x), network(x), rtol=1e-9, atol=1e-11)
        before, left = (sum(isinstance(m, BATCH) for m in modules) for modules in (network, folded))
        is_known = own.get("track_running_stats", True)
        assert before - left == (folding if is_known else 0)
        for place, module in enumerate(folded):
            if is_known and isinstance(folded[min(place + 1, len(folded) - 1)], nn.Identity):
                assert not any(parameter.requires_grad for parameter in module.parameters())


def test_activations_are_in_place_where_nothing_else_needs_their_input() -> None:
    network = nn.Sequential(
        *(ReLU(), nn.Linear(4, 4), LeakyReLU(0.3), LeakyReLU(0.3)),
        *(nn.Linear(4, 8), nn.Unflatten(1, (2, 2, 2)), ReLU()),
        *(nn.Conv2d(2, 2, 1), nn.Identity(), ReLU(), nn.Flatten(), ReLU()),
    ).eval()
    folded: Any = fold(network)
    x = torch.randn(3, 4)
    before = x.clone()
    torch.testing.assert_close(folded(x), network(before))
    assert torch.equal(x, before), "an input is the caller's"
    kinds = {i: type(folded[i]) for i in (0, 2, 3, 6, 9, 11)}
    own = {0: ReLU, 2: nn.LeakyReLU, 3: LeakyReLU, 6: nn.ReLU, 9: nn.ReLU, 11: ReLU}
    assert kinds == own
    assert all(folded[i].inplace for i in (2, 6, 9))
    assert folded[2].negative_slope == 0.3


def test_the_record_says_which_forward_is_used(tmp_path: Path) -> None:
    batch = {"normalization": "batch"}
    folder = make_artifact(tmp_path / "image", generator=batch)
    folded = load_artifact(folder)
    assert folded.run.engine.name == "torch-channels-last"
    kernel = next(p for p in folded.forward.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in folded.generator.parameters())
    assert folded.error()[1] <= 1  # a value may round to the other side
    whole = folded.sample(seed=3, count=40)
    assert np.array_equal(whole[:5], folded.sample(seed=3, count=5))


@pytest.mark.parametrize("kind", ["image", "vector", "sequence"])
def test_in_bf16_samples_are_as_far_off_as_the_record_says(tmp_path: Path, kind: str) -> None:
    half = load_artifact(make_artifact(tmp_path / "half", kind, serving={"precision": "bf16"}))
    exact = load_artifact(make_artifact(tmp_path / "exact", kind))
    for mine, theirs in zip(half.generator.parameters(), exact.generator.parameters(), strict=True):
        assert torch.equal(mine, theirs)  # the saved weights are whole
    apart = np.abs(half.sample(5, 256).astype(float) - exact.sample(5, 256))
    mean, largest = half.error(5)
    np.testing.assert_allclose([mean, largest], [apart.mean(), apart.max()])
    ends = 127.5 if kind == "image" else np.abs(exact.sample(5, 256)).max()
    assert 0 < mean < 2**-8 * ends  # a bfloat16 has 8 bits
    assert largest < 2**-4 * ends
    assert np.isfinite(half.refined.sample(0, 4)).all()


@pytest.mark.parametrize("classes", [None, {"a": 4, "b": 4}])
def test_every_architecture_works_in_bf16(tmp_path: Path, classes: dict[str, int] | None) -> None:
    for architecture in ("dcgan", "resnet"):
        for normalization in ("none", "batch", "layer", "instance"):
            model = load_artifact(
                make_artifact(
                    tmp_path / architecture / normalization,
                    class_counts=classes,
                    generator={
                        "architecture": architecture,
                        "normalization": normalization,
                        "depth": 4,
                    },
                    serving={"precision": "bf16"},
                )
            )
            mean, largest = model.error()
            assert 0 < mean < 1, (architecture, normalization)
            assert largest < 16


def test_a_version_in_bf16_says_so_where_people_look(tmp_path: Path) -> None:
    config = tiny_config(serving={"precision": "bf16"}, evaluation={"samples": 50})
    model, _, said = trained(config, tmp_path / "run", register=False)
    run = model.run
    assert run.engine.precision == "bf16"
    assert run.engine.mean_error
    assert run.engine.max_error
    line = f"bf16: samples differ .* by {run.engine.mean_error:.2g} grey levels on average"
    assert re.search(line, said)
    assert re.search(line, (tmp_path / "run" / "artifact" / "MODEL_CARD.md").read_text())
