"""The doctor: what goes wrong with a critic, each finding a measurement beside its threshold.

Seven findings are the problems that weight clipping is known for (Arjovsky et al. 2017; Gulrajani
et al. 2017), and the eighth is memory; they are measured of any critic that they apply to.
docs/doctor.md says how, and how well each predicts bad samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.artifact import SUMS, load_artifact
from models.config import Config, parse_config
from models.constraints import WeightClipping
from models.constraints.penalty import TargetedPenalty
from models.errors import UserError
from models.lipschitz import LayerSignal, interpolate, layer_signals
from models.networks import build_networks
from models.networks.conditional import WithLabels
from models.record import Chart, Figure, Finding, Line, Severity
from models.sampling import Scaling, latents
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState, load_checkpoint, newest_checkpoint
from training.engine.loop import Row, Watch
from training.judging.metrics import mode_coverage, precision_recall_density_coverage, wasserstein_1
from training.reporting import charts as report
from training.reporting.charts import histogram

Array = np.ndarray
LOOKED_AT = 1000
"""Held-out, training and generated items, at most, that are scored and compared."""
DIFFERENTIATED = 256
"""Points, at most, at which gradients are taken, and samples between which transport is solved."""
SCORED_AT_ONCE = 256
LOOKS = (0.2, 0.6)
"""Shares of the training steps at which `watcher` looks."""
OF_THE_END = "low_diversity"
"""Measured on the samples themselves, so it may be critical; but early samples are poor in any run,
and predict little of the end."""
TINY = 1e-300
"""Below any gradient that float64 still holds well; keeps logarithms finite."""
NEAR = 0.25
"""Generated samples whose distance from held-out ones exceeds that of training samples by less than
this share leave a critic nothing to find."""
FEW_FEATURES = 8
"""Up to so many, a quadratic function of the input is fitted to the scores."""
MEANINGS = {
    "critic_too_simple": "share of the gradient that is the same everywhere",
    "clip_range": "decades that the gradient gains or loses at each layer",
    "saturated_weights": "share of the clipped weights within 1% of a bound",
    "slow_optimisation": "share of the distance that the critic has not found",
    "depth": "decades between the first and the last layer's gradient",
    "low_diversity": "share of the real data's variety that is lost",
    "gradient_norm": "decades between the gradient norm and its target",
    "critic_overfitting": "standard deviations between scores of training and held-out data",
}
"""What each value is; larger is worse."""


class Check(NamedTuple):
    """When a finding is present, and how bad it may be called."""

    threshold: float
    """A larger value is a finding."""
    ceiling: Severity
    """The worst it may be called: what does not predict bad samples must not alarm."""
    critical: float = math.inf
    """A larger value is critical, if the ceiling allows it."""

    def severity(self, value: float) -> Severity:
        """How bad a value may be called."""
        if value <= self.threshold or self.ceiling == "info":
            return "info"
        return "critical" if self.ceiling == "critical" and value > self.critical else "warning"


CHECKS = {
    "critic_too_simple": Check(0.9, "info"),
    "clip_range": Check(0.3, "warning"),
    "saturated_weights": Check(0.5, "info"),
    "slow_optimisation": Check(0.7, "warning"),
    "depth": Check(2.0, "warning"),
    "low_diversity": Check(0.3, "critical", 0.6),
    "gradient_norm": Check(0.7, "warning"),
    "critic_overfitting": Check(0.5, "info"),
}
"""Thresholds were fixed before `benchmarks/doctor.py` first ran; ceilings follow from it."""


class _Measured(NamedTuple):
    value: float
    evidence: str
    remedy: str
    chart: Chart | None


@dataclass(frozen=True)
class _Patient:
    """What every finding is measured from, in the critic's units."""

    config: Config
    data: Dataset
    critic: nn.Module
    """A copy in float64 and eval mode."""
    sets: dict[str, Tensor]
    """``heldout``, ``training`` and ``fake``, equally many, float32 ``(N, *shape)``."""
    labels: dict[str, Tensor]
    """Of the three, for a conditional critic; else empty."""
    history: Sequence[Row]
    figures: Mapping[str, Figure]

    def bound(self, name: str, rows: slice) -> nn.Module:
        """The critic, with the labels of some items bound if it takes any."""
        return WithLabels(self.critic, self.labels[name][rows]) if self.labels else self.critic

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Of each set, ``(N,)``."""
        found = {}
        for name, items in self.sets.items():
            parts = []
            for first in range(0, len(items), SCORED_AT_ONCE):
                rows = slice(first, first + SCORED_AT_ONCE)
                with torch.no_grad():
                    parts.append(self.bound(name, rows)(items[rows].double()).cpu())
            found[name] = torch.cat(parts).numpy()
        return found

    @cached_property
    def few(self) -> slice:
        """The rows that gradients are taken at."""
        return slice(0, min(DIFFERENTIATED, len(self.sets["fake"])))

    @cached_property
    def between(self) -> Tensor:
        """Points between held-out and generated samples."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training.seed)
            real, fake = (self.sets[name][self.few].double().cpu() for name in ("heldout", "fake"))
            return interpolate(real, fake).to(self.sets["fake"].device)

    @cached_property
    def gradients(self) -> Array:
        """At the points between, ``(N, D)``."""
        points = self.between.clone().requires_grad_()
        with torch.enable_grad():
            scores = self.bound("heldout", self.few)(points)
            (gradient,) = torch.autograd.grad(scores.sum(), points)
        return gradient.flatten(1).cpu().numpy()

    @cached_property
    def signals(self) -> list[LayerSignal]:
        """Of each layer; see `models.lipschitz.layer_signals`."""
        return layer_signals(self.bound("heldout", self.few), self.between)

    def points(self, name: str) -> Array:
        """A set as ``(N, D)``."""
        return self.sets[name].flatten(1).double().cpu().numpy()


