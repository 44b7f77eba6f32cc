"""Variants of a model, to compare precisions: other GGUF types, Hugging Face and ONNX directories.

The libraries are heavy and belong to extras, so each is imported by the function that needs it.
"""
