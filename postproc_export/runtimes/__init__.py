"""The runtimes behind one protocol, found by their names, and the arrays that they are fed."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError, UsageError, install
from postproc_export.files import check_model
from postproc_export.ports import Array, Axis, PortInfo, port_of
from postproc_export.validation import check_file, close_to, stated_twice

__all__ = ["Array", "Axis", "PortInfo", "Precision", "Runner", "RuntimeName", "as_float32", "open_runner"]


Precision = Literal["float32", "default"]
RuntimeName = Literal["onnxruntime", "openvino"]

RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino")
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "default")


def installed_runtimes() -> tuple[RuntimeName, ...]:
    """Return the runtimes that can be imported."""
    return tuple(name for name in RUNTIMES if find_spec(name) is not None)


def is_installed(module: str) -> bool:
    """Whether a module can be found; of one in a package, whether both can."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # there is no such package
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner(ABC):
    """A model that is loaded and ready to run on one runtime, in one precision."""

    label: str  # what errors call the model
    name: str  # runtime and device: "onnxruntime-cpu" or "openvino-cpu"
    version: str  # of the runtime
    precision: Precision  # the one that was asked for; "default" is the machine's own
    inference_precision: str  # what the runtime computes float32 operators in, such as "float32" or "bfloat16"
    inputs: tuple[PortInfo, ...]  # those that have to be fed; all ports are in the model's order
    optional: tuple[PortInfo, ...]  # inputs that need not be fed: with a default in ONNX, state variables of an IR
    outputs: tuple[PortInfo, ...]

    @abstractmethod
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once and return its outputs by name, in the model's order, as copies that the caller owns.

        Feeds have the dtype and shape of their inputs; one that need not be fed may be left out. bfloat16 is
        `ml_dtypes.bfloat16`. Raises UnsupportedModelError if the runtime fails on these inputs.
        """

    def reset(self) -> None:  # noqa: B027  # most runtimes keep nothing
        """Forget what earlier runs left, so that the next one is as the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRunner(Runner):
    """A runner that loads models itself: what a runtime is found by."""

    _session: Any  # the runtime's own form of the model
    package: ClassVar[str]  # what has to be installed, by the name of its module, or as npm knows it
    formats: ClassVar[tuple[str, ...]]  # of the files that it reads: "onnx", "openvino"
    takes_empty: ClassVar[bool] = True  # whether it runs on a batch of no images
    adjusts: ClassVar[tuple[str, ...]] = ()  # of those, the formats in which inputs that have a default can be fed

    @classmethod
    @abstractmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: "Target") -> Self:
        """Load a file by its path as text, the bytes of an ONNX model or an `openvino.Model`; see `open_runner`."""

    @classmethod
    def refuse_uninstalled(cls, name: str) -> None:
        """Raise MissingDependencyError if what a runtime of this name needs is not installed."""
        if not is_installed(cls.package):
            raise MissingDependencyError(f"the runtime {name} is not installed", fix=install(cls.package))

    @classmethod
    def refuse_missing(cls, target: "Target") -> None:
        """Raise UsageError if the machine has no such device, or an option is none of the runtime's.

        It is called for a target that names a device or options.
        """
        found = target.text.removeprefix(target.runtime)[1:]
        raise UsageError(f"{target.runtime} has neither devices nor options", found=found, fix="leave it out")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is run: a runtime by its name, one of its devices, and options of it."""

    runtime: str
    device: str = ""  # as the runtime calls it; the CPU by default
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME[:DEVICE][,KEY=VALUE...]``, such as ``openvino:HETERO:GPU,CPU`` with a comma in the device.

        Raises UsageError for a runtime, device or option that is not known, MissingDependencyError for a runtime that
        is not installed.
        """
        parts = text.split(",")
        options = tuple((key, value) for key, equals, value in (part.partition("=") for part in parts) if equals)
        name, colon, device = ",".join(part for part in parts if "=" not in part).partition(":")
        target, runner = cls(name, device, options), runner_class(name)
        if colon and (not device or device[-1] in ":,"):
            raise UsageError(
                f"--runtime {text} ends without a device", needed=f"{name}:DEVICE", fix=f"--runtime {name}"
            )
        if (twice := stated_twice(key for key, _ in options)) is not None:
            raise UsageError(f"--runtime {text} gives an option twice", found=twice, fix="leave one of them out")
        if not all(key for key, _ in options):
            raise UsageError(f"--runtime {text} has an option without a name", needed=f"{name},KEY=VALUE")
        runner.refuse_uninstalled(name)
        if device or options:
            runner.refuse_missing(target)
            _refuse_unusable(runner, target)
        return target

    @property
    def text(self) -> str:
        """How the command line takes it."""
        named = f"{self.runtime}:{self.device}" if self.device else self.runtime
        return ",".join([named, *(f"{key}={value}" for key, value in self.options)])