@torch.no_grad()
def diagnose(
    config: Config,
    data: Dataset,
    generator: nn.Module,
    critic: nn.Module,
    history: Sequence[Row] = (),
    figures: Mapping[str, Figure] | None = None,
) -> list[Finding]:
    """Examine a critic and its generator, during training or after it.

    Args:
        config: of the run.
        data: that it trains on; held-out items are looked at too.
        generator: as it is served, the moving average; not changed.
        critic: with whatever its constraint wrapped around it; not changed.
        history: of the run so far, drawn beside `slow_optimisation`.
        figures: of `training.judging.evaluate.judge`, if the run has been judged: diversity is
            then theirs, over the extractor's features. Without them images are compared by pixels.

    Returns:
        Every finding that applies to such a critic, present or not, in a fixed order. The same run
        gives the same findings. None at all if scores are not finite: such a run has diverged, as
        the loop is about to say.
    """
    device = next(critic.parameters()).device
    count = min(LOOKED_AT, data.card.heldout_count, data.card.training_count)
    scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
    sets, labels = {}, {}
    for name in ("heldout", "training"):
        places = data.places(count, heldout=name == "heldout")[:count]
        sets[name] = scaling.to_model(torch.from_numpy(data.take(places)))
        if config.conditional and data.labels is not None:
            labels[name] = torch.from_numpy(data.labels[places]).to(device)
    if labels:
        labels["fake"] = labels["heldout"]
    z = torch.from_numpy(latents(config.training.seed, 0, count, config.generator.latent_size))
    asked = [labels["fake"]] if labels else []
    sets["fake"] = copy.deepcopy(generator).eval()(z.to(device), *asked)
    patient = _Patient(
        config,
        data,
        copy.deepcopy(critic).double().eval().requires_grad_(False),
        {name: items.to(device) for name, items in sets.items()},
        labels,
        history,
        figures or {},
    )
    if not all(np.isfinite(scores).all() for scores in patient.scores.values()):
        return []
    findings = []
    for name, check in CHECKS.items():
        measured = _MEASUREMENTS[name](patient)
        if measured is None:
            continue
        value = float(measured.value)
        present = value > check.threshold
        findings.append(
            Finding(
                name=name,
                value=value,
                threshold=check.threshold,
                present=present,
                severity=check.severity(value),
                evidence=measured.evidence,
                remedy=measured.remedy if present else "",
                chart=measured.chart,
            )
        )
    return findings


