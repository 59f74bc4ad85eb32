"""Critics in training: the gradient through a deep one, and whole trainings."""

from __future__ import annotations

import base64
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch

from models.artifact import GRID
from models.config import Config
from models.lipschitz import interpolate, layer_signals
from models.run_folder import ARTIFACT
from models.sampling import latents
from training.data.dataset import load_data
from training.engine.loop import train
from training.judging.doctor.subject import gradient_decades, slope
from training.judging.histogram import histogram
from training.lab.comparison.runs import Job, run_job
from training.lab.study.settings import (
    CLIPPED_RATE,
    CLIPS,
    ONE_SIDED,
    PENALTY,
    SPECTRAL,
    Scale,
    Values,
    clipping,
    jobs,
    name_of,
)
from training.presets import build_config


def deep_jobs(scale: Scale) -> dict[str, Values]:
    """Deep critics over width and constraint, for `train_deep`."""
    constraints = (*map(clipping, (0.1, 0.01, 0.001)), PENALTY, SPECTRAL)
    trainings = {
        f"{width}-{name_of(constraint)}": {
            "constraint": constraint,
            "width": width,
            "steps": scale.deep_steps,
        }
        for width, constraint in itertools.product(scale.widths, constraints)
    }
    return jobs("layers", trainings, scale.seeds)


def train_deep(job: Values) -> Values:
    """Train a critic of twelve layers without normalisation on the Swiss roll, and measure it.

    The settings are those published with the constraint.
    """
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
            **(
                {"training.learning_rate": CLIPPED_RATE}
                if "clip_value" in job["constraint"]
                else {}
            ),
        },
    )
    data = load_data(config.data)
    with tempfile.TemporaryDirectory() as folder:
        state, _ = train(config, data, Path(folder), torch.device("cpu"))
    real = torch.from_numpy(data.sample(256, heldout=True))
    z = torch.from_numpy(latents(0, 0, len(real), config.generator.latent_size))
    with torch.no_grad():
        fake = state.ema.eval()(z)
    torch.manual_seed(0)
    signals = layer_signals(state.critic, interpolate(real, fake))
    decades = gradient_decades(signals)
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


def whole_jobs(scale: Scale, folder: Path) -> dict[str, Values]:
    """Whole trainings for `train_whole`, all with what was tuned for the one-sided penalty."""
    found = {}
    sizes = {
        "25gaussians": (scale.mixture_steps, CLIPS),
        "digits": (scale.digits_steps, (0.01, 0.1)),
    }
    for preset, (steps, clips) in sizes.items():
        for constraint in (*map(clipping, clips), ONE_SIDED):
            for seed in range(scale.seeds):
                config = build_config(
                    preset,
                    overrides={
                        "training.steps": steps,
                        "training.seed": seed,
                        "training.ema_decay": 0.98 if steps < 1000 else 0.995,
                        "evaluation.samples": 500,
                    },
                )
                if constraint["kind"] == "weight_clipping":
                    values = config.model_dump(mode="json")
                    config = Config.model_validate({**values, "constraint": constraint})
                name = f"run-{preset}-{name_of(constraint)}-{seed}"
                found[name] = {"part": "run", "config": config, "folder": folder / name}
    return found


def train_whole(job: Values) -> Values:
    """Train and judge one model; see `run_job`. ``picture`` is its samples, PNG in base64."""
    answer = run_job(Job(job["config"], job["folder"]))
    answer["findings"] = {f["name"]: f["value"] for f in answer["findings"]}
    png = (job["folder"] / ARTIFACT / GRID).read_bytes()
    return {**answer, "picture": base64.b64encode(png).decode()}
