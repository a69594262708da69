"""The owner of native code on one device: compiles, launches slices, merges, gives results.

The same object works in process for the embedded engine and alone in a process of its own under the
daemon. It never opens a socket and never decides who runs next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from farsum_kernels.compile import Compiler, Kernel, Repeated, backend_for
from farsum_kernels.job import RANGES, Extent, Spec, check_arrays, extent_of
from farsum_kernels.program import Program, cost_of
from farsum_server.programs import ProgramRun

Array = NDArray[Any]


class Worker:
    """One device.

    threads   threads that a job may use on the CPU; None for all that this process may use
    device    "cpu", or "cuda:0" and so on

    Raises EngineMissing, or ImportError, when the backend is not installed; DeviceMissing without the device.
    """

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        backend = backend_for(device, threads)
        self._compiler = Compiler(backend)
        self.name, self.kind, self.threads = backend.name, backend.kind, backend.threads

    def kernel(self, spec: Spec) -> Kernel:
        """The compiled reduction, made now if it is new.

        Raises FormulaTooLarge for a formula that compiles to too much code.
        """
        return self._compiler.kernel(spec)

    def compiled(self, spec: Spec | Program) -> bool:
        """Is all that the job needs compiled?"""
        return all(each in self._compiler for each in _reductions(spec))

    def compile(self, spec: Spec | Program) -> None:
        """Make all that the job needs, before it is bound. Raises FormulaTooLarge."""
        for each in _reductions(spec):
            self.kernel(each)

    def outlook(self, spec: Spec | Program, shapes: Mapping[int, tuple[int, ...]]) -> Mapping[str, str]:
        """The plan of a job on arrays of these shapes, in words. Compiles; computes nothing, and no ranges are counted."""
        if isinstance(spec, Program):
            steps, pairs = list(spec.steps), sum(extent.pairs for extent in spec.layout.extents)
            return {"steps": str(len(steps)), "pairs": str(pairs), "flops": str(cost_of(spec))}
        own = {index: shape for index, shape in shapes.items() if index not in RANGES}
        return self.kernel(spec).plan(extent_of(spec, own)).describe()

    def repeated(
        self, spec: Spec, shapes: Mapping[int, tuple[int, ...]], into: Sequence[Array]
    ) -> Repeated | None:
        """A small job on arrays of these shapes whose results always go into these arrays.

        None where nothing is gained by that.
        """
        own = {index: shape for index, shape in shapes.items() if index not in RANGES}
        return self.kernel(spec).repeated(shapes, extent_of(spec, own), into)

    def start(
        self,
        spec: Spec | Program,
        arrays: Mapping[int, Array],
        outputs: Sequence[Array] | None = None,
        digests: Mapping[int, bytes] | None = None,
    ) -> Run | ProgramRun:
        """Bind a job. Its results are written into `outputs` when given, C-ordered arrays of the right shapes.

        digests   of the contents of those arrays that have one, 32 bytes: what a device may keep copies by.
                  Without effect on the CPU, which reads the arrays where they lie

        Raises ShapeError and DtypeError for arrays that do not fit.
        """
        if isinstance(spec, Program):
            return ProgramRun(spec, arrays, self.kernel, outputs, digests)
        extent = check_arrays(spec, arrays)
        return Run(self.kernel(spec), arrays, extent, outputs, digests)


def _reductions(spec: Spec | Program) -> list[Spec]:
    return [step.spec for step in spec.steps] if isinstance(spec, Program) else [spec]


class Run:
    """A job on its way, slice by slice. Between two slices others may run."""

    def __init__(
        self,
        kernel: Kernel,
        arrays: Mapping[int, Array],
        extent: Extent,
        outputs: Sequence[Array] | None = None,
        digests: Mapping[int, bytes] | None = None,
    ) -> None:
        self._launch = kernel.launch(arrays, extent, digests)
        self._outputs = outputs

    @property
    def plan(self) -> Mapping[str, str]:
        return self._launch.words

    def step(self) -> float:
        """Run the next slice, about 100 ms at most; gives the finished share, 1.0 when all are done."""
        return self._launch.step()

    def finish(self) -> tuple[Array, ...]:
        """Merge and finish; call it once, after `step` has given 1.0."""
        return self._launch.results(self._outputs)
