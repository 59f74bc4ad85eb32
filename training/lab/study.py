"""The study of weight clipping: each of the seven claims against it, measured from scratch."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from models.config import Config, parse_config
from models.constraints import WeightClipping
from models.errors import ConfigError, UserError
from models.images import decode_image, encode_small_png
from models.lipschitz import gradient_norms, interpolate, layer_signals
from models.networks import CriticConfig, build_critic
from models.record import Chart, Line
from models.sampling import Scaling, latents
from training.data.dataset import Dataset, load_data
from training.engine.loop import train
from training.judging.doctor import CHECKS, TINY, slope
from training.judging.histogram import histogram
from training.judging.metrics import wasserstein_1
from training.lab.comparison import Job, mean_over_seeds, probability_lower, run_job, surface
from training.lab.jobs import run_jobs
from training.lab.w1 import Draw, Recipe, fit
from training.presets import build_config
from training.reporting import charts as report

Array = np.ndarray
Values = dict[str, Any]
DATA = ("8gaussians", "25gaussians", "swissroll")
PENALTY: Values = {"kind": "gradient_penalty"}
ONE_SIDED: Values = {"kind": "lipschitz_penalty"}
SPECTRAL: Values = {"kind": "spectral_norm"}


def clipping(c: float) -> Values:
    """The constraint with a clip value."""
    return {"kind": "weight_clipping", "clip_value": c}


PUBLISHED = clipping(0.01)
ON_SURFACES = (PUBLISHED, clipping(0.1), PENALTY, ONE_SIDED)
IN_GRID = (PUBLISHED, clipping(0.1), PENALTY, SPECTRAL)
ON_MOMENTS = (*IN_GRID, ONE_SIDED)
NORMS = ("none", "batch", "layer", "recurrent")
DEPTHS = (4, 8, 12, 20)
CLIPS = (0.003, 0.01, 0.03, 0.1, 0.3)
BATCH = {"surface": 128, "grid": 64, "moments": 256}
"""Of critics on a fixed generator."""
RATE = 2e-3
"""Of critics of three layers; deep ones take half of it."""
PACED = 4e-4
"""Of deep clipped critics in training: eight times the published, so that in a short run too their
weights get to where they go."""
MEASURED, TRANSPORTED = 10_000, 2000
"""Pairs of items that gaps and slopes, and exact distances, are taken of: the latter is then
within some 2% in the plane."""
STEPS_SHOWN = 2
"""Of the sequence that a recurrent critic reads: each point, so many times."""
FOUND = 1 - CHECKS["slow_optimisation"].threshold
"""A critic trains if it finds more than this share of the distance."""
DEEP = ("12", "20")
"""Layers."""
EVERYWHERE = 0.9
"""Share of the points from which 'almost everywhere' is true."""


class Scale(NamedTuple):
    """How much is computed."""

    seeds: int
    """Of each setting, but for `grid_seeds`."""
    grid_seeds: int
    """Of the grid of what trains, and of the moment probe."""
    fit_steps: int
    """Critic steps on a fixed generator."""
    moment_steps: int
    grid_steps: int
    deep_steps: int
    """Generator steps of the deep critic's training."""
    widths: tuple[int, ...]
    """Of the deep critic."""
    mixture_steps: int
    digits_steps: int


QUICK = Scale(3, 1, 1000, 300, 100, 40, (128,), 200, 60)
FULL = Scale(3, 3, 4000, 4000, 2000, 1000, (128, 512), 8000, 2500)


def name_of(constraint: Values) -> str:
    """Short, for people."""
    if constraint["kind"] == "weight_clipping":
        return f"clip {constraint['clip_value']:g}"
    return {
        "gradient_penalty": "gradient penalty",
        "lipschitz_penalty": "lipschitz penalty",
        "spectral_norm": "spectral norm",
    }[constraint["kind"]]


