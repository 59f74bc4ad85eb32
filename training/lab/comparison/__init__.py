"""Several constraints on one data set: the same critic steps, the same seconds, the same seeds.

`runs` trains, judges and measures; `statistics` compares; `page` writes the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.artifact import load_artifact
from models.config import Config, flatten
from models.durable import read_file, write_file
from models.errors import UserError
from models.outputs import sole_writer
from models.run_folder import ARTIFACT
from training.data.dataset import load_data
from training.engine.origin import changes, fingerprint
from training.engine.runs import Diverged
from training.judging.figures import headlines
from training.lab.comparison.page import comparison_page
from training.lab.comparison.runs import (
    BUDGETS,
    Group,
    Job,
    Plan,
    pace_or_told,
    run_or_told,
    train_group,
)
from training.lab.comparison.statistics import in_words, summarise
from training.lab.jobs import run_jobs
from training.presets import build_config, fill_in, suitable_preset
from training.progress import silent
from training.run import DIAGNOSIS
from training.tracking import track_and_register

MAX_STACKED_WIDTH = 256
"""Width of networks whose seeds train at once; wider ones win little (docs/performance.md)."""
REPORT = "report.html"
ANSWERS = "answers"
COMPARED = "compared.json"
"""The data and the settings of what is done already."""


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
    say: Callable[[str], None] = silent,
) -> dict[str, Any]:
    """Train, judge and diagnose every constraint with every seed, and write ``out/report.html``.

    Each pair is trained twice: for equally many critic steps, and for equal seconds. The seconds
    are those that the fastest constraint takes for these steps; they are seconds of training on
    the processor, paced by a short trial of each constraint, so that other load does not count.
    What is done already in ``out`` is not done again.

    Args:
        source: where the data are, as ``data.source``.
        kinds: constraints to compare, with their tuned or published settings.
        seeds: how many, from 0 on.
        out: folder of everything.
        preset: networks and settings; by default those of the data's own preset or kind.
        budget_seconds: the equal seconds; the equal critic steps are then what the fastest
            constraint does in these. By default the steps decide.
        steps: generator steps of the preset's own constraint, by default the preset's.
        overrides: settings for every constraint, as `build_config` takes them.
        processes: runs at once, one thread each.
        track: write each run to MLflow.
        say: takes a line for people.

    Returns:
        The summary that is also in ``out/comparison.json``.

    Raises:
        UserError: the configuration or the data cannot be used.
        Diverged: a run of every constraint did.
    """
    if len(set(kinds)) < 2:
        raise UserError("--constraints: name at least two different ones, such as a,b")
    overrides = overrides or {}
    preset = preset or suitable_preset(source, overrides)
    configs = {kind: build_config(preset, source, kind, overrides) for kind in kinds}
    any_config = next(iter(configs.values()))
    with sole_writer(out):
        data = load_data(any_config.data, any_config.training.batch_size)
        configs = {kind: fill_in(config, data.card) for kind, config in configs.items()}
        _require_same(out / COMPARED, fingerprint(data), configs, say)
        paces = dict[str, Any]()
        for kind, config in configs.items():
            paces |= run_jobs(pace_or_told, {kind: config}, out / "pace", 1, say)
        diverged = {kind: pace for kind, pace in paces.items() if isinstance(pace, str)}
        configs = _sound(configs, diverged, say)
        paces = {kind: paces[kind] for kind in configs}
        fastest = min(paces.values())
        if budget_seconds is None:
            own = fill_in(build_config(preset, source, None, overrides), data.card).training
            critic_steps = (steps or own.steps) * own.num_critic_steps
        else:
            critic_steps = max(1, int(budget_seconds / fastest))
        plan = Plan(configs, paces, critic_steps, critic_steps * fastest)
        say(
            f"{len(configs)} constraints, {seeds} seeds: {critic_steps} critic steps each, and "
            f"{plan.seconds:.1f} s each"
        )
        jobs, groups = {}, dict[str, Group]()
        for kind, config in configs.items():
            for budget in BUDGETS:
                count = plan.steps(kind, budget)
                names = plan.run_names(kind, budget, seeds)
                for seed, name in enumerate(names):
                    training = config.training.model_copy(update={"steps": count, "seed": seed})
                    run = config.model_copy(update={"training": training})
                    jobs[name] = Job(run, out / "runs" / name)
                if seeds > 1 and _is_small(config):
                    group = Group([jobs[name] for name in names], paces[kind])
                    groups[f"{kind}-{count}, {seeds} seeds"] = group
        for name, reason in run_jobs(train_group, groups, out / "together", processes, say).items():
            if reason:
                say(f"{name}: trained one by one, for {reason}")
        answers = run_jobs(run_or_told, jobs, out / ANSWERS, processes, say)
        if track:
            for name in jobs:
                _track(out / "runs" / name, out.name)
        diverged |= _diverged(jobs, answers)
        plan = plan._replace(configs=_sound(configs, diverged, silent))
        figure = headlines(data.card)[0]
        summary = summarise(plan, answers, seeds, data.card.name, figure, diverged)
        write_file(out / "comparison.json", json.dumps(summary, indent=1) + "\n")
        write_file(out / REPORT, comparison_page(plan, answers, seeds, data, out, summary))
        return summary


def _diverged(jobs: dict[str, Job], answers: dict[str, Any]) -> dict[str, str]:
    """Say of each constraint whose run diverged which one did, and how."""
    found = dict[str, str]()
    for name, (config, _) in jobs.items():
        if how := answers[name].get("diverged"):
            found.setdefault(config.constraint.kind, f"seed {config.training.seed} {how}")
    return found


def _sound(
    configs: dict[str, Config], diverged: dict[str, str], say: Callable[[str], None]
) -> dict[str, Config]:
    """The constraints of which no run diverged.

    Raises:
        Diverged: there is none.
    """
    for kind, how in diverged.items():
        say(f"{kind} is left out: {how}")
    sound = {kind: config for kind, config in configs.items() if kind not in diverged}
    if not sound:
        raise Diverged(
            f"every constraint diverged: {in_words(diverged)}; lower training.learning_rate, and "
            "choose another --out"
        )
    return sound


def _require_same(
    note: Path, data: dict[str, Any], configs: dict[str, Config], say: Callable[[str], None]
) -> None:
    """Require that what is done already is of these data and settings; write them down.

    Raises:
        UserError: it is of others, and the line names what differs; or a run would select a step.
    """
    if any(config.selection for config in configs.values()):
        raise UserError("selection: a comparison judges all at equal steps; leave it out")
    settings = dict[str, dict[str, Any]]()
    for kind, config in configs.items():
        settings[kind] = flatten(config.model_dump(mode="json"))
        for key in ("data.source", "training.steps", "training.seed"):  # runs are named by these
            del settings[kind][key]
    if note.exists():
        remedy = "remove its folder, or choose another --out"
        known = read_file(note, json.loads, remedy)
        then = known["settings"]
        differing = {
            key
            for kind in then.keys() & settings.keys()
            for key in then[kind].keys() | settings[kind].keys()
            if then[kind].get(key) != settings[kind].get(key)
        }
        if changed := changes(known["data"], data):
            raise UserError(f"{note.parent}: compares other data ({changed}); {remedy}")
        if differing:
            differ = ", ".join(sorted(differing))
            raise UserError(f"{note.parent}: was compared with another {differ}; {remedy}")
        settings = {**then, **settings}
    elif (note.parent / ANSWERS).exists():
        say(f"{note.parent}: of a former version, which does not say what it compared")
    write_file(note, json.dumps({"data": data, "settings": settings}, indent=1) + "\n")


def _is_small(config: Config) -> bool:
    networks = (config.generator, config.critic)
    return all(n.architecture == "mlp" and n.width <= MAX_STACKED_WIDTH for n in networks)


def _track(folder: Path, comparison: str) -> None:
    note = folder / "tracked.json"
    if note.exists() or not (folder / ARTIFACT).exists():  # one that diverged has no artifact
        return
    model = load_artifact(folder / ARTIFACT)
    run_id = track_and_register(
        model, folder / ARTIFACT, comparison=comparison, diagnosis=folder / DIAGNOSIS
    )
    write_file(note, json.dumps({"run": run_id}) + "\n")
