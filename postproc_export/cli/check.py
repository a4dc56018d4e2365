"""The command check: its options, and the report files it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from postproc_export.cli.console import progress, show
from postproc_export.cli.options import command, image_options, options_of, preprocessing_of, spelling_of
from postproc_export.errors import FileError, UsageError
from postproc_export.run_options import CheckOptions

if TYPE_CHECKING:
    from postproc_export.check import ParityReport


def _check_before(
    read: Sequence[Path], images: Path | None, *, junit: Path | None, markdown: Path | None, save_failures: Path | None
) -> None:
    """Refuse reports that are read, and what cannot be written; nothing is made."""
    from postproc_export.files import FORMATS, check_folder, check_target, explained, model_files, refuse_inputs
    from postproc_export.images import find_samples

    reports = [path for path in (junit, markdown) if path is not None]
    if reports:
        paths = [path for path in read if not path.is_dir()]
        files = [each for path in paths for each in (model_files(path) if path.suffix in FORMATS else [path])]
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
def check(
    *,
    junit: Annotated[Path | None, Parameter(name="--junit", help="Write the report as JUnit XML, too.")] = None,
    markdown: Annotated[
        Path | None, Parameter(name="--markdown", help="Append a Markdown summary to this file, such as a job page.")
    ] = None,
    **given: Any,
) -> Any:
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
    try:
        _write_reports(report, junit=junit, markdown=markdown)
    except FileError:
        show(report, lambda found: found.summary(), is_wanted=True)
        raise
    return report
