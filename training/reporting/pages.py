"""Pages and texts from templates: HTML files that need no other file, and Markdown.

What a template prints into HTML is escaped, so a name such as ``<script>`` stays a name.
"""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import jinja2

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
    environment.filters["base64"] = _base64
    return environment


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()
