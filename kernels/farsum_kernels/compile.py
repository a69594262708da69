"""Formula to kernel, once: a cache of compiled reductions with single flight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

from farsum_kernels.job import Spec
from farsum_kernels.plan import Machine

if TYPE_CHECKING:
    from farsum_kernels.backends.cpu.launch import Kernel

KERNELS_KEPT = 512


class Compiler:
    """Compiles reductions for one machine and keeps the ones used last.

    Two threads that ask for one reduction at once share one compilation; a failure is not kept.
    """

    def __init__(self, machine: Machine, kept: int = KERNELS_KEPT) -> None:
        self.machine = machine
        self._kept = kept
        self._lock = threading.Lock()
        self._kernels: OrderedDict[bytes, Future[Kernel]] = OrderedDict()

    def kernel(self, spec: Spec) -> Kernel:
        """The kernel of a reduction, compiled now if it is new.

        Raises FormulaTooLarge when the formula lowers to more code than the limits allow.
        """
        with self._lock:
            if held := self._kernels.get(spec.digest):
                self._kernels.move_to_end(spec.digest)
            else:
                mine: Future[Kernel] = Future()
                self._kernels[spec.digest] = mine
                while len(self._kernels) > self._kept:
                    self._kernels.popitem(last=False)
        if held:
            return held.result()
        from farsum_kernels.backends.cpu.launch import Kernel

        try:
            mine.set_result(Kernel(spec, self.machine))
        except BaseException as error:
            with self._lock:
                self._kernels.pop(spec.digest, None)
            mine.set_exception(error)
        return mine.result()
