"""The published recipe's fit: that of `training.lab.fitting.fit`, faster, and resumable.

Sixty thousand steps a run make the peer most of the benchmark's hours. So the gradients are written
out, some hundred samples at a time, which stay in a core's cache: 0.7 times autograd's cost.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.constraints import GradientPenalty, LipschitzPenalty
from models.networks import build_critic
from training.lab.fitting import Recipe
from training.lab.samples import Draw

CHUNK = 512
"""Samples whose gradients are computed at a time."""
SAVED_EVERY = 5000
"""Steps between checkpoints."""


class WrittenOut:
    """The gradients of ``mean f(b) - mean f(a) + penalty`` by the parameters of a critic f.

    Args:
        critic: dense layers with ReLU between them; the parameters' ``grad`` are written to.
        constraint: looks between the batches, at each step.
    """

    def __init__(self, critic: nn.Module, constraint: LipschitzPenalty | GradientPenalty) -> None:
        self.constraint = constraint
        self.layers = [module for module in critic.modules() if isinstance(module, nn.Linear)]
        for parameter in critic.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> None:
        """Write the gradients at two batches ``(N, D)``.

        The points between them are drawn as `models.lipschitz.interpolate` draws them.
        """
        torch._foreach_zero_([_grad(p) for layer in self.layers for p in layer.parameters()])
        shares = torch.rand(len(a), 1, dtype=a.dtype, device=a.device)
        for batch, sign in ((a, -1.0), (b, 1.0)):
            for part in torch.split(batch, CHUNK):
                self._add_scores(part, sign / len(batch))
        for part in torch.split(torch.lerp(b, a, shares), CHUNK):
            self._add_penalty(part, len(a))

    def _add_scores(self, x: Tensor, factor: float) -> None:
        """Add the gradient of ``factor`` times the sum of the scores."""
        values, last = self._forward(x), self.layers[-1]
        _grad(last.weight).add_(values[-1].sum(0), alpha=factor)
        _grad(last.bias).add_(factor * len(x))
        back = (factor * last.weight).expand(len(x), -1)
        for i in reversed(range(len(self.layers) - 1)):
            back = _through(back, values[i + 1])
            _grad(self.layers[i].weight).addmm_(back.T, values[i])
            _grad(self.layers[i].bias).add_(back.sum(0))
            if i > 0:
                back = back @ self.layers[i].weight

    def _add_penalty(self, x: Tensor, count: int) -> None:
        """Add the gradient of ``strength / count`` times the sum of ``(|grad f| - target)^2``.

        While no unit changes its side, the slope is a product of the weights: its derivative by
        one of them is what came back from the scores to that layer, times what the derivative by
        the slope becomes on its way forward to it.
        """
        values, last = self._forward(x), self.layers[-1]
        slope, backs = last.weight.expand(len(x), -1), []
        for i in reversed(range(len(self.layers) - 1)):
            backs.append(_through(slope, values[i + 1]))
            slope = backs[-1] @ self.layers[i].weight
        norms = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
        excess = norms - self.constraint.target
        if isinstance(self.constraint, LipschitzPenalty):
            excess.clamp_min_(0)
        smallest = torch.finfo(norms.dtype).tiny  # of a norm of zero autograd too gives zero
        excess *= 2 * self.constraint.strength / count / norms.clamp_min(smallest)
        ahead = slope * excess
        for layer, back, value in zip(self.layers[:-1], backs[::-1], values[1:], strict=True):
            _grad(layer.weight).addmm_(back.T, ahead)
            ahead = _through(ahead @ layer.weight.T, value)
        _grad(last.weight).add_(ahead.sum(0))

    def _forward(self, x: Tensor) -> list[Tensor]:
        """The input of each layer."""
        values = [x]
        for layer in self.layers[:-1]:
            values.append(torch.addmm(layer.bias, values[-1], layer.weight.T).relu_())
        return values


def _through(x: Tensor, value: Tensor) -> Tensor:
    """Zero where the ReLU's output ``value`` is."""
    found: Tensor = torch.ops.aten.threshold_backward(x, value, 0)
    return found


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def fit_published(
    draw: Draw,
    dimension: int,
    recipe: Recipe,
    steps: int,
    seed: int,
    source: torch.Generator,
    checkpoint: Path,
) -> nn.Module:
    """Fit as `training.lab.fitting.fit` does with such a recipe: a constant rate, no average.

    Args:
        draw: see `Draw`; random by ``source`` alone.
        dimension: of the points.
        recipe: of a critic and a penalty as `WrittenOut` takes them.
        steps: of the critic.
        seed: as `training.lab.fitting.fit` takes it.
        source: its state is kept in the checkpoint.
        checkpoint: a file, written now and then and removed at the end.
    """
    torch.manual_seed(seed)
    assert recipe.critic is not None
    critic = build_critic(recipe.critic, (dimension,))
    assert isinstance(recipe.constraint, LipschitzPenalty | GradientPenalty)
    gradients = WrittenOut(critic, recipe.constraint)
    optimizer = torch.optim.Adam(
        critic.parameters(), recipe.learning_rate, recipe.betas, fused=True
    )
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved["step"]
        critic.load_state_dict(saved["critic"])
        optimizer.load_state_dict(saved["optimizer"])
        source.set_state(saved["source"])
        torch.set_rng_state(saved["shares"])
    for step in range(first, steps):
        gradients(*draw())
        optimizer.step()
        if (step + 1) % SAVED_EVERY == 0:
            state = {
                "step": step + 1,
                "critic": critic.state_dict(),
                "optimizer": optimizer.state_dict(),
                "source": source.get_state(),
                "shares": torch.get_rng_state(),
            }
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)
    checkpoint.unlink(missing_ok=True)
    return critic.eval()
