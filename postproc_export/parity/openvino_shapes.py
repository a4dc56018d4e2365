"""Whether a graph allows the shapes that it is about to be fed, asked of OpenVINO before it runs.

OpenVINO's CPU plugin does not compare sizes at run time: a Reshape to a fixed shape that does not fit its input reads
and writes beyond its buffers, which gives random numbers or ends the process. Its shape inference on static shapes does
compare them, so that is asked first.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import openvino_core


def shape_problem(model: Any, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Return why a model cannot run on arrays of these shapes; None where it can.

    Parameters
    ----------
    model
        The path of a file, the bytes of an ONNX model, or an `openvino.Model`, which is left as it is.
    feeds
        Arrays by input name.
    """
    core = openvino_core(purpose="checking shapes")
    is_model = not isinstance(model, (str, bytes)) and hasattr(model, "clone")
    reshaped = model.clone() if is_model else core.read_model(model)
    shapes = {port: list(feeds[name].shape) for port in reshaped.inputs for name in port.get_names() if name in feeds}
    try:
        reshaped.reshape(shapes)
    except RuntimeError as error:
        fed = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        return f"the graph does not allow {fed}: {first_reason(error)}"
    return None
