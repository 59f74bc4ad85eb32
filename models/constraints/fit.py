"""Which critics a constraint does not take."""

from __future__ import annotations

from models.constraints.base import Constraint
from models.networks import CriticConfig


def misfit(constraint: Constraint, kind: str, critic: CriticConfig) -> str | None:
    """Say why a critic's settings do not go with a constraint, and what to do; None if they do.

    Args:
        constraint: of the critic.
        kind: its kind.
        critic: its settings.
    """
    if constraint.per_sample and critic.normalization == "batch":
        return (
            "critic.normalization: 'batch' makes each score depend on the whole batch, but "
            f"{kind} limits the gradient of each sample by itself "
            "(Gulrajani et al. 2017, section 4); use 'layer' or 'instance' or 'none'"
        )
    if constraint.per_sample and critic.minibatch_statistics and not constraint.takes_groups:
        return (
            "critic.minibatch_statistics: make each score depend on its group, but "
            f"{kind} limits the gradient of each sample by itself; leave "
            "them out, or take zero_centered_penalty or a constraint on weights"
        )
    if constraint.activations and critic.activation not in constraint.activations:
        *others, last = constraint.activations
        return (
            f"critic.activation: {kind} bounds layers together with activations that act on each "
            f"unit with a slope of 0 to 1, which '{critic.activation}' is not; set "
            f"critic.activation to {', '.join(others)} or {last}, or take cayley or bjorck"
        )
    if constraint.needs_dropout and not critic.dropout:
        return (
            f"critic.dropout: {kind} compares two forwards that differ by "
            "dropout; set critic.dropout, such as 0.5"
        )
    return None
