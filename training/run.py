"""One run from data to artifact: check, train, judge, save, register."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models import artifact, images, record, registry
from models.config import Config
from models.errors import UserError
from models.formats import encode
from models.lipschitz import ASCENT_STARTS, gradient_norm_summary, lipschitz_bracket
from models.model import QUANTILE_LEVELS, Model
from models.networks.conditional import WithLabels
from models.record import Engine, Results, Run
from training.data.dataset import Dataset, load_data
from training.engine.checkpoint import TrainingState, load_checkpoint, newest_checkpoint
from training.engine.loop import Interrupted, Row, Watch, train
from training.engine.workers import ALONE, Workers
from training.judging.doctor import diagnose, in_one_line, watcher
from training.judging.evaluate import judge
from training.judging.extractors import (
    CLASSIFIER,
    PREFIX,
    FeatureExtractor,
    artifact_weights,
    choose_extractor,
    load_extractor,
)
from training.reporting.card import marginals, model_card, scatter, serving_in_words, traces
from training.reporting.diagnosis import findings_page
from training.tracking import track_and_register

Array = np.ndarray
ARTIFACT = "artifact"
CHECKPOINTS = "checkpoints"
REGISTERED = "registered.json"
DIAGNOSIS = "diagnosis.html"
GRID_COUNT = 64
SCATTERED = 2500
TRACED = 12
MEASURED = 512
"""Items, at most, at which the critic's gradient is measured."""
NAMED_AT_MOST = 20
"""Broken files; further ones are only counted."""


def run_training(
    config: Config,
    folder: Path,
    device: torch.device,
    *,
    resume: bool,
    register: bool,
    say: Callable[[str], None],
    report: Callable[[Row], None],
    stop_requested: Callable[[], bool],
    workers: Workers = ALONE,
    data: Dataset | None = None,
    watch: Watch | None = None,
) -> str | None:
    """Train, judge, diagnose and save a model; the artifact is ``folder/artifact``.

    Args:
        config: of the run.
        folder: where everything of the run goes.
        device: to train on.
        resume: continue what is in ``folder``; without it, ``folder`` must hold no run.
        register: write the run to MLflow and register the artifact as a new version.
        say: takes a line for people.
        report: see `training.engine.loop.train`.
        stop_requested: see `training.engine.loop.train`.
        workers: that train together; ``folder`` must be the same for all. One of them goes on
            after training.
        data: what ``config.data`` loads, if it is loaded already.
        watch: see `training.engine.loop.train`; by default the doctor's, which warns with ``say``.

    Returns:
        ``name@version`` if it was registered.

    Raises:
        UserError: the configuration, the data or the folder cannot be used.
        Interrupted: stopped on request; resume to go on.
        Diverged: training failed; the last good checkpoint is kept.
    """
    checkpoints, finished = folder / CHECKPOINTS, folder / ARTIFACT
    if not resume and (finished.exists() or newest_checkpoint(checkpoints)):
        raise UserError(
            f"{folder} already holds a run; continue it with --resume, or choose another --out"
        )
    started = time.perf_counter()
    if data is None:
        data = load_data(config.data, config.training.batch_size)
    card = data.card
    say(
        f"data: {card.name}, {card.training_count} items {card.shape} to train on, "
        f"{card.heldout_count} held out"
    )
    for line in _named(data.problems):
        say(f"  skipped {line}")
    if watch is None:
        watch = watcher(config, data, say) if workers.is_main else _look_away
    try:
        state, history = train(
            config, data, checkpoints, device, report, stop_requested, workers, watch, say
        )
    finally:
        workers.leave()
    if not workers.is_main:
        return None
    if finished.exists():
        say(f"{finished} is already complete")
    else:
        if stop_requested():
            raise Interrupted("stopped before judging")
        seconds = time.perf_counter() - started
        extractor = _extractor(config, data, register, say) if card.kind == "image" else None
        say("judging on held-out data" + (f" over {extractor.card.name}" if extractor else ""))
        last = newest_checkpoint(checkpoints)
        assert last is not None, "training ends with a checkpoint"
        provenance = {
            **_provenance(device, seconds),
            "critic_step": load_checkpoint(last).critic_step,
        }
        _finish(config, data, state, history, finished, provenance, extractor)
        if stop_requested() and register:
            raise Interrupted("stopped before registering")
    model = artifact.load_artifact(finished)
    _tell(model, folder, say)
    if not register:
        return None
    note = folder / REGISTERED
    if note.exists():
        return str(json.loads(note.read_text())["model"])
    reference = track_and_register(model, finished)
    note.write_text(json.dumps({"model": reference}) + "\n")
    return reference


def _tell(model: Model, folder: Path, say: Callable[[str], None]) -> None:
    """Say what was judged and found, and leave the doctor's page beside the artifact."""
    for name, figure in model.run.results.figures.items():
        floor = "" if figure.floor is None else f"   floor {figure.floor:.4g}"
        low, high = figure.interval
        say(f"  {name:22s} {figure.value:9.4g}   [{low:.4g}, {high:.4g}]{floor}")
    if model.run.engine.precision == "bf16":
        say(f"  served {serving_in_words(model.run)}")
    for finding in model.run.findings:
        if finding.present:
            say(f"  {in_one_line(finding)}")
    (folder / DIAGNOSIS).write_text(
        findings_page(f"Diagnosis of {model.run.config.name}", model.run.findings)
    )


