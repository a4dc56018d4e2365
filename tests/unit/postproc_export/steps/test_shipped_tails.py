"""The shipped tails: what they are called, what they compute, and what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from graph_patterns.transforms import gaussian_weights
from postproc_export.errors import FileError, MetadataError, PostprocError, UnsupportedModelError, UsageError
from postproc_export.record import TailSpec, parse_tail, parse_tails
from postproc_export.runtimes import PortInfo
from postproc_export.steps.modules import AboveThresholds, GaussianSmoothing, Resized, TopKMean
from postproc_export.steps.plan import plan_transform
from postproc_export.steps.transforms import Thresholds, resolve


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("gate", TailSpec("gate", {})),
        ("gaussian:sigma=4", TailSpec("gaussian", {"sigma": "4"})),
        ("points:a=0.3,b=recall=0.99", TailSpec("points", {"a": "0.3", "b": "recall=0.99"})),
        ("package.module:Class", TailSpec("package.module:Class", {})),
    ],
)
def test_a_tail_is_named(text: str, spec: TailSpec) -> None:
    """A shipped one by its name and parameters, one's own by module and class."""
    assert parse_tail(text) == spec
    assert parse_tails(text) == (spec,)
    assert TailSpec.from_json(spec.to_json(), where="here") == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian:sigma=4", r"'gausian:sigma=4' is not known(.|\n)*needed:  gaussian, top-k"),
        ("median", "'median' is not known"),
        ("gaussian:sigma", "cannot be read"),
        ("gaussian:sigma=1,sigma=2", "has a parameter twice"),
        ("mebin", r"'mebin' has no graph form\n  found:   connected components \(as in MEBin\) are found by following"),
        ("connected-components", "no graph form"),
    ],
)
def test_what_names_no_tail_is_refused(text: str, message: str) -> None:
    """The names that there are are listed; what cannot be a graph is refused with the reason."""
    with pytest.raises(UsageError, match=message):
        parse_tail(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaussian:sigma=0", r"sigma is '0'\n  needed:  a number in \[0.05, 100\]"),
        ("gaussian:sigma=wide", "sigma is 'wide'"),
        ("gaussian:radius=3", r"no parameter 'radius'\n  needed:  sigma"),
        ("top-k", "k is None"),
        ("top-k:k=0", "a whole number of at least 1"),
        ("top-k:k=1.5", "a whole number of at least 1"),
        ("resize:height=3", "one of height and width"),
        ("thresholds", "has no file"),
        ("negate:level=both", r"level is 'both'\n  needed:  image or pixel\n  fix:     leave it out for both levels"),
        ("negate:sign=-1", r"no parameter 'sign'\n  needed:  level"),
    ],
)
def test_parameters_that_are_not_legal_are_refused(text: str, message: str) -> None:
    """The parameter, what was found and what is needed are named."""
    with pytest.raises(UsageError, match=message):
        resolve(parse_tail(text))


