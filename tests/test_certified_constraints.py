"""Cayley and sandwich layers: against the SVD, the papers' formulas and slopes that are found."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.artifact import load_artifact
from models.config import parse_config
from models.constraints import Cayley, Constraint, NoConstraint, Sandwich
from models.constraints.cayley import cayley, inverse_cayley, numbers_of
from models.constraints.fit import misfit
from models.constraints.layers import as_matrix, layers, overlap
from models.errors import ConfigError
from models.export.graphs import with_torchs_layers
from models.lipschitz import certify, operator_norm, steepest_slope
from models.networks import CriticConfig, build_critic
from models.networks.conditional import WithLabels
from models.networks.initial import equalize
from models.networks.piecewise import Abs, GroupSort
from models.networks.settings import Activation
from models.record import constraint_card
from tests.artifacts import make_artifact, tiny_config
from training.lab.fitting import default_recipe, fit

ALMOST_ONE = 1 + 2e-5
"""What a certificate of 1 may be: each layer adds a millionth for rounding."""


def drawn(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return std * torch.randn(shape, dtype=torch.float64, generator=source)


def moved(critic: nn.Module, seed: int, std: float = 0.5) -> nn.Module:
    """The critic with its parameters somewhere else, as after training."""
    with torch.no_grad():
        for number, parameter in enumerate(critic.parameters()):
            parameter.data += drawn(*parameter.shape, seed=1000 * seed + number, std=std)
    return critic.eval()


def network(activation: Activation = "leaky_relu", **settings: Any) -> nn.Module:
    config = CriticConfig(activation=activation, **{"width": 6, "depth": 3, **settings})
    return build_critic(config, (3,)).double()


# --- the transform --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (5, 1), (40, 40)])
@pytest.mark.parametrize("std", [0.1, 1.0, 10.0])
def test_singular_values_are_one_whatever_the_numbers(shape: tuple[int, int], std: float) -> None:
    torch.manual_seed(0)
    for dtype, error in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        layer = Cayley().before_training(nn.Linear(shape[1], shape[0]).to(dtype))
        (numbers, _) = layer.parameters()
        numbers = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
        numbers.data = drawn(*shape, std=std).to(dtype)  # type: ignore[union-attr]
        values = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)  # type: ignore[operator, union-attr]
        np.testing.assert_allclose(values, 1, atol=error)


def test_the_transform_is_cayley_s() -> None:
    """Of a skew-symmetric square, by scipy; all entries of a square of numbers but its skew part
    do not count."""
    numbers = drawn(5, 5)
    skew = (numbers - numbers.T).numpy()
    expected = (np.eye(5) - skew) @ scipy.linalg.inv(np.eye(5) + skew)
    np.testing.assert_allclose(cayley(numbers).numpy(), expected, atol=1e-12)
    symmetric = drawn(5, 5, seed=1)
    torch.testing.assert_close(cayley(numbers + symmetric + symmetric.T), cayley(numbers))


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (4, 1)])
def test_the_gradient_through_the_transform_is_exact(shape: tuple[int, int]) -> None:
    numbers = drawn(*shape).requires_grad_()
    assert torch.autograd.gradcheck(cayley, numbers)
    assert torch.autograd.gradgradcheck(cayley, numbers)


@pytest.mark.parametrize(
    "orthonormal",
    [
        np.eye(4),
        -np.eye(4),  # the transform itself never has an eigenvalue of -1
        np.diag([1.0, -1, 1, -1]),
        np.eye(4)[::-1].copy(),
        scipy.linalg.qr(drawn(7, 4).numpy(), mode="economic")[0],
        scipy.linalg.qr(drawn(60, 60).numpy())[0],
        np.array([[0.0], [1.0]]),
        np.array([[0.9999995, -0.001], [0.001, 0.9999995]]),  # turned: -1 would be near singular
    ],
)
def test_numbers_are_found_for_every_orthonormal_matrix(orthonormal: np.ndarray) -> None:
    numbers, flipped = inverse_cayley(torch.from_numpy(orthonormal))
    made = cayley(numbers).numpy() * np.where(flipped.numpy(), -1, 1)
    np.testing.assert_allclose(made, orthonormal, atol=1e-10)
    assert numbers.abs().max() < 100, "so far from singular that float32 will do"


def test_signs_keep_every_square_far_from_singular() -> None:
    """No pivot of the identity plus the turned square is below 1, so no determinant is either."""
    for seed in range(30):
        for size in (2, 3, 8):
            square, _ = scipy.linalg.qr(drawn(size, size, seed=seed).numpy())
            _, flipped = inverse_cayley(torch.from_numpy(square))
            turned = square * np.where(flipped.numpy(), -1, 1)
            assert np.linalg.det(np.eye(size) + turned) >= 1 - 1e-9


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(5, 5), nn.Conv2d(2, 3, (3, 4), 2, 1),
     nn.Conv1d(3, 2, 5, 2), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(2, 5, 1), nn.Conv2d(4, 4, 1)],
)  # fmt: skip
@pytest.mark.parametrize("is_equalized", [False, True])
@pytest.mark.parametrize("constraint", [Cayley(), Sandwich()], ids=lambda c: c.kind)
def test_training_begins_with_the_nearest_orthonormal_matrix(
    constraint: Constraint, layer: Any, is_equalized: bool
) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    if is_equalized:
        equalize(layer, 0.3)
    nearest, _ = scipy.linalg.polar(as_matrix(layer.weight.detach()).numpy())
    found = as_matrix(constraint.before_training(layer).weight.detach())  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy() * overlap(layer) ** 0.5, nearest, atol=1e-9)
    assert operator_norm(layer) <= 1.003  # the bound of a convolution is up to 0.25% too large


CONVOLUTIONS = [
    nn.Conv2d(3, 5, 3, 1, 1),
    nn.Conv2d(5, 3, 3, 1, 1),
    nn.Conv2d(2, 3, 4, 2, 1),
    nn.Conv2d(1, 6, (4, 2), (2, 1), 1),
    nn.Conv2d(1, 1, 3, 1, 1),
    nn.Conv2d(2, 2, 3, 1, 2, dilation=2),
    nn.Conv1d(2, 4, 4, 2, 1),
    nn.Conv1d(4, 4, 5),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("is_equalized", [False, True])
def test_a_convolution_keeps_norms_but_at_its_borders(layer: Any, is_equalized: bool) -> None:
    """Its matrix on a map, by its own forward: no singular value above 1, and in the middle of the
    map, where no window is cut off, outputs (or the inputs that they come from) are orthonormal."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    if is_equalized:
        equalize(layer, 0.3)
    moved(Cayley().before_training(layer), 0, std=1.0)
    nn.init.zeros_(layer.bias)
    shape = (layer.in_channels, *[14] * (layer.weight.dim() - 2))
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        maps = layer(basis)
    matrix = maps.flatten(1).T.numpy()  # outputs by inputs
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values[0] <= 1 + 1e-10
    assert values[0] >= 1 - 1e-2
    places = math.prod(layer.stride) * layer.in_channels
    wide = layer.out_channels <= places
    middle = torch.zeros(maps.shape[1:] if wide else shape, dtype=torch.bool)
    middle[(slice(None), *[slice(n // 2 - 1, n // 2 + 1) for n in middle.shape[1:]])] = True
    part = matrix[middle.flatten().numpy()] if wide else matrix[:, middle.flatten().numpy()].T
    np.testing.assert_allclose(part @ part.T, np.eye(len(part)), atol=1e-9)
    found, _ = certify(nn.Sequential(layer))
    assert found is not None
    assert values[0] <= found <= ALMOST_ONE
    assert found <= operator_norm(layer) * (1 + 1e-6), "and not above what the kernel itself says"


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(2, 3, (3, 4), 2), nn.Conv2d(4, 6, 3, groups=2),
     nn.Conv1d(2, 3, 5, 2)],
    ids=str,
)  # fmt: skip
def test_other_convolutions_are_bounded_as_matrices(layer: Any) -> None:
    layer = moved(Cayley().before_training(copy.deepcopy(layer).double()), 0)
    values = torch.linalg.svdvals(as_matrix(layer.weight.detach())) * overlap(layer) ** 0.5
    torch.testing.assert_close(values, torch.ones_like(values))
    found, _ = certify(nn.Sequential(layer))
    assert found is not None
    assert found <= 1.003


def test_a_padding_without_a_bound_gets_none() -> None:
    layer = nn.Conv2d(2, 3, 3, 1, 1, padding_mode="replicate")
    found, reason = certify(nn.Sequential(Cayley().before_training(layer)))
    assert found is None
    assert "replicate" in str(reason)


def test_the_gradient_through_a_kernel_is_exact() -> None:
    layer: Any = Cayley().before_training(nn.Conv2d(2, 3, 3).double())
    rules = layer.parametrizations.weight
    assert torch.autograd.gradcheck(rules[0], rules.original.detach().clone().requires_grad_())


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 3), (3, 5), (4, 4), (6, 1), (1, 1)])
def test_a_kernel_is_the_product_of_a_matrix_and_projections(outputs: int, inputs: int) -> None:
    """BCOP, by numpy: at first of the polar factors of the taps, whose projections are of half of
    the channels on the side with more of them. A checkpoint's numbers rely on all of it."""
    torch.manual_seed(0)
    layer: Any = nn.Conv2d(inputs, outputs, (3, 2)).double()
    taps = layer.weight.detach().flatten(2).numpy()
    nearest = [scipy.linalg.polar(taps[:, :, i])[0] for i in range(4)]
    kernel = nearest[0][:, :, None, None]
    for axis, basis in zip((2, 2, 3), nearest[1:], strict=True):
        many = basis if outputs >= inputs else basis.T
        kept = many[:, : max(outputs, inputs) // 2]
        project = kept @ kept.T
        moved = np.eye(len(project)) - project
        side = "pq,qiab->piab" if outputs >= inputs else "pq,oqab->opab"
        before, after = ([(0, 0)] * 4 for _ in range(2))
        before[axis], after[axis] = (0, 1), (1, 0)
        kernel = np.pad(np.einsum(side, project, kernel), before) + np.pad(
            np.einsum(side, moved, kernel), after
        )
    made = Cayley().before_training(layer).weight.detach()  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(made.numpy(), kernel, atol=1e-9)


@pytest.mark.parametrize("is_equalized", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(2, 3, 2)], ids=str)
def test_the_numbers_of_a_layer_are_what_its_last_rule_takes(
    layer: Any, is_equalized: bool
) -> None:
    layer = copy.deepcopy(layer)
    if is_equalized:
        equalize(layer, 0.3)
    moved(Cayley().before_training(layer), 0)
    rule = layer.parametrizations.weight[-1]
    torch.testing.assert_close(rule(numbers_of(layer)), layer.weight)
    assert (numbers_of(layer) is layer.parametrizations.weight.original) != is_equalized


