"""The files that an exported model is made of."""

import hashlib
from pathlib import Path

from graph_patterns.errors import ExplainedError
from postproc_export.errors import FileError


def model_files(model: Path) -> list[Path]:
    """Return the model file and those that hold its weights, as far as they are there.

    Notes
    -----
    Of an ONNX model that cannot be read, and so does not tell where its weights are, the file of the usual name.
    """
    usual = _usual_weights(model)
    files = {model, *([usual] if usual.is_file() else [])}
    if model.suffix.lower() == ".onnx" and model.is_file():
        from graph_patterns.onnx.container import load_skeleton
        from graph_patterns.onnx.external import external_files

        try:
            with load_skeleton(model) as file:
                files |= set(external_files(file.model, model.parent).values())
        except ExplainedError:  # whoever runs the model says what is wrong with it
            pass
    return sorted(files)


def file_digests(model: Path) -> dict[str, str]:
    """Return the SHA-256 of the model file and of the weights file that goes with its name (`.bin`, `.onnx.data`)."""
    weights = _usual_weights(model)
    digests = {}
    for path in (model, weights):
        if path == model or path.is_file():
            try:
                with path.open("rb") as file:
                    digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                fix = "calibrate again when nothing moves the model any more"
                raise FileError(f"cannot read {path}", found=error.strerror, fix=fix) from error
    return digests


def _usual_weights(model: Path) -> Path:
    return model.with_suffix(".bin") if model.suffix.lower() == ".xml" else model.with_name(model.name + ".data")
