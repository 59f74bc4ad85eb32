"""Small models that differ in their seeds, or in a strength, trained at once.

Their weights are slices of stacked tensors, so one kernel serves all of them. A step of one model
is traced to a list of kernels, that list is mapped over the stack, and random numbers are drawn
for each model from its own source, in the order of a run alone: each model becomes, up to
rounding, what `training.engine.loop.train` makes of it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from models.config import Config
from models.constraints import Constraint
from models.lipschitz import gradient_norms, interpolate
from models.sampling import Scaling
from training.data.batches import TrainingItems, batches
from training.data.dataset import Dataset
from training.engine.checkpoint import TrainingState, common_checkpoint, save_checkpoint
from training.engine.graphs import tidied
from training.engine.loop import (
    Row,
    Watch,
    begin,
    learning_rate,
    make_optimizer,
    require_sane,
    step_seed,
)
from training.engine.memory import keep_freed_memory
from training.engine.step import STACKED, TOLERANCE, critic_loss, difference, in_one_forward, unfit

Draw = Callable[[torch.Generator], Tensor]


class NotTogether(Exception):
    """These models cannot be trained together; says why. Each can be alone."""


class Stack:
    """Networks of one architecture, whose tensors become slices of stacked ones, and stay so.

    What changes the stack in place changes the networks, and the other way round.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks
        self.parameters = [
            nn.Parameter(_stacked(tensors))
            for tensors in zip(*(n.parameters() for n in networks), strict=True)
        ]
        self.buffers = [
            _stacked(tensors) for tensors in zip(*(n.buffers() for n in networks), strict=True)
        ]
        self.names = [
            *(name for name, _ in networks[0].named_parameters()),
            *(name for name, _ in networks[0].named_buffers()),
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters and buffers, each ``(K, ...)``."""
        return [*(p.detach() for p in self.parameters), *self.buffers]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    stack = torch.stack([t.detach() for t in tensors])
    for tensor, own in zip(tensors, stack, strict=True):
        tensor.data = own
    return stack


class StackedStep:
    """`training.engine.step.CriticStep` for K critics: leaves the gradients on the stack.

    Args:
        critics: as their constraints returned them.
        constraints: of each; they differ, if at all, in real numbers such as a strength.
    """

    def __init__(self, critics: Stack, constraints: Sequence[Constraint]) -> None:
        self._critics, self._constraints = critics, constraints
        reason = unfit(critics.networks[0])
        if reason:
            raise NotTogether(reason)
        self._varied = _varied(constraints)
        self._captured: dict[bool, _Captured] = {}

    def __call__(
        self, real: Tensor, fake: Tensor, sources: Sequence[torch.Generator], step: int
    ) -> tuple[Tensor, Tensor]:
        """Replace the gradients of the critics' parameters by those of their losses.

        Args:
            real: ``(K, N, *shape)``, in the critics' units.
            fake: likewise, detached.
            sources: of each model's random numbers.
            step: critic steps done before.

        Returns:
            Gaps and losses, ``(K,)`` each.

        Raises:
            NotTogether: the step cannot be stacked, or would not be right.
        """
        constraint = self._constraints[0]
        numbers = [
            torch.tensor(values, dtype=real.dtype, device=real.device)
            for values in self._varied.values()
        ]
        arguments = (self._critics.tensors, numbers, real, fake)
        penalised = constraint.penalised(step)
        if penalised not in self._captured:
            own = self._function(step)
            states = [source.get_state() for source in sources]
            self._captured[penalised] = captured = _Captured(own, arguments)
            found = captured(arguments, sources)
            for source, state in zip(sources, states, strict=True):
                source.set_state(state)
            self._check(real, fake, states, step, found)
        gap, loss, gradients = self._captured[penalised](arguments, sources)
        for parameter, gradient in zip(self._critics.parameters, gradients, strict=True):
            parameter.grad = gradient
        return gap, loss

    def _function(self, step: int) -> Callable[..., Any]:
        network, names = self._critics.networks[0], self._critics.names
        count, together = len(self._critics.parameters), in_one_forward(network)

        def function(
            tensors: list[Tensor], numbers: list[Tensor], real: Tensor, fake: Tensor
        ) -> tuple[Tensor, Tensor, list[Tensor]]:
            leaves = [t.detach().requires_grad_() for t in tensors[:count]]
            held = dict(zip(names, [*leaves, *tensors[count:]], strict=True))
            varied = dict(zip(self._varied, numbers, strict=True))
            constraint = self._constraints[0].model_copy(update=varied)

            def critic(samples: Tensor) -> Tensor:
                scores: Tensor = functional_call(network, held, (samples,))
                return scores

            with torch.enable_grad():
                gap, loss = critic_loss(critic, constraint, real, fake, step, together)
                gradients = _gradients(loss, leaves)
            return gap.detach(), loss.detach(), gradients

        return function

    def _check(
        self, real: Tensor, fake: Tensor, states: list[Tensor], step: int, found: Any
    ) -> None:
        """Compare with each critic's own step, eager."""
        for k, critic in enumerate(self._critics.networks):
            parameters = list(critic.parameters())
            with torch.random.fork_rng([]):
                torch.set_rng_state(states[k])
                _, loss = critic_loss(
                    critic, self._constraints[k], real[k], fake[k], step, in_one_forward(critic)
                )
                right = torch.autograd.grad(loss, parameters, allow_unused=True)
            mine = tree_map(lambda t, k=k: t[k], found)
            reason = difference(mine, loss.detach(), list(right), TOLERANCE["fp32"])
            if reason:
                raise NotTogether(f"a stacked critic step is not right: {reason}")


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(leaves, found, strict=True)]


