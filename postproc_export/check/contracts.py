"""Whether a file fits the programs of this field that run such models: Anomalib's inferencer, OpenVINO Model API."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from postproc_export.errors import UsageError
from postproc_export.files import is_onnx
from postproc_export.formats.base import Format
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.formats.openvino_file import read_ir
from postproc_export.images.preprocessing import Preprocessing
from postproc_export.model_info import DEFAULTS, WRAPPER, feeding
from postproc_export.record import TailRecord
from postproc_export.runtimes import PortInfo, cannot_load
from postproc_export.runtimes.openvino import openvino_core, port_info, read_model
from postproc_export.tail import OUTPUT_NAMES
from postproc_export.validation import close_to


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a program asks of a file, and what the file has there."""

    name: str  # what it is about, such as "input batch"
    holds: bool | None  # None where the file does not tell
    found: str
    needed: str  # and why
    fix: str = ""

    def describe(self) -> str:
        """Return one line."""
        if self.holds:
            return self.found
        return f"found {self.found}; needed: {self.needed}"


_PURPOSE: Final = "reading a model as its users do"


class ModelReading:
    """A file as OpenVINO shows it to a program: ports with all their names, layouts, settings for wrappers, record.

    `FileError` or `UnsupportedModelError` where it cannot be read, `MetadataError` where its record is not legal.
    """

    def __init__(self, path: Path) -> None:
        core = openvino_core(purpose=_PURPOSE)
        self._model: Any
        if is_onnx(path):
            from graph_patterns.onnx.file import load_skeleton

            try:
                self._model = read_model(core, path)
            except RuntimeError as error:
                raise cannot_load(path.name, "OpenVINO", error) from error
            with load_skeleton(path) as file:
                self._read(OnnxFormat(), file.model, str(path))
        else:
            self._model = read_ir(core, path)
            self._read(OpenVinoFormat(), self._model, str(path))
        recorded = None if self.record is None else self.record.stats.details.get("preprocessing")
        # How the images were fed in calibration; None where the record does not say.
        self.preprocessing = None if recorded is None else Preprocessing.from_json(recorded)
        self.inputs = tuple(port_info(port, "") for port in self._model.inputs)
        self.outputs = tuple(port_info(port, "") for port in self._model.outputs)
        layouts = (parameter.get_layout() for parameter in self._model.get_parameters())
        self.layouts = ["" if item.empty else str(item.to_string()).strip("[]").replace(",", "") for item in layouts]

    def _read(self, form: Format, model: Any, where: str) -> None:
        self.model_info: Mapping[str, str] = form.model_info(model)
        self.record: TailRecord | None = form.record(model, where=where)

    def compiled_names(self) -> list[frozenset[str]]:
        """Return the names of each output after compiling for the CPU, which may join those of several values."""
        try:
            compiled = openvino_core(purpose=_PURPOSE).compile_model(self._model, "CPU")
        except RuntimeError as error:
            raise cannot_load("the model", "OpenVINO", error) from error
        return [frozenset(port.get_names()) for port in compiled.outputs]

    @property
    def fed(self) -> str:
        """How the images were fed in calibration, for people."""
        fed = self.preprocessing
        return "the statistics do not say how images were fed" if fed is None else f"calibrated on {fed.describe()}"

    def is_fed(self, *, scale: Sequence[float], mean: Sequence[float]) -> bool | None:
        """Whether calibration fed ``(pixel - mean) / scale``, pixels from 0 to 255; None where the record is silent.

        Both are one number for all channels, or one per channel.
        """
        fed = self.preprocessing
        if fed is None or fed.scale is None:
            return None
        if fed.bits != 8:
            return False
        given = (fed.mean, fed.std, mean, scale)
        if not {len(values) for values in given} <= {1, _CHANNELS}:
            return False
        rows = zip(*(values if len(values) > 1 else [*values] * _CHANNELS for values in given), strict=True)
        return all(
            math.isclose(1 / (fed.scale * std), 1 / divisor, rel_tol=1e-6)
            and math.isclose(of_channel / std, subtracted / divisor, rel_tol=1e-6, abs_tol=1e-9)
            for of_channel, std, subtracted, divisor in rows
        )


# What both programs require.

_EXPORT_AGAIN: Final = "export the model again with such an input"
_EXPORT_WHOLE: Final = "export the model with its pre-processing, and calibrate again"
_RANKS: Final = {"pred_score": (1, 2), "pred_label": (1, 2), "anomaly_map": (3, 4), "pred_mask": (3, 4)}


def _of_the_input(reading: ModelReading) -> Iterator[Requirement]:
    fix = "make the other inputs constants when exporting"
    yield Requirement("inputs", len(reading.inputs) == 1, _listed(reading.inputs), "one input, the image", fix)
    for port in reading.inputs[:1]:
        batch = None if port.rank is None else port.size(0) in (None, 1)
        needed = "a batch of 1, or a dynamic one: images are fed one at a time"
        yield Requirement("input batch", batch, port.describe(), needed, _EXPORT_AGAIN)
        needed = "float32: numbers from 0 to 1 are fed, of which an integer input makes 0"
        yield Requirement("input type", port.dtype == "float32", port.dtype, needed, _EXPORT_AGAIN)


