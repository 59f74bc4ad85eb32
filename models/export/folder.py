"""An export: a folder of a model's graphs, checked against the model, with what they mean."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from models.durable import new_folder
from models.errors import ExportError
from models.export.check import check_critic, check_generator
from models.export.formats import SUFFIXES, Format, require, write
from models.export.graphs import graphs
from models.export.layouts import MANIFEST, Layout, kserve_manifest, triton_folder
from models.model import Model
from models.outputs import require_new, writing
from models.run_folder import SUMS

COLUMNS = "columns.json"
"""How a table's codes become rows, where an export has codes."""
LATENTS = (
    "Latent i of seed s is standard normal: Philox 4x64-10 of key (s, 0) at counter "
    "i * ceil(latent_size / 4); of each 64-bit word the upper 53 bits plus 1/2, times 2^-53, are "
    "uniform; each two are a radius sqrt(-2 ln u) and an angle 2 pi v, for cosine and sine "
    "(Box-Muller); the first latent_size of them, as float32. Code: docs/export.md"
)
CHECKS = {"generator": check_generator, "critic": check_critic}


def export(
    model: Model, target: Format, folder: Path, layout: Layout = "files", version: str = ""
) -> None:
    """Write a model's generator and critic for other programs; docs/export.md describes the files.

    Each file is opened with its format's own program and compared with the model's samples and
    scores. The folder appears whole or not at all.

    Args:
        model: on the CPU.
        target: the format of the graphs.
        folder: a new one.
        layout: how the files lie in it.
        version: the model's number in the registry, if it has one.

    Raises:
        ExportError: the layout or the network does not go with the format, or the written graphs do
            not agree with the model.
        UserError: the folder is there already or cannot be written, or a package that the format
            needs is not installed.
    """
    require_new(folder)
    if layout != "files" and target != "onnx":
        raise ExportError(f"--layout {layout}: Triton loads ONNX alone of these; take --to onnx")
    require(target)
    name = model.run.config.name
    with writing(folder), new_folder(folder) as new:
        for part, graph in graphs(model).items():
            file = new / (part + SUFFIXES[target])
            if layout != "files":
                with torch.no_grad():
                    output = graph.program.module()(*graph.inputs.values())
                file = triton_folder(new, f"{name}-{part}", graph, output)
            CHECKS[part](model, write(target, graph, file, metadata(model, part, version)))
        if layout == "kserve":
            (new / MANIFEST).write_text(kserve_manifest(name))
        if model.table is not None:
            (new / COLUMNS).write_text(codec(model))
        _write_sums(new)


def metadata(model: Model, part: str, version: str) -> dict[str, str]:
    """Describe a graph: what it is, where it is from and what its numbers mean."""
    run = model.run
    described = {
        "name": run.config.name,
        "version": version,
        "part": part,
        "constraint": run.constraint.kind,
        "data_kind": "table" if model.table else run.data.kind,
        "item_shape": json.dumps(model.shape),
        "latent_size": str(model.latent_size),
        "latents": LATENTS,
        "classes": json.dumps(model.classes),
        "columns": json.dumps(run.data.columns),
        "privacy": run.privacy.in_words if run.privacy else "",
        "artifact_sha256": model.digest,
    }
    return {key: value for key, value in described.items() if value not in ("", "[]")}


def codec(model: Model) -> str:
    """Describe the codes of a table as JSON: its schema, and where each column stands in a code."""
    assert model.table is not None
    places = {column.name: [at.start, at.stop] for column, at, _ in model.table.placed()}
    schema = model.table.model_dump(mode="json")
    coded = [column.model_dump(mode="json") for column in model.table.coded]
    return json.dumps({"places": places, "coded": coded, "schema": schema}, indent=2) + "\n"


def _write_sums(folder: Path) -> None:
    """List the SHA-256 of every file, as ``sha256sum --check`` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [(hashlib.sha256(f.read_bytes()).hexdigest(), f.relative_to(folder)) for f in files]
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for digest, name in sums))
