"""What the emission of expressions has in common in every format: names, and whose value is whose."""

from collections.abc import Iterable, Mapping

from graph_patterns.expr import Expr


def owners(outputs: Mapping[str, Expr]) -> dict[Expr, str]:
    """Return the output that bears the value of each expression; of several with the same one the first."""
    return {expr: name for name, expr in reversed(list(outputs.items()))}


class Names:
    """Names for what is added: prefix, then the output that it was first needed for, then what it is.

    Parameters
    ----------
    prefix
        Put before every name.
    taken
        Names that are in use already.
    """

    def __init__(self, prefix: str, taken: Iterable[str] = ()) -> None:
        self.scope = ""
        self._prefix = prefix
        self._taken = set(taken)

    def unique(self, what: str) -> str:
        """Return a name that was not given before, and remember it."""
        base = f"{self._prefix}{self.scope}/{what}"
        name, count = base, 1
        while name in self._taken:
            name, count = f"{base}_{count}", count + 1
        self._taken.add(name)
        return name
