"""Networks that begin with the weights of a trained model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.config import Config, flatten
from models.constraints import NoConstraint
from models.errors import ShapeError
from models.model import Model
from models.networks import build_networks
from models.record import DataCard


def continued(model: Model, config: Config, card: DataCard) -> tuple[nn.Module, nn.Module]:
    """Make a generator and a critic that begin as those of a trained model.

    The generator is the served one, the moving average. Under the same constraint the critic is the
    model's own. Under another one it begins with the weights that the model's critic computes with,
    and the constraint then does to them what it does to all initial weights.

    Args:
        model: the trained model, on the CPU.
        config: of the run that begins.
        card: of its data.

    Raises:
        ShapeError: the networks are of another form; the one line names all that differs.
    """
    faults = _faults(model, config, card)
    same = config.constraint == model.run.config.constraint
    if not faults:
        under = config if same else config.model_copy(update={"constraint": NoConstraint()})
        generator, critic = build_networks(under, card.shape, len(card.classes), card.parts)
        begun = model.generator.state_dict(), model.critic.state_dict()
        if not same:
            begun = begun[0], model.run.config.constraint.plain_state(model.critic)
        if any(map(_differ, (generator, critic), begun)):
            faults = _settings(model.run.config, config)
    if faults:
        raise ShapeError(
            f"the model to begin with does not fit: {'; '.join(faults)}; make them alike, or begin "
            "without a model"
        )
    for network, state in zip((generator, critic), begun, strict=True):
        network.load_state_dict(state)
    return generator, critic if same else config.constraint.before_training(critic)


def _faults(model: Model, config: Config, card: DataCard) -> list[str]:
    """What differs between the model's data and those that the run trains on."""
    theirs, faults = model.run.data, []
    names = {"image": ("channels", "height", "width"), "sequence": ("steps", "features")}
    if theirs.kind != card.kind:
        faults.append(f"data of kind {card.kind}, the model's of kind {theirs.kind}")
    else:
        axes = names.get(card.kind, ("features",))
        for axis, ours, own in zip(axes, card.shape, theirs.shape, strict=True):
            if ours != own:
                faults.append(f"{axis} {ours}, the model's {own}")
    if card.parts != theirs.parts and card.shape == theirs.shape:
        faults.append("columns of a table that are coded otherwise")
    if config.conditional != model.run.config.conditional:
        faults.append(f"conditional {config.conditional}, the model's {not config.conditional}")
    elif config.conditional and card.classes != theirs.classes:
        names_here, names_there = map(", ".join, (card.classes, theirs.classes))
        faults.append(f"classes {names_here}, the model's {names_there}")
    return faults


def _settings(theirs: Config, ours: Config) -> list[str]:
    """Settings of the networks that differ."""
    # Not by a dump, which leaves out some settings that are as by default.
    own, now = (
        flatten({part: dict(getattr(config, part)) for part in ("generator", "critic")})
        for config in (theirs, ours)
    )
    differing = [f"{key} {now[key]}, the model's {own[key]}" for key in now if now[key] != own[key]]
    return differing or ["its networks are those of another version of wgan"]


def _differ(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """True if a network has other tensors than those of a state."""
    own = network.state_dict()
    return {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in state.items()}