GROUP: Final = "postproc_export.runtimes"
"""The entry points of runtimes in other packages: a name, and the `RuntimeRunner` that stands for it."""

_SHIPPED: Final = {
    "onnxruntime": "postproc_export.runtimes.onnxruntime:OnnxRuntimeRunner",
    "openvino": "postproc_export.runtimes.openvino:OpenVinoRunner",
    "onnx.reference": "postproc_export.runtimes.onnx_reference:OnnxReferenceRunner",
    "onnxruntime-node": "postproc_export.runtimes.node:OnnxRuntimeNodeRunner",
    "onnxruntime-web": "postproc_export.runtimes.node:OnnxRuntimeWebRunner",
    "opencv": "postproc_export.runtimes.opencv:OpenCvRunner",
    "tract": "postproc_export.runtimes.tract:TractRunner",
}


def runner_class(name: str) -> type[RuntimeRunner]:
    """Return what runs models in a runtime; its package need not be installed. Raises UsageError for another name."""
    if name in _SHIPPED:
        shipped: type[RuntimeRunner] = EntryPoint(name, _SHIPPED[name], GROUP).load()
        return shipped
    entries = list(entry_points(group=GROUP, name=name))
    if not entries:
        known = (*_SHIPPED, *entry_points(group=GROUP).names)
        near = close_to(name.lower(), known)
        fix = f"--runtime {near[0]}" if near else "install the package that brings it" if name else None
        raise UsageError(f"unknown runtime {name!r}", needed=" or ".join(known), fix=fix)
    found, fix = None, f"mend or remove {entries[0].dist.name if entries[0].dist else 'what brings it'}"
    try:
        found = entries[0].load()
    except (Exception, SystemExit) as error:  # it is code of somebody else
        raise UsageError(f"the runtime {name} cannot be imported", found=str(_named(error)), fix=fix) from error
    legal = (isinstance(found, type) and issubclass(found, RuntimeRunner)) and not isabstract(found)
    if not legal or not all(hasattr(found, each) for each in ("package", "formats")):
        needed = "a subclass of postproc_export.runtimes.RuntimeRunner with package, formats, load and run"
        raise UsageError(f"{entries[0].value} is no runtime", needed=needed, fix=fix)
    brought: type[RuntimeRunner] = found
    return brought


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedRunner(Runner):
    """A runner of another package: whatever goes wrong is one kind of error, and outputs are as it declares them."""

    inner: Runner
    runtime: str

    @classmethod
    def load(cls, runner: type[RuntimeRunner], model: Any, target: Target, **options: Any) -> Runner:
        """Load a model with a class; see `open_runner`. A runner that is shipped needs no guard."""
        if target.runtime in _SHIPPED:
            return runner.load(model, target=target, **options)
        try:
            inner = runner.load(model, target=target, **options)
            told = {item.name: getattr(inner, item.name) for item in fields(Runner)}
        except PostprocError:
            raise
        except (Exception, SystemExit) as error:
            label = Path(model).name if isinstance(model, str) else "the model"
            raise cannot_load(label, target.runtime, _named(error)) from error
        return cls(**told, inner=inner, runtime=target.runtime)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        try:
            outputs = self.inner.run(feeds)
            return {port.name: self._copied(port, outputs) for port in self.outputs}
        except PostprocError:
            raise
        except (Exception, SystemExit) as error:
            raise cannot_run(self.label, self.runtime, _named(error), feeds) from error

    def reset(self) -> None:
        """Forget what earlier runs left."""
        self.inner.reset()

    @staticmethod
    def _copied(port: PortInfo, outputs: Mapping[str, Array]) -> Array:
        """Return an output as an array of its own. Raises ValueError where it is missing, or cannot be that output."""
        if port.name not in outputs:
            raise ValueError(f"it gives no output '{port.name}', but {', '.join(outputs) or 'none'}")
        array: Array = np.array(outputs[port.name])
        # A shape of () may stand for one that is not known, and labels may be numbers; narrower scores lost digits.
        is_other = array.dtype.name != port.dtype and array.dtype.kind == "f" and port.dtype.startswith("float")
        if is_other or (port.shape and not has_shape(port, array)):
            raise ValueError(f"it gives {array.dtype.name} {list(array.shape)} for {port.describe()}")
        return array


