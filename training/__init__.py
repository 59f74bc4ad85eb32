"""Making and judging models: data, training loop, metrics, retraining."""
