"""Check an attached file: against its record, its tail alone, and as a whole on real inputs."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from postproc_export.errors import MissingDependencyError, UsageError
from postproc_export.parity.attached_model import AttachedModel, load_attached
from postproc_export.parity.environment import environment, installed_runtimes
from postproc_export.parity.exhaustive import check_exhaustively
from postproc_export.parity.failures import FailureStore
from postproc_export.parity.inputs import COUNT, SEED
from postproc_export.parity.raw_file import RawFile
from postproc_export.parity.real_inputs import RealInputs, array_inputs, image_inputs
from postproc_export.parity.record_check import check_record
from postproc_export.parity.reference import Reference
from postproc_export.parity.report import Check, ParityReport
from postproc_export.parity.tail_check import check_tail, tail_configurations
from postproc_export.parity.whole_check import WholeCheck, whole_configurations
from postproc_export.runtimes import RuntimeName, open_runner

if TYPE_CHECKING:
    from postproc_export.images import Preprocessing

Progress = Callable[[int, int], None]

_GUARDLESS = "the image score of a map that holds a NaN: the tail has no guard, so it is not defined"


def check_parity(
    attached: str | Path,
    *,
    raw: str | Path | None = None,
    images: str | Path | None = None,
    inputs: str | Path | Mapping[str, NDArray[Any]] | None = None,
    preprocessing: "Preprocessing | None" = None,
    limit: int | None = None,
    max_flips: int = 0,
    count: int = COUNT,
    seed: int = SEED,
    threads: int | None = None,
    exhaustive: bool = False,
    save_failures: str | Path | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Check that an attached file decides as the eager reference does.

    Parameters
    ----------
    attached
        An ``.onnx`` or ``.xml`` file that `attach_postprocessing` wrote.
    raw
        The original with raw outputs, to be run apart.
    images
        A folder or a CSV file of real images, labels not needed.
    inputs
        In place of images: an ``.npz`` file or a mapping of arrays, by the names of the model's inputs.
    preprocessing
        What is done to the images; default: what the statistics record, else `Preprocessing()`.
    limit
        How many images or samples at most.
    max_flips
        Labels per output that may differ from the raw file's though the raw value lies outside the band that another
        compilation explains.
    count
        Raw values per level for the tail alone.
    seed
        Seed of these values.
    threads
        Threads inside an operator; default: the runtime's choice.
    exhaustive
        Whether every raw value there is (all 2^32 float32) goes through the tail of each level, too. Takes minutes.
    save_failures
        A folder for inputs on which something was missed; the report's environment lists them with the commands that
        replay them.
    progress
        Called with what is done and all that there is to do, in steps of the part that takes longest.

    Returns
    -------
    ParityReport
        Truthy where everything that was judged passed. It lists what was not checked, too.

    Raises
    ------
    UsageError, FileError, MetadataError, UnsupportedModelError
        If the file or the inputs cannot be used at all.
    MissingDependencyError
        If no runtime for the format is installed, or torch, the reference's own, is not.

    Notes
    -----
    Three parts. The record: names, order, types and shapes of the outputs, and every constant of the tail to the bit.
    The tail alone, cut out of the file, on values that seek trouble: labels equal, scores within the tolerance derived
    from the statistics, NaN as docs/definition.md section 5 says. The whole file on real inputs at float32: against the
    reference on the raw value tapped in the same compiled model, and against the raw file run apart. The machine's
    default precision is run and shown, and decides nothing.
    """
    if images is not None and inputs is not None:
        raise UsageError("both images and inputs were given", needed="one of them")
    model = load_attached(Path(attached))
    runtimes = _runtimes(model)
    reference = Reference(model)
    real = _real_inputs(model, runtimes, images, inputs, preprocessing, limit)
    not_checked = [*_not_checked(model, runtimes), *_not_given(raw=raw is not None, real=real is not None)]
    failures = _store(save_failures, Path(attached), raw, seed)
    checks = list(check_record(model))
    checks += check_tail(
        model, reference, tail_configurations(model.file.format, runtimes), count=count, seed=seed, threads=threads
    )
    if exhaustive:
        checks += check_exhaustively(model, runtimes, progress=progress)
    if real is not None:
        raw_file = None if raw is None else RawFile(Path(raw), model)
        with TemporaryDirectory(prefix="postproc-check-") as folder:
            whole = WholeCheck(
                model,
                reference,
                real,
                raw_file,
                Path(folder),
                threads=threads,
                max_flips=max_flips,
                progress=progress,
                failures=failures,
            )
            checks += whole.checks(whole_configurations(model.file.format, runtimes))
        not_checked += whole.not_checked
    not_checked += _precisions(checks)
    described: dict[str, Any] = {} if real is None else {"inputs": real.describe()}
    if failures is not None:
        failures.add_tail(checks)
        described["failures"] = failures.saved
    return ParityReport(
        subject=str(attached),
        checks=tuple(checks),
        not_checked=tuple(dict.fromkeys(not_checked)),
        environment={**environment(seed=seed, threads=threads), **described},
    )


