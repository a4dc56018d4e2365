"""Export a class of one's own to an ONNX graph of the opset that a host has, by whichever exporter reaches it."""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from graph_patterns.onnx.view import default_opset
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError, require
from postproc_export.files.staging import temporary_folder
from postproc_export.graphs.onnx.names import subgraphs
from postproc_export.quiet import quiet_logger
from postproc_export.runtimes.protocol import Array, Runner, as_float32
from postproc_export.stats import LEVELS, Level
from postproc_export.torch_modules import reason_of
from postproc_export.transforms.own import PURPOSE, OwnTail, advice, by_level
from postproc_export.transforms.own_form import INPUTS, OwnForm, Probe, exported_names

if TYPE_CHECKING:
    import torch

Open = Callable[[bytes], Runner]

_DYNAMO_SINCE: Final = 18  # below it torch's own exporter converts down, which fails at Pad, ReduceMean, Resize, ...
_OTHER_OPSET: Final = "what came out has opset"
_LONGEST: Final = 300  # characters of somebody else's error
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_STDERR: Final = 2


def export_own(form: OwnForm, *, opset: int, open_runner: Open, whose: str = "that of the host") -> onnx.ModelProto:
    """Export a class and hold the graph against its own eager run, at every size that was probed.

    Parameters
    ----------
    form
        The class at the form of the host.
    opset
        The host's opset, which is not converted.
    open_runner
        Loads the serialised graph in the runtime that it is for.
    whose
        Where the opset comes from, for errors.

    Returns
    -------
    onnx.ModelProto
        Inputs ``score`` and ``map``, as far as the class reads them, and the outputs of `exported_names`; nodes of the
        default domain alone.

    Raises
    ------
    UnsupportedModelError
        If no exporter gives a graph of this opset that computes what the class computes; what came out is said.
    """
    exporters = (("torch.export", _by_dynamo), ("TorchScript", _by_torchscript))
    tried: dict[str, str] = {}
    for name, export in exporters if opset >= _DYNAMO_SINCE else reversed(exporters):
        model, problem = _attempt(export, form, opset, open_runner)
        if model is not None and problem is None:
            return model
        tried[name] = str(problem)
    is_newer = any(problem.startswith(_OTHER_OPSET) for problem in tried.values())
    types = advice(tensor.dtype for tensor in form.probes[0].given.values())
    raise UnsupportedModelError(
        f"the tail '{form.tail.spec.name}' cannot be exported at opset {opset}, {whose}",
        found="; ".join(f"by {name}: {problem}" for name, problem in tried.items()),
        needed=f"a graph of opset {opset} that gives what the class gives: the host is not converted",
        fix=types
        or "write it in other torch operations" + ", or export the host at the opset that came out" * is_newer,
    )


def _attempt(
    export: "Callable[[OwnForm, torch.nn.Module, int], onnx.ModelProto]", form: OwnForm, opset: int, open_runner: Open
) -> tuple[onnx.ModelProto | None, str | None]:
    try:
        with _quiet():
            model = inlined(export(form, _wrapper(form.tail, tuple(form.ports), form.made), opset))
    except Exception as error:  # all that an exporter and the class itself may raise
        reason = error.__cause__ or error
        return None, reason_of(reason)[:_LONGEST] if not isinstance(error, PostprocError) else error.what
    found = default_opset(model)
    if found != opset:
        return None, f"{_OTHER_OPSET} {found}"
    foreign = sorted({node.domain for scope in subgraphs(model.graph) for node in scope.node} - {*_DEFAULT_DOMAINS})
    if foreign:
        return None, f"operators of the domain '{foreign[0]}', which the host does not import"
    return model, _disagreement(model, form, open_runner)


