"""Several constraints on one data set: the same critic steps, the same seconds, the same seeds."""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import stdtr, stdtrit
from torch import nn

from models.artifact import GRID, load_artifact
from models.config import Config
from models.constraints.layers import layers
from models.errors import UserError
from models.model import Model
from models.record import Chart, Finding, Line
from models.sampling import Scaling, latents
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState
from training.engine.loop import Row, train
from training.engine.stack import NotStackable
from training.engine.stacked import train_together
from training.judging.extractors import FeatureExtractor, choose_extractor
from training.judging.histogram import histogram
from training.judging.metrics import kernel_distance, sliced_wasserstein_1, wasserstein_1
from training.lab.jobs import run_jobs
from training.presets import PRESETS, build_config
from training.reporting import charts as report
from training.run import ARTIFACT, CHECKPOINTS, run_training
from training.tracking import track_and_register

Array = np.ndarray
Budget = Literal["steps", "seconds"]
BUDGETS: tuple[Budget, ...] = ("steps", "seconds")
HEADLINES = {
    "vector": "wasserstein_1",
    "image": "kernel_distance",
    "sequence": "sliced_wasserstein_1",
}
"""What decides, by kind of data; lower is better."""
PRESET_OF = {"vector": "table", "image": "images", "sequence": "ar2"}
"""For data without a preset of their own."""
LOOKS = 8
"""Times that a run's quality is measured on the way."""
COMPARED = 1000
"""Samples, at most, of each such measurement."""
PROBED, WARM_UP = 24, 4
"""Generator steps of a pace measurement, and those that do not count."""
WIDEST_STACKED = 256
"""Width of networks whose seeds train at once; wider ones win little (docs/performance.md)."""
ALIKE = 0.02
"""Runs of both budgets whose steps differ by less are one run."""
DECIDED = 0.95
"""Probability from which a recommendation is called clear."""
REPORT = "report.html"
CURVE = "curve.json"
SURFACE = 240
"""Pixels of a critic surface's side."""
FLOORS = {"modes_covered", "coverage", "recall", "precision", "high_quality_share"}
"""Figures that the table shows beside the headline."""


class Job(NamedTuple):
    """One training run."""

    config: dict[str, Any]
    folder: str


class Group(NamedTuple):
    """Training runs that differ in their seed alone."""

    jobs: list[Job]
    pace: float
    """Seconds of a critic step of one of them alone."""


