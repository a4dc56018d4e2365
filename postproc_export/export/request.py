"""What an export is asked for, settled before anything is computed."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from postproc_export.calibration.thresholds.policies import Policy
from postproc_export.errors import UsageError
from postproc_export.export.delivery import check_target
from postproc_export.export.result import SUFFIXES, Format
from postproc_export.images import Preprocessing, find_samples
from postproc_export.parity.fed.inputs import SEED
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail import calibrated_levels
from postproc_export.tail_options import TailOptions
from postproc_export.transforms.spec import parse_tail, parse_tails

if TYPE_CHECKING:
    from collections.abc import Callable

_OWN: Final = ("model_path", "stats", "output", "in_place", "link_weights", "image_output", "pixel_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How the exported graph is calibrated on labelled images, in the run that exports it.

    Parameters
    ----------
    image_policy, pixel_policy
        See `Calibrator`.
    nonfinite
        ``"error"`` refuses NaN and infinite scores, ``"drop"`` drops and counts them.
    image_only
        Leave the pixel level out; no masks are needed.

    Raises
    ------
    UsageError
        If a policy is not known.
    """

    image_policy: str = "f1"
    pixel_policy: str = "f1"
    nonfinite: Literal["error", "drop"] = "error"
    image_only: bool = False

    def __post_init__(self) -> None:
        for policy in (self.image_policy, self.pixel_policy):
            Policy.parse(policy)

    def run(
        self,
        model: Path,
        images: str | Path,
        preprocessing: Preprocessing,
        *,
        tail: str | Sequence[str] = (),
        progress: "Callable[[int, int], None] | None" = None,
    ) -> CalibrationStats:
        """Run a raw file over labelled images and return its statistics, with a record of how they came about.

        Parameters
        ----------
        model, images, preprocessing
            See `ModelSource.open`.
        tail
            Tails of one's own; it is calibrated behind those that stand before the threshold.
        progress
            See `ModelSource.calibrate`.
        """
        from postproc_export.calibration import COMPARED, Calibrator
        from postproc_export.calibration.models.source import ModelSource

        texts = [tail] if isinstance(tail, str) else tail
        before = [text for text in texts if parse_tail(text).changes_values]
        source = ModelSource.open(model, images, preprocessing=preprocessing, image_only=self.image_only, tail=before)
        policies = {"image_policy": self.image_policy, "pixel_policy": self.pixel_policy}
        with Calibrator(**policies, nonfinite=self.nonfinite, compare=COMPARED) as calibrator:  # type: ignore[arg-type]
            return source.calibrate(calibrator, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What `export_model` was asked for; the parameters are its own.

    Raises
    ------
    UsageError
        If the options contradict each other, or one is not known.
    FileError, MetadataError, CalibrationError
        If the target, the statistics or the images cannot be used.
    """

    folder: Path
    name: str
    formats: tuple[Format, ...]
    stats: CalibrationStats | None
    dynamic: str | Iterable[str] = ()
    opset: int | None = None
    image_output: str | int | None = None
    pixel_output: str | int | None = None
    calibrate: str | Path | None = None
    calibration: Calibration = field(default_factory=Calibration)
    images: str | Path | None = None
    preprocessing: Preprocessing | None = None
    seed: int = SEED
    keep_failed: bool = False
    attach_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_target(self.folder, self.name)
        check_attach_options(self.attach_options)
        if (self.stats is None) is (self.calibrate is None):
            raise UsageError(
                "statistics are needed" if self.stats is None else "statistics and images to calibrate on were given",
                needed="one of the two",
                fix="give --stats FILE, or --calibrate FOLDER to calibrate the exported graph on labelled images",
            )

        for source, labels in ((self.calibrate, True), (self.images, False)):
            if source is not None:
                find_samples(source, labels=labels)

    @property
    def check_images(self) -> str | Path | None:
        """The images that the finished files are checked on."""
        return self.calibrate if self.images is None else self.images

    @property
    def calibrated(self) -> tuple[Level, ...] | None:
        """The levels that the statistics calibrate; None where they are made on the way."""
        if self.stats is None:
            return None
        options = TailOptions(match_thresholds=bool(self.attach_options.get("match_thresholds")))
        return calibrated_levels(self.stats, options)

    def preprocessing_for(self, shape: tuple[int, ...]) -> Preprocessing:
        """Return what is done to images for a calibration: at the example's size where none was given."""
        wanted = self.preprocessing or Preprocessing()
        if wanted.size is not None or len(shape) != 4:
            return wanted
        height, width = shape[2:] if wanted.layout == "nchw" else shape[1:3]
        return replace(wanted, size=(height, width))


def parse_formats(formats: str | Iterable[str]) -> tuple[Format, ...]:
    """Return the formats that ``"onnx,openvino"`` or a list names, each once.

    Raises
    ------
    UsageError
        If one is not known, or there is none.
    """
    names = [name.strip() for name in (formats.split(",") if isinstance(formats, str) else formats)]
    found: tuple[Format, ...] = tuple(each for each in SUFFIXES if each in names)
    unknown = sorted(set(names) - set(SUFFIXES))
    if unknown or not found:
        raise UsageError(
            f"--to {','.join(unknown) or '(nothing)'}: unknown", needed=f"{' or '.join(SUFFIXES)}, or both"
        )
    return found


def check_attach_options(options: Mapping[str, Any]) -> None:
    """Refuse options that `attach_postprocessing` does not take, and values that no tail can have.

    Raises
    ------
    TypeError
        If one is not known, as for any keyword argument.
    MetadataError, UsageError
        If a value is not legal.
    """
    from postproc_export.rewrite.attach import attach_postprocessing

    known = [name for name in inspect.signature(attach_postprocessing).parameters if name not in _OWN]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"export_model() got an unexpected keyword argument {unknown[0]!r}; {', '.join(known)} are known"
        )
    parse_tails(options.get("tail", ()))
    of_tail = {item.name for item in fields(TailOptions)}
    TailOptions(**{name: value for name, value in options.items() if name in of_tail})
