"""A model with other weights than its file's: rounded to float16 as OpenVINO's converter does, or INT8 by nncf."""

import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from postproc_export.errors import UnsupportedModelError, require
from postproc_export.parity.fed.real_inputs import RealInputs
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import import_openvino, openvino_core, read_model, without_telemetry
from postproc_export.tail import PREFIX

MOST_SAMPLES: Final = 300
"""How many samples nncf takes its statistics from at most: its own default."""

_PURPOSE: Final = "running a model with other weights"


def has_nncf() -> bool:
    """Whether nncf is installed."""
    return find_spec("nncf") is not None


def with_fp16_weights(model: Any, target: Path) -> Path:
    """Save a model as OpenVINO does by default: weights rounded to float16, computed with in float32.

    Parameters
    ----------
    model
        The path of an ONNX file or an IR, or an `openvino.Model`.
    target
        The path of the ``.xml`` to be written.

    Raises
    ------
    UnsupportedModelError
        If OpenVINO does not read the model.
    """
    openvino = import_openvino(purpose=_PURPOSE)
    openvino.save_model(_read(model), target, compress_to_fp16=True)
    return target


def tail_patterns(attached: AttachedModel) -> list[str]:
    """Return regular expressions for the names of the tail's operators, as OpenVINO shows them.

    Notes
    -----
    OpenVINO calls the last operators of an ONNX file by the names of the outputs. In an IR every operator of the tail
    has a name of its own, and the model's own last operator may bear that of an output. nncf matches from the start of
    a name, so what is to be the whole of it has to end it, too: ``anomaly_map`` would fit ``anomaly_map_raw``.
    """
    outputs = attached.output_names if attached.file.format == "onnx" else ()
    return [f"{PREFIX}.*", *(f"{re.escape(name)}$" for name in outputs)]


def with_int8(
    model: Any, inputs: RealInputs, size: int, *, given: Mapping[str, NDArray[Any]], ignored: Sequence[str]
) -> Any:
    """Quantise a model by nncf after training, all but the tail, and return an `openvino.Model`.

    Parameters
    ----------
    model
        The path of an ONNX file or an IR, or an `openvino.Model`.
    inputs
        The samples that nncf takes its statistics from.
    size
        The batch size to feed them in.
    given
        What further inputs are fed each time, as far as the model has them.
    ignored
        Regular expressions for the names of operators that stay as they are: `tail_patterns`.

    Raises
    ------
    UnsupportedModelError
        If nncf cannot quantise the model.
    MissingDependencyError
        If nncf is not installed.
    """
    parsed = _read(model).clone()
    silence = io.StringIO()  # nncf writes its progress to stdout, where the report goes
    with without_telemetry(), redirect_stdout(silence), redirect_stderr(silence):
        nncf = require("nncf", extra="nncf", purpose="quantising a model")
        nncf.set_log_level(logging.ERROR)
        scope = nncf.IgnoredScope(patterns=list(ignored), validate=False)
        names = {name for port in parsed.inputs for name in port.get_names()}
        feeds = _Feeds(inputs, size, {name: value for name, value in given.items() if name in names})
        try:
            return nncf.quantize(parsed, nncf.Dataset(feeds), ignored_scope=scope, subset_size=len(feeds))
        except Exception as error:
            raise UnsupportedModelError("nncf cannot quantise the model", found=first_reason(error)) from error


@dataclass(frozen=True, slots=True)
class _Feeds:
    """The samples as often as nncf asks for them."""

    inputs: RealInputs
    size: int
    given: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return -(-min(self.inputs.count, MOST_SAMPLES) // self.size)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for batch in islice(self.inputs.batches(self.size), len(self)):
            yield {**batch.feeds, **self.given}


def _read(model: Any) -> Any:
    if not isinstance(model, (str, Path)):
        return model
    try:
        return read_model(openvino_core(purpose=_PURPOSE), str(model))
    except RuntimeError as error:
        raise UnsupportedModelError(f"OpenVINO cannot read {model}", found=first_reason(error)) from error