class Plan(NamedTuple):
    """What is run, and how long."""

    configs: dict[str, Config]
    """By constraint, as of seed 0."""
    seconds_a_critic_step: dict[str, float]
    critic_steps: int
    """The equal number."""
    seconds: float
    """The equal time, of training alone."""

    def steps(self, kind: str, budget: Budget) -> int:
        """Generator steps of a constraint within a budget."""
        each = self.configs[kind].training.num_critic_steps
        critic_steps = float(self.critic_steps)
        if budget == "seconds":
            critic_steps = self.seconds / self.seconds_a_critic_step[kind]
            if abs(critic_steps / self.critic_steps - 1) < ALIKE:
                critic_steps = self.critic_steps
        return max(1, int(critic_steps) // each)


def compare(
    source: str,
    kinds: Sequence[str],
    seeds: int,
    out: Path,
    *,
    preset: str | None = None,
    budget_seconds: float | None = None,
    steps: int | None = None,
    overrides: dict[str, Any] | None = None,
    processes: int = 1,
    track: bool = True,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train, judge and diagnose every constraint with every seed, and write ``out/report.html``.

    Each pair is trained twice: for equally many critic steps, and for equal seconds. The seconds
    are those that the fastest constraint takes for these steps; they are seconds of training on
    the processor, paced by a short trial of each constraint, so that other load does not count.
    What is done already in ``out`` is not done again.

    Args:
        source: of the data, as ``data.source``.
        kinds: of constraints, with their tuned or published settings.
        seeds: how many, from 0 on.
        out: folder of everything.
        preset: networks and settings; by default those of the data's own preset or kind.
        budget_seconds: the equal seconds; the equal critic steps are then what the fastest
            constraint does in these. By default the steps decide.
        steps: generator steps of the preset's own constraint, by default the preset's.
        overrides: as of `build_config`; for every constraint.
        processes: runs at once, one thread each.
        track: write each run to MLflow.
        say: takes a line for people.

    Returns:
        The summary that is also in ``out/comparison.json``.

    Raises:
        UserError: the configuration or the data cannot be used.
    """
    if len(set(kinds)) < 2:
        raise UserError("--constraints: name at least two different ones, such as a,b")
    overrides = overrides or {}
    preset = preset or _preset(source, overrides)
    configs = {kind: build_config(preset, source, kind, overrides) for kind in kinds}
    any_config = next(iter(configs.values()))
    data = load_data(any_config.data, any_config.training.batch_size)
    paces = dict[str, float]()
    for kind, config in configs.items():
        paces |= run_jobs(_pace, {kind: config.model_dump(mode="json")}, out / "pace", 1, say)
    fastest = min(paces.values())
    if budget_seconds is None:
        own = build_config(preset, source, None, overrides).training
        critic_steps = (steps or own.steps) * own.num_critic_steps
    else:
        critic_steps = max(1, int(budget_seconds / fastest))
    plan = Plan(configs, paces, critic_steps, critic_steps * fastest)
    say(
        f"{len(kinds)} constraints, {seeds} seeds: {critic_steps} critic steps each, and "
        f"{plan.seconds:.1f} s each"
    )
    jobs, groups = {}, dict[str, Group]()
    for kind, config in configs.items():
        for budget in BUDGETS:
            for seed in range(seeds):
                count = plan.steps(kind, budget)
                name = f"{kind}-{count}-{seed}"
                training = config.training.model_copy(update={"steps": count, "seed": seed})
                run = config.model_copy(update={"training": training})
                jobs[name] = Job(run.model_dump(mode="json"), str(out / "runs" / name))
            if seeds > 1 and _small(config):
                several = [jobs[name] for name in _names(plan, kind, budget, seeds)]
                groups[f"{kind}-{count}, {seeds} seeds"] = Group(several, paces[kind])
    for name, reason in run_jobs(train_group, groups, out / "together", processes, say).items():
        if reason:
            say(f"{name}: trained one by one, for {reason}")
    answers = run_jobs(run_job, jobs, out / "answers", processes, say)
    if track:
        for name in jobs:
            _track(out / "runs" / name, out.name)
    summary = _summary(plan, answers, seeds, data)
    (out / "comparison.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / REPORT).write_text(_page(plan, answers, seeds, data, out, summary))
    return summary


def _small(config: Config) -> bool:
    networks = (config.generator, config.critic)
    return all(n.architecture == "mlp" and n.width <= WIDEST_STACKED for n in networks)


def _preset(source: str, overrides: dict[str, Any]) -> str:
    if source in PRESETS:
        return source
    config = build_config(
        "table", source, None, {k: v for k, v in overrides.items() if "data" in k}
    )
    return PRESET_OF[load_data(config.data).card.kind]


def _config(values: dict[str, Any]) -> Config:
    return Config.model_validate(values)


def _pace(values: dict[str, Any]) -> float:
    """Seconds of a critic step, its share of the generator's step included."""
    config = _config(values)
    training = config.training.model_copy(
        update={"steps": PROBED, "log_every": PROBED, "checkpoint_every": PROBED}
    )
    data = load_data(config.data, training.batch_size)
    times = list[float]()

    def watch(step: int, state: TrainingState) -> None:
        times.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        train(
            config.model_copy(update={"training": training}),
            data,
            Path(folder),
            torch.device("cpu"),
            lambda row: None,
            lambda: False,
            watch=watch,
        )
    # The median, since the first steps and the last one do more than train.
    pace = float(np.median(np.diff(times[WARM_UP:])))
    return pace / training.num_critic_steps


class _Recorder:
    """Measures a run's quality on the way, and the seconds that training took without that.

    With a pace the seconds are those that the run would have taken alone, at so many a critic step.
    """

    def __init__(
        self, config: Config, data: Dataset, path: Path, pace: float | None = None
    ) -> None:
        self.config, self.data, self.path, self.pace = config, data, path, pace
        total = config.training.steps
        self.looks = {math.ceil(total * (i + 1) / LOOKS) for i in range(LOOKS)}
        image = data.card.kind == "image"
        self.extractor = choose_extractor(config.evaluation, data) if image else None
        self.rows: list[Row] = []
        self.started = self.before = 0.0

    def __call__(self, step: int, state: TrainingState) -> None:
        if not self.started:  # the first step since the start, or since a resume
            kept = json.loads(self.path.read_text()) if self.path.exists() else []
            self.rows = [row for row in kept if row["step"] < step]
            last = self.rows[-1] if self.rows else {"seconds": 0.0, "step": 0}
            steps = step - last["step"]
            self.started = time.process_time()
            # Unmeasured steps, one of them at least, count with the pace of the measured ones.
            self.before = last["seconds"] * (1 + steps / last["step"]) if last["step"] else 0.0
        if step not in self.looks:
            return
        seconds = self.before + time.process_time() - self.started
        if self.pace is not None:
            seconds = self.pace * step * self.config.training.num_critic_steps
        value = headline(self.config, self.data, state.ema, self.extractor)
        self.rows.append({"step": step, "seconds": seconds, "value": value})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.rows))
        self.before, self.started = seconds, time.process_time()


