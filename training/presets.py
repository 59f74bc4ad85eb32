"""Presets: settings that are known to work, by name."""

from __future__ import annotations

from typing import Any

from models.config import Config, parse_config
from models.errors import ConfigError

Values = dict[str, Any]

_TOY: Values = {
    "generator": {"architecture": "mlp", "width": 128, "depth": 3, "latent_size": 8},
    "critic": {"architecture": "mlp", "width": 128, "depth": 3},
    "training": {"steps": 4000, "batch_size": 256, "decay_from": 0.3, "ema_decay": 0.995},
}

PRESETS: dict[str, Values] = {
    "digits": {
        "data": {"source": "digits"},
        "generator": {"architecture": "dcgan", "width": 32, "depth": 2, "normalization": "batch"},
        "critic": {"architecture": "dcgan", "width": 32, "depth": 2},
        "constraint": {"kind": "lipschitz_penalty"},
        "training": {"steps": 1500, "batch_size": 64, "decay_from": 0.3, "ema_decay": 0.99},
    },
    "8gaussians": {
        **_TOY,
        "data": {"source": "8gaussians"},
        "constraint": {"kind": "lipschitz_penalty"},
    },
    "25gaussians": {
        **_TOY,
        "data": {"source": "25gaussians"},
        "constraint": {"kind": "lipschitz_penalty"},
    },
    "swissroll": {
        **_TOY,
        "data": {"source": "swissroll"},
        "constraint": {"kind": "lipschitz_penalty"},
    },
}
"""Each is a configuration, less its name."""

TUNED: dict[str, dict[str, Values]] = {}
"""For a preset and a constraint: settings found better than the published ones, and how the
constraint itself was set when they were found."""


def build_config(
    preset: str,
    data: str | None = None,
    constraint: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Config:
    """Build a configuration from a preset.

    Args:
        preset: its name.
        data: another data source than the preset's.
        constraint: another kind of constraint; its tuned or else published settings come with it.
        overrides: dotted keys, such as ``training.steps``, and their values; these win.

    Raises:
        ConfigError: no such preset, key or value.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset '{preset}'; there are: {', '.join(PRESETS)}")
    values: Values = {"name": preset, **{k: dict(v) for k, v in PRESETS[preset].items()}}
    overrides = dict(overrides or {})
    kind = str(overrides.pop("constraint.kind", constraint or values["constraint"]["kind"]))
    if kind != values["constraint"]["kind"]:
        values["constraint"] = {"kind": kind}
    for section, settings in TUNED.get(preset, {}).get(kind, {}).items():
        values[section] = {**values[section], **settings}
    if data is not None:
        values["data"]["source"] = data
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if not name:
            values[section] = value
        elif isinstance(values.setdefault(section, {}), dict):
            values[section][name] = value
    return parse_config(values)
