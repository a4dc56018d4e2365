"""The commands check, vectors and judge: their options, and the report files they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from cyclopts import Parameter

from postproc_export.cli.console import progress, show
from postproc_export.cli.options import command, image_options, options_of, preprocessing_of, spelling_of
from postproc_export.errors import FileError, UsageError
from postproc_export.run_options import CheckOptions, JudgeOptions, VectorsOptions

if TYPE_CHECKING:
    from postproc_export.check import ParityReport
    from postproc_export.check.vectors import VectorsResult

Junit: TypeAlias = Annotated[Path | None, Parameter(name="--junit", help="Write the report as JUnit XML, too.")]
Markdown: TypeAlias = Annotated[
    Path | None, Parameter(name="--markdown", help="Append a Markdown summary to this file, such as a job page.")
]


def _check_before(
    read: Sequence[Path],
    images: Path | None,
    *,
    junit: Path | None,
    markdown: Path | None,
    save_failures: Path | None = None,
    folders: Sequence[Path] = (),
) -> None:
    """Refuse reports that are read, or lie in one of some folders, and what cannot be written; nothing is made."""
    from postproc_export.files import FORMATS, check_folder, check_target, explained, model_files, refuse_inputs
    from postproc_export.images import find_samples

    reports = [path for path in (junit, markdown) if path is not None]
    if reports:
        paths = [path for path in read if not path.is_dir()]
        files = [each for path in paths for each in (model_files(path) if path.suffix in FORMATS else [path])]
        files += folders
        samples = [] if images is None else find_samples(images, labels=False)
        files += [path for sample in samples for path in (sample.image, sample.mask) if path is not None]
        if junit is not None:
            check_target(junit, files)
        if markdown is not None and (markdown.is_file() or not markdown.exists()):
            # It is appended to, so that a device such as /dev/stdout may stand there.
            refuse_inputs([markdown], files, fix="choose another path")
            with explained(markdown):
                check_target(markdown) if not markdown.exists() else markdown.open("a").close()
        elif markdown is not None and markdown.is_dir():
            raise FileError(f"cannot write {markdown}", found="a folder", needed="the path of a file", fix="add a name")
    if save_failures is not None:
        check_folder(next(each for each in (save_failures, *save_failures.absolute().parents) if each.exists()))


def _write_reports(report: ParityReport, *, junit: Path | None, markdown: Path | None) -> None:
    """Write the JUnit file, and append the summary; each whole or not at all, in a folder that is made if need be."""
    from postproc_export.check import report as formats
    from postproc_export.files import append_text, write_text

    if junit is not None:
        write_text(junit, formats.junit(report))
    if markdown is not None:
        append_text(markdown, formats.markdown(report))


_OF_IMAGES: Final = image_options(CheckOptions, defaults=False)


@command(
    options_of(CheckOptions, without=["preprocessing", "other_preprocessing"]),
    _OF_IMAGES,
    details=lambda report: report.describe(),
)
def check(*, junit: Junit = None, markdown: Markdown = None, **given: Any) -> Any:
    """Check that an attached model decides as PyTorch does, in every runtime that is installed.

    The first line is the verdict, the last one what to run next. Between them each cause of a failure has a line, with
    the mend and the worst case.

    Images are pre-processed as the statistics in the file record it: the default of every option for that is what is
    recorded, and another value is refused without --other-preprocessing. Without a record the defaults are those of
    calibrate.

    Exit code: 0 everything that was judged passed, 1 a check failed, 2 the file or the inputs cannot be used.

    Example: postproc-export check model.post.onnx --raw model.onnx --images bottle/test
    """
    from postproc_export.check import check_parity, check_paths

    images, save_failures = given.get("images"), given.get("save_failures")
    unused = [option for name, option in spelling_of(_OF_IMAGES).items() if name in given]
    if unused and images is None:
        raise UsageError(f"{unused[0]} without images", fix="leave it out, or give --images")
    check_paths(raw=given.get("raw"), images=images, inputs=given.get("inputs"))
    named = ("attached", "raw", "preserved", "inputs", "images", "stats", "preprocessing")
    read = [given[name] for name in named if name in given]
    preprocessing = preprocessing_of(given)
    _check_before(read, images, junit=junit, markdown=markdown, save_failures=save_failures)
    with progress("checking") as advance:
        report = check_parity(**given, preprocessing=preprocessing, progress=advance)
    return _reported(report, junit=junit, markdown=markdown)


_OF_KIT_IMAGES: Final = image_options(VectorsOptions, defaults=False)


def _judge_next(result: VectorsResult, given: Mapping[str, Any]) -> Sequence[object]:
    return ("judge", result.output, "OUTPUTS")


@command(options_of(VectorsOptions, without=["preprocessing", "other_preprocessing"]), _OF_KIT_IMAGES, then=_judge_next)
def vectors(**given: Any) -> Any:
    """Write a kit: how an attached model has to decide on a machine that this one cannot reach.

    The folder has the tail alone as a small model of the same format (tail/model.onnx or model.xml), ONNX test-data
    sets for it (tail/test_data_set_0/input_0.pb, output_0.pb and so on; the same arrays in inputs.npz and outputs.npz)
    and for the whole file (whole/test_data_set_0), and kit.json, which says what is judged and how. See
    docs/vectors.md. Run them there, write what comes out to a folder, and give that to judge.

    Images are pre-processed as the statistics in the file record it, and another value is refused without
    --other-preprocessing.

    Example: postproc-export vectors model.post.onnx -o kit --images bottle/test
    """
    from postproc_export.check.vectors import write_vectors

    unused = [option for name, option in spelling_of(_OF_KIT_IMAGES).items() if name in given]
    if unused and "images" not in given:
        raise UsageError(f"{unused[0]} without images", fix="leave it out, or give --images")
    preprocessing = preprocessing_of(given)  # which takes its options out of what is given
    return write_vectors(**given, preprocessing=preprocessing)


@command(options_of(JudgeOptions), details=lambda report: report.describe())
def judge(*, junit: Junit = None, markdown: Markdown = None, **given: Any) -> Any:
    """Judge what another machine computed of a kit, by the rules of check; the model and its runtime are not needed.

    The folder of outputs has the folders of the kit: in each test_data_set_0 and so on the outputs as output_0.pb,
    output_1.pb, ... in the model's order, or by name in outputs.npz. A whole folder (tail, whole and the like) may be
    left out, and the report says so. A copy of kit.json beside them tells of which kit they are.

    Exit code: 0 everything that was computed passed, 1 a check failed, 2 the kit or the outputs cannot be used.

    Example: postproc-export judge kit outputs --where 'TensorRT 10, Orin'
    """
    from postproc_export.check.judge import judge_outputs

    _check_before([], None, junit=junit, markdown=markdown, folders=[given["kit"], given["outputs"]])
    return _reported(judge_outputs(**given), junit=junit, markdown=markdown)


def _reported(report: ParityReport, *, junit: Path | None, markdown: Path | None) -> ParityReport:
    """Return a report after writing its files; where one cannot be written, it is printed all the same."""
    try:
        _write_reports(report, junit=junit, markdown=markdown)
    except FileError:
        show(report, lambda found: found.summary(), is_wanted=True)
        raise
    return report
