"""Attaching as a pass of OpenVINO's pass manager."""

from typing import TYPE_CHECKING, Any

from postproc_export.integrations.in_memory import attach_to_openvino
from postproc_export.runtimes.openvino import import_openvino
from postproc_export.settings import as_stats
from postproc_export.stats import CalibrationStats

if TYPE_CHECKING:
    from pathlib import Path


def openvino_pass(stats: "CalibrationStats | str | Path", **options: Any) -> Any:
    """Return an `openvino.passes.ModelPass` that attaches post-processing to the models it is run on.

    Parameters
    ----------
    stats
        Statistics, or the path of a statistics file.
    options
        See `attach_to_openvino`.

    Returns
    -------
    openvino.passes.ModelPass
        For `openvino.passes.Manager.register_pass`. After a run its attribute `attached` holds what was done.

    Raises
    ------
    MissingDependencyError
        If OpenVINO is not installed.
    FileError, MetadataError, UsageError
        If the statistics cannot be read. Running the pass raises what `attach_to_openvino` raises.

    Notes
    -----
    The class is made here, since its base comes from OpenVINO, which this package imports only when it is needed.
    """
    import_openvino(purpose="a pass for OpenVINO's pass manager")
    from openvino.passes import ModelPass

    statistics = as_stats(stats)

    class AttachPostprocessing(ModelPass):  # type: ignore[misc]  # OpenVINO is not typed
        def __init__(self) -> None:
            super().__init__()
            self.attached: Any = None

        def run_on_model(self, model: Any) -> bool:
            self.attached = attach_to_openvino(model, statistics, **options)
            return True

    return AttachPostprocessing()
