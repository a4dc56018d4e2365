"""tract, an engine in Rust, through its Python package: on the CPU, or on another of its devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from graph_patterns.onnx.file import external_data_locations, load_skeleton
from postproc_export.errors import UsageError, require
from postproc_export.process import temporary_folder
from postproc_export.runtimes import (
    Array,
    Precision,
    RuntimeRunner,
    Target,
    cannot_load,
    cannot_run,
    checked_feeds,
    ports_of,
)

_PURPOSE: Final = "running a model in tract"


class _Compiled:
    """A model, and what it was compiled to for the shapes that it was fed."""

    def __init__(self, tract: Any, model: str | bytes, device: str) -> None:
        self._tract, self._model, self._device = tract, model, device
        self.compiled: dict[tuple[str, ...], Any] = {}
        self._first = self._parsed()  # which fails where the file cannot be read
        if isinstance(model, str):  # the file may be gone when it is compiled for another shape
            with load_skeleton(Path(model)) as file:
                is_whole = not external_data_locations(file.model)
            self._model = Path(model).read_bytes() if is_whole else model

    def run(self, arrays: Sequence[Array]) -> Any:
        facts = tuple(map(_fact, arrays))
        if facts not in self.compiled:
            model, self._first = self._first or self._parsed(), None
            for index, fact in enumerate(facts):
                model.set_input_fact(index, fact)
            for index in range(model.output_count()):
                model.set_output_fact(index, None)  # the shapes that are declared, which may have names
            self.compiled[facts] = self._tract.runtime_for_name(self._device).prepare(model.into_model())
        return self.compiled[facts].run(list(arrays))

    def _parsed(self) -> Any:
        if isinstance(self._model, str):
            return self._tract.onnx().load(self._model)
        with temporary_folder() as folder:
            (folder / "model.onnx").write_bytes(self._model)
            return self._tract.onnx().load(folder / "model.onnx")


class TractRunner(RuntimeRunner):
    """A model in tract, which computes in the types that the graph says; a device is one of tract's runtimes.

    It is compiled for the shapes that it is fed, each time for new ones: tract does not take axes without a name. It
    takes an input's default for a constant, and names outputs after operators; they come in the model's order.
    """

    __slots__ = ()
    package: ClassVar[str] = "tract"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def refuse_missing(cls, target: Target) -> None:
        """Raise UsageError if tract has no such device here, or options are given: it has none."""
        if target.options:
            raise UsageError("tract has no options", found=target.text, fix="leave them out")
        tract = require("tract", purpose=_PURPOSE)
        try:
            tract.runtime_for_name(target.device)
        except tract.TractError as error:
            what = f"tract has no {target.device} here"
            raise UsageError(what, found=str(_reason(error)), fix="leave it out, for the CPU") from error

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Load an ONNX file or the bytes of one; see `open_runner`. It always optimises, and runs in one thread."""
        tract = require("tract", purpose=_PURPOSE)
        label = Path(model).name if isinstance(model, str) else "the model"
        try:
            inputs, _, outputs = ports_of(model)
            session = _Compiled(tract, model, target.device or "default")
        except Exception as error:
            raise cannot_load(label, "tract", _reason(error)) from error
        return cls(
            label=label,
            name=f"tract-{target.device or 'cpu'}",
            version=tract.version(),
            precision=precision,
            inference_precision="float32",
            inputs=inputs,
            optional=(),
            outputs=outputs,
            _session=session,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        arrays = checked_feeds(feeds, self.inputs)
        try:
            results = self._session.run(list(arrays.values()))
            return {port.name: each.into_numpy() for port, each in zip(self.outputs, results, strict=True)}
        except Exception as error:
            raise cannot_run(self.label, "tract", _reason(error), arrays) from error

    def reset(self) -> None:
        """Let go of what was compiled for the shapes that were fed."""
        self._session.compiled.clear()


def _fact(array: Array) -> str:
    """Return how tract writes sizes and element type: ``1,3,224,224,f32``."""
    kind = "bool" if array.dtype == bool else f"{array.dtype.name[0]}{8 * array.dtype.itemsize}"
    return ",".join([*map(str, array.shape), kind])


def _reason(error: Exception) -> Exception:
    """Return an error with what tract says in one line, without its stack."""
    return RuntimeError(" ".join(str(error).partition("Stack backtrace")[0].split()))
