"""The training loop, one function from top to bottom."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from models.config import Config, TrainingConfig
from models.errors import ConfigError
from models.lipschitz import gradient_norms, interpolate
from models.networks import build_networks
from models.networks.conditional import WithLabels
from models.sampling import Scaling
from training.data.batches import TrainingItems, batch_indices
from training.data.dataset import Dataset
from training.engine.checkpoint import (
    CheckpointError,
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from training.engine.memory import keep_freed_memory
from training.engine.step import STACKED, CriticStep
from training.engine.workers import ALONE, Workers

Row = dict[str, float]
"""One line of the history: step, critic_gap, critic_loss, gradient_norm, samples_per_second."""
Watch = Callable[[int, TrainingState], None]
"""Is shown the generator steps done and the networks, which it must leave as they are."""


class Interrupted(Exception):
    """The run was asked to stop, and has left a checkpoint to resume from."""


class Diverged(Exception):
    """Training went to NaN, infinity or beyond all bounds; the last good checkpoint stands."""


def train(
    config: Config,
    data: Dataset,
    folder: Path,
    device: torch.device,
    report: Callable[[Row], None],
    stop_requested: Callable[[], bool],
    workers: Workers = ALONE,
    watch: Watch = lambda step, state: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[TrainingState, list[Row]]:
    """Train a generator and a critic, from the newest checkpoint in ``folder`` if there is one.

    Everything random in a step follows from (seed, step), so a resumed run repeats, bit by bit
    on a CPU, what an uninterrupted one does. Several processes do, up to rounding, what one does.

    Args:
        config: of the run.
        data: what to train on.
        folder: for checkpoints.
        device: where to train.
        report: called with each new row of the history.
        stop_requested: asked after each generator step.
        workers: that train together; the batch is divided over them, and one writes.
        watch: called after each generator step; it may draw random numbers.
        say: takes a line for people.

    Returns:
        The final state, and the history.

    Raises:
        Interrupted: `stop_requested` said so.
        Diverged: with a diagnosis.
        CheckpointError: the newest checkpoint is broken or belongs to another configuration.
        ConfigError: the device or a network cannot do what is asked.
    """
    settings, constraint = config.training, config.constraint
    if settings.precision == "tf32" and device.type != "cuda":
        raise ConfigError("training.precision: 'tf32' needs a CUDA device; use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    keep_freed_memory()

    state, done, history, mode = begin(config, data, device, newest_checkpoint(folder), workers)
    generator, critic, ema = state.generator, state.critic, state.ema

    scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
    items = TrainingItems(data, device)
    scored: nn.Module = critic
    labels: list[Tensor] = []  # none, or those of the batch
    batch, latent_size = settings.batch_size, config.generator.latent_size
    autocast = torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16")
    rows, draws = workers.rows(batch), workers.draws(batch)
    share = rows.stop - rows.start
    find_gradients = CriticStep(
        mode if workers.count == 1 else "eager",
        critic,
        constraint,
        settings.steps * settings.num_critic_steps,
        settings.precision,
        autocast,
        draws,
        say,
    )
    started, samples_seen = time.perf_counter(), 0

    for step in range(done, settings.steps):
        torch.manual_seed(step_seed(settings.seed, step))
        rate = learning_rate(settings, step)
        for optimizer in (state.critic_optimizer, state.generator_optimizer):
            optimizer.param_groups[0]["lr"] = rate

        critic.requires_grad_(True)
        for critic_step in range(
            step * settings.num_critic_steps, (step + 1) * settings.num_critic_steps
        ):
            order = batch_indices(settings.seed, len(items), critic_step * batch, batch)
            indices = order[rows]
            real = scaling.to_model(items.take(indices))
            if config.conditional:
                labels = [items.labels(indices)]
                scored = WithLabels(critic, *labels)
            with autocast, draws, torch.no_grad():
                z = torch.randn(share, latent_size, device=device)
                fake = generator(z, *labels).float()
            gap, critic_loss = find_gradients(real, fake, labels, critic_step)
            workers.average_gradients(critic)
            state.critic_optimizer.step()
            constraint.after_critic_step(critic)

        critic.requires_grad_(False)
        with autocast, draws:
            z = torch.randn(share, latent_size, device=device)
            scores = scored(generator(z, *labels))
        state.generator_optimizer.zero_grad()
        (-scores.float().mean()).backward()
        workers.average_gradients(generator)
        state.generator_optimizer.step()
        _update_average(ema, generator, min(settings.ema_decay, (1 + step) / (10 + step)))

        samples_seen += batch * settings.num_critic_steps
        done = step + 1
        stopping = workers.any(stop_requested())
        is_last = done == settings.steps
        logging = is_last or done % settings.log_every == 0
        saving = is_last or stopping or done % settings.checkpoint_every == 0
        if logging or saving:
            gap = workers.mean(gap)
            require_sane(state, gap.item(), settings.divergence_gap, done, history, folder)
        if logging:
            critic.eval()
            with draws:
                norms = gradient_norms(scored, interpolate(real, fake))
            critic.train()
            history.append(
                {
                    "step": done,
                    "critic_gap": gap.item(),
                    "critic_loss": workers.mean(critic_loss).item(),
                    "gradient_norm": workers.mean(norms.mean()).item(),
                    "samples_per_second": samples_seen / (time.perf_counter() - started),
                }
            )
            report(history[-1])
        watch(done, state)
        if saving:
            if workers.is_main:
                save_checkpoint(folder, done, config, history, state, find_gradients.mode)
            workers.wait()
        if stopping and not is_last:
            raise Interrupted(f"stopped after {done} of {settings.steps} steps")
    return state, history


def begin(
    config: Config,
    data: Dataset,
    device: torch.device,
    checkpoint: Path | None,
    workers: Workers = ALONE,
) -> tuple[TrainingState, int, list[Row], str]:
    """What training begins with: new networks and optimisers, or those of a checkpoint.

    Returns:
        The state, the generator steps done, the history, and how the critic's step is made.

    Raises:
        CheckpointError: it is broken or belongs to another configuration.
    """
    settings = config.training
    torch.manual_seed(step_seed(settings.seed, -1))
    generator, critic = build_networks(config, data.card.shape, len(data.card.classes))
    generator.to(device)
    critic.to(device)
    generator, critic = workers.prepare(generator), workers.prepare(critic)
    ema = copy.deepcopy(generator).requires_grad_(False)
    state = TrainingState(
        generator,
        critic,
        ema,
        make_optimizer(settings, generator.parameters()),
        make_optimizer(settings, critic.parameters()),
    )
    if checkpoint is None:
        return state, 0, [], settings.critic_step
    saved = load_checkpoint(checkpoint)
    _require_same(config, saved.config, checkpoint)
    state.restore(saved.tensors)
    # What several runs began together, one may end alone.
    mode = settings.critic_step if saved.critic_step == STACKED else saved.critic_step
    return state, saved.step, saved.history, mode


def learning_rate(settings: TrainingConfig, step: int) -> float:
    """The rate of a step: constant, then falling linearly to zero at the end."""
    start = settings.decay_from * settings.steps
    if step < start:
        return settings.learning_rate
    return settings.learning_rate * (settings.steps - step) / (settings.steps - start)


def step_seed(seed: int, step: int) -> int:
    """What a step's random numbers follow from; that of the networks is step -1."""
    # Hashed, since torch's CPU generator makes related streams of neighbouring seeds, and only
    # looks at 32 bits.
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def make_optimizer(
    settings: TrainingConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser of a network, or of stacked ones."""
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, settings.learning_rate)
    return torch.optim.Adam(parameters, settings.learning_rate, settings.betas, fused=True)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move each weight and running statistic of ``average`` towards ``network``'s."""
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:  # a counter of batches
            mean.copy_(now)


def _require_same(config: Config, saved: dict[str, object], checkpoint: Path) -> None:
    now = config.model_dump(mode="json")
    differing = [
        f"{section}.{key}" if isinstance(now[section], dict) else section
        for section in now
        for key in (now[section] if isinstance(now[section], dict) else [""])
        if _at(now, section, key) != _at(saved, section, key)
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint}: was made with another {', '.join(differing)}; resume with the same "
            "configuration, or start anew with another --out"
        )


def _at(values: dict[str, object], section: str, key: str) -> object:
    value = values.get(section)
    return value.get(key) if isinstance(value, dict) else value


def require_sane(
    state: TrainingState,
    gap: float,
    bound: float,
    step: int,
    history: list[Row],
    folder: Path,
) -> None:
    """Raise `Diverged` if the gap or any tensor is beyond bounds; ``folder`` is of checkpoints."""
    broken = [name for name, t in state.tensors().items() if not torch.isfinite(t).all()]
    if math.isfinite(gap) and abs(gap) <= bound and not broken:
        return
    message = f"diverged by step {step}: the critic gap is {gap:.4g}"
    if history:
        last = history[-1]
        message += f"; it was {last['critic_gap']:.4g} at step {int(last['step'])}"
    if broken:
        message += f"; not finite: {', '.join(broken[:3])}{', ...' if broken[3:] else ''}"
    checkpoint = newest_checkpoint(folder)
    raise Diverged(
        f"{message}. Lower training.learning_rate, or constrain the critic more (constraint.*). "
        f"Last good checkpoint: {checkpoint or 'none yet'}"
    )