def test_a_kernel_s_certificate_counts_what_rounding_leaves() -> None:
    """In float32 bases of large numbers are not quite orthonormal, and factors lengthen."""
    for seed in range(5):
        layer: Any = Cayley().before_training(nn.Conv2d(4, 7, (3, 2)))
        layer.parametrizations.weight.original.data = drawn(7, 4, 3, 2, seed=seed, std=1e3).float()
        rule = layer.parametrizations.weight[-1]
        factors = rule._factors(numbers_of(layer))
        matrix, bases = (part.detach().double().numpy() for part in factors)
        expected = np.linalg.norm(matrix, 2)
        for basis in bases:
            project = basis @ basis.T
            expected *= max(  # of all frequencies: at one and at minus one both parts add up
                np.linalg.norm(project + z * (np.eye(7) - project), 2) for z in (1, -1)
            )
        found = rule.certified_share(layer, nn.Sequential(layer))
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
@pytest.mark.parametrize("kind", ["cayley", "sandwich"])
def test_no_slope_of_a_critic_of_images_is_above_its_certificate(
    architecture: Any, kind: str
) -> None:
    torch.manual_seed(0)
    constraint: Constraint = Cayley() if kind == "cayley" else Sandwich()
    config = CriticConfig(architecture=architecture, width=4, depth=3, activation="relu")
    critic = constraint.before_training(build_critic(config, (1, 9, 12)).double())
    moved(critic, 0).requires_grad_(False)
    bound, _ = certify(critic)
    assert bound is not None
    assert steepest_slope(critic, drawn(12, 1, 9, 12), steps=20) <= bound
    assert bound <= certify(critic, operator_norm)[0] * (1 + 1e-5)  # type: ignore[operator]


