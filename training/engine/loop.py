"""The training loop, one function from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from models.config import Config, TrainingConfig
from models.errors import ConfigError
from models.lipschitz import gradient_norms, interpolate
from models.networks.conditional import WithLabels
from models.networks.rows import RestrictionSampler
from training.data.batches import TrainingItems, batches
from training.data.dataset import Dataset
from training.engine.checkpoint import TrainingState, newest_checkpoint
from training.engine.memory import keep_freed_memory
from training.engine.optimisers import set_learning_rate, update_average
from training.engine.privacy import PrivateStep, begin_private
from training.engine.runs import Interrupted, Row, Watch, begin, no_watch, step_seed
from training.engine.step import CriticStep
from training.engine.workers import ALONE, Workers
from training.progress import never, silent


def train(
    config: Config,
    data: Dataset,
    folder: Path,
    device: torch.device,
    report: Callable[[Row], None] = silent,
    stop_requested: Callable[[], bool] = never,
    workers: Workers = ALONE,
    watch: Watch = no_watch,
    say: Callable[[str], None] = silent,
) -> tuple[TrainingState, list[Row]]:
    """Train a generator and a critic, from the newest checkpoint in ``folder`` if there is one.

    Everything random in a step follows from (seed, step), so a resumed run repeats, bit by bit
    on a CPU, what an uninterrupted one does. Several processes do, up to rounding, what one does.

    Args:
        config: the run's configuration.
        data: what to train on.
        folder: for checkpoints.
        device: where to train.
        report: called with each new row of the history.
        stop_requested: asked after each generator step.
        workers: processes that train together; each takes a part of the batch, and one writes.
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
    _set_precision(settings, device)
    keep_freed_memory()

    # Networks, optimisers and history: new, or from the newest checkpoint.
    run = begin(config, data, folder, device, newest_checkpoint(folder), workers)
    state = run.state
    generator, critic = state.generator, state.critic

    # The data, in an order that a resumed run continues.
    scaling, items = data.scaling, TrainingItems(data, device)
    first_batch = run.step * settings.num_critic_steps
    seed = settings.seed
    order = batches(seed, len(items), settings.batch_size, first_batch)

    # This process's rows of each batch; within `draws` it also gets its rows of random numbers.
    rows, draws = workers.rows(settings.batch_size), workers.draws(settings.batch_size)
    count, latent_size = rows.stop - rows.start, config.generator.latent_size
    autocast = torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16")
    parts = data.card.parts
    draw_restrictions = (
        RestrictionSampler(parts, config.conditions_share, device) if parts else None
    )
    find_critic_gradients: CriticStep | PrivateStep = CriticStep(
        run.critic_step if workers.count == 1 else "eager",
        critic,
        constraint,
        settings.steps * settings.num_critic_steps,
        settings.precision,
        autocast,
        draws,
        say,
    )
    private = begin_private(config, data, folder, workers, is_new=not run.step)
    if private:  # whole random samples of the rows, clipped and noised gradients, a secret seed
        seed, order, rows = private.secret.seed, private.batches(first_batch), slice(None)
        find_critic_gradients = private.critic_step(critic)
    run.start_clock()
    while not run.is_finished:
        step = run.step
        torch.manual_seed(step_seed(seed, step))
        set_learning_rate(settings, step, state.critic_optimizer, state.generator_optimizer)

        # Critic steps, each on a new batch.
        critic.requires_grad_(True)
        first_critic_step = step * settings.num_critic_steps
        for critic_step in range(first_critic_step, first_critic_step + settings.num_critic_steps):
            # Draw a batch of real samples, with their labels in a conditional run, and generate
            # as many fake ones.
            numbers = next(order)[rows]
            real = scaling.to_model(items.take(numbers))
            labels: list[Tensor] = [items.labels(numbers)] if config.conditional else []
            with autocast, draws, torch.no_grad():
                if draw_restrictions:
                    labels = [draw_restrictions(real)]
                labelled_critic: nn.Module = WithLabels(critic, *labels) if labels else critic
                z = torch.randn(len(real), latent_size, device=device)
                fake = generator(z, *labels).float()

            # Maximise the gap between the scores, less the constraint's penalty.
            gap, critic_loss = find_critic_gradients(real, fake, labels, critic_step)
            workers.average_gradients(critic)
            state.critic_optimizer.step()
            constraint.after_critic_step(critic)

        # Generator step: raise the critic's scores of new samples, of the last batch's classes. In
        # a private run conditions follow from generated rows: only the critic may see real ones.
        critic.requires_grad_(False)
        with autocast, draws:
            asked = labels
            if private and draw_restrictions:
                with torch.no_grad():
                    z = torch.randn(count, latent_size, device=device)
                    asked = [draw_restrictions(generator(z))]
            z = torch.randn(count, latent_size, device=device)
            scores = critic(generator(z, *asked), *asked)
        state.generator_optimizer.zero_grad()
        (-scores.float().mean()).backward()
        workers.average_gradients(generator)
        state.generator_optimizer.step()

        # Moving average of the generator: the network that is judged and served.
        averages, weights = state.ema.state_dict().values(), generator.state_dict().values()
        update_average(averages, weights, settings.ema_decay, step)

        # Check and log. Saving is preceded by the check too: no bad checkpoint is written.
        run.step += 1
        stopping = workers.any(stop_requested())
        logging = run.is_due(settings.log_every)
        saving = stopping or run.is_due(settings.checkpoint_every)
        if logging or saving:
            gap = workers.mean(gap)
            run.require_sane(gap.item())
        if logging:
            critic.eval()
            with draws:
                norms = gradient_norms(labelled_critic, interpolate(real, fake))
            critic.train()
            loss, norm = workers.mean(critic_loss), workers.mean(norms.mean())
            report(run.log(gap.item(), loss.item(), norm.item()))
        watch(run.step, state)

        # Save.
        if saving:
            run.critic_step = find_critic_gradients.mode
            if workers.is_main:
                run.save()
            workers.wait()
        if stopping and not run.is_finished:
            raise Interrupted(f"stopped after {run.step} of {settings.steps} steps")
    return state, run.history


def _set_precision(settings: TrainingConfig, device: torch.device) -> None:
    if settings.precision == "tf32" and device.type != "cuda":
        raise ConfigError("training.precision: 'tf32' needs a CUDA device; use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