def test_the_kernel_is_anomalib_s() -> None:
    """2 int(4 sigma + 0.5) + 1 taps of a sampled Gaussian that sum to 1; sigma 4 has 33."""
    assert [len(gaussian_weights(sigma)) for sigma in (4.0, 1.0, 0.5, 0.1)] == [33, 9, 5, 1]
    assert sum(gaussian_weights(4.0)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_the_twin_smooths_as_one_convolution_with_both_axes_does(sigma: float) -> None:
    """The two passes are the normalised two-dimensional kernel on a map that is padded by reflection."""
    maps = torch.rand(2, 1, 24, 37, generator=torch.Generator().manual_seed(1))
    radius = int(4 * sigma + 0.5)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (axis / sigma) ** 2)
    square = torch.outer(kernel, kernel) / torch.outer(kernel, kernel).sum()
    padded = functional.pad(maps.double(), [radius] * 4, mode="reflect")
    _, found = GaussianSmoothing(sigma)(None, maps)
    np.testing.assert_allclose(found, functional.conv2d(padded, square[None, None]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("length", "radius"), [(1, 4), (2, 5), (5, 16), (3, 2)])
def test_a_mirror_goes_back_and_forth_as_often_as_it_takes(length: int, radius: int) -> None:
    """A map smaller than the kernel is defined: as NumPy pads by reflection, whatever the width."""
    row = np.arange(1.0, length + 1, dtype=np.float32)
    mirrored = np.pad(row, radius, mode="reflect") if length > 1 else np.full(2 * radius + 1, row[0])
    sigma = radius / 4
    wanted = np.convolve(mirrored, gaussian_weights(sigma), mode="valid")
    _, found = GaussianSmoothing(sigma)(None, torch.from_numpy(np.broadcast_to(row, (1, 1, 3, length)).copy()))
    np.testing.assert_allclose(found[0, 0, 1], wanted, rtol=0, atol=1e-5)


def test_the_score_is_the_mean_of_the_highest_pixels() -> None:
    """In the shape of the score, [N] without one; of a map with fewer pixels, of all."""
    maps = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 8.0, 4.0]]).reshape(2, 1, 2, 2)
    assert TopKMean(2)(torch.zeros(2, 1), maps)[0].tolist() == [[2.5], [6.0]]
    assert TopKMean(2)(None, maps)[0].tolist() == [2.5, 6.0]
    assert TopKMean(9)(None, maps)[0].tolist() == [1.5, 3.0]


@pytest.mark.parametrize(
    ("text", "score", "pixel"), [("negate", -1, -1), ("negate:level=image", -1, 1), ("negate:level=pixel", 1, -1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_turned_round(text: str, score: int, pixel: int, dtype: torch.dtype) -> None:
    """Those of both levels, or of the one that is named, in their own element type; what is not there stays so."""
    step = resolve(parse_tail(text))
    assert resolve(TailSpec(step.name, step.parameters)) == step
    values, maps = torch.tensor([1.5, -2.0], dtype=dtype), torch.tensor([[[0.5, float("inf")]]], dtype=dtype)
    found = step.module()(values, maps)
    assert [each.dtype for each in found] == [dtype] * 2
    assert torch.equal(found[0], score * values)
    assert torch.equal(found[1], pixel * maps)
    assert step.module()(None, None) == (None, None)


def test_of_several_channels_the_highest_above_its_threshold_remains() -> None:
    """Each channel has a threshold of its own; a NaN in one of them stays one."""
    maps = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1).repeat(1, 1, 1, 2)
    maps[0, 1, 0, 1] = float("nan")
    _, found = AboveThresholds(Thresholds.of([0.5, 2.5, 2.75]).values)(None, maps)
    np.testing.assert_array_equal(found, [[[[0.5, np.nan]]]])


@pytest.mark.parametrize("pixel", [0, 7, 15], ids=["first", "inside", "last"])
def test_a_nan_survives_a_map_that_is_made_smaller(pixel: int) -> None:
    """Some pixels are not part of any new one; the map is NaN as a whole then, and another image is not."""
    maps = torch.zeros(2, 1, 4, 4)
    maps[0].view(-1)[pixel] = float("nan")
    _, found = Resized((2, 1))(None, maps)
    assert found[0].isnan().all()
    assert not found[1].isnan().any()


@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (3,), (3, 1, 1), (3, 4, 5)])
def test_thresholds_go_into_the_record_and_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    """A record needs no other file; one axis alone is one of channels."""
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "t.npy", array)
    found = Thresholds.parse({"file": tmp_path / "t.npy"})
    assert Thresholds.parse(found.parameters) == found
    np.testing.assert_array_equal(found.values.ravel(), array.astype(np.float32).ravel())
    assert found.channels == (shape[0] if len(shape) in (1, 3) else 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[np.nan]]), "not finite"),
        (np.zeros((1, 1, 1, 1)), "cannot use these values"),
        (np.array(["a"]), "cannot use these values"),
        (np.zeros((0, 3)), "cannot use these values"),
    ],
    ids=["nan", "four-axes", "text", "empty"],
)
def test_thresholds_that_are_none_are_refused(array: Any, message: str) -> None:
    """Numbers, finite, of one to three axes."""
    with pytest.raises(UsageError, match=message):
        Thresholds.of(array)


