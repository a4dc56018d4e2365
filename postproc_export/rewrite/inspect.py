"""Say what a model file is, what post-processing it has, and what that decides, without running it."""

from dataclasses import replace
from pathlib import Path

from postproc_export.files.targets import is_onnx
from postproc_export.rewrite.defaults import default_attachment
from postproc_export.rewrite.inspection import InspectResult


def inspect_model(model_path: str | Path, *, defaults: bool = False) -> InspectResult:
    """Say what a model file is, what is at its outputs, and what it decides.

    Parameters
    ----------
    model_path
        An ONNX file (.onnx) or an OpenVINO IR (.xml, its .bin beside it).
    defaults
        Also say what `attach_postprocessing` would do to the file with no options, and why.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the file cannot be read, is damaged, or refers to files outside its folder.

    Notes
    -----
    The model is not run and its weights are not loaded. OpenVINO is needed for an IR only.
    """
    path = Path(model_path)
    if is_onnx(path):
        from postproc_export.rewrite.onnx_inspect import inspect_onnx_file

        result = inspect_onnx_file(path)
    else:
        from postproc_export.rewrite.openvino_inspect import inspect_openvino_file

        result = inspect_openvino_file(path)
    return replace(result, defaults=default_attachment(path)) if defaults else result
