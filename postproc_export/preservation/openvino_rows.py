"""What an operator of an OpenVINO model is, as rows that can be compared."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.preservation.alignment import Key, keyed

Row: TypeAlias = Mapping[str, Any]

BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("get_then_body", "get_else_body"),
    "Loop": ("get_function",),
    "TensorIterator": ("get_function",),
}
_CHUNK: Final = 16 * 1024 * 1024


def operators(model: Any) -> dict[Key, Any]:
    """Return the operators but for results, by friendly name."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() != "Result")
    return keyed(nodes, lambda node: node.get_friendly_name())


def row(node: Any, names: Mapping[str, str]) -> Row:
    """Return what is compared of an operator, but for the values of constants, the bodies, and marks.

    Parameters
    ----------
    node
        The operator.
    names
        Tensor names that were moved: {in the raw model: in the attached one}.

    Notes
    -----
    The marks of single operators (their rt_info) have no form in Python; `openvino_marks` reads them from the file.
    """
    info = node.get_type_info()
    found: dict[str, Any] = {
        "type": f"{info.name} of {info.version_id}",
        "attributes": {key: str(value) for key, value in node.get_attributes().items()},
    }
    for index in range(node.get_input_size()):
        source = node.input_value(index)
        found[f"operand {index}"] = f"{source.get_node().get_friendly_name()}:{source.get_index()}"
    for output in node.outputs():
        at = output.get_index()
        found[f"names of output {at}"] = sorted(names.get(name, name) for name in output.get_names())
        found[f"element type of output {at}"] = output.get_element_type().get_type_name()
        found[f"shape of output {at}"] = str(output.get_partial_shape())
    return found


def bodies(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the models nested in an operator."""
    for getter in BODIES.get(node.get_type_name(), ()):
        yield getter.removeprefix("get_"), getattr(node, getter)()


def wiring(node: Any) -> list[str]:
    """Return how an operator feeds its bodies and takes from them."""
    found = []
    for of_body in range(len(BODIES.get(node.get_type_name(), ()))):
        for getter in ("get_input_descriptions", "get_output_descriptions"):
            method = getattr(node, getter)
            descriptions = method(of_body) if node.get_type_name() == "If" else method()
            found += [_described(item) for item in descriptions]
    return found


def same_values(raw: Any, attached: Any) -> bool:
    """Whether two constants hold the same bits; a piece at a time, so that mapped weights are not loaded as a whole."""
    before, after = _bytes(raw), _bytes(attached)
    if before.size != after.size:
        return False
    return all(
        np.array_equal(before[at : at + _CHUNK], after[at : at + _CHUNK]) for at in range(0, before.size, _CHUNK)
    )


def flattened(info: Any, path: str = "") -> dict[str, str]:
    """Return the entries of a model's rt_info as text, nested ones with their path."""
    found: dict[str, str] = {}
    for key in info:
        value = getattr(info[key], "value", info[key])
        name = f"{path}/{key}" if path else str(key)
        found |= flattened(value, name) if isinstance(value, dict) else {name: str(value)}
    return found


def _described(item: Any) -> str:
    values = {name: getattr(item, name) for name in dir(item) if not name.startswith("_")}
    return f"{type(item).__name__} { ({name: value for name, value in values.items() if not callable(value)}) }"


def _bytes(constant: Any) -> NDArray[np.uint8]:
    values = constant.data
    if values.dtype.kind in "OSU":
        return np.frombuffer(repr(values.tolist()).encode(), np.uint8)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
