"""An attached file, ready to run: its scores, labels, maps and masks, and the raw values that they are made of."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.files import check_model
from postproc_export.float32 import HostDtype
from postproc_export.formats.base import Format, format_of
from postproc_export.images.preprocessing import image_input
from postproc_export.ports import PortInfo
from postproc_export.process import temporary_folder
from postproc_export.raw_model import filled, per_image
from postproc_export.reading.found import FoundTails, Tails, refuse_damaged
from postproc_export.reading.report import LevelReport, report_level
from postproc_export.reading.tail import LABEL_OUTPUT, SCORE_OUTPUT
from postproc_export.record import TailRecord
from postproc_export.run_options import PredictOptions
from postproc_export.runtimes import Array, Runner, as_float32, open_runner
from postproc_export.stats import LEVELS, CalibrationStats, Level, unit_scores
from postproc_export.tail import INPUT_NAMES, PACKED_OUTPUT, PARTS, adjustable_defaults, input_name

_TAPS: Final[Mapping[Level, str]] = {"image": "postproc-predict/raw_score", "pixel": "postproc-predict/raw_map"}
_PURPOSE: Final = "running an OpenVINO IR"


class Outputs(NamedTuple):
    """What the file gives for a batch; None for what it does not give."""

    scores: NDArray[np.float32] | None  # (n,)
    labels: NDArray[np.bool_] | None  # (n,)
    maps: NDArray[np.float32] | None  # (n, H, W)
    masks: NDArray[np.bool_] | None  # (n, H, W)
    raw_scores: NDArray[np.float32] | None  # (n,)
    raw_maps: NDArray[np.float32] | None  # (n, H, W)
    seconds: float  # of the model, per image


class AttachedFile:
    """An attached file, loaded, with the raw values as further outputs where they are asked for.

    Parameters
    ----------
    path, runner, port
        The file, the model, and its input for images.
    tails, record
        What was found in it; without a record it is an export that nothing was attached to, such as Anomalib's.

    Raises
    ------
    UnsupportedModelError
        If it has no post-processing.
    """

    def __init__(self, asked: PredictOptions) -> None:
        self.path = path = Path(asked.model)
        check_model(path)
        form = format_of(path)
        found = _found(form, path)
        self.tails: Tails = found.tails
        self.record: TailRecord | None = found.record
        taps = {_TAPS[level]: form.value_name(tail.raw) for level, tail in self.tails.items()} if asked.raw else {}

        def tap(model: Any) -> bool:
            if found.record is None:
                form.find(model, where=str(path))  # which names outputs that have no name
            form.show(model, taps)
            return True

        options: dict[str, Any] = {name: getattr(asked, name) for name in ("runtime", "precision", "threads")}
        if not taps and found.record is not None:  # the file as it is
            self.runner: Runner = open_runner(path, **options)
        else:
            with temporary_folder() as folder:
                _, runnable = form.edited(path, folder, tap, purpose=_PURPOSE, is_checked=False)
                self.runner = open_runner(runnable, **options)
        adjusting = [port for port in self.runner.inputs if any(map(port.answers_to, INPUT_NAMES))]
        self.port: PortInfo = image_input([port for port in self.runner.inputs if port not in adjusting])
        self._fed = {port.name: _default(port, found, path) for port in adjusting}

    @property
    def stats(self) -> CalibrationStats | None:
        """The statistics that the file records."""
        return None if self.record is None else self.record.stats

    @property
    def levels(self) -> dict[Level, LevelReport | None]:
        """What each level decides; None where it decides nothing."""
        tails = self.tails
        return {
            level: report_level(level, tails[level], record=self.record, is_rounded=False) if level in tails else None
            for level in LEVELS
        }

    def run(self, images: Array, batch_size: int) -> Outputs:
        """Run it on up to `batch_size` images, as it is fed them."""
        count, fed = len(images), {self.port.name: filled(images, batch_size), **self._fed}
        begun = time.perf_counter()
        given = self.runner.run(fed)
        seconds = (time.perf_counter() - begun) / batch_size
        parts = {name: given[port] for name in (*PARTS, *_TAPS.values()) if (port := self._port(name)) is not None}
        if any(tail.is_packed for tail in self.tails.values()):
            parts |= _unpacked(given[self._port(PACKED_OUTPUT) or PACKED_OUTPUT])
        found = {level: self._level(level, parts, batch_size, count) for level in LEVELS}
        (scores, labels, raw_scores), (maps, masks, raw_maps) = found["image"], found["pixel"]
        return Outputs(scores, labels, maps, masks, raw_scores, raw_maps, seconds)

    def _level(self, level: Level, parts: Mapping[str, Array], batch_size: int, count: int) -> tuple[Any, Any, Any]:
        """Return the scores, labels and raw values of a level."""
        tail = self.tails.get(level)
        if tail is None:
            return None, None, None

        def part(name: str, shape: Level = level) -> Array | None:
            return per_image(parts, name, shape, batch_size)[:count] if name in parts else None

        raw = part(_TAPS[level], "pixel" if tail.from_map else level)
        raw = raw.max(axis=(1, 2)) if raw is not None and tail.from_map else raw
        scores, labels = part(SCORE_OUTPUT[level]), part(LABEL_OUTPUT[level])
        stats = None if self.stats is None else self.stats.level(level)
        if scores is not None and not tail.is_normalised:
            scores = None if stats is None else unit_scores(scores, stats)
        return (
            None if scores is None else as_float32(scores),
            None if labels is None else labels != 0,
            None if raw is None else as_float32(raw),
        )

    def _port(self, name: str) -> str | None:
        return next((port.name for port in self.runner.outputs if port.answers_to(name)), None)


def _found(form: Format, path: Path) -> FoundTails:
    """Return the tails of a file, each of which has to be whole."""
    where, model = str(path), form.load(path, purpose=_PURPOSE)
    if not form.was_converted(model, "decision"):
        form.take(model, "decision", where=where)  # decisions behind the tail change what it says, not what it reads
    found = form.find(model, where=where)
    if not found.tails and found.record is None:
        raise UnsupportedModelError(
            f"{path} has no post-processing that is known, so it decides nothing",
            found=f"the outputs {', '.join(sorted(found.outputs))}",
            needed="an attached model, or a finished export",
            fix=f"postproc-export attach {path} --stats FILE, and give the file that it writes",
        )
    refuse_damaged(found, where=where)
    return found


def _default(port: PortInfo, found: FoundTails, path: Path) -> Array:
    """Return what an input that adjusts the decision is given: what was attached."""
    if found.record is None:
        what = f"{path} has to be given '{port.name}', and no record says what was attached"
        raise MetadataError(what, fix="attach to the original again")
    stats, options, narrow = found.record.stats, found.record.options, found.record.narrow
    levels: dict[Level, HostDtype] = {level: narrow.get(level, "float32") for level in found.tails}
    for level, default in adjustable_defaults(stats, options, levels):
        if options.adjustable != "nothing" and port.answers_to(input_name(level, options.adjustable)):
            return np.array(default, np.float32)
    raise MetadataError(f"{path} has the input '{port.name}', of which its record does not tell")


def _unpacked(packed: Array) -> dict[str, Array]:
    """Return the parts of a packed output, (N, H, W, 4): of what belongs to an image one value."""
    if packed.ndim != 4 or packed.shape[-1] != len(PARTS) or 0 in packed.shape:
        raise UnsupportedModelError(
            f"the packed output has the shape {list(packed.shape)}", needed=f"[N, H, W, {len(PARTS)}]"
        )
    of_image = (SCORE_OUTPUT["image"], LABEL_OUTPUT["image"])
    parts = {name: packed[..., index] for index, name in enumerate(PARTS)}
    return {name: values[:, 0, 0] if name in of_image else values for name, values in parts.items()}
