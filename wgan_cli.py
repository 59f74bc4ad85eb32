"""The `wgan` command: the one place that knows training and service, each only when it runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import UserError

if TYPE_CHECKING:
    from models.model import Model
    from training.engine.workers import Workers

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_REJECTED = 3
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: run it again and it goes on
EXIT_SIGINT = 130
PROGRESS_SECONDS = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except UserError as error:
        _complain(f"error: {' '.join(str(error).split())}")
        return EXIT_MISTAKE
    except BrokenPipeError:  # the reader of our output has gone, as with `wgan models | head`
        sys.stderr.close()
        return EXIT_FAILED
    except KeyboardInterrupt:
        if options.command in (_compare, _study):
            _complain("interrupted: the same command goes on from here")
            return EXIT_INTERRUPTED
        _complain("interrupted")
        return EXIT_SIGINT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        _complain(f"error: {message} (see {self.prog} --help)")
        sys.exit(EXIT_MISTAKE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wgan", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    data_help = (
        "a built-in data set; a .npy, .npz, .csv or .parquet file; a folder, .zip or .tar of "
        "images; or a URL of one of these"
    )
    model_help = "an artifact folder, or a registry name such as digits@champion"

    train = commands.add_parser(
        "train",
        help="train, judge, save and register a model",
        formatter_class=raw,
        epilog="example:\n  wgan train --preset 8gaussians --constraint gradient_penalty "
        "--steps 200 --out runs/first",
    )
    train.add_argument("--preset", required=True, metavar="NAME", help="settings to start from")
    train.add_argument("--data", metavar="D", help=data_help)
    train.add_argument("--constraint", metavar="KIND", help="the critic constraint")
    train.add_argument("--steps", metavar="N", help="generator steps")
    train.add_argument("--seed", metavar="S", help="of everything random")
    train.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    train.add_argument(
        "--set", action="append", default=[], metavar="k=v", help="such as training.batch_size=32"
    )
    train.add_argument("--no-register", action="store_true", help="leave MLflow alone")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument("--out", required=True, type=Path, metavar="DIR")
    train.set_defaults(command=_train)

    sample = commands.add_parser("sample", help="write samples to a file")
    sample.add_argument("model", metavar="MODEL", help=model_help)
    sample.add_argument("-n", type=int, default=16, metavar="N", help="how many")
    sample.add_argument("--seed", type=int, default=0, metavar="S")
    sample.add_argument("--class", dest="class_name", metavar="NAME", help="of a conditional model")
    sample.add_argument(
        "--out", required=True, type=Path, help=".png, .webp, .zip, .npz, .npy, .json or .csv"
    )
    sample.set_defaults(command=_sample)

    score = commands.add_parser("score", help="score image or array files with the critic")
    score.add_argument("model", metavar="MODEL", help=model_help)
    score.add_argument("files", nargs="+", type=Path, metavar="FILE")
    score.add_argument("--class", dest="class_name", metavar="NAME", help="which the items are of")
    score.add_argument("--json", action="store_true")
    score.set_defaults(command=_score)

    evaluate = commands.add_parser("evaluate", help="judge a model on held-out data again")
    evaluate.add_argument("model", metavar="MODEL", help=model_help)
    evaluate.add_argument("--data", metavar="D", help="default: the data it was trained on")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(command=_evaluate)

    diagnose = commands.add_parser(
        "diagnose",
        help="measure what goes wrong with a run's critic, and say what to do",
        formatter_class=raw,
        epilog="example:\n  wgan diagnose runs/first --out diagnosis.html",
    )
    diagnose.add_argument(
        "run", metavar="RUN", help=f"the --out of wgan train, finished or not; {model_help}"
    )
    diagnose.add_argument("--json", action="store_true")
    diagnose.add_argument("--out", type=Path, metavar="FILE.html", help="with a plot each")
    diagnose.set_defaults(command=_diagnose)

    compare = commands.add_parser(
        "compare",
        help="train several constraints alike and say which suits the data",
        formatter_class=raw,
        epilog="example:\n  wgan compare --data 8gaussians --constraints "
        "gradient_penalty,weight_clipping --seeds 3 --budget-seconds 20 --out runs/compared",
    )
    compare.add_argument("--data", required=True, metavar="D", help=data_help)
    compare.add_argument("--constraints", required=True, metavar="a,b,c", help="two kinds or more")
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="how many; default: 3")
    compare.add_argument("--preset", metavar="NAME", help="default: what suits the data")
    compare.add_argument(
        "--budget-seconds", type=float, metavar="S", help="of training, for each run"
    )
    compare.add_argument("--steps", type=int, metavar="N", help="generator steps, instead of time")
    compare.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once")
    compare.add_argument(
        "--set", action="append", default=[], metavar="k=v", help="such as training.batch_size=32"
    )
    compare.add_argument("--no-track", action="store_true", help="leave MLflow alone")
    compare.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="with the report; goes on in it"
    )
    compare.set_defaults(command=_compare)

    study = commands.add_parser("study", help="measure from scratch what a constraint does")
    of_study = study.add_subparsers(required=True, metavar="COMMAND")
    clipping = of_study.add_parser(
        "clipping",
        help="the seven claims against weight clipping, each borne out or not",
        formatter_class=raw,
        epilog="example:\n  wgan study clipping --jobs 2 --out runs/study",
    )
    clipping.add_argument("--full", action="store_true", help="overnight, not in minutes")
    clipping.add_argument("--jobs", type=int, default=2, metavar="N", help="at once; default: 2")
    clipping.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="with the report; goes on in it"
    )
    clipping.set_defaults(command=_study)

    data = commands.add_parser("data", help="look at a data set")
    of_data = data.add_subparsers(required=True, metavar="COMMAND")
    inspect = of_data.add_parser(
        "inspect",
        help="say what a data set becomes and what is wrong with it, and draw it",
        formatter_class=raw,
        epilog="example:\n  wgan data inspect photos.zip --size 32 --out photos.png",
    )
    inspect.add_argument("data", metavar="D", help=data_help)
    inspect.add_argument("--size", type=int, metavar="N", help="pixels: as data.size")
    inspect.add_argument("--out", type=Path, metavar="FILE.png", help="default: named after D")
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(command=_inspect)

    retrain = commands.add_parser(
        "retrain",
        help="train a challenger and promote it if the evidence allows",
        formatter_class=raw,
        epilog="exit codes: 0 promoted or nothing to do, 3 rejected, 75 interrupted: run it again, "
        "2 a mistake, 1 failed\n\nexample:\n  wgan retrain --config retrain.yaml",
    )
    retrain.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML or JSON")
    retrain.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    retrain.set_defaults(command=_retrain)

    models = commands.add_parser("models", help="list the registry's versions")
    models.add_argument("--json", action="store_true")
    models.set_defaults(command=_models)

    promote = commands.add_parser("promote", help="make a version the champion")
    promote.add_argument("model", metavar="NAME@VERSION")
    promote.add_argument("--why", default="promoted by hand")
    promote.set_defaults(command=_promote)

    rollback = commands.add_parser("rollback", help="make the previous champion champion again")
    rollback.add_argument("name", metavar="NAME")
    rollback.add_argument("--why", default="rolled back by hand")
    rollback.set_defaults(command=_rollback)

    w1 = commands.add_parser(
        "w1",
        help="measure the Wasserstein-1 distance between two sets of samples with a critic",
        formatter_class=raw,
        epilog="example:\n  wgan w1 a.npy b.npy --json w1.json",
    )
    w1.add_argument("a", type=Path, metavar="A", help=".npy: N x D, or images")
    w1.add_argument("b", type=Path, metavar="B", help="likewise; the critic is larger on A")
    w1.add_argument("--constraint", metavar="KIND", help="default: the best found")
    w1.add_argument("--seed", type=int, default=0, metavar="S")
    w1.add_argument("--steps", type=int, default=4000, metavar="N", help="critic steps")
    w1.add_argument("--batch-size", type=int, default=512, metavar="B")
    w1.add_argument("--json", type=Path, required=True, metavar="OUT")
    w1.add_argument("--gradients-at", type=Path, metavar="P.npy", help="points like A's items")
    w1.add_argument("--gradients-out", type=Path, metavar="G.npy", help="the gradients there")
    w1.set_defaults(command=_w1)

    serve = commands.add_parser("serve", help="serve a model over HTTP")
    serve.add_argument("--port", type=int, default=3000, metavar="P")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument(
        "--model", metavar="MODEL", help=f"{model_help}; default: the environment's WGAN_MODEL"
    )
    serve.add_argument(
        "--workers", type=int, metavar="N", help="processes; default: WGAN_WORKERS, or 1"
    )
    serve.set_defaults(command=_serve)
    return parser


def _train(options: argparse.Namespace) -> int:
    overrides = dict(map(_assignment, options.set))
    for key, value in (("training.steps", options.steps), ("training.seed", options.seed)):
        if value is not None:
            overrides[key] = _value(value)
    from training.presets import build_config

    # Mistakes in the configuration are told before torch's slower parts are imported.
    config = build_config(options.preset, options.data, options.constraint, overrides)

    from training.engine.loop import Diverged, Interrupted
    from training.run import run_training

    workers = _workers(options.device)
    stop = _StopRequest()
    try:
        registered = run_training(
            config,
            options.out,
            workers.device,
            resume=options.resume,
            register=not options.no_register,
            say=_say if workers.is_main else lambda line: None,
            report=_Progress(config.training.steps) if workers.is_main else lambda row: None,
            stop_requested=lambda: stop.requested,
            workers=workers,
        )
    except Interrupted as error:
        _complain(f"{error}; go on with --resume")
        return EXIT_INTERRUPTED
    except Diverged as error:
        _complain(f"error: {error}")
        return EXIT_FAILED
    if not workers.is_main:
        return 0
    _say(f"artifact: {options.out / 'artifact'}")
    if registered:
        _say(f"registered: {registered}")
    return 0


def _workers(device: str | None) -> Workers:
    import torch

    from training.engine.workers import join

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device; use --device cpu")
    return join(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _retrain(options: argparse.Namespace) -> int:
    from training.retraining.config import read_config
    from training.retraining.cycle import retrain

    settings = read_config(options.config)
    steps = settings.build().training.steps
    from training.engine.loop import Diverged

    workers = _workers(options.device)
    stop = _StopRequest()
    try:
        outcome = retrain(
            settings,
            say=_say if workers.is_main else lambda line: None,
            report=_Progress(steps) if workers.is_main else lambda row: None,
            stop_requested=lambda: stop.requested,
            workers=workers,
        )
    except Diverged as error:
        _complain(f"error: {error}")
        return EXIT_FAILED
    if workers.is_main:
        for gate in outcome.decision.gates if outcome.decision else []:
            _say(f"  {'passed' if gate.passed else 'FAILED'}  {gate.name:14s} {gate.reason}")
        _say(f"{outcome.kind}: {outcome.reason}")
        if outcome.folder:
            _say(f"decision: {outcome.folder / 'decision.json'}")
    codes = {"rejected": EXIT_REJECTED, "interrupted": EXIT_INTERRUPTED}
    return codes.get(outcome.kind, 0)


class _StopRequest:
    """Turns the first SIGTERM or SIGINT into a request; a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