def study(out: Path, scale: Scale, *, processes: int, say: Callable[[str], None]) -> list[Claim]:
    """Measure all, and write ``out/report.html``, ``out/study.md`` and its pictures.

    What is done already in ``out`` is not done again.

    Args:
        out: folder of everything.
        scale: `QUICK`, which takes minutes, or `FULL`, which takes a night. A folder holds one.
        processes: computations at once, one thread each.
        say: takes a line for people.

    Returns:
        The seven claims and what was found of each.
    """
    out.mkdir(parents=True, exist_ok=True)
    note = out / "scale.json"
    mine = json.dumps(scale)
    if note.exists() and note.read_text() != mine:
        raise UserError(f"{out}: holds a study of another scale; choose another --out")
    note.write_text(mine)
    jobs = {**_surfaces(scale), **_layers(scale), **_grid(scale), **_moments(scale)}
    jobs |= _runs(scale, out / "runs")
    answers = run_jobs(_compute, jobs, out / "answers", processes, say)
    found = {
        part: {k: a for k, a in answers.items() if k.startswith(f"{part}-")} for part in _PARTS
    }
    claims = judge_claims(found)
    parts = _report(found, claims, scale)
    (out / "report.html").write_text(report.page(TITLE, [part.html() for part in parts]))
    pictures = out / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    text = "\n\n".join(part.markdown(pictures) for part in parts)
    (out / "study.md").write_text(f"# {TITLE}\n\n{text}\n")
    return claims


def _compute(job: Values) -> Any:
    torch.set_num_threads(1)
    return _PARTS[job["part"]](job)


# Critics on a fixed generator.


def with_noise(items: Tensor, seed: int) -> Tensor:
    """A fixed generator's: items ``(N, D)`` or ``(N, T, D)``, each moved by standard normal noise.

    In a sequence each step is the same point, and so is its noise.
    """
    source = torch.Generator().manual_seed(seed)
    shape = (len(items), *[1] * (items.dim() - 2), items.shape[-1])
    return items + torch.randn(shape, generator=source)


def _critic(source: str, critic: Values, constraint: Values) -> tuple[Config, Dataset, Tensor]:
    """The configuration, the data and the training items in the critic's units."""
    config = parse_config(
        {
            "name": "study",
            "data": {"source": source},
            "generator": {"architecture": critic.get("architecture", "mlp"), "latent_size": 4},
            "critic": {"activation": "relu", **critic},
            "constraint": constraint,
            "training": {"steps": 1},
        }
    )
    data = load_data(config.data)
    scaling = Scaling(data.card.shape, data.card.offset, data.card.scale)
    return config, data, scaling.to_model(torch.from_numpy(data.training))


class Fit(NamedTuple):
    """A critic trained against a fixed generator, and what both are of."""

    data: Dataset
    items: Tensor
    noisy: Tensor
    critic: nn.Module
    saturated: Values
    """Of a clipped critic: shares of its weights at or beyond a bound, at the start and now."""


def _fitted(job: Values) -> Fit:
    config, data, items = _critic(job["source"], job["critic"], job["constraint"])
    noisy = with_noise(items, job["seed"])
    source = torch.Generator().manual_seed(job["seed"])

    def draw() -> tuple[Tensor, Tensor]:
        rows = [torch.randint(len(items), (job["batch"],), generator=source) for _ in range(2)]
        return items[rows[0]], noisy[rows[1]]

    rate = RATE if config.critic.depth < 4 else RATE / 2
    recipe = Recipe(config.constraint, config.critic, rate)
    critic = fit(draw, data.card.shape, recipe, job["steps"], job["seed"])
    saturated = {}
    if isinstance(config.constraint, WeightClipping):
        torch.manual_seed(job["seed"])
        start = build_critic(config.critic, data.card.shape)
        saturated = {
            "saturated_at_start": _saturated(config.constraint, start),
            "saturated": _saturated(config.constraint, critic),
        }
    return Fit(data, items, noisy, critic, saturated)


def _saturated(constraint: WeightClipping, critic: nn.Module) -> float:
    """Share of the clipped weights within 1% of a bound, or beyond it."""
    relative = torch.cat([(w.detach() / c).abs().flatten() for w, c in constraint.clipped(critic)])
    return (relative >= 0.99).double().mean().item()


