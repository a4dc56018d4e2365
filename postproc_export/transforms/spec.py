"""How a tail of one's own is named: ``gaussian:sigma=4`` where it is shipped, ``package.module:Class`` for yours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from postproc_export.errors import MetadataError, UsageError

BEFORE: Final = ("gaussian", "top-k", "resize", "thresholds")
BEHIND: Final = ("gate", "points")
SHIPPED: Final = (*BEFORE, *BEHIND)
NO_GRAPH_FORM: Final[Mapping[str, str]] = dict.fromkeys(
    ("mebin", "connected-components"),
    "connected components (as in MEBin) are found by following neighbours until nothing changes: how many steps that "
    "takes depends on the values, and neither ONNX nor OpenVINO has an operator for it",
)


@dataclass(frozen=True, slots=True)
class TailSpec:
    """One tail of one's own: its name, and its parameters as JSON values.

    Parameters
    ----------
    name
        One of `SHIPPED`, or ``"package.module:Class"``.
    parameters
        As they stand in statistics and in the record of a model.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_shipped(self) -> bool:
        """Whether the package itself has it."""
        return self.name in SHIPPED

    @property
    def is_code(self) -> bool:
        """Whether it names a class, which is imported only where a caller names it, too: never for a file alone."""
        return not self.is_shipped and ":" in self.name

    @property
    def changes_values(self) -> bool:
        """Whether it stands before the threshold, so that statistics have to be those behind it."""
        return self.name not in BEHIND

    @property
    def text(self) -> str:
        """How the command line takes it; a table of numbers is shortened."""
        shown = ",".join(f"{key}={_short(value)}" for key, value in self.parameters.items())
        return f"{self.name}:{shown}" if shown else self.name

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that statistics and records hold."""
        return {"name": self.name, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Self:
        """Read the JSON object.

        Raises
        ------
        MetadataError
            If it is not legal.
        """
        name = document.get("name") if isinstance(document, Mapping) else None
        parameters = document.get("parameters", {}) if isinstance(document, Mapping) else None
        if not isinstance(name, str) or not isinstance(parameters, Mapping):
            raise MetadataError(f"{where}: not a tail of one's own", found=repr(document)[:60])
        if "file" in parameters:  # the command line may name a file to read; a record holds what was read
            raise MetadataError(f"{where}: the tail '{name}' names a file", needed="its values themselves")
        return cls(name, dict(parameters))


def parse_tail(text: str) -> TailSpec:
    """Read ``name``, ``name:key=value,key=value`` or ``package.module:Class``; values stay text.

    Raises
    ------
    UsageError
        If it is of none of these forms, or has no graph form.
    """
    name, _, rest = text.partition(":")
    if name.lower() in NO_GRAPH_FORM:
        raise UsageError(f"the tail '{name}' has no graph form", found=NO_GRAPH_FORM[name.lower()])
    if name not in SHIPPED:
        if rest and "=" not in rest:
            return TailSpec(text)
        raise UsageError(
            f"the tail '{text}' is not known", needed=f"{', '.join(SHIPPED)}, or a class as package.module:Class"
        )
    pairs = [item.partition("=") for item in rest.split(",")] if rest else []
    if any(not key or not value for key, _, value in pairs):
        raise UsageError(f"the tail '{text}' cannot be read", needed=f"{name}:key=value,key=value")
    keys = [key for key, _, _ in pairs]
    if len(set(keys)) != len(keys):
        raise UsageError(f"the tail '{text}' has a parameter twice", found=", ".join(keys))
    return TailSpec(name, {key: value for key, _, value in pairs})


def parse_tails(texts: str | Sequence[str]) -> tuple[TailSpec, ...]:
    """Read several, in the order in which they are applied."""
    return tuple(parse_tail(text) for text in ([texts] if isinstance(texts, str) else texts))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
