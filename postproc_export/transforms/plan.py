"""What a layer adds to a model, before a format says how: expressions, the outputs they become, what they read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from graph_patterns.expr import Call, Expr, Input, cast, identity
from postproc_export.errors import UsageError
from postproc_export.outputs import OutputChoice, Selection, select_outputs
from postproc_export.runtimes.protocol import Axis, PortInfo
from postproc_export.stats import Level
from postproc_export.tail_options import LabelDtype
from postproc_export.transforms.record import Where
from postproc_export.transforms.shipped import resolve
from postproc_export.transforms.spec import TailSpec
from postproc_export.transforms.step import Transform, Values
from postproc_export.transforms.thresholds import Thresholds

RAW: Final[Mapping[str, Level]] = {"score": "image", "map": "pixel"}


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """One output of a layer.

    Parameters
    ----------
    name
        Its name in the graph.
    expr
        What it is; None where a graph that was exported computes it.
    dtype, shape
        Element type and declared shape.
    replaces
        The output of the model whose place it takes; None where it comes last.
    """

    name: str
    expr: Expr | None
    dtype: LabelDtype
    shape: tuple[Axis, ...] | None
    replaces: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a layer adds.

    Parameters
    ----------
    where
        Before the tail or behind it.
    tails
        What it is made of, their parameters as they are recorded.
    outputs
        What it gives.
    inputs
        The model's output or input for each `Input` that the expressions read.
    """

    where: Where
    tails: tuple[TailSpec, ...]
    outputs: tuple[LayerOutput, ...]
    inputs: Mapping[str, PortInfo]


def plan_transform(
    transforms: Sequence[Transform],
    ports: Sequence[PortInfo],
    images: Sequence[PortInfo],
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Plan:
    """Write down a chain of shipped transforms for one model.

    Parameters
    ----------
    transforms
        In the order in which they are applied.
    ports, images
        The outputs and inputs of the model.
    image_output, pixel_output
        Which outputs are the raw ones; see `select_outputs`.

    Raises
    ------
    UnsupportedModelError, UsageError
        If the model does not have what they need.
    """
    selection = select_raw(ports, transforms, image_output=image_output, pixel_output=pixel_output)
    image = _image_input(images)
    values = Values(
        score=_float32("score", selection.image),
        map=_float32("map", selection.pixel),
        score_port=selection.image,
        map_port=selection.pixel,
        image=None if image is None else Input("image"),
        image_port=image,
    )
    before = values
    for transform in transforms:
        values = transform.apply(values)
    outputs = [
        LayerOutput(_name(old, new), _computed(expr), "float32", new.shape, None if old is None else old.name)
        for expr, was, old, new in (
            (values.score, before.score, before.score_port, values.score_port),
            (values.map, before.map, before.map_port, values.map_port),
        )
        if expr is not None and new is not None and expr != was
    ]
    read = {"score": selection.image, "map": selection.pixel, "image": image}
    used = {name for output in outputs if output.expr is not None for name in inputs_of(output.expr)}
    return Plan(
        where="transform",
        tails=tuple(TailSpec(transform.name, transform.parameters) for transform in transforms),
        outputs=tuple(outputs),
        inputs={name: port for name, port in read.items() if port is not None and name in used},
    )


def select_raw(
    ports: Sequence[PortInfo],
    transforms: Sequence[Transform] = (),
    calibrated: Collection[Level] | None = None,
    /,
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Selection:
    """Select the raw outputs, a map of several channels among them where thresholds make one of it."""
    first = transforms[0] if transforms else None
    channels = first.channels if isinstance(first, Thresholds) else 1
    patched = {port.name: _single_channel(port, channels) for port in ports}
    selection = select_outputs(
        list(patched.values()), image_output=image_output, pixel_output=pixel_output, calibrated=calibrated
    )
    own = {port.name: port for port in ports}
    return replace(
        selection,
        image=None if selection.image is None else own[selection.image.name],
        pixel=None if selection.pixel is None else own[selection.pixel.name],
    )


def inputs_of(expr: Expr) -> set[str]:
    """Return the names of the inputs that an expression reads."""
    found: set[str] = set()
    pending, seen = [expr], set[int]()
    while pending:
        current = pending.pop()
        if isinstance(current, Input):
            found.add(current.name)
        elif isinstance(current, Call) and id(current) not in seen:
            seen.add(id(current))
            pending += current.args
    return found


def split(specs: Sequence[TailSpec]) -> tuple[tuple[TailSpec, ...], tuple[TailSpec, ...]]:
    """Return what stands before the tail and what stands behind it.

    Raises
    ------
    UsageError
        If a class of one's own stands beside another tail before the threshold.
    """
    before = tuple(spec for spec in specs if spec.changes_values)
    own = [spec for spec in before if not spec.is_shipped]
    if own and len(before) > 1:
        raise UsageError(
            f"'{own[0].name}' cannot stand beside another tail before the threshold",
            found=", ".join(spec.name for spec in before),
            fix="let its forward call the others: postproc_export.transforms.modules has them",
        )
    return before, tuple(spec for spec in specs if not spec.changes_values)


def resolve_all(specs: Sequence[TailSpec]) -> tuple[Transform, ...]:
    """Return shipped transforms, their parameters checked."""
    return tuple(resolve(spec) for spec in specs)


def _single_channel(port: PortInfo, channels: int) -> PortInfo:
    if channels == 1 or port.shape is None or port.rank != 4 or port.shape[1] != channels:
        return port
    return replace(port, shape=(port.shape[0], 1, *port.shape[2:]))


def _image_input(ports: Sequence[PortInfo]) -> PortInfo | None:
    """Return the one input that may be a batch of images; its axes are taken as N, C, H, W."""
    images = [port for port in ports if port.rank == 4]
    return images[0] if len(images) == 1 else None


def _float32(name: str, port: PortInfo | None) -> Expr | None:
    if port is None:
        return None
    return Input(name) if port.dtype == "float32" else cast(Input(name), dtype="float32")


def _computed(expr: Expr) -> Expr:
    return expr if isinstance(expr, Call) else identity(expr)


def _name(old: PortInfo | None, new: PortInfo) -> str:
    return new.name if old is None else old.name
