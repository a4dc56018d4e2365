"""`PostProcessor` under `torch.export`, and in half precision through both of torch's exporters to ONNX."""

import io
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from eager_outputs import BOTH, NAN, agree

from postproc_export.eager import PostProcessed, PostProcessor
from postproc_export.errors import UnsupportedModelError
from postproc_export.process import quiet_logger
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, LevelStats, decision_boundary

N, H, W = torch.export.Dim("n"), torch.export.Dim("h"), torch.export.Dim("w")
GRAPHS = {
    "both": ([3, 1], [3, 1, 8, 9], ({0: N}, {0: N, 2: H, 3: W})),
    "flat": ([3], [3, 8, 9], ({0: N}, {0: N, 1: H, 2: W})),
    "score": ([3], None, ({0: N}, None)),
    "map": (None, [3, 1, 8, 9], (None, {0: N, 2: H, 3: W})),
    "scalar": ([], [1, 1, 8, 9], ({}, {2: H, 3: W})),
}


def raw_inputs(score: list[int] | None, raw_map: list[int] | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return random raw outputs of these shapes; the first map, where there are several, holds a NaN."""
    generator = torch.Generator().manual_seed(4)
    scores = None if score is None else torch.rand(score, generator=generator) * 2
    maps_ = None if raw_map is None else torch.rand(raw_map, generator=generator) * 6
    if maps_ is not None and len(maps_) > 1:
        maps_[0, ..., -1] = NAN
    return scores, maps_


@pytest.mark.parametrize(
    ("graph", "strict"), [*((graph, False) for graph in GRAPHS), ("both", True)], ids=[*GRAPHS, "both-strict"]
)
def test_torch_export_keeps_every_axis_dynamic(graph: str, strict: bool) -> None:
    """The exported program gives the module's outputs at another batch and map size, NaN included."""
    score, raw_map, dynamic = GRAPHS[graph]
    module = PostProcessor(BOTH, image_sensitivity=0.3)
    program = torch.export.export(module, raw_inputs(score, raw_map), dynamic_shapes=dynamic, strict=strict)
    other = raw_inputs(score and [5, *score[1:]], raw_map and [5 if score != [] else 1, *raw_map[1:-2], 4, 7])
    found = program.module()(*other)
    assert isinstance(found, PostProcessed)
    assert agree(found, module(*other))


def test_exported_programs_can_be_saved() -> None:
    """`torch.export.save` and `load` keep the named outputs."""
    module = PostProcessor(BOTH)
    program = torch.export.export(module, (torch.zeros(2),))
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    loaded = torch.export.load(stream).module()(torch.tensor([0.5, 1.0]))
    assert agree(loaded, module(torch.tensor([0.5, 1.0])))


@pytest.mark.parametrize("score", [[3, 2], [2]], ids=["two-values", "other-batch"])
def test_static_shapes_are_checked_while_a_graph_is_traced(score: list[int]) -> None:
    """What is known to be wrong is refused at export."""
    with pytest.raises(UnsupportedModelError, match="pred_score"):
        torch.export.export(PostProcessor(BOTH), (torch.zeros(score), torch.zeros(3, 1, 4, 4)))


class NarrowDetector(torch.nn.Module):
    """A score and a map from a vector of 64, in the module's own precision, with or without post-processing."""

    def __init__(self, post: PostProcessor | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.score, self.map, self.post = torch.nn.Linear(64, 1), torch.nn.Conv2d(1, 1, 3, padding=1), post

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return raw score and map, or the four outputs."""
        raw = self.score(vectors), self.map(vectors.reshape(-1, 1, 8, 8))
        return raw if self.post is None else tuple(self.post(*raw))


def write_onnx(module: torch.nn.Module, example: torch.Tensor, path: Path, *, dynamo: bool) -> Path:
    """Export a module of one input by either of torch's exporters."""
    axes: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"input_names": ["vectors"]}
    if not dynamo:
        axes["dynamic_axes"] = {"vectors": {0: "n"}}
    with quiet_logger("torch.onnx"), quiet_logger("onnxscript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), str(path), dynamo=dynamo, opset_version=18, verbose=False, **axes)
    return path


def middle(raw: torch.Tensor) -> LevelStats:
    """Return statistics whose threshold is one of the raw values, the middle one."""
    values = raw.float().ravel().sort().values
    return LevelStats(threshold=values[len(values) // 2].item(), min=values[0].item(), max=values[-1].item())


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_module_is_exported_with_its_decisions(
    dtype: torch.dtype, dynamo: bool, tmp_path: Path
) -> None:
    """Whatever a runtime drops in front of the comparison, the labels are those of the values that the raw model gives.

    ONNX Runtime's CPU provider has no bfloat16 kernel for these layers.
    """
    vectors = torch.randn(400, 64, generator=torch.Generator().manual_seed(8)).to(dtype)
    detector = NarrowDetector().to(dtype).eval()
    raw = write_onnx(detector, vectors, tmp_path / "raw.onnx", dynamo=dynamo)
    with torch.no_grad():
        score, anomaly_map = detector(vectors)
    stats = CalibrationStats(image=middle(score), pixel=middle(anomaly_map))
    whole = NarrowDetector(PostProcessor(stats)).to(dtype).eval()
    exported = write_onnx(whole, vectors, tmp_path / "whole.onnx", dynamo=dynamo)
    numpy_type = np.dtype(np.float16 if dtype == torch.float16 else ml_dtypes.bfloat16)
    fed = vectors.float().numpy().astype(numpy_type)
    for runtime in ("onnxruntime", "openvino") if dtype == torch.float16 else ("openvino",):
        for optimize in (False, True):
            runners = [open_runner(path, runtime=runtime, optimize=optimize) for path in (raw, exported)]  # type: ignore[arg-type]
            scores, maps = runners[0].run({runners[0].inputs[0].name: fed}).values()
            _, labels, _, masks = runners[1].run({runners[1].inputs[0].name: fed}).values()
            for found, values, level in ((labels, scores, stats.image), (masks, maps, stats.pixel)):
                assert level is not None
                wanted = values.astype(np.float32) >= np.float32(level.threshold)
                assert np.array_equal(found, wanted), (runtime, optimize, int((found != wanted).sum()))


def test_a_bfloat16_map_is_exported_for_onnx_runtime(tmp_path: Path) -> None:
    """The NaN guard reads the map in float32: ONNX Runtime has no IsNaN for bfloat16."""
    stats = BOTH

    class Cast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.post = PostProcessor(stats)

        def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.post(None, vectors.to(torch.bfloat16).reshape(-1, 1, 8, 8)))

    vectors = torch.randn(5, 64, generator=torch.Generator().manual_seed(8))
    for dynamo in (True, False):
        runner = open_runner(
            write_onnx(Cast().eval(), vectors, tmp_path / "cast.onnx", dynamo=dynamo), runtime="onnxruntime"
        )
        vectors[2, 7] = NAN
        found = runner.run({runner.inputs[0].name: vectors.numpy()})
        for name, wanted in zip(found, Cast()(vectors), strict=True):
            if wanted.dtype == torch.bool:
                assert np.array_equal(found[name], wanted.numpy()), dynamo


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_constant_of_a_narrow_type_is_in_the_exported_program(dtype: torch.dtype) -> None:
    """One comparison, with the constant of the score's type, or of the map's where the score is its maximum."""
    half = str(dtype).removeprefix("torch.")
    module = PostProcessor(BOTH)
    score, raw_map = torch.zeros(2), torch.zeros(2, 1, 3, 3)
    for given, wanted in {
        (score.to(dtype), raw_map): {f"image_boundary_{half}", "pixel_boundary"},
        (score, raw_map.to(dtype)): {"image_boundary", f"pixel_boundary_{half}"},
        (None, raw_map.to(dtype)): {f"image_boundary_{half}", f"pixel_boundary_{half}"},
    }.items():
        program = torch.export.export(module, given)
        targets = {name.removeprefix("b_"): name for name in program.graph_signature.inputs_to_buffers}
        used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
        assert {name for name in targets if "boundary" in name and targets[name] in used} == wanted


def test_a_narrow_state_loads_into_a_module_of_any_precision() -> None:
    """The state dict has the keys that it had, and the constants follow what is loaded or assigned."""
    module = PostProcessor(BOTH).half()
    other = PostProcessor().bfloat16()
    other.load_state_dict(module.state_dict())
    for name, tensor in module.named_buffers():
        assert torch.equal(other.get_buffer(name), tensor), name
    assert BOTH.image is not None
    module.image_sensitivity = 0.3
    wanted = decision_boundary(BOTH.image, sensitivity=0.3, dtype=torch.float16)
    assert module.get_buffer("image_boundary_float16").item() == wanted
