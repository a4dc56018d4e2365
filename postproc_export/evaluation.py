"""What a file decides of images whose labels or masks are known, beside what calibration promised; docs/metrics.md.

Memory does not grow with the number of images, but by one row for each defect folder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from postproc_export import __version__
from postproc_export.calibration.search import Found
from postproc_export.calibration.statistics import rates_at
from postproc_export.curve import Counts, counts_at
from postproc_export.errors import UsageError, require
from postproc_export.float32 import Half, json_number
from postproc_export.outcome import Outcome
from postproc_export.ranking import FPR_LIMIT, Limits, Ranking
from postproc_export.stats import LEVELS, CalibrationStats, Level

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
ValueKind = Literal["raw", "normalised"]

COLUMNS: Final = ("tp", "fp", "tn", "fn", "precision", "recall", "f1", "fpr")
AREAS: Final = {"auroc": "AUROC", "average_precision": "average precision", "aupro": "AUPRO"}
_AT_ONCE: Final = 1 << 16
_TAIL: Final = 0.05
_SURE: Final = 1e-6  # an area that may be off by more is told as such
_SAMPLES: Final = {"image": "images", "pixel": "pixels"}


class Evaluation:
    """Gathers what a file decides of one image after the other; `result` may be called at any time.

    Parameters
    ----------
    stats
        The statistics that the file was attached with; None where they are not known.
    boundaries
        By level, the raw value from which on the file calls a score anomalous. Without it, or without statistics,
        nothing is said of what calibration promised.
    narrow
        By level, the type of the raw output where it is narrower than float32.
    """

    def __init__(
        self,
        stats: CalibrationStats | None = None,
        *,
        boundaries: Mapping[Level, float] | None = None,
        narrow: Mapping[Level, Half] | None = None,
    ) -> None:
        self._stats, self._boundaries, self._narrow = stats, boundaries or {}, narrow or {}
        self._levels: dict[Level, _Seen] = {level: _Seen(level) for level in LEVELS}
        self._seconds = _OneByOne(Ranking())
        counted = ("total", "normal", "anomalous", "unlabelled", "masks", "empty_masks", "unmasked")
        self._images = dict.fromkeys(counted, 0)
        self._found: EvaluationResult | None = None  # of the images so far

    def add(
        self,
        *,
        group: str,
        label: bool | None = None,
        truth: BoolArray | None = None,
        shown: BoolArray | None = None,
        score: float | None = None,
        raw_score: float | None = None,
        decided: bool | None = None,
        unit_map: FloatArray | None = None,
        raw_map: FloatArray | None = None,
        decided_mask: BoolArray | None = None,
        seconds: float | None = None,
    ) -> None:
        """Count one image.

        Parameters
        ----------
        group
            The folder of its class, such as the kind of its defect.
        label
            True: it is anomalous. None: that is not known, and the image level does not count it.
        truth
            bool, shape (H, W) of the map, True is anomalous. None: the pixel level does not count it.
        shown
            bool, shape (H, W), False where the map shows padding, which is not counted. None: all of it is the image.
        score, raw_score
            Normalised and raw score. A raw score goes before.
        decided
            The label that the file gave; None where it gives none.
        unit_map, raw_map
            float32, shape (H, W): normalised and raw map. A raw map goes before.
        decided_mask
            bool, shape (H, W): the mask that the file gave.
        seconds
            What the model took for this image.

        Raises
        ------
        UsageError
            If a mask has another size than the map or is not bool, or some images have raw values and some have not.
        """
        if truth is not None:
            arrays = {
                "map": unit_map,
                "raw map": raw_map,
                "mask of the file": decided_mask,
                "mask of what is shown": shown,
            }
            _check_masks(group, truth, arrays)
        self._found = None
        self._images["total"] += 1
        known = "unlabelled" if label is None else "anomalous" if label else "normal"
        self._images[known] += 1
        if seconds is not None:
            self._seconds.add(seconds, is_anomalous=False)
        if decided and any(values is not None and np.isnan(values).any() for values in (raw_map, unit_map)):
            # what guards the score: a NaN in the map counts as a NaN in the score, which the raw one does not show
            raw_score, score = (None if value is None else float("nan") for value in (raw_score, score))
        if label is not None:
            self._levels["image"].add_score(group, label, score, raw_score, decided)
        if truth is not None:
            self._images["masks"] += 1
            self._images["empty_masks"] += bool(label) and not truth.any()
            self._levels["pixel"].add_map(group, truth, shown, unit_map, raw_map, decided_mask)
        elif any(pixels is not None for pixels in (unit_map, raw_map, decided_mask)):
            self._images["unmasked"] += bool(label)

    def result(self) -> "EvaluationResult":
        """Return the figures of all images so far."""
        if self._found is None:
            self._found = self._result()
        return self._found

    def _result(self) -> "EvaluationResult":
        notes = []
        if self._images["empty_masks"]:
            notes.append(
                f"{self._images['empty_masks']} anomalous image(s) have a mask without an anomalous pixel: all their "
                "pixels count as normal"
            )
        if self._images["unmasked"]:
            notes.append(f"pixel level: {self._images['unmasked']} anomalous image(s) have no mask and are not counted")
        levels = {level: seen.result(self._promise(seen)) for level, seen in self._levels.items()}
        for found in levels.values():
            notes += [] if found is None else found.notes()
        return EvaluationResult(
            images=dict(self._images), levels=levels, latency=self._seconds.latency(), notes=tuple(notes)
        )

    def _promise(self, seen: "_Seen") -> "Promise | None":
        boundary = self._boundaries.get(seen.level)
        stats = None if self._stats is None else self._stats.level(seen.level)
        counts = None if stats is None else counts_at(stats, boundary, self._narrow.get(seen.level))
        if self._stats is None or counts is None or boundary is None or not seen.groups:
            return None
        trials: dict[str, Any] = {"recall": counts.anomalous, "fpr": counts.normal}
        if seen.level == "pixel":
            samples = self._stats.details.get("samples")
            samples = samples if isinstance(samples, Mapping) else {}
            trials = {"recall": samples.get("anomalous"), "fpr": samples.get("images")}
        return Promise.of(boundary, counts, trials, seen.rates(), seen.trials())


class _OneByOne:
    """A ranking that is fed single values, many at a time."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._values: list[float] = []
        self._truth: list[bool] = []
        self._count = 0

    def add(self, value: float, *, is_anomalous: bool) -> None:
        self._values.append(value)
        self._truth.append(is_anomalous)
        self._count += 1
        if len(self._values) >= _AT_ONCE:
            self.ranking()

    def ranking(self) -> Ranking:
        """Return the ranking of all that was added."""
        self._ranking.add(np.array(self._values, np.float32), np.array(self._truth, np.bool_))
        self._values, self._truth = [], []
        return self._ranking

    def latency(self) -> dict[str, Any] | None:
        """Return median and 95 % quantile of seconds, and of how many images; None without any."""
        shares = {"median": 0.5, "p95": 0.95}
        found = {name: self.ranking().quantile(share) for name, share in shares.items()}
        return {"images": self._count, **found} if self._count else None


