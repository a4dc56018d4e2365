"""The tail alone, on raw values that seek trouble, in every runtime, against the eager reference."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.models.model_file import Format, Shapes
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reference.tail_cases import Case, tail_cases
from postproc_export.parity.reports.report import Check, failed
from postproc_export.parity.reports.tally import Tally
from postproc_export.runtimes import Runner, RuntimeName

_ONNX_RUNTIME = (Configuration(runtime="onnxruntime", optimize=False), Configuration(runtime="onnxruntime"))
_OPENVINO = (Configuration(runtime="openvino"), Configuration(runtime="openvino", precision="default"))


def tail_configurations(file_format: Format, runtimes: Sequence[RuntimeName]) -> list[Configuration]:
    """Return every way to run a tail of a format on the runtimes at hand."""
    ways = (*_ONNX_RUNTIME, *_OPENVINO) if file_format == "onnx" else _OPENVINO
    return [way for way in ways if way.runtime in runtimes]


def check_tail(
    attached: AttachedModel,
    reference: Reference,
    configurations: Sequence[Configuration],
    *,
    count: int,
    seed: int,
    threads: int | None = None,
) -> Iterator[Check]:
    """Compare the tail alone with the reference, output by output.

    Notes
    -----
    The expected values of a case are computed once and compared with every configuration. A tail that cannot be cut
    out, loaded or run is a miss with the reason.
    """
    tallies = [Tally(attached, configuration) for configuration in configurations]
    shapes: Shapes | None = None
    runners: list[Runner | None] = []
    for case in tail_cases(attached, count=count, seed=seed):
        if case.shapes != shapes:  # compiling takes longer than running
            try:
                runners = [_open(attached.tail_alone(case.shapes), tally, threads=threads) for tally in tallies]
            except UnsupportedModelError as error:
                yield failed("tail", " ".join(str(error).split()))
                return
            shapes = case.shapes
        _run(case, runners, tallies, reference)
    for tally in tallies:
        yield from tally.checks("tail")


def fed_by_port(runner: Runner, fed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what the inputs that a runner has are fed: one that is an output as well may go by that name."""
    return {port.name: values for port in runner.inputs for name, values in fed.items() if port.answers_to(name)}


def _open(model: object, tally: Tally, *, threads: int | None) -> Runner | None:
    way = tally.configuration
    try:
        runner = way.open(model, threads=threads)
    except MissingDependencyError:
        raise
    except PostprocError as error:
        tally.fail(" ".join(str(error).split()))
        return None
    tally.ran_on(runner)
    return tally.attached.parts_of(runner)


def _run(case: Case, runners: Sequence[Runner | None], tallies: Sequence[Tally], reference: Reference) -> None:
    for feeds in case.feeds:
        expected = reference.outputs(feeds)
        for runner, tally in zip(runners, tallies, strict=True):
            if runner is None:
                continue
            fed = {tally.attached.file.raw[level].name: values for level, values in feeds.items()}
            try:
                actual = runner.run(fed_by_port(runner, fed))
            except PostprocError as error:
                tally.fail(" ".join(f"{case.name}: {error}".split()))
                continue
            tally.add(expected, actual, feeds, reference)
