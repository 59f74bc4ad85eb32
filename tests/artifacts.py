"""Small real artifacts for tests: new networks, saved by the code that training saves with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import artifact, networks, record
from models.config import Config, parse_config
from models.images import encode_png, grid
from models.model import QUANTILE_LEVELS
from models.sampling import CHUNK, TABLE_CHUNK
from models.tables import TableSchema
from tests.mixed import people_schema

SHAPES = {"image": (1, 8, 8), "rgb": (3, 16, 12), "vector": (2,)}
ALL_SHAPES: dict[str, tuple[int, ...]] = {**SHAPES, "sequence": (4, 2), "table": (3,)}
ARCHITECTURES = {"vector": "mlp", "table": "mlp", "rows": "mlp", "sequence": "gru"}
SOURCES = {"vector": "8gaussians", "sequence": "ar2"}
COLUMNS = ["height", "mass", "age"]


def tiny_config(
    kind: str = "image", *, conditional: bool = False, **changes: dict[str, Any]
) -> Config:
    """A configuration of networks so small that a test may train them."""
    architecture = ARCHITECTURES.get(kind, "dcgan")
    values: dict[str, dict[str, Any]] = {
        "data": {"source": SOURCES.get(kind, "digits")},
        "generator": {"architecture": architecture, "width": 8, "depth": 2, "latent_size": 4},
        "critic": {"architecture": architecture, "width": 8, "depth": 2},
        "constraint": {"kind": "gradient_penalty"},
        "training": {"steps": 4, "batch_size": 8, "num_critic_steps": 2},
        "evaluation": {"samples": 200},  # of 2500, exact transport takes seconds
    }
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return parse_config({"name": "tiny", "conditional": conditional, **values})


def make_artifact(
    folder: Path,
    kind: str = "image",
    seed: int = 0,
    class_counts: dict[str, int] | None = None,
    table_schema: TableSchema | None = None,
    **changes: dict[str, Any],
) -> Path:
    """Save an artifact of untrained networks at ``folder`` and return the folder.

    With ``class_counts``, by the classes' names, it is class-conditional. One of the kind rows
    makes a table of mixed columns, of a schema if one is given.
    """
    torch.manual_seed(seed)
    counts = class_counts or {}
    config = tiny_config(kind, conditional=bool(counts), **changes)
    table = (table_schema or people_schema()) if kind == "rows" else None
    shape = ALL_SHAPES[kind] if table is None else (table.width,)
    features = 0 if len(shape) == 3 else shape[-1]
    generator, critic = networks.build_networks(
        config, shape, len(counts), [] if table is None else table.parts
    )
    generator.eval()
    critic.eval()
    run = record.Run(
        created="2026-01-01T00:00:00+00:00",
        config=config,
        constraint=record.constraint_card(config.constraint),
        data=record.DataCard(
            name=config.data.source,
            source="test",
            licence=None,
            kind="sequence" if kind == "sequence" else "vector" if features else "image",
            shape=shape,
            classes=list(counts),
            class_counts=list(counts.values()),
            columns=table.names if table else COLUMNS if kind == "table" else [],
            table=table,
            count=10,
            training_count=8,
            heldout_count=2,
            heldout_fraction=0.2,
            sha256="0" * 64,
            offset=[0.0] * features,
            scale=[1.0] * features,
        ),
        provenance={},
        engine=record.Engine(
            precision=config.serving.precision, chunk=TABLE_CHUNK if table else CHUNK
        ),
        results=record.Results(
            extractor=None,
            figures={
                "precision": record.Figure(
                    value=0.5, floor=0.9, interval=(0.4, 0.6), n=10, better="higher"
                )
            },
        ),
        findings=[
            record.Finding(
                name="low_diversity",
                value=0.44,
                threshold=0.3,
                present=True,
                severity="warning",
                evidence="coverage is 0.5",
                remedy="train longer",
            )
        ],
    )
    picture = np.zeros((4, 8, 8, 1), np.uint8)
    artifact.save_artifact(
        folder,
        run,
        generator,
        critic,
        training_state={f"generator.{k}": v for k, v in generator.state_dict().items()},
        quantiles=np.linspace(-1, 1, len(QUANTILE_LEVELS)),
        grid_png=encode_png(grid(picture)),
        card="# tiny\n",
    )
    return folder
