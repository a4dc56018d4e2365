"""Meetings of the ranks of a process group: no rank waits for one that has failed, and every rank learns why.

Every exchange opens with a meeting in which each rank says whether it has failed and how much it sends. A rank that
fails between two meetings says so at the next one, so the others never wait for its share.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

import numpy as np

from postproc_export import errors
from postproc_export.calibration.counting.arrays import AnyArray
from postproc_export.calibration.counting.ordered import Counts
from postproc_export.errors import CalibrationError, PostprocError, UsageError, require

_GOING: Final = 0
_FAILED: Final = 1
_ADD: Final = 2
_GATHER: Final = 3
_END: Final = 4

_Failures = dict[int, Mapping[str, Any]]


@contextmanager
def all_ranks(group: Any) -> Iterator["Ranks"]:
    """Open the exchange between the ranks of a process group; all of them have to enter, and leave together.

    Raises
    ------
    UsageError
        If there is no process group, or this process is not in it.
    PostprocError
        On every rank, if one has raised: the class of its error (`CalibrationError` for one that is not this
        package's), with the rank and the message. Where all ranks raise the same, each raises its own.
    CalibrationError
        If the process group itself fails, because a rank has ended for example.
    BaseException
        What is no Exception, such as KeyboardInterrupt, as it is; the other ranks are told where that is possible.
    """
    ranks = Ranks(group)
    try:
        yield ranks
        ranks.end()
    except Exception as error:
        ranks.pass_on(error)
        raise
    except BaseException as error:
        with suppress(PostprocError):  # what the other ranks have to say matters less
            ranks.pass_on(error)
        raise


class Ranks:
    """The ranks of a process group, seen from one of them; `all_ranks` opens and ends it.

    Parameters
    ----------
    group
        A group of `torch.distributed`; None is the default one.
    """

    def __init__(self, group: Any) -> None:
        self._torch = require("torch", extra="torch", purpose="calibrating over several processes")
        self._dist = _initialised(self._torch)
        self._group = self._dist.group.WORLD if group is None else group
        self.rank = self._dist.get_rank(self._group)
        if self.rank < 0:
            raise UsageError("this process is not in the group", fix="call it on the ranks of the group only")
        self.size = self._dist.get_world_size(self._group)
        self._device = _device(self._torch, self._dist.get_backend_config(self._group))
        self._is_over = False

    def add(self, counts: Counts) -> Counts:
        """Return the sum over all ranks of int64 arrays of one shape."""
        with self._exchange():
            self._meet(_ADD, counts.size)
            tensor = self._torch.from_numpy(np.ascontiguousarray(counts)).to(self._device)
            self._dist.all_reduce(tensor, group=self._group)
            total: Counts = tensor.cpu().numpy()
        return total

    def gather(self, values: AnyArray) -> list[AnyArray]:
        """Return the flat arrays of all ranks, whose lengths may differ, in the order of the ranks.

        Parameters
        ----------
        values
            uint8, int32, int64 or float64, shape (n,).

        Notes
        -----
        One rank after the other sends, so that memory holds what was sent and nothing else, however uneven it is.
        """
        with self._exchange():
            sizes = self._meet(_GATHER, values.size)
            return [self._from(rank, values, size) for rank, size in enumerate(sizes)]

    def gather_json(self, document: object) -> list[Any]:
        """Return a small JSON document of every rank."""
        return [json.loads(text.tobytes()) for text in self.gather(_as_bytes(document))]

    def end(self) -> None:
        """Meet for the last time; who has nothing to do any more still learns that another rank failed."""
        with self._exchange():
            self._meet(_END, 0)
        self._is_over = True

    def pass_on(self, error: BaseException) -> None:
        """Tell the other ranks of an error, and raise what every rank raises; returns where all have the same."""
        if self._is_over:
            return
        message = _as_bytes(_document(error))
        with self._exchange():
            self._fail(self._states(_FAILED, message.size), message, own=error)

    def name(self, rank: int) -> str:
        """Return how messages call a rank of the group: by its number among all processes."""
        number = self._dist.get_global_rank(self._group, rank)
        return f"rank {number}" if self._is_whole else f"global rank {number}"

    @property
    def _is_whole(self) -> bool:
        return bool(self.size == self._dist.get_world_size())

    def _meet(self, kind: int, size: int) -> list[int]:
        states = self._states(kind, size)
        if any(state == _FAILED for state, _ in states):
            self._fail(states, np.zeros(0, dtype=np.uint8), own=None)
        alike = {state if kind == _GATHER else (state, length) for state, length in states}
        if len(alike) > 1:
            raise CalibrationError(
                "the ranks have come to different steps of the calibration", needed="the same versions on every rank"
            )
        return [length for _, length in states]

    def _states(self, kind: int, size: int) -> list[tuple[int, int]]:
        own = self._torch.tensor([kind, size], dtype=self._torch.int64, device=self._device)
        found = [self._torch.empty_like(own) for _ in range(self.size)]
        self._dist.all_gather(found, own, group=self._group)
        return [(int(state), int(length)) for state, length in self._torch.stack(found).tolist()]

    def _from(self, rank: int, values: AnyArray, size: int) -> AnyArray:
        if not size:
            return np.zeros(0, dtype=values.dtype)
        sent = np.ascontiguousarray(values) if rank == self.rank else np.empty(size, dtype=values.dtype)
        tensor = self._torch.from_numpy(sent).to(self._device)
        self._dist.broadcast(tensor, self._dist.get_global_rank(self._group, rank), group=self._group)
        received: AnyArray = tensor.cpu().numpy()
        return received

    def _fail(self, states: Sequence[tuple[int, int]], message: AnyArray, *, own: BaseException | None) -> None:
        failed = {rank: length for rank, (state, length) in enumerate(states) if state == _FAILED}
        failures: _Failures = {
            rank: json.loads(self._from(rank, message, length).tobytes()) for rank, length in failed.items()
        }
        self._is_over = True
        texts = {json.dumps(failure) for failure in failures.values()}
        if len(failures) < self.size or len(texts) > 1:
            self._raise_named(failures, own=own)

    def _raise_named(self, failures: _Failures, *, own: BaseException | None) -> NoReturn:
        first, *others = failures
        document = failures[first]
        more = f" (and {', '.join(map(self.name, others))})" if others else ""
        kind = getattr(errors, document["class"], CalibrationError)
        rows = {key: document.get(key) for key in ("found", "needed", "fix")}
        among = f"of {self.size}" if self._is_whole else f"in a group of {self.size}"
        raise kind(f"{self.name(first)} {among} failed{more}: {document['what']}", **rows) from own

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Whatever is raised on the way, an interrupt too: the ranks are at different places, so nothing follows."""
        try:
            yield
        except BaseException as error:
            self._is_over = True
            if isinstance(error, PostprocError) or not isinstance(error, Exception):
                raise
            raise CalibrationError(
                "the process group failed in the middle of a calibration",
                found=str(error).partition("\n")[0],
                fix="look for a rank that has ended or waits elsewhere: every rank has to compute",
            ) from error


def _initialised(torch: Any) -> Any:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise UsageError(
            "there is no process group to calibrate over",
            needed="torch.distributed.init_process_group() in every process",
            fix="start the program with torchrun, or call compute() without distributed=True",
        )
    return torch.distributed


def _device(torch: Any, backends: str) -> Any:
    """Return where a group's tensors have to be: on the CPU where one of its backends works there (gloo, not nccl).

    Parameters
    ----------
    torch
        The package.
    backends
        As `torch.distributed.get_backend_config` has it: ``"cpu:gloo,cuda:nccl"``.
    """
    devices = [pair.partition(":")[0] for pair in backends.split(",")]
    if "cpu" in devices:
        return torch.device("cpu")
    return torch.device(devices[0], torch.get_device_module(devices[0]).current_device())


def _as_bytes(document: object) -> AnyArray:
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8).copy()


def _document(error: BaseException) -> dict[str, Any]:
    if isinstance(error, PostprocError):
        rows = {"what": error.what, "found": error.found, "needed": error.needed, "fix": error.fix}
        return {"class": type(error).__name__, **rows}
    return {"class": "CalibrationError", "what": f"{type(error).__name__}: {error}".removesuffix(": ")}
