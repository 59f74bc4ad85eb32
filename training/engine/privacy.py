"""The critic's step of differentially private training, and the secret that its noise comes from.

Only the critic sees real rows, so the generator is post-processing of the critic's steps (Xie et
al. 2018). Each step is one of DP-SGD (Abadi et al. 2016, algorithm 1): a Poisson sample of the
rows, each row's gradient clipped, Gaussian noise on the sum. A row's term of the loss holds all
that depends on the row: its score, that of its generated partner, which is made under conditions
that the row meets, and the penalty of the points between the two.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx import GraphModule

from models.config import Config
from models.constraints import Constraint
from models.durable import put, read_file
from models.errors import ConfigError
from models.lipschitz import CriticFunction
from models.record import PrivacyCard
from training.data.dataset import Dataset
from training.engine.accounting import privacy_card
from training.engine.checkpoint import CheckpointError
from training.engine.step import can_pair, critic_loss, leave_gradients, trace
from training.engine.workers import Workers

Array = np.ndarray
KEY_BYTES = 32
SECRET = "secret"
"""File beside the checkpoints; whoever has it can take the noise off again."""
MAX_NUMBERS = 2**24
"""Numbers, at most, in the gradients of the rows that are taken at once: 64 MiB."""
LEARNED = {
    "number": "range, decimals, spikes, quantiles",
    "time": "range, step, spikes, quantiles",
    "category": "categories and their order",
    "boolean": "whether values are missing",
    "constant": "the value",
    "copy": "that it is a copy",
    "identifier": "form and largest number",
}
"""What the schema of a column of each kind tells of the rows."""


class Secret:
    """The key of a run's noise and samples of rows.

    What it makes follows from (key, step), so a resumed run repeats an uninterrupted one, and a
    step that is done again is the same step. The run's public seed could not serve: whoever reads
    it in the record could draw the same noise.

    Args:
        key: random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def seed(self) -> int:
        """A seed for torch's random numbers, for `training.engine.runs.step_seed`."""
        return self._number("torch")

    def numbers(self, purpose: str, step: int) -> np.random.Generator:
        """Random numbers for a purpose in a critic step."""
        return np.random.Generator(np.random.Philox(key=self._number(f"{purpose} {step}")))

    def _number(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode(), digest_size=16, key=self._key).digest()
        return int.from_bytes(digest, "big")