def _of_the_outputs(reading: ModelReading, names: Iterable[Collection[str]], fix: str) -> Iterator[Requirement]:
    """Programs take any one of a tensor's names, in an order that no one sets; `fix` mends that."""
    wrong = [sorted(found) for found in names if len(found) != 1]
    found = "; ".join(" and ".join(found) or "no name" for found in wrong) or "one name each"
    needed = "one name on each output: of several any one may be taken"
    yield Requirement("output names", not wrong, found, needed, fix)
    for port in reading.outputs:
        name = next((alias for alias in port.aliases if alias in OUTPUT_NAMES), None)
        if name is not None:
            holds = None if port.rank is None else port.rank in _RANKS[name]
            needed = " or ".join(f"{rank} axes" for rank in _RANKS[name])
            fix = "give the raw output of the exported model a batch axis"
            yield Requirement(f"{name} axes", holds, port.describe(), needed, fix)


def _listed(ports: Iterable[PortInfo]) -> str:
    return "; ".join(port.describe() for port in ports) or "none"


# Anomalib's `OpenVINOInferencer`: what it asks of a file, read from the code of anomalib 2.7.0.
#
# It feeds the first input one image: float32 [1, 3, H, W], RGB, 0 to 1, in the image's own size. Outputs go by the
# first of their names into `NumpyImageBatch`, which knows the four names, wants arrays with a batch axis and refuses
# any other. The names are those of the compiled model: where OpenVINO leaves out a conversion or a copy, its
# operand's name of an ONNX file comes to the output's, and which of the two is first changes from one process to the
# next.

_CHANNELS: Final = 3
_BYTES: Final = (255.0,)
_ZERO: Final = (0.0,)


def _anomalib(reading: ModelReading) -> Iterator[Requirement]:
    yield from _of_the_input(reading)
    if not reading.inputs:
        return
    port, layout = reading.inputs[0], reading.layouts[0]
    found, needed = ", ".join(port.aliases) or "no name", "a name: the image is fed by it"
    yield Requirement("input name", bool(port.aliases), found, needed, _EXPORT_AGAIN)
    fits: bool | None = port.rank == 4 and port.size(1) in (None, _CHANNELS) and layout in ("", "NCHW")
    found = port.describe() + (f", layout {layout}" if layout else "")
    needed = "[N, 3, H, W]: RGB images are fed channels first, in their own size"
    yield Requirement("input layout", None if port.rank is None else fits, found, needed, _EXPORT_AGAIN)
    fed, fits = reading.preprocessing, reading.is_fed(scale=_BYTES, mean=_ZERO)
    if fits and fed is not None:
        fits = fed.channel_order == "rgb" and fed.layout == "nchw"
    needed = "RGB from 0 to 1 without mean and standard deviation: normalising belongs into the exported graph"
    yield Requirement("input values", fits, reading.fed, needed, _EXPORT_WHOLE)
    names = [name for port in reading.outputs for name in (port.aliases or ("an output without a name",))]
    lacking = [name for name in ("pred_score", "pred_label") if name not in names]
    yield Requirement(
        "outputs",
        set(names) <= set(OUTPUT_NAMES) and not lacking,
        ", ".join(names) + (f" (without {', '.join(lacking)})" if lacking else ""),
        f"pred_score and pred_label, of {', '.join(OUTPUT_NAMES)}; another output ends in a TypeError",
        "attach both levels with labels, without --keep-raw or --layout packed, to a model without further outputs",
    )
    fix = "attach both levels, normalised, with labels of bool, so that no output is a mere copy or conversion"
    yield from _of_the_outputs(reading, reading.compiled_names(), fix)


# OpenVINO Model API's `AnomalyDetection` wrapper: what it asks of a file, read from the code of version 0.4.7.
#
# Of a model whose height and width are dynamic it takes the image as it is and divides bytes by 255. Into a model of
# a fixed size it builds a resize of its own and feeds bytes from 0 to 255, divided by nothing unless the settings say
# so.


