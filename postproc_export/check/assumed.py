"""What a file whose record is gone is judged by: statistics that are given, options that are given or assumed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.float32 import shortest
from postproc_export.options import TailOptions
from postproc_export.reading.found import OUTSIDE, FoundTails, is_exported
from postproc_export.record import METADATA_KEY, TailRecord
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.update import state_of

_GIVEN: Final = ("image_sensitivity", "pixel_sensitivity", "comparison")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is given beside a file; where the file has a record it has to agree with that."""

    stats: CalibrationStats | None = None  # that the tail was made from
    path: str | Path | None = None  # the file that they came from; None where they came from memory
    image_sensitivity: float | None = None  # as the tail was attached with; None is the default of attaching
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

    def record(
        self, found: FoundTails, raw: Mapping[Level, str], original: Mapping[str, Any], *, where: Any
    ) -> TailRecord:
        """Return a record for a file that has none; `raw` and `original` as a record of the format has them.

        Raises UnsupportedModelError if no statistics were given, or there is no tail that was attached, and UsageError
        if they do not calibrate what the file decides.
        """
        tails = {level: tail for level, tail in found.tails.items() if tail.is_ours}
        # One with labels alone looks like the eager module's once converted.
        was_exported = any(
            is_exported(tail) and not (tail.is_ours and tail.decides and not tail.is_normalised)
            for tail in found.tails.values()
        )
        if self.stats is None or not tails or was_exported:
            raise _no_record(where, found)
        options = state_of(tails, None).options
        default = TailOptions()
        options = replace(options, **{name: self.options.get(name, getattr(default, name)) for name in _GIVEN})
        if len(tails) < len(LEVELS):
            options = replace(options, levels=next(iter(tails)))
        stats, lacking = self.stats, _uncalibrated(self.stats, tails)
        if lacking and all(stats.level(level) is not None for level in lacking):
            options, stats = replace(options, match_thresholds=True), stats.with_matched_thresholds()
            lacking = _uncalibrated(stats, tails)
        if lacking:
            raise UsageError(
                f"{self.where} does not calibrate the {' and '.join(lacking)} level, which {where} decides by",
                needed="the statistics that the file was attached with",
            )
        return TailRecord(version="", stats=stats, options=options, raw=raw, original=original)

    def describe(self, record: TailRecord) -> str:
        """Return what was assumed of a file without a record, for people."""
        told = []
        for name in _GIVEN:
            has_effect = name == "comparison" or name.removesuffix("_sensitivity") in record.levels
            if has_effect and record.options.enable_thresholding:
                origin = "given" if name in self.options else "the default"
                told.append(f"{name.replace('_', ' ')} {_shown(record.options, name)} ({origin})")
        return f"the file has no record '{METADATA_KEY}': judged by {self.where}, {', '.join(told)}"

    def refuse_contradiction(self, record: TailRecord, *, where: Any) -> None:
        """Raise UsageError where something is not as the record of a file has it."""
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


def _shown(options: TailOptions, name: str) -> str:
    value = getattr(options, name)
    return str(shortest(value)) if isinstance(value, float) else str(value)


def _uncalibrated(stats: CalibrationStats, levels: Mapping[Level, Any]) -> list[Level]:
    found = {level: stats.level(level) for level in levels}
    return [level for level, of_level in found.items() if of_level is None or not of_level.is_calibrated]


def _no_record(path: Path, found: FoundTails) -> UnsupportedModelError:
    """Return the error for a file that attaching did not write, or that lost its record."""
    tails = found.tails.values()
    exported = [name for tail in tails if is_exported(tail) for name in tail.outputs]
    shown = f"no entry '{METADATA_KEY}' in its metadata, and no tail that is known"
    fix = "attach to the raw model with `postproc-export attach`, or use a copy whose metadata was not stripped"
    if exported:
        states = state_of(found.tails, None).stats
        stats = "" if all(states.level(level) is not None for level in found.tails) else " --stats FILE"
        shown = f"post-processing that was exported with the model, at {', '.join(exported)}"
        fix = f"let our tail take its place with `postproc-export update{stats}`, and check what that writes"
        fix = fix if found.is_whole else OUTSIDE
    elif tails:
        shown = f"no entry '{METADATA_KEY}' in its metadata"
        fix = "give the statistics that it was attached with (--stats), or use a copy whose metadata was not stripped"
    return UnsupportedModelError(
        f"{path} cannot be checked: it has no record of a tail",
        found=shown,
        needed="a file written by `postproc-export attach` or `postproc-export update`",
        fix=fix,
    )
