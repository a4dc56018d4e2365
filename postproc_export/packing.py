"""The packed layout: one float32 output [N, H, W, 4] in place of four, docs/definition.md section 8."""

from collections.abc import Collection, Iterator
from typing import Final

from postproc_export.errors import UsageError
from postproc_export.outputs import Selection
from postproc_export.runtimes.protocol import Axis, PortInfo
from postproc_export.stats import LEVELS, Level

PACKED_OUTPUT: Final = "output"
PARTS: Final = ("anomaly_map", "pred_score", "pred_label", "pred_mask")
"""What ``output[..., 0]`` to ``output[..., 3]`` hold."""


def place(part: str) -> str:
    """Return how a part of the packed output is written: ``output[..., 0]`` for the map, and so on."""
    return f"{PACKED_OUTPUT}[..., {PARTS.index(part)}]"


def packed_shape(port: PortInfo) -> tuple[Axis, ...] | None:
    """Return the declared shape of the packed output of a map."""
    return None if port.shape is None else (port.shape[0], *port.shape[-2:], len(PARTS))


def refuse_unpackable(selection: Selection, calibrated: Collection[Level]) -> None:
    """Refuse a model that has no packed form.

    Parameters
    ----------
    selection
        The raw outputs.
    calibrated
        The levels that the statistics calibrate.

    Raises
    ------
    UsageError
        With the reason.
    """
    for reason, found in _problems(selection, calibrated):
        raise UsageError(
            f"the packed layout cannot be had: {reason}",
            found=found,
            needed="a calibrated map [N, H, W] or [N, 1, H, W], and one calibrated score per image or none of its own",
            fix="leave out --layout packed",
        )


def _problems(selection: Selection, calibrated: Collection[Level]) -> Iterator[tuple[str, str]]:
    score, anomaly_map = selection.image, selection.pixel
    if anomaly_map is None:
        yield "the model has a score only, and no map to lay it beside", _shown(score)
        return
    for level in LEVELS:
        if level not in calibrated:
            yield f"the {level} level has no statistics", f"calibrated: {', '.join(calibrated) or 'none'}"
    if score is not None:
        yield from _score_problems(score, anomaly_map)


def _score_problems(score: PortInfo, anomaly_map: PortInfo) -> Iterator[tuple[str, str]]:
    """A score of one image would be laid over all images of a batch, without an error."""
    found = f"{_shown(score)}; {_shown(anomaly_map)}"
    if score.rank is None:
        yield "the score's rank is not known, so it may be one score for several images", found
    elif (score.rank == 0 or score.size(0) == 1) and anomaly_map.size(0) != 1:
        yield "one score would be laid over several images, since the batch of the map is not fixed to 1", found


def _shown(port: PortInfo | None) -> str:
    return "no output" if port is None else port.describe()
