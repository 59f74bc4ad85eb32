"""Folders in which servers look for exported models: Triton's, and with a manifest KServe's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from torch import Tensor

from models.export.graphs import Graph

Layout = Literal["files", "triton", "kserve"]
MAX_BATCH = 256
"""Rows of a request, at most; Triton joins requests up to as many."""
MANIFEST = "inference-service.yaml"


def triton_folder(folder: Path, name: str, graph: Graph, output: Tensor) -> Path:
    """Make the folder of one model in a repository of Triton's; returns where its file belongs."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(triton_config(name, graph, output))
    return folder / name / "1" / "model.onnx"


def triton_config(name: str, graph: Graph, output: Tensor) -> str:
    """Write a model's configuration for Triton, in protobuf's text format.

    Args:
        name: of the model.
        graph: one network.
        output: what it returns, for the number's type and the sizes.
    """
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {MAX_BATCH}",
            *[_tensor("input", key, value) for key, value in graph.inputs.items()],
            _tensor("output", graph.output, output),
            "dynamic_batching { }",
            "",
        ]
    )


def _tensor(kind: str, name: str, example: Tensor) -> str:
    """Describe an input or an output; the rows are left out, as `max_batch_size` asks."""
    number = str(example.dtype).removeprefix("torch.").replace("float", "FP").upper()
    sizes = ", ".join(map(str, example.shape[1:]))
    # Triton has no tensor without sizes: each row of labels or scores is a list of one.
    shape = f"dims: [ {sizes} ]" if sizes else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'{kind} [ {{ name: "{name}" data_type: TYPE_{number} {shape} }} ]'


def kserve_manifest(name: str) -> str:
    """Write a manifest by which KServe serves a folder in Triton's layout."""
    allowed = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].rstrip("-")
    return f"""\
# Copy this folder to where KServe's storage initialiser reads, and name that place below.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {allowed if allowed[:1].isalpha() else f"wgan-{allowed}"}
spec:
  predictor:
    model:
      modelFormat:
        name: triton
      protocolVersion: v2
      storageUri: s3://BUCKET/{name}
"""
