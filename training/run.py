"""One run from data to artifact: load the data, train, judge, diagnose, save, register."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import artifact, record, registry
from models.config import Config
from models.device import multiply_in_float32
from models.durable import read_file, write_file
from models.errors import AbsentError, AwayError, MachineError, UserError
from models.lipschitz import (
    ASCENT_STARTS,
    LipschitzBounds,
    gradient_norm_summary,
    lipschitz_bracket,
)
from models.model import QUANTILE_LEVELS, Model
from models.networks.conditional import WithLabels
from models.outputs import sole_writer
from models.record import Engine, Results, Run
from models.registry_files import require_files
from models.run_folder import ARTIFACT, CHECKPOINTS
from models.sampling import chunk_rows
from models.trained import artifact_folder
from training.budget import within
from training.data.dataset import Dataset, load_data
from training.engine.accounting import privacy_card
from training.engine.checkpoint import TrainingState, newest_checkpoint, provenance_of
from training.engine.loop import train
from training.engine.origin import Start, kept_threads, require_same_record
from training.engine.room import require_room
from training.engine.runs import (
    Interrupted,
    Row,
    Watch,
    both,
    no_watch,
    stoppable,
)
from training.engine.workers import ALONE, Workers
from training.judging.doctor.diagnosis import diagnose, watcher
from training.judging.evaluate import judge, require_evaluation
from training.judging.extractors import (
    CLASSIFIER,
    PREFIX,
    FeatureExtractor,
    artifact_weights,
    choose_extractor,
    load_extractor,
)
from training.judging.tables.marginals import published_marginals
from training.presets import fill_in
from training.progress import never, no_report, phase, silent
from training.reporting.pages import findings_page, model_card
from training.reporting.preview import samples_picture
from training.reporting.table_report import table_report
from training.reporting.words import data_in_words, results_in_words, say_lines
from training.selection import LAST_STEP, LastStep, Selection
from training.tracking import track_and_register

Array = np.ndarray
REGISTERED = "registered.json"
DIAGNOSIS = "diagnosis.html"
JUDGED = "judged.json"
"""Of a private run: the record with all that its artifact leaves out, not to be published."""
REPORT = "report.html"
"""Of a table: its figures, with pictures of each column."""
MAX_GRADIENT_POINTS = 512
"""Items, at most, at which the critic's gradient is measured."""


