"""Anomalib's post-processor, exported alone: which file decides what, and how precisely it can be read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "data" / "postprocessor_only"
T, P = 5.344675064086914, 4.661016464233398  # the calibrated thresholds, float32
R, Q = 9.055310249328613, 11.629071235656738  # the spans, float32
MIDDLE, PIXEL_MIDDLE = 7.771052837371826, 6.484172344207764  # (min + max) / 2, where no threshold was calibrated
TOP = 12.298707962036133  # max of both levels
UNKNOWN: Final = ("no_norm", "never_calibrated", "no_minmax")  # no normalisation in the graph


@dataclass(frozen=True)
class Case:
    """What one level decides; None for what the graph cannot know."""

    threshold: float | None
    span: float | None
    sensitivity: float | None = 0.5


EXPECTED: Final[dict[str, tuple[Case, Case]]] = {
    "default": (Case(T, R), Case(P, Q)),
    "sens_03_07": (Case(T, R, 0.3), Case(P, Q, 0.7)),
    "no_thr": (Case(T, R, None), Case(P, Q, None)),
    "no_match": (Case(T, R), Case(PIXEL_MIDDLE, Q)),
    "no_image_thr": (Case(P, R), Case(P, Q)),
    "no_pixel_thr": (Case(T, R), Case(T, Q)),
    "no_thr_at_all": (Case(MIDDLE, R), Case(PIXEL_MIDDLE, Q)),
    "thr_above_max": (Case(20.0, R), Case(P, Q)),
    "thr_below_min": (Case(1.0, R), Case(P, Q)),
    "zero_range": (Case(TOP, 0.0), Case(TOP, 0.0)),
    **dict.fromkeys(UNKNOWN, (Case(None, None), Case(None, None))),
}


def files() -> list[Path]:
    """Return every model file."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".onnx", ".xml"))


def case_of(path: Path) -> str:
    """Return the name of a file's case: between the version and the exporter."""
    return path.stem.split("_", 1)[1].rsplit("_", 1)[0]


def is_folded(path: Path) -> bool:
    """Whether the conversion folded the normalisation to one multiplication and one addition."""
    return path.suffix == ".xml" and path.stem.startswith("262")


def tolerance(path: Path, case: Case) -> float:
    """Return how far a threshold that is read back may be off, in raw units."""
    assert case.threshold is not None
    assert case.span is not None
    ratio = abs(case.threshold) / case.span if case.span else 0.0
    relative = max(1e-6, (2 * ratio + 1) * 2.0**-24) if path.suffix == ".xml" else 1e-6
    return relative * case.span
