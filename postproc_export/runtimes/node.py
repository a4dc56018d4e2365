"""ONNX Runtime's packages for JavaScript, onnxruntime-node and onnxruntime-web (WebAssembly), through Node.js."""

import atexit
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Final, Self

import numpy as np

from graph_patterns.expr import ModelFileError
from graph_patterns.onnx.file import external_files, load_skeleton
from postproc_export.errors import MissingDependencyError, UnsupportedModelError, UsageError
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

_DRIVER: Final = Path(__file__).with_name("node.cjs")
_LENGTH: Final = 4  # bytes in front of a frame's header, which tell how long it is
_OPTIONS: Final = ("graphOptimizationLevel", "executionMode", "intraOpNumThreads", "interOpNumThreads")


class _NodeError(Exception):
    """What Node.js or the package says; `code` is Node's name for it, where it has one."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code


class _Node:
    """Node.js with one package: a process that keeps models for this one, as many as it likes. See node.cjs."""

    def __init__(self, node: str, package: str) -> None:
        command = [node, str(_DRIVER), package]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=-1, stderr=subprocess.DEVNULL)
        atexit.register(self.close)
        self._lock, self._is_closed = Lock(), False
        self.numbers = count()
        self.gone: list[int] = []  # models that nobody has any more
        try:
            self.version: str = self.ask({"action": "start"})[0]["version"]
        except _NodeError:
            self.close()  # nobody gets an object that could
            raise

    def close(self) -> None:
        """End the process."""
        self._is_closed = True
        atexit.unregister(self.close)
        _started.cache_clear()
        self._process.kill()
        self._process.communicate()

    def ask(self, question: Mapping[str, Any], parts: Sequence[Any] = ()) -> tuple[dict[str, Any], bytes]:
        """Send a frame with parts, and return what comes back. Raises _NodeError if that failed."""
        with self._lock:
            if self._is_closed:  # as another of its models was told
                raise _NodeError("Node.js has ended")
            try:
                gone = [self.gone.pop() for _ in range(len(self.gone))]
                if gone:
                    self._exchange({"action": "forget", "ids": gone}, ())
                answer, payload = self._exchange(question, parts)
            except BaseException as error:  # also an interrupt: what comes next would be half an answer
                self.close()
                if not isinstance(error, (OSError, EOFError, ValueError)):  # ValueError: an answer that is none
                    raise
                raise _NodeError("Node.js has ended") from error
        if "error" in answer:
            raise _NodeError(answer["error"], answer["code"])
        return answer, payload

    def _exchange(self, question: Mapping[str, Any], parts: Sequence[Any]) -> tuple[dict[str, Any], bytes]:
        source, target = self._process.stdout, self._process.stdin
        assert source is not None, "it is a pipe"
        assert target is not None, "it is a pipe"
        header = json.dumps(question).encode()
        for part in (len(header).to_bytes(_LENGTH, "little"), header, *parts):
            target.write(part)
        target.flush()
        answer: dict[str, Any] = json.loads(_read(source, int.from_bytes(_read(source, _LENGTH), "little")))
        return answer, _read(source, sum(each["size"] for each in answer.get("tensors", ())))


def _read(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


@cache
def _started(package: str, folder: Path) -> _Node:
    """Start Node.js with a package, as it is found from the working folder. Raises MissingDependencyError without."""
    node = shutil.which("node")
    if node is None:
        fix = f"install Node.js (nodejs.org, or your system's packages), then: {_install(package)}"
        raise MissingDependencyError(f"the runtime {package} needs Node.js, which is not installed", fix=fix)
    try:
        return _Node(node, package)
    except _NodeError as error:
        if error.code != "MODULE_NOT_FOUND":
            raise UnsupportedModelError(f"Node.js cannot load {package}", found=str(error)) from error
        what = f"the runtime {package} is not installed"
        found = f"no {package} in node_modules of {folder}, of the folders above it, or in NODE_PATH"
        raise MissingDependencyError(what, found=found, fix=_install(package)) from error


def _install(package: str) -> str:
    return f"npm install --ignore-scripts {package}"


class _Model:
    """A model that a Node.js process keeps as long as this object lives."""

    def __init__(self, node: _Node) -> None:
        self.node, self.number = node, next(node.numbers)

    def __del__(self) -> None:
        self.node.gone.append(self.number)


class OnnxRuntimeNodeRunner(RuntimeRunner):
    """A model in onnxruntime-node; a device is one of its backends, such as ``webgpu``.

    Options are those of an InferenceSession with one word or number. The package has no way to feed an input that has
    a default, nor one of bfloat16.
    """

    __slots__ = ()
    package: ClassVar[str] = "onnxruntime-node"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def refuse_uninstalled(cls, name: str) -> None:
        """Raise MissingDependencyError if Node.js, or the package, is not found from the working folder."""
        _started(cls.package, Path.cwd())

    @classmethod
    def refuse_missing(cls, target: Target) -> None:
        """Raise UsageError for an option that is not known; a device is tried."""
        for key, _ in target.options:
            if key not in _OPTIONS:
                raise UsageError(f"{cls.package} does not take {key}", needed=" or ".join(_OPTIONS))

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Load an ONNX file or the bytes of one; see `open_runner`. In WebAssembly there is one thread."""
        node = _started(cls.package, Path.cwd())
        label = Path(model).name if isinstance(model, str) else "the model"
        options: dict[str, Any] = {"graphOptimizationLevel": "all" if optimize else "disabled"}
        options |= {} if threads is None else {"intraOpNumThreads": threads}
        options |= {} if not target.device else {"executionProviders": [target.device]}
        options |= {key: int(value) if value.isdecimal() else value for key, value in target.options}
        loaded = _Model(node)
        question = {"action": "load", "id": loaded.number, "options": options}
        try:
            (inputs, _, outputs), external = ports_of(model), _external(model)
            if isinstance(model, str):
                node.ask({**question, "file": str(Path(model).absolute()), "external": external})
            else:
                node.ask({**question, "file": None, "size": len(model)}, [model])
        except (_NodeError, ModelFileError) as error:
            raise cannot_load(label, cls.package, error) from error
        return cls(
            label=label,
            name=f"{cls.package}-{target.device or 'cpu'}",
            version=node.version,
            precision=precision,
            inference_precision="float32",
            inputs=inputs,
            optional=(),
            outputs=outputs,
            _session=loaded,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        checked = checked_feeds(feeds, self.inputs)
        arrays = {name: np.require(array, requirements="C") for name, array in checked.items()}
        told = [
            {"name": name, "type": array.dtype.name, "dims": array.shape, "size": array.nbytes}
            for name, array in arrays.items()
        ]
        parts = [array.reshape(-1).view(np.uint8) for array in arrays.values()]
        try:
            question = {"action": "run", "id": self._session.number, "tensors": told}
            answer, payload = self._session.node.ask(question, parts)
        except _NodeError as error:
            raise cannot_run(self.label, self.package, error, arrays) from error
        outputs, at = dict[str, Array](), 0
        for each in answer["tensors"]:
            dtype, memory = np.dtype(each["type"]), bytearray(payload[at : at + each["size"]])
            outputs[each["name"]] = np.frombuffer(memory, dtype).reshape(each["dims"])
            at += each["size"]
        return {port.name: outputs[port.name] for port in self.outputs}


class OnnxRuntimeWebRunner(OnnxRuntimeNodeRunner):
    """A model in onnxruntime-web, as WebAssembly: what a browser runs, on the CPU and in one thread."""

    __slots__ = ()
    package: ClassVar[str] = "onnxruntime-web"


def _external(model: str | bytes) -> list[str]:
    """Return where a file has its weights, relative to its folder."""
    if isinstance(model, bytes):
        return []
    with load_skeleton(Path(model)) as file:
        return [location.as_posix() for location in external_files(file.model, Path(model).parent)]
