"""Generator steps as CUDA graphs: a whole step is captured once, and then replayed.

A small network's step is bound by the launches of its kernels. A graph launches all of them at
once. It reads and writes the same memory in each replay, so all that changes from step to step
lies in static buffers, which are filled before it. Where several processes train together, a step
is several graphs, and gradients are exchanged between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.config import Config
from training.data.batches import TrainingItems
from training.engine.cuda_graphs import Graphs, Replay
from training.engine.optimisers import average_weight, learning_rate
from training.engine.pinned import PinnedRing
from training.engine.step import TOLERANCE, penalty_pattern
from training.engine.whole_step import Batch, MakesStep, Outcome, WholeStep
from training.engine.workers import Workers

Array = np.ndarray
GRAPHED = {"graphed": "auto", "graphed_compiled": "compiled"}
"""Modes whose steps are graphs, and the mode of the critic's step within them."""
WARM_UPS = 3
"""Steps before a capture, which torch recommends: libraries set themselves up in the first ones."""
MOST_APART = 0.3
"""Largest accepted difference of a replayed step's state from that of the step it was captured
from, relative to the step's length. Rounding, and Adam's reply to it where a gradient is zero, give
less; a graph that lost one network's update gives more."""

SMALLEST_STEP = 1e-6
"""Length of a step, as a share of that of a network's weights, below which it is rounding."""


def exchanges_samples(config: Config, workers: Workers) -> bool:
    """True if the critic's loss itself asks other processes for their samples."""
    return not workers.is_alone and config.constraint.mixes_samples() is not None


NOT_GRAPHED: dict[str, Callable[[Config, Workers], bool]] = {
    "its penalty asks other processes for their samples": exchanges_samples,
    "batch normalisation asks other processes for their samples": lambda config, workers: (
        not workers.is_alone
        and "batch" in (config.generator.normalization, config.critic.normalization)
    ),
    "a private step's batches vary in size": lambda config, workers: config.privacy is not None,
}
"""Why a run has no graphs, and whether that is so. As far as a simulation tells, every constraint
and every network can be captured; one that reads a number out of a tensor is refused by the capture
itself."""


def graph_obstacle(config: Config, workers: Workers) -> str | None:
    """Say why the steps of a run cannot be captured, as far as that is known beforehand."""
    reasons = (reason for reason, holds in NOT_GRAPHED.items() if holds(config, workers))
    return next(reasons, None)


