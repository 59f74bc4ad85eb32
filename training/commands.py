"""Commands that train and judge: train, evaluate, diagnose, train-detector, data inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from models.command_line import (
    DATA_HELP,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    MODEL_HELP,
    DeviceKind,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SetOption,
    StopRequest,
    assignments,
    complain,
    data_assignments,
    duration,
    example,
    new_app,
    value,
)
from models.errors import UserError

if TYPE_CHECKING:
    from models.config import Config

app = new_app()
data_app = new_app("Look at a data set.")
app.add_typer(data_app, name="data")

TrainingDevice = Annotated[DeviceKind | None, typer.Option(help="default: cuda if there is one")]


def preset_names() -> list[str]:
    """Names of the presets; completes ``--preset`` in a shell."""
    from training.presets import PRESETS

    return list(PRESETS)


def constraint_kinds() -> list[str]:
    """Kinds of constraints; completes ``--constraint`` in a shell."""
    from models.constraints import CONSTRAINTS

    return list(CONSTRAINTS)


class _ListsItsNames(TyperCommand):
    """A command whose help ends with the presets and constraints there are."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the epilog; the names are looked up only now, since that imports torch."""
        for title, names in (("Presets", preset_names()), ("Constraints", constraint_kinds())):
            with formatter.section(title):
                formatter.write_text(", ".join(names))
        super().format_epilog(ctx, formatter)


@app.command(
    cls=_ListsItsNames,
    epilog=example(
        "wgan train --preset 8gaussians --constraint gradient_penalty --steps 200 --out runs/first"
    ),
)
def train(
    out: Annotated[Path, typer.Option(metavar="DIR")],
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="settings to start from", autocompletion=preset_names),
    ] = None,
    from_model: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="in place of --preset: a trained model, whose weights and settings it begins with",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="D", help=DATA_HELP)] = None,
    constraint: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="the critic constraint", autocompletion=constraint_kinds),
    ] = None,
    # The configuration checks these two, with a message that names training.steps or .seed.
    steps: Annotated[str | None, typer.Option(metavar="N", help="generator steps")] = None,
    seed: Annotated[str | None, typer.Option(metavar="S", help="seed of everything random")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="in place of steps: 90s, 30m or 2h; the best step is kept"
        ),
    ] = None,
    device: TrainingDevice = None,
    settings: SetOption = None,
    no_register: Annotated[bool, typer.Option("--no-register", help="leave MLflow alone")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue the run in --out; more --steps extend it"),
    ] = False,
) -> int:
    """Train, judge, save and register a model."""
    overrides = assignments(settings)
    for key, text in (("training.steps", steps), ("training.seed", seed)):
        if text is not None:
            overrides[key] = value(text)
    seconds = None if budget is None else duration(budget)
    if seconds is not None:
        overrides = _selecting(overrides)
    from training.presets import branch_config, build_config

    start = None
    if (preset is None) == (from_model is None):
        raise UserError("name --preset, or --from a trained model: one of the two")
    if preset is not None:
        # Mistakes in the configuration are told before torch's slower parts are imported.
        config = build_config(preset, data, constraint, overrides)
    else:
        from training.engine.origin import load_start

        start = load_start(str(from_model))
        config = branch_config(start.model.run.config, data, constraint, overrides)

    from training.engine.runs import Diverged, Interrupted
    from training.engine.workers import join_workers
    from training.progress import TrainingBar, no_report, say, silent
    from training.run import run_training

    workers = join_workers(device)
    if seconds is not None:
        _require_budget(config, workers.count)
    say = say if workers.is_main else silent
    try:
        registered = run_training(
            config,
            out,
            workers.device,
            resume=resume,
            register=not no_register,
            say=say,
            report=TrainingBar if workers.is_main else no_report,
            stop_requested=StopRequest(),
            budget_seconds=seconds,
            workers=workers,
            start=start,
        )
    except Interrupted as error:
        complain(f"{error}; go on with --resume")
        return EXIT_INTERRUPTED
    except Diverged as error:
        complain(f"error: {error}")
        return EXIT_FAILED
    say(f"artifact: {out / 'artifact'}")
    if registered:
        say(f"registered: {registered}")
    return 0


