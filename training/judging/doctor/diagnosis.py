"""All checks on a run: during its training, after it, or from what it left in its folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.artifact import SUMS, load_artifact
from models.config import Config, parse_config
from models.device import require_device
from models.errors import UserError
from models.networks import build_networks
from models.record import Figure, Finding
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import (
    TrainingState,
    load_checkpoint,
    newest_checkpoint,
    part_of,
)
from training.engine.runs import Row, Watch
from training.judging.doctor import risk
from training.judging.doctor.checks import CHECKS, shared_advice
from training.judging.doctor.subject import Subject
from training.progress import track

WATCHED_SHARES = (0.2, 0.6)
"""Shares of the training steps at which `watcher` examines the run."""


@torch.no_grad()
def diagnose(
    config: Config,
    data: Dataset,
    generator: nn.Module,
    critic: nn.Module,
    history: Sequence[Row] = (),
    figures: Mapping[str, Figure] | None = None,
    share: float = 1.0,
) -> list[Finding]:
    """Examine a critic and its generator, during training or after it.

    Args:
        config: the run's configuration.
        data: what the run trains on; its held-out items are examined too.
        generator: as it is served, the moving average; not changed.
        critic: with whatever its constraint wrapped around it; not changed.
        history: the run so far, drawn beside `slow_optimisation`.
        figures: from `training.judging.evaluate.judge`, if the run has been judged: diversity is
            then theirs, over the extractor's features. Without them images are compared by pixels.
        share: of the training steps that are done, 0 to 1.

    Returns:
        Every finding that applies to such a critic, present or not, in the order of `CHECKS`; then
        the risk that is made of them, see `training.judging.doctor.risk`. The same run gives the
        same findings. Empty if scores are not finite: such a run has diverged, as the loop is about
        to say.
    """
    subject = Subject.prepare(config, data, generator, critic, history, figures or {})
    if not all(np.isfinite(scores).all() for scores in subject.scores.values()):
        return []
    examined = (check.examine(subject) for check in track(CHECKS.values(), "diagnosing"))
    findings = [finding for finding in examined if finding is not None]
    return [*findings, risk.assess(findings, share)]


def diagnose_run(folder: Path, device: str = "cpu") -> list[Finding]:
    """Examine a finished or an interrupted run, from its weights and its data.

    Args:
        folder: the run's, or an artifact.
        device: ``cpu`` or ``cuda``.

    Returns:
        See `diagnose`.

    Raises:
        UserError: there is no such device, there is neither an artifact nor a checkpoint, the data
            cannot be loaded, or the critic's scores are not finite.
    """
    computes_on = require_device(device)
    artifact = next((p for p in (folder / "artifact", folder) if (p / SUMS).is_file()), None)
    if artifact is not None:
        model = load_artifact(artifact, computes_on)
        config, history, figures = model.run.config, model.run.history, model.run.results.figures
        share = 1.0
        data = load_data(config.data, card=model.run.data)
        generator, critic = model.generator, model.critic
    else:
        path = newest_checkpoint(folder / "checkpoints")
        if path is None:
            raise UserError(f"{folder}: holds neither an artifact nor a checkpoint; see wgan train")
        saved = load_checkpoint(path)
        config, history, figures = parse_config(saved.config), saved.history, None
        share = saved.step / config.training.steps
        data = load_data(config.data)
        generator, critic = build_networks(
            config, data.card.shape, len(data.card.classes), data.card.parts
        )
        for network, prefix in ((generator, "ema."), (critic, "critic.")):
            network.load_state_dict(part_of(saved.tensors, prefix))
            network.to(computes_on)
    findings = diagnose(config, data, generator, critic, history, figures, share)
    if not findings:
        raise UserError(f"{folder}: the critic's scores are not finite: the run has diverged")
    return findings


def watcher(config: Config, data: Dataset, say: Callable[[str], None]) -> Watch:
    """Make a watch that examines a run while it trains: it says the risk, and warns of findings.

    Each finding is warned of once.

    Args:
        config: the run's configuration.
        data: what the run trains on.
        say: takes a line for people.

    Returns:
        A function for `training.engine.loop.train`; it changes nothing of the run.
    """
    steps = {math.ceil(share * config.training.steps) for share in WATCHED_SHARES}
    told = set[str]()
    advice = shared_advice(config)
    advised = False

    def watch(step: int, state: TrainingState) -> None:
        nonlocal advised
        if step not in steps or step == config.training.steps:
            return
        share = step / config.training.steps
        for finding in diagnose(config, data, state.ema, state.critic, share=share):
            if finding.name != risk.NAME:
                may_warn = finding.severity != "info" and CHECKS[finding.name].warns_early
                if not may_warn or finding.name in told:
                    continue
                told.add(finding.name)
            remedy = finding.remedy
            if advised:  # most remedies end in the same advice
                remedy = remedy.replace(advice, "do as above")
            advised = advised or advice in remedy
            line = in_one_line(finding.model_copy(update={"remedy": remedy}))
            say(f"{line} (at step {step})")

    return watch


def in_one_line(finding: Finding) -> str:
    """Put a finding in one line, for people."""
    mark = finding.severity if finding.severity != "info" else "note" if finding.present else "fine"
    remedy = f": {finding.remedy}" if finding.remedy else ""
    return (
        f"{mark}: {finding.name} {finding.value:.3g} (threshold {finding.threshold:g}), "
        f"{finding.evidence}{remedy}"
    )
