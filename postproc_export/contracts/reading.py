"""What an attached file says to a program that reads it with OpenVINO: ports, names, layout, settings for wrappers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from postproc_export.files.targets import is_onnx
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.images.preprocessing import Preprocessing
from postproc_export.preservation.openvino_rows import flattened
from postproc_export.rewrite.openvino_file import read_ir
from postproc_export.runtimes.feeds import cannot_load
from postproc_export.runtimes.openvino import openvino_core, port_info, read_model
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.validation import check_file

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
    from graph_patterns.onnx.container import load_skeleton

    with load_skeleton(path) as file:
        return {item.key: item.value for item in file.model.metadata_props}


def _model_info(model: Any) -> dict[str, str]:
    entries = flattened(model.get_rt_info())
    return {key.removeprefix(f"{MODEL_INFO}/"): text for key, text in entries.items() if key.startswith(MODEL_INFO)}


def _layout(parameter: Any) -> str:
    layout = parameter.get_layout()
    return "" if layout.empty else str(layout.to_string()).strip("[]").replace(",", "")