def _refuse_unusable(runner: type[RuntimeRunner], target: Target) -> None:
    """Raise UsageError where a device that is there cannot be used, or not with these options."""
    if "onnx" not in runner.formats:
        return
    try:
        GuardedRunner.load(runner, _nothing(), target, precision="float32", optimize=True, threads=None)
    except UnsupportedModelError as error:
        raise UsageError(f"the runtime {target.text} cannot be used here", found=error.found) from error


def _nothing() -> bytes:
    """Return a model that does nothing, to see whether a device is there."""
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def ports_of(model: str | bytes) -> tuple[tuple[PortInfo, ...], ...]:
    """Return the inputs that have to be fed, those with a default, and the outputs, of an ONNX file or one in memory.

    It is for runtimes that do not tell them. Raises ModelFileError for what is no ONNX model.
    """
    from graph_patterns.onnx.file import load_skeleton, load_skeleton_from_bytes

    with load_skeleton(Path(model)) if isinstance(model, str) else load_skeleton_from_bytes(model) as file:
        graph = file.model.graph
    defaults = {each.name for each in graph.initializer}
    inputs = [port_of(each) for each in graph.input]
    needed = tuple(port for port in inputs if port.name not in defaults)
    return needed, tuple(port for port in inputs if port.name in defaults), tuple(map(port_of, graph.output))


def as_float32(array: Array) -> npt.NDArray[np.float32]:
    """Return a float array rounded to float32, whatever its element type; without a copy where it is float32."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


_MAX_REASON: Final = 500
_CHECK: Final = re.compile("Check '.* failed at ")  # where in OpenVINO's source


def has_shape(port: PortInfo, array: Array) -> bool:
    """Whether an array has the rank and the static sizes of a port."""
    if port.shape is None or len(port.shape) != array.ndim:
        return port.shape is None
    return all(not isinstance(axis, int) or axis == size for axis, size in zip(port.shape, array.shape, strict=True))


def checked_feeds(
    feeds: Mapping[str, Array], ports: Sequence[PortInfo], optional: Sequence[PortInfo] = ()
) -> dict[str, Array]:
    """Return the feeds by the name of their port, and refuse names, element types or static sizes that are not its own.

    A feed may go by any name of its input's tensor. The element type is checked because OpenVINO converts silently: a
    float32 array fed to a float16 input loses digits.
    """
    ports = [*ports, *(port for port in optional if any(port.answers_to(name) for name in feeds))]
    found = {port.name: [name for name in feeds if port.answers_to(name)] for port in ports}
    if len(feeds) != len(ports) or any(len(names) != 1 for names in found.values()):
        raise UsageError("the model's inputs are others", found=str(sorted(feeds)), needed=str(list(found)))
    matched = {port.name: np.asarray(feeds[found[port.name][0]]) for port in ports}
    for port in ports:
        array = matched[port.name]
        other = "element type" if array.dtype.name != port.dtype else None if has_shape(port, array) else "shape"
        if other:
            fed = f"{array.dtype.name} {list(array.shape)}"
            raise UsageError(f"input '{port.name}' has another {other}", found=fed, needed=port.describe())
    return matched


def cannot_load(label: str, runtime: str, error: Exception, *, fix: str | None = None) -> UnsupportedModelError:
    """Return the error for a model that a runtime does not load; `fix` where more is known than what often helps."""
    fix = fix or f"export or convert the model again, or use another version of {runtime}"
    return UnsupportedModelError(f"{runtime} cannot load {label}", found=first_reason(error), fix=fix)


def cannot_run(label: str, runtime: str, error: Exception, feeds: Mapping[str, Array]) -> UnsupportedModelError:
    """Return the error for a run that failed, with the shapes that were fed."""
    fed = ", ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in feeds.items())
    return UnsupportedModelError(f"{runtime} failed to run {label} on {fed}", found=first_reason(error))


def first_reason(error: BaseException) -> str:
    """Return the first line of an error's text that says why, not where in the runtime's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("Exception from ") or _CHECK.match(line)]
    text = ([line for line in lines if line not in places] or lines or [type(error).__name__])[0]
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."