def _varied(constraints: Sequence[Constraint]) -> dict[str, list[float]]:
    """The constraints' fields that differ, each with its values.

    Raises:
        NotTogether: they differ in more than real numbers.
    """
    first = constraints[0]
    varied = dict[str, list[float]]()
    for name in type(first).model_fields:
        values = [getattr(c, name, None) for c in constraints]
        if any(value != values[0] for value in values):
            varied[name] = [value for value in values if isinstance(value, float)]
            if len(varied[name]) < len(values):
                raise NotTogether(f"their constraints differ in {name}")
    return varied


class _Captured:
    """A function of one model's tensors as a list of kernels, mapped over stacks of them."""

    def __init__(self, function: Callable[..., Any], arguments: Any) -> None:
        self.draws: list[Draw] = []
        single = tree_map(lambda t: t[0].detach().clone(), arguments)
        first = torch.Generator(_device(arguments))

        def record(draw: Draw) -> Tensor:
            self.draws.append(draw)
            return draw(first)

        def replayed(arguments: Any, drawn: list[Tensor]) -> Any:
            left = iter(drawn)
            with _Draws(lambda draw: next(left)):
                return function(*arguments)

        try:
            # A kernel that has no batched form would be run once a model, and warns of that.
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                with _Draws(record):
                    function(*single)
                graph = make_fx(replayed)(single, [draw(first) for draw in self.draws])
                stacks = tree_map(lambda t: t.detach(), arguments)
                drawn = self._drawn([first] * len(_leaf(arguments)))
                self.graph = tidied(make_fx(vmap(graph))(stacks, drawn))
        except Exception as error:  # whatever stops a trace
            line = (str(error).splitlines() or [""])[0][:200]
            raise NotTogether(
                f"its step cannot be stacked ({type(error).__name__}: {line})"
            ) from error

    def __call__(self, arguments: Any, sources: Sequence[torch.Generator]) -> Any:
        with torch.no_grad():
            found = self.graph(arguments, self._drawn(sources))
            # An optimiser that is fused takes a weight and its gradient to lie alike in memory.
            return tree_map(lambda t: t.contiguous(), found)

    def _drawn(self, sources: Sequence[torch.Generator]) -> list[Tensor]:
        return [torch.stack([draw(source) for source in sources]) for draw in self.draws]


def _leaf(arguments: Any) -> Tensor:
    tensor: Tensor = arguments[0][0]
    return tensor


def _device(arguments: Any) -> torch.device:
    return _leaf(arguments).device


