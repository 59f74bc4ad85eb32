"""The configuration file of a retraining."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.config import Config, faults_in_words, flatten
from models.errors import ConfigError
from models.os_errors import require_end
from training.presets import build_config, require_branch
from training.retraining.gates import GatesConfig


class RetrainConfig(BaseModel):
    """The file that `wgan retrain --config` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    """Settings to start from, as `wgan train --preset`."""
    data: str | None = None
    """Fetched anew each time, as `wgan train --data`; None: the preset's."""
    constraint: str | None = None
    """Name, as in `wgan train --constraint`; None: the preset's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Any other settings, such as ``training.steps: 5000``, or nested; ``name`` is the model's,
    without it the preset's: data that come anew each time may have another name each time."""
    start_from: Literal["champion"] | None = None
    """The weights that a challenger begins with: the champion's, if there is one; None: random."""
    folder: Path
    """Folder of the runs. It must outlive the process, or there is nothing to resume."""
    keep_runs: int = Field(default=5, ge=1)
    """Runs of a model that stay in ``folder``: those that changed last. What was decided on older
    ones is in the registry."""
    reference: str | None = None
    """Data whose held-out items judge, in place of the new data's own: a set that is trusted."""
    gates: GatesConfig = GatesConfig()
    pushgateway: str | None = None
    """Address of a Prometheus Pushgateway that is told of each outcome."""
    push_labels: dict[Annotated[str, Field(pattern="^[a-z_][a-z0-9_]*$")], str] = {}
    """Labels of what is pushed, such as namespace and release: an outcome replaces what was pushed
    with the same ones. None: an outcome replaces what was pushed for the same model."""

    def build(self) -> Config:
        """Build the configuration of the run.

        Raises:
            ConfigError: no such preset, key or value, or the run is to be private and to begin with
                the champion.
        """
        settings = {"name": self.preset, **flatten(self.set)}
        config = build_config(self.preset, self.data, self.constraint, settings)
        if self.start_from is not None:  # told now, not when there is a champion
            require_branch(config, config)
        return config


def read_config(path: Path) -> RetrainConfig:
    """Read a configuration in YAML or JSON.

    Raises:
        ConfigError: one line that names each fault and, for an unknown key, the nearest known one.
    """
    values = _read_values(path)
    try:
        return RetrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {faults_in_words(error.errors(), RetrainConfig)}") from None


def who_is_told(path: Path) -> tuple[RetrainConfig, str]:
    """Find who is told of outcomes, and the model's name, in a file that may have mistakes.

    Returns:
        Settings of which ``folder`` and those of the push alone are there, and the name.

    Raises:
        ConfigError: it does not say so.
    """
    values = _read_values(path)
    named = flatten(values["set"]) if isinstance(values.get("set"), dict) else {}
    name = named.get("name", values.get("preset"))
    told = {
        "folder": values.get("folder"),
        "pushgateway": values.get("pushgateway"),
        "preset": name,
    }
    if "push_labels" in values:
        with contextlib.suppress(ValidationError):  # they may be what is mistaken
            settings = RetrainConfig.model_validate({**told, "push_labels": values["push_labels"]})
            return settings, settings.preset
    try:
        settings = RetrainConfig.model_validate(told)
    except ValidationError as error:
        raise ConfigError(f"{path}: {faults_in_words(error.errors(), RetrainConfig)}") from None
    return settings, settings.preset


def _read_values(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(require_end(path).read_text())  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write at least preset and folder")
    return values
