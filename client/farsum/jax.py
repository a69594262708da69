"""The JAX front end: jax.Arrays in, jax.Arrays out, inside and outside of every transformation of JAX.

The classes are those of `farsum.numpy`; importing this module imports jax.
"""

import jax as _jax  # noqa: F401 - an ImportError here says what is missing

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