def assert_parity(attached: str | Path, **options: Any) -> ParityReport:
    """Check an attached file as `check_parity` does, and raise where something was missed: for tests.

    Parameters
    ----------
    attached, options
        See `check_parity`.

    Raises
    ------
    AssertionError
        If a judged check was missed; the text is the whole report.
    """
    report = check_parity(attached, **options)
    if not report:
        raise AssertionError(report.describe())
    return report


def _store(folder: str | Path | None, attached: Path, raw: str | Path | None, seed: int) -> FailureStore | None:
    if folder is None:
        return None
    return FailureStore(Path(folder), attached, None if raw is None else Path(raw), seed)


def _runtimes(model: AttachedModel) -> tuple[RuntimeName, ...]:
    wanted: tuple[RuntimeName, ...] = ("onnxruntime", "openvino") if model.file.format == "onnx" else ("openvino",)
    found = tuple(name for name in wanted if name in installed_runtimes())
    if not found:
        raise MissingDependencyError(
            f"{model.path} cannot be checked: no runtime for it is installed",
            needed=" or ".join(wanted),
            fix=f"pip install 'postproc-export[{wanted[0]}]'",
        )
    return found


def _real_inputs(
    model: AttachedModel,
    runtimes: tuple[RuntimeName, ...],
    images: str | Path | None,
    inputs: str | Path | Mapping[str, NDArray[Any]] | None,
    preprocessing: "Preprocessing | None",
    limit: int | None,
) -> RealInputs | None:
    if images is None and inputs is None:
        return None
    ports = open_runner(model.path, runtime=runtimes[0]).inputs
    if images is not None:
        return image_inputs(images, ports, model.file.record.stats, preprocessing, limit=limit)
    assert inputs is not None, "without images there are inputs"
    return array_inputs(inputs, ports, limit=limit)


def _not_checked(model: AttachedModel, runtimes: tuple[RuntimeName, ...]) -> Iterator[str]:
    if model.file.format == "onnx":
        for name in ("onnxruntime", "openvino"):
            if name not in runtimes:
                yield f"{name}: it is not installed (pip install 'postproc-export[{name}]')"
    else:
        yield "ONNX Runtime: it does not read this format"
    for level in model.file.raw:
        if level not in model.levels:
            yield f"the {level} level: it is not calibrated, and '{model.file.raw[level].name}' stays as it is"
    if model.guard == "none" and "image" in model.levels and "image" not in model.file.raw:
        yield _GUARDLESS
    yield "other devices than the CPU"


def _not_given(*, raw: bool, real: bool) -> Iterator[str]:
    if not real:
        yield "the whole file on real inputs: neither images nor inputs were given"
    if not (raw and real):
        missing = "there was nothing to feed it" if raw else "no raw file was given"
        yield f"the whole file against the raw file run apart: {missing}"


def _precisions(checks: list[Check]) -> Iterator[str]:
    default = {check.precision for check in checks if not check.judged and check.precision is not None}
    if default == {"float32"}:
        yield "another default precision than float32: this machine has none (some take bfloat16 or float16)"
