"""Augmentation: each change against plain numpy, steps against a loop by hand, the strength."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.augmentation import AugmentationConfig
from models.config import Config, parse_config
from models.constraints import CONSTRAINTS
from models.errors import ConfigError
from tests.artifacts import tiny_config
from tests.test_graphed_step import CPU, RecordedGraphs, assert_alike, initial
from training.data.batches import TrainingItems
from training.data.dataset import Dataset, load_data
from training.engine import loop
from training.engine.augmentation import (
    MEASURED_BATCHES,
    MEASURED_EVERY,
    Augmentation,
    Change,
    Overfitting,
    brighter,
    build_augmentation,
    contrasted,
    cut_out,
    saturated,
    translated,
)
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.optimisers import average_weight
from training.engine.runs import Interrupted, begin, no_watch, step_seed
from training.engine.stacked import train_together
from training.engine.step import CriticStep
from training.engine.whole_step import Outcome, WholeStep
from training.engine.workers import ALONE, Workers

Array = np.ndarray
SHAPES = [(6, 3, 7, 10), (6, 1, 8, 8), (6, 2, 9, 16)]


# ---- each change of an image ---------------------------------------------------------------------


def plain_brighter(image: Array, u: float, v: float) -> Array:
    return image + u - 0.5


def plain_saturated(image: Array, u: float, v: float) -> Array:
    grey = image.mean(axis=0)
    return np.stack([(channel - grey) * 2 * u + grey for channel in image])


def plain_contrasted(image: Array, u: float, v: float) -> Array:
    return (image - image.mean()) * (u + 0.5) + image.mean()


def plain_translated(image: Array, u: float, v: float) -> Array:
    _, height, width = image.shape
    reach = [round(side / 8 + 1e-9) for side in (height, width)]
    down, right = (int(n * (2 * r + 1)) - r for n, r in zip((u, v), reach, strict=True))
    canvas = np.zeros((len(image), 3 * height, 3 * width))
    canvas[:, height + down : 2 * height + down, width + right : 2 * width + right] = image
    return canvas[:, height : 2 * height, width : 2 * width]


def plain_cut_out(image: Array, u: float, v: float) -> Array:
    image = image.copy()
    _, height, width = image.shape
    sizes = [round(side / 2 + 1e-9) for side in (height, width)]
    middles = [
        int(n * (side + (size + 1) % 2))
        for n, side, size in zip((u, v), (height, width), sizes, strict=True)
    ]
    for row in range(height):
        for column in range(width):
            if all(
                middle - size // 2 <= place < middle - size // 2 + size
                for place, middle, size in zip((row, column), middles, sizes, strict=True)
            ):
                image[:, row, column] = 0
    return image


PLAIN = {
    brighter: plain_brighter,
    saturated: plain_saturated,
    contrasted: plain_contrasted,
    translated: plain_translated,
    cut_out: plain_cut_out,
}


def per_image(*numbers: list[float] | Tensor) -> list[Tensor]:
    return [torch.as_tensor(n, dtype=torch.float64).view(-1, 1, 1, 1) for n in numbers]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", PLAIN)
def test_a_change_is_that_of_plain_numpy(change: Change, shape: tuple[int, ...]) -> None:
    source = np.random.default_rng(0)
    images = source.uniform(-1, 1, shape)
    u, v = [0.0, 0.2, 0.5, 0.999999, *source.random(2)], [*source.random(2), 0.0, 0.999999, 0, 0.7]
    on = [1, 1, 0, 1, 1, 1]
    found = change(torch.from_numpy(images), *per_image(on, u, v)).numpy()
    for k, image in enumerate(images):
        expected = PLAIN[change](image, u[k], v[k]) if on[k] else image
        np.testing.assert_allclose(found[k], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("change", PLAIN)
def test_gradients_pass_as_finite_differences_say(change: Change) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    numbers = per_image([1, 0, 1], [0.1, 0.6, 0.9], [0.8, 0.3, 0.4])
    assert torch.autograd.gradcheck(lambda x: change(x, *numbers), (images,))


@pytest.mark.parametrize("side", [8, 12, 32, 36])
def test_every_shift_is_as_likely(side: int) -> None:
    """The smallest and the largest number that torch draws in float32 are in range too."""
    reach = int(side / 8 + 0.5)
    count = 2 * reach + 1
    evenly = (torch.arange(4 * count) + 0.5) / (4 * count)
    numbers = torch.cat([evenly, torch.tensor([0.0, 1 - 2**-24])]).view(-1, 1, 1, 1)
    rows = torch.arange(1.0, side + 1).view(1, 1, -1, 1).expand(len(numbers), 1, side, side)
    moved = translated(rows, torch.ones_like(numbers), numbers, torch.full_like(numbers, 0.5))
    shifts = side // 2 + 1 - moved[:, 0, side // 2, side // 2].int()
    assert shifts[-2:].tolist() == [-reach, reach]
    values, counts = shifts[:-2].unique(return_counts=True)
    assert values.tolist() == list(range(-reach, reach + 1))
    assert set(counts.tolist()) == {4}


# ---- chances -------------------------------------------------------------------------------------


def augmentation(strength: float, *operations: str) -> Augmentation:
    values = {"strength": strength, **({"operations": operations} if operations else {})}
    return Augmentation(AugmentationConfig.model_validate(values))


def test_without_strength_every_bit_stays() -> None:
    torch.manual_seed(0)
    images = torch.cat([torch.rand(64, 3, 8, 8) * 2 - 1, torch.zeros(1, 3, 8, 8)])
    assert torch.equal(augmentation(0.0)(images), images)


def test_the_least_number_that_is_drawn_changes_nothing_without_strength(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.rand(4, 3, 8, 8)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))
    assert torch.equal(augmentation(0.0)(images), images)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_run_with_a_strength_changes_images(strength: float, data: Dataset) -> None:
    made = build_augmentation(config_of("eager", {"strength": strength}), data)
    assert isinstance(made, Augmentation) == (strength > 0)


def test_full_strength_changes_every_image() -> None:
    torch.manual_seed(0)
    images = torch.ones(2000, 1, 8, 8)
    assert (augmentation(1.0, "cutout")(images) != images).flatten(1).any(1).all()
    assert (augmentation(1.0, "colour")(images) != images).flatten(1).any(1).all()


def test_the_strength_is_the_chance_of_each_change() -> None:
    """Of colour three changes are decided each for itself; binomial, within four deviations."""
    torch.manual_seed(0)
    count = 20_000
    images = torch.rand(count, 3, 4, 4)
    for operations, unchanged in ((["cutout"], 0.7), (["colour"], 0.7**3)):
        made = augmentation(0.3, *operations)(images)
        share = (made == images).flatten(1).all(1).double().mean().item()
        assert abs(share - unchanged) < 4 * (unchanged * (1 - unchanged) / count) ** 0.5


def test_an_image_is_changed_whatever_is_beside_it() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 3, 8, 8)
    others = images.flip(0)
    others[2] = images[2]
    made = []
    for batch in (images, others):
        torch.manual_seed(1)
        made.append(augmentation(0.7)(batch)[2])
    assert torch.equal(*made)


def test_processes_change_together_what_one_changes() -> None:
    torch.manual_seed(0)
    images, own = torch.rand(8, 3, 8, 8), augmentation(0.6)
    torch.manual_seed(1)
    whole, parts = own(images), []
    for rank in range(2):
        workers = Workers(rank, 2)
        torch.manual_seed(1)
        with workers.draws(8):
            parts.append(own(images[workers.rows(8)]))
    assert torch.equal(torch.cat(parts), whole)


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_data(tiny_config(data={"validation_fraction": 0.1}).data)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedGraphs]:
    stand_in = RecordedGraphs()
    monkeypatch.setattr(loop, "graphs_on", lambda device: stand_in)
    return stand_in


def config_of(
    mode: str, augmented: dict[str, Any] | None, kind: str = "gradient_penalty", **training: Any
) -> Config:
    sections = {} if augmented is None else {"augmentation": augmented}
    own = {"optimizer": "adam", "learning_rate": 1e-3, "betas": (0.5, 0.9)}
    return tiny_config(
        data={"validation_fraction": 0.1},
        critic={"dropout": 0.2 if kind == "consistency" else 0.0},
        constraint={"kind": kind},
        training={**own, "critic_step": mode, **training},
        **sections,
    )


def trained(
    config: Config, data: Dataset, folder: Path, stop_after: int | None = None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    asked = iter(range(1, 10**6))
    state, history = loop.train(
        config, data, folder, CPU, stop_requested=lambda: next(asked) == stop_after
    )
    rows = [{k: v for k, v in row.items() if k != "samples_per_second"} for row in history]
    return state.tensors(), rows


def test_a_strength_of_0_is_no_augmentation(data: Dataset, tmp_path: Path) -> None:
    plain, history = trained(config_of("eager", None), data, tmp_path / "plain")
    found, same = trained(config_of("eager", {"strength": 0}), data, tmp_path / "zero")
    assert history == same
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def steps_by_hand(config: Config, data: Dataset, folder: Path) -> dict[str, Tensor]:
    """One critic step of WGAN-GP and one generator step in turn, in plain torch."""
    state, items = begin(config, data, folder, CPU, None).state, TrainingItems(data, CPU)
    generator, critic, augmented = state.generator, state.critic, state.augmentation
    assert isinstance(augmented, Augmentation)
    order = np.random.default_rng([0, 0]).permutation(len(items))
    for step in range(config.training.steps):
        torch.manual_seed(step_seed(0, step))
        real = data.scaling.to_model(items.take(order[8 * step : 8 * step + 8]))
        fake = generator(torch.randn(8, 4)).detach()
        real, fake = augmented(real), augmented(fake)
        share = torch.rand(8, 1, 1, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = 10 * (slopes.flatten(1).norm(dim=1) - 1).square().mean()
        state.critic_optimizer.zero_grad()
        (critic(fake).mean() - critic(real).mean() + penalty).backward()
        state.critic_optimizer.step()
        state.generator_optimizer.zero_grad()
        (-critic(augmented(generator(torch.randn(8, 4)))).mean()).backward()
        state.generator_optimizer.step()
        weight = average_weight(config.training.ema_decay, step)
        for average, value in zip(state.ema.parameters(), generator.parameters(), strict=True):
            average.data.lerp_(value.data, weight)
    return state.tensors()


@pytest.mark.parametrize("mode", ["eager", "captured", "graphed"])
def test_steps_are_those_by_hand_with_the_penalty_at_augmented_points(
    mode: str, data: Dataset, graphs: RecordedGraphs, tmp_path: Path
) -> None:
    config = config_of(mode, {"strength": 0.9}, steps=2, num_critic_steps=1)
    expected = steps_by_hand(config, data, tmp_path / "by hand")
    found, _ = trained(config, data, tmp_path)
    assert_alike(found, expected, initial(config, data, tmp_path / "none"))
    assert graphs.replayed == 2 * (mode == "graphed")


@pytest.mark.sampled
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_steps_under_every_constraint_are_alike_in_every_mode(
    kind: str, data: Dataset, graphs: RecordedGraphs, tmp_path: Path
) -> None:
    states = {
        mode: trained(config_of(mode, {"strength": 0.6}, kind, steps=2), data, tmp_path / mode)[0]
        for mode in ("eager", "captured", "graphed")
    }
    assert graphs.replayed == 2
    start = initial(config_of("eager", None, kind), data, tmp_path / "none")
    for mode in ("captured", "graphed"):
        assert_alike(states[mode], states["eager"], start)


ADAPTIVE = {"target": 0.001, "ramp": 2000}


@pytest.mark.parametrize("mode", ["captured", "graphed"])
def test_a_resumed_run_has_the_strength_of_an_uninterrupted_one(
    mode: str, data: Dataset, graphs: RecordedGraphs, tmp_path: Path
) -> None:
    config = config_of(mode, ADAPTIVE, steps=40, log_every=10, seed=3)
    whole, history = trained(config, data, tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(config, data, tmp_path / "parts", stop_after=29)
    path = newest_checkpoint(tmp_path / "parts")
    assert path is not None
    assert load_checkpoint(path).tensors["augmentation.strength"] > 0
    torch.manual_seed(12345)
    parts, again = trained(config, data, tmp_path / "parts")
    assert history == again
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    strengths = [row["augmentation_strength"] for row in history]
    assert strengths[0] < strengths[1] == strengths[2] < strengths[3]
    assert whole["augmentation.strength"].item() == strengths[3]


def test_overfitting_is_measured_of_a_conditional_critic_too(data: Dataset, tmp_path: Path) -> None:
    config = tiny_config(
        conditional=True,
        augmentation=ADAPTIVE,
        data={"validation_fraction": 0.1},
        training={"steps": MEASURED_EVERY, "precision": "bf16"},
    )
    _, (row,) = trained(config, data, tmp_path)
    assert row["augmentation_overfitting"] > 0
    assert row["augmentation_strength"] == pytest.approx(MEASURED_EVERY * 16 / 2000)


def test_a_strength_that_is_set_has_no_column(data: Dataset, tmp_path: Path) -> None:
    tensors, history = trained(config_of("eager", {"strength": 0.5}), data, tmp_path)
    assert not [name for name in tensors if name.startswith("augmentation")]
    assert history[0].keys() == {"step", "critic_gap", "critic_loss", "gradient_norm"}


# ---- the strength that follows overfitting -------------------------------------------------------


def following(target: float) -> Augmentation:
    return Augmentation(AugmentationConfig(target=target))


@pytest.mark.parametrize(
    ("scores", "overfitting", "strength"),
    [
        ((3.0, 1.0, -1.0), 0.5, 0.6),  # above the target
        ((3.0, 2.0, -1.0), 0.25, 0.4),  # below
        ((3.0, -1.0, -1.0), 1.0, 0.6),  # validation items score as samples do
        ((3.0, 4.0, -1.0), -0.25, 0.4),
        ((1.0, -1.0, 2.0), 0.0, 0.4),  # samples score above real items
        ((1.0, -1.0, 1.0), 0.0, 0.4),
        ((4.0, 2.0, -1.0), 0.4, 0.5),  # at the target
    ],
)
def test_overfitting_by_hand_and_what_the_strength_does(
    scores: tuple[float, float, float], overfitting: float, strength: float
) -> None:
    own = following(0.4)
    own.strength.fill_(0.5)
    own.follow(*torch.tensor(scores), 0.1)
    assert own.overfitting.item() == pytest.approx(overfitting)
    assert own.strength.item() == pytest.approx(strength)


def test_the_strength_stays_between_0_and_1() -> None:
    own, above, below = following(0.5), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    for scores, end in ((below, 0.0), (above, 1.0)):
        for _ in range(15):
            own.follow(*scores, 0.1)
        assert own.strength.item() == end


def test_overfitting_is_measured_by_training_and_validation_items(
    data: Dataset, tmp_path: Path
) -> None:
    """By the critic without its dropout; of 16 images a step, each 20 steps, in 3200: by 0.1."""
    config = config_of("eager", {"target": 0.5, "ramp": 3200}, "consistency")
    state = begin(config, data, tmp_path, CPU, None).state
    find, plain = CriticStep("eager", state.critic, config.constraint), nullcontext()
    whole = WholeStep(config, data, state, find, CPU, ALONE, plain)
    measure = Overfitting(whole, data, TrainingItems(data, CPU), CPU, plain)
    state.critic.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        candidates = torch.rand(400, 1, 8, 8) * 2 - 1
        scores = state.critic(candidates)
        fake = candidates[scores.argsort()[:8]]  # so that real items score above these
        low = scores.sort().values[:8].mean().item()
        outcome = Outcome(scores.mean(), scores.mean(), fake, fake, [])
        assert data.is_validation is not None
        source, means = np.random.default_rng([0, MEASURED_EVERY]), []
        for items in (data.training, data.items_at(np.flatnonzero(data.is_validation))):
            chosen = items[source.integers(len(items), size=(MEASURED_BATCHES, 8)).ravel()]
            means.append(state.critic(torch.from_numpy(chosen).permute(0, 3, 1, 2) / 127.5 - 1))
    training, validation = (mean.double().mean().item() for mean in means)
    expected = (training - validation) / (training - low)
    assert training > low
    state.critic.train()
    measure(MEASURED_EVERY - 1, outcome)
    assert state.tensors()["augmentation.overfitting"].item() == 0
    measure(MEASURED_EVERY, outcome)
    assert state.tensors()["augmentation.overfitting"].item() == pytest.approx(expected, rel=1e-3)
    assert state.tensors()["augmentation.strength"].item() == 0
    state.augmentation.get_buffer("strength").fill_(0.5)
    measure(2 * MEASURED_EVERY, outcome)
    assert state.tensors()["augmentation.strength"].item() == pytest.approx(0.4)
    assert state.critic.training


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({}, "augmentation: set strength or target"),
        ({"strength": 1, "target": 0.5}, "augmentation: set strength or target"),
        ({"strength": 2}, "augmentation.strength: Input should be less than or equal to 1"),
        ({"strength": 1, "operations": "colour,flip"}, "augmentation.operations.1: Input should"),
        ({"strength": 1, "operation": "colour"}, "did you mean 'operations'"),
    ],
)
def test_a_mistake_is_one_line(own: dict[str, Any], says: str) -> None:
    values = {**tiny_config().model_dump(mode="json"), "augmentation": own}
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert says in str(caught.value)


def test_operations_may_be_listed_with_commas() -> None:
    own = config_of("eager", {"strength": 1, "operations": "translation,cutout"}).augmentation
    assert own is not None
    assert own.operations == ("translation", "cutout")


def test_a_configuration_without_it_does_not_name_it() -> None:
    written = tiny_config().model_dump(mode="json")
    assert "augmentation" not in written
    assert "validation_fraction" not in written["data"]


def test_only_images_are_augmented(tmp_path: Path) -> None:
    config = tiny_config("vector", augmentation={"strength": 1})
    points = load_data(config.data)
    for train in (
        lambda: loop.train(config, points, tmp_path, CPU),
        lambda: train_together([config], points, [tmp_path], [no_watch]),
    ):
        with pytest.raises(ConfigError, match=r"is for images, and 8gaussians holds vectors"):
            train()


def test_a_target_needs_validation_items(tmp_path: Path) -> None:
    config = tiny_config(augmentation={"target": 0.5})
    with pytest.raises(ConfigError, match=r"set data\.validation_fraction"):
        loop.train(config, load_data(config.data), tmp_path, CPU)
