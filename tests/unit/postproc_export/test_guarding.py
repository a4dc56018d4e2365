"""Which map guards an image score against a NaN, and that no image's decision depends on another image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import hosts
import numpy as np
import onnx
import onnxruntime
import pytest
from checks import check_briefly, runtime_of
from tail_forms import IMAGE, PIXEL, STATS, attached, converted, stripped

from postproc_export import (
    CalibrationStats,
    attach_postprocessing,
    detach_postprocessing,
    inspect_model,
    tail,
    update_postprocessing,
)
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.ports import Guard, choose_guard, select_outputs
from postproc_export.record import METADATA_KEY, STATISTICS_KEY, parse_tail
from postproc_export.runtimes import PortInfo, open_runner

CASES = Path(__file__).parents[2] / "data" / "cases"
FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
IMAGE_ONLY = CalibrationStats(image=IMAGE)
Array = np.ndarray[Any, Any]


def port(name: str, axes: str | None) -> PortInfo:
    """Return a port whose axes are written as ``N,1,H,W``; ``?`` has no name."""
    if axes is None:
        return PortInfo(name, "float32", None)
    names = [axis for axis in axes.split(",") if axis]
    return PortInfo(name, "float32", tuple(int(a) if a.isdecimal() else None if a == "?" else a for a in names))


def case(name: str, folder: Path, *, ir: bool) -> Path:
    """Return a copy of a case file, in a format."""
    model = onnx.load(CASES / f"{name}.onnx")
    return hosts.raw_file(model, folder, name, ir=ir)


def run(path: Path, **feeds: Array) -> dict[str, Array]:
    """Run a file in its runtime."""
    return open_runner(path, threads=1).run(feeds)


def labels(path: Path, **feeds: Array) -> list[bool]:
    """Return the labels of a run, flat."""
    found: list[bool] = run(path, **feeds)["pred_label"].astype(bool).ravel().tolist()
    return found


PAIRS: dict[str, tuple[str | None, str, str]] = {
    "symbols-equal": ("N,1", "N,1,H,W", "image"),
    "symbols-differ": ("batch", "n,1,H,W", "image"),
    "symbols-absent": ("?", "?,?,?", "image"),
    "one-symbol-absent": ("N", "?,1,H,W", "image"),
    "junk-on-other-axes": ("N,ReduceMax_dim_1", "N,ReduceMax_dim_1,Conv_dim_2,W", "image"),
    "both-fixed": ("4", "4,1,H,W", "image"),
    "both-one": ("1,1", "1,1,H,W", "image"),
    "score-of-unknown-rank": (None, "N,1,H,W", "image"),
    "scalar": ("", "N,1,H,W", "all"),
    "scalar-and-one-map": ("", "1,H,W", "all"),
    "one-score": ("1", "N,H,W", "all"),
    "one-score-of-two-axes": ("1,1", "?,1,H,W", "all"),
    "one-score-and-a-named-axis": ("1,k", "N,H,W", "all"),
    "one-map": ("N", "1,1,H,W", "all"),
    "score-fixed": ("2", "N,1,H,W", "'s' is for 2 images, 'm' for any number"),
    "map-fixed": ("?", "2,?,8", "'m' is for 2 images, 's' for any number"),
    "batch-elsewhere-in-the-map": ("N", "L,N,8", "the batch axis 'N' of 's' is another axis of 'm'"),
    "batch-last-in-the-map": ("N,1", "?,H,N", "the batch axis 'N' of 's' is another axis of 'm'"),
    "batch-elsewhere-in-the-score": ("1,N", "N,1,H,W", "the batch axis 'N' of 'm' is another axis of 's'"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_declared_shapes_decide_over_what_a_map_is_reduced(name: str) -> None:
    """Each image's own map, all there is, or a contradiction: refused where the guard is wanted, else told."""
    score, anomaly_map, expected = PAIRS[name]
    ports = port("s", score), port("m", anomaly_map)
    if expected in ("image", "all"):
        guard = choose_guard(*ports, is_known=True, is_wanted=True)
        assert guard.form == expected
        told = "the batch axes 'batch' of 's' and 'n' of 'm' are taken for the same"
        assert guard.notes == ((told,) if name == "symbols-differ" else ())
        return
    with pytest.raises(UnsupportedModelError, match=f"{expected}(.|\n)*--no-nan-guard"):
        choose_guard(*ports, is_known=True, is_wanted=True)
    guard = choose_guard(*ports, is_known=True, is_wanted=False)
    assert (guard.form, guard.why_not) == (None, expected)
    assert expected in guard.notes[0]


