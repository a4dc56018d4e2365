"""What a file whose record is gone is judged by: statistics that are given, and options that are given or assumed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from postproc_export.errors import UsageError
from postproc_export.float32 import shortest
from postproc_export.graphs.detached import Found, FoundTail, is_exported
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.graphs.state import state_of
from postproc_export.parity.models.model_file import no_record, own_tails
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail_options import TailOptions

_GIVEN: Final = ("image_sensitivity", "pixel_sensitivity", "comparison")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is given beside a file; where the file has a record it has to agree with that.

    Parameters
    ----------
    stats
        The statistics that the tail was made from; None where none were given.
    path
        The file that they came from; None where they came from memory.
    image_sensitivity, pixel_sensitivity, comparison
        As the tail was attached with; None is the default of attaching.
    """

    stats: CalibrationStats | None = None
    path: str | Path | None = None
    image_sensitivity: float | None = None
    pixel_sensitivity: float | None = None
    comparison: Any = None

    @property
    def where(self) -> str:
        """Where the statistics came from, for people."""
        return "the statistics" if self.path is None else str(self.path)

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: getattr(self, name) for name in _GIVEN if getattr(self, name) is not None}

    @property
    def arguments(self) -> tuple[str, ...]:
        """What gives the same on the command line; statistics in memory cannot be given there."""
        stats = [] if self.path is None else ["--stats", str(self.path)]
        options = (f"--{name.replace('_', '-')}={value}" for name, value in self.options.items())
        return (*stats, *options)

    def record(self, found: Found, raw: Mapping[Level, str], original: Mapping[str, Any], *, where: Any) -> TailRecord:
        """Return a record for a file that has none.

        Parameters
        ----------
        found
            What is in the graph.
        raw, original
            As a record of the format has them.
        where
            The file.

        Raises
        ------
        UnsupportedModelError
            If no statistics were given, or there is no tail that was attached.
        UsageError
            If they do not calibrate what the file decides.
        """
        tails = own_tails(found.tails)
        if self.stats is None or not tails or any(_was_exported(tail) for tail in found.tails.values()):
            raise no_record(where, found)
        options = state_of(tails, None).options
        default = TailOptions()
        options = replace(options, **{name: self.options.get(name, getattr(default, name)) for name in _GIVEN})
        if len(tails) < len(LEVELS):
            options = replace(options, levels=next(iter(tails)))
        stats, lacking = self.stats, [level for level in tails if not _is_calibrated(self.stats, level)]
        if lacking and all(_has_range(stats, level) for level in lacking):
            options, stats = replace(options, match_thresholds=True), stats.with_matched_thresholds()
            lacking = [level for level in tails if not _is_calibrated(stats, level)]
        if lacking:
            raise UsageError(
                f"{self.where} does not calibrate the {' and '.join(lacking)} level, which {where} decides by",
                needed="the statistics that the file was attached with",
            )
        return TailRecord(version="", stats=stats, options=options, raw=raw, original=original)

    def describe(self, record: TailRecord) -> str:
        """Return what was assumed of a file without a record, for people."""
        told = [_told(record.options, name, is_given=name in self.options) for name in _GIVEN if _matters(record, name)]
        return f"the file has no record '{METADATA_KEY}': judged by {self.where}, {', '.join(told)}"

    def refuse_contradiction(self, record: TailRecord, *, where: Any) -> None:
        """Refuse what is not as the record of a file has it.

        Raises
        ------
        UsageError
            If there is such.
        """
        given = replace(record.options, **self.options)
        wrong = [
            f"{item.name} is {_shown(record.options, item.name)} by the record, {_shown(given, item.name)} as given"
            for item in fields(TailOptions)
            if getattr(given, item.name) != getattr(record.options, item.name)
        ]
        wrong += self._other_statistics(record)
        if wrong:
            raise UsageError(
                f"{where} has a record that says otherwise than what is given",
                found="; ".join(wrong),
                needed="what the record says, or nothing: then the record is used",
                fix="leave the option out; or `postproc-export update` the file, if the record is what is wrong",
            )

    def _other_statistics(self, record: TailRecord) -> Iterator[str]:
        if self.stats is None:
            return
        stats = self.stats.with_matched_thresholds() if record.options.match_thresholds else self.stats
        for level in record.levels:
            ours, given = record.stats.level(level), stats.level(level)
            for name in ("threshold", "min", "max"):
                recorded, found = getattr(ours, name), getattr(given, name, None)
                if recorded != found:
                    yield f"{name} of the {level} level is {recorded} by the record, {found} in {self.where}"


def _told(options: TailOptions, name: str, *, is_given: bool) -> str:
    return f"{name.replace('_', ' ')} {_shown(options, name)} ({'given' if is_given else 'the default'})"


def _shown(options: TailOptions, name: str) -> str:
    value = getattr(options, name)
    return str(shortest(value)) if isinstance(value, float) else str(value)


def _matters(record: TailRecord, name: str) -> bool:
    """Whether an option has any effect on the file."""
    level = name.removesuffix("_sensitivity")
    return record.options.enable_thresholding and (name == "comparison" or level in record.levels)


def _was_exported(tail: FoundTail) -> bool:
    """Whether a tail was surely never attached: one with labels alone looks like the eager module's once converted."""
    return is_exported(tail) and not (isinstance(tail, OwnTail) and tail.decides and not tail.is_normalised)


def _is_calibrated(stats: CalibrationStats, level: Level) -> bool:
    of_level = stats.level(level)
    return of_level is not None and of_level.is_calibrated


def _has_range(stats: CalibrationStats, level: Level) -> bool:
    return stats.level(level) is not None
