"""Judging a model on held-out data, and diagnosing its critic."""
