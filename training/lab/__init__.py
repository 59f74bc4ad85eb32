"""The laboratory: comparing constraints, the clipping study, the Wasserstein distance."""
