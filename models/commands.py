"""Commands on finished models: sample, score, list and promote; and the constraints there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from models.command_line import ClassOption, JsonOption, ModelArgument, new_app
from models.errors import DataError, ShapeError, UserError

app = new_app()


def _at_least_one(count: int) -> int:
    if count < 1:
        raise UserError(f"-n {count}: ask for at least one sample")
    return count


@app.command()
def sample(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help=".png, .webp, .zip, .npz, .npy, .json or .csv")
    ],
    n: Annotated[
        int, typer.Option("-n", metavar="N", help="how many, 1 or more", callback=_at_least_one)
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, metavar="S")] = 0,
    class_name: ClassOption = None,
) -> None:
    """Write samples to a file."""
    from models.formats import SAMPLE_FORMATS, encode

    suffix = out.suffix.removeprefix(".")
    if suffix not in SAMPLE_FORMATS:
        raise UserError(f"--out {out}: ends in none of {', '.join(SAMPLE_FORMATS)}")
    from models.progress import say
    from models.trained import load

    trained = load(model)
    samples = trained.sample(seed, n, class_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encode(samples, suffix, trained.columns))
    say(f"wrote {n} samples to {out}")


@app.command()
def score(
    model: ModelArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="images or arrays")],
    class_name: ClassOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score image or array files with the critic."""
    from models.formats import read_items
    from models.trained import load

    trained = load(model)
    names, scores, percentiles = [], [], []
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            items = read_items(path.read_bytes(), path.name)
            of_file = trained.score(items, class_name)
        except (DataError, ShapeError) as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None
        scores += of_file.tolist()
        percentiles += trained.percentiles(of_file).tolist()
        names += [f"{path}[{i}]" if len(items) > 1 else str(path) for i in range(len(items))]
    if as_json:
        print(json.dumps({"items": names, "scores": scores, "percentiles": percentiles}))
        return
    for name, of_item, percentile in zip(names, scores, percentiles, strict=True):
        print(f"{of_item:12.5g}   percentile among real {percentile:5.1f}   {name}")


@app.command("models")
def list_models(as_json: JsonOption = False) -> None:
    """List the registry's versions."""
    from models import registry

    rows = registry.versions()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"no models in {registry.tracking_uri()}; `wgan train` registers one")
    for row in rows:
        aliases = " ".join(f"@{alias}" for alias in row["aliases"])
        constraint = row["tags"].get("constraint", "")
        print(f"{row['name']}@{row['version']:4s} {row['created']}  {constraint:20s} {aliases}")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    why: Annotated[str, typer.Option(help="for the history")] = "promoted by hand",
) -> None:
    """Make a version the champion."""
    from models import artifact, registry
    from models.progress import say
    from models.trained import artifact_folder

    name, version = registry.resolve(model)
    with artifact_folder(f"{name}@{version}") as folder:
        artifact.verify(folder)  # a broken artifact must not become champion
    before = registry.promote(name, version, why)
    say(f"{name}@{version} is champion" + (f" (was {name}@{before})" if before else ""))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    why: Annotated[str, typer.Option(help="for the history")] = "rolled back by hand",
) -> None:
    """Make the previous champion champion again."""
    from models import registry
    from models.progress import say

    before, now = registry.rollback(name, why)
    say(f"{name}@{now} is champion again (was {name}@{before})")


@app.command()
def constraints(as_json: JsonOption = False) -> None:
    """List the critic constraints: what each guarantees, and its hyperparameters."""
    from models.record import constraint_cards

    cards = constraint_cards()
    if as_json:
        print(json.dumps([card.model_dump(mode="json") for card in cards], indent=2))
        return
    for card in cards:
        print(card.kind)
        print(f"  {card.guarantee}")
        for name, default in card.hyperparameters.items():
            print(f"  constraint.{name}={json.dumps(default)}")
        print()
