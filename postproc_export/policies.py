"""Operating points and ranges: their text form, with every number taken as an exact decimal.

| text           | the threshold                                                                        |
| -------------- | ------------------------------------------------------------------------------------ |
| `f1`           | the highest F1; of equal ones the lowest threshold                                    |
| `fbeta=B`      | the highest F-beta                                                                    |
| `recall=R`     | the highest threshold with recall >= R                                                |
| `precision=P`  | the lowest threshold with precision >= P                                              |
| `fpr=F`        | the lowest threshold with false-positive rate <= F                                    |
| `quantile=Q`   | the inverted-CDF quantile of the normal values                                        |
| `value=T`      | T itself, raw                                                                         |
| `range=U`      | min + U (max - min)                                                                   |
| `percentile=Q` | the inverted-CDF percentile of all values, such as 95                                 |
| `percentile=Q,factor=F` | F times that, rounded to float32                                             |

| text           | min and max                                                                           |
| -------------- | ------------------------------------------------------------------------------------- |
| `extremes`     | the lowest and the highest value seen                                                 |
| `quantile=A,B` | the inverted-CDF quantiles of all values                                              |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from typing import Final, Literal, NamedTuple, Self

from postproc_export.errors import UsageError
from postproc_export.float32 import nearest

Kind = Literal["f1", "fbeta", "recall", "precision", "fpr", "quantile", "value", "range", "percentile"]
Class = Literal["normal", "anomalous"]

_RATIO: Final = "a decimal in [0, 1]"
_WEIGHT: Final = "a decimal above 0 and at most 1000"
_PERCENT: Final = "a decimal in [0, 100]"
_BOTH: Final = ("normal", "anomalous")
_KINDS: Final[Mapping[Kind, tuple[tuple[Class, ...], str]]] = {  # the classes that a kind needs, and its number
    "f1": (_BOTH, ""),
    "fbeta": (_BOTH, _WEIGHT),
    "recall": (("anomalous",), _RATIO),
    "precision": (_BOTH, _RATIO),
    "fpr": (("normal",), _RATIO),
    "quantile": (("normal",), _RATIO),
    "value": ((), "a decimal"),
    "range": ((), "a decimal"),
    "percentile": ((), _PERCENT),
}
RATES: Final[tuple[Kind, ...]] = ("recall", "precision", "fpr")
"""The policies that ask for a rate."""

_USUAL: Final = {"fbeta": "2", "fpr": "0.01", "quantile": "0.995", "value": "1.5", "range": "0.5", "percentile": "95"}
_DECIMAL: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")

MEBIN: Final = "a threshold for each image, at which the number of connected parts of its map stays the same longest"
"""How MEBin decides masks, which neither one threshold nor a graph of ONNX or OpenVINO can."""

COMPARED: Final = (
    "f1",
    "fbeta=2",
    "fbeta=0.5",
    "recall=1",
    "recall=0.99",
    "precision=0.99",
    "fpr=0.01",
    "fpr=0.001",
    "quantile=0.995",
)


@dataclass(frozen=True, slots=True)
class Policy:
    """One operating point."""

    kind: Kind  # which rule chooses the threshold
    parameter: Fraction  # its number, exact; 1 for `f1`, and a share of 1 for `percentile`
    text: str = field(compare=False)  # the text form, which the statistics record
    factor: Fraction = Fraction(1)  # of `percentile`

    @property
    def needs(self) -> tuple[Class, ...]:
        """The classes that must be present; without one of them the one-class rule decides."""
        return _KINDS[self.kind][0]

    @property
    def is_fixed(self) -> bool:
        """Whether the threshold follows without ground truth: from the number alone, or from all values alike."""
        return not self.needs

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `f1`, `fbeta=2`, `recall=0.99`, ...

        Raises a UsageError if the name is not known, or the number is missing, not a plain decimal or out of its range.
        """
        name, _, number = str(text).strip().partition("=")
        if name.strip().lower() == "mebin":
            needed, fix = "one threshold for all images", "f1, or another policy"
            raise UsageError("the policy 'mebin' has no threshold to attach", found=MEBIN, needed=needed, fix=fix)
        kind = next((kind for kind in _KINDS if kind == name.strip().lower()), None)
        if kind is None:
            known = ", ".join(kind if kind == "f1" else f"{kind}=NUMBER" for kind in _KINDS)
            raise UsageError(f"unknown policy {text!r}", needed=known, fix="such as f1 or recall=0.99")
        if kind == "f1":
            if number or "=" in text:
                raise UsageError("the policy 'f1' takes no number", found=repr(text), fix="fbeta=B weighs recall by B")
            return cls("f1", Fraction(1), "f1")
        return cls._percentile(number, text) if kind == "percentile" else cls._numbered(kind, number.strip(), text)

    @classmethod
    def _numbered(cls, kind: Kind, number: str, text: str) -> Self:
        fix = f"such as {kind}={_USUAL.get(kind, '0.99')}"
        exact = _exact_decimal(number, text=text, form=f"{kind}=NUMBER", legal=_KINDS[kind][1], fix=fix)
        return cls(kind, exact, f"{kind}={number}")

    @classmethod
    def _percentile(cls, numbers: str, text: str) -> Self:
        number, comma, rest = (part.strip() for part in numbers.partition(","))
        found = cls._numbered("percentile", number, text)
        found = replace(found, parameter=found.parameter / 100)
        if not comma:
            return found
        word, _, factor = (part.strip() for part in rest.partition("="))
        form, fix = "percentile=Q,factor=F", "such as percentile=95,factor=1.421"
        if word.lower() != "factor":
            raise UsageError(f"the policy {text!r} cannot be read", found=rest or "nothing", needed=form, fix=fix)
        exact = _exact_decimal(factor, text=text, form=form, legal=_WEIGHT, fix=fix)
        return replace(found, text=f"{found.text},factor={factor}", factor=exact)


