"""Features of a network of the user's own, from an ONNX file, by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ConfigError, needs

SIDES = (8, 512)
"""Pixels a side that a network may ask for."""
MAX_FEATURES = 16_384
MAX_BYTES = 2**31
"""Of a file: no ONNX file without external data is larger."""
ROWS = 32
"""Images at a time: large networks need much memory for each."""


class OnnxFeatures(nn.Module):
    """A network of pixels in [0, 1]; whatever the device of its input, it runs on the CPU."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        shape = session.get_inputs()[0].shape
        self.sides = [side if isinstance(side, int) else None for side in shape[2:]]

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxFeatures:
        """The network itself: nothing changes it, and a session cannot be copied."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Float ``(N, C, H, W)`` of 0 to 255, resized if the graph has a size, to features.

        Raises:
            RuntimeError: the network does not take such images, or gives no features for them.
        """
        pixels = images.cpu() / 255
        size = [own or side for own, side in zip(self.sides, pixels.shape[2:], strict=True)]
        if size != list(pixels.shape[2:]):
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return torch.cat([self._features(part) for part in torch.split(pixels, ROWS)])

    def _features(self, pixels: Tensor) -> Tensor:
        name = self.session.get_inputs()[0].name
        try:
            found = np.asarray(self.session.run(None, {name: pixels.numpy()})[0], np.float64)
        except Exception as error:  # ONNX Runtime has a class of its own for each kind
            raise RuntimeError(" ".join(str(error).split())) from None
        if found.shape[:1] != (len(pixels),) or not 0 < found[0].size <= MAX_FEATURES:
            raise RuntimeError(
                f"{len(pixels)} of them give an array of shape {found.shape}, which must be N rows "
                f"of at most {MAX_FEATURES} features"
            )
        if not np.isfinite(found).all():
            raise RuntimeError("features are NaN or infinite")
        return torch.from_numpy(found.reshape(len(found), -1))


def load_onnx(path: Path) -> tuple[OnnxFeatures, bytes, int | None]:
    """Load a network from an ONNX file.

    Args:
        path: the file. It holds all weights, has one input, float32 ``(N, C, H, W)`` with any N,
            and one output, ``(N, ...)``.

    Returns:
        The network, the file's bytes, and how many channels it takes; None: any number.

    Raises:
        ConfigError: there is no such file, or it holds something else.
        UserError: the packages are not installed.
    """
    with needs("export"):
        import onnx
        import onnxruntime

    def refused(reason: str) -> ConfigError:
        return ConfigError(f"evaluation.onnx: {path}: {' '.join(reason.split())}")

    if not path.is_file():
        raise refused("no such file")
    if path.stat().st_size >= MAX_BYTES:
        raise refused("has 2 GiB or more, which no ONNX file has; bring a smaller network")
    content = path.read_bytes()
    try:
        graph = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, which has several
        raise refused(f"is no ONNX file ({type(error).__name__})") from None
    # A graph may name any file on the machine, and the hash would not cover it.
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(graph)):
        raise refused(
            "keeps weights in other files, which are not read; write one file "
            "(torch.onnx.export: external_data=False)"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, too
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # as many kinds as there are faults
        raise refused(f"ONNX Runtime does not load it: {error}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        names = ", ".join(x.name for x in [*inputs, *outputs])
        raise refused(f"has {len(inputs)} inputs and {len(outputs)} outputs ({names}); one of each")
    shape, kind = inputs[0].shape, inputs[0].type
    if kind != "tensor(float)" or len(shape) != 4 or isinstance(shape[0], int):
        raise refused(f"takes {kind} {shape}, not float32 (N, C, H, W) with any N")
    fixed = [side for side in shape[2:] if isinstance(side, int)]
    if not all(SIDES[0] <= side <= SIDES[1] for side in fixed):
        raise refused(f"takes images of {fixed} pixels a side, not {SIDES[0]} to {SIDES[1]}")
    return OnnxFeatures(session), content, shape[1] if isinstance(shape[1], int) else None


def _tensors(message: Any) -> Iterator[Any]:
    """Find all tensors of a graph: its weights, and those in nodes, subgraphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if hasattr(value, "__len__") else [value]:
                yield from _tensors(part)
