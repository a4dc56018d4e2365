"""Which map makes its image's score count as NaN where it holds one, and how: docs/definition.md section 5."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from postproc_export.errors import UnsupportedModelError
from postproc_export.runtimes.protocol import PortInfo

GuardForm: TypeAlias = Literal["image", "all"]
"""Over what a map is reduced: each image's own map, or all there is."""


@dataclass(frozen=True, slots=True)
class Guard:
    """How the image level is guarded against a NaN in the map.

    Parameters
    ----------
    form
        Over what the map is reduced; None where it does not guard.
    notes
        What a user should know of it.
    why_not
        Why a map that is there does not guard.
    """

    form: GuardForm | None
    notes: tuple[str, ...] = ()
    why_not: str | None = None


def choose_guard(score: PortInfo, anomaly_map: PortInfo, *, is_known: bool, is_wanted: bool) -> Guard:
    """Choose the guard of a model's own score by its map.

    Parameters
    ----------
    score, anomaly_map
        The outputs that were selected.
    is_known
        Whether this output is known to be the map: calibrated, chosen by the user, or by its name.
    is_wanted
        Whether a model that cannot be guarded is refused: where the map is calibrated or chosen.

    Raises
    ------
    UnsupportedModelError
        If score and map cannot be of the same images, and a guard is wanted.
    """
    why_not = batch_contradiction(score, anomaly_map)
    if not is_known:
        why_not = "it is neither calibrated nor chosen with --pixel-output, and not called 'anomaly_map'"
    elif why_not is None:
        return Guard(_form(score, anomaly_map), _notes(score, anomaly_map))
    elif is_wanted:
        raise UnsupportedModelError(
            f"'{anomaly_map.name}' cannot tell which image of '{score.name}' holds a NaN: {why_not}",
            found=f"{score.describe()}; {anomaly_map.describe()}",
            needed="a map with one entry per image on its first axis",
            fix="--no-nan-guard leaves this guard out; --pixel-output says which output is the map, or that none is",
        )
    return Guard(None, (f"a NaN in '{anomaly_map.name}' does not change the image score: {why_not}",), why_not)


def _form(score: PortInfo, anomaly_map: PortInfo) -> GuardForm:
    """Where both are declared for one image, each image's own map will do, at whatever batch such a model runs."""
    if score.rank == 0:
        return "all"
    return "all" if is_one_value(score) is not (anomaly_map.size(0) == 1) else "image"


def is_one_value(score: PortInfo) -> bool:
    """Whether a score is declared with one value, whatever the number of images; an open second axis counts as 1."""
    return score.rank == 0 or score.size(0) == 1


def batches_agree(score: PortInfo, anomaly_map: PortInfo) -> bool:
    """Whether batch sizes that are both fixed are equal; a scalar is one image."""
    images, maps = 1 if score.rank == 0 else score.size(0), anomaly_map.size(0)
    return images is None or maps is None or images == maps


def refuse_other_batch(score: PortInfo, anomaly_map: PortInfo) -> None:
    """Refuse a score and a map for different fixed numbers of images.

    Raises
    ------
    UnsupportedModelError
        If they are.
    """
    if not batches_agree(score, anomaly_map):
        raise UnsupportedModelError(
            f"output '{score.name}' is for {score.size(0) or 1} images "
            f"and output '{anomaly_map.name}' for {anomaly_map.size(0)}",
            found=f"{score.describe()}; {anomaly_map.describe()}",
            needed="the same batch size in both, or a dynamic one",
            fix="re-export the model with one batch axis for both outputs",
        )


def batch_contradiction(score: PortInfo, anomaly_map: PortInfo) -> str | None:
    """Return why score and map cannot have an entry for each image on their first axes; None where they can.

    Notes
    -----
    One value for all maps, and one map for all scores, are no contradiction. Fixed sizes that differ are refused when
    the outputs are selected.
    """
    elsewhere = batch_elsewhere(score, anomaly_map)
    images, maps = score.size(0), anomaly_map.size(0)
    if elsewhere is not None or is_one_value(score) or maps == 1 or (images is None) is (maps is None):
        return elsewhere
    fixed, free = (score, anomaly_map) if maps is None else (anomaly_map, score)
    return None if free.rank is None else f"'{fixed.name}' is for {fixed.size(0)} images, '{free.name}' for any number"


def batch_elsewhere(score: PortInfo, anomaly_map: PortInfo) -> str | None:
    """Return that the batch axis of one stands on another axis of the other; None where it does not."""
    for one, other in ((score, anomaly_map), (anomaly_map, score)):
        axes, others = one.shape or (), other.shape or ()
        if axes and others and isinstance(axes[0], str) and axes[0] != others[0] and axes[0] in others[1:]:
            return f"the batch axis '{axes[0]}' of '{one.name}' is another axis of '{other.name}'"
    return None


def _notes(score: PortInfo, anomaly_map: PortInfo) -> tuple[str, ...]:
    one, other = ((port.shape or (None,))[0] for port in (score, anomaly_map))
    if not isinstance(one, str) or not isinstance(other, str) or one == other:
        return ()
    return (f"the batch axes '{one}' of '{score.name}' and '{other}' of '{anomaly_map.name}' are taken for the same",)