def test_a_cayley_critic_is_certified_and_can_be_as_steep_as_that() -> None:
    """With GroupSort, which keeps a gradient's norm, it is so at every point."""
    critic = moved(Cayley().before_training(network("groupsort", width=8)), 0)
    bound, _ = certify(critic)
    assert bound is not None
    assert 1 <= bound <= ALMOST_ONE
    points = drawn(20, 3).requires_grad_()
    (gradients,) = torch.autograd.grad(critic(points).sum(), points)
    assert gradients.norm(dim=1).max() <= ALMOST_ONE
    square = Cayley().before_training(nn.Sequential(nn.Linear(4, 4), GroupSort()).double())
    moved(square, 0)
    jacobian = torch.autograd.functional.jacobian(square, drawn(4)[None].clone())
    torch.testing.assert_close(jacobian[0, :, 0] @ jacobian[0, :, 0].T, torch.eye(4).double())


def test_no_step_can_leave_the_constraint() -> None:
    torch.manual_seed(0)
    critic = Cayley().before_training(network("groupsort"))
    optimizer = torch.optim.Adam(critic.parameters(), 0.5)
    for seed in range(10):
        loss = critic(drawn(8, 3, seed=seed)).mean() - critic(drawn(8, 3, seed=seed) + 1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for layer in layers(critic):
            values = torch.linalg.svdvals(layer.weight.detach())
            torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-9)