def diagnose_run(folder: Path) -> list[Finding]:
    """Examine a finished or an interrupted run, from its weights and its data.

    Args:
        folder: the run's, or an artifact.

    Raises:
        UserError: there is neither an artifact nor a checkpoint, the data cannot be loaded, or the
            critic's scores are not finite.
    """
    artifact = next((p for p in (folder / "artifact", folder) if (p / SUMS).is_file()), None)
    if artifact is not None:
        model = load_artifact(artifact)
        config, history, figures = model.run.config, model.run.history, model.run.results.figures
        data, generator, critic = load_data(config.data), model.generator, model.critic
    else:
        path = newest_checkpoint(folder / "checkpoints")
        if path is None:
            raise UserError(f"{folder}: holds neither an artifact nor a checkpoint; see wgan train")
        saved = load_checkpoint(path)
        config, history, figures = parse_config(saved.config), saved.history, None
        data = load_data(config.data)
        generator, critic = build_networks(config, data.card.shape, len(data.card.classes))
        for network, part in ((generator, "ema."), (critic, "critic.")):
            mine = {k.removeprefix(part): t for k, t in saved.tensors.items() if k.startswith(part)}
            network.load_state_dict(mine)
    findings = diagnose(config, data, generator, critic, history, figures)
    if not findings:
        raise UserError(f"{folder}: the critic's scores are not finite: the run has diverged")
    return findings


def watcher(config: Config, data: Dataset, say: Callable[[str], None]) -> Watch:
    """Look at a run while it trains, and warn once of each finding that may warn."""
    steps = {math.ceil(share * config.training.steps) for share in LOOKS}
    told = set[str]()
    advice = _another_constraint(config)

    def watch(step: int, state: TrainingState) -> None:
        if step not in steps or step == config.training.steps:
            return
        for finding in diagnose(config, data, state.ema, state.critic):
            may_warn = finding.severity != "info" and finding.name != OF_THE_END
            if may_warn and finding.name not in told:
                told.add(finding.name)
                if len(told) > 1:  # most remedies end in the same advice
                    remedy = finding.remedy.replace(advice, "do as above")
                    finding = finding.model_copy(update={"remedy": remedy})  # noqa: PLW2901
                say(f"{in_one_line(finding)} (at step {step})")

    return watch


def in_one_line(finding: Finding) -> str:
    """A finding in one line, for people."""
    mark = finding.severity if finding.severity != "info" else "note" if finding.present else "fine"
    remedy = f": {finding.remedy}" if finding.remedy else ""
    return (
        f"{mark}: {finding.name} {finding.value:.3g} (threshold {finding.threshold:g}), "
        f"{finding.evidence}{remedy}"
    )


def findings_page(title: str, findings: Sequence[Finding]) -> str:
    """A self-contained HTML page with a plot of each finding."""
    rows = [
        [f.name, f"{f.value:.3g}", f"{f.threshold:g}", MEANINGS[f.name],
         f.severity if f.present else "not present", f.evidence, f.remedy]
        for f in findings
    ]  # fmt: skip
    header = ["finding", "value", "threshold", "the value is", "severity", "evidence", "remedy"]
    charts = [report.figure(f.chart, f.evidence) for f in findings if f.chart]
    return report.page(title, [report.table(header, rows), *charts])


def _critic_too_simple(patient: _Patient) -> _Measured:
    gradients = patient.gradients
    mean = gradients.mean(axis=0)
    energy = (gradients**2).sum(axis=1).mean()
    constancy = float(mean @ mean / energy) if energy > 0 else 1.0
    evidence = f"{constancy:.0%} of the critic's squared gradient is the same everywhere"
    bending = _bending(patient)
    if bending is not None:
        evidence += f"; {bending:.0%} of the hidden units bend among the samples"
    x = np.concatenate([patient.points("heldout"), patient.points("fake")])
    if x.shape[1] <= FEW_FEATURES:
        scores = np.concatenate([patient.scores["heldout"], patient.scores["fake"]])
        pairs = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i + 1)]
        linear, quadratic = _explained(x, scores), _explained(np.column_stack([x, *pairs]), scores)
        evidence += (
            f"; a linear function of the input explains {linear:.0%} of its scores, a quadratic "
            f"one {quadratic:.0%}"
        )
    norms = np.linalg.norm(gradients, axis=1) * np.linalg.norm(mean)
    cosines = gradients @ mean / np.where(norms > 0, norms, 1)
    chart = Chart(
        title="Does the gradient turn?",
        x_label="cosine between the gradient at a point and the mean gradient",
        y_label="share of the points",
        lines=[histogram("points", cosines, np.linspace(-1, 1, 42))],
        bars=True,
    )
    remedy = "a nearly linear critic sees little but the mean: " + _another_constraint(
        patient.config
    )
    return _Measured(constancy, evidence, remedy, chart)


