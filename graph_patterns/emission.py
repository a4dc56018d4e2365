"""What the emission of expressions has in common in every format: names."""

from collections.abc import Iterable


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
