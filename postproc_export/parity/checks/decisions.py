"""What stands behind the decision: alone on every kind of value, and in the whole file on real inputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graph_patterns.errors import GraphPatternError
from postproc_export.comparison.compare import compare_labels
from postproc_export.comparison.difference import LabelDifference
from postproc_export.errors import MissingDependencyError, PostprocError
from postproc_export.files.staging import temporary_folder
from postproc_export.files.targets import is_onnx
from postproc_export.parity.checks.record import check_outputs
from postproc_export.parity.fed.inputs import raw_values
from postproc_export.parity.fed.real_inputs import RealInputs
from postproc_export.parity.models.assumed import Assumed
from postproc_export.parity.models.attached_model import AttachedModel, load_attached, open_file
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.models.model_file import ModelFile
from postproc_export.parity.originals.raw_file import named_output
from postproc_export.parity.reference.eager_decisions import EagerDecisions
from postproc_export.parity.reference.tail_cases import axes_of, numpy_dtype
from postproc_export.parity.reports.outcome import Outcome
from postproc_export.parity.reports.report import Check
from postproc_export.runtimes.protocol import PortInfo, Runner
from postproc_export.transforms.decisions import DECIDED
from postproc_export.transforms.record import LayerRecord

_TAPS: Final[Mapping[str, str]] = {name: f"postproc-check/read_{name}" for name in ("mask", "label", DECIDED)}
_COUNT: Final = 2_000
_SIZE: Final = (5, 7)

Given = Mapping[str, NDArray[Any]]


@contextmanager
def without_decisions(path: Path, assumed: Assumed | None = None) -> Iterator[tuple[Path, LayerRecord | None]]:
    """Yield the file whose tail is the last there is, and the record of what stands behind it in the one given.

    Notes
    -----
    Where nothing stands behind the tail that is the file itself; else a copy for as long as the block runs.
    """
    record = open_file(path, assumed).layer("decision")
    if record is None:
        yield path, None
        return
    with temporary_folder() as folder:
        target = folder / path.name
        _write_without(path, target)
        yield target, record


def unfit_layer(path: Path, assumed: Assumed | None = None) -> Check | None:
    """Return the miss of a file from which what stands behind the decision cannot be taken; None where it can.

    Notes
    -----
    Its outputs were renamed or removed since, so that nothing before them can be looked at apart.
    """
    if open_file(path, assumed).layer("decision") is None:
        return None
    try:
        lost = _lost_without(path)
    except (PostprocError, GraphPatternError) as error:
        reason = " ".join(str(error).split())
    else:
        reason = f"nothing computes '{lost[0]}'" if lost else ""
    if not reason:
        return None
    outputs = _check_layer_outputs(path)
    found = "" if outputs else f"{outputs.message}; "
    return replace(outputs, passed=False, message=f"{found}the rest cannot be checked without it: {reason}")


def _check_layer_outputs(path: Path) -> Check:
    attached = load_attached(path)
    record = attached.file.layer("decision")
    return replace(check_outputs(attached, added=record.made if record else ()), name="decision/outputs")


def _lost_without(path: Path) -> list[str]:
    """Take the layer off in memory; return the outputs before it that nothing computes."""
    if not is_onnx(path):
        from postproc_export.rewrite.openvino_file import read_ir
        from postproc_export.runtimes.openvino import openvino_core
        from postproc_export.transforms import openvino_layer

        model = read_ir(openvino_core(purpose="checking an OpenVINO IR"), path)
        openvino_layer.take_layer(model, "decision", where=str(path))
        return []
    from graph_patterns.onnx.container import load_skeleton
    from postproc_export.transforms.onnx_layer import take_layer

    with load_skeleton(path) as file:
        graph = file.model.graph
        take_layer(file.model, "decision", where=str(path))
        made = {name for node in graph.node for name in node.output}
        made |= {item.name for item in (*graph.input, *graph.initializer)}
        return [output.name for output in graph.output if output.name not in made]


def _write_without(path: Path, target: Path) -> None:
    if is_onnx(path):
        from postproc_export.rewrite.onnx_file import rewrite_onnx_file
        from postproc_export.transforms.onnx_layer import take_layer

        rewrite_onnx_file(path, target, lambda model: take_layer(model, "decision", where=str(path)), is_checked=False)
    else:
        from postproc_export.rewrite.openvino_file import rewrite_openvino_file
        from postproc_export.transforms import openvino_layer

        rewrite_openvino_file(path, target, lambda model: openvino_layer.take_layer(model, "decision", where=str(path)))


class DecisionCheck:
    """The check of what stands behind the decision of one file.

    Parameters
    ----------
    path
        The file.
    record
        The layer's.
    attached
        The file without it.
    seed, threads
        As in `check_tail`.
    """

    def __init__(
        self, path: Path, record: LayerRecord, attached: AttachedModel, *, seed: int, threads: int | None
    ) -> None:
        self._path, self._attached, self._seed, self._threads = path, attached, seed, threads
        self._file: ModelFile = open_file(path)
        self._eager = EagerDecisions.of(self._file, record, attached.tail)

    def alone(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Look at the file's outputs; cut the layer out and feed it every mask and label, and values around points."""
        yield _check_layer_outputs(self._path)
        for way in ways:
            outcome = Outcome(way, self._threads)
            try:
                model = self._file.cut(self._eager.outputs, list(self._eager.ports.values()))
                runner = outcome.open(model)
                for given in self._feeds():
                    fed = {self._eager.ports[name].name: values for name, values in given.items()}
                    outputs = runner.run({port.name: fed[port.name] for port in runner.inputs})
                    self._compare(outcome, given, runner, outputs)
            except MissingDependencyError:
                raise
            except PostprocError as error:
                self._fail(outcome, error)
            yield from outcome.checks("decision")

    def whole(self, ways: Sequence[Configuration], inputs: RealInputs, size: int) -> Iterator[Check]:
        """Run the whole file on real inputs, and compare with what it reads in the same compiled model.

        Parameters
        ----------
        ways
            How it is run.
        inputs, size
            What it is fed, and how many at a time.
        """
        taps = {_TAPS[name]: port for name, port in self._eager.ports.items()}
        with temporary_folder() as folder:
            tapped = self._file.tapped(folder, taps)
            for way in (each for each in ways if each.weights == "stored"):
                outcome = Outcome(way, self._threads)
                try:
                    runner = self._attached.with_values(outcome.open(tapped))
                    for batch in inputs.batches(size):
                        outputs = batch.run(runner)
                        read = {name: named_output(tap, outputs, runner) for name, tap in _TAPS.items()}
                        given = {name: values for name, values in read.items() if values is not None}
                        self._compare(outcome, given, runner, outputs)
                except MissingDependencyError:
                    raise
                except PostprocError as error:
                    self._fail(outcome, error)
                yield from outcome.checks("whole/decision")

    def _compare(self, outcome: Outcome, given: Given, runner: Runner, outputs: Given) -> None:
        for name, wanted in self._eager(given).items():
            boundary = self._eager.boundaries.get(name)
            difference = compare_labels(
                wanted,
                named_output(name, outputs, runner),
                raw=None if boundary is None else given[DECIDED],
                boundary=boundary,
                dtype=self._eager.dtype(name),
            )
            outcome.add(name, difference)

    def _fail(self, outcome: Outcome, error: PostprocError) -> None:
        for name in self._eager.outputs:
            outcome.add(name, LabelDifference(reason=" ".join(str(error).split())))

    def _feeds(self) -> Iterator[Given]:
        """Yield batches of the size that the file declares; else one with everything."""
        stats = self._attached.tail.stats.image
        assert stats is not None, "a layer behind the decision has a label before it"
        boundaries = self._eager.boundaries.values()
        values = [raw_values(stats, boundary, count=_COUNT, seed=self._seed).few for boundary in boundaries]
        column = np.concatenate(values) if values else np.zeros(12, np.float32)
        axes = axes_of(self._eager.label)
        fixed = (axes[0] if axes else 1) or len(column)
        random = np.random.default_rng(self._seed)
        for start in range(0, len(column), fixed):
            chunk = column[np.arange(start, start + fixed) % len(column)]
            yield {name: self._shaped(name, port, chunk, axes, random) for name, port in self._eager.ports.items()}

    def _shaped(
        self, name: str, port: PortInfo, values: NDArray[Any], axes: tuple[int | None, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        scalar = (len(values), *[1] * (len(axes) - 1)) if axes else ()
        if name == DECIDED:
            return values.reshape(scalar)
        if name == "label":
            return (np.arange(len(values)) % 2).reshape(scalar).astype(numpy_dtype(port))
        found = axes_of(port)
        size = (found[-2] or _SIZE[0], found[-1] or _SIZE[1])
        shape = (len(values), *[1] * (len(found) - 3), *size)
        return random.integers(0, 2, shape).astype(numpy_dtype(port))