def _measured(fit: Fit) -> Values:
    """The share of the exact distance that the critic found, and where its gradient norm is.

    Found is its gap over its slope, the 95% quantile of its gradient norm between real and noisy
    items: so a critic is not blamed for its scale. Batch normalisation gets the statistics of all
    these items: those it kept are of other weights than the averaged ones.
    """
    order = torch.randperm(len(fit.items), generator=torch.Generator().manual_seed(0))[:MEASURED]
    real, noisy = fit.items[order], fit.noisy[order]
    few = [x.flatten(1).double().numpy() for x in (real[:TRANSPORTED], noisy[-TRANSPORTED:])]
    distance = wasserstein_1(*few)
    torch.manual_seed(0)
    between = interpolate(real, noisy[torch.randperm(len(noisy))])
    # In float64: where a deep critic hardly changes, float32 would give the rounding of its scores.
    critic = copy.deepcopy(fit.critic).double()
    real, noisy, between = real.double(), noisy.double(), between.double()
    norms = [m for m in critic.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm_layer in norms:
        norm_layer.reset_running_stats()
        norm_layer.momentum = None  # a plain mean
    with torch.no_grad():
        if norms:
            critic.train()(torch.cat([real, noisy]))
        critic.eval()
        gap = (critic(real).mean() - critic(noisy).mean()).item()
    slopes = gradient_norms(critic, between)
    return {
        "found": gap / max(torch.quantile(slopes, 0.95).item(), TINY) / distance,
        "decades": math.log10(max(slopes.mean().item(), TINY)),
        "far": ((slopes < 0.5) | (slopes > 2)).double().mean().item(),
        **fit.saturated,
    }


def _surfaces(scale: Scale) -> dict[str, Values]:
    return {
        f"surface-{source}-{name_of(constraint)}-{seed}": {
            "part": "surface",
            "source": source,
            "constraint": constraint,
            "critic": {"width": 128, "depth": 3},
            "steps": scale.fit_steps,
            "batch": BATCH["surface"],
            "seed": seed,
        }
        for source in DATA
        for constraint in ON_SURFACES
        for seed in range(scale.seeds)
    }


def _surface(job: Values) -> Values:
    fitted = _fitted(job)
    critic = fitted.critic
    real = fitted.data.sample(400, heldout=True)
    low, high = real.min(axis=0), real.max(axis=0)
    margin = 0.3 * (high - low)

    def score(points: Array) -> Array:
        with torch.no_grad():
            scores: Array = critic(torch.from_numpy(points).float()).numpy()
        return scores

    picture = surface(score, low - margin, high + margin, [(real, (40, 40, 40))])
    png = base64.b64encode(encode_small_png(picture)).decode()
    return {**_measured(fitted), "picture": png}


# A deep critic in training.


def _layers(scale: Scale) -> dict[str, Values]:
    constraints = (*map(clipping, (0.1, 0.01, 0.001)), PENALTY, SPECTRAL)
    return {
        f"layers-{width}-{name_of(constraint)}-{seed}": {
            "part": "layers",
            "constraint": constraint,
            "width": width,
            "steps": scale.deep_steps,
            "seed": seed,
        }
        for width in scale.widths
        for constraint in constraints
        for seed in range(scale.seeds)
    }


def _layer(job: Values) -> Values:
    """Twelve layers, no normalisation, Swiss roll, the constraint's published settings."""
    config = build_config(
        "swissroll",
        None,
        job["constraint"]["kind"],
        {
            **{f"constraint.{k}": v for k, v in job["constraint"].items() if k != "kind"},
            "critic.depth": 12,
            "critic.width": job["width"],
            "training.steps": job["steps"],
            "training.seed": job["seed"],
            "training.batch_size": 64,
            "training.log_every": job["steps"],
            "training.checkpoint_every": job["steps"],
            "training.decay_from": 1.0,
            "training.divergence_gap": 1e300,  # exploding is what one came to see
            **({"training.learning_rate": PACED} if "clip_value" in job["constraint"] else {}),
        },
    )
    data = load_data(config.data)
    state = _trained(config, data)
    real = torch.from_numpy(data.sample(256, heldout=True))
    z = torch.from_numpy(latents(0, 0, len(real), config.generator.latent_size))
    with torch.no_grad():
        fake = state.ema.eval()(z)
    torch.manual_seed(0)
    signals = layer_signals(state.critic, interpolate(real, fake))
    decades = np.log10([max(signal.gradient, TINY) for signal in signals])
    c = job["constraint"].get("clip_value")
    weights = [p.detach().flatten() for p in state.critic.parameters()]
    relative = torch.cat([w / (c or w.abs().max().clamp_min(1e-12)) for w in weights]).numpy()
    shares = histogram("weights", relative, np.linspace(-1, 1, 42))
    return {
        "decades": decades.tolist(),
        "slope": slope(decades),
        "saturated": float((np.abs(relative) >= 0.99).mean()),
        "histogram": shares.model_dump(),
    }


def _trained(config: Config, data: Dataset) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        state, _ = train(
            config, data, Path(folder), torch.device("cpu"), lambda row: None, lambda: False
        )
    return state


# What trains.


def _grid(scale: Scale) -> dict[str, Values]:
    return {
        f"grid-{depth}-{norm}-{name_of(constraint)}-{seed}": {
            "part": "grid",
            "depth": depth,
            "norm": norm,
            "constraint": constraint,
            "steps": scale.grid_steps,
            "batch": BATCH["grid"],
            "seed": seed,
        }
        for depth, norm, constraint in itertools.product(DEPTHS, NORMS, IN_GRID)
        for seed in range(scale.grid_seeds)
    }


def _cell(job: Values) -> Values:
    """One critic of the Swiss roll against its noisy copy: the share of the distance it finds."""
    critic: Values = {"width": 64, "depth": job["depth"]}
    with tempfile.TemporaryDirectory() as folder:
        source = "swissroll"
        if job["norm"] == "recurrent":
            critic["architecture"] = "gru"
            points = load_data(parse_config(_MINIMAL).data).items[:5000]
            source = str(Path(folder) / "sequences.npy")
            np.save(source, np.repeat(points[:, None], STEPS_SHOWN, axis=1))
        else:
            critic["normalization"] = job["norm"]
        try:
            return _measured(_fitted({**job, "source": source, "critic": critic}))
        except ConfigError as error:
            return {"refused": str(error)}


_MINIMAL: Values = {
    "name": "study",
    "data": {"source": "swissroll"},
    "generator": {},
    "critic": {},
    "constraint": {"kind": "none"},
    "training": {"steps": 1},
}


# What moments a critic sees.


def _moments(scale: Scale) -> dict[str, Values]:
    return {
        f"moments-m{nodes}-{name_of(constraint)}-{seed}": {
            "part": "moments",
            "nodes": nodes,
            "constraint": constraint,
            "steps": scale.moment_steps,
            "seed": seed,
        }
        for nodes in range(1, 6)
        for constraint in ON_MOMENTS
        for seed in range(scale.grid_seeds)
    }


def hermite(nodes: int) -> tuple[Array, Array]:
    """Points and weights that share their first ``2 nodes - 1`` moments with N(0, 1)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, weights / weights.sum()


def distance_from_normal(points: Array, weights: Array) -> float:
    """W1 between N(0, 1) and points with weights, on the line: the area between both CDFs."""
    grid = np.linspace(-12, 12, 240_001)
    steps = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(points, grid, side="right")]
    return float(np.abs(norm.cdf(grid) - steps).sum() * (grid[1] - grid[0]))


def _moment(job: Values) -> Values:
    points, weights = hermite(job["nodes"])
    source = torch.Generator().manual_seed(job["seed"])
    places = torch.from_numpy(points).float()
    shares = torch.from_numpy(weights)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        drawn = places[torch.multinomial(shares, count, replacement=True, generator=source)]
        return torch.randn(count, 1, generator=source), drawn[:, None]

    draw: Draw = lambda: sample(BATCH["moments"])  # noqa: E731
    config = parse_config({**_MINIMAL, "constraint": job["constraint"]})
    recipe = Recipe(config.constraint, CriticConfig(width=64, depth=3, activation="relu"), RATE)
    critic = fit(draw, (1,), recipe, job["steps"], job["seed"])
    normal, discrete = sample(50_000)
    with torch.no_grad():
        gap = (critic(normal).double().mean() - critic(discrete).double().mean()).item()
    torch.manual_seed(0)
    norms = gradient_norms(critic, interpolate(normal, discrete)[:5000])
    steepest = torch.quantile(norms.double(), 0.95).item()
    return {"found": gap / max(steepest, TINY) / distance_from_normal(points, weights)}


# Whole trainings.


def _runs(scale: Scale, folder: Path) -> dict[str, Values]:
    """The same settings for all, those that were tuned for the one-sided penalty."""
    jobs = {}
    sizes = {"25gaussians": scale.mixture_steps, "digits": scale.digits_steps}
    for preset, steps in sizes.items():
        clips = CLIPS if preset == "25gaussians" else (0.01, 0.1)
        for constraint in (*map(clipping, clips), ONE_SIDED):
            for seed in range(scale.seeds):
                tuned = build_config(
                    preset,
                    None,
                    None,
                    {
                        "training.steps": steps,
                        "training.seed": seed,
                        "training.ema_decay": 0.98 if steps < 1000 else 0.995,
                        "evaluation.samples": 500,
                    },
                )
                values = tuned.model_dump(mode="json")
                if constraint["kind"] == "weight_clipping":
                    values["constraint"] = constraint
                config = Config.model_validate(values).model_dump(mode="json")
                name = f"run-{preset}-{name_of(constraint)}-{seed}"
                jobs[name] = {"part": "run", "config": config, "folder": str(folder / name)}
    return jobs


def _run(job: Values) -> Values:
    answer = run_job(Job(job["config"], job["folder"]))
    answer["findings"] = {f["name"]: f["value"] for f in answer["findings"]}
    png = (Path(job["folder"]) / "artifact" / "samples.png").read_bytes()
    return {**answer, "picture": base64.b64encode(png).decode()}


_PARTS: dict[str, Callable[[Values], Values]] = {
    "surface": _surface,
    "layers": _layer,
    "grid": _cell,
    "moments": _moment,
    "run": _run,
}


# Claims.


class Claim(NamedTuple):
    """One claim against clipping, and what was found."""

    claim: str
    measured: str
    seeds: str
    found: str
    verdict: str
    """borne out, not borne out, or undecided."""


Found = dict[str, dict[str, Values]]


def _of(answers: dict[str, Values], *words: str) -> list[Values]:
    """The answers whose name holds each of the words between its dashes."""
    return [a for name, a in answers.items() if set(words) <= set(name.split("-"))]


def _mean(values: Sequence[float]) -> str:
    return str(mean_over_seeds(values))


def compared(clipped: Sequence[float], penalised: Sequence[float]) -> str:
    """The verdict on 'clipping has the larger value', by Welch's t."""
    probability = probability_lower(penalised, clipped)
    if probability is None or 0.025 < probability < 0.975:
        return "undecided"
    return "borne out" if probability >= 0.975 else "not borne out"


def beyond(values: Sequence[float], threshold: float) -> str:
    """The verdict on 'the value is above the threshold', by the mean's interval."""
    mean = mean_over_seeds(values)
    if math.isnan(mean.low) or mean.low <= threshold <= mean.high:
        return "undecided"
    return "borne out" if mean.low > threshold else "not borne out"


def trains_not(clipped: Sequence[float], others: Sequence[float]) -> str:
    """The verdict on 'these critics do not train', where others of the same depths can."""
    if max(clipped) <= FOUND < max(others):
        return "borne out"
    return "not borne out" if min(clipped) > FOUND else "undecided"


def _each(names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    return "; ".join(f"{n}: {_mean(v)}" for n, v in zip(names, values, strict=True))


def judge_claims(found: Found) -> list[Claim]:
    """Each claim, the figures and the verdict that follows from them."""

    def values(part: str, key: str, *words: str) -> list[float]:
        return [a[key] for a in _of(found[part], *words) if key in a]

    names = [name_of(constraint) for constraint in ON_SURFACES]
    shares = [values("surface", "found", name) for name in names]
    # The same data and seeds: the differences count.
    missed = [b - a for a, b in zip(shares[0], shares[-1], strict=True)]
    width = min(int(name.split("-")[1]) for name in found["layers"])
    slopes = {
        c: values("layers", "slope", str(width), f"clip {c}") for c in ("0.001", "0.01", "0.1")
    }
    steep = CHECKS["clip_range"].threshold
    edges = {beyond([-s for s in slopes["0.01"]], steep), beyond(slopes["0.1"], steep)}
    saturated = {
        c: [values("surface", key, f"clip {c}") for key in ("saturated_at_start", "saturated")]
        for c in ("0.01", "0.1")
    }
    piles = {beyond(end, CHECKS["saturated_weights"].threshold) for _, end in saturated.values()}
    best, distances = _best_clip(found["run"])
    penalised = [
        a["figures"]["wasserstein_1"]["value"]
        for a in _of(found["run"], "25gaussians", name_of(ONE_SIDED))
    ]
    deep = {
        name: [share for depth in DEEP for share in values("grid", "found", depth, name)]
        for name in map(name_of, IN_GRID)
    }
    lost = [
        [1 - a["figures"]["coverage"]["value"] for a in _of(found["run"], "digits", w)]
        for w in (name_of(PUBLISHED), name_of(ONE_SIDED))
    ]
    far = [values("surface", "far", name) for name in names]
    return [
        Claim(
            "1. The critic becomes too simple and estimates W1 badly",
            "share of the exact distance that a critic of three layers finds on a fixed generator, "
            "three data sets; less under clip 0.01 than under the lipschitz penalty, pair by pair",
            f"{len(missed)} fits each",
            _each(names, shares),
            beyond(missed, 0.0),
        ),
        Claim(
            "2. The clip range is a knife edge",
            "decades that the gradient gains at each of 12 layers on its way back; vanishing at "
            "0.01 and exploding at 0.1, both beyond 0.3",
            f"{len(slopes['0.01'])} each",
            "; ".join(f"c = {c}: {_mean(values)}" for c, values in slopes.items()),
            edges.pop() if len(edges) == 1 else "undecided",
        ),
        Claim(
            "3. Weights pile up at the bounds",
            "share of the weights within 1% of a bound, the critics of claim 1; more than half, at "
            "0.01 and at 0.1",
            f"{len(saturated['0.01'][1])} fits each",
            "; ".join(
                f"c = {c}: {_mean(end)}, where {np.mean(start):.2g} began at or beyond one"
                for c, (start, end) in saturated.items()
            ),
            piles.pop() if len(piles) == 1 else "undecided",
        ),
        Claim(
            "4. Optimisation is slow",
            "wasserstein_1 on 25gaussians after equally many critic steps, for the best of "
            f"{len(CLIPS)} clip values ({best:g}) against the lipschitz (one-sided) penalty",
            f"{len(distances)} each",
            f"{_mean(distances)} against {_mean(penalised)}",
            compared(distances, penalised),
        ),
        Claim(
            "5. Deep critics do not train, not even with batch norm",
            "share of the distance that critics of 12 and 20 layers find at c = 0.01, over no, "
            f"batch and layer normalisation and GRU layers; none above {FOUND:.1g}, while some "
            "of the gradient penalty's or of spectral norm's are",
            f"{len(deep['clip 0.01'])} fits",
            "; ".join(f"{n}: {min(v):.0%} to {max(v):.0%}" for n, v in deep.items()),
            trains_not(deep[name_of(PUBLISHED)], deep[name_of(PENALTY)] + deep[name_of(SPECTRAL)]),
        ),
        Claim(
            "6. Samples are worse and less diverse",
            "share of held-out digits that samples do not cover; clip 0.01 against the lipschitz "
            "(one-sided) penalty",
            f"{len(lost[0])} each",
            f"{_mean(lost[0])} against {_mean(lost[1])}",
            compared(*lost),
        ),
        Claim(
            "7. The critic's gradient norm is far from 1 almost everywhere",
            "share of the points between real and generated where it is not within a factor of 2 "
            f"of 1, the critics of claim 1; more than {EVERYWHERE:g} under clip 0.01",
            f"{len(far[0])} fits",
            _each(names, far),
            beyond(far[0], EVERYWHERE),
        ),
    ]


def _best_clip(runs: dict[str, Values]) -> tuple[float, list[float]]:
    values = {
        c: [
            a["figures"]["wasserstein_1"]["value"]
            for a in _of(runs, "25gaussians", f"clip {c:g}")
        ]
        for c in CLIPS
    }  # fmt: skip
    best = min(CLIPS, key=lambda c: float(np.mean(values[c])))
    return best, values[best]


# The report, as HTML and as Markdown.

TITLE = "What weight clipping does to a critic"


class Part(NamedTuple):
    """A paragraph, a heading, a table, a chart or a picture."""

    text: str = ""
    level: int = 0
    """Of a heading; 0: a paragraph, or a caption."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Of a table, the header first."""
    chart: Chart | None = None
    pngs: tuple[str, ...] = ()
    """base64, side by side"""
    file: str = ""
    """Of a chart or picture, without a suffix."""

    def html(self) -> str:
        """One element."""
        if self.rows:
            return report.table(self.rows[0], self.rows[1:])
        if self.chart:
            return report.figure(self.chart, self.text)
        if self.pngs:
            return report.image(self._picture(), self.text, 300 * len(self.pngs))
        return report.heading(self.text, self.level) if self.level else report.text(self.text)

    def markdown(self, pictures: Path) -> str:
        """The same; pictures become files."""
        if self.rows:
            header, *rows = [f"| {' | '.join(row)} |" for row in self.rows]
            return "\n".join([header, "|---" * len(self.rows[0]) + "|", *rows])
        if self.chart or self.pngs:
            name = f"{self.file}.svg" if self.chart else f"{self.file}.png"
            content = report.svg(self.chart).encode() if self.chart else self._picture()
            (pictures / name).write_bytes(content)
            width = 240 * len(self.pngs) or 480
            alt = escape(self.text)
            return (
                f'<img src="{pictures.name}/{name}" alt="{alt}" width="{width}">\n\n*{self.text}*'
            )
        return f"{'#' * self.level} {self.text}" if self.level else self.text

    def _picture(self) -> bytes:
        pictures = [decode_image(base64.b64decode(png), self.file) for png in self.pngs]
        gap = np.full((len(pictures[0]), 6, pictures[0].shape[2]), 255, np.uint8)
        return encode_small_png(np.hstack([part for p in pictures for part in (gap, p)][1:]))


def _report(found: Found, claims: Sequence[Claim], scale: Scale) -> list[Part]:
    table = tuple(tuple(claim) for claim in claims)
    header = ("claim", "measured", "seeds", "found (95% interval)", "verdict")
    return [
        Part(
            "Seven problems are blamed on weight clipping. Here each is measured from scratch, by "
            "rules that could come out otherwise. A verdict is called only where a 95% interval or "
            "Welch's t at 97.5% allows it."
        ),
        Part(rows=(header, *table)),
        *_surface_parts(found["surface"], scale),
        *_layer_parts(found["layers"], scale),
        *_grid_parts(found["grid"], scale),
        *_moment_parts(found["moments"]),
        *_run_parts(found["run"], scale),
    ]


def _surface_parts(answers: dict[str, Values], scale: Scale) -> list[Part]:
    parts = [
        Part("Critics fitted to a fixed generator", 2),
        Part(
            "The generator is fixed: the real data plus standard normal noise. Critics of three "
            f"layers of 128 ReLU units were trained for {scale.fit_steps} steps. Lines of equal "
            "score; blue low, red high; dots are real data. Below: the share of the exact distance "
            "that each found (its gap over its slope, the latter the 95% quantile of its gradient "
            "norm), the mean gradient norm as a power of ten, and the share of the points where it "
            "is not within a factor of 2 of 1. The gradient penalty is two-sided: it wants a norm "
            "of 1 everywhere; the Lipschitz penalty is one-sided: it wants one of at most 1."
        ),
    ]
    rows: list[tuple[str, ...]] = [
        ("data", "constraint", "share found", "log10 of the norm", "norm far from 1")
    ]
    for source, constraint in itertools.product(DATA, ON_SURFACES):
        name = name_of(constraint)
        some = _of(answers, source, name)
        cells = [_mean([a[key] for a in some]) for key in ("found", "decades", "far")]
        rows.append((source, name, *cells))
    names = [name_of(constraint) for constraint in ON_SURFACES]
    for source in DATA:
        pngs = tuple(answers[f"surface-{source}-{name}-0"]["picture"] for name in names)
        caption = f"{source}, seed 0, from left to right: {', '.join(names)}"
        parts.append(Part(caption, pngs=pngs, file=f"surface-{source}"))
    return [*parts, Part(rows=tuple(rows))]


def _layer_parts(answers: dict[str, Values], scale: Scale) -> list[Part]:
    parts = [
        Part("Gradient by layer in a deep critic", 2),
        Part(
            "Twelve layers of ReLU units without normalisation, Swiss roll, each constraint with "
            f"its published settings, after {scale.deep_steps} generator steps; but clipping with "
            f"a learning rate of {PACED:g}, eight times the published one, so that in a short run "
            "too its weights get to where they go. Initial weights are uniform within one over the "
            "root of the width, so at 0.01 and width 128 "
            f"{1 - 0.01 * 128**0.5:.0%} of them lie beyond a bound and are clipped at the start; a "
            "deep critic then gets no gradient that would move them. Claim 3 is judged on critics "
            "that do move."
        ),
    ]
    rows: list[tuple[str, ...]] = [
        ("width", "constraint", "decades a layer on the way back", "weights within 1% of a bound")
    ]
    for width in scale.widths:
        lines, histograms = [], []
        names = dict.fromkeys(k.split("-")[2] for k in answers if k.split("-")[1] == str(width))
        for name in names:
            some = _of(answers, str(width), name)
            mean = np.mean([a["decades"] for a in some], axis=0)
            x = [float(i + 1) for i in range(len(mean))]
            lines.append(Line(name=name, x=x, y=mean.tolist()))
            histograms.append(Line(**{**some[0]["histogram"], "name": name}))
            saturated = _mean([a["saturated"] for a in some]) if "clip" in name else "no bound"
            rows.append((str(width), name, _mean([a["slope"] for a in some]), saturated))
        parts += [
            Part(
                f"Mean over {scale.seeds} seeds, width {width}",
                chart=Chart(
                    title=f"Gradient of the score by layer, width {width}",
                    x_label="layer, from the input on",
                    y_label="log10 of the gradient norm",
                    lines=lines,
                ),
                file=f"layers-{width}",
            ),
            Part(
                f"Seed 0, width {width}; unclipped weights over each tensor's largest",
                chart=Chart(
                    title=f"Weights over their bound, width {width}",
                    x_label="weight / c",
                    y_label="share of the weights",
                    lines=histograms,
                ),
                file=f"weights-{width}",
            ),
        ]
    return [*parts, Part(rows=tuple(rows))]


def _grid_parts(answers: dict[str, Values], scale: Scale) -> list[Part]:
    rows: list[tuple[str, ...]] = [
        ("layers", "normalisation", *(name_of(constraint) for constraint in IN_GRID))
    ]
    for depth, norm_name in itertools.product(DEPTHS, NORMS):
        cells = []
        for constraint in IN_GRID:
            some = _of(answers, str(depth), norm_name, name_of(constraint))
            shares = [a["found"] for a in some if "found" in a]
            cells.append(f"{np.mean(shares):.0%}" if shares else "refused")
        rows.append((str(depth), norm_name, *cells))
    refused = next((a["refused"] for a in answers.values() if "refused" in a), "")
    return [
        Part("What trains", 2),
        Part(
            "The share of the exact distance between the Swiss roll and its noisy copy that a "
            f"critic of width 64 finds after {scale.grid_steps} steps ({scale.grid_seeds} seeds). "
            f"It trains if that is above {FOUND:.0%}. 'recurrent': so many GRU layers that read "
            f"the point at {STEPS_SHOWN} steps. A share above 100% is of a critic with cliffs: "
            f"steeper than its slope at fewer than one point in twenty. Refused: {refused}."
        ),
        Part(rows=tuple(rows)),
    ]


def _moment_parts(answers: dict[str, Values]) -> list[Part]:
    lines = []
    for constraint in ON_MOMENTS:
        name = name_of(constraint)
        means = [
            float(np.mean([a["found"] for a in _of(answers, f"m{nodes}", name)]))
            for nodes in range(1, 6)
        ]
        lines.append(Line(name=name, x=[2.0 * n - 1 for n in range(1, 6)], y=means))
    chart = Chart(
        title="Share of W1 found",
        x_label="moments that agree",
        y_label="gap over slope, over W1",
        lines=lines,
    )
    return [
        Part("Moments that a critic cannot see", 2),
        Part(
            "A normal distribution against 1 to 5 points (Gauss-Hermite nodes) that share its "
            "first 1, 3, 5, 7 and 9 moments; the exact distance is the area between the CDFs."
        ),
        Part("The exact distance is 1 on this scale", chart=chart, file="moments"),
    ]


def _run_parts(runs: dict[str, Values], scale: Scale) -> list[Part]:
    names = [*(name_of(clipping(c)) for c in CLIPS), name_of(ONE_SIDED)]
    lines: dict[str, list[Line]] = {"step": [], "seconds": []}
    for name in names:
        curves = [a["curve"] for a in _of(runs, "25gaussians", name)]
        for key, found in lines.items():
            columns = list(zip(*curves, strict=True))
            x = [float(np.mean([r[key] for r in column])) for column in columns]
            y = [float(np.mean([r["value"] for r in column])) for column in columns]
            found.append(Line(name=name, x=x, y=y))
    parts = [
        Part("Whole trainings", 2),
        Part(
            f"25gaussians for {scale.mixture_steps} and digits for {scale.digits_steps} generator "
            "steps, the same settings for all: those tuned for the one-sided penalty. Means over "
            f"{scale.seeds} seeds. That is short, so compare the rows with each other and not with "
            "what longer runs reach."
        ),
    ]
    for key, found in lines.items():
        x_label = "generator steps" if key == "step" else "seconds of training, on one thread"
        chart = Chart(
            title="25gaussians", x_label=x_label, y_label="wasserstein_1", lines=found, log_y=True
        )
        parts.append(Part(f"Convergence against {x_label}", chart=chart, file=f"curve-{key}"))
    for preset, figures in (
        ("25gaussians", ("modes_covered", "high_quality_share", "coverage", "wasserstein_1")),
        ("digits", ("precision", "recall", "coverage", "kernel_distance")),
    ):
        rows: list[tuple[str, ...]] = [(preset, *figures)]
        for name in names:
            some = _of(runs, preset, name)
            if some:
                cells = [_mean([a["figures"][f]["value"] for a in some]) for f in figures]
                rows.append((name, *cells))
        first = _of(runs, preset)[0]["figures"]
        rows.append(("real against real", *(f"{first[f]['floor']:.3g}" for f in figures)))
        parts.append(Part(rows=tuple(rows)))
    for preset, shown in (
        ("25gaussians", ("clip 0.01", "clip 0.1", name_of(ONE_SIDED))),
        ("digits", ("clip 0.01", name_of(ONE_SIDED))),
    ):
        pngs = tuple(runs[f"run-{preset}-{name}-0"]["picture"] for name in shown)
        caption = f"{preset}, seed 0, from left to right: {', '.join(shown)}"
        parts.append(Part(caption, pngs=pngs, file=f"samples-{preset}"))
    return parts
