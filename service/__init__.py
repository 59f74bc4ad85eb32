"""How a model is used: samples and scores over HTTP."""
