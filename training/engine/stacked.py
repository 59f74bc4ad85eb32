"""Small models that differ in their seeds, or in a strength, trained at once.

The loop is that of `training.engine.loop.train`, phase by phase, over stacked tensors
(`training.engine.stack`); each model becomes, up to rounding, what it becomes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.config import Config
from models.lipschitz import gradient_norms, interpolate
from training.data.batches import TrainingItems, batches
from training.data.dataset import Dataset
from training.engine.checkpoint import checkpoints
from training.engine.memory import keep_freed_memory
from training.engine.optimisers import (
    average_weight,
    make_optimizers,
    set_learning_rates,
    update_average,
)
from training.engine.origin import kept_threads
from training.engine.runs import TrainingRun, Watch, begin, step_seed
from training.engine.stack import MappedFunction, NotStackable, Stack, StackedStep
from training.engine.step import STACKED, gradients

CPU = torch.device("cpu")


@kept_threads()
def train_together(
    configs: Sequence[Config], data: Dataset, folders: Sequence[Path], watches: Sequence[Watch]
) -> None:
    """Train models of vectors at once, on the processor, from their newest common checkpoint on.

    Args:
        configs: alike but for their seeds and for real numbers of their constraints.
        data: what to train on.
        folders: one for each model's checkpoints. Afterwards `training.engine.loop.train` finds
            a complete run there.
        watches: one for each model; see `training.engine.loop.train`.

    Raises:
        NotStackable: they cannot; whatever is in the folders is good for a run of one.
        Diverged: one did; with a diagnosis.
        CheckpointError: a checkpoint is broken or belongs to another configuration.
    """
    _require_alike(configs)
    if data.card.parts:
        raise NotStackable("rows of tables are made under conditions, which are not stacked")
    keep_freed_memory()
    config, settings, count = configs[0], configs[0].training, len(configs)

    # Networks, optimisers and histories: new, or from the newest common checkpoint.
    runs = _begin(configs, data, folders)
    critics = Stack([run.state.critic for run in runs])
    generators = Stack([run.state.generator for run in runs])
    averages = Stack([run.state.ema for run in runs])
    critic_optimizers = [run.state.critic_optimizer for run in runs]
    generator_optimizers = [run.state.generator_optimizer for run in runs]
    generator_optimizer, critic_optimizer = make_optimizers(
        config, generators.parameters, critics.parameters
    )
    _stack_state(critic_optimizers, critic_optimizer)
    _stack_state(generator_optimizers, generator_optimizer)

    # The data, in each run's own order; the random numbers, from each run's own generator.
    scaling, items = data.scaling, TrainingItems(data, CPU)
    batch, first_batch = settings.batch_size, runs[0].step * settings.num_critic_steps
    orders = [batches(own.training.seed, len(items), batch, first_batch) for own in configs]
    sources = [torch.Generator() for _ in configs]
    z = torch.empty(count, batch, config.generator.latent_size)

    def draw_latents() -> Tensor:
        for own, source in zip(z, sources, strict=True):
            torch.randn(*own.shape, generator=source, out=own)
        return z

    def generate(tensors: list[Tensor], latents: Tensor) -> Tensor:
        with torch.no_grad():
            return generators.forward(tensors, latents)

    def generator_gradients(
        tensors: list[Tensor], critic_tensors: list[Tensor], latents: Tensor
    ) -> list[Tensor]:
        leaves, own = generators.with_leaves(tensors)
        with torch.enable_grad():
            scores = critics.forward(critic_tensors, generators.forward(own, latents))
            return gradients(-scores.mean(), leaves)

    generate_all = MappedFunction(generate)
    find_generator_gradients = MappedFunction(generator_gradients)
    find_critic_gradients = StackedStep(critics, [own.constraint for own in configs])

    for run in runs:
        run.start_clock()
    while not runs[0].is_finished:
        step = runs[0].step
        for own, source in zip(configs, sources, strict=True):
            source.manual_seed(step_seed(own.training.seed, step))
        set_learning_rates(settings, step, critic_optimizer, generator_optimizer)

        # Critic steps, each on a new batch.
        first_critic_step = step * settings.num_critic_steps
        for critic_step in range(first_critic_step, first_critic_step + settings.num_critic_steps):
            # Draw a batch of real samples for each model, and generate as many fake ones.
            numbers = np.concatenate([next(order) for order in orders])
            real = scaling.to_model(items.take(numbers)).view(count, batch, *data.card.shape)
            fake = generate_all((generators.tensors, draw_latents()), sources)

            # Maximise the gap between the scores, less the constraint's penalty.
            gaps, losses = find_critic_gradients(real, fake, sources, critic_step)
            critic_optimizer.step()
            for run in runs:
                run.config.constraint.after_critic_step(run.state.critic)

        # Generator step: raise the critics' scores of new samples.
        arguments = generators.tensors, critics.tensors, draw_latents()
        generators.set_gradients(find_generator_gradients(arguments, sources))
        generator_optimizer.step()

        # Moving average of each generator.
        weight = average_weight(settings.ema_decay, step)
        update_average(averages.tensors, generators.tensors, weight)

        # Check, log and save each run.
        for run in runs:
            run.step += 1
        logging = runs[0].is_due(settings.log_every)
        saving = runs[0].is_due(settings.checkpoint_every)
        if saving:
            _unstack_state(critic_optimizer, critic_optimizers)
            _unstack_state(generator_optimizer, generator_optimizers)
        for k, (run, watch) in enumerate(zip(runs, watches, strict=True)):
            if logging or saving:
                run.require_sane(gaps[k].item())
            if logging:
                norm = _gradient_norm(run.state.critic, real[k], fake[k], sources[k])
                run.log(gaps[k].item(), losses[k].item(), norm)
            watch(run.step, run.state)
            if saving:
                run.critic_step = STACKED
                run.save()


def _begin(configs: Sequence[Config], data: Dataset, folders: Sequence[Path]) -> list[TrainingRun]:
    """Make the runs, or restore them at the newest step that has a checkpoint in every folder."""
    saved = [{path.name: path for path in checkpoints(folder)} for folder in folders]
    common = set.intersection(*map(set, saved))
    if any(saved) and not common:
        raise NotStackable("they were interrupted at different steps")
    newest = max(common, default="")
    return [
        begin(config, data, folder, CPU, own.get(newest))
        for config, folder, own in zip(configs, folders, saved, strict=True)
    ]


def _require_alike(configs: Sequence[Config]) -> None:
    """Raise NotStackable if the runs differ in what they may not, or do not stack."""
    if configs[0].selection is not None:
        raise NotStackable("each keeps its own best step")
    first = configs[0]
    for config in configs:
        training = config.training.model_copy(update={"seed": first.training.seed})
        if config.model_copy(
            update={"training": training, "constraint": first.constraint}
        ) != first or type(config.constraint) is not type(first.constraint):
            raise NotStackable("they differ in more than their seeds and strengths")
    if first.generator.architecture != "mlp" or first.conditional:
        raise NotStackable("only unconditional models of vectors are stacked")
    if first.training.precision != "fp32" or first.training.critic_step != "auto":
        raise NotStackable("training.precision or training.critic_step ask for something else")
    if first.training.micro_batch_size is not None or first.training.activation_checkpointing:
        raise NotStackable("they are to need little memory")
    if first.generator.normalization == "batch":
        raise NotStackable("batch normalisation changes its statistics in each forward")


def _gradient_norm(critic: nn.Module, real: Tensor, fake: Tensor, source: torch.Generator) -> float:
    """Measure the mean norm between real and fake, with the next random numbers of a run."""
    with torch.random.fork_rng([]):
        torch.set_rng_state(source.get_state())
        critic.eval()
        norms = gradient_norms(critic, interpolate(real, fake))
        critic.train()
    return norms.mean().item()


def _stack_state(
    optimizers: Sequence[torch.optim.Optimizer], stacked: torch.optim.Optimizer
) -> None:
    """Stack the states of the models' optimisers, which have all done equally many steps."""
    own = [optimizer.param_groups[0]["params"] for optimizer in optimizers]
    for i, parameter in enumerate(stacked.param_groups[0]["params"]):
        entries = [o.state.get(params[i], {}) for o, params in zip(optimizers, own, strict=True)]
        for name, value in entries[0].items():
            stacked.state[parameter][name] = (
                torch.stack([entry[name] for entry in entries]) if value.dim() else value.clone()
            )


def _unstack_state(
    stacked: torch.optim.Optimizer, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Give each model's optimiser its part of the stacked state."""
    for k, optimizer in enumerate(optimizers):
        for parameter, whole in zip(
            optimizer.param_groups[0]["params"], stacked.param_groups[0]["params"], strict=True
        ):
            optimizer.state[parameter] = {
                name: value[k] if value.dim() else value
                for name, value in stacked.state[whole].items()
            }