@torch.no_grad()
def headline(
    config: Config, data: Dataset, generator: nn.Module, extractor: FeatureExtractor | None
) -> float:
    """The figure that decides, of at most `COMPARED` samples against as many held-out items.

    Args:
        config: of the run.
        data: that it trains on.
        generator: the moving average; not changed.
        extractor: of images.

    Returns:
        As `HEADLINES` says for the kind of data; lower is better.
    """
    card = data.card
    scaling = Scaling(card.shape, card.offset, card.scale)
    indices = data.sample_indices(COMPARED, heldout=True)
    real = data.items_at(indices)
    z = torch.from_numpy(latents(0, 0, len(real), config.generator.latent_size))
    labels = []
    if config.conditional and data.labels is not None:
        labels = [torch.from_numpy(data.labels[indices])]
    fake = copy.deepcopy(generator).eval()(z, *labels)
    if extractor is not None:
        return kernel_distance(extractor(real), extractor(scaling.to_data(fake).numpy()))
    points = scaling.to_model(torch.from_numpy(real)).flatten(1).double().numpy()
    samples = fake.flatten(1).double().numpy()
    metric = sliced_wasserstein_1 if card.kind == "sequence" else wasserstein_1
    return metric(points, samples)


def train_group(group: Group) -> str | None:
    """Train several runs at once, and leave the judging to `run_job`.

    Returns:
        None; or why they cannot be trained together, and are left to `run_job` whole.
    """
    configs = [_config(job.config) for job in group.jobs]
    folders = [Path(job.folder) for job in group.jobs]
    data = load_data(configs[0].data, configs[0].training.batch_size)
    watches = [
        _Recorder(config, data, folder / CURVE, group.pace)
        for config, folder in zip(configs, folders, strict=True)
    ]
    try:
        train_together(configs, data, [folder / CHECKPOINTS for folder in folders], watches)
    except NotStackable as error:
        return str(error)
    return None


def run_job(job: Job) -> dict[str, Any]:
    """Train, judge and diagnose one run; goes on with an interrupted one.

    Returns:
        ``curve`` (rows of step, seconds and value, see `headline`), ``figures``, ``findings``,
        ``steps`` and ``critic_steps``.
    """
    config, folder = _config(job.config), Path(job.folder)
    data = load_data(config.data, config.training.batch_size)
    recorder = _Recorder(config, data, folder / CURVE)
    run_training(
        config,
        folder,
        torch.device("cpu"),
        resume=True,
        register=False,
        say=lambda line: None,
        report=lambda row: None,
        stop_requested=lambda: False,
        data=data,
        watch=recorder,
    )
    run = load_artifact(folder / ARTIFACT).run
    return {
        "curve": json.loads((folder / CURVE).read_text()),
        "figures": {k: f.model_dump(mode="json") for k, f in run.results.figures.items()},
        "findings": [finding.model_dump(mode="json") for finding in run.findings],
        "steps": config.training.steps,
        "critic_steps": config.training.steps * config.training.num_critic_steps,
    }


def _track(folder: Path, comparison: str) -> None:
    note = folder / "tracked.json"
    if note.exists():
        return
    model = load_artifact(folder / ARTIFACT)
    run_id = track_and_register(model, folder / ARTIFACT, comparison=comparison)
    note.write_text(json.dumps({"run": run_id}) + "\n")


class Mean(NamedTuple):
    """A mean over seeds and its 95% interval (Student's t); of one seed none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g} (one seed)"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean of one value a seed, with its interval."""
    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) < 2:
        return Mean(mean, math.nan, math.nan)
    margin = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array))
    return Mean(mean, mean - margin, mean + margin)


def probability_lower(a: Sequence[float], b: Sequence[float]) -> float | None:
    """How probable it is that the mean of ``a`` is the lower, by Welch's t; None for one seed."""
    if min(len(a), len(b)) < 2:
        return None
    variances = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    error = float(sum(variances))
    difference = float(np.mean(b) - np.mean(a))
    if error == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    freedom = error**2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (a, b), strict=True))
    return float(stdtr(freedom, difference / math.sqrt(error)))


