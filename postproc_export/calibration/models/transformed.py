"""A raw model with tails of one's own before the threshold, ready to be calibrated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postproc_export.errors import UsageError
from postproc_export.files.staging import temporary_folder
from postproc_export.files.targets import is_onnx
from postproc_export.outputs import Selection
from postproc_export.runtimes import PortInfo, Precision, Runner, RuntimeName, open_runner
from postproc_export.transforms.around import Before, put_before
from postproc_export.transforms.formats import Format, OnnxFormat, OpenVinoFormat, Outputs
from postproc_export.transforms.plan import resolve_all, select_raw
from postproc_export.transforms.spec import TailSpec


@dataclass(frozen=True, slots=True)
class TransformedModel:
    """A model with its raw outputs transformed.

    Parameters
    ----------
    runner
        The model, loaded; nothing of it was written to stay.
    before
        What was put before the threshold, and which outputs are the raw ones now.
    ports, selection
        The outputs of the model itself, and which of them are raw.
    """

    runner: Runner
    before: Before
    ports: tuple[PortInfo, ...]
    selection: Selection


def open_transformed(
    model: str | Path,
    specs: Sequence[TailSpec],
    outputs: Outputs,
    *,
    runtime: RuntimeName | None = None,
    precision: Precision = "float32",
    threads: int | None = None,
) -> TransformedModel:
    """Put tails before the threshold of a model, in memory or in a temporary file, and load it.

    Parameters
    ----------
    model
        An ``.onnx`` or ``.xml`` file with raw outputs.
    specs
        The tails, as `parse_tails` gives them.
    outputs
        ``image_output`` and ``pixel_output``; see `select_outputs`.
    runtime, precision, threads
        See `open_runner`.

    Raises
    ------
    UsageError
        If one of them stands behind the decision, where it changes no raw value.
    PostprocError, graph_patterns.GraphPatternError
        If the model does not allow it, or cannot be loaded.
    """
    behind = [spec for spec in specs if not spec.changes_values]
    if behind:
        raise UsageError(
            f"the tail '{behind[0].name}' stands behind the decision: it changes no raw value",
            fix="leave it out here, and give it when attaching",
        )
    path = Path(model)
    options: dict[str, Any] = {"runtime": runtime, "precision": precision, "threads": threads}
    if is_onnx(path):
        return _onnx(path, specs, outputs, options)
    from postproc_export.rewrite.openvino_file import read_ir
    from postproc_export.runtimes.openvino import openvino_core

    loaded = read_ir(openvino_core(purpose="calibrating on an OpenVINO IR"), path)
    before, ports, selection = _put(OpenVinoFormat(), loaded, specs, outputs)
    return TransformedModel(open_runner(loaded, **options), before, ports, selection)


def _onnx(path: Path, specs: Sequence[TailSpec], outputs: Outputs, options: dict[str, Any]) -> TransformedModel:
    from postproc_export.rewrite.onnx_file import rewrite_onnx_file

    # Windows does not delete what a runtime maps; it goes with the folder for temporary files then.
    with temporary_folder() as folder:
        target = folder / path.name
        made = rewrite_onnx_file(path, target, lambda model: (_put(OnnxFormat(), model, specs, outputs),))[0]
        return TransformedModel(open_runner(target, **options), *made)


def _put(
    form: Format, model: Any, specs: Sequence[TailSpec], outputs: Outputs
) -> tuple[Before, tuple[PortInfo, ...], Selection]:
    ports = tuple(form.ports(model)[0])
    transforms = resolve_all(specs) if specs[0].is_shipped else ()
    selection = select_raw(ports, transforms, **outputs)
    return put_before(form, model, specs, outputs=outputs), ports, selection
