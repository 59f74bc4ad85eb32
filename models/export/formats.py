"""Formats of exported graphs: ONNX, and torch.export's own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from models.errors import ExportError, needs
from models.export.graphs import Graph

Array = np.ndarray
Format = Literal["onnx", "torch-export"]
Run = Callable[[Mapping[str, Array]], Array]
"""Runs a file: arrays by name to the one that comes out."""
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
OPSET = 20
"""Of ONNX's operators; ONNX Runtime knows this set from 1.17 on."""


def require(target: Format) -> None:
    """Require the packages that a format needs.

    Raises:
        UserError: one is not installed.
    """
    if target == "onnx":
        with needs("export"):
            for package in ("onnx", "onnxruntime", "onnxscript"):
                import_module(package)


def write(target: Format, graph: Graph, path: Path, metadata: Mapping[str, str]) -> Run:
    """Write a graph to a file, and open that with the format's own program.

    Args:
        target: the format.
        graph: one network.
        path: the file.
        metadata: goes into the file, as ``metadata_props`` of ONNX or as the extra file
            ``metadata.json`` of torch.export.

    Raises:
        ExportError: the format has no such operation.
    """
    return {"onnx": _write_onnx, "torch-export": _write_torch}[target](graph, path, metadata)


def _write_onnx(graph: Graph, path: Path, metadata: Mapping[str, str]) -> Run:
    import onnxruntime
    from torch.onnx import OnnxExporterError

    with quiet():
        try:
            made = torch.onnx.export(
                graph.program,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten.special_ndtri.default: normal_quantile},
                dynamo=True,
                verbose=False,
            )
        except OnnxExporterError as error:
            missing = re.search(r"op='([^']+)'", str(error))
            reason = f"no form of {missing[1]}" if missing else type(error).__name__
            raise ExportError(
                f"this network cannot be written as ONNX ({reason}); take --to torch-export"
            ) from error
    assert made is not None
    rows: Any = made.model.graph.inputs[0].shape[0]  # type: ignore[index]
    made.rename_axes({rows: "N"})
    made.model.metadata_props.update(metadata)
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([graph.output], dict(inputs))[0]


def _write_torch(graph: Graph, path: Path, metadata: Mapping[str, str]) -> Run:
    extra = {"metadata.json": json.dumps(dict(metadata), indent=2)}
    content = io.BytesIO()  # of a full disk torch's own writer tells nothing but its line of code
    torch.export.save(graph.program, content, extra_files=extra)
    path.write_bytes(content.getvalue())
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: Mapping[str, Array]) -> Array:
        return module(*[torch.from_numpy(inputs[name]) for name in graph.inputs]).numpy()

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what torch says of its own code while it converts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)`")
            yield
    finally:
        logger.setLevel(level)


NEAR_HALF = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
"""Coefficients of a numerator and a denominator, for probabilities from 0.075 to 0.925."""
NEAR_ENDS = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550,
     3.64784832476320460504, 1.27045825245236838258, 0.241780725177450611770,
     0.0227238449892691845833, 0.000774545014278341407640),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 0.000547593808499534494600,
     0.00000000105075007164441684324),
)  # fmt: skip
"""Likewise beyond these, down to 1e-11."""


def normal_quantile(p: Any) -> Any:
    """The quantile of the standard normal distribution, of which ONNX has no operator.

    Algorithm AS 241 (Wichura 1988), in float64, for probabilities from 1e-11 to 1 - 1e-11.
    """
    from onnxscript import DOUBLE, FLOAT
    from onnxscript import opset20 as op

    def number(value: float) -> Any:
        return op.Constant(value=_double(value))

    def polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
        value = number(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = op.Add(op.Mul(value, x), number(coefficient))
        return value

    p = op.Cast(p, to=DOUBLE.dtype)
    q = op.Sub(p, number(0.5))
    near = op.Sub(number(0.180625), op.Mul(q, q))
    middle = op.Mul(q, op.Div(*(polynomial(part, near) for part in NEAR_HALF)))
    least = op.Min(p, op.Sub(number(1.0), p))
    far = op.Sub(op.Sqrt(op.Neg(op.Log(least))), number(1.6))
    end = op.Mul(op.Sign(q), op.Div(*(polynomial(part, far) for part in NEAR_ENDS)))
    is_middle = op.LessOrEqual(op.Abs(q), number(0.425))
    return op.Cast(op.Where(is_middle, middle, end), to=FLOAT.dtype)


def _double(value: float) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor("value", TensorProto.DOUBLE, [], [value])
