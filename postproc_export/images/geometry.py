"""Where the pixels of an image go on their way to the model's input, and from there to the map."""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from postproc_export.errors import UsageError

Resize = Literal["stretch", "shorter", "pad", "none"]
PadAt = Literal["centre", "corner"]
Size = tuple[int, int]  # height and width
BoolArray = npt.NDArray[np.bool_]


class Axis(NamedTuple):
    """One axis of an image on its way to the input, in pixels: cut, resized, and partly shown in the input."""

    cut: slice  # of the image
    resized: int  # what that becomes
    shown: slice  # of what it becomes
    place: slice  # where that stands in the input; beside it is padding
    size: int  # of the input

    def sources(self) -> npt.NDArray[np.intp]:
        """Return the pixel of the image under the center of each pixel of the input that is no padding."""
        begin: int = self.cut.start
        return begin + under_centers(self.cut.stop - begin, self.resized)[self.shown]


def under_centers(source: int, target: int) -> npt.NDArray[np.intp]:
    """Return which of `source` pixels lies under the center of each of `target` pixels of the same length."""
    under: npt.NDArray[np.intp] = (2 * np.arange(target) + 1) * source // (2 * target)
    return under


def center_offset(length: int, part: int) -> int:
    """Return where the central part of a length begins: half of what is left over, rounded to the even side."""
    return round((length - part) / 2)


def axes_to_input(
    image: Size, *, where: str, precrop: bool, resize: Resize, size: Size, pad_at: PadAt, crop: Size | None
) -> tuple[Axis, Axis]:
    """Return the way of the rows and of the columns of an image to an input of the size `crop`, else `size`.

    Without resizing and with a crop `size` does not matter. `where` names the image in the UsageError for one that does
    not come to the size of the input.
    """
    cuts = [slice(0, length) for length in image]
    if precrop:  # the part of the target's aspect in the middle, rounded down, as Model API's `crop` has it
        kept = (min(image[0], image[1] * size[0] // size[1]), min(image[1], image[0] * size[1] // size[0]))
        begins = [(length - part) // 2 for length, part in zip(image, kept, strict=True)]
        cuts = [slice(begin, begin + max(1, part)) for begin, part in zip(begins, kept, strict=True)]
    resized = resized_size(image, resize, size)
    wanted = crop or size
    axes: list[Axis] = []
    for cut, length, target, part in zip(cuts, resized, size, wanted, strict=True):
        canvas = target if resize == "pad" else length
        at = (canvas - length) // 2 if pad_at == "centre" else 0
        offset = 0 if crop is None else center_offset(canvas, part)
        begin, end = max(at, offset), min(at + length, offset + part)
        if canvas < part or begin >= end or (crop is None and canvas != part):
            becomes = "" if resize == "none" else f", resized to {_text(resized)}"
            raise UsageError(
                f"{where} does not come to the size of the model's input",
                found=f"{_text(image)} (height x width){becomes}",
                needed=_text(wanted) + (" at least" if crop else ""),
                fix=f"take it out, or choose --resize stretch --image-size {_text(size if crop else wanted)}",
            )
        axes.append(Axis(cut, length, slice(begin - at, end - at), slice(begin - offset, end - offset), part))
    return axes[0], axes[1]


def resized_size(image: Size, resize: Resize, size: Size) -> Size:
    """Return the height and width that an image is resized to, before padding; without resizing its own."""
    height, width = image
    if resize == "stretch":
        return size
    if resize == "shorter":  # the longer side is cut off to whole pixels, as torchvision has it
        shorter = min(image)
        return size[0] * height // shorter, size[0] * width // shorter
    if resize == "pad":
        scale = min(size[0] / height, size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    return image


def on_input(mask: BoolArray, rows: Axis, columns: Axis) -> BoolArray:
    """Return a mask of the image at the input's size: of each pixel the one under its center, False in the padding."""
    placed = np.zeros((rows.size, columns.size), bool)
    placed[rows.place, columns.place] = mask[np.ix_(rows.sources(), columns.sources())]
    return placed


def fit_mask(mask: BoolArray, *, height: int, width: int) -> BoolArray:
    """Return the mask at the size of the map: each map pixel takes the mask pixel under its center.

    The ground truth is judged at the map's size, so that the counts are those of the pixels that the deployed model
    labels. A defect thinner than a map pixel may vanish.
    """
    fitted: BoolArray = mask[np.ix_(under_centers(mask.shape[0], height), under_centers(mask.shape[1], width))]
    return fitted


class Line(NamedTuple):
    """One axis of an image below an anomaly map."""

    seen: slice  # of the image: what lies in the map
    under: npt.NDArray[np.intp]  # the index in the map of each of these pixels, ascending


class Placement(NamedTuple):
    """Where an anomaly map lies on its image: the pixels of the image that the model saw, and those of the map there.

    The inverse of the pre-processing: each pixel of the image has the value of the map pixel under its center.
    """

    size: Size  # of the image, upright
    rows: Line  # of the image that lie in the map
    columns: Line

    def on_image(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a map, (H, W), or its colors, (H, W, 3), at the image's size; where the model saw no pixel it is 0."""
        placed = np.zeros((*self.size, *values.shape[2:]), values.dtype)
        # Columns first, of the few rows that the map has: whole rows are copied at once then.
        placed[self.rows.seen, self.columns.seen] = values.take(self.columns.under, 1).take(self.rows.under, 0)
        return placed

    def at_size(self, size: Size) -> "Placement":
        """Return where the map lies on the same image of another size."""
        lines = zip((self.rows, self.columns), self.size, size, strict=True)
        return Placement(size, *(_resampled(*each) for each in lines))

    @property
    def seen(self) -> tuple[slice, slice]:
        """The part of the image that the map covers: rows and columns."""
        return self.rows.seen, self.columns.seen


def _resampled(line: Line, length: int, target: int) -> Line:
    centers = under_centers(length, target)
    first, last = np.searchsorted(centers, [line.seen.start, line.seen.stop])
    return Line(slice(int(first), int(last)), line.under[centers[first:last] - line.seen.start])


def place_map(image: Size, axes: tuple[Axis, Axis], *, map_crop: Size | None, map_size: Size) -> Placement:
    """Return where a map of a size lies on an image that came to the input on these ways."""
    crops = (None, None) if map_crop is None else map_crop
    rows, columns = (_line(*each) for each in zip(axes, crops, map_size, strict=True))
    return Placement(image, rows, columns)


def _line(axis: Axis, crop: int | None, length: int) -> Line:
    covered = crop or axis.size
    offset = axis.place.start - axis.shown.start - (0 if crop is None else center_offset(axis.size, crop))
    # All in units of 1 / (2 cut) input pixels, so that nothing is rounded.
    unit = 2 * (axis.cut.stop - axis.cut.start)
    centers = (2 * np.arange(unit // 2) + 1) * axis.resized
    begin, end = max(axis.shown.start, -offset), min(axis.shown.stop, covered - offset)
    first, last = np.searchsorted(centers, [begin * unit, max(begin, end) * unit])
    under = (centers[first:last] + offset * unit) * length // (unit * covered)
    return Line(slice(axis.cut.start + int(first), axis.cut.start + int(last)), under)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
