"""Whether statistics belong to a model: by its content, else by what it makes of images that are always the same.

Every export of a model has another file, and often other constants. Then the probe decides: four images of hashed
integers, from noise to large patches, which the model that was calibrated and the one at hand are both run on.

What runs models is imported for the probe: most models are told by their content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from graph_patterns.expr import ExplainedError
from postproc_export.errors import (
    MetadataError,
    MissingDependencyError,
    PostprocError,
    UnsupportedModelError,
    UsageError,
    install,
)
from postproc_export.float32 import shortest
from postproc_export.formats.base import DetachResult, Format, Outputs, format_of
from postproc_export.images.preprocessing import Preprocessing, image_input
from postproc_export.options import as_typed
from postproc_export.ports import LEAVE_OUT, Array, PortInfo, Selection, select_outputs
from postproc_export.process import temporary_folder
from postproc_export.record import MODEL_KEY, TailSpec, parse_tails
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.validation import shown

if TYPE_CHECKING:
    from postproc_export.run_options import OriginOptions
    from postproc_export.runtimes import Runner, RuntimeName

Opened: TypeAlias = "tuple[Runner, Selection]"

PROBED: Final = 4
"""Images of the probe. In the first every pixel has a value of its own, in the others patches have."""
_PATCHES: Final = (16, 8, 4)  # on each side of an image
_PLACES: Final = 8  # of a map, besides its maximum
_BATCHES: Final = (PROBED, 1, 2)
_SHAPES: Final[Mapping[Level, tuple[int, ...]]] = {"image": (PROBED,), "pixel": (PROBED, 1 + _PLACES)}
_SHOWN: Final = 12  # digits of a digest
_NOUNS: Final[Mapping[Level, str]] = {"image": "image score", "pixel": "anomaly map"}


def hashed(shape: Sequence[int], *, salt: int) -> Array:
    """Return uint16 numbers that depend on their place and a salt alone: the finaliser of MurmurHash3."""
    bits = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(salt * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return (bits >> np.uint32(16)).astype(np.uint16).reshape(shape)


def probe_pixels(height: int, width: int, channels: int) -> Array:
    """Return the images of the probe, uint16 [4, H, W, C]."""
    images = [hashed((height, width, channels), salt=0)]
    for salt, count in enumerate(_PATCHES, 1):
        patches = hashed((count, count, channels), salt=salt)
        images.append(patches[np.arange(height) * count // height][:, np.arange(width) * count // width])
    return np.stack(images)


def _probe_inputs(runner: Runner, preprocessing: Preprocessing | None) -> Array:
    """Return the probe as the model takes it: images, or where these do not fit it, numbers of its input's shape."""
    if preprocessing is None:
        with suppress(PostprocError):
            preprocessing = Preprocessing().for_input(image_input(runner.inputs))
    if preprocessing is not None:
        settled = preprocessing.for_input(image_input(runner.inputs))
        shape = settled.blank().shape
        height, width = shape[1:] if settled.layout == "nchw" else shape[:2]
        pixels = probe_pixels(height, width, settled.channels)
        return np.stack([settled.arranged(each) for each in (pixels if settled.bits == 16 else pixels >> 8)])
    (port, *others), sizes = runner.inputs, [runner.inputs[0].size(axis) for axis in range(runner.inputs[0].rank or 0)]
    if others or port.dtype not in ("float32", "float16", "float64", "uint8") or None in sizes[1:] or not sizes:
        found = "; ".join(each.describe() for each in runner.inputs)
        raise UnsupportedModelError("there is no probe for inputs of such types or shapes", found=found)
    values = hashed((PROBED, *(size or 0 for size in sizes[1:])), salt=0)
    return (values >> 8).astype(np.uint8) if port.dtype == "uint8" else (values / 65536).astype(port.dtype)