# --- sandwich layers ------------------------------------------------------------------------------

ACTS: dict[Activation, Any] = {
    "relu": lambda v: np.maximum(v, 0),
    "leaky_relu": lambda v: np.where(v > 0, v, 0.2 * v),
    "tanh": np.tanh,
    "softplus": lambda v: np.logaddexp(v, 0),
}


def by_equation_10(critic: nn.Module, points: np.ndarray, activation: Activation) -> np.ndarray:
    """The scores of sandwich layers, written out from the paper."""
    h = points
    *inner, last = list(layers(critic))
    for layer in inner:
        rules = layer.parametrizations["weight"]  # type: ignore[index, union-attr]
        x, y, psi, bias = (
            t.detach().numpy()
            for t in (rules[0].skew, rules.original.T, rules[0].log_psi.exp(), layer.bias)  # type: ignore[union-attr, index]
        )
        z = x - x.T + y.T @ y
        inverse = scipy.linalg.inv(np.eye(len(z)) + z)
        a_transposed, b_transposed = (np.eye(len(z)) - z) @ inverse, -2 * y @ inverse
        a, b = a_transposed.T, b_transposed.T
        np.testing.assert_allclose(a @ a.T + b @ b.T, np.eye(len(a)), atol=1e-10)
        v = math.sqrt(2) * h @ b.T @ np.diag(1 / psi) + bias
        h = math.sqrt(2) * ACTS[activation](v) @ np.diag(psi) @ a
    own = last.parametrizations["weight"][0].own  # type: ignore[index, union-attr]
    matrix = own(last.parametrizations["weight"].original).detach().numpy()  # type: ignore[index, union-attr]
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), 1, atol=1e-10)
    return np.asarray(h @ matrix.T + last.bias.detach().numpy())[:, 0]


