"""The NumPy front end: arrays in, arrays out."""

from farsum.genred import Genred, generic_argkmin, generic_argmin, generic_logsumexp, generic_sum
from farsum.lazytensor import LazyTensor, Pm, Vi, Vj

__all__ = [
    "LazyTensor",
    "Pm",
    "Vi",
    "Vj",
    "Genred",
    "generic_argkmin",
    "generic_argmin",
    "generic_logsumexp",
    "generic_sum",
]
