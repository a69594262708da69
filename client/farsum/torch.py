"""The PyTorch front end: tensors in, tensors of the same device and dtype out, gradients through both.

The classes are those of `farsum.numpy`; importing this module imports torch.
"""

import torch as _torch  # noqa: F401 - an ImportError here says what is missing

from farsum import compiling as _compiling
from farsum.complex import ComplexLazyTensor
from farsum.genred import Genred, generic_argkmin, generic_argmin, generic_logsumexp, generic_sum
from farsum.lazytensor import LazyTensor, Pm, Var, Vi, Vj
from farsum.solve import KernelSolve

_compiling.keep_out()

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
