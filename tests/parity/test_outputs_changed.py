"""A file whose outputs were renamed, removed, reordered or exchanged: `check` names them, whatever it is fed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
import torch
from checks import check_briefly
from shipped_tails import IMAGE, PIXEL, images, stats_behind

from postproc_export import CalibrationStats, attach_postprocessing
from postproc_export.runtimes.openvino import openvino_core

OURS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
TAILS = ["gaussian:sigma=1", "gate", "points:strict=0.3"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "raw": {"keep_raw": True},
    "packed": {"layout": "packed"},
    "around": {"tail": TAILS},
}
FED = {"input": images((3, 3, 20, 24))}


class Net(torch.nn.Module):
    """The detector of `hosts.score_and_map` in PyTorch."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return score and map."""
        weights = torch.tensor(hosts.CHANNEL_WEIGHTS).reshape(1, 3, 1, 1)
        anomaly_map = (image * weights).sum(dim=1, keepdim=True) + hosts.BIAS
        return {"pred_score": anomaly_map.amax(dim=(2, 3)), "anomaly_map": anomaly_map}


def made(folder: Path, form: str, kind: str) -> tuple[Path, Path]:
    """Return a raw file and an attached one."""
    host, options = hosts.score_and_map(), FORMS[form]
    raw = hosts.write(host, folder / f"raw.{kind}")
    stats = stats_behind(options["tail"]) if "tail" in options else CalibrationStats(image=IMAGE, pixel=PIXEL)
    return raw, attach_postprocessing(raw, stats, **options).output


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give outputs and the values that they are other names."""
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


def changed(path: Path, change: str, outputs: list[str]) -> None:
    """Change the outputs of a file of either format."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        if change == "renamed":
            renamed(model, {name: f"other_{name}" for name in outputs})
        elif change == "exchanged":
            renamed(model, dict(zip(outputs, reversed(outputs), strict=True)))
        else:
            ports = [port for port in model.graph.output if port.name not in outputs]
            ports = ports if change == "removed" else list(model.graph.output)[::-1]
            del model.graph.output[:]
            model.graph.output.extend(ports)
        onnx.save(model, path)
        return
    import openvino

    model = openvino_core(purpose="a test").read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    for name, other in zip(outputs, reversed(outputs), strict=True):
        if change == "removed":
            model.remove_result(model.output(name).get_node())
        else:
            model.output(name).get_tensor().set_names({f"other_{name}"} if change == "renamed" else {f"to {other}"})
    if change == "exchanged":
        for name in outputs:
            model.output(f"to {name}").get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def cases() -> Iterator[Any]:
    """Yield form, format, change and outputs."""
    for kind in ("onnx", "xml"):
        for change in ("renamed", "removed"):
            yield from (("plain", kind, change, [name]) for name in (OURS if kind == "onnx" else OURS[::3]))
            if kind == "onnx" or change == "renamed":  # an IR without any result is no model
                yield "packed", kind, change, ["output"]
            yield "around", kind, change, ["pred_label_strict"]
            yield from (("around", kind, change, [name]) for name in ("anomaly_map", "pred_mask"))
            yield "plain", kind, change, list(OURS[1:])
        for form in ("plain", "around"):
            yield form, kind, "exchanged", ["pred_score", "anomaly_map"]
            yield form, kind, "exchanged", ["pred_label", "pred_mask"]
    yield from ((form, "onnx", "reordered", []) for form in ("plain", "raw", "around"))


@pytest.mark.parametrize(("form", "kind", "change", "outputs"), list(cases()))
def test_what_became_of_the_outputs_is_a_miss(
    form: str, kind: str, change: str, outputs: list[str], tmp_path: Path
) -> None:
    """Not a traceback and not exit 2: what is missing is named, and the stages that need it say so."""
    raw, path = made(tmp_path, form, kind)
    changed(path, change, outputs)
    report = check_briefly(path, raw=raw, inputs=FED, torch=Net(), count=200)
    missed = {check.name: check.message for check in report.failed}
    found = "; ".join(missed[name] for name in ("outputs", "decision/outputs") if name in missed)
    assert found, report.describe()
    if change in ("renamed", "removed"):
        assert f"output '{outputs[0]}' is missing" in found
    assert not any(np.isnan(check.details.get("largest_error") or 0.0) for check in report.checks)
