"""`PostProcessor` under `torch.export`."""

import io

import pytest
import torch
from eager_outputs import BOTH, NAN, agree

from postproc_export.eager import PostProcessed, PostProcessor
from postproc_export.errors import UnsupportedModelError

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