STATE: dict[str, tuple[str, str, str | None]] = {
    "rnn": ("N", "2,N,8", None),
    "unclear": ("N", "N,4,8", "m"),
    "batch-of-another-size": ("2", "4,4,8", None),
    "fixed": ("N", "2,H,W", None),
}


@pytest.mark.parametrize("name", STATE)
def test_a_rank_alone_makes_no_map_that_contradicts_the_score(name: str) -> None:
    """Where nothing is calibrated for pixels, a state [2, N, 8] is an output like any other, and never guards."""
    score, state, expected = STATE[name]
    ports = [port("s", score), port("m", state)]
    found = select_outputs(ports, calibrated=("image",))
    assert (found.pixel and found.pixel.name) == expected
    two = select_outputs([*ports, port("other", "N,3,3")], calibrated=("image",))
    assert two.pixel is None, "two that could be it are no reason to refuse what nobody asked for"


def test_before_a_calibration_the_score_tells_what_is_no_map() -> None:
    """A model is not calibrated on its state."""
    assert select_outputs([port("s", "N"), port("m", "2,N,8")]).pixel is None
    with pytest.raises(UnsupportedModelError, match="2 outputs could be the anomaly map"):
        select_outputs([port("s", "N"), port("m", "N,4,8"), port("n", "N,5,5")])


