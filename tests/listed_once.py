"""ONNX's forms of torch's operators, listed once: that takes a third of a small export."""

import copy
import functools
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
