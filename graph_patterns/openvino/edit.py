"""Edit an OpenVINO model where its readers allow it: take matched operators out, change numbers."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from graph_patterns.expr import SharedValueError, free_name
from graph_patterns.match import Site, Value

# --- Take matched operators out of an OpenVINO model, safely: nothing that is left may read what goes.

_SINKS: Final = ("Result", "Assign")


def remove(model: Any, values: Iterable[Value], *, results: Iterable[Any] = (), instead: Iterable[Any] = ()) -> None:
    """Remove the operators that compute values, such as those of a `Match`, and results; changes the model in place.

    An operator that no result reaches is gone. `instead` are results to add first: a model without any drops all its
    operators. Raises SharedValueError, with nothing changed, if an operator or a result that stays reads one of the
    values.
    """
    gone: list[Any] = list(values)
    results = list(results)
    going = {_key(value.get_node()) for value in gone} | {_key(result) for result in results}
    for value in gone:
        for output in value.get_node().outputs():
            for reader in output.get_target_inputs():
                if _is_live(reader.get_node(), going):
                    raise _shared(value.get_node(), reader.get_node())
    model.add_results(list(instead))
    for result in results:
        model.remove_result(result)


def _is_live(node: Any, going: set[str]) -> bool:
    """Whether anything that stays needs an operator: not where it leads to operators alone that go."""
    pending, seen = [node], set(going)
    while pending:
        current = pending.pop()
        if _key(current) in seen:
            continue
        seen.add(_key(current))
        readers = [reader.get_node() for output in current.outputs() for reader in output.get_target_inputs()]
        if current.get_type_name() in _SINKS or not readers:
            return True
        pending += readers
    return False


def _key(node: Any) -> str:
    return str(node.get_name())  # unique in a model, unlike the friendly name, and not kept in files


def _shared(node: Any, reader: Any) -> SharedValueError:
    name = reader.get_friendly_name()
    return SharedValueError(
        f"'{node.get_friendly_name()}' has a reader outside what is to be removed",
        found=f"reader {name}",
        needed="every value of it read only inside it",
        fix=f"remove {name} first, or export the model again without it",
    )


# --- Change numbers of an OpenVINO model where they are read; other readers of the same constant keep theirs.


def set_numbers(model: Any, numbers: Mapping[Site, float], *, prefix: str) -> None:
    """Set numbers at sites of a `Match`, in place; `prefix` is put before the name of a constant with other readers.

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
        constant.set_friendly_name(old if is_own else free_name(f"{prefix}{old}", taken))


def _node(value: Any) -> Any:
    return value.get_node()