def _named(error: BaseException) -> Exception:
    """Return an error that says in one line what kind of error another one is, and its reason."""
    return RuntimeError(f"{type(error).__name__}: {first_reason(error)}")


_RUNTIME_OF_SUFFIX: dict[str, RuntimeName] = {".onnx": "onnxruntime", ".xml": "openvino"}


def open_runner(
    model: str | Path | bytes | Any,
    *,
    runtime: str | Target | None = None,
    precision: Precision = "float32",
    optimize: bool = True,
    threads: int | None = None,
) -> Runner:
    """Load an ``.onnx`` or ``.xml`` file, the bytes of an ONNX model or an `openvino.Model`, to run on the CPU.

    The runtime, with another device and options where it names them, is by default the one of the format; OpenVINO runs
    ONNX files too. Precision ``"default"`` is what the runtime takes by itself on this machine (OpenVINO: maybe
    bfloat16). `optimize` concerns ONNX Runtime; OpenVINO always rewrites the graph. Raises UnsupportedModelError with
    the first line of the runtime's reason if it does not load.
    """
    target = Target.parse(runtime) if isinstance(runtime, str) else runtime
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision {precision!r}", needed=" or ".join(get_args(Precision)))
    native = _native_runtime(model)
    target = target or Target(native)
    runner = runner_class(target.runtime)
    if native == "openvino" and native not in runner.formats:
        shown = "ONNX Runtime" if target.runtime == "onnxruntime" else target.runtime
        raise UsageError(f"{shown} does not read OpenVINO models", fix="choose the runtime openvino")
    source = str(model) if isinstance(model, (str, Path)) else model
    try:
        options: dict[str, Any] = {"precision": precision, "optimize": optimize, "threads": threads}
        return GuardedRunner.load(runner, source, target, **options)
    except UnsupportedModelError:
        if isinstance(source, str) and native == "onnxruntime":
            _refuse_damaged(Path(source))  # in words, where the file is at fault
        raise


def _native_runtime(model: str | Path | bytes | Any) -> RuntimeName:
    """Return the runtime of a model's format, after checking the files that it is in."""
    if not isinstance(model, (str, Path)):
        return "onnxruntime" if isinstance(model, bytes) else "openvino"
    path, binary = Path(model), Path(model).with_suffix(".bin")
    check_model(path)
    runtime = _RUNTIME_OF_SUFFIX[path.suffix]
    for weights in [binary] if runtime == "openvino" else _external_data(path):
        if weights.exists():  # else the runtime says what is missing
            check_file(weights, what="the weights")
    return runtime


def _refuse_damaged(path: Path) -> None:
    """Raise ModelFileError for an ONNX file that is no model, a damaged one, or misses its weights."""
    from graph_patterns.onnx.file import external_files, load_skeleton

    with load_skeleton(path) as file:
        external_files(file.model, path.parent)


def _external_data(path: Path) -> list[Path]:
    from graph_patterns.onnx.file import external_data_locations, load_skeleton

    try:
        with load_skeleton(path) as file:
            return [path.parent / location for _, location, _ in external_data_locations(file.model)]
    except PostprocError:  # the runtime says what is wrong with it
        return []