def _model_api(reading: ModelReading) -> Iterator[Requirement]:
    asked = reading.model_info.get("model_type")
    yield Requirement(
        "wrapper",
        asked is None or asked.lower() == WRAPPER.lower(),
        "recognised by its outputs" if asked is None else f"model_type {asked}",
        f"model_type {WRAPPER} in the file's model_info, or none",
        f"create the wrapper with model_type='{WRAPPER}'",
    )
    yield from _of_the_input(reading)
    if not reading.inputs:
        return
    port = reading.inputs[0]
    # The wrapper takes axis 1 for the channels where it is 1 to 4, else the last one.
    taken = reading.layouts[0] or ("NCHW" if port.size(1) in range(1, 5) else "NHWC")
    yield Requirement(
        "input layout",
        None if port.rank is None else port.rank == 4 and port.size(1 if taken == "NCHW" else 3) == _CHANNELS,
        f"{port.describe()}, taken for {taken}",
        "four axes with a fixed number of 3 channels, second or last: it tells the layout",
        _EXPORT_AGAIN,
    )
    yield _model_api_range(reading, port)
    yield from _model_api_feeding(reading, port)
    named = {name for port in reading.outputs for name in port.aliases}
    yield Requirement(
        "outputs",
        len(reading.outputs) == 4 and set(OUTPUT_NAMES) <= named,
        _listed(reading.outputs),
        f"these four and no other: {', '.join(OUTPUT_NAMES)}",
        "attach both levels, without --keep-raw or --layout packed, to a model with a map and no further outputs",
    )
    names = (port.aliases for port in reading.outputs)
    yield from _of_the_outputs(reading, names, "give the raw output of the model one name")
    label = next((port for port in reading.outputs if "pred_label" in port.aliases), None)
    if label is not None:
        needed = "bool: the label is handed on as text, 'True' or 'False'"
        yield Requirement("pred_label type", label.dtype == "bool", label.dtype, needed, "--label-dtype bool")
    is_normalised = None if reading.record is None else reading.record.options.enable_normalization
    found = {None: "no record in the file", True: "normalisation on", False: "normalisation off"}[is_normalised]
    needed = "a map from 0 to 1: it is multiplied by 255 and cut to bytes"
    yield Requirement("map range", is_normalised, found, needed, "attach without --no-normalize")


def _model_api_range(reading: ModelReading, port: PortInfo) -> Requirement:
    if not _is_fixed(port):
        fits, found = reading.is_fed(scale=_BYTES, mean=_ZERO), reading.fed
        needed = "values from 0 to 1 without mean and standard deviation: bytes are divided by 255"
        return Requirement("input values", fits, found, needed, _EXPORT_WHOLE)
    scale, mean = _setting(reading, "scale_values", 1.0), _setting(reading, "mean_values", 0.0)
    if reading.model_info.get("intensity_mode") == "scale_to_unit":
        scale, mean = _BYTES, _ZERO
    fits = False if math.isnan(sum(scale + mean)) or 0 in scale else reading.is_fed(scale=scale, mean=mean)
    return Requirement(
        "input values",
        set(scale) == {*_BYTES} and set(mean) == {*_ZERO} if fits is None else fits,  # the field's models take 0 to 1
        f"{port.describe()}, of a fixed size: fed bytes less {_per_channel(mean)}, divided by {_per_channel(scale)}; "
        f"{reading.fed}",
        "the values that the model was calibrated on, 0 to 1 where nothing says other",
        "attach with --model-info, or create the wrapper with configuration={'scale_values': [255.0]}",
    )


def _is_fixed(port: PortInfo) -> bool:
    return port.rank == 4 and None not in (port.size(1), port.size(2), port.size(3))


def _model_api_feeding(reading: ModelReading, port: PortInfo) -> Iterator[Requirement]:
    """Yield whether images come to a fixed size as in calibration, but for the filter, which attaching tells of."""
    fed = reading.preprocessing
    if fed is None or not _is_fixed(port):
        return
    try:
        wanted = feeding(fed.for_input(port), port)
    except UsageError as error:
        yield Requirement("input geometry", False, error.what, reading.fed, _EXPORT_WHOLE)
        return
    found = {key: reading.model_info.get(key, usual) for key, usual in DEFAULTS.items()}
    differing = [key for key in DEFAULTS if found[key] != wanted[key]]
    needed = ", ".join(f"{key} {wanted[key]}" for key in differing or DEFAULTS)
    shown = ", ".join(f"{key} {found[key]}" for key in differing or DEFAULTS)
    yield Requirement("input geometry", not differing, shown, needed, "attach with --model-info")


def _setting(reading: ModelReading, key: str, default: float) -> tuple[float, ...]:
    """Return the number that the file sets for all channels, or those of each; NaN where one is no number."""
    try:
        return tuple(float(item) for item in reading.model_info.get(key, "").split()) or (default,)
    except ValueError:
        return (math.nan,)


def _per_channel(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))


CONTRACTS: Final[Mapping[str, tuple[str, Callable[[ModelReading], Iterator[Requirement]]]]] = {
    "anomalib": ("Anomalib 2.7.0 OpenVINOInferencer", _anomalib),
    "model-api": ("OpenVINO Model API 0.4.7 AnomalyDetection", _model_api),
}
"""For each contract the program, with the version whose code was read, and what it asks of a file."""


def check_contract(path: str | Path, contract: str) -> list[Requirement]:
    """Check a file against what a program asks of it, without feeding it anything.

    `contract` is one of `CONTRACTS`. Errors are those of `ModelReading`, and `MissingDependencyError` without OpenVINO.
    """
    if contract not in CONTRACTS:
        near = close_to(contract, CONTRACTS) or list(CONTRACTS)
        fix = f"--contract {near[0]}"
        raise UsageError(f"the contract '{contract}' is not known", needed=" or ".join(CONTRACTS), fix=fix)
    return list(CONTRACTS[contract][1](ModelReading(Path(path))))
