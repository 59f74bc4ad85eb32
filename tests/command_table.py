"""The commands and options of the last version before Typer; they must go on working.

Each parameter is ``(name, option, how, required, default)``. ``how`` is: one (a value), many (one
value or more), flag, or append (may be repeated). An argument has no option.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Parameter(NamedTuple):
    """One option or argument of a command."""

    name: str
    option: str | None
    how: str = "one"
    required: bool = False
    default: Any = None


COMMANDS: dict[str, list[Parameter]] = {
    "train": [
        Parameter("preset", "--preset", required=True),
        Parameter("data", "--data"),
        Parameter("constraint", "--constraint"),
        Parameter("steps", "--steps"),
        Parameter("seed", "--seed"),
        Parameter("device", "--device"),
        Parameter("set", "--set", "append"),
        Parameter("no_register", "--no-register", "flag", default=False),
        Parameter("resume", "--resume", "flag", default=False),
        Parameter("out", "--out", required=True),
    ],
    "sample": [
        Parameter("model", None, required=True),
        Parameter("n", "-n", default=16),
        Parameter("seed", "--seed", default=0),
        Parameter("class_name", "--class"),
        Parameter("out", "--out", required=True),
    ],
    "score": [
        Parameter("model", None, required=True),
        Parameter("files", None, "many", required=True),
        Parameter("class_name", "--class"),
        Parameter("json", "--json", "flag", default=False),
    ],
    "evaluate": [
        Parameter("model", None, required=True),
        Parameter("data", "--data"),
        Parameter("json", "--json", "flag", default=False),
    ],
    "diagnose": [
        Parameter("run", None, required=True),
        Parameter("json", "--json", "flag", default=False),
        Parameter("out", "--out"),
    ],
    "compare": [
        Parameter("data", "--data", required=True),
        Parameter("constraints", "--constraints", required=True),
        Parameter("seeds", "--seeds", default=3),
        Parameter("preset", "--preset"),
        Parameter("budget_seconds", "--budget-seconds"),
        Parameter("steps", "--steps"),
        Parameter("jobs", "--jobs", default=1),
        Parameter("set", "--set", "append"),
        Parameter("no_track", "--no-track", "flag", default=False),
        Parameter("out", "--out", required=True),
    ],
    "study clipping": [
        Parameter("full", "--full", "flag", default=False),
        Parameter("jobs", "--jobs", default=2),
        Parameter("out", "--out", required=True),
    ],
    "data inspect": [
        Parameter("data", None, required=True),
        Parameter("size", "--size"),
        Parameter("out", "--out"),
        Parameter("json", "--json", "flag", default=False),
    ],
    "retrain": [
        Parameter("config", "--config", required=True),
        Parameter("device", "--device"),
    ],
    "models": [Parameter("json", "--json", "flag", default=False)],
    "promote": [
        Parameter("model", None, required=True),
        Parameter("why", "--why", default="promoted by hand"),
    ],
    "rollback": [
        Parameter("name", None, required=True),
        Parameter("why", "--why", default="rolled back by hand"),
    ],
    "w1": [
        Parameter("a", None, required=True),
        Parameter("b", None, required=True),
        Parameter("constraint", "--constraint"),
        Parameter("seed", "--seed", default=0),
        Parameter("steps", "--steps"),
        Parameter("batch_size", "--batch-size", default=512),
        Parameter("json", "--json", required=True),
        Parameter("gradients_at", "--gradients-at"),
        Parameter("gradients_out", "--gradients-out"),
    ],
    "serve": [
        Parameter("port", "--port", default=3000),
        Parameter("host", "--host", default="127.0.0.1"),
        Parameter("model", "--model"),
        Parameter("workers", "--workers"),
    ],
}