class GraphedStep:
    """Makes steps by replaying CUDA graphs, or as ``plain`` does where that fails.

    There is a graph for each pattern of lazy penalties. It is captured when its pattern first
    comes, after steps that are undone, and its first replay is compared with such a step.

    Random numbers are those of torch's own CUDA generator, which a graph reads anew in each replay:
    it is seeded before every one, as before every step of other modes. So they follow from (seed,
    step), and since each step, the first one after a resume too, is a replay of the same kernels,
    a resumed run does on the same kind of card what an uninterrupted one does.

    Nothing waits for the device: numbers of items, the learning rates and the average's weight go
    through pinned memory, as do the items of data that the device does not hold, on a second
    stream, while the step before still runs. The processor is at most
    `training.engine.pinned.AHEAD` steps ahead.

    Args:
        whole: the step.
        plain: makes the steps if a capture fails.
        items: to train on.
        device: of the state.
        graphs: capture and replay.
        say: takes one line, once, if a capture fails.
    """

    def __init__(
        self,
        whole: WholeStep,
        plain: MakesStep,
        items: TrainingItems,
        device: torch.device,
        graphs: Graphs,
        say: Callable[[str], None],
    ) -> None:
        self._whole, self._plain, self._items, self._device = whole, plain, items, device
        self._graphs, self._say = graphs, say
        self._is_refused = False
        self._replays: dict[tuple[bool, ...], tuple[Replay, list[Outcome]]] = {}
        settings = whole.config.training
        shape = settings.num_critic_steps, whole.count
        numbers = torch.zeros(shape, dtype=torch.int64)
        self._numbers, self._send_numbers = numbers.to(device), PinnedRing(numbers, device).send
        *self._rates, self._weight = torch.zeros(3, device=device)
        state = whole.state
        self._optimizers = state.critic_optimizer, state.generator_optimizer
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copying = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        like = torch.empty(0)
        if items.on_device is None:
            like = items.read(np.zeros(shape, dtype=np.int64))
        self._read, self._arrived = (torch.empty_like(like, device=device) for _ in range(2))
        self._send_items = PinnedRing(like, device).send
        self._read_the_rates()

    @property
    def mode(self) -> str:
        """See `MakesStep`."""
        plain = self._plain.mode
        if self._is_refused:
            return plain
        return "graphed_compiled" if plain == "compiled" else "graphed"

    def __call__(self, numbers: Sequence[Array], step: int, seed: int) -> Outcome:
        """See `MakesStep`."""
        if self._is_refused:
            return self._plain(numbers, step, seed)
        self._bring(np.stack(numbers), step)
        config = self._whole.config
        pattern = penalty_pattern(config.constraint, step, config.training.num_critic_steps)
        if pattern in self._replays:
            torch.manual_seed(seed)
            self._replays[pattern][0]()
        elif reason := self._captured(pattern, step, seed):
            self._refuse(reason)
            return self._plain(numbers, step, seed)
        (outcome,) = self._replays[pattern][1]
        return outcome

    # ---- what changes from step to step -----------------------------------------------------

    def _bring(self, numbers: Array, step: int) -> None:
        """Fill the static buffers."""
        settings = self._whole.config.training
        self._send_numbers(torch.from_numpy(numbers), self._numbers)
        # Numbers go with a kernel's own arguments: nothing is copied.
        for rate, optimizer in zip(self._rates, self._optimizers, strict=True):
            rate.fill_(learning_rate(settings, step, optimizer.defaults["lr"]))
        self._weight.fill_(average_weight(settings.ema_decay, step))
        if self._items.on_device is not None:
            return
        items = self._items.read(numbers)  # while the device still makes the step before
        if self._copying is None:
            self._read.copy_(items)
            return
        with torch.cuda.stream(self._copying):
            self._send_items(items, self._arrived)
        now = torch.cuda.current_stream()
        now.wait_stream(self._copying)
        self._read.copy_(self._arrived)
        self._copying.wait_stream(now)  # the next items must not come before these are read

    def _batches(self) -> Iterator[Batch]:
        """The real items of each critic step, out of the static buffers."""
        items = self._items.on_device
        labels = self._items.labels_on_device if self._whole.config.conditional else None
        for k, numbers in enumerate(self._numbers):
            real = self._read[k] if items is None else items[numbers]
            yield real, [] if labels is None else [labels[numbers]]

    def _read_the_rates(self) -> None:
        """Make the optimisers read the rates in buffers, and keep all they know on the device."""
        for rate, optimizer in zip(self._rates, self._optimizers, strict=True):
            (group,) = optimizer.param_groups
            group["lr"], group["capturable"] = rate, self._device.type == "cuda"
            # It would warn in the steps before a capture.
            optimizer._warned_capturable_if_run_uncaptured = True
            for entries in optimizer.state.values():
                entries.update({name: t.to(self._device) for name, t in entries.items()})

    # ---- capturing --------------------------------------------------------------------------

    def _captured(self, pattern: tuple[bool, ...], step: int, seed: int) -> str | None:
        """Capture a step and make it, or say why not; then the state is as before."""
        outcomes, workers = list[Outcome](), self._whole.workers
        before = _copied(self._whole.state.live())

        def parts() -> Iterator[Tensor]:
            yield from self._whole.parts(self._batches(), step, self._weight)
            outcomes[:] = [self._whole.outcome]

        def make() -> None:
            for gradients in parts():
                workers.add_up(gradients)

        reason, is_warm = None, False
        try:
            for _ in range(WARM_UPS):
                self._restore(before)
                torch.manual_seed(seed)
                self._graphs.run(make)
            expected, loss = _copied(self._whole.state.live()), outcomes[0].loss.clone()
            is_warm = True
            replay = self._graphs.capture(parts, workers.add_up)
        except Exception as error:  # a capture fails in many ways; other modes still work
            if not (is_warm or workers.is_alone):
                raise  # the other processes wait for an exchange
            reason = _told(error)
        if not (reason := self._agreed(reason)):
            self._restore(before)
            torch.manual_seed(seed)
            replay()
            found = self._whole.state.live()
            reason = self._agreed(
                _difference(before, expected, found) or self._wrong_loss(loss, outcomes[0])
            )
        if reason:
            self._restore(before)
        else:
            self._replays[pattern] = replay, outcomes
        return reason

    def _agreed(self, reason: str | None) -> str | None:
        """One process's reason is that of all: they make each exchange together, or none."""
        if self._whole.workers.any(reason is not None):
            return reason or "another process cannot replay it"
        return None

    @torch.no_grad()
    def _restore(self, before: dict[str, Tensor]) -> None:
        """Set the state back in place. What an optimiser has not begun yet begins with zeros."""
        for name, tensor in self._whole.state.live().items():
            if name in before:
                tensor.copy_(before[name])
            else:
                tensor.zero_()

    def _wrong_loss(self, expected: Tensor, outcome: Outcome) -> str | None:
        apart, size = (outcome.loss - expected).abs().item(), expected.abs().item()
        tolerance = TOLERANCE[self._whole.config.training.precision]
        return None if apart <= tolerance * max(1.0, size) else f"its loss is off by {apart:.2g}"

    def _refuse(self, reason: str) -> None:
        self._is_refused = True
        self._replays.clear()
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["capturable"] = False
        self._say(f"the whole step is not graphed: {reason}")


def _told(error: Exception) -> str:
    """What broke a capture, in a line: the capture's end fails after that.

    No name of the caller may stay bound to the error: its traceback, which holds that caller and
    the broken capture's memory, would wait for the garbage collector.
    """
    cause = error.__context__ or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _difference(
    before: dict[str, Tensor], expected: dict[str, Tensor], found: dict[str, Tensor]
) -> str | None:
    """Say how a replayed step differs from the step it was captured from, in any network.

    Optimisers' state is left out: a counter's step is longer than that of all weights.
    """
    for part in ("generator", "critic", "ema"):
        names = [
            n for n, old in before.items() if n.startswith(f"{part}.") and old.is_floating_point()
        ]
        apart, moved, size = (
            torch.stack([(a[n] - b[n] if b else a[n]).norm() for n in names]).norm()
            for a, b in ((found, expected), (expected, before), (before, None))
        )
        # Where nothing moves, as at the end of a decaying rate, rounding is no difference.
        off = (apart / torch.maximum(moved, SMALLEST_STEP * size)).item()
        if off > MOST_APART:
            return f"the {part}'s step is off by {off:.2g} of its length"
    return None
