"""What constraints compute, where a wrong number would still train: against closed forms."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.constraints import (
    CONSTRAINTS,
    AdversarialLipschitz,
    AlmostOrthogonal,
    Bjorck,
    Dragan,
    GradientPenalty,
    MaxGradientPenalty,
    NormClipping,
    SpectralNorm,
    SpectralProjection,
    WeightClipping,
    WeightDecay,
    bjorck,
)
from models.constraints.batch import batch_max, batch_std
from models.constraints.layers import largest_singular_value, overlap
from models.errors import ConfigError
from models.networks.parts import Residual

FLOAT32 = torch.finfo(torch.float32).eps


def row(*weights: float) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    return layer


# --- weights --------------------------------------------------------------------------------------


def test_weight_vectors_are_short_from_the_first_step_on() -> None:
    critic = NormClipping(max_norm=0.5).before_training(row(3.0, 4.0))
    torch.testing.assert_close(critic.weight, torch.tensor([[0.3, 0.4]]))


def test_a_decay_of_weights_is_half_a_thousandth_of_their_squares() -> None:
    """Unless a strength is set. A saved configuration without one must go on to mean this."""
    critic, x = WeightDecay().before_training(row(3.0, -4.0)), torch.tensor([[0.5, 0.25]])
    critic(x).sum().backward()
    weights = torch.tensor([[3.0, -4.0]], requires_grad=True)
    ((x @ weights.T).sum() + 0.0005 * weights.square().sum()).backward()
    torch.testing.assert_close(critic.weight.grad, weights.grad)


def test_norms_are_bounded_from_the_first_step_on() -> None:
    critic: Any = SpectralProjection(max_norm=0.5).before_training(row(3.0, 4.0))
    torch.testing.assert_close(critic.weight.data, torch.tensor([[0.3, 0.4]]))


def test_a_norm_may_be_twice_its_bound_as_the_power_method_lags_behind() -> None:
    constraint = SpectralProjection(max_norm=0.5)
    assert constraint.broken_claim(row(1.0)) is None
    assert "norm is 1, above max_norm 0.5" in str(constraint.broken_claim(row(1 + FLOAT32)))


def test_a_weight_vector_may_be_off_by_rounding_only() -> None:
    constraint = NormClipping(max_norm=0.5)
    assert constraint.broken_claim(row(0.5 * (1 + 10 * FLOAT32))) is None
    assert "0.5001 long" in str(constraint.broken_claim(row(0.5001)))
    assert constraint.broken_claim(nn.ReLU()) is None
    # The longest counts, wherever it is.
    assert "3 long" in str(constraint.broken_claim(nn.Sequential(row(0.1), row(3.0), row(0.2))))


def test_a_clipped_weight_may_be_off_by_rounding_only() -> None:
    constraint = WeightClipping(clip_value=0.5)
    assert constraint.broken_claim(row(-0.5 * (1 + 10 * FLOAT32))) is None
    assert "is 0.5001, outside" in str(constraint.broken_claim(row(0.1, -0.5001)))
    assert constraint.broken_claim(row(float("nan"))) is not None


def test_a_clipped_weight_is_within_a_hundred_thousandth_of_its_bound() -> None:
    """Just at that it is, and of those that lie at their bound."""
    constraint = WeightClipping(clip_value=0.5 / 1.00001)
    assert constraint.clip_value * 1.00001 == 0.5
    assert constraint.broken_claim(row(-0.5)) is None
    assert "is 0.5, outside [-0.499995," in str(constraint.broken_claim(row(0.5 * (1 + FLOAT32))))
    constraint = WeightClipping(clip_value=0.5 / 0.99999)
    assert constraint.clip_value * 0.99999 == 0.5
    assert constraint.saturated_share(row(0.5, -0.5, 0.5 * (1 - FLOAT32))) == 2 / 3


def test_the_share_of_weights_at_their_bound() -> None:
    constraint = WeightClipping(clip_value=0.5)
    at_bound = 0.5 * (1 - FLOAT32)
    critic = nn.Sequential(row(0.5, -0.5, at_bound, 0.4999, 0.0), row(0.2, 0.5, 0.1, 0.3))
    assert constraint.saturated_share(critic) == 4 / 9


@pytest.mark.parametrize("target", [1e-30, 1e-14, 1e-4, 0.5, 700.0])
def test_any_target_is_met(target: float) -> None:
    """By two dense layers with all weights at their bounds: the norm of ones is sqrt(m n)."""
    constraint = WeightClipping(target_lipschitz=target)
    critic = constraint.before_training(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)))
    bounds = [bound for parameter, bound in constraint.clipped(critic) if parameter.dim() > 1]
    norms = [bounds[0] * 15**0.5, bounds[1] * 5**0.5]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] * norms[1] == pytest.approx(target, rel=1e-5)


def test_a_target_below_a_path_without_weights_is_refused() -> None:
    """What a residual block adds its input to has slope 1 at least, and just 1 without weights."""
    layer = nn.Linear(3, 3)
    block = Residual(nn.Sequential(layer), nn.Identity())
    WeightClipping(target_lipschitz=1.0).before_training(block)
    assert layer.weight.abs().max() < 1e-15
    with pytest.raises(ConfigError, match="steeper than that even with weights of 0"):
        WeightClipping(target_lipschitz=0.99).before_training(block)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(2, 3, 5, 2), nn.Conv2d(1, 2, (2, 3)), nn.Conv2d(2, 3, 4, 2, 1)]
)
def test_a_convolution_s_range_is_that_of_weights_of_one(layer: nn.Module) -> None:
    """Far from the borders its input of the largest gain is constant, one for each phase."""
    constraint = WeightClipping(target_lipschitz=1.0)
    layer = copy.deepcopy(layer)
    constraint.before_training(layer)
    (bound,) = {bound for _, bound in constraint.clipped(layer)}
    ones = copy.deepcopy(layer).double().requires_grad_(False)
    nn.init.ones_(ones.weight)  # type: ignore[arg-type]
    nn.init.zeros_(ones.bias)  # type: ignore[arg-type]
    shape = (1, layer.in_channels, *[60] * (ones.weight.dim() - 2))  # type: ignore[operator, union-attr]
    torch.manual_seed(0)
    x = torch.rand(shape, dtype=torch.float64)
    for _ in range(300):  # the power method
        x = x.detach().requires_grad_()
        y = ones(x)
        (x,) = torch.autograd.grad(y.square().sum() / 2, x)
        x = x / x.norm()
    assert ones(x).norm().item() * bound == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(2, 3, 4, 2), nn.Conv1d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, (3, 4), 2)],
)
def test_aol_of_a_convolution_against_its_theorem(layer: Any) -> None:
    """On a matrix of the whole map, for inputs in its middle."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    plain = copy.deepcopy(layer).requires_grad_(False)
    AlmostOrthogonal().before_training(layer)
    shape = (layer.in_channels, *[14] * (plain.weight.dim() - 2))
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        nn.init.zeros_(plain.bias)
        nn.init.zeros_(layer.bias)
        matrix, found = (one(basis).flatten(1).T for one in (plain, layer))
    factors = (matrix.T @ matrix).abs().sum(dim=0).rsqrt()
    middle = torch.zeros(shape, dtype=torch.bool)
    middle[(slice(None), *[slice(6, 8)] * (len(shape) - 1))] = True
    middle = middle.flatten()
    torch.testing.assert_close(found[:, middle], (matrix * factors)[:, middle])


