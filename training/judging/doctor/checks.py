"""Every finding of the doctor: one function each, with its threshold and its worst severity.

A new finding is one decorated function here and a row in docs/doctor.md. Thresholds were fixed
before `benchmarks/doctor.py` first ran; ceilings follow from what it measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from models.config import Config
from models.constraints import WeightClipping
from models.constraints.penalty import Penalty
from models.networks.settings import ARCHITECTURES
from models.record import Chart, Line, Severity
from training.judging.doctor.base import Check, Measure, Measurement
from training.judging.doctor.subject import TINY, Subject, explained_variance, slope
from training.judging.histogram import histogram

Array = np.ndarray
UNIT_EDGES = np.linspace(-1, 1, 42)
MIN_EXCESS = 0.25
"""Distance of generated samples beyond that of training samples, as a share of the latter: less
leaves a critic nothing to find."""
MAX_QUADRATIC_FEATURES = 8
"""For inputs of up to this many features a quadratic function is fitted to the scores."""

CHECKS: dict[str, Check] = {}
"""All checks by name, in the order of the findings in ``run.json``."""


def check(
    meaning: str,
    *,
    threshold: float,
    ceiling: Severity,
    critical: float = math.inf,
    warns_early: bool = True,
) -> Callable[[Measure], Measure]:
    """Register a function as the check of its name; the arguments are those of `Check`."""

    def register(measure: Measure) -> Measure:
        name = measure.__name__
        CHECKS[name] = Check(name, measure, meaning, threshold, ceiling, critical, warns_early)
        return measure

    return register


@check("share of the gradient that is the same everywhere", threshold=0.9, ceiling="info")
def critic_too_simple(subject: Subject) -> Measurement:
    """Measure how linear the critic is: squared mean gradient over mean squared gradient.

    1 for a linear critic. Clipping favours such simple functions (Gulrajani et al. 2017, section
    3.1).
    """
    gradients = subject.gradients
    mean = gradients.mean(axis=0)
    energy = (gradients**2).sum(axis=1).mean()
    constancy = float(mean @ mean / energy) if energy > 0 else 1.0
    evidence = f"{constancy:.0%} of the critic's squared gradient is the same everywhere"
    if subject.bending_share is not None:
        evidence += f"; {subject.bending_share:.0%} of the hidden units bend among the samples"
    x = np.concatenate([subject.points("heldout"), subject.points("fake")])
    if x.shape[1] <= MAX_QUADRATIC_FEATURES:
        scores = np.concatenate([subject.scores["heldout"], subject.scores["fake"]])
        pairs = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i + 1)]
        linear = explained_variance(x, scores)
        quadratic = explained_variance(np.column_stack([x, *pairs]), scores)
        evidence += (
            f"; a linear function of the input explains {linear:.0%} of its scores, a quadratic "
            f"one {quadratic:.0%}"
        )
    norms = subject.gradient_norms * np.linalg.norm(mean)
    cosines = gradients @ mean / np.where(norms > 0, norms, 1)
    label = "cosine between the gradient at a point and the mean gradient"
    chart = _bars("Does the gradient turn?", label, "points", cosines, UNIT_EDGES)
    remedy = "a nearly linear critic sees little but the mean: " + shared_advice(subject.config)
    return Measurement(constancy, evidence, remedy, chart)


@check("decades that the gradient gains or loses at each layer", threshold=0.3, ceiling="info")
def clip_range(subject: Subject) -> Measurement | None:
    """Fit a line to the decades that the gradient gains at each layer; clipped critics only.

    A range that is too small or too large makes gradients vanish or explode (Gulrajani et al. 2017,
    section 3.2).
    """
    constraint, decades = subject.config.constraint, subject.decades
    if not isinstance(constraint, WeightClipping) or decades is None:
        return None
    gained = slope(decades)
    exponent = min(max(gained, -300), 300)
    factor = 10 ** abs(exponent)
    change = "grows" if gained > 0 else "shrinks"
    evidence = (
        f"on its way from the score to the input the gradient {change} {factor:.3g}-fold "
        f"at each of {len(decades)} layers ({gained:+.2f} decades a layer)"
    )
    if constraint.target_lipschitz is None:
        better = constraint.clip_value * 10**-exponent
        remedy = (
            f"clip_value {constraint.clip_value:g} is too {'large' if gained > 0 else 'small'} for "
            f"this network; near {better:.2g} a layer would pass gradients on unchanged, but the "
            f"range is a knife edge: {shared_advice(subject.config)}"
        )
    else:
        remedy = shared_advice(subject.config)
    norms = [round(float(d), 4) for d in decades]
    chart = Chart(
        title="Gradient of the score by layer",
        x_label="layer, from the input on",
        y_label="log10 of the mean gradient norm",
        lines=[Line(name="gradient norm", x=_layer_numbers(decades), y=norms)],
    )
    return Measurement(abs(gained), evidence, remedy, chart)


@check("share of the clipped weights within 1% of a bound", threshold=0.5, ceiling="info")
def saturated_weights(subject: Subject) -> Measurement | None:
    """Count the weights that lie at a bound; clipped critics only.

    Clipping pushes weights to the two bounds (Gulrajani et al. 2017, figure 1).
    """
    constraint = subject.config.constraint
    if not isinstance(constraint, WeightClipping):
        return None
    weights = np.concatenate(
        [(w / c).flatten().cpu().numpy() for w, c in constraint.clipped(subject.critic)]
    )
    upper, lower = float((weights >= 0.99).mean()), float((weights <= -0.99).mean())
    evidence = (
        f"{upper + lower:.0%} of {len(weights)} clipped weights are within 1% of a bound: "
        f"{lower:.0%} at -c and {upper:.0%} at +c, so the rest holds {1 - upper - lower:.0%}"
    )
    chart = _bars("Clipped weights", "weight / c", "weights", weights, UNIT_EDGES)
    remedy = "a critic of two-valued weights uses little of its capacity: " + shared_advice(
        subject.config
    )
    return Measurement(upper + lower, evidence, remedy, chart)


@check("share of the distance that the critic has not found", threshold=0.7, ceiling="warning")
def slow_optimisation(subject: Subject) -> Measurement:
    """Compare the critic's gap over its slope with the exact transport distance.

    By Kantorovich and Rubinstein's duality the two are equal for the optimal critic. The slope is
    the 95% quantile of the gradient norm; the distance is less that between real items.
    """
    floor = subject.distances["training"]
    excess = subject.distances["fake"] - floor
    gap = float(subject.scores["heldout"].mean() - subject.scores["fake"].mean())
    steepest = float(np.quantile(subject.gradient_norms, 0.95))
    if excess < MIN_EXCESS * floor:
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
            f"{len(subject.gradients)} samples, less the {floor:.3g} between real ones)"
        )
    history = [row for row in subject.history if "critic_gap" in row]
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
        f"training.{subject.config.training.critic_rate}; or {shared_advice(subject.config)}"
    )
    return Measurement(missed, evidence, remedy, chart if history else None)


@check("decades between the first and the last layer's gradient", threshold=2.0, ceiling="warning")
def depth(subject: Subject) -> Measurement | None:
    """Compare the gradient at the first and at the last hidden layer."""
    decades = subject.decades
    if decades is None:
        return None
    across = float(decades[0] - decades[-1])
    variations = [signal.variation for signal in subject.signals]
    evidence = (
        f"between the last and the first of {len(decades)} hidden layers the gradient "
        f"{'gains' if across > 0 else 'loses'} {abs(across):.2g} decades; the least that a layer's "
        f"output differs between samples is {min(variations):.2g} of its size"
    )
    remedy = (
        f"layers far from the score {'swamp the others' if across > 0 else 'hardly learn'}: a "
        f"shallower critic than critic.depth={subject.config.critic.depth}, or "
        f"{shared_advice(subject.config)}"
    )
    chart = Chart(
        title="What passes each layer",
        x_label="layer, from the input on",
        y_label="relative",
        lines=[
            Line(
                name="gradient norm, of the largest",
                x=_layer_numbers(decades),
                y=[float(10**d) for d in (decades - decades.max()).round(4)],
            ),
            Line(
                name="output's difference between samples",
                x=_layer_numbers(decades),
                y=[float(f"{v:.4g}") for v in variations],
            ),
        ],
        log_y=True,
    )
    return Measurement(abs(across), evidence, remedy, chart)


@check(
    "share of the real data's variety that is lost",
    threshold=0.3,
    ceiling="critical",
    critical=0.6,
    warns_early=False,
)
def low_diversity(subject: Subject) -> Measurement:
    """Find the diversity figure that lost the largest share of what training data have.

    It is measured on the samples themselves, so it may be critical; but early samples are poor in
    any run and predict little, so it does not warn during training.
    """
    shares = subject.diversity
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
    remedy = f"parts of the data are missing from the samples: {shared_advice(subject.config)}"
    return Measurement(max(lost[worst], 0.0), evidence, remedy, chart)


@check("decades between the gradient norm and its target", threshold=0.7, ceiling="warning")
def gradient_norm(subject: Subject) -> Measurement | None:
    """Compare the mean gradient norm with the constraint's `target_slope`, if it has one."""
    target = subject.config.constraint.target_slope
    if target is None:
        return None
    norms = subject.gradient_norms
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
    title, label = "Gradient norm between real and generated", f"log10 of the norm over {target:g}"
    chart = _bars(title, label, "points", decades, edges)
    remedy = f"a slope far from {target:g} starves or overwhelms the generator: " + (
        shared_advice(subject.config)
    )
    return Measurement(away, evidence, remedy, chart)


