"""Running the tasks of a pass with Dask: on a cluster or in this process, answers added up as a tree."""

from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from postproc_export.calibration.dask.parts import Reply, Work, add_replies
from postproc_export.calibration.dask.watched import watched
from postproc_export.errors import CalibrationError, PostprocError, require

FAN_IN: Final = 2  # a worker holds what it adds and a few more answers that wait, up to 22 MB each
_PURPOSE: Final = "calibrating with Dask"

OnReply = Callable[[int], None]


class Cluster:
    """Where tasks run.

    Parameters
    ----------
    client
        A `distributed.Client`; None for Dask's scheduler in this process.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def threads(self) -> int:
        """How many tasks run at once, about."""
        if self._client is None:
            return int(require("dask.system", extra="dask", purpose=_PURPOSE).CPU_COUNT)
        return sum(self._client.nthreads().values())

    def run(self, make: Callable[[Any], list[Any]], work: Work, *, on_reply: OnReply | None) -> Any:
        """Return the sum of the answers of all parts, None where there is no part.

        Parameters
        ----------
        make
            Returns the tasks of the parts, in order, for a task that gives the work.
        work
            What the parts are asked.
        on_reply
            Called with the number of values that a part has read, for every part.

        Raises
        ------
        CalibrationError
            If the cluster does not get it done, or a chunk cannot be computed.
        Exception
            What `on_reply` raises, as it is.
        """
        dask = require("dask", extra="dask", purpose=_PURPOSE)
        question = dask.delayed(work, pure=False, traverse=False)
        leaves = make(question)
        if not leaves:
            return None
        heard = None if on_reply is None else _Heard(on_reply)
        try:
            return self._compute(_tree(leaves, question), leaves, heard)
        except PostprocError:
            raise
        except (Exception, CancelledError) as error:  # whatever the user's tasks, or the cluster, may raise
            if heard is not None and error is heard.error:
                raise
            raise CalibrationError(
                "Dask could not compute the parts of the source",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                fix="see the logs of the workers; the cause is chained to this error",
            ) from error

    def _compute(self, root: Any, leaves: Sequence[Any], on_reply: OnReply | None) -> Any:
        dask = require("dask", extra="dask", purpose=_PURPOSE)
        if self._client is None:
            with _reporting(on_reply):
                return dask.compute(root)[0]
        sizes = [] if on_reply is None else [dask.delayed(_read, pure=False)(leaf) for leaf in leaves]
        futures = self._client.compute([root, *sizes])
        try:
            if on_reply is not None:
                self._report(futures[1:], on_reply)
            return watched(self._client, lambda: self._client.gather(futures[0]))
        finally:
            for future in futures:  # after an error, too: the traceback would keep the tasks running
                future.release()

    def _report(self, counters: Sequence[Any], on_reply: OnReply) -> None:
        """Report every part; the count of one whose worker is lost comes from the next one."""
        distributed = require("distributed", extra="dask", purpose=_PURPOSE)
        completed = distributed.as_completed(counters, with_results=True, loop=self._client.loop)
        for _ in counters:
            _, read = watched(self._client, completed.__anext__)
            if isinstance(read, BaseException):  # the cluster gave the part up, as it does when the scheduler is lost
                raise read
            on_reply(read)


class _Heard:
    """Passes replies on, and remembers what listening to them has raised."""

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply
        self.error: Exception | None = None

    def __call__(self, read: int) -> None:
        try:
            self._on_reply(read)
        except Exception as error:
            self.error = error
            raise


def _tree(answers: list[Any], question: Any) -> Any:
    add = require("dask", extra="dask", purpose=_PURPOSE).delayed(add_replies, pure=False)
    while True:
        answers = [add(question, answers[at : at + FAN_IN]) for at in range(0, len(answers), FAN_IN)]
        if len(answers) == 1:
            return answers[0]


def _read(reply: Reply) -> int:
    return reply.read


@contextmanager
def _reporting(on_reply: OnReply | None) -> Iterator[None]:
    """Report the replies of tasks that run in this process."""
    if on_reply is None:
        yield
        return

    def after(key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, Reply):
            on_reply(result.read)

    with require("dask.callbacks", extra="dask", purpose=_PURPOSE).Callback(posttask=after):
        yield