def probe(runner: Runner, selection: Selection, preprocessing: Preprocessing | None) -> dict[Level, Any]:
    """Run a raw model on the probe and return its score per image, and of each map the maximum and some values.

    Raises UnsupportedModelError or UsageError if it does not run on that, or gives values that are not finite.
    """
    from postproc_export.raw_model import run_batch
    from postproc_export.runtimes import as_float32

    images = _probe_inputs(runner, preprocessing)
    static = runner.inputs[0].size(0)
    first: UnsupportedModelError | None = None
    for size in (static,) if static else _BATCHES:
        chunks = [images[start : start + size] for start in range(0, PROBED, size)]
        try:
            runs = [run_batch(runner, selection, chunk, batch_size=size) for chunk in chunks]
        except UnsupportedModelError as error:
            first = first or error
            continue
        found: dict[Level, Any] = {"image": np.concatenate([scores for scores, _ in runs])}
        if selection.pixel is not None:
            maps = np.concatenate([each for _, each in runs if each is not None]).reshape(PROBED, -1)
            places = hashed((_PLACES,), salt=PROBED) % np.uint32(maps.shape[1])
            found["pixel"] = np.concatenate([maps.max(axis=1, keepdims=True), maps[:, places]], axis=1)
        values = {level: as_float32(item) for level, item in found.items()}
        if not all(np.isfinite(item).all() for item in values.values()):
            raise UnsupportedModelError("the model gives values on the probe that are not finite")
        return {level: [_plain(row) for row in item] for level, item in values.items()}
    assert first is not None, "one size at least was tried"
    raise first


def _plain(row: Any) -> Any:
    return [shortest(value) for value in row] if row.ndim else shortest(row)


def model_details(
    path: Path, chosen: Selection | None, opened: Callable[[], Opened], preprocessing: Preprocessing | None
) -> dict[str, Any]:
    """Return what statistics record of the model that they are calibrated on, and of its raw outputs.

    `opened` loads it at float32, behind custom steps; it selects the outputs where they are not chosen. A probe that
    cannot be run is left out, with the reason. Raises a PostprocError if the file cannot be read.
    """
    form = format_of(path)
    document: dict[str, Any] = {"name": path.name, "format": form.name, "digest": form.digest(path)}
    try:
        runner, selection = opened()
        chosen = chosen or selection
        document["probe"] = probe(runner, selection, preprocessing)
    except ExplainedError as error:
        document["probe"] = {"left_out": _reason(error)}
    if chosen is not None:
        names = {level: port.name for level, port in chosen.raw.items()}
        document["outputs"] = {level: names.get(level) for level in LEVELS}
    return document


def origin_details(asked: OriginOptions) -> dict[str, Any]:
    """Return what statistics of values record of the model that gave them, and of how its images were fed.

    Raises a PostprocError if the model cannot be read or is post-processed, or an option has no effect without one.
    """
    from postproc_export.raw_model import choose_raw, open_raw

    outputs: Outputs = {"image_output": asked.image_output, "pixel_output": asked.pixel_output}
    fed = None if asked.preprocessing is None else Preprocessing().replaced(asked.preprocessing)
    if asked.model is None:
        for name, given in outputs.items():
            if given is not None:
                what, fix = f"{as_typed(asked, name)} would have no effect", "leave it out, or give --model"
                raise UsageError(what, found="raw outputs, and not the model that gave them", fix=fix)
        return {} if fed is None else {"preprocessing": fed.to_json()}
    path, steps = Path(asked.model), parse_tails(asked.steps)
    form = format_of(path)
    chosen = None if steps else choose_raw(path, outputs)
    if fed is not None:
        fed = fed.for_input(image_input(form.inputs(form.load(path, purpose="reading an OpenVINO IR"))))

    def opened() -> Opened:
        """Load it behind the steps that the values go through."""
        return open_raw(path, outputs=outputs, steps=steps, runtime=usable_runtime(form))[:2]

    details: dict[str, Any] = {MODEL_KEY: model_details(path, chosen, opened, fed)}
    return details if fed is None else {**details, "preprocessing": fed.to_json()}


def _reason(error: ExplainedError) -> str:
    return " ".join(f"{error.what}{f' ({error.found})' if error.found else ''}".split())


def usable_runtime(form: Format) -> RuntimeName:
    """Return the runtime that runs models of a format here; a MissingDependencyError if none is installed."""
    from postproc_export.runtimes import installed_runtimes

    for name in form.runtimes:
        if name in installed_runtimes():
            return name
    needed = " or ".join(form.runtimes)
    raise MissingDependencyError("no runtime for the model is installed", needed=needed, fix=install(form.runtimes[0]))