def keep_secret(folder: Path, *, is_new: bool) -> Secret:
    """Make the secret of a new run, in a file that only its owner can read, or read it again.

    Raises:
        CheckpointError: the run is not new, and its secret is gone.
        BrokenFileError: the secret was cut or changed.
    """
    path = folder / SECRET
    if not path.exists():
        if not is_new:
            raise CheckpointError(
                f"{path}: is missing, so the private run cannot go on as it was; start anew with "
                "another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".partial")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(KEY_BYTES))
        put(new, path)
    return Secret(read_file(path, _key, "start anew with another --out"))


def _key(content: bytes) -> bytes:
    key = bytes.fromhex(content.decode())
    if len(key) != KEY_BYTES:
        raise ValueError("the key has another length")
    return key


def poisson_batches(secret: Secret, count: int, size: int, first: int) -> Iterator[Array]:
    """Yield, without end, the rows of each critic step, each row with the same probability.

    Args:
        secret: of the run.
        count: training rows.
        size: rows in a batch on average.
        first: steps to skip.

    Yields:
        int64 ``(n,)``, different, each below ``count``; n varies, and may be 0.
    """
    while True:
        numbers = secret.numbers("rows", first)
        # As many as independent draws for each row give, and then which.
        size_now = numbers.binomial(count, size / count)
        yield numbers.choice(count, size_now, replace=False)
        first += 1


class PrivateRun(NamedTuple):
    """What the training loop takes from here, in place of its ordinary batches and steps."""

    config: Config
    card: PrivacyCard
    rows: int
    secret: Secret

    def batches(self, first: int) -> Iterator[Array]:
        """See `poisson_batches`."""
        return poisson_batches(self.secret, self.rows, self.config.training.batch_size, first)

    def critic_step(self, critic: nn.Module) -> PrivateStep:
        """The critic's step, with the noise that the card says."""
        return PrivateStep(
            critic,
            self.config.constraint,
            self.card.clip_norm,
            self.card.noise_multiplier,
            self.config.training.batch_size,
            self.secret,
        )


def begin_private(
    config: Config, data: Dataset, folder: Path, workers: Workers, *, is_new: bool
) -> PrivateRun | None:
    """Check what a private run asks for, and make or read its secret; None for other runs.

    Args:
        config: the run's.
        data: what to train on.
        folder: for checkpoints.
        workers: the processes that train together.
        is_new: no step is done yet.

    Raises:
        ConfigError: the run would leak what the user has not declared public, or cannot be private.
    """
    if config.privacy is None:
        return None
    if workers.count > 1:
        raise ConfigError("privacy: a private run trains in one process; start one")
    require_declared(config, data)
    rows = data.card.training_count
    card = privacy_card(config, rows)
    return PrivateRun(config, card, rows, keep_secret(folder, is_new=is_new))


def require_declared(config: Config, data: Dataset) -> None:
    """Require that what is learned from rows without noise is declared public.

    Raises:
        ConfigError: it is not, or the data are no table; one line lists it all.
    """
    assert config.privacy is not None, "only private runs declare"
    schema = data.card.table
    if schema is None:
        raise ConfigError(
            "privacy: is for tables; what images and arrays tell beside the critic (scales, "
            "classes, features) is not accounted for"
        )
    if "schema" in config.privacy.public:
        return
    learned = [f"{column.name} ({LEARNED[column.kind]})" for column in schema.columns]
    learned += [f"rule '{rule}'" for rule in schema.rules]
    raise ConfigError(
        "privacy.public: the model's schema is learned from all rows, without noise: "
        f"{'; '.join(learned)}. If that may be known, set privacy.public=schema"
    )


class PrivateStep:
    """Leaves noised gradients on the critic's parameters: `training.engine.step.CriticStep`'s part.

    Args:
        critic: as the constraint returned it.
        constraint: its penalty is added to the loss.
        clip_norm: length, at most, of each row's gradient.
        noise_multiplier: standard deviation of the noise on the sum, in units of ``clip_norm``.
        size: rows in a batch on average; the sum is divided by it.
        secret: of the run.
    """

    mode = "private"

    def __init__(
        self,
        critic: nn.Module,
        constraint: Constraint,
        clip_norm: float,
        noise_multiplier: float,
        size: int,
        secret: Secret,
    ) -> None:
        self._critic, self._constraint = critic, constraint
        self._clip_norm, self._deviation = clip_norm, noise_multiplier * clip_norm
        self._size, self._secret = size, secret
        self._parameters = list(critic.parameters())
        self._graphs: dict[bool, GraphModule] = {}

    def __call__(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Replace the gradients of the critic's parameters by noised ones.

        Args:
            real: ``(N, *shape)``, in the critic's units; N may be 0.
            fake: likewise, detached from the generator; each row's partner.
            labels: of a conditional critic, one tensor ``(N, ...)`` for both; else empty.
            step: critic steps done before.

        Returns:
            The gap and the loss of the batch, scalars without noise: they are not private.

        Raises:
            ConfigError: the gradients cannot be found row by row.
        """
        gap, loss, found = self.clipped_sum(real, fake, labels, step)
        noise = self._secret.numbers("noise", step)
        for gradient in found:
            drawn = torch.from_numpy(noise.standard_normal(gradient.shape))
            gradient.add_(drawn.to(gradient), alpha=self._deviation).div_(self._size)
        leave_gradients(self._parameters, found)
        return gap, loss

    def clipped_sum(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The mean gap and loss, and the sum of the rows' clipped gradients, without noise."""
        total = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        gaps, losses = real.new_zeros(()), real.new_zeros(())
        at_once = max(1, MAX_NUMBERS // sum(p.numel() for p in self._parameters))
        parts = (torch.split(x, at_once) for x in (real, fake, *labels))
        for real_part, fake_part, *label_parts in zip(*parts, strict=True):
            if not len(real_part):
                break
            gap, loss, found = self.by_row(real_part, fake_part, label_parts, step)
            lengths = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in found]
            norms = torch.linalg.vector_norm(torch.stack(lengths), dim=0)
            factors = (self._clip_norm / norms).clamp(max=1)
            for so_far, gradients in zip(total, found, strict=True):
                so_far.add_(torch.tensordot(factors, gradients, 1))
            gaps, losses = gaps + gap.sum(), losses + loss.sum()
        count = max(1, len(real))
        return gaps / count, losses / count, total

    def by_row(
        self, real: Tensor, fake: Tensor, labels: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Each row's own gap and loss, ``(N,)``, and gradients, each ``(N, *shape)``."""
        penalised = self._constraint.penalised(step)
        try:
            if penalised not in self._graphs:
                loss = functools.partial(self._loss, step=step, paired=not labels)
                with torch.random.fork_rng([real.device] if real.is_cuda else []):
                    self._graphs[penalised] = trace(
                        self._critic, loss, real[:1], fake[:1], [y[:1] for y in labels]
                    )
            mapped = vmap(
                self._graphs[penalised], in_dims=(None, None, 0, 0, 0), randomness="different"
            )
            with torch.no_grad():
                weights = [p.detach() for p in self._parameters]
                gap, loss, found = mapped(
                    weights,
                    list(self._critic.buffers()),
                    # Batches of one row each, over which the kernels of such a batch are mapped.
                    real[:, None],
                    fake[:, None],
                    [y[:, None] for y in labels],
                )
        except RuntimeError as error:  # what torch's tracer and its vmap raise
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"privacy: the gradients under {type(self._constraint).__name__} cannot be found "
                f"row by row ({reason}); use another constraint or critic"
            ) from error
        return gap, loss, found

    def _loss(
        self, critic: CriticFunction, real: Tensor, fake: Tensor, *, step: int, paired: bool
    ) -> tuple[Tensor, Tensor]:
        paired = paired and can_pair(self._critic)
        return critic_loss(critic, self._constraint, real, fake, step, paired)
