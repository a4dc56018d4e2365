"""Tensor names of an OpenVINO model: each may stand on one tensor only, and a tensor may have several."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from postproc_export.errors import UnsupportedModelError

_BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("get_then_body", "get_else_body"),
    "Loop": ("get_function",),
    "TensorIterator": ("get_function",),
}


def models_of(model: Any) -> Iterator[Any]:
    """Iterate over a model and the bodies nested in its operators."""
    pending = [model]
    while pending:
        current = pending.pop()
        yield current
        for node in current.get_ops():
            pending.extend(getattr(node, getter)() for getter in _BODIES.get(node.get_type_name(), ()))


def outputs_of(model: Any) -> Iterator[Any]:
    """Iterate over the outputs of all operators of one scope; a result repeats its tensor's names."""
    for node in model.get_ops():
        yield from node.outputs()


def value_name(output: Any) -> str:
    """Return how a record names the output of an operator: ``<friendly name>:<port>``."""
    return f"{output.get_node().get_friendly_name()}:{output.get_index()}"


def described(result: Any) -> dict[str, Any]:
    """Return a result as a record keeps it."""
    source = result.input_value(0)
    return {
        "name": result.get_friendly_name(),
        "source": source.get_node().get_friendly_name(),
        "port": source.get_index(),
        "tensor_names": sorted(source.get_names()),
    }


def new_result(output: Any, name: str) -> Any:
    """Make a result of an operator's output."""
    import openvino.opset13 as opset

    result = opset.result(output)
    result.set_friendly_name(name)
    return result


def used_names(model: Any) -> tuple[set[str], set[str]]:
    """Return the tensor names and the friendly names of all scopes."""
    tensors: set[str] = set()
    friendly: set[str] = set()
    for scope in models_of(model):
        for node in scope.get_ops():
            friendly.add(node.get_friendly_name())
            for output in node.outputs():
                tensors |= output.get_names()
    return tensors, friendly


def name_operator(node: Any, name: str, used: set[str]) -> None:
    """Give an operator a friendly name that no other has, and add it to `used`."""
    candidate, count = name, 1
    while candidate in used:
        candidate, count = f"{name}_{count}", count + 1
    used.add(candidate)
    node.set_friendly_name(candidate)


def refuse_ambiguous(model: Any, nodes: Iterable[Any]) -> None:
    """Refuse a model in which the operator of an output shares its name: a record could not say which one it was.

    Raises
    ------
    UnsupportedModelError
        If one does.
    """
    for name in ambiguous(model, (node.get_friendly_name() for node in nodes)):
        raise UnsupportedModelError(
            f"several operators are called '{name}', and one of them gives an output",
            needed="each operator with a name of its own",
            fix="convert the model again, or rename one of them",
        )


def ambiguous(model: Any, names: Iterable[str]) -> list[str]:
    """Return the names, of some, that several operators of a model bear: OpenVINO accepts that silently."""
    bearers = Counter(node.get_friendly_name() for node in model.get_ops() if node.get_type_name() != "Result")
    return sorted({name for name in names if bearers[name] > 1})


def rename_tensors(model: Any, renamed: Mapping[str, str]) -> None:
    """Give names of tensors up for new ones, in place, in every scope; a tensor's other names stay.

    Notes
    -----
    A result has names of its own, which a file keeps and a read gives to the tensor. Its tensor comes first: a name
    that was set through the result alone falls back to the old one when the result is removed.
    """
    if not renamed:
        return
    for scope in models_of(model):
        for output in sorted(outputs_of(scope), key=lambda item: item.get_node().get_type_name() == "Result"):
            names = output.get_names()
            if not names.isdisjoint(renamed):
                output.set_names({renamed.get(name, name) for name in names})


def refuse_duplicates(model: Any, names: Iterable[str]) -> None:
    """Refuse a model in which one of our names stands on two tensors: OpenVINO would take any one silently."""
    wanted = set(names)
    bearer: dict[str, Any] = {}
    for output in outputs_of(model):
        node = output.get_node()
        tensor = node.input_value(0) if node.get_type_name() == "Result" else output
        for name in output.get_names() & wanted:
            if bearer.setdefault(name, tensor) != tensor:
                raise UnsupportedModelError(
                    f"the tensor name '{name}' stands on two tensors", needed="each name on one tensor"
                )