def test_aol_leaves_an_input_without_weights_at_zero() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[3.0, 0.0]])
    AlmostOrthogonal().before_training(layer)
    torch.testing.assert_close(layer.weight.data, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize(
    ("layer", "windows"),
    [
        (nn.Linear(5, 5), 1),
        (nn.Conv1d(1, 1, 5, 2), 3),
        (nn.Conv2d(1, 1, (3, 4), 2), 4),
        (nn.Conv2d(1, 1, 2, 2), 1),
    ],
)
def test_overlap_is_the_number_of_windows_that_read_one_input(layer: Any, windows: int) -> None:
    assert overlap(layer) == windows
    if not isinstance(layer, nn.Linear):
        ones = copy.deepcopy(layer)
        nn.init.ones_(ones.weight)
        x = torch.zeros(1, 1, *[20] * (layer.weight.dim() - 2), requires_grad=True)
        ones(x).sum().backward()
        assert x.grad is not None
        assert x.grad.max().item() == windows


def test_the_largest_singular_value_of_several_layers() -> None:
    assert largest_singular_value([row(3.0, 4.0), row(1.0)]) == pytest.approx(5)
    assert largest_singular_value([]) == 0


@pytest.mark.parametrize(
    ("constraint", "fits", "breaks"),
    [
        (SpectralNorm(), 1.9, 2.1),
        (SpectralNorm(method="operator"), 1.9, 2.1),
        (SpectralProjection(max_norm=0.5), 0.9, 1.1),
        (Bjorck(), 1.0005, 1.002),
        (Bjorck(), 0.9995, 0.998),
        (Bjorck(method="iterate"), 0.2, 1.002),
    ],
)
def test_a_claim_is_broken_by_weights_that_are_too_large(
    constraint: Any, fits: float, breaks: float
) -> None:
    """The power method may be late by a factor of 2; orthonormal weights are so to a thousandth."""
    assert constraint.broken_claim(row(fits, 0.0)) is None
    assert f"{breaks:.4g}" in str(constraint.broken_claim(row(breaks, 0.0)))
    nothing = constraint.broken_claim(nn.ReLU())
    assert nothing is None


def test_kernels_count_as_matrices_where_they_are_normalised_as_such() -> None:
    kernel = nn.Conv2d(1, 1, 2, bias=False)
    nn.init.constant_(kernel.weight, 5.0)
    assert "10" in str(SpectralNorm().broken_claim(kernel))
    assert SpectralNorm(method="operator").broken_claim(kernel) is None
    assert SpectralProjection().broken_claim(kernel) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_retraction_stops_when_the_gram_matrix_is_exact(sign: int) -> None:
    """To a millionth, by what it knows of the error: a row's squared length is its Gram matrix."""
    unit = torch.nn.functional.normalize(torch.arange(1.0, 6, dtype=torch.float64), dim=0)
    for error in torch.linspace(0.002, 2.5, 500).tolist():
        length = max(0.0, 1 + sign * error) ** 0.5
        if length:
            for shape in ((1, 5), (5, 1)):
                found = bjorck._retract((length * unit).view(shape))
                torch.testing.assert_close(found / found.norm(), unit.view(shape))
                assert found.square().sum().item() == pytest.approx(1, abs=1.001e-6)


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Linear(3, 6), nn.Conv2d(2, 3, 4, 2, 1)])
def test_projected_gradients_of_every_shape_are_tangent(layer: Any) -> None:
    """Along them the Gram matrix of the shorter side does not change, to first order."""
    torch.manual_seed(0)
    layer = Bjorck().before_training(copy.deepcopy(layer).double())
    assert Bjorck().broken_claim(layer) is None
    layer.weight.grad = None
    drawn = torch.randn_like(layer.weight)
    (layer.weight * drawn).sum().backward()
    gradient, weight = (t.detach().flatten(1) for t in (layer.weight.grad, layer.weight))
    if len(weight) > weight.shape[1]:
        gradient, weight = gradient.T, weight.T
    change = gradient @ weight.T + weight @ gradient.T
    assert change.abs().max().item() < 1e-10
    assert gradient.norm() > 0.1 * drawn.norm()
    once = layer.weight.grad.clone()  # a projection keeps what it has projected
    layer.weight.grad = None
    (layer.weight * once).sum().backward()
    torch.testing.assert_close(layer.weight.grad, once)


