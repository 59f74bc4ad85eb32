"""The device that a command, the service or a caller of the API computes on."""

from __future__ import annotations

import torch

from models.errors import DeviceError, UserError


def require_device(kind: str) -> torch.device:
    """Return the device of a kind, ``cpu`` or ``cuda``; CUDA then multiplies in full float32.

    Raises:
        UserError: it is neither of them.
        DeviceError: there is no CUDA device.
    """
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device {kind}: use cpu or cuda")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("device cuda: torch sees no CUDA device; use cpu")
        multiply_in_float32()
    return torch.device(kind)


def multiply_in_float32() -> None:
    """Leave CUDA's shorter multiplications, TF32, to training, where ``precision`` asks for them.

    Torch takes them for convolutions unless told otherwise, and a record that says fp32 means it.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of a module's parameters; a CPU if it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
