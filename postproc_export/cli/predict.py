"""The command predict: its options, its bar, and the table of what it met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from postproc_export.cli.console import grid, progress
from postproc_export.cli.options import command, image_options, options_of, preprocessing_of
from postproc_export.run_options import PredictFolderOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from postproc_export.prediction.run import PredictResult


def _view(result: PredictResult) -> RenderableType:
    """Return the summary, and for each level a table with a row for each class where labels or masks are known."""
    from rich.console import Group

    from postproc_export.evaluation import COLUMNS

    rows = [] if result.evaluation is None else list(result.evaluation.rows())
    tables = []
    for level in dict.fromkeys(row[0] for row in rows):
        table = grid("class", *COLUMNS, title=f"what was decided, {level} level")
        for of_level, *cells in rows:
            if of_level == level:
                table.add_row(*cells)
        tables.append(table)
    return Group(result.summary(), *tables) if tables else result.summary()


_OF_IMAGES: Final = image_options(PredictFolderOptions, defaults=False)


def _next(result: PredictResult, given: Mapping[str, Any]) -> Sequence[object]:
    """Show these images beside every other sensitivity; a report takes one source of them, and needs labels."""
    images = given["images"]
    is_shown = len(images) == 1 and result.levels.get("image") is not None
    return ("report", result.source, "--images", *images, "-o", "report.html") if is_shown else ()


@command(
    options_of(PredictFolderOptions, without=["preprocessing", "other_preprocessing"]),
    _OF_IMAGES,
    view=_view,
    then=_next,
)
def predict(**given: Any) -> Any:
    """Run an attached model over images, and write what it decides of each: a table, pictures, and metrics.

    Images are pre-processed as the statistics in the file record it: the default of every option for that is what is
    recorded, and another value is refused without --other-preprocessing.

    Exit code: 0 done, 1 an image could not be used while others were, 2 the file or the images cannot be used.

    Example: postproc-export predict model.post.onnx bottle/test -o predicted
    """
    from postproc_export.prediction.run import predict_folder

    preprocessing = preprocessing_of(given)
    with progress("predicting", unit="images") as advance:
        return predict_folder(**given, preprocessing=preprocessing, progress=advance)