@kept_threads()
def run_training(
    config: Config,
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    register: bool = True,
    say: Callable[[str], None] = silent,
    report: Callable[[int], Callable[[Row], None]] = no_report,
    stop_requested: Callable[[], bool] = never,
    budget_seconds: float | None = None,
    workers: Workers = ALONE,
    data: Dataset | None = None,
    watch: Watch | None = None,
    start: Start | None = None,
) -> str | None:
    """Train, judge, diagnose and save a model; the artifact is ``folder/artifact``.

    Args:
        config: the run's configuration.
        folder: where everything of the run goes.
        device: where to train.
        resume: continue what is in ``folder``; without it, ``folder`` must hold no run.
        register: write the run to MLflow and register the artifact as a new version.
        say: takes a line for people.
        report: takes the number of steps, and returns what takes each new row of the history, such
            as `training.progress.TrainingBar`.
        stop_requested: see `training.engine.loop.train`.
        budget_seconds: in place of ``config.training.steps``: see `training.budget.within`.
        workers: processes that train together; ``folder`` must be the same for all. Only the main
            one goes on after training.
        data: what ``config.data`` loads, if it is loaded already.
        watch: see `training.engine.loop.train`; by default the doctor's, which warns with ``say``.
        start: the trained model that the run begins with; rows of a table are coded as its are.

    Returns:
        ``name@version`` if it was registered.

    Raises:
        UserError: the configuration, the data or the folder cannot be used.
        Interrupted: stopped on request; resume to go on.
        Diverged: training failed; the last good checkpoint is kept.
    """
    with workers.main_holds(sole_writer(folder)):
        checkpoints, finished = folder / CHECKPOINTS, folder / ARTIFACT
        if not resume and (finished.exists() or newest_checkpoint(checkpoints)):
            raise UserError(
                f"{folder} already holds a run; continue it with --resume, or choose another --out"
            )
        started = time.perf_counter()
        data = data or _load(config, start, stop_requested)
        require_evaluation(config.evaluation, data)
        say_lines(data_in_words(data, config.conditional), say)
        if register:
            workers.main_checks(lambda: _ask_registry(say))
        config = (
            fill_in(config, data.card, device.type)
            if budget_seconds is None
            else within(config, data, device, budget_seconds, started, folder, say)
        )

        watch = watch or (watcher(config, data, say) if workers.is_main else no_watch)
        # A decided retraining keeps its artifact without the checkpoints.
        is_trained = workers.any(finished.exists() and newest_checkpoint(checkpoints) is None)
        selection: Selection | LastStep = LAST_STEP
        try:
            if is_trained:
                require_same_record(finished, config, data)
            else:
                require_room(folder, config, data.card)
                if config.selection and workers.is_main:
                    with stoppable(stop_requested, "training"):
                        extractor = _choose_features(config, data, register, say)
                    selection = Selection(config, data, checkpoints, extractor, say)
                state, history = train(
                    config,
                    data,
                    checkpoints,
                    device,
                    report(config.training.steps),
                    stop_requested,
                    workers,
                    both(watch, selection),
                    say,
                    start,
                    selection.is_over,
                )
        finally:
            workers.leave()
        if not workers.is_main:
            return None

        model = artifact.load_artifact(finished) if finished.exists() else None
        if model is not None and model.run.config.training.steps == config.training.steps:
            longer = "" if budget_seconds is None else "; a longer --budget needs another --out"
            say(f"{finished} is already complete{longer}")
        else:  # or it was extended
            (folder / REGISTERED).unlink(missing_ok=True)
            seconds = time.perf_counter() - started
            provenance = provenance_of(device, seconds, checkpoints)
            with stoppable(stop_requested, "judging"):
                provenance |= selection.take(state)
                extractor = selection.extractor or _choose_features(config, data, register, say)
                run = _new_record(config, data, provenance, history)
                _judge_and_save(run, data, state, finished, extractor, say)
            if stop_requested() and register:
                raise Interrupted("stopped before registering")
            model = artifact.load_artifact(finished)

        judged = model.run
        if (folder / JUDGED).exists():
            remedy = "remove it; the artifact has all but the figures that are not to be published"
            judged = read_file(folder / JUDGED, Run.model_validate_json, remedy)
        say_lines(results_in_words(judged), say)
        page = findings_page(f"Diagnosis of {config.name}", judged.findings)
        write_file(folder / DIAGNOSIS, page)
        if model.table is not None:
            write_file(folder / REPORT, table_report(model, data, judged.results))
        return _register_once(model, folder, say) if register else None


def _load(config: Config, start: Start | None, stop_requested: Callable[[], bool]) -> Dataset:
    with phase("loading the data"), stoppable(stop_requested, "loading the data"):
        card = start and start.model.run.data
        return load_data(config.data, config.training.batch_size, card, to_train=True)


def _ask_registry(say: Callable[[str], None]) -> None:
    """Ask before hours of training whether the registry will take the run.

    Raises:
        UserError: it never will, as at a wrong address; one that is away may be back by then.
    """
    try:
        registry.names()
    except AwayError as error:
        say(f"{error}; it is asked again after training")


def load_frozen(config: Config, record: dict[str, str]) -> FeatureExtractor:
    """Load the extractor that the registry has frozen for a name.

    Args:
        config: of a run of that name.
        record: what `models.registry.frozen_extractor` returned.

    Raises:
        UserError: its weights are not at hand, or not those.
    """
    weights: dict[str, torch.Tensor] = {}
    if record["name"] == CLASSIFIER:
        with artifact_folder(f"{config.name}@{record['version']}") as champion:
            weights = artifact_weights(champion)
    return load_extractor(record["name"], config.evaluation, record["sha256"], weights)


# ---- judging ------------------------------------------------------------------------------------


def _choose_features(
    config: Config, data: Dataset, register: bool, say: Callable[[str], None]
) -> FeatureExtractor | None:
    """The features to judge images over: those of the name's first champion, where possible."""
    if data.card.kind != "image":
        return None
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


def _new_record(
    config: Config, data: Dataset, provenance: dict[str, Any], history: list[Row]
) -> Run:
    """The record of a run that has been trained, and not yet judged."""
    serving, is_table = config.serving, data.card.table is not None
    return Run(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config,
        constraint=record.constraint_card(config.constraint),
        data=data.card,
        provenance=provenance,
        results=Results(extractor=None, figures={}),
        privacy=privacy_card(config, data.card.training_count) if config.privacy else None,
        engine=Engine(
            precision=serving.precision,
            chunk=chunk_rows(serving.device, data.card.shape, is_table),
        ),
        history=history,
    )


