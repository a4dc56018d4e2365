"""Check an attached file: against its record, its tail alone, and as a whole on real inputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from postproc_export.check.assumed import Assumed
from postproc_export.check.attached import AttachedModel
from postproc_export.check.attached_files import load_attached, without_decisions
from postproc_export.check.findings import Check
from postproc_export.check.inputs import RealInputs, array_inputs, image_inputs
from postproc_export.check.record import check_record, file_checks, record_is_missing
from postproc_export.check.reference import EagerTransform, RawFile, Reference, unnamed_code, usable_arithmetic
from postproc_export.check.report import FailureStore, ParityReport
from postproc_export.check.steps import DecisionCheck, check_transform, unfit_layer
from postproc_export.check.synthetic import SyntheticCheck, SyntheticPlan
from postproc_export.check.tail import check_adjusted, check_exhaustively, check_tail
from postproc_export.check.torch_model import TorchRunner
from postproc_export.check.ways import Configuration, usable_cores, whole_configurations
from postproc_export.check.whole import LoadedModels, WholeCheck
from postproc_export.errors import FileError, MissingDependencyError, UsageError, install
from postproc_export.files import check_model, model_digests
from postproc_export.installation import environment
from postproc_export.options import as_typed, with_decision
from postproc_export.process import temporary_folder
from postproc_export.record import TailSpec, parse_tails
from postproc_export.run_options import CheckOptions
from postproc_export.runtimes import RuntimeName, installed_runtimes, runner_class
from postproc_export.stats import Level, as_stats, check_comparison, check_sensitivity
from postproc_export.steps.around import is_asked
from postproc_export.validation import called_like

__all__ = ["Check", "ParityReport", "assert_parity", "check_parity"]


_NO_OTHER_PRECISION = "another default precision than float32: this machine has none (some take bfloat16 or float16)"
Inputs = str | Path | Mapping[str, NDArray[Any]] | None


def check_paths(*, raw: str | Path | None, images: str | Path | None, inputs: Inputs) -> None:
    """Refuse paths of `check_parity` where nothing is, whether they would be read or not."""
    for name, noun, path in (("raw", "raw model", raw), ("inputs", "inputs", inputs), ("images", "images", images)):
        if isinstance(path, str | Path) and not Path(path).exists():
            found = "no such file or folder" if name == "images" else "no such file"
            raise FileError(f"cannot read the {noun} {path}", found=found, fix=f"give another path with --{name}")
    if raw is not None:
        check_model(Path(raw), noun="raw model")


def assumptions(asked: CheckOptions) -> Assumed | None:
    """Return what is given beside a file, None where nothing is; what is not legal is refused."""
    stats = asked.stats
    if all(given is None for given in (stats, asked.image_sensitivity, asked.pixel_sensitivity, asked.comparison)):
        return None
    for name in ("image_sensitivity", "pixel_sensitivity"):
        if getattr(asked, name) is not None:
            check_sensitivity(getattr(asked, name), name=name)
    if asked.comparison is not None:
        check_comparison(asked.comparison)
    names = ("image_sensitivity", "pixel_sensitivity", "comparison")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    known = None if stats is None else as_stats(stats)
    if known is not None:
        known, given, _ = with_decision(known, given)
    return Assumed(
        stats=known, path=stats if isinstance(stats, (str, Path)) else None, **{name: given.get(name) for name in names}
    )


def check_options(asked: CheckOptions) -> None:
    """Refuse options that do not fit together, and failures saved where the inputs are, which they might replace."""
    check_paths(raw=asked.raw, images=asked.images, inputs=asked.inputs)
    images, inputs, torch = asked.images, asked.inputs, asked.torch
    if images is not None and inputs is not None:
        raise UsageError("--images and --inputs contradict each other", needed="one of them", fix="leave the other out")
    if images is None and (asked.preprocessing is not None or asked.other_preprocessing):
        raise UsageError("a pre-processing without images", fix="leave it out, or give --images")
    if torch is not None and images is None and inputs is None:
        fix = "leave --torch out, or give --images or --inputs"
        raise UsageError("--torch without images or inputs to feed it", needed="--images or --inputs", fix=fix)
    for option, value, is_used, needed in (
        ("limit", asked.limit, images is not None or inputs is not None, "--images or --inputs"),
        ("int8", asked.int8, images is not None or inputs is not None, "--images or --inputs"),
        ("max_flips", asked.max_flips, asked.raw is not None or torch is not None, "--raw or --torch"),
    ):
        if value and not is_used:
            name = f"--{option.replace('_', '-')}"
            raise UsageError(f"{name} would have no effect", needed=needed, fix=f"leave {name} out, or give {needed}")
    if asked.int8 and asked.runtimes:
        raise UsageError("--int8 would have no effect beside --runtime", fix="leave one of them out")
    for name in ("image_output", "pixel_output"):
        if torch is None and getattr(asked, name) is not None:
            fix = "leave it out, or give --torch: without a PyTorch model the file names its raw outputs"
            raise UsageError(f"{as_typed(asked, name)} would have no effect", needed="--torch", fix=fix)
    if asked.save_failures is not None and isinstance(inputs, str | Path) and Path(inputs).is_file():
        folder = Path(asked.save_failures)
        if folder.is_dir() and Path(inputs).absolute().parent.samefile(folder):
            what = f"cannot save failures in {folder}: {inputs} lies there and is read"
            raise FileError(what, fix="choose another folder with --save-failures")


def named_tails(
    texts: str | Sequence[str], attached: AttachedModel, entire: AttachedModel | None
) -> tuple[TailSpec, ...]:
    """Return the custom steps and decisions that a caller names, each of which has to be in the record of the file.

    `entire` is the file with what stands behind its decision.
    """
    layers = (attached.layer("transform"), None if entire is None else entire.layer("decision"))
    records = [record for record in layers if record is not None]
    recorded = [spec for record in records for spec in record.tails]
    named = parse_tails(texts)
    for spec in named:
        if not any(is_asked(spec, other) for other in recorded):
            raise UsageError(
                f"the step '{spec.text}' is not the one that {attached.path} was attached with",
                found=f"recorded: {', '.join(other.text for other in recorded) or 'none'}",
                needed="a tail that the record of the file names",
                fix=f"--step {recorded[0].text}" if recorded else "leave it out",
            )
    return named


def usable_runtimes(model: AttachedModel) -> tuple[RuntimeName, ...]:
    """Return the installed runtimes that read the format of a file; refuse to check it with none."""
    wanted = model.form.runtimes
    found = tuple(name for name in wanted if name in installed_runtimes())
    if not found:
        raise MissingDependencyError(
            f"{model.path} cannot be checked: no runtime for it is installed",
            needed=" or ".join(wanted),
            fix=install(wanted[0]),
        )
    return found


def usable_ways(asked: CheckOptions, model: AttachedModel) -> list[Configuration]:
    """Return the ways to run a file: those asked for, else all of the installed runtimes that read it."""
    ways = [Configuration.asked(text) for text in dict.fromkeys(asked.runtimes)]
    for way in ways:
        formats = runner_class(way.runtime).formats
        if model.form.name not in formats:
            raise UsageError(
                f"{way.runtime} does not read {model.path}", found=model.form.name, needed=" or ".join(formats)
            )
    return ways or whole_configurations(usable_runtimes(model), int8=asked.int8)


def real_inputs(asked: CheckOptions, loaded: LoadedModels, ways: Sequence[Configuration]) -> RealInputs | None:
    """Return the images or inputs of a check, which have to fit the file; None where neither was given."""
    if asked.images is None and asked.inputs is None:
        return None
    loads = (way for way in ways if not isinstance(loaded.open("attached", way), str))
    ports = loaded.load("attached", next(loads, ways[0])).inputs
    if asked.images is not None:
        stats, other = loaded.attached.record.stats, asked.other_preprocessing
        return image_inputs(asked.images, ports, stats, asked.preprocessing, limit=asked.limit, other=other)
    assert asked.inputs is not None, "without images there are inputs"
    return array_inputs(asked.inputs, ports, limit=asked.limit)


def _not_covered(
    asked: CheckOptions, model: AttachedModel, ways: Sequence[Configuration], unnamed: TailSpec | None
) -> Iterator[str]:
    """Yield what a check does not cover, a sentence each; the code of the class `unnamed` is not run."""
    originals = (("the raw file run apart", asked.raw), ("the PyTorch model", asked.torch))
    if unnamed is not None:  # the file alone names it
        reason = f"the code of '{unnamed.name}' is run only where you name it, too: --step {unnamed.name}"
        yield f"the class '{unnamed.name}' before the threshold, and what it does with NaN: {reason}"
        yield from (f"the whole file against {name}: {reason}" for name, given in originals if given is not None)
    readers, runtimes = model.form.runtimes, [way.runtime for way in ways]
    missing = [name for name in readers if name not in runtimes and not asked.runtimes]
    yield from (f"{name} ({install(name)}): it is not installed" for name in missing)
    for level in model.raw:
        if level not in model.levels:
            yield f"the {level} level: it is not calibrated, and '{model.raw[level].name}' stays as it is"
    if model.guard == "none" and "image" in model.levels and "image" not in model.raw:
        yield "the image score of a map that holds a NaN: the tail has no guard, so it is not defined"
    empty = [name for name in dict.fromkeys(runtimes) if not runner_class(name).takes_empty]
    fixed = [name for name in dict.fromkeys(runtimes) if model.form.name not in runner_class(name).adjusts]
    if model.tail.adjustable and fixed:
        yield f"{', '.join(model.tail.defaults)} in {', '.join(fixed)}: reading an ONNX model makes constants of them"
    yield from (f"a batch of no images in {name}, which takes none" for name in empty)
    if asked.images is None and asked.inputs is None:
        yield "real images (--images): none were given"
    if asked.raw is None:
        yield "the raw file (--raw): none was given"
    if asked.torch is None:
        yield "the PyTorch model (--torch): none was given"
    if not asked.int8:
        yield "INT8 (--int8): it was not asked for"
    yield "other devices than those asked for" if asked.runtimes else "other devices than the CPU"


@called_like(CheckOptions)
def check_parity(**given: Any) -> ParityReport:
    """Check that an attached file decides as the eager reference does.

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
        If no runtime for the format is installed, or torch is not where it is asked for: by ``reference``, by ``torch``
        or by a custom step that is a class.

    Notes
    -----
    Three parts. The record: names, order, types and shapes of the outputs, and every constant of the tail to the bit.
    The tail alone, cut out of the file, on adversarial values: labels equal, scores within the tolerance derived
    from the statistics, NaN as docs/definition.md section 5 says. The whole file at float32, on synthetic inputs always
    and on real ones where they are given: against the reference on the raw value tapped in the same compiled model, and
    against the raw file run apart, or on synthetic inputs what detaching gives. On real inputs the machine's default
    precision is run and shown, and decides nothing; neither do weights rounded to float16, or INT8. With a PyTorch
    model all of it is compared with that model, stage by stage (docs/parity.md).
    """
    asked = CheckOptions(**given)
    attached, assumed = Path(asked.attached), assumptions(asked)
    check_options(asked)
    files = model_digests(attached)
    threads = usable_cores() if asked.threads is None else asked.threads
    shared: dict[str, Any] = {"seed": asked.seed, "threads": threads}
    of_file, not_checked = file_checks(attached, preserved=asked.preserved, contracts=asked.contracts)
    missing = record_is_missing(attached) if of_file and asked.stats is None else None
    if missing is None:
        whole_file = load_attached(attached, assumed)
        missing = None if whole_file.layer("decision") is None else unfit_layer(whole_file)
    if missing is not None:  # what needs no record is told all the same
        return _report_of(asked, [missing, *of_file], not_checked, environment(**shared), files=files)
    with without_decisions(whole_file, assumed) as (model, entire), temporary_folder() as folder:
        ways, named = usable_ways(asked, model), named_tails(asked.steps, model, entire)
        reference = Reference(model, usable_arithmetic(asked.reference))
        transform = EagerTransform.load(model, named, reference.arithmetic)
        unnamed = unnamed_code(model, named)
        raw_file = None if asked.raw is None or unnamed is not None else RawFile.of(Path(asked.raw), model, transform)
        is_original = None if raw_file is None else raw_file.is_original()
        plan = SyntheticPlan(model, raw_file, folder, **shared)
        real = real_inputs(asked, plan, ways)
        exported = _exported(asked, model, threads, transform)
        not_checked += _not_covered(asked, model, ways, unnamed)
        failures = _store(asked, threads, named, assumed)
        behind = None if entire is None else DecisionCheck(entire, model, **shared)
        checks = [*check_record(model), *of_file]
        tail_ways = [way for way in ways if way.weights == "stored"]
        checks += check_tail(model, reference, tail_ways, count=asked.count, **shared)
        checks += () if transform is None else check_transform(reference, transform, tail_ways, **shared)
        checks += () if behind is None else behind.alone(tail_ways)
        checks += check_adjusted(reference, tail_ways, count=asked.count, **shared)
        checks += check_exhaustively(reference, ways, progress=asked.progress) if asked.exhaustive else ()
        judged: dict[str, Any] = {"max_flips": asked.max_flips, "failures": failures}
        synthetic = SyntheticCheck(reference, plan, behind if real is None else None, **judged)
        checks += synthetic.checks(ways, later=() if real is None else ways)
        whole: WholeCheck | None = None
        if real is not None:
            known, judged["progress"] = exported if unnamed is None else None, asked.progress
            with temporary_folder() as other:
                whole = WholeCheck(reference, real, plan, raw_file, other, known, transform, behind, **judged)
                checks += whole.checks(ways)
    not_checked += [*synthetic.not_checked, *(() if whole is None else whole.not_checked)]
    default = {check.precision for check in checks if not check.judged and check.precision is not None}
    not_checked += [_NO_OTHER_PRECISION] if default == {"float32"} else []
    if failures is not None:
        failures.add_tail(checks)
    described = environment(**shared)
    told = {
        "reference": f"{reference.arithmetic} {described['packages'][reference.arithmetic]}",
        "file": "; ".join(model.remarks) or None,
        "inputs": None if real is None else real.description,
        "synthetic": synthetic.ran,
        "torch": None if exported is None else exported.describe(),
        "failures": None if failures is None else failures.saved,
    }
    described |= {key: value for key, value in told.items() if value is not None}
    ran: dict[str, Any] = {"not_run": synthetic.not_run} if whole is None else {"whole": tuple(whole.results)}
    return _report_of(asked, checks, not_checked, described, files=files, is_original=is_original, **ran)


def assert_parity(attached: str | Path, **options: Any) -> ParityReport:
    """Check an attached file as `check_parity` does, and raise where a check failed: for tests.

    Parameters
    ----------
    attached, options
        See `check_parity`.

    Raises
    ------
    AssertionError
        If a judged check failed; the text is the whole report.
    """
    report = check_parity(attached, **options)
    if not report:
        raise AssertionError(report.describe())
    return report


def _report_of(
    asked: CheckOptions, checks: Iterable[Check], not_checked: Iterable[str], described: Mapping[str, Any], **more: Any
) -> ParityReport:
    given = {name: getattr(asked, name) for name in ("raw", "preserved", "images", "inputs", "torch", "stats")}
    return ParityReport(
        subject=str(Path(asked.attached)),
        checks=tuple(checks),
        not_checked=tuple(dict.fromkeys(not_checked)),
        environment=described,
        given={name: str(each) for name, each in given.items() if isinstance(each, str | Path)},
        **more,
    )


def _exported(
    asked: CheckOptions, model: AttachedModel, threads: int, transform: EagerTransform | None
) -> TorchRunner | None:
    if asked.torch is None:
        return None
    outputs: dict[Level, str | int | None] = {"image": asked.image_output, "pixel": asked.pixel_output}
    return TorchRunner(asked.torch, model, outputs, threads=threads, transform=transform)


def _store(
    asked: CheckOptions, threads: int, named: Sequence[TailSpec], assumed: Assumed | None
) -> FailureStore | None:
    if asked.save_failures is None:
        return None
    return FailureStore(
        Path(asked.save_failures),
        asked,
        threads,
        code=[spec.name for spec in named if spec.is_code],
        assumed=() if assumed is None else assumed.arguments,
    )