class _Seen:
    """What was seen of one level."""

    def __init__(self, level: Level) -> None:
        self.level: Level = level
        self.groups: dict[str, NDArray[np.int64]] = {}  # TP, FP, TN and FN of the file's decisions, by folder
        self.ranking = Ranking()
        self._single = _OneByOne(self.ranking)
        self.kind: ValueKind | None = None
        self.images = {
            "normal": 0,
            "anomalous": 0,
        }  # images with a truth; of the pixel level those that hold such pixels
        self.special = {"nan": 0, "at_0": 0, "at_1": 0}

    def add_score(
        self, group: str, label: bool, score: float | None, raw_score: float | None, decided: bool | None
    ) -> None:
        self.images["anomalous" if label else "normal"] += 1
        if decided is not None:
            self._decide(group, np.array([decided]), np.array([label]))
        value = self._chosen(raw_score, score)
        if value is not None:
            self._look(np.array([value], np.float32))
            self._single.add(float(value), is_anomalous=label)

    def add_map(
        self,
        group: str,
        truth: BoolArray,
        shown: BoolArray | None,
        unit_map: FloatArray | None,
        raw_map: FloatArray | None,
        decided_mask: BoolArray | None,
    ) -> None:
        def pixels(values: Any) -> Any:
            return values.ravel() if shown is None else values[shown]

        flags = pixels(truth)
        self.images["anomalous"] += bool(flags.any())
        self.images["normal"] += not flags.all()
        if decided_mask is not None:
            self._decide(group, pixels(decided_mask), flags)
        values = self._chosen(raw_map, unit_map)
        if values is not None:
            picked = pixels(values).astype(np.float32, copy=False)
            self._look(picked)
            marked = truth if shown is None else truth & shown
            self.ranking.add(picked, flags, regions_of(marked)[marked] - 1 if flags.any() else None)

    def _chosen(self, raw: Any, unit: Any) -> Any:
        """Return the raw values, else the normalised ones, and remember which: they have no common order."""
        kind: ValueKind | None = "raw" if raw is not None else "normalised" if unit is not None else None
        if kind is not None and self.kind not in (None, kind):
            raise UsageError(
                f"{self.level} level: some images have raw values and some have not",
                found=f"{kind} values behind {self.kind} ones",
                needed="raw values of all images or of none",
            )
        self.kind = kind or self.kind
        return raw if raw is not None else unit

    def _look(self, values: FloatArray) -> None:
        self.special["nan"] += int(np.count_nonzero(np.isnan(values)))
        if self.kind == "normalised":
            self.special["at_0"] += int(np.count_nonzero(values == 0))
            self.special["at_1"] += int(np.count_nonzero(values == 1))

    def _decide(self, group: str, decided: BoolArray, truth: BoolArray) -> None:
        tp = np.count_nonzero(decided & truth)
        fp, fn = np.count_nonzero(decided) - tp, np.count_nonzero(truth) - tp
        row = self.groups.setdefault(group, np.zeros(4, np.int64))
        row += (tp, fp, truth.size - tp - fp - fn, fn)

    def rates(self) -> dict[str, Any]:
        """Return counts and rates of all decisions."""
        return _rates(sum(self.groups.values(), np.zeros(4, np.int64)))

    def trials(self) -> dict[str, int]:
        """Return how many images stand behind recall and false-positive rate."""
        return {"recall": self.images["anomalous"], "fpr": self.images["normal"]}

    def result(self, promise: "Promise | None") -> "LevelResult | None":
        """Return the figures; None where there was nothing to compare."""
        if not any(self.images.values()) or (self.kind is None and not self.groups):
            return None
        ranking = self._single.ranking()
        clamped = {name: self.special[name] for name in ("at_0", "at_1")}
        return LevelResult(
            level=self.level,
            decisions=self.rates() if self.groups else None,
            groups={name: _rates(counts) for name, counts in sorted(self.groups.items())},
            values=self.kind,
            n_normal=ranking.n_normal,
            n_anomalous=ranking.n_anomalous,
            n_nan=self.special["nan"],
            clamped=clamped if self.kind == "normalised" else None,
            regions=ranking.n_regions if self.level == "pixel" else None,
            areas=ranking.areas(),
            promise=promise,
        )