@pytest.mark.parametrize("activation", ACTS)
def test_folded_weights_score_as_the_paper_s_layers(activation: Activation) -> None:
    critic = moved(Sandwich().before_training(network(activation)), 1)
    points = drawn(9, 3, std=3)
    expected = by_equation_10(critic, points.numpy(), activation)
    np.testing.assert_allclose(critic(points).detach().numpy(), expected, atol=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    activation=st.sampled_from(list(ACTS)),
    depth=st.integers(1, 4),
    width=st.integers(1, 9),
    std=st.sampled_from([0.03, 0.5, 3.0]),
    equalized=st.booleans(),
    classes=st.sampled_from([0, 3]),
)
def test_no_slope_is_above_the_certificate(
    seed: int,
    activation: Activation,
    depth: int,
    width: int,
    std: float,
    equalized: bool,
    classes: int,
) -> None:
    torch.manual_seed(seed)
    config = CriticConfig(width=width, depth=depth, activation=activation, equalized=equalized)
    critic = Sandwich().before_training(build_critic(config, (3,), classes).double())
    moved(critic, seed, std).requires_grad_(False)
    bound, _ = certify(critic)
    assert bound is not None
    assert bound <= max(1, 2 * bool(classes)) * ALMOST_ONE
    one = WithLabels(critic, torch.full((12,), 1)) if classes else critic
    assert steepest_slope(one, drawn(12, 3, seed=seed, std=3), steps=15) <= bound


def test_the_certificate_is_far_below_the_product_of_the_layers_and_is_reached() -> None:
    """The layers alone are steep; a critic that learned x . e is as steep as it may be."""
    steep = moved(Sandwich().before_training(network("relu")), 2, std=2.0)
    bound, _ = certify(steep)
    assert bound is not None
    assert bound <= ALMOST_ONE
    assert math.prod(operator_norm(layer) for layer in layers(steep)) > 10
    torch.manual_seed(0)
    critic = Sandwich().before_training(network("relu", width=16))
    optimizer = torch.optim.Adam(critic.parameters(), 0.02)
    for step in range(100):
        x = drawn(64, 3, seed=step)
        shift = torch.tensor([3.0, 0, 0], dtype=torch.float64)
        loss = (critic(x) - critic(x + shift)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 2.9 < -loss.item() <= 3 * ALMOST_ONE


@pytest.mark.parametrize("is_equalized", [False, True])
def test_a_chain_of_equal_widths_begins_with_the_nearest_orthonormal_matrices(
    is_equalized: bool,
) -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)]
    sequence = nn.Sequential(*parts).double()
    if is_equalized:
        for layer in layers(sequence):
            equalize(layer, 0.3)
    nearest = [scipy.linalg.polar(layer.weight.detach().numpy())[0] for layer in layers(sequence)]
    Sandwich().before_training(sequence)
    for layer, expected in zip(layers(sequence), nearest, strict=True):
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    "between",
    [nn.LeakyReLU(0.0), nn.LeakyReLU(1.0), nn.LeakyReLU(0.3), nn.ReLU(), nn.Tanh(), nn.Sigmoid(),
     nn.Softplus(), nn.Dropout(), nn.Identity()],
    ids=str,
)  # fmt: skip
def test_two_layers_and_an_activation_of_slopes_to_1_are_a_sandwich(between: nn.Module) -> None:
    """Each layer by itself may then be steeper than 1, and both together are not."""
    torch.manual_seed(0)
    sequence = nn.Sequential(nn.Linear(4, 5), between, nn.Linear(5, 3)).double()
    moved(Sandwich().before_training(sequence), 0, std=1.0)
    assert max(operator_norm(layer) for layer in layers(sequence)) > 1.1
    found, _ = certify(sequence)
    assert found is not None
    assert found <= ALMOST_ONE