def _judge_and_save(
    run: Run,
    data: Dataset,
    state: TrainingState,
    folder: Path,
    extractor: FeatureExtractor | None,
    say: Callable[[str], None],
) -> None:
    """Judge and diagnose the trained networks, and write the artifact."""
    say(f"judging on held-out data{f' over {extractor.card.name}' if extractor else ''}")
    config, seed = run.config, run.config.training.seed
    generator, critic = state.ema.eval(), state.critic.eval().requires_grad_(False)
    multiply_in_float32()  # as whoever loads the model will
    model = Model(run, generator, critic, np.zeros(1), "")  # judged where it was trained
    indices = data.sample_indices(artifact.MAX_SCORED_ITEMS, heldout=True)
    heldout = data.items_at(indices)
    labels = data.labels[indices] if model.classes and data.labels is not None else None

    mean_error, max_error = model.error(seed)
    scores = model.score(heldout, labels)
    # The random numbers of judging, of the doctor and of the Lipschitz bracket follow from here.
    torch.manual_seed(seed)
    with phase("judging"):
        results = judge(model, data, config.evaluation, extractor)
    model = Model(run, generator.cpu(), critic.cpu(), np.zeros(1), "")
    with phase("diagnosing"):
        findings = diagnose(config, data, generator, critic, run.history, results.figures)
        lipschitz = _measure_lipschitz(model, heldout, labels)

    run = run.model_copy(
        update={
            "engine": run.engine.model_copy(
                update={"mean_error": mean_error, "max_error": max_error}
            ),
            "results": results,
            "findings": findings,
            "marginals": published_marginals(model, data),
            "lipschitz": lipschitz,
            "constraint": record.constraint_card(config.constraint, lipschitz),
        }
    )
    if run.privacy is not None:
        write_file(folder.with_name(JUDGED), run.model_dump_json(indent=2) + "\n")
        run = record.without_leaks(run)
        if not run.results.figures:  # nor scores and a picture of real rows
            heldout = model.sample(seed, len(heldout))
            scores = model.score(heldout)
    extracting = {PREFIX + name: t for name, t in extractor.weights.items()} if extractor else {}
    artifact.save_artifact(
        folder,
        run,
        generator,
        critic,
        {**state.tensors(), **extracting},
        np.quantile(scores.astype(np.float64), QUANTILE_LEVELS),
        samples_picture(model, data, heldout),
        model_card(run),
    )


def _measure_lipschitz(model: Model, heldout: Array, labels: Array | None) -> LipschitzBounds:
    """The bracket of the critic's Lipschitz constant, and its gradient norms.

    Args:
        model: with the critic in eval mode.
        heldout: real items in data units, ``(N, ...)``.
        labels: int64 ``(N,)`` of a class-conditional critic, else None.
    """
    count = min(MAX_GRADIENT_POINTS, len(heldout))
    seed = model.run.config.training.seed
    generated = model.sample(seed, count, label=None if labels is None else labels[:count])
    real, fake = (
        model.scaling.to_model(torch.from_numpy(items)) for items in (heldout[:count], generated)
    )

    def critic_of_first(items: int) -> nn.Module:
        """The critic with the labels of the first items fixed, if it takes any."""
        if labels is None:
            return model.critic
        return WithLabels(model.critic, torch.from_numpy(labels[:items]))

    starts = min(count, ASCENT_STARTS // 3)
    bounds = lipschitz_bracket(critic_of_first(starts), real[:starts], fake[:starts])
    norms = gradient_norm_summary(critic_of_first(count), real, fake)
    return bounds.model_copy(update={"gradient_norm": norms})


# ---- registering --------------------------------------------------------------------------------


def _register_once(model: Model, folder: Path, say: Callable[[str], None]) -> str:
    """Register the artifact, unless it is registered as a note in the run's folder says."""
    note = folder / REGISTERED
    if note.exists():
        remedy = "remove it; the registry knows the run by its artifact"
        reference = str(read_file(note, json.loads, remedy)["model"])
        try:
            digest = registry.version(*registry.split(reference)).get(registry.DIGEST_TAG)
            require_files(reference)
        except AbsentError as error:
            say(f"{error}; the run is registered again")
        except (AwayError, MachineError):
            return reference  # the note holds while the registry is away
        else:
            if digest == model.digest:  # and not of an artifact that was removed
                return reference
    report = folder / REPORT if model.table is not None else None
    reference = track_and_register(
        model, folder / ARTIFACT, report=report, diagnosis=folder / DIAGNOSIS
    )
    write_file(note, json.dumps({"model": reference}) + "\n")
    return reference
