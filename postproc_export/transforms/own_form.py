"""What a class of one's own is exported with: tensors of the form of the host, and what it makes of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from postproc_export.errors import UnsupportedModelError
from postproc_export.outputs import LEAVE_OUT, RAW_NAMES, OutputChoice, Selection
from postproc_export.runtimes.protocol import Axis, PortInfo
from postproc_export.stats import LEVELS, Level
from postproc_export.transforms.own import OwnTail, Tensors, dtype_of, refuse_result
from postproc_export.transforms.plan import LayerOutput, Plan

if TYPE_CHECKING:
    import torch

INPUTS: Final[Mapping[Level, str]] = {"image": "score", "pixel": "map"}
# Sizes of dynamic axes: the export traces the first; a graph with one of its sizes frozen fails at the others. A batch
# of 1 is the commonest of all. The last is smaller than many a class takes, which is no fault of it.
_SIZES: Final[Sequence[Mapping[str, int]]] = (
    {"batch": 2, "height": 96, "width": 128},
    {"batch": 1, "height": 160, "width": 192},
    {"batch": 3, "height": 9, "width": 7},
)
_SEED: Final = 20261124


@dataclass(frozen=True, slots=True)
class Probe:
    """Raw outputs as the host could give them, and what the class makes of them.

    Parameters
    ----------
    given
        In the host's ranks and element types.
    made
        In the class's own.
    """

    given: Tensors
    made: Tensors


@dataclass(frozen=True, slots=True)
class OwnForm:
    """A class of one's own at the form of one host.

    Parameters
    ----------
    tail
        The class.
    ports
        The raw outputs of the host.
    probes
        The first one is what the export traces, the others are of other sizes where the host is dynamic.
    made
        The levels whose values it makes; one that it hands on as it is needs no graph.
    """

    tail: OwnTail
    ports: Mapping[Level, PortInfo]
    probes: tuple[Probe, ...]
    made: tuple[Level, ...]

    @property
    def dynamic(self) -> dict[Level, dict[int, str]]:
        """The symbol of each dynamic axis, by level and axis."""
        symbols = _symbols(self.ports)
        return {
            level: {axis: symbol for axis, symbol in enumerate(symbols[level]) if isinstance(symbol, str)}
            for level in self.ports
        }

    def plan(self) -> Plan:
        """Write down what the layer adds; the values themselves are computed by what was exported."""
        outputs = []
        for level in self.made:
            port = self.ports.get(level)
            name = RAW_NAMES[level] if port is None else port.name
            outputs.append(LayerOutput(name, None, "float32", self._shape(level), None if port is None else name))
        return Plan(
            where="transform",
            tails=(self.tail.spec,),
            outputs=tuple(outputs),
            inputs={INPUTS[level]: port for level, port in self.ports.items()},
        )

    def output_names(self) -> dict[str, str]:
        """Return the name in the host for each output of the export."""
        return dict(zip(exported_names(self.made), (output.name for output in self.plan().outputs), strict=True))

    def _shape(self, level: Level) -> tuple[Axis, ...]:
        """Declare an axis by what it did at several sizes: the host's own, fixed, or of its own making."""
        source = self.ports.get(level) or next(iter(self.ports.values()))
        rank = self.probes[0].made[level].ndim
        return tuple(self._axis(level, axis, source) for axis in range(rank))

    def _axis(self, level: Level, axis: int, source: PortInfo) -> Axis:
        of = level if level in self.ports else next(iter(self.ports))
        if source.shape is not None and all(
            axis < probe.given[of].ndim and probe.made[level].shape[axis] == probe.given[of].shape[axis]
            for probe in self.probes
        ):
            return source.shape[axis]
        sizes = {probe.made[level].shape[axis] for probe in self.probes}
        return sizes.pop() if len(sizes) == 1 else None


def exported_names(levels: Sequence[Level]) -> list[str]:
    """Return the names that an export gives its outputs."""
    return [f"made_{INPUTS[level]}" for level in levels]


