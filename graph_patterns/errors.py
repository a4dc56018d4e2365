"""The errors of `graph_patterns`.

ExplainedError                  what and where / found / needed / fix, kept as data
└── GraphPatternError           base of this package
    ├── UnsupportedOpsetError   the graph's opset or IR version cannot express a step   (ValueError)
    ├── ModelFileError          a model file that cannot be read or written as asked    (ValueError)
    └── SharedValueError        a value to be removed has a reader outside the match    (ValueError)
"""


class ExplainedError(Exception):
    """An error that says what is wrong and where, what was found, what is needed and how to fix it.

    Parameters
    ----------
    what
        One sentence that names the object and the place.
    found, needed, fix
        The three lines below it; each is left out where it would add nothing.
    """

    def __init__(
        self, what: str, *, found: str | None = None, needed: str | None = None, fix: str | None = None
    ) -> None:
        self.what = what
        self.found = found
        self.needed = needed
        self.fix = fix
        rows = (("found", found), ("needed", needed), ("fix", fix))
        lines = [f"  {label + ':':<8} {text}" for label, text in rows if text is not None]
        super().__init__("\n".join([what, *lines]))

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The four texts in this order."""
        return self.what, self.found, self.needed, self.fix


class GraphPatternError(ExplainedError):
    """Base of every error that `graph_patterns` raises on purpose."""


class UnsupportedOpsetError(GraphPatternError, ValueError):
    """The graph's opset or IR version has no form of an operator that is asked for."""


class ModelFileError(GraphPatternError, ValueError):
    """A model file is damaged, too large, or refers to files that it must not refer to."""


class SharedValueError(GraphPatternError, ValueError):
    """A value that is to be removed is read by a node outside the match."""
