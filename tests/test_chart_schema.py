"""What Helm lets into `retrain.config`, against what `wgan retrain` reads."""

import contextlib
import itertools
import json

import jsonschema_rs
import pytest

from deploy import schema
from models.config import flatten
from models.constraints import CONSTRAINTS
from models.errors import ConfigError
from tests.chart import CHART, helm, needs_helm
from training.presets import PRESETS, build_config
from training.retraining.config import RetrainConfig
from training.retraining.gates import GatesConfig


def test_it_follows_from_the_models() -> None:
    assert schema.FILE.read_text() == schema.text(), "run: python -m deploy.schema"


@needs_helm
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pushgatway=http://x", "pushgatway"),
        ("preset=digit", "preset"),
        ("constraint=weight_cliping", "constraint"),
        ("folder=/elsewhere", "folder"),
        ("gates.margn=1", "margn"),
        ("gates.least.recal=1", "recal"),
        ("set.training.stepz=3", "stepz"),
        (r"set.training\.stepz=3", "training.stepz"),
        (r"set.training\.steps=many", "steps"),
        ("set.constraint.strenght=1", "strenght"),
    ],
)
def test_a_mistake_is_refused(setting: str, says: str) -> None:
    done = helm("template", "wgan", CHART, "--set", f"retrain.config.{setting}")
    assert done.returncode != 0
    assert says in done.stderr


def test_nothing_is_refused_that_the_command_takes() -> None:
    """Whole configurations of every preset and constraint, nested and with dotted names."""
    chart = json.loads(schema.FILE.read_text())
    node = {"$ref": f"#/definitions/{schema.NAME}", "definitions": chart["definitions"]}
    validator = jsonschema_rs.Draft7Validator(node)
    gates = GatesConfig(least={"recall": 0.5}).model_dump(mode="json")
    count = 0
    for preset, kind in itertools.product(PRESETS, CONSTRAINTS):
        with contextlib.suppress(ConfigError):  # some constraints do not suit some networks
            config = build_config(preset, "digits", kind).model_dump(mode="json")
            for given in (config, flatten(config)):
                values = {"preset": preset, "folder": "/runs", "gates": gates, "set": given}
                found = [error.message for error in validator.iter_errors(values)]
                assert not found, (preset, kind, found)
                RetrainConfig.model_validate(values).build()
            count += 1
    assert count > 100
