"""Export of a model to ONNX or torch.export, for other servers and programs."""
