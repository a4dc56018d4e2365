"""Calibration by several processes of one job: ranks that add their counts exactly."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import numpy as np

from postproc_export import __version__, errors
from postproc_export.calibration import tally
from postproc_export.calibration.arrays import AnyArray
from postproc_export.calibration.counting import Divide, Extremes, Passes, coarse_pass, exact_table, sum_tables
from postproc_export.calibration.statistics import level_stats
from postproc_export.calibration.table import Counts, Table, key_of
from postproc_export.calibration.tally import Counted, LevelState, Tally
from postproc_export.errors import CalibrationError, PostprocError, UsageError, require
from postproc_export.policies import Policy, Range
from postproc_export.run_options import CalibratorOptions
from postproc_export.stats import LEVELS, Level, LevelStats

# Meetings of the ranks of a process group: no rank waits for one that has failed, and every rank learns why.
#
# Every exchange opens with a meeting in which each rank says whether it has failed and how much it sends. A rank that
# fails between two meetings says so at the next one, so the others never wait for its share.

_GOING: Final = 0
FAILED: Final = 1
_ADD: Final = 2
_GATHER: Final = 3
_END: Final = 4


@contextmanager
def all_ranks(group: Any) -> Iterator["Ranks"]:
    """Open the exchange between the ranks of a process group; all of them have to enter, and leave together."""
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
    """The ranks of a process group, seen from one of them; `all_ranks` opens and ends it."""

    def __init__(self, group: Any) -> None:
        self._torch = require("torch", purpose="calibrating over several processes")
        self._dist = self._torch.distributed
        if not (self._dist.is_available() and self._dist.is_initialized()):
            raise UsageError(
                "there is no process group to calibrate over",
                needed="torch.distributed.init_process_group() in every process",
                fix="start the program with torchrun, or call compute() without distributed=True",
            )
        self._group = self._dist.group.WORLD if group is None else group
        self.rank = self._dist.get_rank(self._group)
        if self.rank < 0:
            raise UsageError("this process is not in the group", fix="call it on the ranks of the group only")
        self.size = self._dist.get_world_size(self._group)
        self._is_whole = self.size == self._dist.get_world_size()
        self._device = device_of(self._torch, self._dist.get_backend_config(self._group))
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
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        document: dict[str, Any] = {"class": "CalibrationError", "what": what}
        if isinstance(error, PostprocError):
            rows = {"what": error.what, "found": error.found, "needed": error.needed, "fix": error.fix}
            document = {"class": type(error).__name__, **rows}
        message = _as_bytes(document)
        with self._exchange():
            self._fail(self._states(FAILED, message.size), message, own=error)

    def name(self, rank: int) -> str:
        """Return how messages call a rank of the group: by its number among all processes."""
        number = self._dist.get_global_rank(self._group, rank)
        return f"rank {number}" if self._is_whole else f"global rank {number}"

    def _meet(self, kind: int, size: int) -> list[int]:
        states = self._states(kind, size)
        if any(state == FAILED for state, _ in states):
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
        failed = {rank: length for rank, (state, length) in enumerate(states) if state == FAILED}
        failures = {rank: json.loads(self._from(rank, message, length).tobytes()) for rank, length in failed.items()}
        self._is_over = True
        texts = {json.dumps(failure) for failure in failures.values()}
        if len(failures) < self.size or len(texts) > 1:
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


def device_of(torch: Any, backends: str) -> Any:
    """Return where a group's tensors have to be: on the CPU where one of its backends works there (gloo, not nccl)."""
    devices = [pair.partition(":")[0] for pair in backends.split(",")]
    if "cpu" in devices:
        return torch.device("cpu")
    return torch.device(devices[0], torch.get_device_module(devices[0]).current_device())


def _as_bytes(document: object) -> AnyArray:
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8).copy()


# One calibration over the ranks of a process group: the counts of all, the same statistics on each, bit for bit.
#
# What moves: a short report of every rank; 1 MB per level in one all-reduce (or, for a million values or fewer, the
# distinct ones); then per pass an all-reduce of up to 16 MB, or the few values that are left, 12 bytes each. What
# follows from the sums is computed by every rank for itself, so all of them ask for the same passes, those without
# values too.


