"""Commands on finished models: sample, score, list and promote; and the constraints there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.command_line import (
    ClassOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    complain,
    new_app,
)
from models.errors import DataError, ShapeError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from models.bulk import Sampling
    from models.model import Model

app = new_app()


def _at_least_one(count: int) -> int:
    if count < 1:
        raise UserError(f"-n {count}: ask for at least one sample")
    return count


SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, metavar="S")]


@app.command()
def sample(
    model: ModelArgument,
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help=".png, .webp, .zip, .npz, .npy, .json, .csv; of tables also .parquet or .arrow; "
            "with --format a folder, or a URL such as s3://bucket/prefix",
        ),
    ],
    n: Annotated[
        int, typer.Option("-n", metavar="N", help="how many, 1 or more", callback=_at_least_one)
    ] = 16,
    seed: SeedOption = 0,
    class_name: ClassOption = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="of a table's rows: cut=Ideal, 'price>5000', or income= for no value; may be "
            "repeated",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="of very many samples: write files of this format to the folder --out, and go on "
            "with those that are not there yet",
        ),
    ] = None,
    shards: Annotated[
        int, typer.Option(min=1, metavar="K", help="processes that share these files")
    ] = 1,
    shard: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="I",
            envvar="JOB_COMPLETION_INDEX",
            help="which of them this is, from 0; without it, this one writes all files",
        ),
    ] = None,
) -> None:
    """Write samples to a file, or very many to a folder."""
    from models.formats import PICTURES, SAMPLE_FORMATS, stream_samples
    from models.trained import load_served

    if format is not None:
        from models.bulk import FORMATS, SAMPLES_PER_FILE, Sampling

        if format not in FORMATS:
            raise UserError(f"--format {format}: is none of {', '.join(FORMATS)}")
        shard, shards = _share(shard, shards)
        made = load_served(model, device)
        wanted = Sampling(
            model=made.digest,
            count=n,
            seed=seed,
            format=format,
            class_name=class_name,
            where=where or [],
            samples_per_file=SAMPLES_PER_FILE,
        )
        _sample_into(out, made, wanted, shard, shards)
        return
    file = Path(out)
    suffix = file.suffix.removeprefix(".")
    if suffix not in SAMPLE_FORMATS:
        raise UserError(
            f"--out {out}: ends in none of {', '.join(SAMPLE_FORMATS)}; of a folder, say --format"
        )
    from models.outputs import require_file, save
    from models.progress import say
    from models.tables import parse_conditions

    require_file(file)
    made = load_served(model, device)
    label = None if class_name is None else made.label(class_name)
    conditions = parse_conditions(where or [])
    restrictions = made.restrict(conditions) if where else None
    samples = made.samples(seed, n, label=label, restrictions=restrictions)
    pieces = stream_samples(made, samples, n, suffix, conditions=conditions, seed=seed)
    save(file, pieces)
    drawn = ""
    if suffix in PICTURES and made.is_image and not made.scaling.is_uint8:
        drawn = "; the range of the data is drawn as grey levels, .npz has the numbers"
    say(f"wrote {n} samples to {out}{drawn}")


def _share(shard: int | None, shards: int) -> tuple[int, int]:
    """Check which shard of how many is asked for; without one, all is."""
    if shard is None:
        return 0, 1
    if shard >= shards:
        raise UserError(f"--shard {shard}: of {shards} shards the last is {shards - 1}")
    return shard, shards


def _sample_into(url: str, made: Model, wanted: Sampling, shard: int, shards: int) -> None:
    """Write very many samples as files of one size; see `models.bulk`."""
    from models.bulk import Folder, write_samples
    from models.progress import say
    from models.tables import parse_conditions

    write_samples(made, wanted, Folder(url), shard, shards, parse_conditions(wanted.where))
    say(f"shard {shard} of {shards} is in {url}")


@app.command()
def impute(
    model: ModelArgument,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="rows: CSV, Parquet or Arrow"),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help=".csv, .json, .npz, .parquet or .arrow")
    ],
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Fill the gaps of a table's rows; each seed gives another completion."""
    from models.formats import TABLE_FORMATS

    suffix = out.suffix.removeprefix(".")
    if suffix not in TABLE_FORMATS:
        raise UserError(f"--out {out}: ends in none of {', '.join(TABLE_FORMATS)}")
    from models.outputs import require_file, save
    from models.progress import say
    from models.tables.files import write_rows
    from models.trained import load_served

    require_file(out)
    made = load_served(model, device)
    if made.table is None:
        raise UserError(f"{model}: makes no table of mixed columns, which alone can be completed")
    rows = _rows(made, file)
    try:
        completed = made.impute(rows, seed)
    except DataError as error:
        raise UserError(f"{file}: {error}") from None
    save(out, write_rows([completed], suffix))
    say(f"wrote {len(completed)} rows to {out}")