class Candidate(NamedTuple):
    """A model that statistics are to be put on."""

    form: Format
    source: Any  # its file, or the model in memory
    where: str  # what messages call it
    remedy: str  # what gives statistics of this very model
    model: Any  # in memory, without the tail
    raw: Mapping[Level, PortInfo]  # the outputs that were chosen; none where the constants of a tail are edited
    steps: Sequence[TailSpec] = ()  # those that are put before the threshold of a file,
    outputs: Outputs | None = None  # and which outputs they were asked to read
    attached: bool = False  # whether the file has a tail,
    inputs: Collection[str] = ()  # which is adjusted by these

    def notes(self, stats: CalibrationStats, *, other_model: bool) -> tuple[str, ...]:
        """Return what a user should know of whether statistics belong to this model; nothing where they are its own.

        Raises UsageError where they are another model's, unless `other_model`.
        """
        outcome = self._other_output(stats) or self._other_size(stats) or self._by_content(stats)
        if isinstance(outcome, UsageError):
            if not other_model:
                raise outcome
            return (f"{outcome.what}, and they are used all the same: {outcome.found}",)
        return () if outcome is None else (outcome,)

    def _opened(self) -> Opened:
        """Load the model for the probe, behind the steps before its threshold."""
        from postproc_export.raw_model import open_raw
        from postproc_export.runtimes import open_runner

        runtime = usable_runtime(self.form)
        raw: Mapping[Level, str | int] = {level: port.name for level, port in self.raw.items()}
        if isinstance(self.source, Path) and not self.attached:
            chosen: Outputs = {f"{level}_output": raw.get(level, LEAVE_OUT) for level in LEVELS}
            outputs = (self.outputs if self.steps else None) or chosen
            return open_raw(self.source, outputs=outputs, steps=self.steps, runtime=runtime)[:2]
        if self.attached:
            with temporary_folder() as folder:
                detached, runnable = self.form.edited(
                    self.source, folder, self._detach, purpose="running an OpenVINO IR", is_checked=False
                )
                runner, raw = open_runner(runnable, runtime=runtime), detached.raw_outputs
        else:
            runner = open_runner(self.form.runnable(self.model), runtime=runtime)
        image, pixel = (raw.get(level, LEAVE_OUT) for level in LEVELS)
        return runner, select_outputs(runner.outputs, image_output=image, pixel_output=pixel)

    def _detach(self, model: Any) -> DetachResult:
        self.form.take(model, "decision", where=self.where)
        return self.form.take(model, "tail", where=self.where)

    def _foreign(self, what: str, found: str, *, needed: str, fix: str | None = None) -> UsageError:
        fixes = [fix or self.remedy, "or --other-model to use them all the same"]
        return UsageError(f"the statistics belong to another {what}", found=found, needed=needed, fix="; ".join(fixes))

    def _other_output(self, stats: CalibrationStats) -> UsageError | None:
        """Return the error for an output that was calibrated, is there, and is not the one that was chosen."""
        ports = self.form.outputs(self.model)
        for level, name in _changed_outputs(stats, self.raw).items():
            if name is not None and any(port.answers_to(name) for port in ports):
                chosen = f"'{self.raw[level].name}'" if level in self.raw else "none"
                return self._foreign(
                    f"output of {self.where}",
                    f"{chosen} is chosen as the {_NOUNS[level]}, and '{name}' of {_name(stats)} was calibrated",
                    needed="the output that was calibrated",
                    fix=None if self.attached else f"--{level}-output {name}",
                )
        return None

    def _other_size(self, stats: CalibrationStats) -> UsageError | None:
        """Return the error for images that the model cannot take, in whatever order its input has the axes."""
        try:
            recorded = Preprocessing.from_json(stats.details["preprocessing"])
            port = image_input(self.form.inputs(self.model))
        except (KeyError, ExplainedError):  # nothing is recorded, or the model takes no images
            return None
        if recorded.input_size is None:
            return None
        shape, sizes = (recorded.channels, *recorded.input_size), [port.size(axis) for axis in (1, 2, 3)]
        if any(all(a in (None, b) for a, b in zip(sizes, order, strict=True)) for order in permutations(shape)):
            return None
        return self._foreign(
            f"model than {self.where}, which takes images of another size",
            f"{port.describe()}; {_name(stats)} was calibrated on images of {' x '.join(map(str, shape))}",
            needed="statistics of images of the size that the model takes",
        )

    def _by_content(self, stats: CalibrationStats) -> UsageError | str | None:
        """Return what the digest does not settle: what the probe says, or why it says nothing."""
        name, recorded = _name(stats), stats.details[MODEL_KEY].get("digest")
        digest = self.form.digest(self.source, inputs=self.inputs)
        if digest is not None and digest == recorded and not _changed_outputs(stats, self.raw):
            return None
        from postproc_export.comparison import SAME_MODEL

        there, here = (f"digest {str(each)[:_SHOWN]}" if each else "no digest" for each in (recorded, digest))
        try:
            if digest is None:
                raise UnsupportedModelError("its weights are not in memory")
            preprocessing = stats.details.get("preprocessing")
            expected = _recorded_probe(stats)
            found = probe(*self._opened(), None if preprocessing is None else Preprocessing.from_json(preprocessing))
            level, difference, now, then = _largest_difference(stats, expected, found)
        except ExplainedError as error:
            reason = f"{_reason(error)}{f'; {error.fix}' if isinstance(error, MissingDependencyError) else ''}"
            return (
                f"whether the statistics, of {name} ({there}), belong to {self.where} ({here}) is not known: {reason}"
            )
        compared = (
            f"on {PROBED} probe images the {_NOUNS[level]} is {shortest(now)} in place of {shortest(then)}, "
            f"{_percent(difference)} of the range off"
        )
        if difference > SAME_MODEL:
            return self._foreign(
                f"model than {self.where}",
                f"they are of {name} ({there}), and {self.where} has {here}; {compared}",
                needed=f"at most {_percent(SAME_MODEL)}, as between exports of one model",
            )
        return f"the statistics are of {name} ({there}), taken for the same model ({here}): {compared}"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 1 else 2}{'f' if share >= 1 else 'g'}} %"


