"""The errors of `postproc_export`; every message says what and where, found, needed and fix.

ExplainedError (graph_patterns.expr)
└── PostprocError                base of this package; the command line turns it into exit code 2
    ├── UsageError               options that contradict each other or the model   (ValueError)
    ├── UnsupportedModelError    a model whose outputs cannot be post-processed    (ValueError)
    ├── CalibrationError         validation outputs that cannot be calibrated on   (ValueError)
    ├── MetadataError            statistics or records that are not legal          (ValueError)
    ├── FileError                a path that cannot be read or written as asked    (OSError)
    └── MissingDependencyError   an extra that is not installed                    (ImportError)
"""

from importlib import import_module
from types import ModuleType

from graph_patterns.expr import ExplainedError


class PostprocError(ExplainedError):
    """Base of every error that `postproc_export` raises on purpose."""


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
    """A package of an extra that is not installed."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional extra, or say which extra to install and what for."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package '{module.split('.')[0]}', which is not installed",
            fix=f"pip install 'postproc-export[{extra}]'",
        ) from error