def _selecting(overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run within a budget, which keeps its best step unless they say how."""
    from models.selection import VALIDATION_SHARE

    if "training.steps" in overrides:
        raise UserError("--budget and --steps exclude each other: give one")
    chosen = {"data.validation_fraction": VALIDATION_SHARE, **overrides}
    if not any(key.partition(".")[0] == "selection" for key in overrides):
        chosen["selection"] = {}
    return chosen


def _require_budget(config: Config, processes: int) -> None:
    if config.selection is None:
        raise UserError("--budget: keeps the best step; leave selection=null out, or give --steps")
    if processes > 1:
        raise UserError("--budget: several processes would measure different times; give --steps")


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[
        str | None, typer.Option(metavar="D", help="default: the data it was trained on")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="of a table: pictures of each column")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Judge a model on held-out data again; --set says how the data are read."""
    if report and report.suffix != ".html":
        raise UserError(f"--report {report}: the page is an .html file")
    from models.outputs import require_file, save
    from models.trained import artifact_folder
    from training.judging.evaluate import judge_again
    from training.presets import build_config
    from training.progress import say, silent
    from training.reporting.pages import figures_in_words
    from training.reporting.table_report import table_report

    require_file(report)
    told = build_config("table", data or "", None, data_assignments(settings)).data
    with artifact_folder(model) as folder:
        judged, rows, results = judge_again(folder, data, silent if as_json else say, device, told)
    if report:
        save(report, table_report(judged, rows, results))
    if as_json:
        print(results.model_dump_json(indent=2))
        return
    for line in figures_in_words(results.figures):
        print(line)
    if report:
        say(f"page: {report}")


@app.command(epilog=example("wgan diagnose runs/first --out diagnosis.html"))
def diagnose(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help=f"the --out of wgan train, finished or not; {MODEL_HELP}"
        ),
    ],
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="with a plot each")] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Measure what goes wrong with a run's critic, and say what to do."""
    if out and out.suffix != ".html":
        raise UserError(f"--out {out}: the page is an .html file")
    from models.outputs import require_file, save
    from models.trained import artifact_folder
    from training.judging.doctor.diagnosis import diagnose_run, in_one_line
    from training.progress import phase, say
    from training.reporting.pages import findings_page

    require_file(out)
    with artifact_folder(run) as folder, phase("diagnosing"):
        findings = diagnose_run(folder, device)
    if out:
        save(out, findings_page(f"Diagnosis of {run}", findings))
    if as_json:
        print(json.dumps([finding.model_dump(mode="json") for finding in findings], indent=2))
        return
    for finding in findings:
        print(in_one_line(finding))
    if out:
        say(f"page: {out}")


@data_app.command(epilog=example("wgan data inspect photos.zip --size 32 --out photos.png"))
def inspect(
    data: Annotated[str, typer.Argument(metavar="D", help=DATA_HELP)],
    size: Annotated[int | None, typer.Option(metavar="N", help="pixels: as data.size")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="draw it too; by default no file")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a data set becomes and what is wrong with it."""
    if out and out.suffix != ".png":
        raise UserError(f"--out {out}: the picture is a .png")
    from models.outputs import require_file, save
    from models.tables import rule_shares
    from training.data import inspection
    from training.data.dataset import load_data
    from training.presets import build_config
    from training.progress import phase, say
    from training.reporting.preview import data_picture

    require_file(out)
    # Broken files are reported, however many there are: here they are no reason to stop.
    told = {"data.size": size, "data.max_broken_fraction": 0.999, **data_assignments(settings)}
    config = build_config("table", data, None, told).data
    with phase("loading the data"):
        dataset = load_data(config)
        problems = inspection.problems(dataset)
    card = dataset.card
    if out:
        save(out, data_picture(dataset))
    described = card.model_dump(mode="json")
    columns, rules = [], dict[str, float]()
    if card.table is not None:
        columns = inspection.describe_columns(card.table)
        rules = rule_shares(card.table, dataset.table)
        for key in ("table", "columns", "offset", "scale"):  # said column by column
            del described[key]
    if as_json:
        answer: dict[str, Any] = {"card": described, "problems": problems}
        answer |= {"picture": str(out)} if out else {}
        answer |= {"columns": columns} if columns else {}
        print(json.dumps(answer | ({"rules": rules} if rules else {}), indent=2))
        return
    for key, field in described.items():
        if field not in ([], None):
            print(f"{key:18s} {field}")
    for line in inspection.in_lines(columns) if columns else []:
        print(line)
    for rule, share in rules.items():
        print(f"rule: {rule}: {share:.4g} of the rows")
    for problem in problems:
        print(f"problem: {problem}")
    if out:
        say(f"picture: {out}")


@app.command("train-detector", epilog=example("wgan train-detector digits@champion --out found"))
def train_detector(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="a copy of the artifact, with the detector")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="D", help="default: the data it was trained on")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="of the encoder")] = 600,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="S", help="seed of everything random")
    ] = 0,
    device: DeviceOption = "cpu",
    register: Annotated[
        bool, typer.Option("--register", help="as a new version of the model's name")
    ] = False,
) -> None:
    """Give a model a detector of what does not belong, which `POST /v1/anomalies` asks."""
    from models.trained import artifact_folder
    from training.judging import detector
    from training.progress import say

    with artifact_folder(model) as folder:
        card = detector.train_detector(folder, out, data, steps, seed, device, say).card
    say(
        f"trained on {card.training_count} items, calibrated by {card.calibration_count} others: "
        f"the smallest p-value is {1 / (card.calibration_count + 1):.2g}"
    )
    say(f"artifact: {out}")
    if register:
        from models.artifact import load_artifact
        from training.tracking import track_and_register

        again = "remove it and repeat the command to register it"
        registered = track_and_register(load_artifact(out), out, again=again)
        say(f"registered: {registered}; `wgan promote {registered}` makes it the champion")


@app.command()
def presets(as_json: JsonOption = False) -> None:
    """List the presets: settings that are known to work, by name."""
    from training.presets import PRESETS

    if as_json:
        print(json.dumps(PRESETS, indent=2))
        return
    for name, preset in PRESETS.items():
        source = preset["data"].get("source", "your own: --data")
        networks = " and ".join(
            f"{preset[part]['architecture']} {part}" for part in ("generator", "critic")
        )
        count = preset["training"]["steps"]
        steps = f"{count} steps" if count else "as many steps as suit the data"
        print(f"{name:12s} data {source}; {networks}; {preset['constraint']['kind']}; {steps}")
