"""Latents keyed by (seed, index), and a generator's samples: the same bytes for the same seed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ShapeError
from models.networks import Shape

Array = np.ndarray
CHUNK = 16
"""Rows of each forward of a new version, always. A kernel may round differently for another batch
size, so one size keeps a sample's bytes independent of how many were asked for. 16 keeps a request
for one sample cheap, and costs little throughput against 64."""
TABLE_CHUNK = 256
"""Rows of each forward of a new version that makes a table: its rows are cheap and asked for by the
thousand. Against 16 it makes a million rows five times as fast, and a single row in 1 ms."""
CUDA_CHUNK = 4096
"""Rows, at most, of each forward of a new version that is made to serve on a CUDA device."""
CUDA_NUMBERS = 2**20
"""Numbers, at most, in the samples of such a forward unless that is less than `CHUNK` of them: some
for each of the threads that a large GPU runs at once. Reckoned, not measured."""
BLOCK = 16
"""Chunks whose latents are drawn at once: few calls, and no more numbers than the cache holds."""
WORDS_PER_COUNTER = 4
"""Number of 64-bit words that Philox 4x64 makes from one counter value."""


def latents(seed: int, start: int, count: int, size: int) -> Array:
    """Draw standard normal latents, each a function of (seed, its index) alone.

    Philox (Salmon et al. 2011) turns a counter into random words, so any index is reached
    directly; the transform of Box and Muller (1958) turns two words into two normals.

    Args:
        seed: 0 to 2**63 - 1.
        start: index of the first latent.
        count: number of latents.
        size: size of each latent.

    Returns:
        float32 ``(count, size)``.

    >>> import numpy as np
    >>> np.array_equal(latents(7, 0, 10, 4)[3:], latents(7, 3, 7, 4))
    True
    """
    counters = -(-size // WORDS_PER_COUNTER)
    philox = np.random.Philox(key=[seed, 0], counter=[start * counters, 0, 0, 0])
    words = philox.random_raw(count * counters * WORDS_PER_COUNTER)
    # The upper 53 bits, shifted by half a step: uniform on (0, 1), so the logarithm is finite.
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    pairs = uniform.reshape(count, -1, 2)
    radius = np.sqrt(-2 * np.log(pairs[..., 0]))
    angle = 2 * np.pi * pairs[..., 1]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normals.reshape(count, -1)[:, :size].astype(np.float32)


def truncate(z: Array, bound: float) -> Array:
    """Map standard normal numbers into ``[-bound, bound]``: the truncation trick.

    Brock et al. 2019 draw from the truncated normal by redrawing what lies outside. Here each
    number is mapped to the same quantile of that distribution, so a seed's sample stays
    recognisable and still depends on its own latent only.

    Args:
        z: float32, any shape, standard normal.
        bound: in standard deviations, above 0.

    Returns:
        float32, as z.
    """
    central = torch.erf(torch.from_numpy(z).double() / math.sqrt(2)) * math.erf(
        bound / math.sqrt(2)
    )
    inside = math.sqrt(2) * torch.erfinv(central)
    return inside.clamp(-bound, bound).float().numpy()


def slerp(first: Array, last: Array, at: Array) -> Array:
    """Interpolate along the great circle between two latents (Shoemake 1985).

    A straight line between two normal latents passes closer to the origin than normal latents lie,
    so samples from it are not typical (White 2016).

    Args:
        first: ``(size,)``.
        last: ``(size,)``.
        at: ``(N,)``, from 0 (the first, exactly) to 1 (the last, exactly).

    Returns:
        float32 ``(N, size)``; on a straight line if the two point in the same or opposite
        directions, or one is 0.
    """
    a, b, t = first.astype(np.float64), last.astype(np.float64), at.astype(np.float64)[:, None]
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    # Latents that are cut off close to 0 are 0 in float32, and have no direction.
    angle = np.arccos(np.clip(a @ b / lengths, -1, 1)) if lengths else 0.0
    if math.sin(angle) < 1e-6:
        return ((1 - t) * a + t * b).astype(np.float32)
    points = np.sin((1 - t) * angle) * a + np.sin(t * angle) * b
    return (points / np.sin(angle)).astype(np.float32)


def draw_labels(seed: int, start: int, count: int, frequencies: Array) -> Array:
    """Draw labels, each a function of (seed, its index) alone, as `latents` draws latents.

    Args:
        seed: 0 to 2**63 - 1.
        start: index of the first label.
        count: number of labels.
        frequencies: ``(K,)``, relative frequencies of the labels, in any unit.

    Returns:
        int64 ``(count,)``, from 0 to K - 1.
    """
    philox = np.random.Philox(key=[seed, 1], counter=[start, 0, 0, 0])  # latents have the key 0
    words = philox.random_raw(count * WORDS_PER_COUNTER)[::WORDS_PER_COUNTER]
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    edges = np.cumsum(frequencies, dtype=np.float64)
    return np.searchsorted(edges / edges[-1], uniform, side="right").astype(np.int64)


def chunk_rows(device: str, shape: Shape, is_table: bool) -> int:
    """Choose the rows of each forward of a new version, which then never change.

    Args:
        device: ``cpu`` or ``cuda``, on which the version is to serve.
        shape: of an item.
        is_table: its items are rows of mixed columns.

    Example:
        >>> chunk_rows("cpu", (1, 28, 28), False), chunk_rows("cuda", (1, 28, 28), False)
        (16, 1024)
    """
    if device == "cpu":
        return TABLE_CHUNK if is_table else CHUNK
    fitting = min(max(CUDA_NUMBERS // math.prod(shape), CHUNK), CUDA_CHUNK)
    # A power of two: of other sizes a kernel may round the last rows differently from the first.
    return int(2 ** (fitting.bit_length() - 1))


class Scaling:
    """Conversion between data units and the critic's units.

    Images of uint8: 0..255 to [-1, 1], channels last to channels first. All other items:
    ``(x - offset) / scale`` for each feature or channel, in the type of the data: after it the
    numbers are near 0, where float32 holds them. Images of floats are then in [-1, 1] too.
    """

    def __init__(
        self, shape: Shape, offset: list[float], scale: list[float], dtype: str = "float32"
    ) -> None:
        """Take what the data card says; ``dtype`` is the type of items that are not uint8."""
        self.is_image = len(shape) == 3
        self.is_uint8 = self.is_image and not offset
        """The items are images of 256 grey levels."""
        self.shape = shape
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.offset = torch.tensor(offset, dtype=self.dtype)
        self.scale = torch.tensor(scale, dtype=self.dtype)

    def to(self, device: torch.device) -> Scaling:
        """The same conversion with its numbers on a device, where items need not wait for them."""
        moved = copy.copy(self)
        moved.offset, moved.scale = self.offset.to(device), self.scale.to(device)
        return moved

    def to_model(self, items: Tensor) -> Tensor:
        """Convert items ``(N, H, W, C)`` or ``(N, D)`` to float32 ``(N, *shape)``."""
        if self.is_uint8:
            return items.permute(0, 3, 1, 2).float() / 127.5 - 1
        # Items may be of another set, held in more digits than this model's data.
        dtype = torch.promote_types(items.dtype, self.dtype)
        offset, scale = (x.to(items.device, dtype) for x in (self.offset, self.scale))
        scaled = ((items.to(dtype) - offset) / scale).float()
        return scaled.permute(0, 3, 1, 2) if self.is_image else scaled

    def to_data(self, samples: Tensor) -> Tensor:
        """Convert float32 ``(N, *shape)`` to uint8 or `dtype`: ``(N, H, W, C)`` or ``(N, D)``."""
        if self.is_uint8:
            pixels = (samples.float() + 1) * 127.5
            return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        if self.is_image:
            samples = samples.permute(0, 2, 3, 1).contiguous()
        offset, scale = self.offset.to(samples.device), self.scale.to(samples.device)
        return samples.to(self.dtype) * scale + offset

    def to_levels(self, items: Array) -> Array:
        """Bring images of floats to 256 grey levels, as they are drawn and judged.

        Args:
            items: in data units.

        Returns:
            uint8 ``(N, H, W, C)``, 0 and 255 at the ends of each channel's range, and beyond them;
            what is not an image of floats stays as it is.
        """
        if self.is_uint8 or not self.is_image:
            return items
        scaled = (items - self.offset.cpu().numpy()) / self.scale.cpu().numpy()
        return np.rint((scaled + 1) * 127.5).clip(0, 255).astype(np.uint8)

    def from_levels(self, images: Array) -> Array:
        """Bring images of 256 grey levels, uint8 ``(N, H, W, C)``, to data units."""
        if self.is_uint8:
            return images
        return self.to_data(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).numpy()


@torch.inference_mode()
def generate(
    generator: nn.Module,
    scaling: Scaling,
    draw: Callable[[int, int], Array],
    count: int,
    start: int = 0,
    given: Array | None = None,
    chunk: int = CHUNK,
) -> Iterator[Array]:
    """Yield the samples of latents ``start`` to ``start + count``, in order, a few at a time.

    Args:
        generator: in eval mode; ``(N, latent_size)`` to ``(N, *shape)``.
        scaling: the model's scaling.
        draw: returns latents, float32 ``(count, latent_size)``, for a first index and a count.
        count: number of samples.
        start: index of the first sample.
        given: what the generator takes beside the latents: labels, int64 ``(count,)``, of a
            class-conditional one, or restrictions, float32 ``(count, C)``, of one of rows.
        chunk: rows of each forward.

    Yields:
        Parts of at most ``chunk`` items: uint8 ``(n, H, W, C)``, or ``(n, D)`` of the scaling's
        type.

    Raises:
        ShapeError: latents far outside those of training make values that are not finite.
    """
    device = next(generator.parameters()).device
    stop = start + count
    # Chunks are aligned to the index, so a sample's row in its chunk never changes either.
    for block in range(start - start % chunk, stop, BLOCK * chunk):
        rows = min(BLOCK * chunk, -(-(stop - block) // chunk) * chunk)
        begin, end = max(start, block), min(stop, block + rows)
        drawn = torch.from_numpy(draw(begin, end - begin)).to(device)
        # Rows that nobody asked for are zeros: to draw thousands may take longer than the forward.
        drawn = F.pad(drawn, (0, 0, begin - block, block + rows - end))
        for first in range(block, block + rows, chunk):
            z = drawn[first - block : first - block + chunk]
            low, high = max(start - first, 0), min(stop - first, chunk)
            others = []
            if given is not None:
                padded = np.zeros((chunk, *given.shape[1:]), given.dtype)
                padded[low:high] = given[first + low - start : first + high - start]
                others = [torch.from_numpy(padded).to(device)]
            raw = generator(z, *others)
            if not torch.isfinite(raw).all():  # as pixels, NaN would pass for black
                raise ShapeError("the generator makes values of these latents that are not finite")
            samples = scaling.to_data(raw)[low:high].cpu().numpy()
            del raw  # many requests may wait here for clients that read slowly
            yield samples


@torch.inference_mode()
def score(
    critic: nn.Module,
    scaling: Scaling,
    items: Array,
    labels: Array | None = None,
    chunk: int = CHUNK,
) -> Array:
    """Score items in data units.

    Args:
        critic: in eval mode.
        scaling: the model's scaling.
        items: uint8 ``(N, H, W, C)`` or float ``(N, D)``, checked already.
        labels: int64 ``(N,)``, for a class-conditional critic.
        chunk: rows of each forward.

    Returns:
        float32 ``(N,)``, unbounded; only differences between scores of one critic have a meaning.
    """
    device = next(critic.parameters()).device
    scores = np.empty(len(items), np.float32)
    for first in range(0, len(items), chunk):
        inputs = [scaling.to_model(torch.from_numpy(padded(items, first, chunk)).to(device))]
        if labels is not None:
            inputs.append(torch.from_numpy(padded(labels, first, chunk)).to(device))
        result = critic(*inputs).float().cpu().numpy()
        scores[first : first + chunk] = result[: len(items) - first]
    return scores


def padded(values: Array, first: int, chunk: int) -> Array:
    """Take a full chunk, always, so that an item's score does not depend on its company."""
    part = values[first : first + chunk]
    return np.concatenate([part, np.repeat(part[-1:], chunk - len(part), axis=0)])
