"""Latents and samples: keyed by (seed, index), whatever else is asked for."""

import copy
import io
import json
import math
import threading
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from models.artifact import load_artifact
from models.errors import ShapeError
from models.formats import stream
from models.model import Model
from models.record import Engine
from models.refinement import Refined
from models.sampling import CHUNK, Scaling, draw_labels, generate, latents, score, slerp, truncate
from models.text_files import write_json
from models.values import ends_of, numbers, pixels, with_channels_last
from tests.artifacts import ALL_SHAPES, make_artifact


@pytest.fixture(scope="module", params=ALL_SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_artifact(make_artifact(tmp_path_factory.mktemp("m") / "artifact", request.param))


def test_latents_are_standard_normal() -> None:
    z = latents(seed=3, start=0, count=20_000, size=5)
    assert z.dtype == np.float32
    # Kolmogorov and Smirnov's distance to the normal; the seed is fixed, so the level is honest.
    assert stats.kstest(z.ravel().astype(np.float64), "norm").pvalue > 0.01
    correlations = np.corrcoef(z.T) - np.eye(5)
    assert np.abs(correlations).max() < 4 / np.sqrt(20_000)
    neighbours = np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(z.size)


def test_a_latent_follows_from_its_words_by_the_transform_of_box_and_muller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Words at the ends too, which no seed is known to give: the logarithm of 0 is not finite."""
    words = [0, 0, 2**64 - 1, 2**63, 2**11, 2**62, 1 << 40, 3 << 60]

    class Chosen:
        def __init__(self, key: list[int], counter: list[int]) -> None:
            assert (key, counter) == ([7, 0], [6, 0, 0, 0])

        def random_raw(self, count: int) -> np.ndarray:
            return np.array(words[:count], np.uint64)

    monkeypatch.setattr(np.random, "Philox", Chosen)
    expected = []
    for first, second in zip(words[::2], words[1::2], strict=True):
        one, two = (Fraction(2 * (word >> 11) + 1, 2**54) for word in (first, second))
        radius, angle = math.sqrt(-2 * math.log(one)), 2 * math.pi * float(two)
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert expected[0] == pytest.approx(math.sqrt(108 * math.log(2)))
    found = latents(seed=7, start=3, count=1, size=8)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 9))
def test_a_latent_depends_on_seed_and_index_alone(
    seed: int, start: int, count: int, size: int
) -> None:
    whole = latents(seed, start, count, size)
    assert np.array_equal(whole[-1:], latents(seed, start + count - 1, 1, size))
    assert not np.array_equal(whole, latents(seed ^ 1, start, count, size))


@pytest.mark.parametrize("count", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_a_longer_request_begins_with_the_shorter_one(model: Model, count: int) -> None:
    longest = model.sample(seed=7, count=4 * CHUNK)
    assert np.array_equal(model.sample(seed=7, count=count), longest[:count])


@pytest.mark.parametrize("start", [0, 3, CHUNK, 2 * CHUNK + 1])
def test_a_part_is_that_part_of_the_whole(model: Model, start: int) -> None:
    whole = model.sample(seed=7, count=start + 20)
    assert np.array_equal(np.concatenate(list(model.samples(7, 20, start))), whole[start:])


@pytest.mark.parametrize("kind", ALL_SHAPES)
@pytest.mark.parametrize("chunk", [32, 128])
def test_forwards_have_as_many_rows_as_the_version_was_made_with(
    tmp_path: Path, kind: str, chunk: int
) -> None:
    """A seed's bytes and an item's score are the same again, whatever else is asked for."""
    made = load_artifact(make_artifact(tmp_path / "artifact", kind))
    run = made.run.model_copy(update={"engine": Engine(chunk=chunk)})
    model, again = (
        Model(run, made.generator, made.critic, made.quantiles, made.digest) for _ in range(2)
    )
    rows: list[int] = []
    for network in (model.forward, model.critic):
        network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    samples = model.sample(seed=7, count=240)
    assert np.array_equal(again.sample(seed=7, count=240), samples)
    for start, count in ((0, 1), (15, 20), (95, 10), (203, 37)):
        part = np.concatenate(list(model.samples(7, count, start)))
        assert np.array_equal(part, samples[start : start + count])
        decoded = list(model.decode(model.latents(7, count, start)))
        assert len(np.concatenate(decoded)) == count
    scores = model.score(samples)
    assert np.array_equal(again.score(samples), scores)
    assert np.array_equal(model.score(samples[130:131]), scores[130:131])
    assert set(rows) == {chunk}


def test_no_more_latents_are_drawn_than_samples_are_asked_for(model: Model) -> None:
    drawn: list[tuple[int, int]] = []

    def draw(first: int, rows: int) -> np.ndarray:
        drawn.append((first, rows))
        return latents(7, first, rows, model.latent_size)

    parts = list(generate(model.generator, model.scaling, draw, 3, start=700, chunk=512))
    assert drawn == [(700, 3)]
    whole = generate(model.generator, model.scaling, draw, 1024, chunk=512)
    assert np.array_equal(np.concatenate(parts), np.concatenate(list(whole))[700:703])


def test_a_latent_s_row_in_its_forward_never_changes() -> None:
    """A kernel may round differently in another row."""
    places: list[tuple[float, int]] = []

    class Noting(nn.Linear):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            places.extend((float(value), row) for row, value in enumerate(z[:, 0]) if value)
            return z

    def draw(first: int, rows: int) -> np.ndarray:
        return np.arange(first, first + rows, dtype=np.float32)[:, None]

    scaling = Scaling((1,), [0.0], [1.0])
    for start in (37, 2**23):  # a first index may be large
        places.clear()
        made = np.concatenate(list(generate(Noting(1, 1), scaling, draw, 600, start, chunk=16)))
        assert np.array_equal(made, draw(start, 600))
        assert places == [(value, value % 16) for value in range(start, start + 600)]


def test_samples_that_wait_to_be_taken_wait_alone() -> None:
    """Many requests may wait for minutes, for clients that read slowly."""
    made: list[weakref.ref[torch.Tensor]] = []

    class Noting(nn.Linear):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            made.append(weakref.ref(out := super().forward(z).reshape(-1, 1, 8, 8)))
            return out

    def draw(first: int, rows: int) -> np.ndarray:
        return np.zeros((rows, 1), np.float32)

    parts = generate(Noting(1, 64), Scaling((1, 8, 8), [], []), draw, 40, chunk=16)
    for count, part in enumerate(parts, 1):
        assert part.dtype == np.uint8
        assert len(made) == count
        assert not any(output() is not None for output in made)
    assert count == 3


@pytest.mark.parametrize("format", ["npy", "npz"])
def test_what_an_array_is_written_from_is_not_kept(format: str) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def part(number: int) -> np.ndarray:
        made.append(weakref.ref(array := np.full((16, 2), number)))
        return array

    pieces = stream(map(part, range(3)), 48, format)
    content = next(pieces)  # the header needs the first part, which comes next
    for piece in pieces:
        content += piece
        assert not any(array() is not None for array in made[:-1])
    loaded = np.load(io.BytesIO(content))
    values = loaded["samples"] if format == "npz" else loaded
    assert np.array_equal(values, np.repeat(np.arange(3), 16)[:, None] * [1, 1])


def test_what_json_is_written_from_is_not_kept() -> None:
    class Part(list[int]):
        pass

    made: list[weakref.ref[Part]] = []

    def part(number: int) -> Part:
        made.append(weakref.ref(numbers := Part([number] * 4)))
        return numbers

    content = b""
    for piece in write_json(map(part, range(3)), {"seed": 1}):
        content += piece
        assert not any(numbers() is not None for numbers in made)
    assert json.loads(content) == {"samples": [0] * 4 + [1] * 4 + [2] * 4, "seed": 1}


def test_an_index_may_be_as_large_as_a_seed_is() -> None:
    scaling = Scaling((1,), [0.0], [1.0])
    drawn = generate(
        nn.Linear(1, 1), scaling, lambda first, rows: np.ones((rows, 1), "f4"), 3, 2**40
    )
    assert [part.shape for part in drawn] == [(3, 1)]


def test_what_is_given_stays_beside_its_item() -> None:
    class Sum(nn.Linear):
        def forward(self, z: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
            return z + 1000 * given.reshape(len(z), 1)

    class Critic(Sum):
        def forward(self, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
            return super().forward(x, given)[:, 0]

    def draw(first: int, rows: int) -> np.ndarray:
        return np.arange(first, first + rows, dtype=np.float32)[:, None]

    scaling, labels = Scaling((1,), [0.0], [1.0]), np.arange(10)[::-1].copy()
    expected = np.arange(5, 15) + 1000 * labels
    for beside in (labels, labels[:, None]):
        parts = generate(Sum(1, 1), scaling, draw, 10, start=5, given=beside, chunk=4)
        assert np.concatenate(list(parts)).ravel().tolist() == expected.tolist()
    scores = score(Critic(1, 1), scaling, draw(5, 10), labels, chunk=4)
    assert scores.tolist() == expected.tolist()


def test_a_label_follows_from_its_word() -> None:
    """It stays the same from version to version: the generator's word of a seed and an index."""
    found = draw_labels(3, 2**33, 50, np.array([10, 60, 0, 30]))
    for index, label in enumerate(found.tolist(), 2**33):
        word = int(np.random.Philox(key=[3, 1], counter=[index, 0, 0, 0]).random_raw(1)[0])
        at = Fraction(word >> 11, 2**53)
        assert label == (0 if at < Fraction(1, 10) else 1 if at < Fraction(7, 10) else 3)


def test_threads_do_not_change_samples(model: Model) -> None:
    expected = model.sample(seed=1, count=40)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(model.sample(1, 40))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(f, expected) for f in found)
    assert len(found) == 8


