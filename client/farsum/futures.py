"""Work that is under way while the caller goes on: a future of the user's own result, and its asyncio twin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from farsum_kernels.job import Result


class Submitted(Future[Any]):
    """The future of a result. `cancel` reaches the server; what had begun there ends with the error Cancelled."""

    def __init__(self, job: Future[Result]) -> None:
        super().__init__()
        self._job = job

    def cancel(self) -> bool:
        """Stop the job. False if it is done, or runs in this process, where it runs to its end."""
        return self._job.cancel()


def mapped(job: Future[Result], finish: Callable[[Any], Any]) -> Submitted:
    """The future of finish(result)."""
    made = Submitted(job)

    def done(job: Future[Result]) -> None:
        if job.cancelled():
            Future.cancel(made)
            made.set_running_or_notify_cancel()
        elif not made.set_running_or_notify_cancel():
            return
        elif error := job.exception():
            made.set_exception(error)
        else:
            try:
                made.set_result(finish(job.result()))
            except BaseException as error:
                made.set_exception(error)

    job.add_done_callback(done)
    return made


class Submits(ABC):
    """What has a `submit` has an `asubmit`."""

    @abstractmethod
    def submit(self, *args: Any, **options: Any) -> Submitted: ...

    async def asubmit(self, *args: Any, **options: Any) -> Any:
        """The result of a call, awaited; many may be under way at once. Cancelling the task stops the job.

        >>> import asyncio, numpy as np
        >>> from farsum.numpy import Vi, Vj
        >>> total = Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)
        >>> x = np.random.rand(5, 3)
        >>> asyncio.run(total.asubmit(x, x)).shape
        (5, 1)
        """
        import asyncio

        return await asyncio.wrap_future(self.submit(*args, **options))
