"""Use of a model: samples and scores over HTTP."""
