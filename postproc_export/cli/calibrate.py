"""The command calibrate: its options, its run, and the table it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from postproc_export.cli.console import grid, progress, quiet_logging, remark, show, stderr
from postproc_export.cli.options import IMAGES, Given, command, image_options, options_of, preprocessing_of, spelling_of
from postproc_export.errors import FileError, UsageError
from postproc_export.float32 import LARGEST, shortest, to_float32
from postproc_export.run_options import CalibratorOptions, ConventionOptions, ModelOptions, ShardOptions
from postproc_export.stats import LEVELS, CalibrationStats, LevelStats

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from postproc_export.calibration.model import ModelSource
    from postproc_export.curve import Counts


_RATES: Final = {"f1": "F1", "precision": "precision", "recall": "recall", "fpr": "FPR"}


def statistics_view(stats: CalibrationStats) -> RenderableType:
    """Return a table with one column per calibrated level, and one of the policies that were compared."""
    from rich.console import Group

    from postproc_export.curve import sensitivity_table
    from postproc_export.histogram import histogram_lines

    levels = {level: found for level in LEVELS if (found := stats.level(level)) is not None}
    table = grid("", *levels, title="calibration, in raw units")
    columns = [_cells(found) for found in levels.values()]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns))
    policies = {level: each for level, found in levels.items() if (each := _rows(found.details.get("policies")))}
    tables = {level: rows for level, found in levels.items() if (rows := sensitivity_table(found))}
    # at sensitivity 0.5 the boundary is the threshold
    drawn = [[*histogram_lines(level, found, boundary=found.threshold)] for level, found in levels.items()]
    return Group(
        table,
        *("\n".join(["", *lines]) for lines in drawn if lines),
        *(_policies_view(level, rows) for level, rows in policies.items()),
        *(_sensitivities_view(level, rows) for level, rows in tables.items()),
    )


def _cells(level: LevelStats) -> dict[str, str]:
    details, counts = level.details, {name: getattr(level, f"n_{name}") for name in ("normal", "anomalous", "dropped")}
    interval = _numbers(details.get("threshold_interval"), "low", "high")
    return {
        "threshold": "none" if level.threshold is None else _number(level.threshold),
        "95 % interval of it": "-" if interval is None else " to ".join(map(_number, interval)),
        "min": _number(level.min),
        "max": _number(level.max),
        "range": _ends(level),
        "policy": level.policy or "-",
        "decided by": level.rule or "-",
        **{name: "-" if count is None else f"{count:,}" for name, count in counts.items()},
        **{label: _rate(details.get("at_threshold"), name) for name, label in _RATES.items()},
        "AUROC": _area(details.get("auroc")),
        "average precision": _area(details.get("average_precision")),
    }


def _policies_view(level: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = grid("policy", "threshold", *_RATES.values(), title=f"other policies, {level} level")
    for row in rows:
        threshold = _numbers(row, "threshold")
        shown = _unreachable(row) if threshold is None else _number(*threshold)
        table.add_row(str(row.get("policy")), shown, *(_rate(row, name) for name in _RATES))
    return table


def _sensitivities_view(level: str, rows: Mapping[float, Counts]) -> Table:
    from postproc_export.curve import TITLES

    total = next(iter(rows.values()))
    title = f"what other sensitivities find, {level} level: {total.anomalous} anomalous, {total.normal} normal"
    table = grid(*TITLES, title=title)
    for sensitivity, counts in rows.items():
        table.add_row(f"{sensitivity:.9g}", *counts.columns())
    return table


def _number(value: float) -> str:
    """Return the shortest decimal that reads back to the same float32: typed in, it is the same threshold."""
    return repr(shortest(to_float32(value))).removesuffix(".0")


def _rows(found: object) -> list[Mapping[str, Any]]:
    """Return the objects in a list of a file; a damaged one may hold anything."""
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _numbers(found: object, *names: str) -> list[float] | None:
    """Return numbers of an object in a file; None where one of them is none, or cannot be shown."""
    numbers: list[Any] = [found.get(name) for name in names] if isinstance(found, Mapping) else [None]
    return numbers if all(type(each) in (int, float) and abs(each) <= LARGEST for each in numbers) else None


def _unreachable(row: Mapping[str, Any]) -> str:
    best = _numbers(row.get("reachable"), "precision", "threshold")
    if best is None:
        return "not reachable"
    # Rounded down: a precision of 1.0000 that is none cannot be asked for.
    return f"not reachable (precision {floor(best[0] * 1e4) / 1e4:.4f} at {_number(best[1])})"


def _rate(rates: object, name: str) -> str:
    found = _numbers(rates, name)
    return "-" if found is None else f"{found[0]:.4f}"


def _ends(level: LevelStats) -> str:
    """Return what min and max are, and where they are not the extremes, what these are."""
    seen = _numbers(level.details.get("extremes"), "min", "max")
    text = str(level.details.get("range") or "-")
    return text if seen is None else f"{text} (seen: {' to '.join(map(_number, seen))})"


def _area(interval: object) -> str:
    ends = _numbers(interval, "low", "high")
    return "-" if ends is None else " to ".join(dict.fromkeys(f"{end:.4f}" for end in ends))


def _check_before(source: Sequence[Path], images: Path | None, output: Path, given: Mapping[str, Any]) -> None:
    """Refuse an output that is read or cannot be written, and a folder for the spool in which nothing can be.

    Of a model and its images, `_from_model` looks at each file once they are known.
    """
    from postproc_export.calibration.calibrator import source_files
    from postproc_export.files import check_folder, check_target, model_files

    named = [path for path in (images, given.get("preprocessing")) if path is not None and path.is_file()]
    origin = model_files(given["model"]) if "model" in given else []
    check_target(output, [*(source_files(source) if images is None else source), *named, *origin])
    if given.get("spool_dir") is not None:
        check_folder(given["spool_dir"])


def _from_shards(source: Sequence[Path], given: Mapping[str, Any]) -> CalibrationStats:
    """Calibrate on raw outputs in files, with a bar where somebody sees it: its total takes a look at every header."""
    from postproc_export.calibration import calibrate as calibrate_shards

    seen = stderr().is_terminal
    logging = quiet_logging() if "dask" in given else nullcontext()
    with progress("reading", unit="values") as advance, logging:
        return calibrate_shards(
            source,
            progress=(lambda at: advance(at.values, at.total, f"{at.level} level, pass {at.number}")) if seen else None,
            **given,
        )


def _from_model(opened: ModelSource, given: Mapping[str, Any], *, output: Path) -> CalibrationStats:
    """Calibrate on a model that is run over images, with a bar; an output that is read is refused before."""
    from postproc_export.calibration import Calibrator
    from postproc_export.files import check_target

    check_target(output, opened.files())
    CalibratorOptions(**given).refuse_idle(LEVELS if opened.wants_pixels else ["image"])
    remark(opened.describe())
    with Calibrator(**given) as calibrator, progress("running the model", unit="images") as advance:

        def show(done: int, total: int) -> None:
            advance(done, total)
            if done == total:
                advance(0, None, "computing the statistics")

        return opened.calibrate(calibrator, progress=show)


def _deliver(stats: CalibrationStats, output: Path) -> None:
    """Write the statistics file; what cannot be written is printed, whatever was asked for."""
    try:
        stats.save(output)
    except FileError:
        show(stats, statistics_view, is_wanted=True)
        raise
    remark(f"statistics written to {output}")


def _after_calibrate(_: CalibrationStats, given: Given) -> list[object]:
    """Return how the statistics are attached: to the model itself, where one was calibrated."""
    output: Path = given["output"]
    model = _model_among(given["source"], given.get("images"))
    chosen = [(f"--{level}-output", given.get(f"{level}_output")) for level in LEVELS]
    steps = [("--step", text) for text in given.get("step") or ()]
    options = [word for pair in (*chosen, *steps) if pair[1] is not None for word in pair]
    return ["attach", model or given.get("model") or "MODEL.onnx", "--stats", output, *options]


_MODEL_SUFFIXES: Final = (".onnx", ".xml")
_OF_OUTPUTS: Final = ("image_output", "pixel_output")  # of a model that is run, or that gave the values
_OF_CALIBRATION: Final = options_of(CalibratorOptions, without=["preprocessing", *_OF_OUTPUTS])
_OF_DASK: Final = options_of(ShardOptions, only=["dask"])
_OF_BOTH: Final = options_of(ConventionOptions)  # of calibrations from files and of models alike
_OF_MODELS: Final = options_of(
    ModelOptions, without=["model", "images", "preprocessing", *(each.name for each in _OF_BOTH)]
)
_OF_IMAGES: Final = image_options(ModelOptions)


@command(_OF_CALIBRATION, _OF_DASK, _OF_MODELS, _OF_IMAGES, then=_after_calibrate, view=statistics_view)
def calibrate(
    source: Annotated[
        list[Path],
        Parameter(help="Raw validation outputs: .npz, .npy, Zarr, CSV, folders of them; or a raw model with --images."),
    ],
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Statistics file to write.")],
    compare: Annotated[
        bool,
        Parameter(
            name="--compare", negative="--no-compare", help="Print and record what other policies would give as well."
        ),
    ] = True,
    images: Annotated[
        Path | None,
        Parameter(
            name="--images",
            help="Folder of images (as MVTec AD, BTAD, VisA or Anomalib's Folder) or CSV file (image,label,mask).",
            group=IMAGES,
        ),
    ] = None,
    **given: Any,
) -> CalibrationStats:
    """Find threshold and range of both levels from labelled validation data.

    Example: postproc-export calibrate model.onnx --images bottle/validation -o stats.json
    """
    from postproc_export.calibration import COMPARED
    from postproc_export.process import claimed

    model = _model_among(source, images)
    _refuse_unused(given, model)
    _check_before(source, images, output, given)
    given["compare"] = COMPARED if compare else ()
    with claimed([output]):
        preprocessing = preprocessing_of(given)
        if model is None or images is None:
            stats = _from_shards(source, {**given, "preprocessing": preprocessing})
        else:
            from postproc_export.calibration.model import ModelSource

            of_model = {each.name: given.pop(each.name) for each in (*_OF_MODELS, *_OF_BOTH) if each.name in given}
            opened = ModelSource.open(model, images, preprocessing=preprocessing, **of_model)
            stats = _from_model(opened, given, output=output)
    _deliver(stats, output)
    return stats


def _origin_view(found: CalibrationStats) -> RenderableType:
    """Return the table of statistics, and where they are from."""
    from rich.console import Group

    from postproc_export.inspect import origin_rows
    from postproc_export.options import with_decision

    decision = found.details.get("decision") or {}
    _, _, notes = with_decision(found, {})
    rows = [*origin_rows(found, None)]
    rows += [("decides", ", ".join(f"{name} {value}" for name, value in decision.items()))] if decision else []
    rows += [("note", note) for note in notes if not note.startswith("as the statistics")]
    return Group(statistics_view(found), "", *(f"{title:<8} {text}" for title, text in rows))


def _after_stats(_: CalibrationStats, given: Given) -> list[object]:
    """Return how they are written as a statistics file, or attached."""
    if given.get("output") is None:
        return ["stats", "convert", given["source"], "-o", "stats.json"]
    return ["attach", "MODEL.onnx", "--stats", given["output"]]


@command(then=_after_stats, view=_origin_view, is_wanted=True)
def stats(
    action: Annotated[Literal["show", "convert"], Parameter(help="Print them, or also write a statistics file.")],
    source: Annotated[
        Path,
        Parameter(
            help="Statistics file, checkpoint of Anomalib or of the calibration callback, Anomalib's metadata.json or "
            "stats.json, or a model with post-processing (.onnx or .xml)."
        ),
    ],
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="Statistics file that convert writes.")
    ] = None,
) -> CalibrationStats:
    """Show the statistics in a file of any kind, and what that does not say, or convert them to a statistics file.

    Example: postproc-export stats convert model.ckpt -o stats.json
    """
    from postproc_export.files import check_target, model_files
    from postproc_export.inspect import read_statistics
    from postproc_export.process import claimed

    if output is None:
        if action == "convert":
            fix = f"postproc-export stats convert {source} -o stats.json"
            raise UsageError("--output is required", needed="a statistics file to write", fix=fix)
        return read_statistics(source)
    if action == "show":
        raise UsageError("--output would have no effect", found="stats show", fix="leave it out, or stats convert")
    check_target(output, model_files(source))
    with claimed([output]):
        found = read_statistics(source)
        _deliver(found, output)
    return found


def _model_among(source: list[Path], images: Path | None) -> Path | None:
    models = [path for path in source if path.suffix.lower() in _MODEL_SUFFIXES]
    if models and (len(source) != 1 or images is None):
        raise UsageError(
            f"{models[0]} is a model",
            found=f"{len(source)} source(s){'' if images else ' and no --images'}",
            needed="one model alone, and the images to run it on",
            fix=f"postproc-export calibrate {models[0]} --images FOLDER -o stats.json",
        )
    if images is not None and not models:
        from postproc_export.files import check_model

        check_model(source[0])
    return models[0] if models else None


def _refuse_unused(given: Mapping[str, Any], model: Path | None) -> None:
    of_origin = {**spelling_of(_OF_IMAGES), **{name: f"--{name.replace('_', '-')}" for name in _OF_OUTPUTS}}
    of_models = {**of_origin, **spelling_of(_OF_MODELS), "spool_dir": "--spool-dir"}
    has_origin = "model" in given
    unused = [name for name in of_models if name in given and not (has_origin and name in of_origin)]
    if unused and model is None:
        named = ", or name the model that gave the values with --model" if unused[0] in of_origin else ""
        raise UsageError(
            f"{of_models[unused[0]]} is for a model that is run on images",
            found="raw outputs in files",
            fix=f"leave it out, or give a model with --images{named}",
        )
    idle = [option for name, option in spelling_of(_OF_CALIBRATION).items() if name.startswith("pixel_")]
    if given.get("image_only") and (typed := [option for option in idle if option[2:].replace("-", "_") in given]):
        fix = "leave out one of them"
        raise UsageError(f"{typed[0]} would have no effect", found="--image-only", fix=fix)
    for name, fix in (
        ("dask", "leave it out, or save the raw outputs as shards and calibrate on these"),
        ("model", "leave it out: the statistics name the model that is run"),
    ):
        if model is not None and name in given:
            raise UsageError(f"--{name} is for raw outputs in files", found=f"the model {model}", fix=fix)
