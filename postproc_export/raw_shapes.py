"""Which shapes a raw score and a raw map may have: docs/definition.md section 1."""

from collections.abc import Sequence

from postproc_export.errors import UnsupportedModelError

SCORE_SHAPES = "[], [N] or [N, 1]"
MAP_SHAPES = "[N, H, W] or [N, 1, H, W]"
CHANNEL_LAST = "its channel axis is the last one (channel-last)"

_CHANNEL_NAMES = frozenset({"c", "channel", "channels"})
_HEIGHT_NAMES = frozenset({"h", "height"})


def check_shapes(score: Sequence[int] | None, anomaly_map: Sequence[int] | None) -> None:
    """Check the shapes of one batch; None stands for a level that the model does not have.

    Raises
    ------
    UnsupportedModelError
        If a score has more than one value per image, a map more than one channel, the number of axes is another one, or
        the batch sizes differ.

    Notes
    -----
    Only sizes that are integers are judged: while a graph is traced a dynamic size is none, and asking would freeze it.
    """
    if score is not None:
        _check_score(score)
    if anomaly_map is not None:
        _check_map(anomaly_map)
    if score is not None and anomaly_map is not None:
        images, maps = score[0] if score else 1, anomaly_map[0]
        if _differ(images, maps):
            raise _refused(f"pred_score is for {images} images and anomaly_map for {maps}", score, f"of {maps} images")


def is_channel_last(axes: Sequence[int | str | None]) -> bool:
    """Whether a map is [N, H, W, 1]: its second axis is not 1, and its last one is, or the axes' names say so."""
    if len(axes) != 4 or axes[1] == 1:
        return False
    second, _, last = (axis.lower() if isinstance(axis, str) else axis for axis in axes[1:])
    return last == 1 or last in _CHANNEL_NAMES or second in _HEIGHT_NAMES


def _check_score(shape: Sequence[int]) -> None:
    if len(shape) > 2:
        raise _refused(f"pred_score has {len(shape)} axes", shape, SCORE_SHAPES)
    if len(shape) == 2 and _differ(shape[1], 1):
        raise _refused("pred_score has not one value per image", shape, SCORE_SHAPES)


def _check_map(shape: Sequence[int]) -> None:
    if len(shape) not in (3, 4):
        raise _refused(f"anomaly_map has {len(shape)} axes", shape, MAP_SHAPES)
    if all(isinstance(size, int) for size in shape) and is_channel_last(shape):
        raise _refused(f"anomaly_map: {CHANNEL_LAST}", shape, MAP_SHAPES)
    if len(shape) == 4 and _differ(shape[1], 1):
        raise _refused(f"anomaly_map has {shape[1]} channels", shape, MAP_SHAPES)


def _differ(size: int, other: int) -> bool:
    return isinstance(size, int) and isinstance(other, int) and size != other


def _refused(what: str, shape: Sequence[int], needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(what, found=f"shape {list(shape)}", needed=f"shape {needed}")
