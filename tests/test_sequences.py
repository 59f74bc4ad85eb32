"""Sequences: cells against torch's, second derivatives, the AR(2) set, and a run end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats
from torch import nn

from models.artifact import load_artifact
from models.config import DataConfig
from models.constraints import GradientPenalty, LipschitzPenalty, SpectralNorm
from models.errors import ConfigError, DataError
from models.networks import CriticConfig, GeneratorConfig, build_critic, build_generator
from models.networks.recurrent import GRU, LSTM, PoolSteps
from models.sampling import Scaling
from tests.artifacts import make_artifact, tiny_config
from training.data.builtin import AR2
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import train
from training.engine.runs import Interrupted
from training.judging.metrics import autocovariance
from wgan_cli import main

CELLS = ["gru", "lstm"]


@pytest.fixture(scope="module")
def ar2() -> Dataset:
    return load_data(DataConfig(source="ar2"))


@pytest.mark.parametrize(("ours", "theirs"), [(GRU, nn.GRU), (LSTM, nn.LSTM)])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_cells_against_torchs(
    ours: type[nn.Module], theirs: type[nn.Module], steps: int
) -> None:
    torch.manual_seed(0)
    cell = ours(3, 5).double()
    reference = theirs(3, 5, batch_first=True).double()
    with torch.no_grad():
        reference.weight_ih_l0.copy_(cell.input.weight)  # type: ignore[operator, union-attr]
        reference.bias_ih_l0.copy_(cell.input.bias)  # type: ignore[operator, union-attr]
        reference.weight_hh_l0.copy_(cell.state.weight)  # type: ignore[operator, union-attr]
        reference.bias_hh_l0.copy_(cell.state.bias)  # type: ignore[operator, union-attr]
    x = torch.randn(4, steps, 3, dtype=torch.float64)
    torch.testing.assert_close(cell(x), reference(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", CELLS)
@pytest.mark.parametrize(("depth", "normalization"), [(1, "none"), (2, "layer")])
def test_shapes_and_depth(architecture: str, depth: int, normalization: str) -> None:
    config = {
        "architecture": architecture,
        "width": 6,
        "depth": depth,
        "normalization": normalization,
        "activation": "softplus",
    }
    for shape in ((1, 1), (4, 1), (5, 3)):
        generator = build_generator(GeneratorConfig(**config, latent_size=2 * shape[0]), shape)  # type: ignore[arg-type]
        critic = build_critic(CriticConfig(**config), shape)  # type: ignore[arg-type]
        sequences = generator(torch.randn(7, 2 * shape[0]))
        assert sequences.shape == (7, *shape)
        assert critic(sequences).shape == (7,)
        torch.testing.assert_close(critic(sequences)[:2], critic(sequences[:2]))
        for network in (generator, critic):
            assert sum(isinstance(m, GRU | LSTM) for m in network.modules()) == depth
            assert sum(isinstance(m, nn.Softplus) for m in network.modules()) == 1
            norms = sum(isinstance(m, nn.LayerNorm) for m in network.modules())
            assert norms == (depth if normalization == "layer" else 0)


def test_a_step_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    generator = build_generator(
        GeneratorConfig(architecture="lstm", width=6, depth=2, latent_size=10), (5, 1)
    )
    z = torch.randn(1, 10)
    changed = z.clone()
    changed[0, [3, 8]] += 1  # both features of the noise at step 3
    moved = (generator(z) - generator(changed)).abs().flatten() > 1e-6
    assert moved.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("architecture", CELLS)
@pytest.mark.parametrize("penalty", [GradientPenalty, LipschitzPenalty])
def test_a_penalty_on_a_recurrent_critic_is_exact(
    architecture: str, penalty: type[GradientPenalty | LipschitzPenalty]
) -> None:
    """Second derivatives against finite differences in float64."""
    torch.manual_seed(0)
    config = CriticConfig(architecture=architecture, width=3, depth=2, activation="tanh")
    critic = build_critic(config, (4, 2)).double()
    for parameter in critic.parameters():  # steep enough to see
        parameter.data *= 3
    real, fake = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    names = [name for name, _ in critic.named_parameters()]

    def value(*weights: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        named = dict(zip(names, weights, strict=True))

        def bound(x: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(critic, named, (x,))

        return penalty(target=0.01).penalty(bound, real, fake)  # type: ignore[arg-type]

    weights = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(value, weights)
    value(*weights).backward()
    recurrent = [w.grad for n, w in zip(names, weights, strict=True) if "state.weight" in n]
    assert all(g.abs().max() > 1e-4 for g in recurrent)  # type: ignore[union-attr]


@pytest.mark.parametrize("architecture", CELLS)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_penalty_works_in_the_precision_that_is_trained_in(architecture: str, bf16: bool) -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(architecture=architecture, width=8, depth=1), (6, 2))
    real, fake = torch.randn(2, 5, 6, 2)
    with torch.autocast("cpu", torch.bfloat16, bf16):
        loss = GradientPenalty().penalty(critic, real, fake)
    loss.backward()
    # A bias after the pooling shifts scores alone: the slope does not depend on it.
    with_gradient = [n for n, p in critic.named_parameters() if p.grad is not None]
    assert any("state.weight" in n for n in with_gradient)
    assert all(torch.isfinite(p.grad).all() for p in critic.parameters() if p.grad is not None)


@pytest.mark.parametrize("steps", [1, 9, 100])
def test_pooling_has_a_lipschitz_constant_of_one(steps: int) -> None:
    pool = PoolSteps()
    matrix = torch.func.jacrev(pool)(torch.zeros(1, steps, 3)).reshape(3, steps * 3)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1)


def test_spectral_norm_reaches_the_recurrent_weights() -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(architecture="gru", width=8, depth=1), (6, 2))
    constraint = SpectralNorm()
    constraint.before_training(critic)
    for _ in range(200):
        constraint.after_critic_step(critic)
    (cell,) = (m for m in critic.modules() if isinstance(m, GRU))
    for layer in (cell.input, cell.state):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "shape", "says"),
    [
        (CriticConfig(), (6, 2), "critic.architecture=gru or critic.architecture=lstm"),
        (CriticConfig(architecture="gru"), (2,), "critic.architecture=mlp"),
        (CriticConfig(architecture="lstm"), (1, 8, 8), "critic.architecture=dcgan"),
        (CriticConfig(architecture="gru", normalization="batch"), (6, 2), "use 'layer'"),
        (CriticConfig(architecture="gru", normalization="instance"), (6, 2), "use 'layer'"),
        (GeneratorConfig(architecture="gru", latent_size=7), (6, 2), "such as 12"),
    ],
)
def test_what_does_not_fit_is_refused(
    config: CriticConfig | GeneratorConfig, shape: tuple[int, ...], says: str
) -> None:
    build = build_generator if isinstance(config, GeneratorConfig) else build_critic
    with pytest.raises(ConfigError, match=says):
        build(config, shape)  # type: ignore[operator]


def test_the_known_autocovariance_against_the_spectral_density(ar2: Dataset) -> None:
    """Wiener and Khinchin: it is the Fourier transform of 1 / |1 - a z - b z^2|^2, scaled."""
    a, b = AR2

    def density(w: float) -> float:
        z = np.exp(-1j * w)
        return float(1 / abs(1 - a * z - b * z**2) ** 2)

    found = [
        integrate.quad(lambda w, k=k: density(w) * np.cos(k * w), 0, np.pi, limit=400)[0]
        for k in range(32)
    ]
    assert ar2.autocovariance is not None
    np.testing.assert_allclose(ar2.autocovariance[:, 0], np.array(found) / found[0], atol=1e-8)


def test_the_sequences_are_stationary_gaussian_with_that_autocovariance(ar2: Dataset) -> None:
    x = ar2.items[..., 0].astype(np.float64)
    assert x.shape == (20_000, 32)
    assert ar2.card.kind == "sequence"
    assert ar2.card.shape == (32, 1)
    assert ar2.autocovariance is not None
    truth = linalg.toeplitz(ar2.autocovariance[:, 0])
    # An entry's estimate has variance (c_ii c_jj + c_ij^2) / n; 4.5 of its sd over 528 entries.
    sd = np.sqrt((1 + truth**2) / len(x))
    assert (np.abs(x.T @ x / len(x) - truth) / sd).max() < 4.5
    assert np.abs(x.mean(axis=0)).max() < 4.5 / np.sqrt(len(x))
    white = linalg.solve_triangular(linalg.cholesky(truth, lower=True), x.T, lower=True)
    assert stats.kstest(white.ravel()[::7], "norm").pvalue > 0.01
    np.testing.assert_allclose(
        autocovariance(ar2.items, 16), ar2.autocovariance[:16], atol=4.5 / np.sqrt(len(x))
    )


def test_autocovariance_by_its_definition() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4, 2)).cumsum(axis=1)
    centred = x - x.mean(axis=0)
    found = autocovariance(x, 3)
    assert found.shape == (3, 2)
    for lag in range(3):
        for feature in range(2):
            products = [
                centred[n, t, feature] * centred[n, t + lag, feature]
                for n in range(5)
                for t in range(4 - lag)
            ]
            assert found[lag, feature] == pytest.approx(np.mean(products))


def test_arrays_of_floats_with_three_axes_are_sequences(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal([5.0, -1.0], [3.0, 0.1], (200, 6, 2))
    for dtype in (np.float64, np.float32, np.float16):
        np.save(tmp_path / "s.npy", values.astype(dtype))
        data = load_data(DataConfig(source=str(tmp_path / "s.npy")))
        assert data.card.kind == "sequence"
        assert data.card.shape == (6, 2)
        assert data.items.dtype == np.float32
        scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
        scaled = scaling.to_model(torch.from_numpy(data.training))
        torch.testing.assert_close(scaled.mean((0, 1)), torch.zeros(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(scaled.std((0, 1)), torch.ones(2), atol=1e-2, rtol=0)
        torch.testing.assert_close(scaling.to_data(scaled), torch.from_numpy(data.training))
    np.save(tmp_path / "i.npy", rng.integers(0, 256, (200, 8, 8), np.uint8))
    assert load_data(DataConfig(source=str(tmp_path / "i.npy"))).card.kind == "image"
    values[17, 3, 1] = np.nan
    np.save(tmp_path / "s.npy", values)
    with pytest.raises(DataError, match=r"1 of 200 items .* item 17"):
        load_data(DataConfig(source=str(tmp_path / "s.npy")))


def run(data: Dataset, folder: Path, stop_after: int | None = None) -> TrainingState:
    asked = iter(range(1, 10**6))
    # Eager: capturing 64 time steps takes half a minute, and test_training.py resumes captures.
    training = {"steps": 5, "critic_step": "eager"}
    config = tiny_config("sequence", generator={"latent_size": 32}, training=training)
    state, _ = train(
        config,
        data,
        folder,
        torch.device("cpu"),
        stop_requested=lambda: next(asked) == stop_after,
    )
    return state


def test_a_resumed_run_equals_an_uninterrupted_one(ar2: Dataset, tmp_path: Path) -> None:
    whole = run(ar2, tmp_path / "whole").tensors()
    with pytest.raises(Interrupted):
        run(ar2, tmp_path / "parts", stop_after=3)
    parts = run(ar2, tmp_path / "parts").tensors()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.usefixtures("charts_undrawn")
def test_a_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train", "--preset", "ar2", "--steps", "10", "--no-register", "--out", "run",
        "--set", "generator.width=8", "--set", "critic.width=8", "--set", "evaluation.samples=200",
        "--set", "training.critic_step=eager",  # as in `run`
    ]  # fmt: skip
    assert main(arguments) == 0
    model = load_artifact(tmp_path / "run" / "artifact")
    assert model.run.data.kind == "sequence"
    figures = model.run.results.figures
    assert {"sliced_wasserstein_1", "autocovariance_error"} <= set(figures)
    for name in ("sliced_wasserstein_1", "autocovariance_error"):
        assert figures[name].better == "lower"
        assert 0 < figures[name].floor < figures[name].value  # type: ignore[operator]
    assert main(["sample", "run/artifact", "-n", "5", "--out", "s.npy"]) == 0
    assert np.array_equal(np.load("s.npy"), model.sample(0, 5))
    capsys.readouterr()
    assert main(["score", "run/artifact", "s.npy", "--json"]) == 0
    expected = model.score(model.sample(0, 5)).tolist()
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(expected, rel=1e-5)
    assert main(["sample", "run/artifact", "--out", "s.png"]) == 2
    assert "sequences" in capsys.readouterr().err


def test_lstm_artifacts_load(tmp_path: Path) -> None:
    changes = {"critic": {"architecture": "lstm"}, "generator": {"architecture": "lstm"}}
    model = load_artifact(make_artifact(tmp_path / "a", "sequence", **changes))
    assert model.sample(0, 3).shape == (3, 4, 2)
    assert len(np.unique(model.score(model.sample(0, 20)))) == 20