def recommend(values: dict[str, Sequence[float]], figure: str) -> dict[str, Any]:
    """Choose the constraint with the lowest mean, and say how sure that is.

    Args:
        values: one a seed, by constraint; lower is better.
        figure: what they are.

    Returns:
        ``constraint``, ``over`` (the runner-up), ``probability`` (that the choice is really
        better than the runner-up; None for one seed) and ``reason``.
    """
    first, second, *_ = sorted(values, key=lambda kind: float(np.mean(values[kind])))
    probability = probability_lower(values[first], values[second])
    means = {kind: mean_over_seeds(values[kind]) for kind in (first, second)}
    reason = (
        f"{first}: its {figure} at equal seconds is {means[first]}, that of the next, {second}, "
        f"{means[second]}; "
    )
    if probability is None:
        reason += "with one seed nothing can be said of chance: use --seeds 3 or more"
    elif probability >= DECIDED:
        reason += f"that it is really the better has a probability of {probability:.3g} (Welch's t)"
    else:
        reason += (
            f"that it is really the better has a probability of {probability:.2g} only (Welch's "
            "t): these seeds do not decide between the two; more would"
        )
    return {"constraint": first, "over": second, "probability": probability, "reason": reason}


def _names(plan: Plan, kind: str, budget: Budget, seeds: int) -> list[str]:
    return [f"{kind}-{plan.steps(kind, budget)}-{seed}" for seed in range(seeds)]


def _summary(plan: Plan, answers: dict[str, Any], seeds: int, data: Dataset) -> dict[str, Any]:
    figure = HEADLINES[data.card.kind]
    rows = []
    for kind in plan.configs:
        for budget in BUDGETS:
            runs = [answers[name] for name in _names(plan, kind, budget, seeds)]
            rows.append(
                {
                    "constraint": kind,
                    "budget": budget,
                    "steps": runs[0]["steps"],
                    "critic_steps": runs[0]["critic_steps"],
                    "seconds": [run["curve"][-1]["seconds"] for run in runs],
                    "figures": {
                        name: [run["figures"][name]["value"] for run in runs]
                        for name in runs[0]["figures"]
                    },
                    "floors": {
                        name: f["floor"] for name, f in runs[0]["figures"].items()
                    },
                }
            )  # fmt: skip
    at_equal_seconds = {
        str(row["constraint"]): row["figures"][figure] for row in rows if row["budget"] == "seconds"
    }
    return {
        "data": data.card.name,
        "headline": figure,
        "critic_steps": plan.critic_steps,
        "seconds": plan.seconds,
        "seeds": seeds,
        "rows": rows,
        "recommendation": recommend(at_equal_seconds, figure),
    }


