"""How a model is made and judged: data, loop, metrics."""
