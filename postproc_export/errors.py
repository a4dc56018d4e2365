"""The errors of `postproc_export`; every message says what and where, found, needed and fix.

PostprocError                everything raised on purpose; the command line turns it into exit code 2
├── GraphPatternError        a graph or a model file that `graph_patterns` refuses
├── UsageError               options that contradict each other or the model   (ValueError)
├── UnsupportedModelError    a model whose outputs cannot be post-processed    (ValueError)
├── CalibrationError         validation outputs that cannot be calibrated on   (ValueError)
├── MetadataError            statistics or records that are not legal          (ValueError)
├── FileError                a path that cannot be read or written as asked    (OSError)
└── MissingDependencyError   a package that is not installed                   (ImportError)
"""

from importlib import import_module
from types import ModuleType
from typing import Final, TypeAlias

from graph_patterns.expr import ExplainedError

PostprocError: TypeAlias = ExplainedError
"""Base of every error that either package raises on purpose: who uses both catches one class."""


class UsageError(PostprocError, ValueError):
    """Options that contradict each other, the statistics or the model."""


class UnsupportedModelError(PostprocError, ValueError):
    """A model whose outputs cannot be post-processed as asked."""


class CalibrationError(PostprocError, ValueError):
    """Validation outputs that a threshold or a range cannot be calibrated on."""


class MetadataError(PostprocError, ValueError):
    """Statistics, sensitivities or a record in a file that are not legal."""


class FileError(PostprocError, OSError):
    """A path that cannot be read or written as asked."""


class MissingDependencyError(PostprocError, ImportError):
    """A package that is not installed and is needed for what is asked."""


_DISTRIBUTIONS: Final = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "vl_convert": "vl-convert-python",
}


def install(module: str) -> str:
    """Return the command that installs what a module is from, by a name that every index knows."""
    name = module.split(".")[0]
    return f"pip install {_DISTRIBUTIONS.get(name, name.replace('_', '-'))}"


def module_of(distribution: str) -> str:
    """Return the module that a package installs, by the name that pip knows."""
    known = {name: module for module, name in _DISTRIBUTIONS.items()}
    return known.get(distribution, distribution.replace("-", "_"))


def require(module: str, *, purpose: str, extra: str | None = None) -> ModuleType:
    """Import a module that not every installation has, or say what to install and what for.

    `extra` is the one of ours that brings it, with all else that is needed: where this package is installed, of a wheel
    or a checkout, pip takes that for it and asks no index.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package '{module.split('.')[0]}', which is not installed",
            fix=install(module) if extra is None else f'pip install "postproc-export[{extra}]"',
        ) from error
