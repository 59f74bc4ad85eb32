"""The command that exports a model to other programs' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.command_line import ModelArgument, new_app

app = new_app()


@app.command()
def export(
    model: ModelArgument,
    to: Annotated[
        Literal["onnx", "torch-export"],
        typer.Option(help="ONNX, or a program of torch.export"),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="a new folder")],
    layout: Annotated[
        Literal["files", "triton", "kserve"],
        typer.Option(help="two files; a model repository of Triton; or that for KServe"),
    ] = "files",
) -> None:
    """Write generator and critic for other programs, checked against the model's own samples."""
    from models.export import folder
    from models.export.formats import require
    from models.model_names import settle
    from models.outputs import require_new
    from models.progress import phase, say
    from models.trained import load_served

    require_new(out)
    require(to)
    model, version = settle(model)
    made = load_served(model)
    with phase("exporting"):
        folder.export(made, to, out, layout, version)
    say(f"wrote generator and critic to {out}, checked against the model's samples and scores")