def _name(stats: CalibrationStats) -> str:
    """Return what the statistics call the model that they were calibrated on."""
    recorded = stats.details[MODEL_KEY]
    files = recorded.get("files")  # of older versions
    name = recorded.get("name", next(iter(files), None) if isinstance(files, Mapping) else None)
    return name if isinstance(name, str) and name.isprintable() else "a model without a name"


def _changed_outputs(stats: CalibrationStats, raw: Mapping[Level, PortInfo]) -> dict[Level, str | None]:
    """Return the recorded outputs, None for the maximum of a map, in whose place others were chosen."""
    names = stats.details[MODEL_KEY].get("outputs")
    if not raw or not isinstance(names, Mapping):
        return {}
    recorded = {level: names.get(level) for level in LEVELS if stats.level(level) is not None}
    return {
        level: name
        for level, name in recorded.items()
        if (level in raw) is (name is None) or (name is not None and not raw[level].answers_to(name))
    }


def _recorded_probe(stats: CalibrationStats) -> dict[Level, Array]:
    """Return what the statistics hold of the probe; a MetadataError if it was left out, or is none."""
    recorded = stats.details[MODEL_KEY].get("probe")
    if not isinstance(recorded, Mapping) or "left_out" in recorded:
        reason = recorded.get("left_out") if isinstance(recorded, Mapping) else "an older version wrote them"
        raise MetadataError("the statistics hold no probe", found=shown(reason))
    try:
        values = {level: np.asarray(recorded[level], np.float32) for level in LEVELS if level in recorded}
    except (TypeError, ValueError) as error:
        raise MetadataError("the statistics hold no legal probe", found=str(error)) from error
    if any(each.shape != _SHAPES[level] or not np.isfinite(each).all() for level, each in values.items()):
        raise MetadataError("the statistics hold no legal probe")
    return values


def _largest_difference(
    stats: CalibrationStats, expected: Mapping[Level, Array], found: Mapping[Level, Any]
) -> tuple[Level, float, float, float]:
    """Return where two probes differ most: the level, by how much of its range, and both values.

    Raises MetadataError if neither level tells anything: its values are all the same.
    """
    from postproc_export.comparison import CONSTANT

    rows: list[tuple[float, Level, float, float]] = []
    for level, then in expected.items():
        of_level, now = stats.level(level), np.asarray(found.get(level, then), np.float32)
        if of_level is not None and level in found and min(np.ptp(now), np.ptp(then)) > CONSTANT * of_level.span:
            at = int(np.argmax(np.abs(now - then)))
            ours, theirs = float(now.flat[at]), float(then.flat[at])
            rows.append((abs(ours - theirs) / of_level.span, level, ours, theirs))
    if not rows:
        raise MetadataError("the model makes the same of every probe image")
    difference, level, ours, theirs = max(rows)
    return level, difference, ours, theirs
