"""What a check is given: options that fit together, runtimes that are installed, real inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from postproc_export.boundary import check_comparison, check_sensitivity
from postproc_export.errors import FileError, MissingDependencyError, UsageError
from postproc_export.parity.fed.real_inputs import RealInputs, array_inputs, image_inputs
from postproc_export.parity.models.assumed import Assumed
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.environment import installed_runtimes
from postproc_export.runtimes import RuntimeName, open_runner
from postproc_export.stats import CalibrationStats
from postproc_export.transforms.around import is_same
from postproc_export.transforms.record import LayerRecord
from postproc_export.transforms.spec import TailSpec, parse_tails

if TYPE_CHECKING:
    from postproc_export.boundary import Comparison
    from postproc_export.images import Preprocessing

Inputs = str | Path | Mapping[str, NDArray[Any]] | None


def check_paths(*, raw: str | Path | None, images: str | Path | None, inputs: Inputs) -> None:
    """Refuse paths of `check_parity` where nothing is, whether they would be read or not.

    Raises
    ------
    FileError
        If there is one.
    """
    nouns = {"raw": "raw model", "inputs": "inputs", "images": "images"}
    given = {"raw": raw, "inputs": inputs, "images": images}
    for name, path in given.items():
        if isinstance(path, str | Path) and not Path(path).exists():
            found = "no such file or folder" if name == "images" else "no such file"
            raise FileError(
                f"cannot read the {nouns[name]} {path}", found=found, fix=f"give another path with --{name}"
            )


def assumptions(
    stats: "str | Path | CalibrationStats | None",
    image_sensitivity: float | None,
    pixel_sensitivity: float | None,
    comparison: "Comparison | None",
) -> Assumed:
    """Return what is given beside a file.

    Raises
    ------
    FileError, MetadataError
        If the statistics cannot be read or are not legal, or an option is not.
    """
    loaded = stats if stats is None or isinstance(stats, CalibrationStats) else CalibrationStats.load(stats)
    for name, value in (("image_sensitivity", image_sensitivity), ("pixel_sensitivity", pixel_sensitivity)):
        if value is not None:
            check_sensitivity(value, name=name)
    if comparison is not None:
        check_comparison(comparison)
    return Assumed(
        stats=loaded,
        path=None if stats is None or isinstance(stats, CalibrationStats) else stats,
        image_sensitivity=image_sensitivity,
        pixel_sensitivity=pixel_sensitivity,
        comparison=comparison,
    )


def check_options(
    *,
    images: str | Path | None,
    inputs: Inputs,
    torch: object,
    outputs: tuple[str | int | None, ...],
    save_failures: str | Path | None = None,
) -> None:
    """Refuse options of `check_parity` that do not fit together; `outputs` are those named of the PyTorch model.

    Raises
    ------
    UsageError
        If they do not.
    FileError
        If failures are to be saved where the inputs are, which they might replace.
    """
    if images is not None and inputs is not None:
        raise UsageError("both images and inputs were given", needed="one of them")
    if torch is not None and images is None and inputs is None:
        raise UsageError("a PyTorch model without images or inputs to feed it", fix="give --images or --inputs")
    if torch is None and any(output is not None for output in outputs):
        raise UsageError("an output was named without a PyTorch model", fix="give --torch, or leave the name out")
    if save_failures is not None and isinstance(inputs, str | Path) and Path(inputs).is_file():
        folder = Path(save_failures)
        if folder.is_dir() and Path(inputs).absolute().parent.samefile(folder):
            what = f"cannot save failures in {folder}: {inputs} lies there and is read"
            raise FileError(what, fix="choose another folder with --save-failures")


def named_tails(
    texts: str | Sequence[str], attached: AttachedModel, decisions: LayerRecord | None
) -> tuple[TailSpec, ...]:
    """Return the tails that a caller names, once it is sure that the file records them.

    Parameters
    ----------
    texts
        As the command line takes them.
    attached, decisions
        The file, and the record of what stands behind its decision.

    Raises
    ------
    UsageError, FileError
        If one cannot be read, or is not in the record of the file.
    """
    records = [record for record in (attached.file.layer("transform"), decisions) if record is not None]
    recorded = [spec for record in records for spec in record.tails]
    named = parse_tails(texts)
    for spec in named:
        if not any(is_same(spec, other) for other in recorded):
            raise UsageError(
                f"the tail '{spec.text}' is not the one that {attached.path} was attached with",
                found=f"recorded: {', '.join(other.text for other in recorded) or 'none'}",
                needed="a tail that the record of the file names",
                fix=f"--tail {recorded[0].text}" if recorded else "leave it out",
            )
    return named


def usable_runtimes(model: AttachedModel) -> tuple[RuntimeName, ...]:
    """Return the installed runtimes that read the format of a file.

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


def real_inputs(
    model: AttachedModel,
    runtimes: tuple[RuntimeName, ...],
    images: str | Path | None,
    inputs: Inputs,
    preprocessing: "Preprocessing | None",
    limit: int | None,
) -> RealInputs | None:
    """Return the images or inputs of a check; None where neither was given.

    Raises
    ------
    UsageError, FileError
        If they do not fit the inputs of the file, or cannot be read.
    """
    if images is None and inputs is None:
        return None
    ports = model.with_values(open_runner(model.path, runtime=runtimes[0])).inputs
    if images is not None:
        return image_inputs(images, ports, model.file.record.stats, preprocessing, limit=limit)
    assert inputs is not None, "without images there are inputs"
    return array_inputs(inputs, ports, limit=limit)
