"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from models.section import Section


class TrainingConfig(Section):
    """The training loop. The constraint's published settings fill in what is not given."""

    steps: int = Field(ge=0)
    """Generator steps; 0: as many as suit the data, which a run's own configuration then says."""
    batch_size: int = Field(default=64, ge=0)
    """Real items in a step, and as many generated ones; 0: as suits the data."""
    micro_batch_size: int | None = Field(default=None, ge=1, exclude_if=lambda size: size is None)
    """Of these, the items whose gradients are computed at once, to need less memory; the step is
    the same but for rounding. Of several processes, each has parts of its own share. None: all.
    Written if it is set."""
    activation_checkpointing: bool = Field(default=False, exclude_if=lambda it: not it)
    """Compute the networks' activations anew in each backward pass, stage by stage, in place of
    holding them: less memory, more time. Written if it is set."""
    num_critic_steps: int = Field(ge=1)
    """Critic steps before each generator step."""
    optimizer: Literal["adam", "rmsprop"]
    learning_rate: float = Field(gt=0)
    """For generator and critic alike."""
    betas: tuple[float, float] = (0.5, 0.9)
    """For Adam; RMSprop ignores them."""
    decay_from: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps after which the learning rate falls linearly to zero; 1: never."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay per step of the generator's moving average; it starts lower, so early steps fade."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """bf16: networks under autocast; weights, penalty norms and optimisers stay float32.
    tf32: CUDA's shorter float32 multiplications. A run on CUDA that names none takes tf32."""
    critic_step: Literal["auto", "eager", "captured", "compiled", "graphed", "graphed_compiled"] = (
        "auto"
    )
    """Way to compute the critic's gradients; results differ by rounding. graphed: with the whole
    generator step in one CUDA graph; graphed_compiled: with compiled kernels in it. auto: graphed
    on a GPU, else captured; eager where neither is right."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    log_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    """Generator steps between checkpoints."""
    divergence_gap: float = Field(default=1e6, gt=0)
    """A critic gap whose absolute value is above this counts as divergence."""

    @field_validator("batch_size")
    @classmethod
    def _is_no_single_item(cls, batch_size: int) -> int:
        if batch_size == 1:
            raise ValueError("a batch has at least 2 items")
        return batch_size