def distributed_levels(
    states: Mapping[Level, LevelState],
    policies: Mapping[Level, Sequence[Policy]],
    ranges: Mapping[Level, Range],
    asked: CalibratorOptions,
    ranks: Ranks,
) -> dict[Level, LevelStats | None]:
    """Return the statistics of what all ranks have seen; every rank takes part in the same exchanges.

    Raises a UsageError if the ranks have other options than each other, a CalibrationError if a level has ground truth
    on some ranks only, or for whatever stops a calibration in one process.
    """
    own = {level: {name: getattr(states[level].tally, name) for name in _SHARED} for level in LEVELS}
    described = {
        **{f"{level}_policy": each[0].text for level, each in policies.items()},
        **{f"{level}_range": each.text for level, each in ranges.items()},
        "nonfinite": asked.nonfinite,
        "exact": asked.exact,
        "steps": list(asked.steps),
        "anomalous_label": str(asked.anomalous_label),
        "compare": [policy.text for policy in policies["image"][1:]],
        "resamples": asked.resamples,
        "version": __version__,
    }
    reports = ranks.gather_json({"options": described, "levels": own})
    _check_alike([report["options"] for report in reports], ranks)
    shares = {level: [report["levels"][level] for report in reports] for level in LEVELS}
    labelled = {level: _labelled(level, shares[level], ranks) for level in LEVELS}
    return {
        level: level_stats(
            level,
            _counted(states[level].tally, shares[level], ranks, labelled=flag),
            policies[level],
            ranges[level],
            values=partial(_ask, states[level].passes(), ranks),
            resamples=asked.resamples,
            exact=asked.exact,
        )
        for level, flag in labelled.items()
        if flag is not None
    }


_SHARED: Final = ("labelled", "seen", "dropped", "is_wide", "low", "high")  # of every rank's tally


def _check_alike(described: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
    for rank, each in enumerate(described):
        different = [name for name in each if each[name] != described[0][name]]
        if different:
            name = different[0]
            found = f"{name} {described[0][name]!r} on {ranks.name(0)}, {each[name]!r} on {ranks.name(rank)}"
            raise UsageError("the ranks calibrate with different options", found=found, needed="the same everywhere")


def _labelled(level: Level, shares: Sequence[Mapping[str, Any]], ranks: Ranks) -> bool | None:
    """Return whether a level has ground truth; None where no rank has seen it."""
    told = [(rank, share["labelled"]) for rank, share in enumerate(shares) if share["labelled"] is not None]
    flags = {flag: rank for rank, flag in reversed(told)}
    if len(flags) > 1:
        raise CalibrationError(
            f"{level} level: some ranks have ground truth and others have not",
            found=f"{ranks.name(flags[True])} with, {ranks.name(flags[False])} without",
            needed="ground truth everywhere or nowhere",
        )
    return next(iter(flags), None)


def _counted(own: Tally, shares: Sequence[Mapping[str, Any]], ranks: Ranks, *, labelled: bool) -> Counted:
    """Return what the first pass counted on all ranks: what one process would have, so sorted values up to `SMALL`."""
    low, high = (key_of(end) for end in (min(s["low"] for s in shares), max(s["high"] for s in shares)))
    is_exact = sum(share["seen"] for share in shares) <= tally.SMALL
    mine = own.table(exact=is_exact)
    table = _gathered(mine, ranks, low, high) if is_exact else _added(mine, coarse_pass(low, high), ranks)
    is_wide, dropped = any(share["is_wide"] for share in shares), sum(share["dropped"] for share in shares)
    return Counted(table, labelled, is_exact=is_exact, is_wide=is_wide, dropped=dropped)


def _ask(passes: Passes, ranks: Ranks, work: Divide | Extremes) -> Any:
    """Return the answer of a pass over the values of all ranks, each of which counts its own."""
    own = passes(work)
    if isinstance(work, Extremes):
        ends = ranks.gather(np.array(own, dtype=np.float64))
        return work.add([(float(low), float(high)) for low, high in ends])
    return _added(own, work, ranks) if work.bits else _gathered(own, ranks, work.low, work.high)


def _added(own: Table, grid: Divide, ranks: Ranks) -> Table:
    return grid.table(*ranks.add(grid.dense(own)))


def _gathered(own: Table, ranks: Ranks, low: int, high: int) -> Table:
    """Return the sum of tables of few values: keys and counts of every rank as int32, which such counts fit."""
    sent = np.concatenate([own.starts.view(np.int32), own.normal.astype(np.int32), own.anomalous.astype(np.int32)])
    parts = []
    for received in ranks.gather(sent):
        keys, normal, anomalous = received.reshape(3, -1)
        counts = (normal.astype(np.int64), anomalous.astype(np.int64))
        parts.append(exact_table(keys.view(np.uint32), *counts, low=low, high=high))
    return sum_tables(parts, low=low, high=high)
