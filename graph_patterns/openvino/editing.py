"""Change numbers of an OpenVINO model where they are read; other readers of the same constant keep theirs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from graph_patterns.match import Site


def set_numbers(model: Any, numbers: Mapping[Site, float], *, prefix: str) -> None:
    """Set numbers at sites of a `Match`, in place.

    Parameters
    ----------
    model
        The `openvino.Model`.
    numbers
        The new number for each operand.
    prefix
        Put before the name of a constant whose old one is still read elsewhere.

    Notes
    -----
    A constant cannot change, so each operand gets a new one of its element type and shape; a compressed one becomes a
    constant of the full type.
    """
    import openvino.opset13 as opset

    taken = {node.get_friendly_name() for node in model.get_ops()}
    for (value, index), number in numbers.items():
        operand = _node(value).input(index)
        source = operand.get_source_output()
        dtype = source.get_element_type().to_dtype()
        shape = list(source.get_shape())
        constant = opset.constant(np.full(shape, number, dtype=dtype))
        old = source.get_node().get_friendly_name()
        is_own = len(source.get_target_inputs()) == 1
        operand.replace_source_output(constant.output(0))
        constant.set_friendly_name(old if is_own else _unused(f"{prefix}{old}", taken))


def _unused(base: str, taken: set[str]) -> str:
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name


def _node(value: Any) -> Any:
    return value.get_node()