def own_form(tail: OwnTail, selection: Selection, outputs: Mapping[str, OutputChoice]) -> OwnForm:
    """Run a class at the form of a host, and refuse what cannot stand behind it.

    Parameters
    ----------
    tail
        The class.
    selection
        The raw outputs of the host.
    outputs
        How they were asked for: a level that is left out is not made either.

    Raises
    ------
    UnsupportedModelError
        If the class does not run, changes what it is given, gives another result each time, or one of another form.
    """
    found: dict[Level, PortInfo | None] = {"image": selection.image, "pixel": selection.pixel}
    ports = {level: port for level, port in found.items() if port is not None}
    left_out = {level for level in LEVELS if outputs.get(f"{level}_output") == LEAVE_OUT}
    probes = tuple(_probes(tail, ports))
    first = probes[0]
    made = tuple(
        level
        for level in LEVELS
        if level in first.made and level not in left_out and first.made[level] is not first.given.get(level)
    )
    return OwnForm(tail, ports, probes, made)


def _probes(tail: OwnTail, ports: Mapping[Level, PortInfo]) -> Iterator[Probe]:
    symbols = _symbols(ports)
    is_dynamic = any(isinstance(axis, str) for axes in symbols.values() for axis in axes)
    for number, sizes in enumerate(_SIZES):
        shapes = {
            level: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
            for level, axes in symbols.items()
        }
        given = {level: _values(shapes[level], port.dtype, number) for level, port in ports.items()}
        try:
            yield _probe(tail, given)
        except UnsupportedModelError:
            if number < len(_SIZES) - 1 or not is_dynamic:
                raise


def _probe(tail: OwnTail, given: Tensors) -> Probe:
    import torch

    name, before = tail.spec.name, {level: tensor.clone() for level, tensor in given.items()}
    with torch.no_grad():
        made, again = tail.run(given), tail.run(given)
    if not are_same(before, given):
        raise UnsupportedModelError(
            f"the tail '{name}' changes its input in place", needed="a result of its own", fix="work on input.clone()"
        )
    if not are_same(made, again):
        raise UnsupportedModelError(
            f"the tail '{name}' gives another result each time",
            found="two calls with the same values",
            needed="a result that follows from the values alone: no dropout, no random numbers",
        )
    refuse_result(name, given, made)
    return Probe(given, made)


def are_same(one: Tensors, other: Tensors) -> bool:
    """Whether two results are the same, NaN counting as one value."""
    import torch

    return one.keys() == other.keys() and all(
        dtype_of(tensor) == dtype_of(other[level]) and torch.equal(tensor.nan_to_num(), other[level].nan_to_num())
        for level, tensor in one.items()
    )


def _symbols(ports: Mapping[Level, PortInfo]) -> dict[Level, tuple[int | str, ...]]:
    """Return size or symbol of each axis; axes that have to be of one size bear one symbol."""
    shapes = {level: port.shape or () for level, port in ports.items()}
    batches = [shape[0] for shape in shapes.values() if shape]
    fixed = [size for size in batches if isinstance(size, int)]
    # A scalar score stands for one image, so the map beside it has one too.
    batch = fixed[0] if fixed else 1 if len(batches) < len(shapes) else "batch"
    found: dict[Level, tuple[int | str, ...]] = {}
    for level, shape in shapes.items():
        rest: list[int | str] = [1 if not isinstance(axis, int) else axis for axis in shape[1:]]
        if level == "pixel":
            rest[-2:] = [
                axis if isinstance(axis, int) else name for axis, name in zip(shape[-2:], _plane(shape), strict=True)
            ]
        found[level] = (batch, *rest) if shape else ()
    return found


def _plane(shape: Sequence[Axis]) -> tuple[str, str]:
    is_square = isinstance(shape[-1], str) and shape[-1] == shape[-2]
    return ("height", "height") if is_square else ("height", "width")


def _values(shape: tuple[int, ...], dtype: str, number: int) -> "torch.Tensor":
    """Draw values: of both signs in the second probe, for classes that know logarithms of what is positive."""
    import torch

    generator = torch.Generator().manual_seed(_SEED + number)
    draw = torch.randn if number == 1 else torch.rand
    return draw(shape, generator=generator).to(getattr(torch, dtype))
