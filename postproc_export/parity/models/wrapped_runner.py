"""A runner around another one, to change some of what it takes or gives."""

from dataclasses import dataclass

from postproc_export.runtimes import PortInfo, Precision, Runner


@dataclass(frozen=True, slots=True)
class WrappedRunner:
    """All of a runner but `run`, as another one has it.

    Parameters
    ----------
    inner
        The runner of a file, or of a tail alone.
    """

    inner: Runner

    @property
    def name(self) -> str:
        """Runtime and device."""
        return self.inner.name

    @property
    def version(self) -> str:
        """Version of the runtime."""
        return self.inner.version

    @property
    def precision(self) -> Precision:
        """The precision that was asked for."""
        return self.inner.precision

    @property
    def inference_precision(self) -> str:
        """What the runtime says it computes in."""
        return self.inner.inference_precision

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that have to be fed."""
        return self.inner.inputs

    @property
    def optional(self) -> tuple[PortInfo, ...]:
        """The inputs that need not be fed."""
        return self.inner.optional

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs."""
        return self.inner.outputs
