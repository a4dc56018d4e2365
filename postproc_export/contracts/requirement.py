"""What a program that runs a model asks of its file, one requirement at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One requirement, and what a file has there.

    Parameters
    ----------
    name
        What it is about, such as ``"input batch"``.
    holds
        Whether the file meets it; None where the file does not tell.
    found
        What the file has.
    needed
        What the program needs, and why.
    fix
        How to meet it.
    """

    name: str
    holds: bool | None
    found: str
    needed: str
    fix: str = ""

    def describe(self) -> str:
        """Return one line."""
        if self.holds:
            return self.found
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"found {self.found}; needed: {self.needed}{fix}"

    def to_json(self) -> dict[str, Any]:
        """Return the details of the JSON report."""
        return {"holds": self.holds, "found": self.found, "needed": self.needed, "fix": self.fix or None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractReport:
    """How a file fits a program; truthy where nothing that could be judged is missed.

    Parameters
    ----------
    contract
        The program's short name.
    program
        Its full name and the version whose code was read.
    requirements
        All requirements.
    """

    contract: str
    program: str
    requirements: tuple[Requirement, ...]

    def __bool__(self) -> bool:
        return not any(requirement.holds is False for requirement in self.requirements)

    @property
    def missed(self) -> tuple[Requirement, ...]:
        """The requirements that the file does not meet."""
        return tuple(item for item in self.requirements if item.holds is False)

    def not_judged(self) -> Iterator[str]:
        """Yield what the file does not tell, one sentence each."""
        for item in self.requirements:
            if item.holds is None:
                yield f"{self.program}, {item.name}: {item.found}; needed: {item.needed}"