def _by_dynamo(form: OwnForm, wrapper: "torch.nn.Module", opset: int) -> onnx.ModelProto:
    import torch

    require("onnxscript", extra="export", purpose=PURPOSE)
    dynamic = tuple(form.dynamic[level] for level in form.ports)
    # Names, not `Dim` objects: a size that the class fixes is an error then; a `Dim` is given up in silence.
    program: Any = torch.onnx.export(
        wrapper,
        tuple(form.probes[0].given[level] for level in form.ports),
        None,
        dynamo=True,
        input_names=[INPUTS[level] for level in form.ports],
        output_names=exported_names(form.made),
        dynamic_shapes=dynamic if any(dynamic) else None,
        opset_version=opset,
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    return model


def _by_torchscript(form: OwnForm, wrapper: "torch.nn.Module", opset: int) -> onnx.ModelProto:
    import torch

    with temporary_folder() as folder, _without_graphs(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = folder / "tail.onnx"
        torch.onnx.export(
            wrapper,
            tuple(form.probes[0].given[level] for level in form.ports),
            path,
            dynamo=False,
            input_names=[INPUTS[level] for level in form.ports],
            output_names=exported_names(form.made),
            dynamic_axes={INPUTS[level]: axes for level, axes in form.dynamic.items() if axes},
            opset_version=opset,
            verbose=False,
        )
        model = onnx.load(path)
    for warning in caught:
        # A branch that was taken once, or a size that was read, however well it does at the sizes that are tried.
        if issubclass(warning.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            text = str(warning.message).split(". ", 1)[0]
            raise UnsupportedModelError(f"{text} ({warning.filename}:{warning.lineno}): it would be fixed")
    return model


def _wrapper(tail: OwnTail, given: Sequence[Level], made: Sequence[Level]) -> "torch.nn.Module":
    """Return a module of positional tensors, without the None of a level that is missing."""
    import torch

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tail.module

        def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            tensors = dict(zip(given, (first, second), strict=False))
            result = by_level(
                tail.spec.name, self.inner(pred_score=tensors.get("image"), anomaly_map=tensors.get("pixel"))
            )
            return tuple(result[level].to(torch.float32) for level in LEVELS if level in made)

    return Exported().eval()


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of functions where they are called: a host takes nodes alone."""
    if not model.functions:
        return model
    from onnx import inliner

    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def _disagreement(model: onnx.ModelProto, form: OwnForm, open_runner: Open) -> str | None:
    try:
        runner = open_runner(model.SerializeToString())
        return next(filter(None, (_at(runner, form, probe) for probe in form.probes)), None)
    except MissingDependencyError:
        raise
    except PostprocError as error:
        return " ".join(f"{error.what} {error.found or ''}".split())[:_LONGEST]


def _at(runner: Runner, form: OwnForm, probe: Probe) -> str | None:
    from postproc_export.comparison.compare import compare_scores
    from postproc_export.comparison.tolerance import own

    feeds = {INPUTS[level]: as_array(tensor) for level, tensor in probe.given.items()}
    found = runner.run({port.name: feeds[port.name] for port in runner.inputs})
    for level, name in zip(form.made, exported_names(form.made), strict=True):
        expected = as_float32(as_array(probe.made[level]))
        finite = expected[np.isfinite(expected)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        dtypes = [form.ports[each].dtype for each in form.ports]
        difference = compare_scores(expected, found[name], tolerance=own(low, high, dtypes), nan="same")
        if not difference:
            sizes = ", ".join(f"{key} {list(array.shape)}" for key, array in feeds.items())
            return f"the graph is not what the class is at {sizes}: {INPUTS[level]} {difference.describe()}"
    return None


def as_array(tensor: "torch.Tensor") -> Array:
    """Return a tensor as an array of its own element type, bfloat16 as `ml_dtypes.bfloat16`."""
    import torch

    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.numpy())
    import ml_dtypes

    return np.asarray(tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of themselves and of sizes: what matters of it is read back from the graph."""
    with ExitStack() as stack:
        for name in ("torch.onnx", "torch.fx", "torch._export", "torch.export", "onnxscript"):
            stack.enter_context(quiet_logger(name))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for redirect in (redirect_stdout, redirect_stderr):  # whole graphs are printed where an export fails
            stack.enter_context(redirect(io.StringIO()))
        yield


@contextmanager
def _without_graphs() -> Iterator[None]:
    """Send what TorchScript's exporter prints nowhere: the whole graph, from C++, where it cannot be switched off."""
    import torch

    torch._C._jit_set_onnx_log_output_stream("stderr")  # standard output may be read by a program, meanwhile too
    kept = os.dup(_STDERR)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        torch._C._jit_set_onnx_log_output_stream("stdout")
