"""Quicker exports: ONNX's forms of torch's operators, a third of a small one, are listed once."""

import copy
import functools
import logging
from collections.abc import Iterator

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

_listed = functools.cache(ONNXRegistry.from_torchlib)


def _copied(opset_version: int) -> ONNXRegistry:
    registry = copy.copy(_listed(opset_version))
    registry.functions = {target: [*forms] for target, forms in registry.functions.items()}
    return registry


@pytest.fixture(scope="module", autouse=True)
def listed_once() -> Iterator[None]:
    """In a file of tests that imports it, each export gets a copy of one list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_copied))
        yield


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's log handler would make torch write a record of every step of tracing."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
