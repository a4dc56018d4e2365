"""A report on every sensitivity: one HTML file in which the boundary can be moved, and the same plots as PNG.

What a test or a script can hold on to in the page:

| what | where |
| --- | --- |
| the page is ready | `html[data-ready="true"]` |
| a level | `section[data-level="image"]`, `section[data-level="pixel"]` |
| a figure of a level | `[data-level="image"] [data-figure="recall"]`; the text is for people, `data-low` and |
| | `data-high` are the limits with every digit, equal where the figure is known |
| figures | `sensitivity`, `boundary`, `normalised`, `tp`, `fp`, `fn`, `tn`, `recall`, `precision`, `f1`, `fpr` |
| controls of a level | `#image-sensitivity` (number), `#image-slider` (one stop for each setting), `#image-fewer` and |
| | `#image-more` (the next setting), `#image-reset`, `#image-accept` (false alarms that are accepted) |
| what it says | `#image-sentence`, `#image-note` (of `accept`) |
| a plot | `#image-values`, `#image-rates`, `#image-precision-recall`, `#image-roc`, each with an svg inside |
| the command | `#update-command`, `#copy-command`, `#copied` |
| an example image | `[data-example="0"]` with a `[data-verdict]`, and a `canvas` whose `data-marked` counts pixels |
| a folder | `tr[data-folder="0"]` with a `[data-called]` |
| the verdict of a check | `#verdict` |
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from postproc_export.errors import UsageError, require
from postproc_export.files import FORMATS, check_target, model_digests, model_files, publishing, refuse_inputs
from postproc_export.inspect import origin_rows, read_state
from postproc_export.options import TailOptions, with_decision
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.prediction import Predictor
from postproc_export.report.examples import MOST_SCORES, Gallery
from postproc_export.report.levels import LevelView
from postproc_export.report.page import (
    PER,
    PURPOSE,
    about,
    both,
    command_section,
    example_section,
    gallery_json,
    level_section,
    page,
    verdict_section,
)
from postproc_export.run_options import PredictOptions, ReportOptions
from postproc_export.stats import LEVELS, CalibrationStats, Level, as_stats
from postproc_export.update import State
from postproc_export.validation import called_like, read_json, shown

__all__ = ["ReportResult", "write_report"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReportResult(Outcome):
    """A report that was written.

    Parameters
    ----------
    source
        The statistics, or the model that holds them; None for statistics in memory.
    output
        The HTML file.
    size
        Its bytes.
    state
        What is attached, or would be by default.
    png
        The plots that were written as PNG, too.
    notes
        What a user should know.
    """

    source: Path | None
    output: Path
    size: int
    state: State
    png: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def headline(self) -> str:
        """Return where the report is."""
        return f"report written to {self.output} ({self.size / 1e6:.1f} MB)"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what it shows."""
        for level in LEVELS:
            boundary = self.state.boundary(level)
            sensitivity = self.state.options.sensitivity(level)
            yield (
                level,
                "nothing decides" if boundary is None else f"boundary {boundary:.9g} at sensitivity {sensitivity:.9g}",
            )
        if self.png:
            yield "plots", f"{len(self.png)} in {self.png[0].parent}"
        yield from (("note", note) for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``report --json``: docs/json.md."""
        png = [str(path) for path in self.png]
        return outcome_json(self.source, self.output, self.state.to_json(), self.notes, png=png)


@called_like(ReportOptions)
def write_report(**given: Any) -> ReportResult:
    """Write what the statistics tell of every sensitivity as one HTML file, in which the boundary can be moved.

    Returns
    -------
    ReportResult
        What was written.

    Raises
    ------
    PostprocError
        If what is read is not legal or does not belong together, or a file cannot be written; nothing is written then.
    """
    asked = ReportOptions(**given)
    for package in ("altair", "vl_convert"):
        require(package, purpose=PURPOSE, extra="report")
    output = Path(asked.output)
    subject = _subject(asked)
    for target in (output, *(() if asked.png is None else [Path(asked.png, "plot.png")])):
        check_target(target, subject.read)  # before what takes long
    views = {level: view for level in LEVELS if (view := LevelView.of(level, subject.state)) is not None}
    if not views:
        raise UsageError(
            f"nothing to report: no level of {subject.title} decides",
            needed="a threshold of the image or the pixel level",
            fix="calibrate with ground truth, or attach with labels",
        )
    check = None if asked.check is None else _read_check(Path(asked.check), subject.model)
    gallery, told = _run(asked, subject, views)
    from postproc_export.report.plots import compiled, matrix, plots, png

    drawn = {f"{level}-{name}": plot for level, view in views.items() for name, plot in plots(view).items()}
    document = {
        "levels": both(views),
        **gallery_json(gallery),
        "per": PER,
        "update": subject.update,
        "plots": {name: compiled(plot) for name, plot in drawn.items()},
    }
    names = {level: [name.partition("-")[2] for name in drawn if name.startswith(f"{level}-")] for level in LEVELS}
    text = page(
        subject.title,
        document,
        about=about(subject.rows()),
        verdict=verdict_section(check),
        levels="\n".join(level_section(level, views.get(level), names[level]) for level in LEVELS),
        examples=example_section(gallery, told),
        command=command_section(subject.update),
    )
    drawn |= {f"{level}-confusion": matrix(view) for level, view in views.items() if names[level]}
    pictures = {} if asked.png is None else {Path(asked.png) / f"{name}.png": png(plot) for name, plot in drawn.items()}
    if asked.png is not None and not pictures:
        found, fix = "statistics without a curve, of which nothing can be drawn", "leave it out, or calibrate again"
        raise UsageError("--png would have no effect", found=found, fix=fix)
    with publishing([output], inputs=subject.read) as publication:
        publication.temporary(output).write_text(text, encoding="utf-8")
        if pictures:
            _write(pictures, subject.read)
    return ReportResult(
        source=subject.source,
        output=output,
        size=len(text.encode()),
        state=subject.state,
        png=tuple(pictures),
        notes=told,
    )


def _run(
    asked: ReportOptions, subject: "_Subject", views: Mapping[Level, LevelView]
) -> tuple[Gallery | None, tuple[str, ...]]:
    """Run the model over the images that are to be shown, and say what was left out of them."""
    if asked.images is None:
        return None, ()
    image = views.get("image")
    boundary = subject.state.boundary("image")
    if subject.model is None or image is None or boundary is None:
        raise UsageError(
            "--images would have no effect",
            found="no model to run" if subject.model is None else "a model that calls no image anomalous",
            needed="an attached model with labels of images, with --model",
            fix="leave it out, or give --model",
        )
    wanted = {name: getattr(asked, name) for name in ("split", "preprocessing", "other_preprocessing")}
    predictor = Predictor.open(PredictOptions(subject.model, asked.images, **wanted))
    _refuse_read(asked, predictor)
    total = predictor.source.count
    gallery = Gallery(boundary, image.stats, pixel.stats if (pixel := views.get("pixel")) else None)
    for done, prediction in enumerate(predictor.run(images=True), start=1):
        gallery.add(prediction)
        if asked.progress is not None:
            asked.progress(done, total)
    left_out = [f"{gallery.unusable} of {total} images are left out, the first: {why}" for why in gallery.left_out]
    too_many = f"more than {MOST_SCORES:,} images: the table of folders is left out"
    return gallery, (*predictor.notes, *([too_many] if gallery.count > MOST_SCORES else []), *left_out)


def _refuse_read(asked: ReportOptions, predictor: Predictor) -> None:
    """Refuse to write onto an image or a mask."""
    output = Path(asked.output)
    read = (file for sample in predictor.source for file in (sample.image, sample.mask) if file is not None)
    refuse_inputs([output], [file for file in read if file.name == output.name], fix="choose another path")


def _read_check(path: Path, model: Path | None) -> Mapping[str, Any]:
    """Read what ``check --json`` printed; raises UsageError where it is none, or not of this model as it is now."""
    if model is None:
        fix = "give --model, or leave it out"
        raise UsageError("--check without a model", found="statistics alone", needed="the model of the check", fix=fix)
    target = "CHECK.json" if path.exists() else path  # what is there may be needed
    fix = f"postproc-export check {model} --json > {target}"
    document = read_json(path, what="the check", fix=fix)
    if not isinstance(document, Mapping) or not isinstance(document.get("passed"), bool):
        raise UsageError(
            f"{path} is no report of a check", found=shown(document), needed="passed, verdict, causes", fix=fix
        )
    checked, files = document.get("files"), model_digests(model)
    if not isinstance(checked, Mapping) or not checked:
        raise UsageError(f"{path} does not tell of which file it is", found="no digests of files", fix=fix)
    if sorted(map(str, checked.values())) != sorted(map(str, files.values())):
        raise UsageError(
            f"{path} is the check of another file, or {model.name} was changed after it",
            found=", ".join(f"{name} {value}" for name, value in checked.items()),
            needed=", ".join(f"{name} {value}" for name, value in files.items()),
            fix=fix,
        )
    return document


def _write(pictures: Mapping[Path, bytes], read: list[Path]) -> None:
    """Write the pictures of a folder, all or none."""
    with publishing([*pictures], inputs=read) as publication:
        for path, picture in pictures.items():
            publication.temporary(path).write_bytes(picture)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a report is about."""

    state: State
    source: Path | None  # the statistics file, or the model that was given in its place
    model: Path | None  # the file that decides so
    digest: str | None  # of the content of that
    others: tuple[Path, ...]  # further files that are read

    @property
    def title(self) -> str:
        """Return the name of the model, else that of the statistics."""
        path = self.model or self.source
        return "statistics" if path is None else path.name

    @property
    def read(self) -> list[Path]:
        """The files that were read."""
        of_model = [] if self.model is None else model_files(self.model)
        return [*of_model, *([] if self.source is None else [self.source]), *self.others]

    @property
    def update(self) -> tuple[str, str]:
        """The command that writes what is set, before and after the sensitivities."""
        model = self.model or Path("MODEL.onnx")
        return f"postproc-export update {quote(str(model))}", f" -o {quote(f'{model.stem}.set{model.suffix}')}"

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what the statistics belong to."""
        if self.model is not None:
            yield "model", self.model.name
        if self.source is not None and self.source != self.model:
            yield "statistics file", self.source.name
        rows = origin_rows(self.state.stats, self.digest)
        yield from (("statistics" if label == "stats" else label, text) for label, text in rows)


def _subject(asked: ReportOptions) -> _Subject:
    """Read what is reported; raises UsageError where the statistics are not those of the model."""
    given = asked.stats
    source = None if isinstance(given, CalibrationStats) else Path(given)
    is_model = source is not None and source.suffix.lower() in FORMATS
    if is_model and asked.model is not None:
        raise UsageError(
            f"{source} is a model, and --model {asked.model} is given, too",
            needed="one of them",
            fix="leave out --model",
        )
    model = source if is_model else None if asked.model is None else Path(asked.model)
    others = tuple(Path(each) for each in (asked.check, asked.preprocessing) if isinstance(each, str | Path))
    if model is None:
        stats, options, _ = with_decision(as_stats(given), {})
        return _Subject(State(stats, TailOptions(**options)), source, None, None, others)
    state, digest = read_state(model, purpose=PURPOSE)
    if is_model:
        return _Subject(state, source, model, digest, others)
    stats, _, _ = with_decision(as_stats(given), {})
    for level in LEVELS:
        _refuse_other(level, stats, state, asked)
    return _Subject(State(stats, state.options, state.narrow), source, model, digest, others)


def _refuse_other(level: Level, stats: CalibrationStats, state: State, asked: ReportOptions) -> None:
    """Refuse statistics whose threshold or range is another one than that in the model."""
    given, there = stats.level(level), state.stats.level(level)
    if there is None:
        return
    names = ("threshold", "min", "max")
    if given is None or any(getattr(given, name) != getattr(there, name) for name in names):
        numbers = "no such level" if given is None else ", ".join(f"{name} {getattr(given, name)}" for name in names)
        raise UsageError(
            f"the statistics are not those of {asked.model}: its {level} level has others",
            found=numbers,
            needed=", ".join(f"{name} {getattr(there, name)}" for name in names),
            fix=f"give the model in their place: postproc-export report {asked.model} -o {asked.output}",
        )
