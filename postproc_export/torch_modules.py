"""A PyTorch module named as MODULE:FACTORY, and which of its outputs is the raw score and which the raw map."""

import importlib
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from postproc_export.errors import MissingDependencyError, UnsupportedModelError, UsageError, require
from postproc_export.ports import RESULT_NAMES, PortInfo, Selection, select_outputs
from postproc_export.stats import Level
from postproc_export.validation import close_to

if TYPE_CHECKING:
    import torch

_PURPOSE = "running a PyTorch module"
_FORM = "MODULE:FACTORY, such as package.models:build_detector"


def load_module(spec: "str | torch.nn.Module") -> "tuple[torch.nn.Module, tuple[str, ...]]":
    """Return a module on the CPU in evaluation mode, and one sentence for each thing that was changed of it.

    `spec` is the module itself, or ``"package.module:factory"``: a function or a class without arguments, or a module;
    it may be dotted (``Detector.pretrained``). Modules are found as ``python -m`` finds them: the current folder comes
    first. Raises UsageError with the reason, and MissingDependencyError if torch is not installed.
    """
    torch = require("torch", purpose=_PURPOSE)
    if not isinstance(spec, str):
        return _ready(spec, type(spec).__name__)
    name, _, factory = spec.partition(":")
    if not name or not all(part.isidentifier() for part in (*name.split("."), *factory.split("."))):
        raise UsageError(f"'{spec}' names no PyTorch module", needed=_FORM)
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        made = _attribute(_imported(name, spec), factory, spec)
        if not isinstance(made, torch.nn.Module):
            made = _called(made, spec)
    finally:
        if folder in sys.path:  # what was imported may have changed the path, too
            sys.path.remove(folder)
    if not isinstance(made, torch.nn.Module):
        raise UsageError(f"{spec} gives no torch.nn.Module", found=type(made).__name__, needed=_FORM)
    return _ready(made, spec)


def _ready(module: "torch.nn.Module", name: str) -> "tuple[torch.nn.Module, tuple[str, ...]]":
    is_training = any(part.training for part in module.modules())
    remark = f"{name} was in training mode, and was put into evaluation mode"
    return module.cpu().eval(), (remark,) if is_training else ()


def named_tensors(outputs: Any) -> "dict[str, torch.Tensor]":
    """Return every tensor among what a forward call gave, in order, by its key, attribute or position.

    What is nested gets dotted names, and a tensor alone is called ``"output"``. None and what is no tensor is left out.
    Nothing but the structure is looked at, so this works while a module is traced, too.
    """
    import torch

    return {"output": outputs} if isinstance(outputs, torch.Tensor) else dict(_leaves(outputs, ""))


def identify_outputs(
    outputs: Any,
    *,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    calibrated: Collection[Level] | None = None,
    shown: "Callable[[PortInfo], PortInfo] | None" = None,
) -> Selection:
    """Find the raw score and the raw map in what a forward call gave for an example, by the rules of `ports`.

    The options are those of `select_outputs`; `shown` says what custom steps make of an output. The ports that are
    returned bear the names of `named_tensors`; `raw_tensors` takes them out of every later call. Raises UsageError or
    UnsupportedModelError if there is no score and no map, several could be one, or the module normalises and decides by
    itself.
    """
    tensors = named_tensors(outputs)
    if not tensors:
        raise UnsupportedModelError(
            "the PyTorch module gives no tensor",
            found=type(outputs).__name__,
            needed="a raw score, a raw anomaly map, or both",
        )
    if decided := [name for name in RESULT_NAMES if name in tensors]:
        raise UnsupportedModelError(
            f"the PyTorch module gives '{decided[0]}', so its scores are post-processed already",
            found=", ".join(tensors),
            needed="a module with raw outputs",
            fix="let the factory return the part of the module before its post-processing",
        )
    # one call does not tell whether the batch size is fixed
    shapes = {name: (None, *tensor.shape[1:]) if tensor.ndim else () for name, tensor in tensors.items()}
    ports = [PortInfo(name, str(tensor.dtype).removeprefix("torch."), shapes[name]) for name, tensor in tensors.items()]
    return select_outputs(
        ports if shown is None else [*map(shown, ports)],
        image_output=image_output,
        pixel_output=pixel_output,
        calibrated=calibrated,
    )


def raw_tensors(outputs: Any, selection: Selection) -> "dict[Level, torch.Tensor]":
    """Return the raw score and map that `identify_outputs` found, from what another call of the module gave.

    Raises UnsupportedModelError if an output is not there any more: the module returns other things for other inputs.
    """
    tensors = named_tensors(outputs)
    wanted = {level: port.name for level, port in selection.raw.items()}
    missing = [name for name in wanted.values() if name not in tensors]
    if missing:
        raise UnsupportedModelError(
            f"the PyTorch module gave no '{missing[0]}' this time", found=", ".join(tensors) or "no tensor"
        )
    return {level: tensors[name] for level, name in wanted.items()}


def reason_of(error: BaseException) -> str:
    """Return the type and text of somebody else's error in one line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (raised at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def _imported(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        unknown = error.name if isinstance(error, ModuleNotFoundError) else None
        if unknown is not None and f"{name}.".startswith(f"{unknown}."):
            found, fix = f"no module '{unknown}'", f"run it in the folder that holds it ({Path.cwd()} was searched)"
            raise UsageError(f"cannot import {spec}", found=found, needed=_FORM, fix=fix) from error
        raise UsageError(f"cannot import {spec}", found=reason_of(error)) from error


def _attribute(module: ModuleType, dotted: str, spec: str) -> Any:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            near = close_to(part, dir(found), count=3) or [name for name in dir(found) if name[0] != "_"][:10]
            raise UsageError(f"{spec}: there is no '{part}'", found=", ".join(near) or "nothing public", needed=_FORM)
        found = getattr(found, part)
    return found


def _called(factory: Any, spec: str) -> Any:
    if not callable(factory):
        raise UsageError(f"{spec} cannot be called", found=type(factory).__name__, needed=_FORM)
    try:
        return factory()
    except MissingDependencyError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{spec}() failed", found=reason_of(error), needed="a call without arguments that gives a torch.nn.Module"
        ) from error


def _leaves(value: Any, name: str) -> "Iterator[tuple[str, torch.Tensor]]":
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, item in _parts(value):
        yield from _leaves(item, f"{name}.{key}" if name else key)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        yield from zip(names, value, strict=True)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    elif hasattr(value, "__dict__") and not callable(value):
        yield from vars(value).items()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with a number of threads in each calling thread; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)
