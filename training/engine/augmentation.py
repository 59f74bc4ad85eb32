"""Random changes of the images that the critic sees, and the strength that follows overfitting.

Real and generated images are changed alike, and gradients pass to the generator through the
changes, so what the critic learns of them does not reach the samples (Zhao et al. 2020; Karras et
al. 2020). Whatever depends on the strength is computed on the device, so that a CUDA graph can hold
it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.augmentation import AugmentationConfig
from models.config import Config
from models.errors import ConfigError
from training.data.batches import TrainingItems
from training.data.dataset import Dataset
from training.engine.whole_step import Outcome, WholeStep

Array = np.ndarray
BRIGHTNESS, SATURATION, CONTRAST = 0.5, 1.0, 0.5
"""Largest change: what is added to each pixel, in units where black is -1 and white 1; and by how
much the distances from the grey of a pixel, and from the mean of an image, are multiplied more or
less (Zhao et al. 2020, appendix)."""
TRANSLATION, CUTOUT = 1 / 8, 1 / 2
"""Largest shift, and side of the square that is cut out, over the side of an image."""
MEASURED_EVERY = 20
"""Generator steps between measurements of overfitting."""
MEASURED_BATCHES = 4
"""Batches of training items, and of validation items, in each of them (Karras et al. 2020, N)."""

Change = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Changes images ``(N, C, H, W)`` where ``on`` is 1, and leaves every bit where it is 0. The other
arguments are uniform in [0, 1), and decide how; all three ``(N, 1, 1, 1)``."""


