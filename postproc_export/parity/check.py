"""Check an attached file: against its record, its tail alone, and as a whole on real inputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from postproc_export.files.staging import temporary_folder
from postproc_export.parity.checks.adjusted import check_adjusted
from postproc_export.parity.checks.decisions import DecisionCheck, unfit_layer, without_decisions
from postproc_export.parity.checks.exhaustive import check_exhaustively
from postproc_export.parity.checks.file import FileChecks, record_is_missing
from postproc_export.parity.checks.record import check_record
from postproc_export.parity.checks.synthetic import SyntheticCheck
from postproc_export.parity.checks.tail import check_tail, tail_configurations
from postproc_export.parity.checks.transform import TransformCheck
from postproc_export.parity.checks.whole import WholeCheck
from postproc_export.parity.fed.inputs import COUNT, SEED
from postproc_export.parity.fed.real_inputs import RealInputs
from postproc_export.parity.given import (
    assumptions,
    check_options,
    check_paths,
    named_tails,
    real_inputs,
    usable_runtimes,
)
from postproc_export.parity.models.assumed import Assumed
from postproc_export.parity.models.attached_model import AttachedModel, load_attached
from postproc_export.parity.models.environment import environment, usable_cores
from postproc_export.parity.models.ways import whole_configurations
from postproc_export.parity.originals.raw_file import RawFile
from postproc_export.parity.originals.torch_runner import TorchRunner
from postproc_export.parity.reference.eager_transform import EagerTransform, unnamed_code
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reports.failures import FailureStore
from postproc_export.parity.reports.not_checked import of_the_code, of_the_file, of_the_machine, of_the_options
from postproc_export.parity.reports.report import Check, ParityReport
from postproc_export.parity.reports.stage_results import WayResult
from postproc_export.runtimes import RuntimeName
from postproc_export.transforms.spec import TailSpec

if TYPE_CHECKING:
    from torch.nn import Module

    from postproc_export.boundary import Comparison
    from postproc_export.images import Preprocessing
    from postproc_export.stats import CalibrationStats

Progress = Callable[[int, int], None]


def check_parity(
    attached: str | Path,
    *,
    raw: str | Path | None = None,
    images: str | Path | None = None,
    inputs: str | Path | Mapping[str, NDArray[Any]] | None = None,
    torch: "str | Module | None" = None,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    tail: str | Sequence[str] = (),
    preprocessing: "Preprocessing | None" = None,
    limit: int | None = None,
    max_flips: int = 0,
    int8: bool | None = None,
    count: int = COUNT,
    seed: int = SEED,
    threads: int | None = None,
    exhaustive: bool = False,
    preserved: str | Path | None = None,
    contracts: Iterable[str] = (),
    save_failures: str | Path | None = None,
    progress: Progress | None = None,
    stats: "str | Path | CalibrationStats | None" = None,
    image_sensitivity: float | None = None,
    pixel_sensitivity: float | None = None,
    comparison: "Comparison | None" = None,
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
    torch
        The PyTorch model that was exported, as ``"module:factory"`` or itself; it is fed the same inputs.
    image_output, pixel_output
        Which of its outputs are the raw ones, by key, attribute or index, where names and shapes do not tell.
    tail
        A class of one's own before the threshold, ``"package.module:Class"`` as the file records it: its code is
        imported and run. Without it a class that the file names is left alone, and what needs it is not checked.
    preprocessing
        What is done to the images; default: what the statistics record, else `Preprocessing()`.
    limit
        How many images or samples at most.
    max_flips
        Labels per output that may differ from the raw file's or the PyTorch model's though the raw value lies outside
        the band that another compilation or implementation explains.
    int8
        Whether the file is quantised by nncf and run, too; default: where nncf is installed.
    count
        Raw values per level for the tail alone.
    seed
        Seed of these values.
    threads
        Threads inside an operator; default: as many as the process has cores, which the report records.
    exhaustive
        Whether every raw value there is (all 2^32 float32) goes through the tail of each level, too. Takes minutes.
    preserved
        The raw file, to be compared with the attached one: nothing besides the tail may differ.
    contracts
        Programs that the file has to fit: ``"anomalib"``, ``"model-api"``.
    save_failures
        A folder for inputs on which something was missed; the report's environment lists them with the commands that
        replay them.
    progress
        Called with what is done and all that there is to do, in steps of the part that takes longest.
    stats
        The statistics that the file was attached with, to judge one whose record is gone.
    image_sensitivity, pixel_sensitivity, comparison
        What that file was attached with besides; by default what attaching takes by default, which the report says.

    Returns
    -------
    ParityReport
        Truthy where everything that was judged passed. It lists what was not checked, too.

    Raises
    ------
    UsageError, FileError, MetadataError, UnsupportedModelError
        If the file, the inputs or the PyTorch model cannot be used at all, or the record of the file says otherwise
        than what is given.
    MissingDependencyError
        If no runtime for the format is installed, or torch, the reference's own, is not.

    Notes
    -----
    Three parts. The record: names, order, types and shapes of the outputs, and every constant of the tail to the bit.
    The tail alone, cut out of the file, on values that seek trouble: labels equal, scores within the tolerance derived
    from the statistics, NaN as docs/definition.md section 5 says. The whole file at float32, on synthetic inputs always
    and on real ones where they are given: against the reference on the raw value tapped in the same compiled model, and
    against the raw file run apart, or on synthetic inputs what detaching gives. On real inputs the machine's default
    precision is run and shown, and decides nothing; neither do weights rounded to float16, or INT8. With a PyTorch
    model all of it is compared with that model, stage by stage (docs/parity.md).
    """
    assumed = assumptions(stats, image_sensitivity, pixel_sensitivity, comparison)
    check_paths(raw=raw, images=images, inputs=inputs)
    outputs_named = (image_output, pixel_output)
    check_options(images=images, inputs=inputs, torch=torch, outputs=outputs_named, save_failures=save_failures)
    threads = usable_cores() if threads is None else threads
    file_checks = FileChecks.run(Path(attached), preserved=preserved, contracts=contracts)
    missing = record_is_missing(Path(attached)) if file_checks and assumed.stats is None else None
    missing = unfit_layer(Path(attached), assumed) if missing is None else missing
    if missing is not None:  # what needs no record is told all the same
        return _report_of(attached, [missing, *file_checks.checks], file_checks.not_checked, seed, threads)
    with without_decisions(Path(attached), assumed) as (path, decisions):
        model = load_attached(path, assumed)
        runtimes = usable_runtimes(model)
        named = named_tails(tail, model, decisions)
        reference, transform = Reference(model), EagerTransform.load(model, named)
        unnamed = unnamed_code(model, named)
        raw_file = None if raw is None or unnamed is not None else RawFile.of(Path(raw), model, transform)
        real = real_inputs(model, runtimes, images, inputs, preprocessing, limit)
        exported = None
        if torch is not None:
            outputs = {"image_output": image_output, "pixel_output": pixel_output}
            exported = TorchRunner.load(torch, model, **outputs, threads=threads, transform=transform)
        given = {"raw": raw is not None, "torch": torch is not None}
        not_checked = [*file_checks.not_checked, *of_the_code(unnamed, **given), *of_the_file(model, runtimes)]
        not_checked += of_the_options(**given, real=real is not None, int8=int8)
        failures = _store(save_failures, Path(attached), raw, torch, seed, threads, max_flips, named, assumed)
        behind = None
        if decisions is not None:
            behind = DecisionCheck(Path(attached), decisions, model, seed=seed, threads=threads)
        checks = [*check_record(model), *file_checks.checks]
        checks += _parts(model, reference, transform, behind, runtimes, count=count, seed=seed, threads=threads)
        if exhaustive:
            checks += check_exhaustively(model, runtimes, progress=progress)
        ways = whole_configurations(model.file.format, runtimes, int8=int8)
        shared: dict[str, Any] = {"threads": threads, "max_flips": max_flips, "failures": failures}
        whole: WholeCheck | None = None
        with temporary_folder() as folder, temporary_folder() as other:
            apart = behind if real is None else None
            synthetic = SyntheticCheck(model, reference, raw_file, folder, behind=apart, seed=seed, **shared)
            checks += synthetic.checks(ways)
            if real is not None:
                known = exported if unnamed is None else None
                whole = WholeCheck(model, reference, real, raw_file, other, known, transform, behind, **shared)
                whole.progress = progress
                checks += whole.checks(ways)
    not_checked += [*synthetic.not_checked, *(() if whole is None else whole.not_checked), *of_the_machine(checks)]
    described = _described(model, real, synthetic, exported, failures, checks)
    results = () if whole is None else tuple(whole.results)
    not_run = synthetic.not_run if whole is None else None
    return _report_of(attached, checks, not_checked, seed, threads, described, results, not_run)