class _Draws(TorchFunctionMode):
    """Within it, random numbers come from a function that is told how to draw them."""

    def __init__(self, give: Callable[[Draw], Tensor]) -> None:
        super().__init__()
        self.give = give

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            return self.give(lambda source: func(*args, **kwargs, generator=source))
        if func in (torch.rand_like, torch.randn_like):
            plain = torch.rand if func is torch.rand_like else torch.randn
            shape, of = args[0].shape, {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            return self.give(lambda source: plain(shape, **of, generator=source))
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            shape, of = args[0].shape, {"dtype": args[0].dtype, "device": args[0].device}
            return self.give(
                lambda source: func(torch.empty(shape, **of), *args[1:], **kwargs, generator=source)
            )
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        shape, dtype, device = x.shape, x.dtype, x.device

        def draw(source: torch.Generator) -> Tensor:
            kept = torch.empty(shape, dtype=dtype, device=device)
            return kept.bernoulli_(1 - p, generator=source).div_(1 - p)

        return x * self.give(draw)


def train_together(
    configs: Sequence[Config], data: Dataset, folders: Sequence[Path], watches: Sequence[Watch]
) -> None:
    """Train models of vectors at once, on the processor, from their newest common checkpoint on.

    Args:
        configs: alike but for their seeds and for real numbers of their constraints.
        data: what to train on.
        folders: for each one's checkpoints. Afterwards `training.engine.loop.train` finds there a
            run that is complete.
        watches: of each; see `training.engine.loop.train`.

    Raises:
        NotTogether: they cannot; whatever is in the folders is good for a run of one.
        Diverged: one did; with a diagnosis.
        CheckpointError: a checkpoint is broken or belongs to another configuration.
    """
    _require_alike(configs)
    keep_freed_memory()
    config, settings, count = configs[0], configs[0].training, len(configs)
    device = torch.device("cpu")
    states, histories, done = _begin(configs, data, folders, device)
    critics = Stack([state.critic for state in states])
    generators = Stack([state.generator for state in states])
    averages = Stack([state.ema for state in states])
    critic_optimizer = make_optimizer(settings, critics.parameters)
    generator_optimizer = make_optimizer(settings, generators.parameters)
    _gather(critic_optimizer, [state.critic_optimizer for state in states])
    _gather(generator_optimizer, [state.generator_optimizer for state in states])

    scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
    items = TrainingItems(data, device)
    batch, latent_size = settings.batch_size, config.generator.latent_size
    first = done * settings.num_critic_steps
    orders = [batches(own.training.seed, len(items), batch, first) for own in configs]
    sources = [torch.Generator() for _ in configs]
    find_gradients = StackedStep(critics, [own.constraint for own in configs])
    generate = _generation(generators)
    find_generator_gradients = _generator_step(generators, critics)
    z = torch.empty(count, batch, latent_size)
    made = find = None
    started, samples_seen = time.perf_counter(), 0

    def draw() -> Tensor:
        for own, source in zip(z, sources, strict=True):
            torch.randn(batch, latent_size, generator=source, out=own)
        return z

    for step in range(done, settings.steps):
        for own, source in zip(configs, sources, strict=True):
            source.manual_seed(step_seed(own.training.seed, step))
        for optimizer in (critic_optimizer, generator_optimizer):
            optimizer.param_groups[0]["lr"] = learning_rate(settings, step)

        for critic_step in range(
            step * settings.num_critic_steps, (step + 1) * settings.num_critic_steps
        ):
            indices = np.concatenate([next(order) for order in orders])
            real = scaling.to_model(items.take(indices)).view(count, batch, *data.card.shape)
            noise = (generators.tensors, draw())
            made = made or _Captured(generate, noise)
            fake = made(noise, sources)
            gaps, losses = find_gradients(real, fake, sources, critic_step)
            critic_optimizer.step()
            for own, state in zip(configs, states, strict=True):
                own.constraint.after_critic_step(state.critic)

        arguments = (generators.tensors, critics.tensors, draw())
        find = find or _Captured(find_generator_gradients, arguments)
        for parameter, gradient in zip(
            generators.parameters, find(arguments, sources), strict=True
        ):
            parameter.grad = gradient
        generator_optimizer.step()
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        for mean, now in zip(averages.tensors, generators.tensors, strict=True):
            mean.lerp_(now, 1 - decay)

        samples_seen += batch * settings.num_critic_steps
        done = step + 1
        is_last = done == settings.steps
        logging = is_last or done % settings.log_every == 0
        saving = is_last or done % settings.checkpoint_every == 0
        if saving:
            _scatter(critic_optimizer, [state.critic_optimizer for state in states])
            _scatter(generator_optimizer, [state.generator_optimizer for state in states])
        for k, (own, state, history) in enumerate(zip(configs, states, histories, strict=True)):
            if logging or saving:
                require_sane(
                    state, gaps[k].item(), settings.divergence_gap, done, history, folders[k]
                )
            if logging:
                history.append(
                    {
                        "step": done,
                        "critic_gap": gaps[k].item(),
                        "critic_loss": losses[k].item(),
                        "gradient_norm": _gradient_norm(state.critic, real[k], fake[k], sources[k]),
                        "samples_per_second": samples_seen / (time.perf_counter() - started),
                    }
                )
            watches[k](done, state)
            if saving:
                save_checkpoint(folders[k], done, own, history, state, STACKED)


def _begin(
    configs: Sequence[Config], data: Dataset, folders: Sequence[Path], device: torch.device
) -> tuple[list[TrainingState], list[list[Row]], int]:
    """States, histories, and the generator steps done by all."""
    try:
        checkpoints = common_checkpoint(folders)
    except LookupError as error:
        raise NotTogether("they were interrupted at different steps") from error
    begun = [
        begin(config, data, device, checkpoint)
        for config, checkpoint in zip(configs, checkpoints, strict=True)
    ]
    return [b[0] for b in begun], [b[2] for b in begun], begun[0][1]


def _require_alike(configs: Sequence[Config]) -> None:
    """Raises NotTogether if anything differs that may not, or does not stack."""
    first = configs[0]
    _varied([config.constraint for config in configs])
    for config in configs:
        training = config.training.model_copy(update={"seed": first.training.seed})
        if config.model_copy(
            update={"training": training, "constraint": first.constraint}
        ) != first or type(config.constraint) is not type(first.constraint):
            raise NotTogether("they differ in more than their seeds and strengths")
    if first.generator.architecture != "mlp" or first.conditional:
        raise NotTogether("only unconditional models of vectors are stacked")
    if first.training.precision != "fp32" or first.training.critic_step != "auto":
        raise NotTogether("training.precision or training.critic_step ask for something else")
    if first.generator.normalization == "batch":
        raise NotTogether("batch normalisation changes its statistics in each forward")


def _generation(generators: Stack) -> Callable[..., Tensor]:
    network, names = generators.networks[0], generators.names

    def generate(tensors: list[Tensor], z: Tensor) -> Tensor:
        with torch.no_grad():
            fake: Tensor = functional_call(network, dict(zip(names, tensors, strict=True)), (z,))
            return fake

    return generate


def _generator_step(generators: Stack, critics: Stack) -> Callable[..., list[Tensor]]:
    count = len(generators.parameters)

    def function(tensors: list[Tensor], critic_tensors: list[Tensor], z: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors[:count]]
        held = dict(zip(generators.names, [*leaves, *tensors[count:]], strict=True))
        critic = dict(zip(critics.names, critic_tensors, strict=True))
        with torch.enable_grad():
            fake = functional_call(generators.networks[0], held, (z,))
            scores = functional_call(critics.networks[0], critic, (fake,))
            return _gradients(-scores.mean(), leaves)

    return function


def _gradient_norm(critic: nn.Module, real: Tensor, fake: Tensor, source: torch.Generator) -> float:
    with torch.random.fork_rng([]):
        torch.set_rng_state(source.get_state())
        critic.eval()
        norms = gradient_norms(critic, interpolate(real, fake))
        critic.train()
    return norms.mean().item()


def _gather(stacked: torch.optim.Optimizer, alone: Sequence[torch.optim.Optimizer]) -> None:
    """Take over the state of each model's optimiser; all have done equally many steps."""
    own = [optimizer.param_groups[0]["params"] for optimizer in alone]
    for i, parameter in enumerate(stacked.param_groups[0]["params"]):
        entries = [o.state.get(params[i], {}) for o, params in zip(alone, own, strict=True)]
        for name, value in entries[0].items():
            stacked.state[parameter][name] = (
                torch.stack([entry[name] for entry in entries]) if value.dim() else value.clone()
            )


def _scatter(stacked: torch.optim.Optimizer, alone: Sequence[torch.optim.Optimizer]) -> None:
    """Give each model's optimiser its part of the state."""
    for k, optimizer in enumerate(alone):
        for parameter, whole in zip(
            optimizer.param_groups[0]["params"], stacked.param_groups[0]["params"], strict=True
        ):
            optimizer.state[parameter] = {
                name: value[k] if value.dim() else value
                for name, value in stacked.state[whole].items()
            }
