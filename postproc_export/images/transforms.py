"""torchvision's transforms and Anomalib's `PreProcessor`, read as the fields of a `Preprocessing`.

They are known by the names and attributes of their classes, those of torchvision's v1 and v2 alike. Neither package is
imported.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, get_args

from postproc_export.errors import UsageError
from postproc_export.images.resizing import Interpolation
from postproc_export.validation import shown

_ORDER: Final = ("Grayscale", "Resize", "CenterCrop", "Normalize")
_TO_TENSOR: Final = ("ToTensor", "PILToTensor", "ToImage")
_TO_DTYPE: Final = ("ToDtype", "ConvertImageDtype")
_NOTHING: Final = ("Identity", "RGB", "ToPureTensor")
_PILLOW: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's own numbers
_NEEDED: Final = f"{', '.join(_ORDER)}, each at most once and in this order, with conversions to float32"


def fields_of(transform: object) -> dict[str, Any]:
    """Return the fields that a transform stands for; a UsageError names the part of it that cannot be expressed.

    A `PreProcessor` gets tensors from 0 to 1. What else never converts to float is taken to get such values, too, as
    `Normalize` asks for them.
    """
    fields: dict[str, Any] = {"resize": "none"}
    is_float = is_tensor = _is_a(transform, "PreProcessor")
    done: list[str] = []
    for step in _steps(transform):
        name = type(step).__name__
        if name in _ORDER:
            if any(_ORDER.index(name) <= _ORDER.index(before) for before in done):
                raise _refused(step, f"it comes after {done[-1]}")
            done.append(name)
            fields |= _resize(step, is_tensor=is_tensor) if name == "Resize" else _READ[name](step)
        elif name in (*_TO_TENSOR, *_TO_DTYPE):
            becomes_float = name == "ToTensor" or (name in _TO_DTYPE and _is_to_float(step, is_float=is_float))
            if becomes_float and not is_float:
                if "Normalize" in done:
                    raise _refused(step, "it comes after Normalize")
                fields |= {"scale": 1.0} if name == "ToDtype" and not _of(step, "scale") else {}
            is_tensor, is_float = True, is_float or becomes_float
        elif name not in _NOTHING:
            raise _refused(step, "nothing here does the same")
    return fields


def _is_a(transform: object, name: str) -> bool:
    return any(each.__name__ == name for each in type(transform).__mro__)


def _steps(transform: object) -> Iterator[object]:
    """Yield the transforms that are applied one after the other."""
    if _is_a(transform, "PreProcessor"):
        inside = [_of(transform, "transform")]
    elif type(transform).__name__ == "Compose":
        inside = _of(transform, "transforms")
    elif type(transform).__name__ == "Sequential" or isinstance(transform, list | tuple):
        inside = list(transform)  # type: ignore[call-overload]  # torch's Sequential is iterable
    else:
        yield transform
        return
    for each in inside:
        yield from _steps(each)


def _of(step: object, name: str) -> Any:
    try:
        return getattr(step, name)
    except AttributeError as error:
        raise _refused(step, f"it has no attribute {name!r}, which torchvision's has") from error


def _refused(step: object, why: str) -> UsageError:
    return UsageError(
        f"the transform {type(step).__name__} cannot be read as a pre-processing: {why}",
        found=shown(step),
        needed=_NEEDED,
        fix="say by the fields of Preprocessing what is done to an image",
    )


def _size(step: object) -> tuple[int, ...]:
    size = _of(step, "size")
    sides = tuple(size) if isinstance(size, list | tuple) else (size,)
    if len(sides) not in (1, 2) or not all(type(side) is int for side in sides):
        raise _refused(step, f"its size is {size!r}")
    return sides


def _resize(step: object, *, is_tensor: bool) -> dict[str, Any]:
    if getattr(step, "max_size", None) is not None:
        raise _refused(step, "it has a max_size")
    value = getattr(_of(step, "interpolation"), "value", _of(step, "interpolation"))
    name = _PILLOW[value] if type(value) is int and 0 <= value < len(_PILLOW) else value
    if name == "nearest" and is_tensor:
        raise _refused(step, "of tensors its 'nearest' takes the pixel above the centre; 'nearest-exact' can be read")
    name = "nearest" if name == "nearest-exact" else name
    if name not in get_args(Interpolation):
        raise _refused(step, f"its interpolation is {value!r}")
    antialias = getattr(step, "antialias", None)
    if name != "nearest" and (antialias is False or (is_tensor and antialias is not True)):
        raise _refused(step, f"its antialias is {antialias!r}")
    sides = _size(step)
    return {"resize": "stretch" if len(sides) == 2 else "shorter", "size": (sides[0], sides[-1]), "interpolation": name}


def _crop(step: object) -> dict[str, Any]:
    sides = _size(step)
    return {"crop": (sides[0], sides[-1])}


def _gray(step: object) -> dict[str, Any]:
    if _of(step, "num_output_channels") != 1:
        raise _refused(step, "it repeats the gray channel")
    return {"channel_order": "gray"}


def _numbers(step: object) -> dict[str, Any]:
    return {name: tuple(float(number) for number in _of(step, name)) for name in ("mean", "std")}


_READ: Final[Mapping[str, Callable[[object], dict[str, Any]]]] = {
    "Grayscale": _gray,
    "CenterCrop": _crop,
    "Normalize": _numbers,
}


def _is_to_float(step: object, *, is_float: bool) -> bool:
    """Whether a conversion is one to float32; bytes may stay bytes."""
    dtype = str(_of(step, "dtype")).removeprefix("torch.")
    if dtype != "float32" and (dtype != "uint8" or is_float):
        raise _refused(step, f"it converts to {dtype}")
    return dtype == "float32"