@pytest.mark.parametrize("error", [-0.97, 1.9])
def test_one_singular_value_that_is_off_is_retracted_on_a_gpu_too(error: float) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(40, 60, dtype=torch.float64), full_matrices=False)
    values = torch.ones(40, dtype=torch.float64)
    values[0] = (1 + error) ** 0.5
    found = bjorck._retract_unread(left * values @ right)
    torch.testing.assert_close(found, left @ right, rtol=0, atol=1e-5)


def test_iterated_weights_do_not_diverge_where_one_input_has_all_of_them() -> None:
    """Six neurons that read one input of seven have a singular value of sqrt(6)."""
    layer: Any = Bjorck(method="iterate", iterations=40).before_training(nn.Linear(7, 6))
    nn.init.zeros_(layer.parametrizations.weight.original)
    layer.parametrizations.weight.original.data[:, 0] = 1
    values = torch.linalg.svdvals(layer.weight.detach())
    torch.testing.assert_close(values, torch.tensor([1.0, 0, 0, 0, 0, 0]), rtol=0, atol=1e-5)


def test_a_critic_step_advances_the_power_method_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    constraint = SpectralNorm()
    constraint.before_training(layer)
    parametrization: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    weight = nn.init.normal_(parametrization.original).detach()
    power = parametrization[0].power
    left = torch.nn.functional.normalize(weight @ power.right, dim=0)
    right = torch.nn.functional.normalize(weight.T @ left, dim=0)
    constraint.after_critic_step(layer)
    torch.testing.assert_close(power.left, left)
    torch.testing.assert_close(power.right, right)