def _explained(features: Array, scores: Array) -> float:
    """Share of the scores' variance that a linear function of the features explains."""
    design = np.column_stack([np.ones(len(features)), features])
    solution, *_ = np.linalg.lstsq(design, scores, rcond=None)
    total = scores.var()
    return float(1 - (scores - design @ solution).var() / total) if total > 0 else 1.0


def _bending(patient: _Patient) -> float | None:
    """Share of rectifying units that are on for some of the points and off for others."""
    shares: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on = (inputs[0] > 0).double()
        shares.append(on.movedim(1, -1).flatten(0, -2).mean(dim=0) if on.dim() > 2 else on.mean(0))

    kinds = (nn.ReLU, nn.LeakyReLU)
    hooks = [
        m.register_forward_hook(keep) for m in patient.critic.modules() if isinstance(m, kinds)
    ]
    patient.bound("heldout", patient.few)(patient.between)
    for hook in hooks:
        hook.remove()
    if not shares:
        return None
    every = torch.cat(shares)
    return float(((every > 0.01) & (every < 0.99)).double().mean())


def _decades(patient: _Patient) -> Array | None:
    """Logarithms (base 10) of the layers' gradient norms, input first; None for too few layers."""
    if len(patient.signals) < 2:
        return None
    return np.log10([max(signal.gradient, TINY) for signal in patient.signals])


def slope(decades: Array) -> float:
    """Decades that the gradient gains at each layer on its way back; below 0 it vanishes."""
    return float(-np.polyfit(np.arange(len(decades)), decades, 1)[0])


def _layer_chart(decades: Array) -> Chart:
    layers = [float(i + 1) for i in range(len(decades))]
    return Chart(
        title="Gradient of the score by layer",
        x_label="layer, from the input on",
        y_label="log10 of the mean gradient norm",
        lines=[Line(name="gradient norm", x=layers, y=[round(float(d), 4) for d in decades])],
    )


def _clip_range(patient: _Patient) -> _Measured | None:
    constraint, decades = patient.config.constraint, _decades(patient)
    if not isinstance(constraint, WeightClipping) or decades is None:
        return None
    gained = slope(decades)
    factor = 10 ** min(abs(gained), 300)
    change = "grows" if gained > 0 else "shrinks"
    evidence = (
        f"on its way from the score to the input the gradient {change} {factor:.3g}-fold "
        f"at each of {len(decades)} layers ({gained:+.2f} decades a layer)"
    )
    if constraint.target_lipschitz is None:
        better = constraint.clip_value * 10**-gained
        remedy = (
            f"clip_value {constraint.clip_value:g} is too {'large' if gained > 0 else 'small'} for "
            f"this network; near {better:.2g} a layer would pass gradients on unchanged, but the "
            f"range is a knife edge: {_another_constraint(patient.config)}"
        )
    else:
        remedy = _another_constraint(patient.config)
    return _Measured(abs(gained), evidence, remedy, _layer_chart(decades))


def _saturated_weights(patient: _Patient) -> _Measured | None:
    constraint = patient.config.constraint
    if not isinstance(constraint, WeightClipping):
        return None
    weights = np.concatenate(
        [(w / c).flatten().cpu().numpy() for w, c in constraint.clipped(patient.critic)]
    )
    upper, lower = float((weights >= 0.99).mean()), float((weights <= -0.99).mean())
    evidence = (
        f"{upper + lower:.0%} of {len(weights)} clipped weights are within 1% of a bound: "
        f"{lower:.0%} at -c and {upper:.0%} at +c, so the rest holds {1 - upper - lower:.0%}"
    )
    chart = Chart(
        title="Clipped weights",
        x_label="weight / c",
        y_label="share of the weights",
        lines=[histogram("weights", weights, np.linspace(-1, 1, 42))],
        bars=True,
    )
    remedy = "a critic of two-valued weights uses little of its capacity: " + _another_constraint(
        patient.config
    )
    return _Measured(upper + lower, evidence, remedy, chart)


