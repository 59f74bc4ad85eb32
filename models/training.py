"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

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
    optimizer: Literal["adam", "rmsprop", "optimistic_adam", "extragradient"]
    """Of generator and critic alike: `training.engine.optimisers` has the papers."""
    learning_rate: float = Field(gt=0)
    """Of the generator; of the critic too, unless it has one of its own."""
    critic_learning_rate: float | None = Field(
        default=None, gt=0, exclude_if=lambda rate: rate is None
    )
    """Of the critic (two time-scales, TTUR: Heusel et al. 2017); None: `learning_rate`. Written if
    it is set."""
    betas: tuple[float, float] = (0.5, 0.9)
    """For Adam and its kin; RMSprop ignores them."""
    decay_from: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps after which the learning rates fall to zero; 1: never."""
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", exclude_if=lambda schedule: schedule == "linear"
    )
    """How they fall then: along a line, or along half a cosine. Written if it is a cosine."""
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

    @model_validator(mode="after")
    def _its_schedule_has_steps(self) -> Self:
        is_late = self.decay_from == 1 or 0 < self.steps < self.decay_from * self.steps + 1
        if self.schedule != "linear" and is_late:
            raise ValueError(
                f"schedule: {self.schedule} begins at decay_from, which is after the last step; "
                "set it lower, such as 0"
            )
        return self

    @property
    def critic_rate(self) -> str:
        """Name of the setting that is the critic's rate."""
        return "learning_rate" if self.critic_learning_rate is None else "critic_learning_rate"