def test_a_score_does_not_depend_on_its_company(model: Model) -> None:
    items = model.sample(seed=5, count=2 * CHUNK + 3)
    scores = model.score(items)
    assert len({*scores.tolist()}) > 1
    assert np.array_equal(model.score(items[:1]), scores[:1])
    assert np.array_equal(model.score(items[CHUNK + 1 : CHUNK + 2]), scores[CHUNK + 1 : CHUNK + 2])


def test_image_scaling_is_its_own_inverse() -> None:
    scaling = Scaling((1, 16, 16), [], [])
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    scaled = scaling.to_model(pixels)
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert torch.equal(scaling.to_data(scaled), pixels)


def test_vector_scaling_is_its_own_inverse() -> None:
    scaling = Scaling((2,), [5.0, -1.0], [2.0, 0.5])
    x = torch.tensor([[7.0, -1.0], [5.0, 0.0]])
    assert torch.equal(scaling.to_model(x), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert torch.equal(scaling.to_data(scaling.to_model(x)), x)


def test_float_image_scaling_is_each_channel_s_own_and_its_inverse() -> None:
    scaling = Scaling((2, 3, 4), [5.0, -1.0], [2.0, 0.5])
    x = torch.arange(24.0).reshape(1, 3, 4, 2)
    scaled = scaling.to_model(x)
    assert torch.equal(scaled, torch.stack([(x[..., 0] - 5) / 2, (x[..., 1] + 1) * 2], dim=1))
    assert torch.equal(scaling.to_data(scaled), x)


def test_colours_beyond_the_ends_are_those_at_the_ends() -> None:
    made = torch.tensor([-1.02, 1.02]).reshape(1, 2, 1, 1).expand(1, 2, 3, 4)
    pixels = Scaling((2, 3, 4), [], []).to_data(made)
    assert torch.equal(pixels, torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 4, 2))
    floats = Scaling((1, 1, 2), [0.0], [1.0])
    assert floats.to_levels(np.array([[[[-1.02], [1.02]]]])).ravel().tolist() == [0, 255]


