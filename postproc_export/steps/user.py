"""A class of the user's as a custom step: found by its name, run eagerly, and held against what a host needs."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from postproc_export.errors import MissingDependencyError, UnsupportedModelError, UsageError, require
from postproc_export.formats.base import LayerOutput, Plan
from postproc_export.ports import FLOAT_TYPES, LEAVE_OUT, RAW_NAMES, Axis, OutputChoice, PortInfo, Selection
from postproc_export.record import TailSpec
from postproc_export.stats import LEVELS, Level
from postproc_export.torch_modules import load_module, reason_of

if TYPE_CHECKING:
    import torch

PURPOSE: Final = "a custom step as a class"
_RESULT: Final = "(pred_score, anomaly_map), or a dict, named tuple or dataclass with these names"
_CLASS: Final = "package.module:Class, a torch.nn.Module that is built without arguments"
_FACTORY: Final = "name a function in its place that builds it: package.module:factory"
_LARGEST: Final = 1 << 31  # bytes: no message of protobuf may be larger
_SHAPES: Final[Mapping[Level, str]] = {
    "image": "a floating-point tensor [], [N] or [N, 1]",
    "pixel": "a floating-point tensor [N, H, W] or [N, 1, H, W]",
}

Tensors = dict[Level, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class UserStep:
    """A class of the user's, built and in evaluation mode: the reference for what was exported of it."""

    spec: TailSpec
    module: "torch.nn.Module"  # an instance, on the CPU

    def __call__(
        self, pred_score: "torch.Tensor | None", anomaly_map: "torch.Tensor | None"
    ) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
        """Return what its forward gives, rounded to float32 as the tail behind it takes it.

        The raw outputs have the element types of the model; None for a level that it does not have. Raises
        UnsupportedModelError if the forward fails, or gives something else than a score and a map.
        """
        import torch

        with torch.no_grad():
            found = self.run({"image": pred_score, "pixel": anomaly_map})
        rounded = {level: tensor.to(torch.float32) for level, tensor in found.items()}
        return rounded.get("image"), rounded.get("pixel")

    def run(self, given: "Mapping[Level, torch.Tensor | None]") -> Tensors:
        """Return what its forward gives, by level, in its own element types; with the reason where it fails."""
        values = {RAW_NAMES[level]: given.get(level) for level in LEVELS}
        try:
            result = self.module(**values)
        except Exception as error:  # somebody else's code
            shown = ", ".join(_described(name, tensor) for name, tensor in values.items())
            raise UnsupportedModelError(
                f"the step '{self.spec.name}' does not run on {shown}",
                found=reason_of(error),
                needed="a forward that takes the raw outputs as the model gives them",
                fix=advice(tensor.dtype for tensor in given.values() if tensor is not None),
            ) from error
        return by_level(self.spec.name, result)


def eager_own(spec: TailSpec) -> UserStep:
    """Import and build ``package.module:Class``, or what a function in the place of the class returns.

    Importing runs the module's code. Raises UsageError if it cannot be imported or built without arguments, is no
    `torch.nn.Module`, its forward takes other arguments, or its weights are others each time that it is built.
    """
    require("torch", purpose=PURPOSE)
    module = _built(spec.name)
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**dict.fromkeys(RAW_NAMES.values()))
    except TypeError as error:
        raise UsageError(
            f"the forward of the step '{spec.name}' takes other arguments",
            found=f"forward{signature}: {error}",
            needed="forward(pred_score, anomaly_map), either of them None where the model does not have it",
        ) from error
    tensors = _tensors_of(module)
    if sum(tensor.nbytes for tensor in tensors.values()) >= _LARGEST:
        raise UsageError(f"the step '{spec.name}' has too many weights", needed="less than 2 GiB of them")
    if not _are_same(tensors, _tensors_of(_built(spec.name))):
        raise UsageError(
            f"the step '{spec.name}' has other weights each time that it is built",
            needed="the same weights whenever the class is called, for statistics, export and check build it anew",
            fix="load them from a file, or draw them with a torch.Generator of a fixed seed",
        )
    return UserStep(spec, module)


def _built(name: str) -> "torch.nn.Module":
    try:
        return load_module(name)[0]
    except MissingDependencyError:
        raise
    except UsageError as error:
        raise UsageError(
            f"a custom step: {error.what}", found=error.found, needed=_CLASS, fix=error.fix or _FACTORY
        ) from error