def _described(
    model: AttachedModel,
    real: RealInputs | None,
    synthetic: SyntheticCheck,
    exported: TorchRunner | None,
    failures: FailureStore | None,
    checks: list[Check],
) -> dict[str, Any]:
    """Return what the report tells of the file, of what it was fed and of what was saved."""
    described: dict[str, Any] = {}
    if model.file.remarks:
        described["file"] = "; ".join(model.file.remarks)
    if real is not None:
        described["inputs"] = real.describe()
    if synthetic.ran is not None:
        described["synthetic"] = synthetic.ran
    if exported is not None:
        described["torch"] = exported.describe()
    if failures is not None:
        failures.add_tail(checks)
        described["failures"] = failures.saved
    return described


def _parts(
    model: AttachedModel,
    reference: Reference,
    transform: EagerTransform | None,
    behind: DecisionCheck | None,
    runtimes: Sequence[RuntimeName],
    *,
    count: int,
    seed: int,
    threads: int,
) -> Iterator[Check]:
    """Check the tail alone, and what stands before and behind it alone."""
    ways = tail_configurations(model.file.format, runtimes)
    yield from check_tail(model, reference, ways, count=count, seed=seed, threads=threads)
    if transform is not None:
        yield from TransformCheck(model, reference, transform, seed, threads).checks(ways)
    if behind is not None:
        yield from behind.alone(ways)
    yield from check_adjusted(model, ways, count=count, seed=seed, threads=threads)


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


def _report_of(
    attached: str | Path,
    checks: Iterable[Check],
    not_checked: Iterable[str],
    seed: int,
    threads: int | None,
    described: Mapping[str, Any] | None = None,
    whole: tuple[WayResult, ...] = (),
    not_run: str | None = None,
) -> ParityReport:
    return ParityReport(
        subject=str(attached),
        checks=tuple(checks),
        not_checked=tuple(dict.fromkeys(not_checked)),
        environment={**environment(seed=seed, threads=threads), **(described or {})},
        whole=whole,
        not_run=not_run,
    )


def _store(
    folder: str | Path | None,
    attached: Path,
    raw: str | Path | None,
    torch: object,
    seed: int,
    threads: int,
    max_flips: int,
    named: Sequence[TailSpec],
    assumed: Assumed,
) -> FailureStore | None:
    if folder is None:
        return None
    original = None if raw is None else Path(raw)
    code = tuple(spec.name for spec in named if spec.is_code)
    module = torch if isinstance(torch, str) else None
    return FailureStore(Path(folder), attached, original, seed, module, threads, max_flips, code, assumed.arguments)
