"""What one part of a source answers in a pass, and how the answers of parts add up to that of the whole.

A part is what one task reads: a chunk of an array, some shard files. Answers hold histograms and, of bins that survive,
few values; so that is all that travels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.ordered import Keys
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.tables import Grid, sum_tables
from postproc_export.calibration.counting.values import ReadValues


class Part(Protocol):
    """Some of the values of a level."""

    @property
    def number(self) -> int:
        """Number of the array or of the shards it belongs to; what is wrong in the lowest one is reported."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of the part."""
        ...

    def signatures(self) -> Sequence[object]:
        """Return the state of its files as it was when they were read."""
        ...


class Work(Protocol):
    """One pass: what every part is asked."""

    def run(self, part: Part) -> Any:
        """Return the answer of a part."""
        ...

    def add(self, answers: Sequence[Any]) -> Any:
        """Return the answer of parts that follow each other, from theirs in order; at least one."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of one part, and how many values it read for it."""

    answer: Any
    read: int


class _Counting:
    """A part that counts the values read from it."""

    def __init__(self, part: Part) -> None:
        self._part, self.read = part, 0
        self.number, self.signatures = part.number, part.signatures

    def blocks(self) -> Iterator[Block]:
        for block in self._part.blocks():
            yield block
            self.read += block.values.size


def reply(part: Part, work: Work) -> Reply:
    """Return what a part answers."""
    counting = _Counting(part)
    answer = work.run(counting)
    return Reply(answer, counting.read)


def add_replies(work: Work, answers: Sequence[Any]) -> Any:
    """Add up answers, replies of parts or sums of them."""
    return work.add([each.answer if isinstance(each, Reply) else each for each in answers])


@dataclass(frozen=True, slots=True)
class Divide:
    """Divide chosen bins of a table into 2^bits, or collect their values where bits is 0.

    Notes
    -----
    It goes to every worker, so it holds no more of the table than what finds a value's bin: 5 bytes for each bin from
    the first chosen one to the last.
    """

    starts: Keys
    widths: NDArray[np.uint8]
    chosen: Indices
    low: int
    high: int
    bits: int

    @classmethod
    def of(cls, table: Table, chosen: Indices, *, bits: int) -> "Divide":
        """Return the work of one pass over the chosen bins."""
        first, end = int(chosen[0]), int(chosen[-1]) + 1
        starts, widths = table.starts[first:end].copy(), table.widths[first:end].copy()
        return cls(starts, widths, chosen - first, table.low, table.high, bits)

    def run(self, part: Part) -> Table:
        """Return the finer bins of a part."""
        none = np.zeros(self.starts.size, dtype=np.int64)  # the counts of these bins do not matter
        table = Table(starts=self.starts, widths=self.widths, normal=none, anomalous=none, low=self.low, high=self.high)
        values = ReadValues(part.blocks)
        return values.split(table, self.chosen, bits=self.bits) if self.bits else values.collect(table, self.chosen)

    def add(self, answers: Sequence[Table]) -> Table:
        """Return the finer bins of the whole: collected values are few, cells are added where they stand."""
        if not self.bits:
            return sum_tables(answers, low=self.low, high=self.high)
        grid = Grid(self.starts[self.chosen], int(self.widths[self.chosen[0]]), self.bits)
        counts = grid.dense(answers[0])
        for answer in answers[1:]:
            counts += grid.dense(answer)
        return grid.table(counts, low=self.low, high=self.high)


@dataclass(frozen=True, slots=True)
class Extremes:
    """Find the lowest and highest wide value that rounds to a threshold."""

    threshold: np.float32

    def run(self, part: Part) -> tuple[float, float]:
        """Return them for a part."""
        return ReadValues(part.blocks).extremes_at(self.threshold)

    def add(self, answers: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Return them for the whole."""
        return min(low for low, _ in answers), max(high for _, high in answers)
