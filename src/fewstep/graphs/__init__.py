"""A model's networks as ONNX graphs without weights, written from configs and the shapes of weights alone.

Never enters: a weight, a runtime, a file of the model.
"""
