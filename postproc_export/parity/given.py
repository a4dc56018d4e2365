"""What there is to check a file with: the runtimes at hand, and the inputs that were given."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from postproc_export.errors import MissingDependencyError
from postproc_export.parity.attached_model import AttachedModel
from postproc_export.parity.environment import installed_runtimes
from postproc_export.parity.real_inputs import RealInputs, array_inputs, image_inputs
from postproc_export.runtimes import RuntimeName, open_runner

if TYPE_CHECKING:
    from postproc_export.images import Preprocessing


def usable_runtimes(model: AttachedModel) -> tuple[RuntimeName, ...]:
    """Return the runtimes that read the file and are installed.

    Raises
    ------
    MissingDependencyError
        If there is none.
    """
    wanted: tuple[RuntimeName, ...] = ("onnxruntime", "openvino") if model.file.format == "onnx" else ("openvino",)
    found = tuple(name for name in wanted if name in installed_runtimes())
    if not found:
        raise MissingDependencyError(
            f"{model.path} cannot be checked: no runtime for it is installed",
            needed=" or ".join(wanted),
            fix=f"pip install 'postproc-export[{wanted[0]}]'",
        )
    return found


def given_inputs(
    model: AttachedModel,
    runtimes: tuple[RuntimeName, ...],
    images: str | Path | None,
    inputs: str | Path | Mapping[str, NDArray[Any]] | None,
    preprocessing: "Preprocessing | None",
    limit: int | None,
) -> RealInputs | None:
    """Return the images or arrays to feed the whole file; None where there are none."""
    if images is None and inputs is None:
        return None
    ports = model.with_values(open_runner(model.path, runtime=runtimes[0])).inputs
    if images is not None:
        return image_inputs(images, ports, model.file.record.stats, preprocessing, limit=limit)
    assert inputs is not None, "without images there are inputs"
    return array_inputs(inputs, ports, limit=limit)
