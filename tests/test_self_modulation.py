"""Self-modulated generators, against the paper's equations written out."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.artifact import load_artifact
from models.errors import ConfigError
from models.networks import GeneratorConfig, build_generator
from models.networks.conditional import SelfModulatedGenerator
from models.networks.parts import ConditionalNorm, SelfModulatedNorm
from tests.artifacts import make_artifact, tiny_config
from tests.runs import trained
from training.judging import evaluate
from training.judging.classifier import fit_classifier


def test_a_normalisation_follows_the_latent_as_the_paper_says() -> None:
    """h' = gamma(z) (h - mu) / sigma + beta(z), with each function V max(0, U z + b) + c."""
    torch.manual_seed(0)
    norm = SelfModulatedNorm(nn.BatchNorm2d(3, affine=False), 3, 5).double()
    x = torch.randn(4, 3, 6, 7, dtype=torch.float64)
    z = torch.randn(4, 5, dtype=torch.float64)
    h, latents = x.numpy(), z.numpy()
    u, b, v, c, w, d = (p.detach().numpy() for p in norm.parameters())
    assert u.shape == (32, 5)
    hidden = np.maximum(0, latents @ u.T + b)
    gamma, beta = 1 + hidden @ v.T + c, hidden @ w.T + d
    mean, variance = h.mean((0, 2, 3), keepdims=True), h.var((0, 2, 3), keepdims=True)
    expected = gamma[:, :, None, None] * (h - mean) / np.sqrt(variance + 1e-5)
    expected += beta[:, :, None, None]
    np.testing.assert_allclose(norm(x, z).detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("normalization", ["batch", "layer", "instance"])
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_normalisation_follows_the_latent_and_the_class(
    architecture: str, normalization: str, classes: int
) -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(
        architecture=architecture,  # type: ignore[arg-type]
        normalization=normalization,  # type: ignore[arg-type]
        width=4,
        depth=4,
        latent_size=3,
        self_modulation=True,
    )
    generator = build_generator(config, (3, 33, 20), classes).double().eval()
    assert isinstance(generator, SelfModulatedGenerator)
    kinds = nn.modules.batchnorm._NormBase | nn.GroupNorm
    norms = [m for m in generator.modules() if isinstance(m, kinds)]
    around = [m for m in generator.modules() if isinstance(m, SelfModulatedNorm)]
    assert len(norms) == len(around) > 2
    assert not any(isinstance(m, ConditionalNorm) for m in generator.modules())
    z = torch.randn(4, 3, dtype=torch.float64)
    seen = list[torch.Tensor]()
    for norm in around:
        norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    labels = torch.tensor([0, 1, 2, 1])
    if not classes:
        samples = generator(z)
        assert all(torch.equal(given, z) for given in seen)
    else:
        assert generator.shift is not None
        assert generator.factor is not None
        assert not generator.factor.weight.any(), "at first a class moves all latents alike"
        nn.init.normal_(generator.factor.weight)
        samples = generator(z, labels)
        e, f = (m.weight.detach().numpy() for m in (generator.shift, generator.factor))
        rows = [zi + e[y] + zi * f[y] for zi, y in zip(z.numpy(), labels, strict=True)]
        assert all(np.allclose(given.detach().numpy(), rows) for given in seen)
        changed = generator(z, torch.tensor([0, 2, 2, 1]))
        same = (samples - changed).flatten(1).abs().amax(1) < 1e-12
        assert same.tolist() == [True, False, True, True]
    assert samples.shape == (4, 3, 33, 20)
    given = [labels[1:3]] if classes else []
    torch.testing.assert_close(generator(z[1:3], *given), samples[1:3])  # each follows its own
    assert torch.autograd.gradcheck(
        lambda z: generator(z, *given), (z[1:3].requires_grad_(),), fast_mode=True
    )


@pytest.mark.parametrize("counts", [None, {"a": 3, "b": 5}])
def test_samples_depend_on_seed_and_index_alone(
    tmp_path: Path, counts: dict[str, int] | None
) -> None:
    settings = {"self_modulation": True, "normalization": "batch"}
    model = load_artifact(make_artifact(tmp_path / "a", class_counts=counts, generator=settings))
    whole = model.sample(3, 40)
    assert np.array_equal(np.concatenate(list(model.samples(3, 9, 11))), whole[11:20])
    assert np.isfinite(model.refined.sample(0, 4)).all()


@pytest.mark.usefixtures("charts_undrawn")
def test_a_short_run_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(fit_classifier, steps=2)  # how well it judges is not asked here
    monkeypatch.setattr(evaluate, "fit_classifier", quick)
    settings = {"self_modulation": True, "normalization": "batch"}
    config = tiny_config(generator=settings, evaluation={"samples": 50})
    model, _, _ = trained(config, tmp_path / "run", register=False)
    assert model.run.config.generator.self_modulation
    assert model.sample(0, 3).shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("shape", "settings", "says"),
    [
        ((3,), {"normalization": "batch"}, "is for images, not vectors"),
        ((4, 2), {"architecture": "gru"}, "is for images, not sequences"),
        ((1, 8, 8), {"architecture": "dcgan"}, "set generator.normalization, such as batch"),
    ],
)
def test_what_cannot_be_modulated_is_refused(
    shape: tuple[int, ...], settings: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        build_generator(GeneratorConfig(self_modulation=True, **settings), shape)  # type: ignore[arg-type]
