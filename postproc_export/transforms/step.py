"""A transform of raw values: what the shipped ones have in common, and how they read their parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

from graph_patterns.expr import Expr
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes.protocol import PortInfo

if TYPE_CHECKING:
    from postproc_export.transforms.modules import TailTransform

ROUNDING: Final = 2.0**-24
"""Largest relative error of one rounding to float32."""


@dataclass(frozen=True, slots=True)
class Values:
    """The raw values at one point of a chain: float32 expressions, and what is declared of them; None where none is.

    Parameters
    ----------
    score, map
        The expressions.
    score_port, map_port
        Name, element type and shape.
    image, image_port
        The model's input, for its height and width alone.
    """

    score: Expr | None
    map: Expr | None
    score_port: PortInfo | None
    map_port: PortInfo | None
    image: Expr | None = None
    image_port: PortInfo | None = None

    def need_map(self, name: str) -> tuple[Expr, PortInfo, int]:
        """Return the map, its port and its rank.

        Raises
        ------
        UnsupportedModelError
            If there is none.
        """
        if self.map is None or self.map_port is None or self.map_port.rank is None:
            raise UnsupportedModelError(f"the tail '{name}' needs an anomaly map", found="a model with a score only")
        return self.map, self.map_port, self.map_port.rank


class Transform(Protocol):
    """A step before the threshold."""

    name: ClassVar[str]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as JSON values."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read parameters, as text of the command line or as JSON values."""

    def apply(self, values: Values) -> Values:
        """Return the values behind it, or refuse a model that it does not fit."""

    def module(self) -> "TailTransform":
        """Return its eager twin."""

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Return the largest magnitude behind it, and what two implementations in float32 may differ by more."""


def refuse_unknown(name: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse parameters that a transform does not have.

    Raises
    ------
    UsageError
        If there is one.
    """
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(f"the tail '{name}' has no parameter '{unknown[0]}'", needed=", ".join(known) or "none")


def number(name: str, key: str, value: Any, *, low: float, high: float) -> float:
    """Return a parameter that is a number in a range.

    Raises
    ------
    UsageError
        If it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not low <= found <= high:
        raise UsageError(f"the tail '{name}': {key} is {value!r}", needed=f"a number in [{low:g}, {high:g}]")
    return found


def whole(name: str, key: str, value: Any) -> int:
    """Return a parameter that is a whole number of at least 1.

    Raises
    ------
    UsageError
        If it is none.
    """
    text = str(value)
    if not text.isdecimal() or not 1 <= int(text) <= 2**31 - 1:
        raise UsageError(f"the tail '{name}': {key} is {value!r}", needed="a whole number of at least 1")
    return int(text)