def _slow_optimisation(patient: _Patient) -> _Measured:
    few = patient.few
    heldout, training, fake = (patient.points(n)[few] for n in ("heldout", "training", "fake"))
    floor = wasserstein_1(heldout, training)
    excess = wasserstein_1(heldout, fake) - floor
    gap = float(patient.scores["heldout"].mean() - patient.scores["fake"].mean())
    norms = np.linalg.norm(patient.gradients, axis=1)
    steepest = float(np.quantile(norms, 0.95))
    if excess < NEAR * floor:
        missed = 0.0
        evidence = (
            "generated samples are about as near to held-out ones as training samples are, so "
            "there is hardly a distance left to find"
        )
    else:
        found = gap / max(steepest, TINY) / excess
        missed = min(max(1 - found, 0.0), 1.0)
        evidence = (
            f"the critic's gap {gap:.3g} over its slope {steepest:.3g} finds "
            f"{max(found, 0):.0%} of the transport distance {excess:.3g} (exact, of "
            f"{len(fake)} samples, less the {floor:.3g} between real ones)"
        )
    history = [row for row in patient.history if "critic_gap" in row]
    chart = Chart(
        title="The critic's gap during training",
        x_label="generator step",
        y_label="critic gap",
        lines=[
            Line(
                name="gap",
                x=[row["step"] for row in history],
                y=[row["critic_gap"] for row in history],
            )
        ],
    )
    remedy = (
        "the critic is far from the best of its kind: more training.num_critic_steps or another "
        f"training.learning_rate; or {_another_constraint(patient.config)}"
    )
    return _Measured(missed, evidence, remedy, chart if history else None)


def _depth(patient: _Patient) -> _Measured | None:
    decades = _decades(patient)
    if decades is None:
        return None
    across = float(decades[0] - decades[-1])
    variations = [signal.variation for signal in patient.signals]
    evidence = (
        f"between the last and the first of {len(decades)} hidden layers the gradient "
        f"{'gains' if across > 0 else 'loses'} {abs(across):.2g} decades; the least that a layer's "
        f"output differs between samples is {min(variations):.2g} of its size"
    )
    remedy = (
        f"layers far from the score {'swamp the others' if across > 0 else 'hardly learn'}: a "
        f"shallower critic than critic.depth={patient.config.critic.depth}, or "
        f"{_another_constraint(patient.config)}"
    )
    chart = Chart(
        title="What passes each layer",
        x_label="layer, from the input on",
        y_label="relative",
        lines=[
            Line(
                name="gradient norm, of the largest",
                x=[float(i + 1) for i in range(len(decades))],
                y=[float(10**d) for d in (decades - decades.max()).round(4)],
            ),
            Line(
                name="output's difference between samples",
                x=[float(i + 1) for i in range(len(decades))],
                y=[float(f"{v:.4g}") for v in variations],
            ),
        ],
        log_y=True,
    )
    return _Measured(abs(across), evidence, remedy, chart)


def _low_diversity(patient: _Patient) -> _Measured:
    shares: dict[str, tuple[float, float]] = {}
    for name in ("recall", "coverage", "modes_covered"):
        figure = patient.figures.get(name)
        if figure is not None and figure.floor is not None:
            shares[name] = figure.value, figure.floor
    if not shares:
        shares = _compared(patient)
    lost = {name: 1 - value / floor for name, (value, floor) in shares.items() if floor > 0}
    worst = max(lost, key=lambda name: lost[name])
    value, floor = shares[worst]
    evidence = f"{worst} is {value:.3g}, where training data in the samples' place have {floor:.3g}"
    chart = Chart(
        title="Variety of the samples",
        x_label="",
        y_label="share of what training data have",
        lines=[
            Line(
                name="generated",
                x=[float(i) for i in range(len(lost))],
                y=[round(1 - share, 4) for share in lost.values()],
            )
        ],
        x_names=list(lost),
        bars=True,
    )
    remedy = (
        f"parts of the data are missing from the samples: {_another_constraint(patient.config)}"
    )
    return _Measured(max(lost[worst], 0.0), evidence, remedy, chart)


