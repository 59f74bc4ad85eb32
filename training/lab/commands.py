"""Commands of the lab: compare constraints, study clipping, measure W1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from models.command_line import (
    DATA_HELP,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    MODEL_HELP,
    DeviceOption,
    SetOption,
    StopRequest,
    assignments,
    complain,
    data_assignments,
    duration,
    example,
    new_app,
)
from models.errors import AwayError, UserError
from training.commands import TrainingDevice, constraint_kinds, preset_names

app = new_app()
study_app = new_app("Measure from scratch what a constraint does.")
app.add_typer(study_app, name="study")

PresetOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="default: what suits the data", autocompletion=preset_names),
]
LabFolder = Annotated[Path, typer.Option(metavar="DIR", help="with the report; goes on in it")]
MAX_SAID = 5
"""Columns that changed, at most, that `wgan w1` says."""


@app.command(
    epilog=example(
        "wgan compare --data 8gaussians --constraints gradient_penalty,weight_clipping "
        "--seeds 3 --budget-seconds 20 --out runs/compared"
    )
)
def compare(
    data: Annotated[str, typer.Option(metavar="D", help=DATA_HELP)],
    constraints: Annotated[str, typer.Option(metavar="a,b,c", help="two kinds or more")],
    out: LabFolder,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="how many")] = 3,
    preset: PresetOption = None,
    budget_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="of training, for each run")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="generator steps, instead of time")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="runs at once")] = 1,
    settings: SetOption = None,
    no_track: Annotated[bool, typer.Option("--no-track", help="leave MLflow alone")] = False,
) -> int:
    """Train several constraints alike and say which suits the data."""
    if steps is not None and budget_seconds is not None:
        raise UserError("--steps and --budget-seconds exclude each other: give one")
    if budget_seconds is not None and not budget_seconds > 0:
        raise UserError(f"--budget-seconds {budget_seconds}: must be above 0")
    overrides = assignments(settings)
    from training.engine.runs import Diverged
    from training.lab.comparison import REPORT
    from training.lab.comparison import compare as run_comparison
    from training.lab.comparison.statistics import table_rows
    from training.progress import say

    try:
        summary = run_comparison(
            data,
            constraints.split(","),
            seeds,
            out,
            preset=preset,
            budget_seconds=budget_seconds,
            steps=steps,
            overrides=overrides,
            processes=jobs,
            track=not no_track,
            say=say,
        )
    except KeyboardInterrupt:
        return _goes_on()
    except Diverged as error:
        complain(f"error: {error}")
        return EXIT_FAILED
    header, rows = table_rows(summary)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    say(f"recommended: {summary['recommendation']['reason']}")
    say(f"report: {out / REPORT}")
    return 0


@app.command(
    epilog=example("wgan tune --data digits --budget 10m --jobs 2 --out runs/tuned --no-register")
)
def tune(
    data: Annotated[str, typer.Option(metavar="D", help=DATA_HELP)],
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="of everything, such as 90s, 30m or 2h")
    ],
    out: LabFolder,
    preset: PresetOption = None,
    constraints: Annotated[
        str | None, typer.Option(metavar="a,b,c", help="to choose from; default: three")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LOW..HIGH|A,B", help="search this too, or in this range"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="end with so many, though there is time")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="S")] = 0,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="trials at once")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL|FILE", help="by which several machines search together"),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="of the search in a storage; default: the model's name"),
    ] = None,
    only_trials: Annotated[
        bool, typer.Option("--only-trials", help="leave the winner to another machine")
    ] = False,
    device: TrainingDevice = None,
    settings: SetOption = None,
    no_register: Annotated[bool, typer.Option("--no-register", help="leave MLflow alone")] = False,
) -> int:
    """Search for a constraint and settings, and train the winner."""
    seconds = duration(budget)
    overrides = assignments(settings)
    from training.engine.runs import Diverged, Interrupted
    from training.engine.workers import join_workers
    from training.lab.tuning import tune as run_search
    from training.lab.tuning.space import CONSTRAINTS, parse_settings
    from training.lab.tuning.winner import REPORT
    from training.progress import say

    try:
        answer = run_search(
            data,
            seconds,
            out,
            preset=preset,
            constraints=constraints.split(",") if constraints else CONSTRAINTS,
            searched=parse_settings(search or []),
            overrides=overrides,
            max_trials=trials,
            processes=jobs,
            seed=seed,
            storage=storage,
            study_name=study,
            only_trials=only_trials,
            register=not no_register,
            device=join_workers(device).device.type,
            say=say,
            stop_requested=StopRequest(),
        )
    except (KeyboardInterrupt, Interrupted):
        return _goes_on()
    except Diverged as error:
        complain(f"error: {error}")
        return EXIT_FAILED
    except AwayError as error:
        complain(f"error: {error}")
        return _goes_on()
    if answer is not None:
        say(f"alone: {answer['command']}")
        say(f"report: {out / REPORT}")
    return 0


@study_app.callback()
def study() -> None:
    """Keep `clipping` a command of its own: a group of one command would become it."""


@study_app.command(epilog=example("wgan study clipping --jobs 2 --out runs/study"))
def clipping(
    out: LabFolder,
    full: Annotated[bool, typer.Option("--full", help="in an hour, not in minutes")] = False,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="at once")] = 2,
) -> int:
    """Judge the seven claims against weight clipping: each borne out or not."""
    from training.lab.study import study as run_study
    from training.lab.study.settings import FULL_SCALE, QUICK_SCALE
    from training.progress import say

    try:
        for claim in run_study(out, FULL_SCALE if full else QUICK_SCALE, processes=jobs, say=say):
            say(f"{claim.verdict}: {claim.claim} ({claim.found})")
    except KeyboardInterrupt:
        return _goes_on()
    say(f"report: {out / 'report.html'}")
    return 0


@app.command(epilog=example("wgan w1 digits@champion heldout/ --json w1.json"))
def w1(
    a: Annotated[str, typer.Argument(metavar="A", help=f"a model: {MODEL_HELP}; or {DATA_HELP}")],
    b: Annotated[str, typer.Argument(metavar="B", help="likewise; the critic is larger on A")],
    report: Annotated[Path, typer.Option("--json", metavar="OUT", help="the report's file")],
    constraint: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="default: the best found", autocompletion=constraint_kinds
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="S")] = 0,
    samples: Annotated[
        int | None,
        typer.Option(
            "-n", min=1, metavar="N", help="of a model; default: as many as the other side has"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="critic steps; default: 4000")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="of fitting, instead of steps")
    ] = None,
    until_converged: Annotated[
        bool, typer.Option("--until-converged", help="double the steps until that brings nothing")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="a page that shows what differs")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="B")] = 512,
    device: DeviceOption = "cpu",
    gradients_at: Annotated[
        Path | None, typer.Option(metavar="P.npy", help="points like A's items")
    ] = None,
    gradients_out: Annotated[
        Path | None, typer.Option(metavar="G.npy", help="the gradients there")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Measure the Wasserstein-1 distance between two sets of samples with a critic."""
    if (gradients_at is None) != (gradients_out is None):
        raise UserError("--gradients-at and --gradients-out go together: give both or neither")
    told = data_assignments(settings)
    import io

    import numpy as np

    from models.outputs import require_file, save
    from training.lab.changes import found_in
    from training.lab.measure import data_config, measure
    from training.lab.sets import load_sets, read_points
    from training.lab.w1_page import w1_page
    from training.progress import phase, say

    for file in (report, out, gradients_out):
        require_file(file)
    config = data_config(a, told)
    with phase("reading A and B"):
        sets = load_sets(a, b, config, samples, seed)
        points = None
        if gradients_at is not None:
            points = read_points(str(gradients_at), config, sets)
    for line in sets.said:
        say(line)
    with phase("measuring W1"):
        distance = measure(
            sets,
            constraint,
            seed=seed,
            steps=steps,
            seconds=seconds,
            until_converged=until_converged,
            batch_size=batch_size,
            device=device,
        )
    found = distance.report
    save(report, json.dumps(found, indent=2) + "\n")
    if out is not None:
        save(out, w1_page(found, sets, _called(a), _called(b)))
    if points is not None and gradients_out is not None:
        found_there = distance.gradient(points.reshape(-1, *sets.a.shape[1:])).reshape(points.shape)
        np.save(content := io.BytesIO(), found_there)
        save(gradients_out, content.getvalue())
    for caution in found["cautions"]:
        say(f"caution: {caution}")
    say(found["verdict"])
    changed = found_in(found)
    for change in changed[:MAX_SAID]:
        say(f"changed by itself: {change.in_words}")
    if len(changed) > MAX_SAID:
        say(f"{len(changed) - MAX_SAID} more changed by themselves")
    low, high = found["interval"]
    say(
        f"W1 {found['w1']:.5g}, at least {found['lower']:.5g} (95% confidence); about {low:.5g} to "
        f"{high:.5g}; {sets.units}"
    )
    say(
        f"p by permutation of {found['heldout'][0]} and {found['heldout'][1]} held-out samples; "
        f"{found['steps']} critic steps" + (f": {found['stopped']}" if found["stopped"] else "")
    )
    say(
        f"discrete estimate {found['plug_in']:.5g}, of which {found['plug_in_bias']:.5g} or so "
        f"is bias at {found['plug_in_samples']} samples"
    )
    if out is not None:
        say(f"page: {out}")


def _called(source: str) -> str:
    """The last part of a path, or a registry name."""
    return source.rstrip("/").rpartition("/")[2] or source


def _goes_on() -> int:
    complain("interrupted: the same command goes on from here")
    return EXIT_INTERRUPTED
