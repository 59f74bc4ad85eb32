"""Pages and texts from templates: HTML files that need no other file, and Markdown.

What a template prints into HTML is escaped, so a name such as ``<script>`` stays a name.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2

from models.record import Figure, Finding, Run, rounded_up
from training.judging.doctor import risk
from training.judging.doctor.checks import CHECKS
from training.reporting import charts

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: object) -> str:
    """Fill a template of this package's ``templates`` folder.

    Args:
        template: file name; values are escaped in ``*.html.j2``, and left as they are in others.
        values: by the names that the template uses.

    Raises:
        jinja2.UndefinedError: the template uses a name without a value.
    """
    return _environment().get_template(template).render(values)


def findings_page(title: str, findings: Sequence[Finding]) -> str:
    """Write the doctor's findings, with a plot each, as one HTML file that needs nothing else."""
    meanings = {name: check.meaning for name, check in CHECKS.items()} | {risk.NAME: risk.MEANING}
    return render("diagnosis.html.j2", title=title, findings=findings, meanings=meanings)


def model_card(run: Run) -> str:
    """Describe a run in Markdown: its model, how good that is and what is wrong with it."""
    return render("model_card.md.j2", run=run, serving=serving_in_words(run))


def figures_in_words(figures: Mapping[str, Figure]) -> list[str]:
    """A line for each figure: its value, interval and floor, and the Gaussian copula's figure."""
    lines = []
    for name, f in figures.items():
        line = f"{name:24s} {f.value:9.4g}   [{f.interval[0]:.4g}, {f.interval[1]:.4g}]"
        line += "" if f.floor is None else f"   floor {f.floor:.4g}"
        line += "" if f.of_class is None else f"   class {f.of_class}"
        lines.append(line + ("" if f.baseline is None else f"   copula {f.baseline:.4g}"))
    return lines


def serving_in_words(run: Run) -> str:
    """The precision that samples are made in, and what it changes."""
    engine = run.engine
    unit = "grey levels" if run.data.kind == "image" else "standard deviations of a feature"
    return (
        f"in {engine.precision}: samples differ from those of the generator as it was trained by "
        f"{engine.mean_error:.2g} {unit} on average, {engine.max_error:.2g} at most"
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = charts.svg
    environment.filters["rounded_up"] = rounded_up
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    return environment