def test_what_is_no_image_of_floats_has_its_levels_already() -> None:
    rows, grey = np.ones((3, 2), np.float32), np.ones((3, 4, 4, 1), np.uint8)
    assert Scaling((2,), [0.0] * 2, [1.0] * 2).to_levels(rows) is rows
    for convert in (Scaling((1, 4, 4), [], []).to_levels, Scaling((1, 4, 4), [], []).from_levels):
        assert convert(grey) is grey


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("image", np.zeros((2, 8, 9, 1), np.uint8)),
        ("image", np.zeros((2, 8, 8, 3), np.uint8)),
        ("image", np.zeros((8, 8), np.uint8)),
        ("image", np.zeros((0, 8, 8, 1), np.uint8)),
        ("image", np.full((1, 8, 8, 1), 256)),
        ("image", np.full((1, 8, 8, 1), -1)),
        ("image", np.full((1, 8, 8, 1), 0.5)),
        ("image", np.full((1, 8, 8, 1), np.nan)),
        ("image", np.array([[["a"] * 8] * 8])),
        ("vector", np.zeros((2, 3))),
        ("vector", np.full((2, 2), np.inf)),
        ("vector", np.full((2, 2), 1e300)),
        ("sequence", np.zeros((2, 2, 4))),
        ("sequence", np.zeros((4, 2))),
        ("sequence", np.full((2, 4, 2), np.nan)),
    ],
)
def test_wrong_items_are_refused(kind: str, items: np.ndarray, tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", kind))
    with pytest.raises(ShapeError):
        model.items(items)


def test_grey_images_need_no_channel_axis(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact", "image"))
    assert model.items(np.zeros((3, 8, 8), np.int64)).shape == (3, 8, 8, 1)


def test_channels_come_last_where_they_came_first() -> None:
    images = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    moved = np.moveaxis(images, 1, -1)
    assert np.array_equal(with_channels_last(images, (3, 4, 5)), moved)
    assert with_channels_last(moved, (3, 4, 5)) is moved
    grey = images[:, 0]
    assert np.array_equal(with_channels_last(grey, (1, 4, 5)), grey[..., None])
    assert with_channels_last(grey, (3, 4, 5)) is grey, "it has no such channels"
    cubes = np.arange(2 * 27).reshape(2, 3, 3, 3)
    assert with_channels_last(cubes, (3, 3, 3)) is cubes, "its channels may be last already"


@pytest.mark.parametrize("kind", ["u1", "i4", "f4", "f8"])
def test_whole_numbers_from_0_to_255_are_pixels(kind: str) -> None:
    whole = np.array([[0, 1], [128, 255]], kind)
    assert numbers(whole) is whole
    found = pixels(whole)
    assert (found.dtype, found.tolist()) == (np.uint8, whole.tolist())


@pytest.mark.parametrize("values", [["a"], [None], [True], [1j], [np.nan], [-np.inf]])
def test_what_is_no_finite_number_is_refused(values: list[object]) -> None:
    for check in (numbers, pixels):
        with pytest.raises(ShapeError):
            check(np.array(values))


@pytest.mark.parametrize("values", [[-1.0], [-0.5], [0.5], [255.5], [256.0]])
def test_other_numbers_are_no_pixels(values: list[float]) -> None:
    numbers(np.array(values))
    with pytest.raises(ShapeError, match="0 to 255"):
        pixels(np.array([0.0, *values]))


def test_a_range_has_two_ends_that_differ() -> None:
    assert ends_of("-0.5..1e3") == (-0.5, 1000.0)
    for text in ("", "1", "1..", "0..1..2", "1..1", "2..1", "0..inf", "-inf..0", "nan..1", "own"):
        with pytest.raises(ValueError, match=r"write LOW\.\.HIGH"):
            ends_of(text)


def test_percentiles_follow_the_quantiles(tmp_path: Path) -> None:
    model = load_artifact(make_artifact(tmp_path / "artifact"))  # quantiles evenly over [-1, 1]
    found = model.percentiles(np.array([-5.0, -1.0, -0.5, 0.0, 1.0, 9.0]))
    np.testing.assert_allclose(found, [0, 0, 25, 50, 100, 100], atol=1e-9)


@pytest.mark.parametrize("bound", [1e-3, 0.5, 2.0, 5.0])
def test_truncated_latents_are_of_the_truncated_normal(bound: float) -> None:
    z = latents(seed=4, start=0, count=20_000, size=1).ravel()
    inside = truncate(z, bound)
    assert inside.dtype == np.float32
    assert np.abs(inside).max() <= np.float32(bound)
    law = stats.truncnorm(-bound, bound)
    assert stats.kstest(inside.astype(np.float64), law.cdf).pvalue > 0.01
    # Each keeps its rank, so what one seed makes stays recognisable.
    np.testing.assert_allclose(
        inside, law.ppf(stats.norm.cdf(z.astype(float))), rtol=1e-4, atol=1e-6
    )
    assert np.isfinite(truncate(np.float32([-9, 0, 9]), bound)).all()


def test_slerp_walks_the_great_circle_at_an_even_pace() -> None:
    first, last = latents(1, 0, 2, 50)
    first, last = (z / np.linalg.norm(z) for z in (first, last))
    path = slerp(first, last, np.linspace(0, 1, 11)).astype(np.float64)
    assert np.array_equal(path[[0, -1]], [first, last])
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1, rtol=1e-6)
    angles = np.arccos((path[:-1] * path[1:]).sum(axis=1))
    np.testing.assert_allclose(angles, angles.mean(), rtol=1e-5)
    assert np.array_equal(slerp(first, first, np.array([0.3]))[0], first)
    assert np.isfinite(slerp(first, -first, np.array([0.3]))).all()
    for length in range(1, 50):  # of some, rounding makes the cosine more than 1
        for factor in (1, 3):
            other = factor * first[:length]
            half, none = (slerp(first[:length], z, np.array([0.5]))[0] for z in (other, -other))
            np.testing.assert_allclose(half, (1 + factor) / 2 * first[:length], rtol=1e-6)
            np.testing.assert_allclose(none, (1 - factor) / 2 * first[:length], rtol=1e-6)
    # Shoemake's formula for a right angle, of latents that have other lengths than 1.
    found = slerp(np.float32([2, 0]), np.float32([0, 5]), np.array([1 / 3]))
    np.testing.assert_allclose(found, [[2 * math.sqrt(3) / 2, 5 / 2]], rtol=1e-6)
    half = slerp(np.float32([2, 0]), np.float32([5, 5]), np.array([0.5]))  # 45 degrees
    np.testing.assert_allclose(half * 2 * math.cos(math.pi / 8), [[7, 5]], rtol=1e-6)
    zero = np.zeros_like(first)
    assert np.array_equal(slerp(zero, zero, np.array([0.3]))[0], zero)
    assert np.allclose(slerp(zero, last, np.array([0.25]))[0], 0.25 * last)


def test_given_latents_make_the_samples_that_a_seed_does(model: Model) -> None:
    z = model.latents(7, 20)
    assert np.array_equal(np.concatenate(list(model.decode(z))), model.sample(7, 20))
    with pytest.raises(ShapeError, match="latents of shape"):
        model.decode(z[:, 1:])


# --- guided by the critic -----------------------------------------------------------------------


def test_refined_samples_depend_on_their_own_latent_alone(model: Model) -> None:
    whole = model.refined.sample(7, 2 * CHUNK + 3)
    assert np.array_equal(model.refined.sample(7, 5), whole[:5])
    later = np.concatenate(list(model.refined.samples(7, 4, start=CHUNK + 1)))
    assert np.array_equal(later, whole[CHUNK + 1 : CHUNK + 5])
    # An untrained generator's pictures may be equal, once they are rounded to grey levels.
    assert model.is_image or not np.array_equal(model.sample(7, 5), whole[:5])


def test_a_refined_latent_goes_up_the_score_and_keeps_its_length(model: Model) -> None:
    z = torch.from_numpy(model.latents(3, 200)).double()
    generator, critic = model.generator.double(), model.critic.double()
    kept: list[torch.Tensor] = []
    handle = generator.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    Refined(generator, critic, z)(z)
    handle.remove()
    moved = kept[-1].detach()
    torch.testing.assert_close(moved.norm(dim=1), z.norm(dim=1))
    assert 0 < (moved - z).norm(dim=1).mean() < 0.03 * z.shape[1] ** 0.5
    with torch.no_grad():
        assert (critic(generator(moved)) - critic(generator(z))).mean() > 0


class Bounded(nn.Module):
    """A generator that knows no latents of 50 or more."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        made = self.generator(z, *given)
        return torch.where(z.abs().amax() < 50, made, made / 0)


def test_samples_that_are_not_finite_are_never_made(model: Model) -> None:
    """As pixels, they would pass for black; as CSV, they would be text."""
    bounded = copy.copy(model)
    bounded.forward = Bounded(model.forward)
    latents = np.zeros((3, model.latent_size), np.float32)
    assert len(np.concatenate(list(bounded.decode(latents)))) == 3
    latents[1] = 100
    with pytest.raises(ShapeError, match="not finite"):
        list(bounded.decode(latents))


def test_a_refined_latent_of_linear_networks_has_a_closed_form() -> None:
    """Of a constant slope, its own mean: each latent goes 0.02 root d along it."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 5, bias=False), nn.Linear(5, 1, bias=False)
    z = torch.randn(7, 3)
    with torch.inference_mode():  # as models are used
        refined = Refined(generator, critic, z[:4])
        slope = (critic.weight @ generator.weight)[0]
        torch.testing.assert_close(refined.slopes(z), slope.expand(7, 3))
        torch.testing.assert_close(refined.mean_slope, slope.norm())
        moved = z + 0.02 * 3**0.5 * slope / slope.norm()
        expected = moved * z.norm(dim=1, keepdim=True) / moved.norm(dim=1, keepdim=True)
        torch.testing.assert_close(refined(z), generator(expected))
        critic.weight.zero_()  # without a slope, and without a length, nothing moves
        still = Refined(generator, critic, z)
        z[0] = 0
        torch.testing.assert_close(still(z), generator(z))