def _exact_decimal(number: str, *, text: str, form: str, legal: str, fix: str) -> Fraction:
    if not _DECIMAL.fullmatch(number):
        raise UsageError(f"the policy {text!r} has no number that can be read", needed=f"{form}, {legal}", fix=fix)
    value = Fraction(Decimal(number))
    is_legal = {_RATIO: 0 <= value <= 1, _WEIGHT: 0 < value <= 1000, _PERCENT: 0 <= value <= 100}.get(legal, True)
    if form.startswith("value") and not isfinite(nearest(value)):
        needed = "at most 3.4028235e38"
        raise UsageError(f"the policy {text!r} is no finite float32", found=number, needed=needed, fix=fix)
    if not is_legal:
        what = f"the number of the policy {text!r} is out of range"
        raise UsageError(what, found=number, needed=legal, fix=fix)
    return value


EXTREMES: Final = "extremes"


class Range(NamedTuple):
    """Which values of a level are its `min` and `max`."""

    shares: tuple[Fraction, Fraction]  # 0 <= A < B <= 1, exact: the quantiles that they are
    text: str  # the text form, which the statistics record

    @property
    def is_extremes(self) -> bool:
        """Whether they are the lowest and the highest value seen."""
        return self.text == EXTREMES

    @property
    def left_out(self) -> Fraction:
        """The share of the values that lies outside."""
        return 1 - (self.shares[1] - self.shares[0])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `extremes` or `quantile=A,B`; raises a UsageError for anything else, and unless 0 <= A < B <= 1."""
        name, _, rest = str(text).strip().partition("=")
        numbers = [part.strip() for part in rest.split(",")]
        if name.strip().lower() == EXTREMES and not rest:
            return cls((Fraction(0), Fraction(1)), EXTREMES)
        if name.strip().lower() != "quantile" or len(numbers) != 2 or not all(map(_DECIMAL.fullmatch, numbers)):
            needed = f"{EXTREMES}, or quantile=A,B with two decimals"
            raise UsageError(f"the range {text!r} is not known", needed=needed, fix="such as quantile=0.01,0.99")
        low, high = (Fraction(Decimal(number)) for number in numbers)
        if not 0 <= low < high <= 1:
            raise UsageError(
                f"the numbers of the range {text!r} are out of range", found=rest.strip(), needed="0 <= A < B <= 1"
            )
        return cls((low, high), f"quantile={','.join(numbers)}")