def _look_away(step: int, state: TrainingState) -> None:
    """What a process that is not the main one watches with."""


def _named(problems: tuple[str, ...]) -> list[str]:
    more = len(problems) - NAMED_AT_MOST
    rest = [f"{more} more: see `wgan data inspect`"] if more > 0 else []
    return [*problems[:NAMED_AT_MOST], *rest]


def _extractor(
    config: Config, data: Dataset, register: bool, say: Callable[[str], None]
) -> FeatureExtractor:
    """The features to judge over: those of the name's first champion, as far as can be."""
    frozen = record = None
    try:
        record = registry.frozen_extractor(config.name) if register else None
        if record:
            frozen = load_frozen(config, record)
    except UserError as error:
        say(f"the frozen extractor of {config.name} cannot be used: {error}")
    chosen = choose_extractor(config.evaluation, data, frozen)
    if record and chosen.card.sha256 != record["sha256"]:
        say(
            f"judged over {chosen.card.name}; the champions of {config.name} are judged over "
            f"{record['name']}, so their figures and these do not compare"
        )
    return chosen


def load_frozen(config: Config, record: dict[str, str]) -> FeatureExtractor:
    """Load the extractor that the registry has frozen for a name, as `frozen_extractor` told.

    Raises:
        UserError: its weights are not at hand, or not those.
    """
    weights: dict[str, torch.Tensor] = {}
    if record["name"] == CLASSIFIER:
        with tempfile.TemporaryDirectory() as folder:
            champion = registry.download(f"{config.name}@{record['version']}", Path(folder))
            weights = artifact_weights(champion)
    return load_extractor(record["name"], config.evaluation, record["sha256"], weights)


def _finish(
    config: Config,
    data: Dataset,
    state: TrainingState,
    history: list[Row],
    folder: Path,
    provenance: dict[str, object],
    extractor: FeatureExtractor | None,
) -> None:
    """Judge the trained networks and write the artifact."""
    generator, critic = state.ema.eval(), state.critic.eval().requires_grad_(False)
    run = Run(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config,
        constraint=record.constraint_card(config),
        data=data.card,
        provenance=provenance,
        results=Results(extractor=None, figures={}),
        engine=Engine(precision=config.serving.precision),
        history=history,
    )
    model = Model(run, generator.cpu(), critic.cpu(), np.zeros(1), "")
    mean_error, max_error = model.error(config.training.seed)
    errors = {"mean_error": mean_error, "max_error": max_error}
    indices = data.sample_indices(artifact.SCORED, heldout=True)
    heldout = data.items_at(indices)
    labels = data.labels[indices] if model.classes and data.labels is not None else None
    scores = model.score(heldout, labels)
    quantiles = np.quantile(scores.astype(np.float64), QUANTILE_LEVELS)
    few = min(MEASURED, len(heldout))
    real, fake = (
        model.scaling.to_model(torch.from_numpy(x))
        for x in (
            heldout[:few],
            model.sample(config.training.seed, few, label=None if labels is None else labels[:few]),
        )
    )
    starts = min(few, ASCENT_STARTS // 3)

    def bind(count: int) -> nn.Module:
        """The critic, with the labels of the first items bound if it takes any."""
        return critic if labels is None else WithLabels(critic, torch.from_numpy(labels[:count]))

    torch.manual_seed(config.training.seed)  # of the points between real and fake
    results = judge(model, data, config.evaluation, extractor)
    findings = diagnose(config, data, generator, critic, history, results.figures)
    bounds = lipschitz_bracket(bind(starts), real[:starts], fake[:starts])
    run = run.model_copy(
        update={
            "engine": run.engine.model_copy(update=errors),
            "results": results,
            "findings": findings,
            "lipschitz": bounds.model_copy(
                update={"gradient_norm": gradient_norm_summary(bind(few), real, fake)}
            ),
        }
    )
    samples = _shown(model, config.training.seed)
    if model.is_image and model.shape[0] in images.MODES:
        picture = encode(samples, "png")
    elif model.is_image:  # more channels than a picture has: show the first
        picture = encode(samples[..., :1], "png")
    elif run.data.kind == "sequence":
        picture = images.encode_png(traces(data.heldout[:TRACED], samples[:TRACED]))
    elif run.data.columns:
        picture = images.encode_png(marginals(run.data.columns, heldout[:SCATTERED], samples))
    else:
        picture = images.encode_png(scatter(heldout[:SCATTERED], samples))
    kept = {PREFIX + name: t for name, t in extractor.weights.items()} if extractor else {}
    artifact.save_artifact(
        folder,
        run,
        generator,
        critic,
        {**state.tensors(), **kept},
        quantiles,
        picture,
        model_card(run),
    )


def _shown(model: Model, seed: int) -> Array:
    """Samples for the artifact's picture; with classes, a row of each, the first ten at most."""
    rows = min(len(model.classes), 10)
    if model.is_image and rows:
        return np.concatenate([model.sample(seed, rows, label) for label in range(rows)])
    return model.sample(seed, GRID_COUNT if model.is_image else SCATTERED)


def _provenance(device: torch.device, seconds: float) -> dict[str, object]:
    return {
        "wgan_foundry": importlib.metadata.version("wgan-foundry"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
    }