def test_a_convolution_s_singular_vector_is_one_map_as_it_is_saved() -> None:
    layer: Any = SpectralNorm(method="operator").before_training(nn.Conv2d(3, 2, 3))
    assert layer.parametrizations.weight[0].power.right.shape == (1, 3, 16, 16)


# --- penalties ------------------------------------------------------------------------------------


def test_the_adversarial_step_has_a_uniform_length() -> None:
    """In one dimension from 0 the slope of x^2 is the step's length."""
    torch.manual_seed(0)
    constraint = AdversarialLipschitz(strength=3, target=0.5, shortest=1, longest=4, where="real")
    zeros = torch.zeros(40_000, 1, dtype=torch.float64)
    found = constraint.penalty(lambda x: x[:, 0].square(), zeros, zeros)
    # The mean of (u - 0.5)^2 for u between 1 and 4.
    mean = (3.5**3 - 0.5**3) / 3 / 3
    assert found is not None
    assert found.item() == pytest.approx(3 * mean, rel=0.02)


def test_the_direction_is_found_at_the_probe_s_distance() -> None:
    """A ridge from a distance of 1 on along the first axis; a slope of 1 along the second."""

    def critic(x: Tensor) -> Tensor:
        return x[:, 1] + 1000 * (x[:, 0].abs() - 1).clamp_min(0)

    zeros = torch.zeros(4000, 2, dtype=torch.float64)
    torch.manual_seed(0)
    near = AdversarialLipschitz(probe=0.5)._direction(critic, zeros)
    torch.testing.assert_close(near[:, 1].abs(), torch.ones(4000, dtype=torch.float64))
    far = AdversarialLipschitz(probe=2.0)._direction(critic, zeros)
    # A random direction's probe reaches the ridge if its cosine is above a half: 2 of 3.
    share = (far[:, 0].abs() > 0.99).double().mean().item()
    assert share == pytest.approx(2 / 3, abs=0.03)


