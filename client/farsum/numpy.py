"""The NumPy front end: arrays in, arrays out."""

from farsum.complex import ComplexLazyTensor
from farsum.genred import Genred, generic_argkmin, generic_argmin, generic_logsumexp, generic_sum
from farsum.lazytensor import LazyTensor, Pm, Var, Vi, Vj
from farsum.solve import KernelSolve

__all__ = [
    "ComplexLazyTensor",
    "Genred",
    "KernelSolve",
    "LazyTensor",
    "Pm",
    "Var",
    "Vi",
    "Vj",
    "generic_argkmin",
    "generic_argmin",
    "generic_logsumexp",
    "generic_sum",
]