def test_files_and_records_of_thresholds_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A file that is none of NumPy's, and a record that was changed."""
    (tmp_path / "t.npy").write_text("1, 2")
    with pytest.raises(FileError, match=r"cannot read the thresholds .*t\.npy"):
        Thresholds.parse({"file": tmp_path / "t.npy"})
    with pytest.raises(UsageError, match="is damaged"):
        Thresholds.parse({"shape": [2, 2], "zlib": "AAAA"})


SCORE = PortInfo("pred_score", "float32", ("N", 1))


def map_of(*axes: int | str) -> PortInfo:
    """Return the port of a map."""
    return PortInfo("anomaly_map", "float32", axes)


@pytest.mark.parametrize(
    ("tail", "ports", "images", "message"),
    [
        ("gaussian:sigma=1", [map_of("N", 1, 4, 8)], [], r"mirrors 4 pixels(.|\n)*height and width of 5 or more"),
        ("gaussian:sigma=1", [map_of("N", 1, "H", 4)], [], "a smaller sigma than 1"),
        ("gaussian", [SCORE], [], "needs an anomaly map"),
        ("top-k:k=33", [map_of("N", 4, 8)], [], r"takes 33 pixels(.|\n)*k of at most 32"),
        ("negate:level=image", [map_of("N", 1, 4, 8)], [], r"does not have\n  found:   no score of its own"),
        ("negate:level=pixel", [SCORE], [], r"does not have\n  found:   no anomaly map of its own"),
        ("resize", [map_of("N", 1, 4, 8)], [], "needs one input of images"),
        ("resize", [map_of("N", 1, 4, 8)], [PortInfo("x", "uint8", (1, 32, 32, 3))], "has its channels last"),
    ],
    ids=["as-large-as-the-map", "one-axis", "no-map", "k", "no-score", "score-only", "no-input", "channels-last"],
)
def test_models_that_a_tail_does_not_fit_are_refused(
    tail: str, ports: list[PortInfo], images: list[PortInfo], message: str
) -> None:
    """Where the sizes are static it is known before anything is written; what is needed is said."""
    with pytest.raises(UnsupportedModelError, match=message):
        plan_transform([resolve(parse_tail(tail))], ports, images)


@pytest.mark.parametrize(
    ("tail", "port"),
    [
        ("gaussian:sigma=1", map_of("N", 1, 5, 5)),
        ("gaussian:sigma=1", map_of("N", 1, "H", "W")),
        ("top-k:k=32", map_of("N", 4, 8)),
        ("top-k:k=33", map_of("N", "H", 8)),
    ],
    ids=["just-larger", "dynamic", "all-pixels", "dynamic-k"],
)
def test_models_that_a_tail_just_fits_are_taken(tail: str, port: PortInfo) -> None:
    """Where the sizes are dynamic nothing is refused: what comes out is defined for all of them."""
    assert len(plan_transform([resolve(parse_tail(tail))], [port], []).outputs) == 1


@pytest.mark.parametrize(
    ("shape", "port"),
    [((3,), map_of("N", 1, 4, 5)), ((2, 4, 5), map_of("N", 4, 5)), ((4, 6), map_of("N", 1, 4, 5))],
    ids=["channels", "rank", "width"],
)
def test_thresholds_of_another_shape_are_refused(shape: tuple[int, ...], port: PortInfo) -> None:
    """Channels, rank and sizes have to be the map's, or 1."""
    with pytest.raises(PostprocError, match=r"do not fit the map|more than one channel|anomaly map"):
        plan_transform([Thresholds.of(np.zeros(shape))], [port], [])


@pytest.mark.parametrize("make", [lambda: [1], lambda: {"name": 3}, lambda: {"name": "gate", "parameters": []}])
def test_a_record_that_names_no_tail_is_refused(make: Callable[[], object]) -> None:
    """A record that was changed is not taken for one."""
    with pytest.raises(MetadataError, match="not a custom step"):
        TailSpec.from_json(make(), where="the record")