@app.command()
def score(
    model: ModelArgument,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="images or arrays; of tables CSV, Parquet, Arrow or .npz; folders and archives",
        ),
    ],
    class_name: ClassOption = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="bring images of any size and channels to the model's")
    ] = False,
    anomalies: Annotated[
        bool,
        typer.Option("--anomalies", help="p-values of the model's detector instead of scores"),
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Score the items in image or array files, or the rows in a table's, with the critic."""
    from models.item_files import read_files
    from models.trained import load

    if anomalies and class_name is not None:
        raise UserError("--anomalies: the detector does not look at classes; leave --class out")
    trained = load(model, device)
    detector = trained.detector if anomalies else None
    names, found = list[str](), dict[str, list[float]]()
    for batch in read_files(trained.model, files, resize, complain):
        try:
            if detector is None:
                scores = trained.score(batch.items, class_name)
                answers = {"scores": scores, "percentiles": trained.percentiles(scores)}
            else:
                answers = detector.examine(trained.checked(batch.items))._asdict()
        except (DataError, ShapeError) as error:
            raise UserError(f"{batch.names[0].partition('[')[0]}: {error}") from None
        names += batch.names
        for key, values in answers.items():
            found.setdefault(key, []).extend(values.tolist())
    if as_json:
        behind = {"calibration_items": len(detector.calibration)} if detector else {}
        print(json.dumps({"items": names, **found, **behind}))
        return
    line = "{:12.5g}   percentile among real {:5.1f}   {}"
    if detector:
        line = "p-value {:8.3g}   distance {:10.4g}   {}"
    for name, *numbers in zip(names, *found.values(), strict=True):
        print(line.format(*numbers, name))


def _rows(model: Model, path: Path) -> pa.Table:
    """Read a file of rows for a model; a CSV file as it was told in training, or else found."""
    from models.progress import say
    from models.tables.reading.texts import decompressed
    from models.tables.records import read_rows

    config = model.run.config.data.csv
    return read_rows(decompressed(_content(path)), str(path), model.table, config, say)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path.read_bytes()


@app.command("models")
def list_models(as_json: JsonOption = False) -> None:
    """List the registry's versions."""
    from models import registry
    from models.progress import say

    rows = registry.versions()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        say(f"no models in {registry.tracking_uri()}; `wgan train` registers one")
    for row in rows:
        aliases = " ".join(f"@{alias}" for alias in row["aliases"])
        tags = row["tags"]
        before = [f"from {tags['parent']}"] if "parent" in tags else []
        before += [f"extended {tags['extended']}"] if "extended" in tags else []
        constraint = tags.get("constraint", "")
        words = "  ".join(filter(None, [aliases, *before]))
        print(f"{row['name']}@{row['version']:4s} {row['created']}  {constraint:20s} {words}")


SigningKeyOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="WGAN_SIGNING_KEY", help="private key in PEM that signs"),
]


@app.command()
def sign(model: ModelArgument, key: SigningKeyOption = None) -> None:
    """Sign an artifact, here or in the registry, so that services can tell whose it is."""
    from models import signing
    from models.artifact import FETCHED
    from models.model_names import locate, resolve
    from models.progress import say
    from models.trained import artifact_folder

    if key is None:
        raise UserError(f"name the private key: --key FILE, or {signing.SIGNING_KEY}")
    found = locate(model)
    if isinstance(found, Path):
        say(f"signed: {signing.sign(found, key)}")
        return
    name, version = resolve(found)
    with artifact_folder(f"{name}@{version}", FETCHED) as folder:
        signing.sign_version(name, version, folder, key)
    say(f"signed: {name}@{version}")


@app.command()
def verify(
    model: ModelArgument,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            envvar="WGAN_TRUSTED_KEYS",
            help="public key in PEM, or a folder of them, one of which must have signed it",
        ),
    ] = None,
) -> None:
    """Check every file of an artifact against its checksum, and its signature if keys are named."""
    from models import artifact, signing
    from models.trained import artifact_folder

    keys = None if key is None else signing.read_keys(key)
    with artifact_folder(model) as folder:
        digest = artifact.verify(folder)
        signed = "its signature was not checked: name keys by --key"
        if keys is not None:
            signed = f"signed by {signing.check_signature(folder, keys).key}"
    print(f"{model}: no file has changed, digest {digest}; {signed}")


ForceOption = Annotated[
    str | None,
    typer.Option(
        metavar="REASON",
        help="replace a champion of other columns, sizes or classes; the reason becomes a tag",
    ),
]


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    why: Annotated[str, typer.Option(help="for the history")] = "promoted by hand",
    force: ForceOption = None,
    key: SigningKeyOption = None,
) -> None:
    """Make a version the champion; with a key, sign it before."""
    from models import artifact, champions
    from models.model_names import require_version
    from models.progress import say
    from models.signing import sign_version
    from models.trained import artifact_folder

    name, version = require_version(model)
    with artifact_folder(f"{name}@{version}") as folder:
        artifact.verify(folder)  # a broken artifact must not become champion
        if key is not None:
            sign_version(name, version, folder, key)
    before = champions.promote(name, version, why, force)
    say(f"{name}@{version} is champion" + _instead_of(name, before))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    why: Annotated[str, typer.Option(help="for the history")] = "rolled back by hand",
    force: ForceOption = None,
) -> None:
    """Make the previous champion champion again."""
    from models import champions
    from models.model_names import require_name
    from models.progress import say

    require_name(name)
    before, now = champions.rollback(name, why, force)
    say(f"{name}@{now} is champion again" + _instead_of(name, before))


def _instead_of(name: str, before: str | None) -> str:
    return f" (was {name}@{before})" if before else " (there was none)"


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