@FORMATS
@pytest.mark.parametrize("name", ["rnn", "mix"])
def test_a_state_beside_the_score_is_left_alone(name: str, ir: bool, tmp_path: Path) -> None:
    """The file runs at every batch that the host runs at, and a NaN in the state changes no label."""
    raw = case(name, tmp_path, ir=ir)
    result = attach_postprocessing(raw, IMAGE_ONLY)
    assert "guard" not in result.summary()
    for batch in (1, 3):
        if name == "rnn":
            feeds = {"x": np.linspace(-1, 1, batch * 16, dtype=np.float32).reshape(batch, 2, 8)}
        else:
            scores = np.linspace(0, 1, batch, dtype=np.float32)
            feeds = {"s": scores, "h": np.full((2, batch, 8), np.nan, np.float32)}
        before, after = run(raw, **feeds), run(result.output, **feeds)
        np.testing.assert_array_equal(after["pred_label"], before["score"] >= np.float32(0.5))
        np.testing.assert_array_equal(after["hn"], before["hn"])
    assert check_briefly(result.output)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_nan_in_one_image_of_a_state_moves_no_label(batch: int, tmp_path: Path) -> None:
    """The state's first axis is a layer: a NaN there once made image 0 anomalous for what happened in image 1."""
    path = attach_postprocessing(case("mix", tmp_path, ir=False), IMAGE_ONLY).output
    state = np.zeros((2, batch, 8), np.float32)
    state[1, batch // 2 :] = np.nan
    assert labels(path, s=np.zeros(batch, np.float32), h=state) == [False] * batch


@FORMATS
def test_a_state_that_is_said_to_be_the_map_is_refused(ir: bool, tmp_path: Path) -> None:
    """Calibrated or chosen, it would have to guard and cannot: the message names the way out."""
    raw = case("mix", tmp_path, ir=ir)
    for options in ({"stats": STATS}, {"stats": IMAGE_ONLY, "pixel_output": "hn"}):
        with pytest.raises(UnsupportedModelError, match=r"'hn' cannot tell which image(.|\n)*nan_guard=False"):
            attach_postprocessing(raw, **options)
    assert [path.stem for path in tmp_path.iterdir()] == ["mix"] * len(list(tmp_path.iterdir()))
    path = attach_postprocessing(raw, STATS, nan_guard=False).output
    state = np.zeros((2, 3, 8), np.float32)
    state[0, 1] = np.nan
    found = run(path, s=np.zeros(3, np.float32), h=state)
    assert not found["pred_label"].any()
    assert found["pred_mask"].astype(bool)[0, 1].all()
    assert check_briefly(path)


@FORMATS
def test_by_its_name_alone_it_is_left_out_with_a_note(ir: bool, tmp_path: Path) -> None:
    """An `anomaly_map` without statistics that contradicts the score is told, and does not guard."""
    host = hosts.parse(
        "g (float[N] s, float[2,N,8] h) => (float[N] pred_score, float[2,N,8] anomaly_map) "
        "{ pred_score = Identity(s) anomaly_map = Identity(h) }"
    )
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    result = attach_postprocessing(raw, IMAGE_ONLY)
    assert any(note.startswith("a NaN in 'anomaly_map' does not change the image score") for note in result.notes)
    state = np.full((2, 3, 8), np.nan, np.float32)
    assert labels(result.output, s=np.zeros(3, np.float32), h=state) == [False] * 3
    assert check_briefly(result.output)
    with pytest.raises(UnsupportedModelError, match="nan_guard=False"):
        attach_postprocessing(raw, IMAGE_ONLY, pixel_output="anomaly_map", output=tmp_path / f"x{raw.suffix}")


WHICH: dict[str, tuple[str, CalibrationStats, dict[str, Any], bool]] = {
    "calibrated": ("heat", STATS, {}, True),
    "calibrated-and-left-out": ("heat", STATS, {"levels": "image"}, True),
    "borrowed": (
        "heat",
        CalibrationStats(image=IMAGE, pixel=type(PIXEL)(threshold=None, min=0.0, max=1.0)),
        {"match_thresholds": True},
        True,
    ),
    "chosen": ("heat", IMAGE_ONLY, {"pixel_output": "heat"}, True),
    "chosen-by-index": ("heat", IMAGE_ONLY, {"pixel_output": 1}, True),
    "by-its-name": ("anomaly_map", IMAGE_ONLY, {}, True),
    "by-rank-alone": ("heat", IMAGE_ONLY, {}, False),
    "none": ("anomaly_map", STATS, {"pixel_output": "none"}, False),
    "switched-off": ("anomaly_map", STATS, {"nan_guard": False}, False),
}


@FORMATS
@pytest.mark.parametrize("name", WHICH)
def test_which_map_guards(name: str, ir: bool, tmp_path: Path) -> None:
    """One that is calibrated, chosen or called `anomaly_map`; the summary names it, also after an update."""
    map_name, stats, options, guards = WHICH[name]
    host = hosts.identity(names=("pred_score", map_name))
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    result = attach_postprocessing(raw, stats, **options)
    updated = update_postprocessing(result.output, output=tmp_path / f"u{raw.suffix}", image_sensitivity=0.25)
    maps = np.zeros((3, 1, 2, 2), np.float32)
    maps[1, 0, 1, 0] = np.nan
    feeds = {"score": np.full((3, 1), -2, np.float32), "map": maps}
    for path, summary in ((result.output, result.summary()), (updated.output, updated.summary())):
        assert path is not None
        assert (f"guard    a NaN in '{map_name}' makes its image anomalous" in summary) is guards
        if guards:
            assert labels(path, **feeds) == [False, True, False]
        report = inspect_model(path).levels["image"]
        assert report is not None
        assert (report.guarded_by is not None) is guards
    again = update_postprocessing(updated.output, output=tmp_path / f"v{raw.suffix}", image_sensitivity=0.5)  # type: ignore[arg-type]
    assert again.output is not None
    assert again.output.read_bytes() == result.output.read_bytes()
    assert detach_postprocessing(result.output, output=tmp_path / f"d{raw.suffix}").output is not None
    assert (tmp_path / f"d{raw.suffix}").read_bytes() == raw.read_bytes()


@FORMATS
def test_statistics_that_come_later_make_the_map_one(ir: bool, tmp_path: Path) -> None:
    """By rank alone it does not guard; once it was calibrated it does, also where its level is left out afterwards."""
    host = hosts.identity(names=("pred_score", "heat"))
    suffix = ".xml" if ir else ".onnx"
    _, path = attached(host, tmp_path, ir=ir, stats=IMAGE_ONLY)
    maps = np.zeros((3, 1, 2, 2), np.float32)
    maps[1, 0, 1, 0] = np.nan
    feeds = {"score": np.full((3, 1), -2, np.float32), "map": maps}
    assert labels(path, **feeds) == [False] * 3
    changes: tuple[dict[str, Any], ...] = ({"stats": STATS}, {"levels": "image"}, {"image_sensitivity": 0.25})
    for index, change in enumerate(changes):
        result = update_postprocessing(path, output=tmp_path / f"{index}{suffix}", **change)
        assert result.output is not None
        path = result.output
        assert "guard    a NaN in 'heat' makes its image anomalous" in result.summary()
        assert labels(path, **feeds) == [False, True, False]
        assert check_briefly(path)


OPSETS = ((7, 3), (8, 4), (9, 4), (13, 7), (18, 8))
SCORES = ("", "1", "1,1", "N", "N,1")
MAPS = ("N,1,H,W", "N,H,W", "1,H,W", "other,1,H,W")


def shaped(axes: str, batch: int) -> tuple[int, ...]:
    """Return the sizes of axes that are written as ``N,1,H,W``."""
    sizes = {"N": batch, "other": batch, "H": 2, "W": 3}
    return tuple(sizes[axis] if axis in sizes else int(axis) for axis in axes.split(",") if axis)


@pytest.mark.parametrize(("opset", "ir_version"), [*OPSETS, (0, 0)], ids=[*(f"opset{o}" for o, _ in OPSETS), "ir"])
@pytest.mark.parametrize("anomaly_map", MAPS)
@pytest.mark.parametrize("score", SCORES)
def test_every_pair_runs_at_every_batch(
    score: str, anomaly_map: str, opset: int, ir_version: int, tmp_path: Path
) -> None:
    """Empty, single and several images: a NaN reaches its own image's score, or the one score that there is."""
    host = hosts.identity(score=score, map=anomaly_map, opset=opset or 17, ir_version=ir_version or 8)
    _, path = attached(host, tmp_path, ir=not opset)
    runner = open_runner(path, threads=1)
    for batch in (0, 1, 3):
        scores = np.full(shaped(score, batch), -2, np.float32)
        plain = np.zeros(shaped(anomaly_map, batch), np.float32)
        for place in range(max(1, len(plain))):
            maps = plain.copy()
            maps[place : place + 1, ..., -1] = np.nan
            expected = np.zeros(scores.shape, bool)
            if "N" not in score or "1,H" in anomaly_map[:3]:
                expected[...] = np.isnan(maps).any()
            else:
                expected[place : place + 1] = True
            found = runner.run({"score": scores, "map": maps})["pred_label"].astype(bool)
            np.testing.assert_array_equal(found, expected)


ONE_FOR_ALL = {"scalar": ("", "N,1,H,W"), "one-score": ("1", "N,H,W"), "one-map": ("N", "1,1,H,W")}


@pytest.mark.parametrize("form", ["onnx", "arithmetic", "ir"])
@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_a_guard_over_all_images_is_checked_updated_and_detached(name: str, form: str, tmp_path: Path) -> None:
    """Every special value in a run of its own, nothing excused that is not named, the original back."""
    score, anomaly_map = ONE_FOR_ALL[name]
    host = hosts.identity(score=score, map=anomaly_map, opset=8 if form == "arithmetic" else 17)
    raw, path = attached(host, tmp_path, ir=form == "ir")
    report = check_briefly(path)
    assert report, report.describe()
    assert "makes all of its images anomalous" in next(item.message for item in report.checks if item.name == "guard")
    changed = update_postprocessing(path, output=tmp_path / f"u{path.suffix}", image_sensitivity=0.25)
    assert changed.output is not None
    same = update_postprocessing(changed.output, output=tmp_path / f"v{path.suffix}", image_sensitivity=0.5)
    assert same.output is not None
    assert same.output.read_bytes() == path.read_bytes()
    back = detach_postprocessing(path, output=tmp_path / f"d{path.suffix}").output
    assert back is not None
    assert back.read_bytes() == raw.read_bytes()


@FORMATS
@pytest.mark.parametrize(
    ("score", "anomaly_map", "options"),
    [
        pytest.param("", "1,1,H,W", {"layout": "packed"}, id="packed-scalar"),
        pytest.param("1", "1,H,W", {"layout": "packed"}, id="packed-one"),
        pytest.param("N", "1,1,H,W", {"adjustable": "sensitivity"}, id="adjustable", marks=pytest.mark.slow),
        pytest.param("1,1", "N,H,W", {"enable_normalization": False}, id="raw-scores"),
        pytest.param("", "N,H,W", {"levels": "image"}, id="image-level"),
    ],
)
def test_a_guard_over_all_images_goes_with_every_form_of_tail(
    score: str, anomaly_map: str, options: dict[str, Any], ir: bool, tmp_path: Path
) -> None:
    """Packed, adjustable, raw, one level alone, cast: checked, and taken off again."""
    host = hosts.identity(score=score, map=anomaly_map, dtype="float16")
    raw, path = attached(host, tmp_path, ir=ir, **options)
    report = check_briefly(path, runtimes=() if "layout" in options else [runtime_of(path)])
    assert report, report.describe()
    assert detach_postprocessing(path, output=tmp_path / f"d{path.suffix}")
    assert (tmp_path / f"d{path.suffix}").read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_a_guard_over_all_images_is_known_without_its_record(name: str, tmp_path: Path) -> None:
    """Stripped of its record, or converted to an IR, the tail is found whole and taken off."""
    score, anomaly_map = ONE_FOR_ALL[name]
    _, path = attached(hosts.identity(score=score, map=anomaly_map), tmp_path, ir=False)
    for changed in (stripped(path), converted(path)):
        report = inspect_model(changed).levels["image"]
        assert report is not None
        assert (report.tail, bool(report.guarded_by)) == ("postproc_export", True)
        target = tmp_path / f"back{changed.suffix}"
        assert detach_postprocessing(changed, output=target)
        assert len(open_runner(target).outputs) == 2


def unknowing(path: Path, patch: pytest.MonkeyPatch, *, form: Literal["image", "all"], **options: Any) -> Path:
    """Attach to a file with one form of the guard whatever it declares, as older versions did with each image's own."""
    with patch.context() as context:
        context.setattr(tail, "choose_guard", lambda *_, **__: Guard(form))
        result = attach_postprocessing(path, **options)
    if path.suffix == ".xml":
        text = result.output.read_text(encoding="utf-8")
        result.output.write_text(text.replace("&quot;found&quot;:", "&quot;not_found&quot;:"), encoding="utf-8")
        return result.output
    model = onnx.load(result.output)
    (entry,) = (item for item in model.metadata_props if item.key == METADATA_KEY)
    entry.value = entry.value.replace('"found":', '"not_found":')
    return hosts.write(model, result.output)


@FORMATS
def test_files_of_older_versions_are_judged_and_mended(
    ir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their guard by rank alone fails the check, which names the cure; the cure is one."""
    raw = case("mix", tmp_path, ir=ir)
    old = unknowing(raw, monkeypatch, form="image", stats=IMAGE_ONLY, pixel_output=1)
    report = check_briefly(old)
    assert not report
    assert [item.name for item in report.failed if item.name == "guard"] == ["guard"]
    assert "postproc-export update" in report.summary()
    result = update_postprocessing(old, output=tmp_path / f"new{old.suffix}")
    assert result.is_changed
    assert "the NaN guard was another one and was written anew: no output guards now" in result.summary()
    assert result.output is not None
    assert check_briefly(result.output)
    assert labels(result.output, s=np.zeros(3, np.float32), h=np.full((2, 3, 8), np.nan, np.float32)) == [False] * 3


@FORMATS
@pytest.mark.parametrize(
    ("score", "anomaly_map", "form", "passes"),
    [
        pytest.param("", "1,1,H,W", "image", True, id="one-image"),
        pytest.param("1", "N,H,W", "image", False, id="cannot-run"),
        pytest.param("N", "N,1,H,W", "all", False, id="mixes-images"),
    ],
)
def test_a_guard_of_another_form_passes_only_where_it_is_the_same(
    score: str,
    anomaly_map: str,
    form: Literal["image", "all"],
    passes: bool,
    ir: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each image's own map and all maps at once are one thing for one image, and for no other number."""
    host = hosts.identity(score=score, map=anomaly_map)
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    path = unknowing(raw, monkeypatch, form=form, stats=STATS)
    checks = {item.name: item for item in check_briefly(path).checks}
    assert checks["guard"].passed is passes
    assert (checks["guard"].fix is None) is passes
    assert checks["constants/pred_label"].passed
    result = update_postprocessing(path, output=tmp_path / f"new{path.suffix}")
    assert result.is_changed
    assert result.output is not None
    assert check_briefly(result.output)


@FORMATS
@pytest.mark.parametrize("spec", ["top-k:k=2", "gaussian:sigma=0.25"])
def test_a_step_that_reads_a_map_says_that_it_is_one(spec: str, ir: bool, tmp_path: Path) -> None:
    """Who asks for a step on the map has chosen the map: it guards, found by its rank alone or not."""
    host = hosts.identity(names=("pred_score", "heat"))
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    stats = CalibrationStats(image=IMAGE, details={STATISTICS_KEY: [parse_tail(spec).to_json()]})
    result = attach_postprocessing(raw, stats, tail=spec)
    assert "guard    a NaN in 'heat' makes its image anomalous" in result.summary()
    maps = np.zeros((3, 1, 4, 4), np.float32)
    maps[1, 0, 1, 0] = np.nan
    assert labels(result.output, score=np.zeros((3, 1), np.float32), map=maps) == [False, True, False]
    assert check_briefly(result.output)


@FORMATS
def test_a_step_does_not_find_a_map_in_a_state(ir: bool, tmp_path: Path) -> None:
    """A state that contradicts the score is none for a step either."""
    stats = CalibrationStats(image=IMAGE, details={STATISTICS_KEY: [parse_tail("gaussian").to_json()]})
    with pytest.raises((UnsupportedModelError, UsageError), match="map"):
        attach_postprocessing(case("mix", tmp_path, ir=ir), stats, tail="gaussian")


def test_a_map_of_width_one_is_one(tmp_path: Path) -> None:
    """[N, 1, H, 1] has its channel axis where it belongs."""
    _, path = attached(hosts.identity(map="N,1,H,1"), tmp_path, ir=False)
    assert check_briefly(path)


@FORMATS
def test_what_attaching_would_do_with_a_state_is_told(ir: bool, tmp_path: Path) -> None:
    """Refused for both levels with the reason, possible for the image level alone."""
    raw = case("mix", tmp_path, ir=ir)
    result = inspect_model(raw, defaults=True)
    defaults = result.defaults
    assert defaults is not None
    assert defaults["refused"] is not None
    assert "--no-nan-guard" in defaults["refused"]
    told = {item["what"]: item for item in defaults["choices"]}
    assert told["guard"]["chosen"] == "none"
    assert "hn" in told["kept"]["chosen"]
    assert "given statistics of the image level alone" in result.summary()
    if not ir:  # without names of axes, a rank is all there is to go by
        assert result.levels["pixel"] is None


def test_the_defaults_name_the_map_that_guards(tmp_path: Path) -> None:
    """Which output, how, and over what."""
    for score, how in (("N,1", ""), ("", ", over all images")):
        raw = hosts.write(hosts.identity(score=score), tmp_path / "raw.onnx")
        defaults = inspect_model(raw, defaults=True).defaults
        assert defaults is not None
        told = {item["what"]: item["chosen"] for item in defaults["choices"]}
        assert told["guard"] == f"NaN, found by the sum of 'anomaly_map'{how}"


@pytest.mark.parametrize("opset", [8, 17])
@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_a_guard_over_all_images_is_known_after_an_optimiser(name: str, opset: int, tmp_path: Path) -> None:
    """ONNX Runtime's offline optimisation, unused nodes gone: the tail is still found whole."""
    score, anomaly_map = ONE_FOR_ALL[name]
    _, path = attached(hosts.identity(score=score, map=anomaly_map, opset=opset), tmp_path, ir=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    report = inspect_model(tmp_path / "optimised.onnx").levels["image"]
    assert report is not None
    assert (report.tail, bool(report.guarded_by)) == ("postproc_export", True)
    assert detach_postprocessing(tmp_path / "optimised.onnx", output=tmp_path / "back.onnx")
    assert len(open_runner(tmp_path / "back.onnx").outputs) == 2


def test_the_command_line_says_who_guards(invoke: Callable[..., Any], tmp_path: Path) -> None:
    """Exit 0 and the output's name, or exit 2 and one message with the way out."""
    STATS.save(tmp_path / "both.json")
    IMAGE_ONLY.save(tmp_path / "image.json")
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    done = invoke("attach", raw, "--stats", tmp_path / "both.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "  guard    a NaN in 'anomaly_map' makes its image anomalous\n" in done.stdout
    state = case("rnn", tmp_path, ir=False)
    refused = invoke("attach", state, "--stats", tmp_path / "both.json")
    assert refused.exit_code == 2
    assert "fix:     --no-nan-guard" in refused.stderr
    assert not (tmp_path / "rnn.post.onnx").exists()
    for options in (("--stats", tmp_path / "both.json", "--no-nan-guard"), ("--stats", tmp_path / "image.json")):
        assert invoke("attach", state, *options).exit_code == 0
        assert invoke("check", tmp_path / "rnn.post.onnx").exit_code == 0