def brighter(images: Tensor, on: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Add one number to all pixels of an image. See `Change`."""
    return images + on * BRIGHTNESS * (2 * u - 1)


def saturated(images: Tensor, on: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Multiply the distance of each pixel from its grey, the mean of its channels."""
    grey = images.mean(dim=1, keepdim=True)
    return images + on * SATURATION * (2 * u - 1) * (images - grey)


def contrasted(images: Tensor, on: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Multiply the distance of each pixel from the mean of the image."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return images + on * CONTRAST * (2 * u - 1) * (images - mean)


def translated(images: Tensor, on: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Shift an image by whole pixels, and fill up with 0, the grey between black and white."""
    reach = [int(side * TRANSLATION + 0.5) for side in images.shape[2:]]
    down, right = (
        on * (torch.floor(x * (2 * r + 1)) - r) for x, r in zip((u, v), reach, strict=True)
    )
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    # The place in the padded image that comes to each pixel.
    rows, columns = _places(images, 2) + reach[0] - down, _places(images, 3) + reach[1] - right
    index = (rows * padded.shape[3] + columns).long().flatten(2)
    return padded.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)


def cut_out(images: Tensor, on: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Make a square of an image 0; its centre is any pixel, so part of it may lie outside."""
    is_cut = on
    for axis, number in ((2, u), (3, v)):
        side = images.shape[axis]
        size = int(side * CUTOUT + 0.5)
        first = torch.floor(number * (side + 1 - size % 2)) - size // 2
        places = _places(images, axis)
        is_cut = is_cut * ((places >= first) & (places < first + size))
    return images * (1 - is_cut)


def _places(images: Tensor, axis: int) -> Tensor:
    """The numbers of an image's rows, or of its columns, along their axis."""
    shape = [1, 1, 1, 1]
    shape[axis] = images.shape[axis]
    return torch.arange(images.shape[axis], device=images.device).view(shape)


CHANGES: dict[str, tuple[Change, ...]] = {
    "colour": (brighter, saturated, contrasted),
    "translation": (translated,),
    "cutout": (cut_out,),
}
"""What is done by each operation's name; each change of an image is decided for itself."""


class Augmentation(nn.Module):
    """Changes each image at random, each change with the chance ``strength``.

    Args:
        config: its settings.
    """

    strength: Tensor
    """A scalar; saved with the training state if it changes."""
    overfitting: Tensor
    """r_v of Karras et al. 2020 (eq. 1) when it was last measured, a scalar: how far the critic's
    scores of validation items lie on the way from those of training items to those of samples. 0 if
    it does not score training items above samples."""

    def __init__(self, config: AugmentationConfig) -> None:
        super().__init__()
        self._changes = [change for name in config.operations for change in CHANGES[name]]
        self._target = config.target
        changes = config.target is not None
        self.register_buffer("strength", torch.tensor(config.strength or 0.0), persistent=changes)
        self.register_buffer("overfitting", torch.tensor(0.0), persistent=changes)

    def forward(self, images: Tensor) -> Tensor:
        """Change images ``(N, C, H, W)``, in the critic's units."""
        numbers = torch.rand(len(images), len(self._changes), 3, device=images.device)
        for k, change in enumerate(self._changes):
            chance, u, v = (x.view(-1, 1, 1, 1) for x in numbers[:, k].unbind(1))
            images = change(images, (chance < self.strength).to(u.dtype), u, v)
        return images

    @torch.no_grad()
    def follow(
        self, training: Tensor, validation: Tensor, generated: Tensor, amount: float
    ) -> None:
        """Raise the strength if overfitting is above the target, and lower it if it is below.

        Args:
            training: mean score of training items, a scalar.
            validation: that of items that are not trained on.
            generated: that of samples.
            amount: by how much; the strength stays within 0 and 1.
        """
        assert self._target is not None, "a strength that is set does not change"
        gap = training - generated
        overfitting = torch.where(gap > 0, (training - validation) / gap, 0.0)
        self.overfitting.copy_(overfitting)
        change = amount * torch.sign(overfitting - self._target)
        self.strength.add_(change).clamp_(0, 1)


def build_augmentation(config: Config, data: Dataset) -> nn.Module:
    """Make what changes the images that the critic of a run sees.

    Raises:
        ConfigError: the data are no images, or have no items to measure overfitting by.
    """
    settings = config.augmentation
    if settings is None:
        return nn.Identity()
    if data.card.kind != "image":
        raise ConfigError(
            f"augmentation: is for images, and {config.data.source} holds {data.card.kind}s; set "
            "augmentation=null"
        )
    if settings.target is not None and data.is_validation is None:
        raise ConfigError(
            "augmentation.target: overfitting is measured by items that are not trained on: set "
            "data.validation_fraction, such as 0.1"
        )
    return nn.Identity() if settings.strength == 0 else Augmentation(settings)


class Overfitting:
    """Measures the critic's overfitting as a run trains, for the strength that follows it.

    It is measured by training and validation items that (seed, step) choose, and by the samples of
    the step's last critic step, all augmented as the critic sees them. Nothing waits for the
    device.

    Args:
        whole: the step, of a run with a target.
        data: what the run trains on.
        items: those that it trains on.
        device: of the state.
        draws: entered around whatever draws random numbers.
    """

    def __init__(
        self,
        whole: WholeStep,
        data: Dataset,
        items: TrainingItems,
        device: torch.device,
        draws: AbstractContextManager[Any],
    ) -> None:
        assert whole.config.augmentation is not None
        assert data.is_validation is not None
        assert isinstance(whole.state.augmentation, Augmentation)
        self._whole, self._scaling, self._draws = whole, data.scaling.to(device), draws
        self._augmentation = whole.state.augmentation
        validation = TrainingItems(data, device, indices=np.flatnonzero(data.is_validation))
        self._sets = items, validation
        settings = whole.config.training
        shown = MEASURED_EVERY * settings.num_critic_steps * settings.batch_size
        self._amount = shown / whole.config.augmentation.ramp

    def __call__(self, step: int, outcome: Outcome) -> None:
        """Measure after a generator step, if it is time, and let the strength follow.

        Args:
            step: generator steps done.
            outcome: of the last one.
        """
        if step % MEASURED_EVERY:
            return
        whole, settings = self._whole, self._whole.config.training
        critic, source = whole.state.critic, np.random.default_rng([settings.seed, step])
        rows = whole.workers.rows(settings.batch_size)
        shape = MEASURED_BATCHES, settings.batch_size
        critic.eval()
        with self._draws, torch.no_grad():
            means = [whole.scores(outcome.fake, outcome.labels).float().mean()]
            for items in self._sets:
                numbers = source.integers(len(items), size=shape)[:, rows].reshape(-1)
                images = self._augmentation(self._scaling.to_model(items.take(numbers)))
                labels = [items.labels(numbers)] if whole.config.conditional else []
                means.append(whole.scores(images, labels).float().mean())
        critic.train()
        generated, training, validation = whole.workers.mean(torch.stack(means)).unbind()
        self._augmentation.follow(training, validation, generated, self._amount)
