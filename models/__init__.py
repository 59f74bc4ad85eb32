"""What a model is: networks, constraints, Lipschitz measurement, artifact, registry."""
