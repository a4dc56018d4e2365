"""Whether a file fits the programs of this field that run such models: Anomalib's inferencer, OpenVINO Model API."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from postproc_export.check.preserved_openvino import flattened
from postproc_export.errors import UsageError
from postproc_export.files import is_onnx
from postproc_export.formats.openvino_file import read_ir
from postproc_export.images.preprocessing import Preprocessing
from postproc_export.record import METADATA_KEY, TailRecord
from postproc_export.runtimes import PortInfo, cannot_load
from postproc_export.runtimes.openvino import openvino_core, port_info, read_model
from postproc_export.tail import OUTPUT_NAMES
from postproc_export.validation import check_file

# --- What a program that runs a model asks of its file, one requirement at a time.


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One requirement, and what a file has there.

    Parameters
    ----------
    name
        What it is about, such as ``"input batch"``.
    holds
        Whether the file meets it; None where the file does not tell.
    found
        What the file has.
    needed
        What the program needs, and why.
    fix
        How to meet it.
    """

    name: str
    holds: bool | None
    found: str
    needed: str
    fix: str = ""

    def describe(self) -> str:
        """Return one line."""
        if self.holds:
            return self.found
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"found {self.found}; needed: {self.needed}{fix}"

    def to_json(self) -> dict[str, Any]:
        """Return the details of the JSON report."""
        return {"holds": self.holds, "found": self.found, "needed": self.needed, "fix": self.fix or None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractReport:
    """How a file fits a program; truthy where nothing that could be judged is missed.

    Parameters
    ----------
    contract
        The program's short name.
    program
        Its full name and the version whose code was read.
    requirements
        All requirements.
    """

    contract: str
    program: str
    requirements: tuple[Requirement, ...]

    def __bool__(self) -> bool:
        return not any(requirement.holds is False for requirement in self.requirements)

    @property
    def missed(self) -> tuple[Requirement, ...]:
        """The requirements that the file does not meet."""
        return tuple(item for item in self.requirements if item.holds is False)

    def not_judged(self) -> Iterator[str]:
        """Yield what the file does not tell, one sentence each."""
        for item in self.requirements:
            if item.holds is None:
                yield f"{self.program}, {item.name}: {item.found}; needed: {item.needed}"


# --- What an attached file says to a program that reads it with OpenVINO: ports, names, layout, settings for
# wrappers.

MODEL_INFO: Final = "model_info"
_PURPOSE: Final = "reading a model as its users do"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReading:
    """A file as OpenVINO shows it.

    Parameters
    ----------
    inputs, outputs
        The ports; `PortInfo.aliases` holds all names of a tensor.
    layouts
        The layout that each input declares, such as ``"NCHW"``; empty where it declares none.
    model_info
        What the file says to OpenVINO Model API, by key.
    record
        What was attached; None where the file has no record.
    """

    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    layouts: tuple[str, ...]
    model_info: Mapping[str, str]
    record: TailRecord | None
    _model: Any

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises
        ------
        FileError, UnsupportedModelError
            If it cannot be read.
        MetadataError
            If its record is not legal.
        MissingDependencyError
            If OpenVINO is not installed.
        """
        check_file(path, what="the model")
        core = openvino_core(purpose=_PURPOSE)
        if is_onnx(path):
            model, entries = _read_onnx(core, path), _onnx_entries(path)
            info = {key.split()[-1]: value for key, value in entries.items() if MODEL_INFO in key.split()[:-1]}
            text = entries.get(METADATA_KEY)
        else:
            model = read_ir(core, path)
            info = _model_info(model)
            text = model.get_rt_info([METADATA_KEY]).astype(str) if model.has_rt_info([METADATA_KEY]) else None
        return cls(
            inputs=tuple(port_info(port, "") for port in model.inputs),
            outputs=tuple(port_info(port, "") for port in model.outputs),
            layouts=tuple(_layout(parameter) for parameter in model.get_parameters()),
            model_info=info,
            record=None if text is None else TailRecord.loads(text, where=str(path)),
            _model=model,
        )

    def compiled_names(self) -> list[frozenset[str]]:
        """Return the names of each output after compiling for the CPU, which may join those of several values."""
        core = openvino_core(purpose=_PURPOSE)
        try:
            compiled = core.compile_model(self._model, "CPU")
        except RuntimeError as error:
            raise cannot_load("the model", "OpenVINO", error) from error
        return [frozenset(port.get_names()) for port in compiled.outputs]

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the images were fed in calibration; None where the record does not say."""
        recorded = None if self.record is None else self.record.stats.details.get("preprocessing")
        return None if recorded is None else Preprocessing.from_json(recorded)

    def is_fed(self, *, scale: float, mean: float) -> bool | None:
        """Whether calibration fed ``(pixel - mean) / scale``, pixels from 0 to 255; None where the record is silent."""
        fed = self.preprocessing
        if fed is None or fed.scale is None:
            return None
        factors = [1 / (fed.scale * std) for std in fed.std]
        offsets = [value / std for value, std in _pairs(fed)]
        return all(math.isclose(factor, 1 / scale, rel_tol=1e-6) for factor in factors) and all(
            math.isclose(offset, mean / scale, rel_tol=1e-6, abs_tol=1e-9) for offset in offsets
        )


def _pairs(fed: Preprocessing) -> list[tuple[float, float]]:
    length = max(len(fed.mean), len(fed.std))
    mean, std = (values if len(values) == length else values * length for values in (fed.mean, fed.std))
    return list(zip(mean, std, strict=True))


def _read_onnx(core: Any, path: Path) -> Any:
    try:
        return read_model(core, path)
    except RuntimeError as error:
        raise cannot_load(path.name, "OpenVINO", error) from error


def _onnx_entries(path: Path) -> dict[str, str]:
    from graph_patterns.onnx.file import load_skeleton

    with load_skeleton(path) as file:
        return {item.key: item.value for item in file.model.metadata_props}


def _model_info(model: Any) -> dict[str, str]:
    entries = flattened(model.get_rt_info())
    return {key.removeprefix(f"{MODEL_INFO}/"): text for key, text in entries.items() if key.startswith(MODEL_INFO)}


def _layout(parameter: Any) -> str:
    layout = parameter.get_layout()
    return "" if layout.empty else str(layout.to_string()).strip("[]").replace(",", "")


# --- Requirements that more than one program has.

EXPORT_AGAIN: Final = "export the model again with such an input"
_RANKS: Final = {"pred_score": (1, 2), "pred_label": (1, 2), "anomaly_map": (3, 4), "pred_mask": (3, 4)}


def one_input(reading: ModelReading) -> Requirement:
    """The program feeds one image and nothing else."""
    return Requirement(
        name="inputs",
        holds=len(reading.inputs) == 1,
        found=listed(reading.inputs),
        needed="one input, the image",
        fix="make the other inputs constants when exporting",
    )


def float_input(port: PortInfo) -> Requirement:
    """The program feeds numbers from 0 to 1, which an integer input would cut to 0."""
    return Requirement(
        name="input type",
        holds=port.dtype == "float32",
        found=port.dtype,
        needed="float32: numbers from 0 to 1 are fed, of which an integer input makes 0",
        fix=EXPORT_AGAIN,
    )


def batch_of_one(port: PortInfo) -> Requirement:
    """The program feeds one image at a time."""
    return Requirement(
        name="input batch",
        holds=None if port.rank is None else port.size(0) in (None, 1),
        found=port.describe(),
        needed="a batch of 1, or a dynamic one: images are fed one at a time",
        fix=EXPORT_AGAIN,
    )


def single_names(names: Iterable[Collection[str]], *, fix: str) -> Requirement:
    """Programs take any one of a tensor's names, in an order that no one sets."""
    wrong = [sorted(found) for found in names if len(found) != 1]
    return Requirement(
        name="output names",
        holds=not wrong,
        found="; ".join(" and ".join(found) or "no name" for found in wrong) or "one name each",
        needed="one name on each output: of several any one may be taken",
        fix=fix,
    )


def ranks(outputs: Collection[PortInfo]) -> Iterator[Requirement]:
    """Yield whether each of the four outputs has the axes that programs expect."""
    for port in outputs:
        name = next((alias for alias in port.aliases if alias in OUTPUT_NAMES), None)
        if name is not None:
            yield Requirement(
                name=f"{name} axes",
                holds=None if port.rank is None else port.rank in _RANKS[name],
                found=port.describe(),
                needed=" or ".join(f"{rank} axes" for rank in _RANKS[name]),
                fix="give the raw output of the exported model a batch axis",
            )


def listed(ports: Iterable[PortInfo]) -> str:
    """Return ports as one line."""
    return "; ".join(port.describe() for port in ports) or "none"


# --- Anomalib's `OpenVINOInferencer`: what it asks of a file, read from the code of anomalib 2.7.0.
#
# It feeds the first input one image: float32 [1, 3, H, W], RGB, 0 to 1, in the image's own size. Outputs go by the
# first of their names into `NumpyImageBatch`, which knows the four names, wants arrays with a batch axis and refuses
# any other. The names are those of the compiled model: where OpenVINO leaves out a conversion or a copy, its
# operand's name of an ONNX file comes to the output's, and which of the two is first changes from one process to the
# next.

ANOMALIB: Final = "Anomalib 2.7.0 OpenVINOInferencer"
_CHANNELS: Final = 3


def anomalib_requirements(reading: ModelReading) -> Iterator[Requirement]:
    """Yield what the inferencer needs, and what the file has there."""
    yield one_input(reading)
    if not reading.inputs:
        return
    port = reading.inputs[0]
    yield Requirement(
        name="input name",
        holds=bool(port.aliases),
        found=", ".join(port.aliases) or "no name",
        needed="a name: the image is fed by it",
        fix=EXPORT_AGAIN,
    )
    yield _anomalib_layout(port, reading.layouts[0])
    yield batch_of_one(port)
    yield float_input(port)
    yield _anomalib_range(reading)
    yield _anomalib_outputs(reading)
    yield single_names(
        reading.compiled_names(),
        fix="attach both levels, normalised, with labels of bool, so that no output is a mere copy or conversion",
    )
    yield from ranks(reading.outputs)


def _anomalib_layout(port: PortInfo, layout: str) -> Requirement:
    channels = port.size(1)
    fits = port.rank == 4 and channels in (None, _CHANNELS) and layout in ("", "NCHW")
    declared = f", layout {layout}" if layout else ""
    return Requirement(
        name="input layout",
        holds=None if port.rank is None else fits,
        found=f"{port.describe()}{declared}",
        needed="[N, 3, H, W]: RGB images are fed channels first, in their own size",
        fix=EXPORT_AGAIN,
    )


def _anomalib_range(reading: ModelReading) -> Requirement:
    fed = reading.preprocessing
    fits = reading.is_fed(scale=255.0, mean=0.0)
    if fits and fed is not None:
        fits = fed.channel_order == "rgb" and fed.layout == "nchw"
    return Requirement(
        name="input values",
        holds=fits,
        found="the statistics do not say how images were fed" if fed is None else f"calibrated on {fed.describe()}",
        needed="RGB from 0 to 1 without mean and standard deviation: normalising belongs into the exported graph",
        fix="export the model with its pre-processing, and calibrate again",
    )


def _anomalib_outputs(reading: ModelReading) -> Requirement:
    names = [name for port in reading.outputs for name in (port.aliases or ("an output without a name",))]
    strangers = sorted(set(names) - set(OUTPUT_NAMES))
    lacking = [name for name in ("pred_score", "pred_label") if name not in names]
    found = ", ".join(names)
    return Requirement(
        name="outputs",
        holds=not strangers and not lacking,
        found=found + (f" (without {', '.join(lacking)})" if lacking else ""),
        needed=f"pred_score and pred_label, of {', '.join(OUTPUT_NAMES)}; another output ends in a TypeError",
        fix="attach both levels with labels, without --keep-raw or --layout packed, to a model without further outputs",
    )


# --- OpenVINO Model API's `AnomalyDetection` wrapper: what it asks of a file, read from the code of version 0.4.7.
#
# Of a model whose height and width are dynamic it takes the image as it is and divides bytes by 255. Into a model of
# a fixed size it builds a resize of its own and feeds bytes from 0 to 255, divided by nothing unless the settings say
# so.

MODEL_API: Final = "OpenVINO Model API 0.4.7 AnomalyDetection"
_WRAPPER: Final = "AnomalyDetection"
_BYTE: Final = 255.0
_SWITCHED: Final = {True: "on", False: "off"}


def model_api_requirements(reading: ModelReading) -> Iterator[Requirement]:
    """Yield what the wrapper needs, and what the file has there."""
    yield _wrapper(reading.model_info)
    yield one_input(reading)
    if not reading.inputs:
        return
    port = reading.inputs[0]
    yield _model_api_layout(port, reading.layouts[0])
    yield batch_of_one(port)
    yield float_input(port)
    yield _model_api_range(reading, port)
    yield _model_api_outputs(reading)
    yield single_names((port.aliases for port in reading.outputs), fix="give the raw output of the model one name")
    yield from ranks(reading.outputs)
    yield from _types(reading)
    yield _normalised(reading)


def _wrapper(info: Mapping[str, str]) -> Requirement:
    asked = info.get("model_type")
    return Requirement(
        name="wrapper",
        holds=asked is None or asked.lower() == _WRAPPER.lower(),
        found="recognised by its outputs" if asked is None else f"model_type {asked}",
        needed=f"model_type {_WRAPPER} in the file's model_info, or none",
        fix=f"create the wrapper with model_type='{_WRAPPER}'",
    )


def _model_api_layout(port: PortInfo, declared: str) -> Requirement:
    """The wrapper takes axis 1 for the channels where it is 1 to 4, else the last one."""
    taken = declared or ("NCHW" if port.size(1) in range(1, 5) else "NHWC")
    channels = port.size(1 if taken == "NCHW" else 3)
    return Requirement(
        name="input layout",
        holds=None if port.rank is None else port.rank == 4 and channels == 3,
        found=f"{port.describe()}, taken for {taken}",
        needed="four axes with a fixed number of 3 channels, second or last: it tells the layout",
        fix=EXPORT_AGAIN,
    )


def _model_api_range(reading: ModelReading, port: PortInfo) -> Requirement:
    fed = reading.preprocessing
    said = "the statistics do not say how images were fed" if fed is None else f"calibrated on {fed.describe()}"
    if not _is_static(port):
        return Requirement(
            name="input values",
            holds=reading.is_fed(scale=_BYTE, mean=0.0),
            found=said,
            needed="values from 0 to 1 without mean and standard deviation: bytes are divided by 255",
            fix="export the model with its pre-processing, and calibrate again",
        )
    scale, mean = _settings(reading.model_info)
    fits = False if math.isnan(scale + mean) else reading.is_fed(scale=scale, mean=mean)
    if fits is None:  # the field's models take 0 to 1
        fits = scale == _BYTE and mean == 0
    return Requirement(
        name="input values",
        holds=fits,
        found=f"{port.describe()}, of a fixed size: fed bytes less {mean:g}, divided by {scale:g}; {said}",
        needed="the values that the model was calibrated on, 0 to 1 where nothing says other",
        fix="export with dynamic height and width, or create the wrapper with configuration={'scale_values': [255.0]}",
    )


def _is_static(port: PortInfo) -> bool:
    return port.rank == 4 and None not in (port.size(1), port.size(2), port.size(3))


def _settings(info: Mapping[str, str]) -> tuple[float, float]:
    """Return what bytes are divided by, and what is taken off first; NaN where the channels differ."""
    if info.get("intensity_mode") == "scale_to_unit":
        return _BYTE, 0.0
    scale, mean = ({_number(item) for item in info.get(key, "").split()} for key in ("scale_values", "mean_values"))
    return (
        1.0 if not scale else scale.pop() if len(scale) == 1 else math.nan,
        0.0 if not mean else mean.pop() if len(mean) == 1 else math.nan,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _model_api_outputs(reading: ModelReading) -> Requirement:
    names = sorted(name for port in reading.outputs for name in port.aliases)
    return Requirement(
        name="outputs",
        holds=len(reading.outputs) == 4 and set(OUTPUT_NAMES) <= set(names),
        found=listed(reading.outputs),
        needed=f"these four and no other: {', '.join(OUTPUT_NAMES)}",
        fix="attach both levels, without --keep-raw or --layout packed, to a model with a map and no further outputs",
    )


def _types(reading: ModelReading) -> Iterator[Requirement]:
    for port in reading.outputs:
        if "pred_label" in port.aliases:
            yield Requirement(
                name="pred_label type",
                holds=port.dtype == "bool",
                found=port.dtype,
                needed="bool: the label is handed on as text, 'True' or 'False'",
                fix="--label-dtype bool",
            )


def _normalised(reading: ModelReading) -> Requirement:
    options = None if reading.record is None else reading.record.options
    return Requirement(
        name="map range",
        holds=None if options is None else options.enable_normalization,
        found="no record in the file"
        if options is None
        else f"normalisation {_SWITCHED[options.enable_normalization]}",
        needed="a map from 0 to 1: it is multiplied by 255 and cut to bytes",
        fix="attach without --no-normalize",
    )


# --- Whether a file fits the programs of this field that run such models.

CONTRACTS: Final[Mapping[str, tuple[str, Callable[[ModelReading], Iterator[Requirement]]]]] = {
    "anomalib": (ANOMALIB, anomalib_requirements),
    "model-api": (MODEL_API, model_api_requirements),
}


def check_contract(path: str | Path, contract: str) -> ContractReport:
    """Check a file against what a program asks of it, without feeding it anything.

    Parameters
    ----------
    path
        An ``.onnx`` or ``.xml`` file.
    contract
        ``"anomalib"`` for Anomalib's `OpenVINOInferencer`, ``"model-api"`` for OpenVINO Model API's `AnomalyDetection`.

    Raises
    ------
    UsageError
        If the contract is not known.
    FileError, UnsupportedModelError
        If the file cannot be read.
    MissingDependencyError
        If OpenVINO, which both programs read files with, is not installed.
    """
    if contract not in CONTRACTS:
        raise UsageError(f"the contract '{contract}' is not known", needed=" or ".join(CONTRACTS))
    program, requirements = CONTRACTS[contract]
    found = tuple(requirements(ModelReading.load(Path(path))))
    return ContractReport(contract=contract, program=program, requirements=found)
