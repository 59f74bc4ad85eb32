"""The command `wgan retrain`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from models.command_line import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REJECTED,
    StopRequest,
    complain,
    example,
    new_app,
)
from models.errors import UserError
from training.commands import TrainingDevice

app = new_app()


@app.command(
    epilog="exit codes: 0 promoted or nothing to do, 3 rejected, 75 interrupted: run it again, "
    "2 a mistake, 1 failed\n\n" + example("wgan retrain --config retrain.yaml"),
)
def retrain(
    config: Annotated[Path, typer.Option(metavar="FILE", help="YAML or JSON")],
    device: TrainingDevice = None,
) -> int:
    """Train a challenger and promote it if the evidence allows."""
    from training.engine.runs import Diverged
    from training.engine.workers import join_workers
    from training.progress import TrainingBar, no_report, say, silent
    from training.retraining.config import read_config
    from training.retraining.cycle import retrain as run_cycle
    from training.retraining.outcomes import publish_mistake

    try:
        settings = read_config(config)
        settings.build()
        workers = join_workers(device)
    except UserError as error:
        # As torchrun numbers the processes; and a pipe cannot be read again.
        if os.environ.get("RANK", "0") == "0" and os.path.isfile(config):
            publish_mistake(config, error, say)
        raise
    say = say if workers.is_main else silent
    stop_requested = StopRequest()
    try:
        outcome = run_cycle(
            settings,
            say=say,
            report=TrainingBar if workers.is_main else no_report,
            stop_requested=stop_requested,
            workers=workers,
        )
    except Diverged as error:
        complain(f"error: {error}")
        return workers.end_alike(EXIT_FAILED)
    for gate in outcome.decision.gates if outcome.decision else []:
        say(f"  {'passed' if gate.passed else 'FAILED'}  {gate.name:14s} {gate.reason}")
    say(f"{outcome.kind}: {outcome.reason}")
    if outcome.folder:
        say(f"decision: {outcome.folder / 'decision.json'}")
    codes = {
        "rejected": EXIT_REJECTED,
        "interrupted": EXIT_INTERRUPTED,
        "failed": EXIT_FAILED,
    }
    return workers.end_alike(codes.get(outcome.kind, 0), stop_requested)