def _compared(patient: _Patient) -> dict[str, tuple[float, float]]:
    """Recall, coverage and modes of the generated points, each beside that of training points."""
    heldout, training, fake = (patient.points(n) for n in ("heldout", "training", "fake"))
    generated = precision_recall_density_coverage(heldout, fake)
    real = precision_recall_density_coverage(heldout, training)
    shares = {name: (generated[name], real[name]) for name in ("recall", "coverage")}
    if patient.data.mixture:
        centers, sd = patient.data.mixture  # built-in sets: the critic's units are the data's
        modes = [mode_coverage(x, centers, sd)[0] for x in (fake, training)]
        shares["modes_covered"] = (float(modes[0]), float(modes[1]))
    return shares


def _gradient_norm(patient: _Patient) -> _Measured:
    constraint = patient.config.constraint
    target = constraint.target if isinstance(constraint, TargetedPenalty) else 1.0
    norms = np.linalg.norm(patient.gradients, axis=1)
    mean = float(norms.mean())
    away = abs(math.log10(max(mean, TINY) / target))
    inside = float(((norms > target / 2) & (norms < 2 * target)).mean())
    evidence = (
        f"the mean gradient norm between real and generated is {mean:.3g}, where {target:g} is the "
        f"optimal critic's; at {inside:.0%} of the points it is within a factor of 2 of that"
    )
    decades = np.log10(np.maximum(norms / target, TINY))
    centre = float(np.median(decades))
    edges = np.linspace(min(centre, 0) - 1, max(centre, 0) + 1, 42)
    chart = Chart(
        title="Gradient norm between real and generated",
        x_label=f"log10 of the norm over {target:g}",
        y_label="share of the points",
        lines=[histogram("points", decades, edges)],
        bars=True,
    )
    remedy = f"a slope far from {target:g} starves or overwhelms the generator: " + (
        _another_constraint(patient.config)
    )
    return _Measured(away, evidence, remedy, chart)


def _critic_overfitting(patient: _Patient) -> _Measured:
    scores = patient.scores
    spread = float(scores["heldout"].std())
    means = {name: float(s.mean()) for name, s in scores.items()}
    apart = (means["training"] - means["heldout"]) / spread if spread > 0 else 0.0
    error = math.sqrt(2 / len(scores["heldout"]))
    gaps = [means[name] - means["fake"] for name in ("training", "heldout")]
    evidence = (
        f"the critic scores training data {apart:+.2f} standard deviations (give or take "
        f"{error:.2f}) above held-out data; its gap is {gaps[0]:.3g} on the former and "
        f"{gaps[1]:.3g} on the latter"
    )
    everything = np.concatenate(list(scores.values()))
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, 42)
    chart = Chart(
        title="The critic's scores",
        x_label="score",
        y_label="share of the items",
        lines=[histogram(name, s, edges) for name, s in scores.items()],
    )
    remedy = (
        "the critic knows its training data by heart: more data, a smaller critic "
        f"(critic.width={patient.config.critic.width}), critic.dropout, or fewer steps"
    )
    return _Measured(max(apart, 0.0), evidence, remedy, chart)


def _another_constraint(config: Config) -> str:
    """The advice that most remedies share."""
    if isinstance(config.constraint, TargetedPenalty):
        return (
            "train longer, or with another constraint.strength or training.learning_rate; "
            "`wgan compare` tries several"
        )
    return "use lipschitz_penalty or gradient_penalty; `wgan compare` shows which suits"


_MEASUREMENTS: dict[str, Callable[[_Patient], _Measured | None]] = {
    "critic_too_simple": _critic_too_simple,
    "clip_range": _clip_range,
    "saturated_weights": _saturated_weights,
    "slow_optimisation": _slow_optimisation,
    "depth": _depth,
    "low_diversity": _low_diversity,
    "gradient_norm": _gradient_norm,
    "critic_overfitting": _critic_overfitting,
}
