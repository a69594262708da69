"""The NumPy front end: arrays in, arrays out."""

from farsum.lazytensor import LazyTensor, Pm, Vi, Vj

__all__ = ["LazyTensor", "Pm", "Vi", "Vj"]
