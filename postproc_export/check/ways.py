"""The ways of running a file: runtime, precision, optimisation, and what this machine has of them."""

import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel
from postproc_export.check.inputs import RealInputs
from postproc_export.errors import UnsupportedModelError, require
from postproc_export.runtimes import Precision, Runner, Target, first_reason, open_runner
from postproc_export.runtimes.openvino import import_openvino, openvino_core, read_model, without_telemetry
from postproc_export.tail import PREFIX

Weights: TypeAlias = Literal["stored", "fp16", "int8"]

_LABELS: Final[dict[Weights, str]] = {"fp16": "openvino-fp16-weights", "int8": "openvino-int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to run a model, as `runtimes.open_runner` takes it, with the weights that it has then.

    ``"stored"`` are those of the file; ``"fp16"`` are rounded to float16 as OpenVINO's converter does unless told
    otherwise, ``"int8"`` quantised by nncf: such a model is made first.
    """

    runtime: str
    precision: Precision = "float32"
    optimize: bool = True
    weights: Weights = "stored"
    target: Target | None = None  # where it was asked for by name

    @classmethod
    def asked(cls, text: str) -> Self:
        """Return the way that ``--runtime`` names; see `Target.parse`."""
        target = Target.parse(text)
        return cls(runtime=target.runtime, target=target)

    @property
    def recompiles(self) -> bool:
        """Whether a body may come out otherwise in another file, as it does not operator by operator on the CPU."""
        device = "" if self.target is None else self.target.device
        return self.runtime not in ("onnxruntime", "onnx.reference") or device not in ("", "CPUExecutionProvider")

    @property
    def judged(self) -> bool:
        """Whether a difference is a failure; False for another precision, which is shown and decides nothing."""
        return self.precision == "float32" and self.weights == "stored"

    @property
    def label(self) -> str:
        """Return what tells it from the others, for the names of checks."""
        if self.target is not None:
            return self.target.text.replace("/", "_")  # a name of a check has its parts between slashes
        if self.weights != "stored":
            return _LABELS[self.weights]
        if self.runtime == "onnxruntime":
            return "onnxruntime" if self.optimize else "onnxruntime-unoptimised"
        return "openvino" if self.judged else "openvino-default"

    @property
    def exact(self) -> Self:
        """The same runtime at float32, with the weights of the file."""
        return replace(self, precision="float32", optimize=True, weights="stored")

    def open(self, model: Any, *, threads: int | None) -> Runner:
        """Load a model to run it this way."""
        runtime = self.target or Target(self.runtime)
        return open_runner(model, runtime=runtime, precision=self.precision, optimize=self.optimize, threads=threads)


_WAYS: Final = (
    Configuration(runtime="onnxruntime", optimize=False),
    Configuration(runtime="onnxruntime"),
    Configuration(runtime="openvino"),
    Configuration(runtime="openvino", precision="default"),
    Configuration(runtime="openvino", weights="fp16"),
    Configuration(runtime="openvino", weights="int8"),
)


def whole_configurations(runtimes: Sequence[str], *, int8: bool = False) -> list[Configuration]:
    """Return every way to run a whole file on some runtimes that read it; INT8 only on request."""
    return [way for way in _WAYS if way.runtime in runtimes and (int8 or way.weights != "int8")]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


MOST_SAMPLES: Final = 300
"""How many samples nncf takes its statistics from at most: its own default."""

_PURPOSE: Final = "running a model with other weights"


def with_fp16_weights(model: Any, target: Path) -> Path:
    """Save a model as OpenVINO does by default: weights rounded to float16, computed with in float32.

    The model is a path or an `openvino.Model`, and the target an ``.xml``. Raises `UnsupportedModelError` if OpenVINO
    does not read it.
    """
    openvino = import_openvino(purpose=_PURPOSE)
    openvino.save_model(_read(model), target, compress_to_fp16=True)
    return target


def tail_patterns(attached: AttachedModel) -> list[str]:
    """Return regular expressions for the names of the tail's operators, as OpenVINO shows them.

    OpenVINO calls the last operators of an ONNX file by the names of the outputs. In an IR every operator of the tail
    has a name of its own, and the model's own last operator may bear that of an output. nncf matches from the start of
    a name, so what is to be the whole of it has to end it, too: ``anomaly_map`` would fit ``anomaly_map_raw``.
    """
    outputs = attached.output_names if attached.format == "onnx" else ()
    return [f"{PREFIX}.*", *(f"{re.escape(name)}$" for name in outputs)]


class _Feeds:
    """Samples, with further inputs fed each time, as often as nncf asks for them."""

    def __init__(self, inputs: RealInputs, size: int, given: Mapping[str, NDArray[Any]]) -> None:
        self._inputs, self._size, self._given = inputs, size, given

    def __len__(self) -> int:
        return -(-min(self._inputs.count, MOST_SAMPLES) // self._size)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for batch in islice(self._inputs.batches(self._size), len(self)):
            yield {**batch.feeds, **self._given}


def with_int8(
    model: Any, inputs: RealInputs, size: int, *, given: Mapping[str, NDArray[Any]], ignored: Sequence[str]
) -> Any:
    """Quantise a model by nncf after training and return an `openvino.Model`.

    Statistics are taken from the samples in batches of `size`; `given` is fed each time, as far as the model has such
    inputs. Operators whose names match `ignored`, see `tail_patterns`, stay as they are. Raises `UnsupportedModelError`
    if nncf cannot quantise the model, `MissingDependencyError` without nncf.
    """
    parsed = _read(model).clone()
    silence = io.StringIO()  # nncf writes its progress to stdout, where the report goes
    with without_telemetry(), redirect_stdout(silence), redirect_stderr(silence):
        nncf = require("nncf", purpose="quantising a model")
        nncf.set_log_level(logging.ERROR)
        scope = nncf.IgnoredScope(patterns=list(ignored), validate=False)
        names = {name for port in parsed.inputs for name in port.get_names()}
        feeds = _Feeds(inputs, size, {name: value for name, value in given.items() if name in names})
        try:
            return nncf.quantize(parsed, nncf.Dataset(feeds), ignored_scope=scope, subset_size=len(feeds))
        except Exception as error:
            raise UnsupportedModelError("nncf cannot quantise the model", found=first_reason(error)) from error


def _read(model: Any) -> Any:
    if not isinstance(model, (str, Path)):
        return model
    try:
        return read_model(openvino_core(purpose=_PURPOSE), str(model))
    except RuntimeError as error:
        raise UnsupportedModelError(f"OpenVINO cannot read {model}", found=first_reason(error)) from error