def test_the_step_goes_to_where_the_score_changes() -> None:
    """Not away from it, whatever the score is; where no change is seen, it stays as drawn."""

    def critic(x: Tensor) -> Tensor:
        """A slope of 1 upwards from 0; downwards a dip to which a probe from 10 below leads up."""
        first = x[:, 0]
        return torch.where(first > 0, first, first * (first + 15) / 20) - 1000

    torch.manual_seed(0)
    zeros = torch.zeros(400, 1, dtype=torch.float64)
    constraint = AdversarialLipschitz(strength=1, target=0.5, where="real")
    found = constraint.penalty(critic, zeros, zeros)
    assert found is not None
    assert found.item() == pytest.approx((1 - 0.5) ** 2)
    direction = constraint._direction(lambda x: 0 * x[:, 0], torch.zeros(5, 3))
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("is_bare", [False, True])
def test_a_plain_state_is_what_the_critic_computes_with(kind: str, is_bare: bool) -> None:
    torch.manual_seed(0)

    def network() -> nn.Module:
        return nn.Linear(3, 1) if is_bare else nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))

    constraint = CONSTRAINTS[kind]()
    critic = constraint.before_training(network())
    plain = network()
    plain.load_state_dict(constraint.plain_state(critic))
    if kind == "gradient_normalization":
        plain = constraint.before_training(plain)
    x = torch.randn(5, 3)
    torch.testing.assert_close(plain(x), critic(x))


# --- a batch over several processes ---------------------------------------------------------------


def in_parts(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[Tensor], Any], parts: list[Tensor]
) -> list[Any]:
    """Call ``find`` with each part, in threads that stand for processes of one group."""
    barrier = threading.Barrier(len(parts), timeout=30)
    shared: list[Tensor | None] = [None] * len(parts)
    rank = threading.local()

    def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        shared[rank.own] = tensor.detach().clone()
        barrier.wait()
        stacked = torch.stack([part for part in shared if part is not None])
        tensor.copy_(stacked.amax(0) if op == dist.ReduceOp.MAX else stacked.sum(0))
        barrier.wait()

    found: list[Any] = [None] * len(parts)

    def run(own: int) -> None:
        rank.own = own
        try:
            found[own] = find(parts[own])
        except BaseException:
            barrier.abort()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(parts))
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    threads = [threading.Thread(target=run, args=(own,)) for own in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_s_deviation_is_that_of_all_its_parts(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    torch.manual_seed(0)
    whole = 5 + 3 * torch.randn(6, 2, 4)
    expected = batch_std(whole)
    torch.testing.assert_close(expected, whole.std())
    for found in in_parts(monkeypatch, batch_std, list(whole.chunk(count))):
        torch.testing.assert_close(found, expected)
        assert found.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("values", [[3, 1, 2, 5, 4, 0], [5, 1, 2, 5, 4, 0], [5, 1, 5, 0, 5, 0]])
def test_a_batch_s_largest_value_is_that_of_all_its_parts(
    monkeypatch: pytest.MonkeyPatch, values: list[float], count: int
) -> None:
    """And the mean of the processes' gradients is its gradient, shared where values are equal."""
    whole = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    largest = batch_max(whole)
    (expected,) = torch.autograd.grad(largest, whole)

    def find(part: Tensor) -> tuple[float, Tensor]:
        part = part.detach().requires_grad_()
        found = batch_max(part)
        return found.item(), torch.autograd.grad(found, part)[0]

    found = in_parts(monkeypatch, find, list(whole.chunk(count)))
    assert [value for value, _ in found] == [5.0] * count
    gradient = torch.cat([part for _, part in found]) / count
    assert gradient.sum().item() == pytest.approx(1)
    assert ((gradient > 0) == (expected > 0)).all()


def test_why_a_penalty_is_no_mean_of_its_samples() -> None:
    assert "steepest sample" in MaxGradientPenalty().mixes_samples()
    assert "batch's spread" in str(Dragan().mixes_samples())
    assert GradientPenalty().mixes_samples() is None