def _tensors_of(module: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _are_same(one: "Mapping[Any, torch.Tensor]", other: "Mapping[Any, torch.Tensor]") -> bool:
    """Whether two sets of tensors are the same, NaN counting as one value."""
    import torch

    return one.keys() == other.keys() and all(
        _dtype_of(tensor) == _dtype_of(other[key]) and torch.equal(tensor.nan_to_num(), other[key].nan_to_num())
        for key, tensor in one.items()
    )


def advice(dtypes: "Iterable[torch.dtype]") -> str | None:
    """Return what helps a class that has no operators for the element types of a model."""
    others = [str(dtype).removeprefix("torch.") for dtype in dtypes if str(dtype) != "torch.float32"]
    fix = "let forward begin with pred_score.float() and anomaly_map.float()"
    return f"the model gives {others[0]}: {fix}" if others else None


def _described(name: str, tensor: "torch.Tensor | None") -> str:
    """Return name, element type and shape of what a forward was given."""
    if tensor is None:
        return f"{name}: None"
    return f"{name}: {_dtype_of(tensor)} {list(tensor.shape)}"


def _dtype_of(tensor: "torch.Tensor") -> str:
    """Return the name of an element type: ``"float32"``."""
    return str(tensor.dtype).removeprefix("torch.")


def _refuse_result(name: str, given: Tensors, made: Tensors) -> None:
    """Refuse a result that cannot stand in the place of the raw outputs."""
    for level in LEVELS:
        source, tensor = given.get(level), made.get(level)
        if tensor is None:
            if source is not None:
                found = _described(RAW_NAMES[level], None)
                raise _unfit(name, f"gives no {RAW_NAMES[level]}, which the model has", found, "every level given")
            continue
        batch = next((item.shape[0] for item in given.values() if item.ndim), None)
        ranks = (source.ndim,) if source is not None else (0, 1, 2) if level == "image" else (3, 4)
        middle = tensor.shape[1:] if level == "image" else tensor.shape[1:-2]
        if _dtype_of(tensor) not in FLOAT_TYPES:
            other = "element type"
        elif tensor.ndim not in ranks:
            other = "rank"
        elif any(size != 1 for size in middle) or (tensor.ndim and batch is not None and tensor.shape[0] != batch):
            other = "shape"
        else:
            continue
        needed = _SHAPES[level] if source is None else f"a floating-point tensor like {_described('the input', source)}"
        raise _unfit(name, f"gives {RAW_NAMES[level]} in another {other}", _described(RAW_NAMES[level], tensor), needed)


def _unfit(name: str, problem: str, found: str, needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the step '{name}' {problem}", found=found, needed=needed)


def by_level(name: str, result: Any) -> Tensors:
    """Return the score and the map in what a forward gave; what is None is left out."""
    import torch

    names = [RAW_NAMES[level] for level in LEVELS]
    if isinstance(result, Mapping) or hasattr(result, "_asdict"):
        values = dict(result if isinstance(result, Mapping) else result._asdict())
    elif isinstance(result, (tuple, list)):
        if len(result) != len(LEVELS):
            raise _unfit(name, "gives another number of results", f"{len(result)} of them", _RESULT)
        values = dict(zip(names, result, strict=True))
    elif any(hasattr(result, key) for key in names):
        values = {key: getattr(result, key, None) for key in names}
    else:
        raise _unfit(name, "gives something else than a score and a map", type(result).__name__, _RESULT)
    if unknown := [str(key) for key, value in values.items() if key not in names and value is not None]:
        raise _unfit(name, f"gives '{unknown[0]}'", ", ".join(map(str, values)), _RESULT)
    found = {level: value for level in LEVELS if (value := values.get(RAW_NAMES[level])) is not None}
    for level, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise _unfit(name, f"gives a {RAW_NAMES[level]} that is no tensor", type(value).__name__, _RESULT)
    return found


INPUTS: Final[Mapping[Level, str]] = {"image": "score", "pixel": "map"}
# Sizes of dynamic axes: the export traces the first; a graph with one of its sizes frozen fails at the others. A batch
# of 1 is the commonest of all. The last is smaller than many a class takes, which is no fault of it.
_SIZES: Final[Sequence[Mapping[str, int]]] = (
    {"batch": 2, "height": 96, "width": 128},
    {"batch": 1, "height": 160, "width": 192},
    {"batch": 3, "height": 9, "width": 7},
)
_SEED: Final = 20261124


Probe = tuple[Tensors, Tensors]  # raw outputs as the host could give them, and what the class makes of them


@dataclass(frozen=True, slots=True)
class StepAtHost:
    """A class of the user's at the form of one host."""

    step: UserStep
    ports: Mapping[Level, PortInfo]  # the raw outputs of the host
    probes: tuple[Probe, ...]  # the export traces the first; the others are of other sizes where the host is dynamic
    made: tuple[Level, ...]  # the levels whose values it makes; one that it hands on as it is needs no graph

    @property
    def example(self) -> "tuple[torch.Tensor, ...]":
        """What the export traces, one tensor per level."""
        return tuple(self.probes[0][0][level] for level in self.ports)

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
            tails=(self.step.spec,),
            outputs=tuple(outputs),
            inputs={INPUTS[level]: port for level, port in self.ports.items()},
        )

    @property
    def output_names(self) -> dict[str, str]:
        """Return the name in the host for each output of the export."""
        return dict(zip(exported_names(self.made), (output.name for output in self.plan().outputs), strict=True))

    def _shape(self, level: Level) -> tuple[Axis, ...]:
        """Declare an axis by what it did at several sizes: the host's own, fixed, or of its own making."""
        of = level if level in self.ports else next(iter(self.ports))
        declared = self.ports[of].shape
        axes: list[Axis] = []
        for axis in range(self.probes[0][1][level].ndim):
            sizes = {made[level].shape[axis] for _, made in self.probes}
            is_host = declared is not None and all(
                axis < given[of].ndim and made[level].shape[axis] == given[of].shape[axis]
                for given, made in self.probes
            )
            fixed = sizes.pop() if len(sizes) == 1 else None
            axes.append(declared[axis] if is_host and declared is not None else fixed)
        return tuple(axes)


def exported_names(levels: Sequence[Level]) -> list[str]:
    """Return the names that an export gives its outputs."""
    return [f"made_{INPUTS[level]}" for level in levels]


def at_host(step: UserStep, selection: Selection, outputs: Mapping[str, OutputChoice]) -> StepAtHost:
    """Run a class at the form of a host, and refuse what cannot stand behind its raw outputs.

    `outputs` says how these were asked for: a level that is left out is not made either. Raises UnsupportedModelError
    if the class does not run, changes what it is given, gives another result each time, or one of another form.
    """
    ports = selection.raw
    left_out = {level for level in LEVELS if outputs.get(f"{level}_output") == LEAVE_OUT}
    probes = tuple(_probes(step, ports))
    given, result = probes[0]
    made = [level for level in LEVELS if level in result and level not in left_out]
    return StepAtHost(step, ports, probes, tuple(level for level in made if result[level] is not given.get(level)))


def _probes(step: UserStep, ports: Mapping[Level, PortInfo]) -> Iterator[Probe]:
    symbols = _symbols(ports)
    is_dynamic = any(isinstance(axis, str) for axes in symbols.values() for axis in axes)
    for number, sizes in enumerate(_SIZES):
        shapes = {
            level: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
            for level, axes in symbols.items()
        }
        given = {level: _values(shapes[level], port.dtype, number) for level, port in ports.items()}
        try:
            yield _probe(step, given)
        except UnsupportedModelError:
            if number < len(_SIZES) - 1 or not is_dynamic:
                raise


def _probe(step: UserStep, given: Tensors) -> Probe:
    import torch

    name, before = step.spec.name, {level: tensor.clone() for level, tensor in given.items()}
    with torch.no_grad():
        made, again = step.run(given), step.run(given)
    if not _are_same(before, given):
        raise UnsupportedModelError(
            f"the step '{name}' changes its input in place", needed="a result of its own", fix="work on input.clone()"
        )
    if not _are_same(made, again):
        raise UnsupportedModelError(
            f"the step '{name}' gives another result each time",
            found="two calls with the same values",
            needed="a result that follows from the values alone: no dropout, no random numbers",
        )
    _refuse_result(name, given, made)
    return given, made


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
            is_square = isinstance(shape[-1], str) and shape[-1] == shape[-2]
            names = ("height", "height" if is_square else "width")
            rest[-2:] = [axis if isinstance(axis, int) else name for axis, name in zip(shape[-2:], names, strict=True)]
        found[level] = (batch, *rest) if shape else ()
    return found


def _values(shape: tuple[int, ...], dtype: str, number: int) -> "torch.Tensor":
    """Draw values: of both signs in the second probe, for classes that know logarithms of what is positive."""
    import torch

    generator = torch.Generator().manual_seed(_SEED + number)
    draw = torch.randn if number == 1 else torch.rand
    return draw(shape, generator=generator).to(getattr(torch, dtype))