def test_each_of_several_chains_has_its_own_share() -> None:
    """One is nested, one is between others, and a layer alone is no chain."""
    torch.manual_seed(0)

    def chain() -> list[nn.Module]:
        return [nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)]

    inner = nn.Sequential(*chain())
    whole = nn.Sequential(*chain(), inner, nn.Linear(3, 3), Abs(), *chain()).double()
    moved(Sandwich().before_training(whole), 0)
    ends = [whole[0], whole[2], inner[0], inner[2], whole[6], whole[8]]
    for layer in ends:
        rule: Any = layer.parametrizations["weight"][-1]  # type: ignore[index, union-attr]
        assert rule.certified_share(layer, whole) == pytest.approx(1, abs=1e-9)
        assert (rule.certified_share(layer, inner) is None) == (layer not in inner)
    assert not hasattr(whole[4].parametrizations["weight"][-1], "chain")  # type: ignore[index, union-attr]


def test_a_part_of_a_chain_is_bounded_by_its_own_weights() -> None:
    """The rules' shares would say 1, and a part is steeper than that."""
    critic = moved(Sandwich().before_training(network("relu")), 3, std=2.0)
    body: Any = critic.body
    for end in (1, 2, 3, 5):
        part = body[:end]
        found, _ = certify(part)
        assert found is not None
        jacobians = torch.func.vmap(torch.func.jacrev(part))(drawn(50, 3))
        steepest = torch.linalg.matrix_norm(jacobians, 2).max().item()
        product = math.prod(operator_norm(layer) for layer in layers(part))
        assert 1.1 < steepest <= found * (1 + 1e-9) <= product * (1 + 1e-6)


def test_a_chain_counts_as_one_only_while_it_is_one() -> None:
    """Another activation between its layers makes it steeper than 1."""
    torch.manual_seed(0)  # not of every start: the slope is what is found
    critic = moved(Sandwich().before_training(network("relu")), 5)
    body: Any = critic.body
    for place in (1, 3, 5):
        body[place] = Abs()
    found, _ = certify(critic)
    assert found is not None
    assert 1.1 < steepest_slope(critic, drawn(96, 3)) <= found


def test_joined_layers_are_not_computed_anew_one_by_one() -> None:
    values = {"constraint": {"kind": "sandwich"}, "training": {"activation_checkpointing": True}}
    with pytest.raises(ConfigError, match="makes weights of several layers' numbers; leave it out"):
        tiny_config("vector", **values)


def test_weights_are_made_to_all_digits_whatever_the_run_s_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    solve, precision = torch.linalg.solve_ex, torch.backends.cuda.matmul

    def watched(*arguments: Any, **more: Any) -> Any:
        seen.append(precision.allow_tf32)
        return solve(*arguments, **more)

    monkeypatch.setattr(torch.linalg, "solve_ex", watched)
    before = precision.allow_tf32
    try:
        precision.allow_tf32 = True
        cayley(drawn(4, 3))
        seen.append(precision.allow_tf32)
    finally:
        precision.allow_tf32 = before
    assert seen == [False, True]


def test_plain_weights_keep_a_certificate_though_no_rule_tells_it() -> None:
    """The bound by ellipsoids finds what the rules would say, of weights whose product is huge."""
    critic = moved(Sandwich().before_training(network("relu")), 4, std=2.0)
    plain = with_torchs_layers(critic)
    points = drawn(5, 3)
    torch.testing.assert_close(plain(points), critic(points))
    found, _ = certify(plain)
    assert found is not None
    assert steepest_slope(plain, points) <= found <= 1.5
    assert math.prod(operator_norm(layer) for layer in layers(plain)) > 1000


@pytest.mark.parametrize(
    "between",
    [nn.LayerNorm(4), Abs(), GroupSort(), nn.SiLU(), nn.GELU(), nn.LeakyReLU(1.5),
     nn.LeakyReLU(-0.1), nn.Softmax(1), nn.BatchNorm1d(4)],
    ids=str,
)  # fmt: skip
def test_what_no_sandwich_can_hold_stands_between_semi_orthogonal_layers(
    between: nn.Module,
) -> None:
    torch.manual_seed(0)
    sequence = nn.Sequential(nn.Linear(3, 4), copy.deepcopy(between), nn.Linear(4, 2)).double()
    for layer in layers(Sandwich().before_training(sequence)):
        values = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(values, torch.ones_like(values))
    found = certify(sequence.eval())
    other = certify(Cayley().before_training(copy.deepcopy(sequence)).eval())
    assert (found[0] is None) == (other[0] is None)