class _Progress:
    """A bar on a terminal; elsewhere a line every few seconds."""

    def __init__(self, steps: int) -> None:
        from tqdm import tqdm

        self.steps = steps
        self.bar = tqdm(total=steps, unit="step") if sys.stderr.isatty() else None
        self.last = 0.0

    def __call__(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        figures = (
            f"critic gap {row['critic_gap']:.4g}, gradient norm {row['gradient_norm']:.3f}, "
            f"{row['samples_per_second']:.0f} samples/s"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(figures)
            self.bar.update(step - self.bar.n)
            if step == self.steps:
                self.bar.close()
        elif time.monotonic() - self.last > PROGRESS_SECONDS or step == self.steps:
            self.last = time.monotonic()
            _say(f"step {step}/{self.steps}: {figures}")


def _sample(options: argparse.Namespace) -> None:
    from models.formats import SAMPLE_FORMATS, encode

    suffix = options.out.suffix.removeprefix(".")
    if suffix not in SAMPLE_FORMATS:
        raise UserError(f"--out {options.out}: ends in none of {', '.join(SAMPLE_FORMATS)}")
    if options.n < 1:
        raise UserError(f"-n {options.n}: ask for at least one sample")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed {options.seed}: must be from 0 to 2**63 - 1")
    model = _load(options.model)
    label = None if options.class_name is None else model.label(options.class_name)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    samples = model.sample(options.seed, options.n, label)
    options.out.write_bytes(encode(samples, suffix, model.run.data.columns))
    _say(f"wrote {options.n} samples to {options.out}")


def _score(options: argparse.Namespace) -> None:
    import numpy as np

    from models.formats import read_items

    model = _load(options.model)
    label = None if options.class_name is None else model.label(options.class_name)
    names, scores, percentiles = [], [], []
    for path in options.files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            items = model.items(read_items(path.read_bytes(), path.name))
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None
        found = model.score(items, None if label is None else np.full(len(items), label))
        scores += found.tolist()
        percentiles += model.percentiles(found).tolist()
        names += [f"{path}[{i}]" if len(items) > 1 else str(path) for i in range(len(items))]
    if options.json:
        print(json.dumps({"items": names, "scores": scores, "percentiles": percentiles}))
        return
    for name, score, percentile in zip(names, scores, percentiles, strict=True):
        print(f"{score:12.5g}   percentile among real {percentile:5.1f}   {name}")


def _evaluate(options: argparse.Namespace) -> None:
    from models.artifact import load_artifact
    from training.data.dataset import load_data
    from training.judging.evaluate import judge
    from training.judging.extractors import artifact_weights, load_extractor

    with _artifact(options.model) as folder:
        model, weights = load_artifact(folder), artifact_weights(folder)
    config, judged = model.run.config, model.run.results.extractor
    source = options.data or config.data.source
    data = load_data(config.data.model_copy(update={"source": source}))
    if data.card.shape != model.shape:
        raise UserError(f"{source}: items of shape {data.card.shape}; the model's: {model.shape}")
    # The same features as in the run, or none: figures over others would not compare.
    extractor = (
        load_extractor(judged.name, config.evaluation, judged.sha256, weights) if judged else None
    )
    results = judge(model, data, config.evaluation, extractor)
    if options.json:
        print(results.model_dump_json(indent=2))
        return
    for name, f in results.figures.items():
        floor = "" if f.floor is None else f"   floor {f.floor:.4g}"
        print(f"{name:24s} {f.value:9.4g}   [{f.interval[0]:.4g}, {f.interval[1]:.4g}]{floor}")


def _diagnose(options: argparse.Namespace) -> None:
    if options.out and options.out.suffix != ".html":
        raise UserError(f"--out {options.out}: the page is an .html file")
    from training.judging.doctor import diagnose_run, in_one_line
    from training.reporting.diagnosis import findings_page

    with _artifact(options.run) as folder:
        findings = diagnose_run(folder)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(findings_page(f"Diagnosis of {options.run}", findings))
    if options.json:
        print(json.dumps([finding.model_dump(mode="json") for finding in findings], indent=2))
        return
    for finding in findings:
        print(in_one_line(finding))
    if options.out:
        _say(f"page: {options.out}")


def _compare(options: argparse.Namespace) -> None:
    for name, value in (("--seeds", options.seeds), ("--jobs", options.jobs)):
        if value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if options.steps is not None and options.budget_seconds is not None:
        raise UserError("--steps and --budget-seconds exclude each other: give one")
    for name, value in (("--steps", options.steps), ("--budget-seconds", options.budget_seconds)):
        if value is not None and not value > 0:
            raise UserError(f"{name} {value}: must be above 0")
    from training.lab.comparison import REPORT, compare, table_rows

    summary = compare(
        options.data,
        options.constraints.split(","),
        options.seeds,
        options.out,
        preset=options.preset,
        budget_seconds=options.budget_seconds,
        steps=options.steps,
        overrides=dict(map(_assignment, options.set)),
        processes=options.jobs,
        track=not options.no_track,
        say=_say,
    )
    header, rows = table_rows(summary)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    _say(f"recommended: {summary['recommendation']['reason']}")
    _say(f"report: {options.out / REPORT}")


def _study(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    from training.lab.study import FULL, QUICK, study

    scale = FULL if options.full else QUICK
    for claim in study(options.out, scale, processes=options.jobs, say=_say):
        _say(f"{claim.verdict}: {claim.claim} ({claim.found})")
    _say(f"report: {options.out / 'report.html'}")


def _inspect(options: argparse.Namespace) -> None:
    from models.config import parse_data
    from training.data import inspection
    from training.data.dataset import load_data
    from training.reporting.preview import picture

    # Whatever is broken is told of: here it is no reason to stop.
    settings = {"source": options.data, "size": options.size, "max_broken_fraction": 0.999}
    data = load_data(parse_data(settings))
    card, problems = data.card, inspection.problems(data)
    out = options.out or Path(f"{card.name}.png")
    if out.suffix != ".png":
        raise UserError(f"--out {out}: the picture is a .png")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(picture(data))
    if options.json:
        answer = {"card": card.model_dump(mode="json"), "problems": problems, "picture": str(out)}
        print(json.dumps(answer, indent=2))
        return
    for key, value in card.model_dump(mode="json").items():
        if value not in ([], None):
            print(f"{key:18s} {value}")
    for problem in problems:
        print(f"problem: {problem}")
    _say(f"picture: {out}")


def _w1(options: argparse.Namespace) -> None:
    if (options.gradients_at is None) != (options.gradients_out is None):
        raise UserError("--gradients-at and --gradients-out go together: give both or neither")
    for name, value in (("--steps", options.steps), ("--batch-size", options.batch_size)):
        if value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed {options.seed}: must be from 0 to 2**31 - 1")
    import numpy as np

    from training.lab.w1 import estimate, load_samples

    a, b = load_samples(options.a), load_samples(options.b)
    points = load_samples(options.gradients_at) if options.gradients_at else None
    report, gradient = estimate(
        a,
        b,
        options.constraint,
        seed=options.seed,
        steps=options.steps,
        batch_size=options.batch_size,
    )
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    if points is not None:
        with options.gradients_out.open("wb") as file:
            np.save(file, gradient(points))
    _say(f"W1 {report['w1']:.5g}, at least {report['lower']:.5g} (95% confidence)")
    _say(
        f"discrete estimate {report['plug_in']:.5g}, of which {report['plug_in_bias']:.5g} or so "
        f"is bias at {report['plug_in_samples']} samples"
    )


def _models(options: argparse.Namespace) -> None:
    from models import registry

    rows = registry.versions()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        _say(f"no models in {registry.tracking_uri()}; `wgan train` registers one")
    for row in rows:
        aliases = " ".join(f"@{alias}" for alias in row["aliases"])
        constraint = row["tags"].get("constraint", "")
        print(f"{row['name']}@{row['version']:4s} {row['created']}  {constraint:20s} {aliases}")


def _promote(options: argparse.Namespace) -> None:
    from models import artifact, registry

    name, version = registry.resolve(options.model)
    with tempfile.TemporaryDirectory() as folder:  # a broken artifact must not become champion
        artifact.verify(registry.download(f"{name}@{version}", Path(folder)))
    before = registry.promote(name, version, options.why)
    _say(f"{name}@{version} is champion" + (f" (was {name}@{before})" if before else ""))


def _rollback(options: argparse.Namespace) -> None:
    from models import registry

    before, now = registry.rollback(options.name, options.why)
    _say(f"{options.name}@{now} is champion again (was {options.name}@{before})")


def _serve(options: argparse.Namespace) -> None:
    import os

    model = options.model or os.environ.get("WGAN_MODEL")
    if not model:
        raise UserError("name a model: wgan serve --model MODEL, or set WGAN_MODEL")
    _check(model)
    from service.server import serve

    serve(model, options.host, options.port, options.workers)


def _check(model: str) -> None:
    """Tell a mistake here, in one line, and not by a server that is never ready."""
    from models import registry
    from models.errors import RegistryError

    if not registry.is_reference(model):
        _load(model)
        return
    try:
        registry.resolve(model)
    except RegistryError as error:
        if registry.is_absent(error) or error.__cause__ is None:  # or MODEL is misspelt
            raise
        # What it last served may be in its cache, and the registry may come back.
        _complain(f"the registry does not answer: {error}")


def _load(model: str) -> Model:
    from models.artifact import load_artifact

    with _artifact(model) as folder:
        return load_artifact(folder)


@contextlib.contextmanager
def _artifact(model: str) -> Iterator[Path]:
    """The folder of an artifact, for a while."""
    from models import registry

    if not registry.is_reference(model):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield registry.download(model, Path(folder))


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write key=value, such as training.batch_size=32")
    return key, _value(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
