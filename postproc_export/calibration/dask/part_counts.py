"""The first pass over parts: counts, range, and what is wrong, exactly as one process would report it."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np

from postproc_export.calibration.counting import tally
from postproc_export.calibration.counting.arrays import Block, Place
from postproc_export.calibration.counting.checks import check_labelled
from postproc_export.calibration.counting.cleaning import Faults, Nonfinite, examine, first_fault
from postproc_export.calibration.counting.histogram import COARSE_WIDTH
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.tables import empty_table, sum_tables
from postproc_export.calibration.dask.parts import Part
from postproc_export.errors import CalibrationError, PostprocError

_HIGHEST_KEY: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class PartCount:
    """What the first pass over a part left; parts that follow each other add up.

    Parameters
    ----------
    table
        Bins 2^16 keys wide, or one per distinct value where `is_exact`; empty where there is no value.
    is_exact, is_wide, dropped
        As in `tally.Counted`.
    labelled, first
        Whether its first block has ground truth, and where that is; None where it has no block.
    number
        The number of the part, or of the part with the trouble.
    faults, error
        The trouble: elements that are not legal, by kind, or why a part could not be read.
    signatures
        The state of the files it was read from.
    """

    table: Table
    is_exact: bool
    is_wide: bool
    dropped: int
    labelled: bool | None
    first: Place | None
    number: int
    faults: Faults
    error: PostprocError | None
    signatures: tuple[object, ...]

    @property
    def seen(self) -> int:
        """All values that were counted."""
        return self.table.n_normal + self.table.n_anomalous

    @property
    def is_in_trouble(self) -> bool:
        """Whether something is wrong."""
        return self.error is not None or bool(self.faults)

    def trouble(self) -> PostprocError:
        """Return the error to raise: why the part cannot be read, or its first illegal element."""
        return self.error if self.error is not None else first_fault(self.faults).error()


@dataclass(frozen=True, slots=True)
class Count:
    """The first pass.

    Parameters
    ----------
    nonfinite
        What is done with values that are not finite.
    carried
        Up to so many values of a part travel as they are, so that a small whole needs no second pass.
    """

    nonfinite: Nonfinite
    carried: int

    def run(self, part: Part) -> PartCount:
        """Return the counts of a part; what is wrong with it is returned, not raised, so that the first is found."""
        counts, faults, error, opening = tally.Tally(), Faults(), None, _Opening()
        try:
            for cleaned in examine(opening.over(part.blocks()), faults, nonfinite=self.nonfinite):
                counts.add(cleaned)
        except PostprocError as caught:
            error = caught.with_traceback(None)  # whose frames hold the values
        is_exact = counts.seen <= min(self.carried, tally.SMALL)
        return PartCount(
            table=_table(counts, is_exact=is_exact),
            is_exact=is_exact,
            is_wide=counts.is_wide,
            dropped=counts.dropped,
            labelled=opening.labelled,
            first=opening.place,
            number=part.number,
            faults=faults,
            error=error,
            signatures=tuple(part.signatures()),
        )

    def add(self, answers: Sequence[PartCount]) -> PartCount:
        """Return the counts of parts that follow each other."""
        exact = all(each.is_exact for each in answers) and sum(each.seen for each in answers) <= tally.SMALL
        tables = [each.table if exact else _coarse(each.table) for each in answers]
        low, high = min(table.low for table in tables), max(table.high for table in tables)
        found = reduce(_joined, answers)
        return dataclasses.replace(
            found,
            table=sum_tables(tables, low=low, high=high),
            is_exact=exact,
            is_wide=any(each.is_wide for each in answers),
            dropped=sum(each.dropped for each in answers),
            signatures=tuple(one for each in answers for one in each.signatures),
        )


class _Opening:
    """Where the first block is, and whether it has ground truth."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.labelled: bool | None = None

    def over(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            if self.place is None:
                self.place, self.labelled = block.place, block.truth is not None
            yield block


def _table(counts: tally.Tally, *, is_exact: bool) -> Table:
    if not counts.seen:
        return empty_table(low=_HIGHEST_KEY, high=0)
    return counts.counted().table if is_exact else counts.coarse_table()


def _coarse(table: Table) -> Table:
    """Return the table in bins 2^16 keys wide; a bin may be there several times until it is summed."""
    starts = (table.starts >> np.uint32(COARSE_WIDTH)) << np.uint32(COARSE_WIDTH)
    return dataclasses.replace(table, starts=starts, widths=np.full(starts.size, COARSE_WIDTH, dtype=np.uint8))


def _joined(left: PartCount, right: PartCount) -> PartCount:
    """Return the left part with its trouble or else that of the right one, and with the first ground truth of both."""
    if left.is_in_trouble:
        same = right.is_in_trouble and right.number == left.number and left.error is None
        return dataclasses.replace(left, faults=_all_faults(left, right), error=right.error) if same else left
    first = left if left.labelled is not None else right
    error = right.error
    try:
        if right.first is not None and right.labelled is not None:
            check_labelled(left.labelled, right.labelled, place=right.first, earlier=left.first)
    except CalibrationError as unlike:
        error = unlike.with_traceback(None)
    return dataclasses.replace(right, labelled=first.labelled, first=first.first, error=error)


def _all_faults(left: PartCount, right: PartCount) -> Faults:
    faults = {kind: dataclasses.replace(fault) for kind, fault in left.faults.items()}  # tasks may run again
    for kind, fault in right.faults.items():
        if kind in faults:
            faults[kind].merge(fault)
        else:
            faults[kind] = fault
    return faults