def _check_masks(group: str, truth: BoolArray, arrays: Mapping[str, NDArray[Any] | None]) -> None:
    """Raise UsageError unless all arrays of an image have one size, and its masks are bool."""
    given = {"truth": truth} | {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if array.shape != truth.shape:
            raise UsageError(
                f"the truth of an image in '{group}' has another size than the {name}",
                found="x".join(map(str, truth.shape)),
                needed="x".join(map(str, array.shape)),
                fix="bring the mask to the size of the map first",
            )
        if "map" not in name and array.dtype != np.bool_:
            what = f"the {name} of an image in '{group}' is no mask"
            raise UsageError(what, found=str(array.dtype), needed="bool", fix="compare it with 0 first: mask > 0")


def regions_of(mask: BoolArray) -> NDArray[np.int32]:
    """Return the number of each pixel's region, from 1, and 0 outside: pixels that touch, at a corner too, are one."""
    ndimage = require("scipy.ndimage", purpose="finding the regions of a mask")
    found: NDArray[np.int32] = ndimage.label(mask, structure=np.ones((3, 3)))[0]
    return found


def _rates(counts: NDArray[np.int64]) -> dict[str, Any]:
    tp, fp, tn, fn = counts.tolist()
    return rates_at(Found(0, tp, fp), normal=tn + fp, anomalous=tp + fn)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 90 % interval of Clopper and Pearson of a share of trials, of which there are more than 0.

    It holds the true share at least 90 times of 100, however few trials there are. Those of two samples of one kind
    miss each other less than 4 times of 100.
    """
    special = require("scipy.special", purpose="the interval of a rate")
    hits, missing = share * count, count - share * count
    low = float(special.betaincinv(hits, missing + 1, _TAIL)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, missing, 1 - _TAIL)) if missing else 1.0
    return low, high


@dataclass(frozen=True, slots=True)
class Promise:
    """What the validation samples of the calibration were called at the boundary of the file, and what was measured."""

    boundary: float  # raw units
    counts: Counts  # of the calibration
    rows: Mapping[str, Mapping[str, Any]]  # by rate: promised (lowest, highest), measured, trials, intervals, differs

    @classmethod
    def of(
        cls,
        boundary: float,
        counts: Counts,
        trials: Mapping[str, Any],
        measured: Mapping[str, Any],
        measured_trials: Mapping[str, int],
    ) -> "Promise":
        """Compare what was promised with what was measured.

        A precision depends on how many images are anomalous, so that alone is not judged.
        """
        rows = {}
        for name, limits in counts.rates.items():
            value = measured[name]
            row: dict[str, Any] = {"promised": None if limits is None else list(limits), "measured": value}
            if name in measured_trials:
                sizes = [trials.get(name), measured_trials[name]]
                row |= {"trials": sizes, "intervals": None, "differs": None}
                known = [size for size in sizes if type(size) is int and size > 0]
                if limits is not None and value is not None and len(known) == len(sizes):
                    before = [share_interval(limits[0], known[0])[0], share_interval(limits[1], known[0])[1]]
                    now = list(share_interval(value, known[1]))
                    row |= {"intervals": [before, now], "differs": now[1] < before[0] or before[1] < now[0]}
            rows[name] = row
        return cls(boundary, counts, rows)

    def notes(self, level: Level) -> Iterator[str]:
        """Yield what differs by more than chance explains."""
        for name, row in self.rows.items():
            if row.get("differs"):
                before, now = (" to ".join(map(_shown, ends)) for ends in row["intervals"])
                what = f"{level} level: the {'false-positive rate' if name == 'fpr' else name}"
                yield (
                    f"{what} is {_shown(row['measured'])} ({now}), and calibration promised "
                    f"{_between(row['promised'])} ({before}): chance alone hardly explains that; usual causes are "
                    "other images or another pre-processing than in calibration, and a threshold chosen on few images"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        rows = {name: dict(row) for name, row in self.rows.items()}
        return {"boundary": json_number(self.boundary), "validation": self.counts.to_json(), **rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelResult:
    """The figures of one level."""

    level: Level
    decisions: Mapping[str, Any] | None  # counts and rates of the file's decisions; None where it gives none
    groups: Mapping[str, Mapping[str, Any]]  # the same of each defect folder
    values: ValueKind | None  # which values the areas are of; None where there are none
    n_normal: int  # values
    n_anomalous: int
    n_nan: int
    clamped: Mapping[str, int] | None  # how many normalised values are 0 and 1, which tie; None for raw values
    regions: int | None  # anomalous regions; None for the image level
    areas: Mapping[str, Limits | None]
    promise: Promise | None

    def notes(self) -> Iterator[str]:
        """Yield what a reader of the figures should know."""
        what = _SAMPLES[self.level]
        if self.decisions is None:
            yield f"{self.level} level: the file gives no {'labels' if self.level == 'image' else 'masks'} to be judged"
        if self.values is not None and not (self.n_normal and self.n_anomalous):
            only = "normal" if self.n_normal else "anomalous"
            yield f"{self.level} level: all {what} are {only}, so the areas under curves are not defined"
        wide = {name: (area["high"] - area["low"]) / 2 for name, area in self.areas.items() if area is not None}
        if max(wide.values(), default=0.0) > _SURE:
            told = ", ".join(f"{AREAS[name]} to within {half:.1g}" for name, half in wide.items())
            yield f"{self.level} level: there are too many different values to keep them all: {told} of what is told"
        if self.n_nan:
            yield f"{self.level} level: {self.n_nan} of the {what} have the value NaN, which counts as the highest"
        if self.clamped is not None and any(self.clamped.values()):
            yield (
                f"{self.level} level: the areas are of normalised values, of which {self.clamped['at_0']} are clamped "
                f"to 0 and {self.clamped['at_1']} to 1: these tie, and the areas of raw values may be higher"
            )
        if self.promise is not None:
            yield from self.promise.notes(self.level)

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield the figures in words."""
        rates = self.decisions
        if rates is not None:
            found = rates["tp"], rates["tp"] + rates["fn"], rates["fp"], rates["tn"] + rates["fp"]
            told = ", ".join(f"{name.upper() if len(name) < 4 else name} {_shown(rates[name])}" for name in COLUMNS[4:])
            what = "{} of {} anomalous found, {} of {} normal called anomalous".format(*map(_thousands, found))
            yield self.level, f"{what}; {told}"
        areas = [f"{AREAS[name]} {_shown(area['value'])}" for name, area in self.areas.items() if area is not None]
        if areas:
            yield "", f"{', '.join(areas)} of {self.values} values"
        if self.promise is not None:
            rows = self.promise.rows.items()
            told = ", ".join(
                f"{name.upper() if len(name) < 4 else name} {_between(row['promised'])}" for name, row in rows
            )
            yield "", f"calibration promised {told}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        areas: dict[str, Any] = {name: None if area is None else dict(area) for name, area in self.areas.items()}
        if areas["aupro"] is not None:
            areas["aupro"] |= {"fpr_limit": FPR_LIMIT, "regions": self.regions}
        return {
            "decisions": None if self.decisions is None else dict(self.decisions),
            "groups": {name: dict(row) for name, row in self.groups.items()},
            "values": self.values,
            "n_normal": self.n_normal,
            "n_anomalous": self.n_anomalous,
            "n_nan": self.n_nan,
            "clamped": None if self.clamped is None else dict(self.clamped),
            **(areas if self.level == "pixel" else {name: areas[name] for name in ("auroc", "average_precision")}),
            "promised": None if self.promise is None else self.promise.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EvaluationResult(Outcome):
    """What a file decided of images with known answers."""

    images: Mapping[str, int]  # total, normal, anomalous, unlabelled, masks, empty_masks, unmasked
    levels: Mapping[Level, LevelResult | None]
    latency: Mapping[str, Any] | None = None  # of the model, seconds per image: median, p95, and of how many images
    notes: tuple[str, ...] = field(default=())

    def headline(self) -> str:
        """Return of how many images the figures are."""
        found = self.images
        unlabelled = f", {found['unlabelled']} without a label" if found["unlabelled"] else ""
        return (
            f"evaluated {found['total']} images: {found['normal']} normal, {found['anomalous']} anomalous{unlabelled}, "
            f"{found['masks']} with a mask"
        )

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield the figures of each level, the latency and the notes."""
        for level, found in self.levels.items():
            if found is None:
                yield level, "not evaluated: nothing to compare"
            else:
                yield from found.facts()
        if self.latency is not None:
            median, p95 = (1000 * self.latency[name] for name in ("median", "p95"))
            yield "latency", f"median {median:.3g} ms, 95 % within {p95:.3g} ms per image, the model alone"
        yield from (("note", note) for note in self.notes)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the confusion matrix and the rates of each level, then of each defect folder, as a table shows them."""
        for level, found in self.levels.items():
            if found is not None and found.decisions is not None:
                for name, rates in (("all", found.decisions), *found.groups.items()):
                    counts = (_thousands(rates[column]) for column in COLUMNS[:4])
                    yield level, name, *counts, *(_shown(rates[column]) for column in COLUMNS[4:])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of metrics.json."""
        return {
            "version": __version__,
            "images": dict(self.images),
            "levels": {level: None if found is None else found.to_json() for level, found in self.levels.items()},
            "latency": None if self.latency is None else dict(self.latency),
            "notes": list(self.notes),
        }


def _shown(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4f}"


def _between(limits: list[float] | None) -> str:
    low, high = limits or (None, None)
    return _shown(low) if low == high else f"{_shown(low)} to {_shown(high)}"


def _thousands(count: int) -> str:
    return f"{count:,}"