@check(
    "standard deviations between scores of training and held-out data",
    threshold=0.5,
    ceiling="info",
)
def critic_overfitting(subject: Subject) -> Measurement:
    """Compare the scores of training data with those of held-out data."""
    scores = subject.scores
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
    config = subject.config
    remedies = ["more data", f"a smaller critic (critic.width={config.critic.width})"]
    if config.critic.architecture in ARCHITECTURES["images"] and config.augmentation is None:
        remedies.append("augmentation.target=0.3 with data.validation_fraction=0.1")
    remedy = (
        f"the critic knows its training data by heart: {', '.join(remedies)}, critic.dropout, or "
        "fewer steps"
    )
    return Measurement(max(apart, 0.0), evidence, remedy, chart)


@check("distance to held-out data, over a fitted Gaussian's", threshold=1.0, ceiling="warning")
def worse_than_gaussian(subject: Subject) -> Measurement:
    """Compare the samples with those of a Gaussian fitted to the training data.

    By the exact transport distance to held-out items: a generator whose samples are no nearer than
    a Gaussian's has learned no more than a mean and a covariance.
    """
    fake, gaussian = subject.distances["fake"], subject.distances["gaussian"]
    evidence = (
        f"generated samples lie {fake:.3g} from held-out ones (exact transport distance), those of "
        f"a Gaussian with the training data's mean and covariance {gaussian:.3g}"
    )
    remedy = f"the generator has not learned the data's shape: {shared_advice(subject.config)}"
    chart = Chart(
        title="Distance to held-out data",
        x_label="",
        y_label="exact transport distance",
        lines=[Line(name="distance", x=[0.0, 1.0, 2.0], y=list(subject.distances.values()))],
        x_names=["training data", "generated", "Gaussian"],
        bars=True,
    )
    return Measurement(fake / max(gaussian, TINY), evidence, remedy, chart)


def _layer_numbers(decades: Array) -> list[float]:
    return [float(i + 1) for i in range(len(decades))]


def _bars(title: str, x_label: str, items: str, values: Array, edges: Array) -> Chart:
    line = histogram(items, values, edges)
    return Chart(
        title=title, x_label=x_label, y_label=f"share of the {items}", lines=[line], bars=True
    )


def shared_advice(config: Config) -> str:
    """Advise another constraint, or other settings of this one: most remedies end so."""
    if isinstance(config.constraint, Penalty):
        return (
            "train longer, or with another constraint.strength or training.learning_rate; "
            "`wgan compare` tries several"
        )
    return "use lipschitz_penalty or gradient_penalty; `wgan compare` shows which suits"
