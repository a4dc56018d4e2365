"""Which raw outputs a chain of shipped transforms stands behind, and what it adds to a model."""

from collections.abc import Collection, Sequence

from graph_patterns.expr import Call, Expr, Input, cast, identity
from postproc_export.float32 import HALVES
from postproc_export.formats.base import LayerOutput, Plan
from postproc_export.ports import OutputChoice, PortInfo, Selection, select_outputs
from postproc_export.record import TailSpec
from postproc_export.stats import Level
from postproc_export.steps.transforms import Transform, Values


def plan_transform(
    transforms: Sequence[Transform],
    ports: Sequence[PortInfo],
    images: Sequence[PortInfo],
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Plan:
    """Write down a chain of shipped transforms for one model: its outputs are `ports`, its inputs `images`."""
    selection = select_raw(ports, transforms, image_output=image_output, pixel_output=pixel_output)
    transforms = [each for transform in transforms for each in transform.settled(selection.raw)]
    batches = [port for port in images if port.rank == 4]  # an input that may be images, its axes taken as N, C, H, W
    read = {"score": selection.image, "map": selection.pixel, "image": batches[0] if len(batches) == 1 else None}
    before: dict[str, tuple[Expr, PortInfo]] = {}
    for name, port in read.items():
        if port is not None:
            is_plain = name == "image" or port.dtype == "float32"
            before[name] = (Input(name) if is_plain else cast(Input(name), dtype="float32"), port)
    values: Values = before
    rounded: set[str] = set()
    for transform in transforms:
        behind = transform.apply(values)
        if transform.rounds:
            rounded |= {kind for kind in behind if behind[kind] is not values.get(kind)}
        values = behind
    outputs = []
    for kind in ("score", "map"):
        if kind in values and values[kind] != before.get(kind):
            expr, made = values[kind]
            old = read[kind]
            name = made.name if old is None else old.name
            expr = expr if isinstance(expr, Call) else identity(expr)
            # Values that nothing has rounded are of the model's narrow type still, and decide as such.
            dtype = next((half for half in HALVES if made.dtype == half and kind not in rounded), None)
            expr = expr if dtype is None else cast(expr, dtype=dtype)
            outputs.append(LayerOutput(name, expr, dtype or "float32", made.shape, None if old is None else name))
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
    """Select the raw outputs, among them those of several channels that a step makes one of."""
    seen = [shown(port, transforms) for port in ports]
    selection = select_outputs(seen, image_output=image_output, pixel_output=pixel_output, calibrated=calibrated)
    own = {port.name: port for port in ports}
    image, pixel = (port and own[port.name] for port in (selection.image, selection.pixel))
    return selection._replace(image=image, pixel=pixel)


def shown(port: PortInfo, transforms: Sequence[Transform]) -> PortInfo:
    """Return the raw output that steps make of an output, as far as that decides which outputs can be raw ones."""
    for transform in transforms:
        port = transform.shown(port)
    return port


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