def table_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the one table, as texts."""
    names = [summary["headline"]]
    names += [n for n in summary["rows"][0]["figures"] if n in FLOORS]
    header = ["constraint", "equal", "critic steps", "seconds", *names]
    rows = [
        [
            row["constraint"],
            row["budget"],
            str(row["critic_steps"]),
            f"{np.mean(row['seconds']):.3g}",
            *(str(mean_over_seeds(row["figures"][name])) for name in names),
        ]
        for row in summary["rows"]
    ]
    floors = summary["rows"][0]["floors"]
    rows.append(["real against real", "", "", "", *(f"{floors[name]:.3g}" for name in names)])
    return header, rows


def _page(
    plan: Plan,
    answers: dict[str, Any],
    seeds: int,
    data: Dataset,
    out: Path,
    summary: dict[str, Any],
) -> str:
    figure = summary["headline"]
    header, rows = table_rows(summary)
    parts = [
        report.text(summary["recommendation"]["reason"] + "."),
        report.text(
            f"Each constraint was trained with {seeds} seeds for {plan.critic_steps} critic steps, "
            f"and for {plan.seconds:.3g} seconds of training, each time with its whole schedule. "
            "Means over seeds, with 95% intervals. Seconds are the processor's, without measuring."
        ),
        report.table(header, rows),
    ]
    for budget in BUDGETS:
        x = "critic steps" if budget == "steps" else "seconds"
        chart = Chart(
            title=f"Quality against {x}",
            x_label=x,
            y_label=f"{figure} (lower is better)",
            lines=[_curve(plan, answers, kind, budget, seeds) for kind in plan.configs],
            log_y=data.card.kind != "image",
        )
        parts.append(report.figure(chart, f"Runs of equal {budget}; bands: 95% over seeds."))
    first = {kind: _names(plan, kind, "steps", 1)[0] for kind in plan.configs}
    models = {kind: load_artifact(out / "runs" / name / ARTIFACT) for kind, name in first.items()}
    by_layer = _by_layer(answers, first)
    if by_layer.lines:
        parts.append(report.figure(by_layer, "Seed 0, at the end of the equal steps."))
    parts.append(
        report.figure(_weights(models), "Each layer's weights over their largest; seed 0.")
    )
    parts.append(report.heading("What the doctor found"))
    found = [
        [kind, str(seed), f.name, f.severity, f.evidence]
        for kind in plan.configs
        for seed, name in enumerate(_names(plan, kind, "steps", seeds))
        for f in map(Finding.model_validate, answers[name]["findings"])
        if f.present
    ]
    parts.append(report.table(["constraint", "seed", "finding", "severity", "evidence"], found))
    parts.append(report.heading("Samples"))
    for kind, name in first.items():
        picture = (out / "runs" / name / ARTIFACT / GRID).read_bytes()
        parts.append(report.image(picture, f"{kind}, seed 0, equal steps", 320))
    if data.card.kind == "vector" and data.card.shape == (2,):
        parts.append(report.heading("Critic surfaces"))
        for kind, model in models.items():
            parts.append(report.image(_surface(model, data), f"{kind}: low blue, high red", 320))
    return report.page(f"Constraints compared on {summary['data']}", parts)


def _curve(plan: Plan, answers: dict[str, Any], kind: str, budget: Budget, seeds: int) -> Line:
    """Means over seeds at each look, with their intervals."""
    curves = [answers[name]["curve"] for name in _names(plan, kind, budget, seeds)]
    each = plan.configs[kind].training.num_critic_steps
    means = [mean_over_seeds([r["value"] for r in rows]) for rows in zip(*curves, strict=True)]
    where = [
        float(np.mean([r["seconds"] if budget == "seconds" else r["step"] * each for r in rows]))
        for rows in zip(*curves, strict=True)
    ]
    many = seeds > 1
    return Line(
        name=kind,
        x=where,
        y=[m.value for m in means],
        low=[m.low for m in means] if many else [],
        high=[m.high for m in means] if many else [],
    )


def _by_layer(answers: dict[str, Any], first: dict[str, str]) -> Chart:
    lines = []
    for kind, name in first.items():
        for finding in map(Finding.model_validate, answers[name]["findings"]):
            if finding.name == "depth" and finding.chart:
                lines.append(finding.chart.lines[0].model_copy(update={"name": kind}))
    return Chart(
        title="Gradient of the score by layer",
        x_label="layer, from the input on",
        y_label="norm, of the largest",
        lines=lines,
        log_y=True,
    )


def _weights(models: dict[str, Model]) -> Chart:
    edges = np.linspace(-1, 1, 42)
    lines = []
    for kind, model in models.items():
        parts = [layer.weight.detach().flatten() for layer in layers(model.critic)]
        shares = torch.cat([w / w.abs().max().clamp_min(1e-12) for w in parts]).numpy()
        lines.append(histogram(kind, shares, edges))
    return Chart(
        title="Weights of the critic",
        x_label="weight, of its layer's largest",
        y_label="share of the weights",
        lines=lines,
    )


def _surface(model: Model, data: Dataset) -> Array:
    real = data.sample(COMPARED, heldout=True)
    fake = model.sample(0, COMPARED)
    low, high = real.min(axis=0), real.max(axis=0)
    margin = 0.25 * (high - low)
    low, high = low - margin, high + margin
    return surface(
        lambda points: model.score(points.astype(np.float32)),
        low,
        high,
        [(real, (60, 60, 60)), (fake, (20, 120, 40))],
    )


def surface(
    score: Callable[[Array], Array],
    low: Array,
    high: Array,
    points: Sequence[tuple[Array, tuple[int, int, int]]],
) -> Array:
    """Draw a critic of the plane, and points over it.

    Args:
        score: ``(N, 2)`` to ``(N,)``.
        low: of the rectangle drawn, ``(2,)``.
        high: likewise.
        points: ``(N, 2)`` in the same units, each set with a colour.

    Returns:
        uint8 ``(240, 240, 3)``.
    """
    axes = [np.linspace(low[i], high[i], SURFACE) for i in range(2)]
    x, y = np.meshgrid(axes[0], axes[1][::-1])
    field = score(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(SURFACE, SURFACE)
    return report.contours(field, [((p - low) / (high - low), colour) for p, colour in points])