def test_the_gradient_of_sandwich_weights_is_exact() -> None:
    critic = moved(Sandwich().before_training(network("tanh", width=3, depth=2)), 5)
    names = [name for name, _ in critic.named_parameters()]
    points = drawn(4, 3)

    def scores(*values: Tensor) -> Tensor:
        tensors = dict(zip(names, values, strict=True))
        return torch.func.functional_call(critic, tensors, (points,))  # type: ignore[no-any-return]

    values = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(scores, values)


@pytest.mark.parametrize("activation", ["abs", "groupsort", "silu"])
def test_other_activations_are_refused_in_a_configuration(activation: str) -> None:
    values = tiny_config("vector").model_dump(mode="json")
    values["critic"]["activation"] = activation
    parse_config({**values, "constraint": {"kind": "cayley"}})
    with pytest.raises(
        ConfigError, match=r"^critic\.activation: sandwich .*set critic\.activation"
    ):
        parse_config({**values, "constraint": {"kind": "sandwich"}})


@pytest.mark.parametrize("kind", ["cayley", "sandwich"])
@pytest.mark.parametrize("is_equalized", [False, True])
def test_a_chain_s_plain_state_is_what_it_computes_with(kind: str, is_equalized: bool) -> None:
    constraint: Constraint = Cayley() if kind == "cayley" else Sandwich()
    critic = moved(constraint.before_training(network(equalized=is_equalized)), 6)
    plain = NoConstraint().before_training(network(equalized=is_equalized)).eval()
    plain.load_state_dict(constraint.plain_state(critic))
    points = drawn(5, 3)
    torch.testing.assert_close(plain(points), critic(points))


@pytest.mark.parametrize("kind", ["cayley", "sandwich"])
def test_an_artifact_keeps_its_certificate(kind: str, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", "vector", constraint={"kind": kind})
    model = load_artifact(folder)
    bound, reason = certify(copy.deepcopy(model.critic).double())
    assert bound is not None
    assert bound <= ALMOST_ONE
    card = constraint_card(model.run.config.constraint, model.run.lipschitz)
    assert card.kind == kind
    assert reason is None
    with torch.no_grad():
        next(model.critic.parameters()).normal_()
    again, _ = certify(copy.deepcopy(model.critic).double())
    assert again is not None
    assert again <= ALMOST_ONE


@pytest.mark.parametrize("constraint", [Cayley(), Sandwich()], ids=lambda c: c.kind)
def test_a_fit_to_a_shift_finds_it_and_never_more(constraint: Constraint) -> None:
    """W1 of a shift is its length; the gap is below it by the certificate, but for chance."""
    recipe = default_recipe((3,), constraint)
    assert recipe.critic is not None
    assert misfit(constraint, constraint.kind, recipe.critic) is None  # type: ignore[attr-defined]
    source = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randn(128, 3, generator=source)
        return x + torch.tensor([0.0, 2, 0]), x

    small = recipe._replace(critic=recipe.critic.model_copy(update={"width": 16}))
    critic = fit(draw, (3,), small, steps=80, seed=0)
    a, b = draw()
    gap = (critic(a) - critic(b)).mean().item()  # the same points, so there is no chance in it
    assert 1.9 < gap <= 2 * ALMOST_ONE


@pytest.mark.parametrize("constraint", [Cayley(), Sandwich()], ids=lambda c: c.kind)
@pytest.mark.parametrize(("architecture", "shape"), [("mlp", (3,)), ("dcgan", (1, 8, 8))])
def test_weights_are_made_to_all_digits_in_half_precision(
    constraint: Constraint, architecture: Any, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    config = CriticConfig(architecture=architecture, width=8, depth=2)
    critic = constraint.before_training(build_critic(config, shape))
    for layer in layers(critic):
        with torch.autocast("cpu", torch.bfloat16):
            made = layer.weight
        assert torch.equal(made, layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        scores = critic(torch.randn(4, *shape))
    scores.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())
