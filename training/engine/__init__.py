"""The training engine: the loop, the critic's step, checkpoints, several processes."""
