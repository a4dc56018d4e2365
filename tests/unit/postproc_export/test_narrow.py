"""Boundaries for hosts that declare float16 or bfloat16: the constant, its names, its record, what is told of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hosts
import ml_dtypes
import numpy as np
import onnx
import pytest
from checks import check_briefly
from conftest import Invoke
from numpy.typing import NDArray
from shipped_tails import stats_behind
from tail_forms import stripped

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, inspect_model, update_postprocessing
from postproc_export.comparison import largest_shown, narrow
from postproc_export.errors import UsageError
from postproc_export.float32 import HALVES, Half, as_bfloat16, half_ulp, narrow_readings, narrowed
from postproc_export.stats import decision_boundary

INF = float("inf")
NORMAL = 2.0**-126
TYPES: dict[Half, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
IMAGE = LevelStats(threshold=162.5, min=100.0, max=200.0)
PIXEL = LevelStats(threshold=0.1, min=-1.0, max=1.0)
BOTH = CalibrationStats(image=IMAGE, pixel=PIXEL)


def rounded(values: Any, dtype: Half) -> NDArray[np.float32]:
    """Round float32 values to a narrow type and back, by another implementation than the project's."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, np.float32).astype(TYPES[dtype]).astype(np.float32)


def below(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the next lower float32 of each value."""
    with np.errstate(over="ignore"):
        return np.nextafter(values, np.float32(-INF))


def finite_values(dtype: Half) -> NDArray[np.float32]:
    """Return every finite value of a type that can be a boundary: none that is subnormal in float32."""
    with np.errstate(invalid="ignore"):
        values = np.arange(1 << 16, dtype=np.uint16).view(TYPES[dtype]).astype(np.float32)
    legal = np.isfinite(values) & ((values == 0) | (np.abs(values) >= NORMAL))
    return values[legal] + np.float32(0.0)


@pytest.mark.parametrize(
    ("dtype", "boundary", "constant"),
    [
        pytest.param("float16", 162.5, 162.4375, id="a-value-that-is-even"),
        pytest.param("float16", 162.375, 162.31251525878906, id="a-value-that-is-odd"),
        pytest.param("float16", 162.4, 162.4375, id="between-two-values"),
        pytest.param("float16", 162.45, 162.4375, id="between-above-the-tie"),
        pytest.param("float16", 0.0, -(2.0**-25), id="zero"),
        pytest.param("float16", -0.5, -0.500244140625, id="negative"),
        pytest.param("float16", 65504.0, 65488.00390625, id="the-largest"),
        pytest.param("float16", 65505.0, 65520.0, id="above-the-largest"),
        pytest.param("float16", INF, 65520.0, id="only-infinity"),
        pytest.param("float16", -70000.0, -65519.99609375, id="below-the-lowest"),
        pytest.param("float16", -INF, -INF, id="everything"),
        pytest.param("float16", 1e-30, 2.980232594040899e-08, id="below-the-smallest"),
        pytest.param("bfloat16", 163.0, 162.50001525878906, id="bfloat16"),
        pytest.param("bfloat16", 162.0, 161.5, id="bfloat16-even"),
        pytest.param("bfloat16", INF, 3.39617752923046e38, id="bfloat16-only-infinity"),
        pytest.param("bfloat16", -INF, -INF, id="bfloat16-everything"),
        pytest.param("bfloat16", 0.0, 0.0, id="bfloat16-zero-for-the-constant-would-be-subnormal"),
        pytest.param("bfloat16", NORMAL, NORMAL, id="bfloat16-smallest-normal-likewise"),
        pytest.param("bfloat16", -NORMAL, -1.180086125630187e-38, id="bfloat16-negative-normal"),
        pytest.param("float32", 162.5, 162.5, id="float32"),
    ],
)
def test_the_constant(dtype: Any, boundary: float, constant: float) -> None:
    """It is the smallest float32, infinities included, that rounds to the boundary or above; itself where subnormal."""
    found = narrowed(float(np.float32(boundary)), dtype)
    assert found == constant
    assert not (found == 0 and np.signbit(found))


def constants(boundaries: NDArray[np.float32], dtype: Half) -> NDArray[np.float32]:
    """Return the constant of each boundary."""
    return np.array([narrowed(float(boundary), dtype) for boundary in boundaries], np.float32)


def wrong_constants(boundaries: NDArray[np.float32], dtype: Half) -> Iterator[float]:
    """Yield the boundaries whose constant does not round to them or above, or is not the smallest that does."""
    found = constants(boundaries, dtype)
    kept = found == boundaries  # 0 and 2^-126 in bfloat16, and what is no value of the type and its own constant
    right = (rounded(found, dtype) >= boundaries) & (rounded(below(found), dtype) < boundaries)
    subnormal = kept & (np.abs(boundaries) <= NORMAL) & (dtype == "bfloat16")
    yield from boundaries[~(right | subnormal)].tolist()


@pytest.mark.parametrize("dtype", HALVES)
def test_constants_are_the_smallest_that_round_to_the_boundary(dtype: Half) -> None:
    """For values of the type and for any float32 between and beyond them."""
    random = np.random.default_rng(5)
    drawn = random.integers(0, 1 << 32, 3000, dtype=np.uint32).view(np.float32)
    near = finite_values(dtype)[:: 41 if dtype == "float16" else 47] * np.float32(1 + 2.0**-13)
    boundaries = np.concatenate([finite_values(dtype)[::43], drawn[np.isfinite(drawn)], near[np.isfinite(near)]])
    boundaries = boundaries[(boundaries == 0) | (np.abs(boundaries) >= NORMAL)]
    assert not list(wrong_constants(boundaries, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_every_constant_is_the_smallest_that_rounds_to_the_boundary(dtype: Half) -> None:
    """For every finite value of the type."""
    assert not list(wrong_constants(finite_values(dtype), dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_value_decides_as_its_rounding(dtype: Half) -> None:
    """Whatever float32 stands before the tail, its label is that of the value that it rounds to, NaN included."""
    random = np.random.default_rng(6)
    any_value = random.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    for boundary in (*random.choice(finite_values(dtype), 40).tolist(), 0.1, -7.3, 1e5, INF, -INF):
        boundary = float(np.float32(boundary))
        constant = np.float32(narrowed(boundary, dtype))
        steps = constant.view(np.int32) + np.arange(-70_000, 70_000)
        values = np.concatenate([any_value, steps.astype(np.int64).astype(np.uint32).view(np.float32)])
        values = values[~(np.abs(values) < NORMAL)]  # around 0 in bfloat16 the constant is the boundary itself
        assert np.array_equal(values < constant, rounded(values, dtype) < np.float32(boundary)), boundary


def test_rounding_to_bfloat16() -> None:
    """The same values as another implementation gives, NaN, infinities and ties included."""
    values = np.random.default_rng(7).integers(0, 1 << 32, 500_000, dtype=np.uint32)
    values[:50_000] = (values[:50_000] & 0xFFFF0000) | 0x8000
    found = as_bfloat16(values.view(np.float32))
    assert np.array_equal(found, rounded(values.view(np.float32), "bfloat16"), equal_nan=True)
    assert as_bfloat16(np.float32(162.5)).shape == ()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_an_ulp(dtype: Half) -> None:
    """Half the distance to the next value of the type, at every tenth of its finite values and at 0."""
    values = np.concatenate([np.sort(finite_values(dtype)[finite_values(dtype) > 0])[:-1:10], [0.0]]).astype(np.float32)
    typed = values.astype(TYPES[dtype])
    following = (typed.view(np.uint16) + 1).astype(np.uint16).view(TYPES[dtype]).astype(np.float64)
    wanted = (following - values.astype(np.float64)) / 2
    assert [half_ulp(float(value), dtype) for value in values] == wanted.tolist()
    assert half_ulp(-1.5, dtype) == half_ulp(1.5, dtype)


# --- by name, in Python


@pytest.mark.parametrize("comparison", ["ge", "gt"])
@pytest.mark.parametrize("sensitivity", [0.0, 0.3, 0.5, 1.0])
def test_the_public_function_knows_the_type(comparison: Any, sensitivity: float) -> None:
    """`decision_boundary` gives the constant for a type, by its name or as NumPy, ml_dtypes and torch have it."""
    import torch

    plain = decision_boundary(IMAGE, sensitivity=sensitivity, comparison=comparison)
    for dtype, others in {
        "float16": (np.float16, np.dtype("float16"), torch.float16),
        "bfloat16": (ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16), torch.bfloat16),
        "float32": ("float64", np.float32, torch.float64),
    }.items():
        wanted = narrowed(plain, dtype)  # type: ignore[arg-type]
        for name in (dtype, *others):
            found = decision_boundary(IMAGE, sensitivity=sensitivity, comparison=comparison, dtype=name)
            assert found == wanted, name


@pytest.mark.parametrize("dtype", ["half", "int8", None, 16, "float8_e4m3fn", "BFLOAT16"])
def test_other_types_are_refused(dtype: Any) -> None:
    """A name that no raw output can have is an error that lists those that one can."""
    with pytest.raises(UsageError, match=r"no raw output has this type\n.*found: .*\n.*'float16', 'bfloat16'"):
        decision_boundary(IMAGE, dtype=dtype)


def test_the_tolerance_of_scores() -> None:
    """(r + 1/2) 2^-p + h / span, as the definition states it."""
    level = LevelStats(threshold=6.0, min=0.0, max=4.0)
    for dtype, p, h in (("float16", 11, 2.0**-25), ("bfloat16", 8, 2.0**-134)):
        found = narrow(largest_shown(level), dtype)  # type: ignore[arg-type]
        assert found.atol / level.span == (1.5 + 0.5) * 2.0**-p + h / level.span
        assert dtype in found.reason


# --- in files


def record_of(path: Path) -> dict[str, Any]:
    """Return the record of an ONNX file."""
    (text,) = [item.value for item in onnx.load(path).metadata_props if item.key == "postproc_export"]
    record: dict[str, Any] = json.loads(text)
    return record


def with_record(path: Path, **changes: Any) -> Path:
    """Write an ONNX file with some entries of its record changed."""
    record = {**record_of(path), **changes}
    model = onnx.load(path)
    (entry,) = [item for item in model.metadata_props if item.key == "postproc_export"]
    entry.value = json.dumps(record)
    return hosts.write(model, path)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("dtype", HALVES)
def test_each_level_has_its_own_type(dtype: Half, ir: bool, tmp_path: Path) -> None:
    """A float32 score beside a narrow map keeps the plain boundary; record, result and inspection say so."""
    graph = f"host (float[N,1] score, {dtype}[N,1,H,W] map) => (float[N,1] pred_score, {dtype}[N,1,H,W] anomaly_map)"
    host = hosts.parse(f"{graph} {{\npred_score = Identity(score)\nanomaly_map = Identity(map)\n}}")
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    result = attach_postprocessing(raw, BOTH)
    constant = decision_boundary(PIXEL, dtype=dtype)
    assert (result.boundary("image"), result.boundary("pixel")) == (162.5, constant)
    assert constant != decision_boundary(PIXEL)
    levels = inspect_model(result.output).levels
    assert levels["image"] is not None
    assert levels["pixel"] is not None
    assert (levels["image"].narrow, levels["pixel"].narrow) == (None, dtype)
    assert (levels["image"].boundary, levels["pixel"].boundary) == (162.5, constant)
    assert levels["pixel"].certain
    assert levels["pixel"].to_json()["host_dtype"] == dtype
    assert f"host         {dtype}" in inspect_model(result.output).summary()
    if not ir:
        assert record_of(result.output)["narrow"] == {"pixel": dtype}
    assert check_briefly(result.output)


def test_a_score_from_the_map_has_the_type_of_the_map(tmp_path: Path) -> None:
    """The maximum of a float16 map is a float16 value."""
    raw = hosts.write(hosts.identity(score=None, dtype="float16"), tmp_path / "raw.onnx")
    result = attach_postprocessing(raw, BOTH)
    assert result.boundary("image") == 162.4375
    assert record_of(result.output)["narrow"] == {"image": "float16", "pixel": "float16"}
    alone = attach_postprocessing(raw, CalibrationStats(image=IMAGE), output=tmp_path / "alone.onnx")
    assert record_of(alone.output)["narrow"] == {"image": "float16"}
    assert check_briefly(alone.output)


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_wider_hosts_keep_the_plain_boundary(dtype: str, tmp_path: Path) -> None:
    """float32 and float64 hosts: the boundary as it was, and nothing in the record."""
    raw = hosts.write(hosts.identity(dtype=dtype), tmp_path / "raw.onnx")
    result = attach_postprocessing(raw, BOTH)
    assert result.boundary("pixel") == decision_boundary(PIXEL)
    assert "narrow" not in record_of(result.output)


def test_behind_a_custom_step_the_boundary_is_plain(tmp_path: Path) -> None:
    """A step that computes in float32 gives values of its own; the level that it leaves alone keeps its type."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    stats = replace(stats_behind(["gaussian:sigma=1"]), image=IMAGE, pixel=PIXEL)
    result = attach_postprocessing(raw, stats, tail="gaussian:sigma=1")
    assert result.boundary("pixel") == decision_boundary(PIXEL)
    assert result.boundary("image") == 162.4375
    assert record_of(result.output)["narrow"] == {"image": "float16"}
    assert check_briefly(result.output)


def test_a_threshold_that_the_host_cannot_give_is_noted(tmp_path: Path) -> None:
    """0.1 is no float16: it was calibrated on something else, which attaching says, by level."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    result = attach_postprocessing(raw, BOTH)
    assert [note for note in result.notes if "no value of" in note] == [
        "the pixel threshold 0.1 is no value of float16, which the model gives: calibrate on the outputs of this model"
    ]
    assert "note     the pixel threshold 0.1" in result.summary()
    plain = attach_postprocessing(hosts.write(hosts.identity(), tmp_path / "plain.onnx"), BOTH)
    assert not [note for note in plain.notes if "no value of" in note]


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("adjustable", ["nothing", "sensitivity", "boundary"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_stripped_file_tells_its_threshold(dtype: Half, adjustable: Any, ir: bool, tmp_path: Path) -> None:
    """Without a record the constant is read as the threshold that it stands for, and an update moves no decision."""
    level = LevelStats(threshold=162.0, min=100.0, max=200.0)  # a value of both types
    host = hosts.identity(dtype=dtype)
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    result = attach_postprocessing(raw, CalibrationStats(image=level, pixel=level), adjustable=adjustable)
    path = stripped(result.output)
    for report in inspect_model(path).levels.values():
        assert report is not None
        assert (report.threshold, report.sensitivity, report.narrow) == (162.0, 0.5, dtype)
        assert report.boundary == result.boundary("image") != 162.0
    updated = update_postprocessing(path, comparison="ge")
    assert updated.before.boundary("image") == updated.after.boundary("image") == result.boundary("image")
    assert not updated.is_changed


def test_the_readings_of_a_constant() -> None:
    """A constant may stand for a value of a type where it is the smallest float32 that rounds to it."""
    assert list(narrow_readings(162.4375)) == [("float16", 162.5)]
    assert list(narrow_readings(161.5)) == [("bfloat16", 162.0)]
    assert list(narrow_readings(65520.0)) == [("float16", INF)]
    for plain in (162.5, 0.0, INF, -INF, 0.1):
        assert list(narrow_readings(float(np.float32(plain)))) == []


@pytest.mark.parametrize(
    "lie", [{"image": "float32"}, {"image": "float8"}, {"score": "float16"}, {"image": 16}, "float16", ["image"], None]
)
def test_types_in_a_record_that_are_none_are_refused(lie: Any, tmp_path: Path, invoke: Invoke) -> None:
    """A record is data: a type that no host has is one message and exit code 2, in every command that reads it."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    path = with_record(attach_postprocessing(raw, BOTH).output, narrow=lie)
    for command in ("inspect", "check", "update"):
        result = invoke(command, path)
        assert result.exit_code == 2, command
        assert "narrow" in result.stderr or "no legal types" in result.stderr


def test_a_record_of_another_type_fails_the_check(tmp_path: Path) -> None:
    """The type that counts is the one that the model declares; `inspect` is not sure of a record that says another."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    path = with_record(attach_postprocessing(raw, BOTH).output, narrow={"image": "bfloat16", "pixel": "float16"})
    report = check_briefly(path)
    assert [check.name for check in report.failed] == ["constants/pred_label"]
    assert "its raw value is bfloat16 by the record, and float16 in the model" in report.failed[0].message
    image = inspect_model(path).levels["image"]
    assert image is not None
    assert not image.certain
