"""The model card: what a version is, how good it is and what is wrong with it."""

from __future__ import annotations

from models.record import Run
from training.reporting.pages import render


def model_card(run: Run) -> str:
    """Describe a run in Markdown."""
    return render("model_card.md.j2", run=run, serving=serving_in_words(run))


def serving_in_words(run: Run) -> str:
    """The precision that samples are made in, and what it changes."""
    engine = run.engine
    unit = "grey levels" if run.data.kind == "image" else "standard deviations of a feature"
    return (
        f"in {engine.precision}: samples differ from those of the generator as it was trained by "
        f"{engine.mean_error:.2g} {unit} on average, {engine.max_error:.2g} at most"
    )
