"""`postproc-export calibrate`: values that point the wrong way, or tell nothing, are warned of with their causes."""

from pathlib import Path

import hosts
import numpy as np
import pytest
from conftest import Invoke
from image_files import save

from postproc_export.stats import CalibrationStats

CASES = Path(__file__).parents[1] / "data" / "cases"
CAUSES = ("pre-processing (mean and std forgotten", "BGR for RGB", "a centre crop left out", "another model or output")


def warnings_of(stderr: str, level: str) -> list[str]:
    """Return the warnings of a level, one line each."""
    return [line for line in stderr.splitlines() if line.startswith(f"warning: {level} level")]


def test_scores_of_the_wrong_sign_are_named(invoke: Invoke, tmp_path: Path) -> None:
    """An IsolationForest's scores: the causes in their order, sign and labels, and that all normal ones are called."""
    ran = invoke("calibrate", CASES / "iforest.raw.npz", "-o", tmp_path / "stats.json")
    assert ran.exit_code == 0
    (area,) = warnings_of(ran.stderr, "image")
    assert "AUROC of 0.0056" in area
    places = [area.index(cause) for cause in (*CAUSES, "wrong labels", "scores of the wrong sign")]
    assert places == sorted(places)
    assert (
        "suspect labels in which 1 is normal (`--anomalous-label 0`), and scores in which lower is more anomalous"
        in area
    )
    assert "(calibrate these with `--step negate:level=image`, or without it" in area
    assert area.endswith("; the threshold calls every one of 80 normal images anomalous")


def test_scores_that_tell_the_classes_apart_are_not_warned_of(invoke: Invoke, tmp_path: Path) -> None:
    """The same scores turned round give no warning; nor does a set of one class, but the one that says so."""
    given = dict(np.load(CASES / "iforest.raw.npz"))
    np.savez(tmp_path / "turned.npz", pred_score=-given["pred_score"], gt_label=given["gt_label"])
    ran = invoke("calibrate", tmp_path / "turned.npz", "-o", tmp_path / "stats.json")
    assert (ran.exit_code, warnings_of(ran.stderr, "image")) == (0, [])
    for label, which in ((0, "normal"), (1, "anomalous")):
        np.savez(tmp_path / "one.npz", pred_score=given["pred_score"], gt_label=np.full(100, label))
        (only,) = warnings_of(invoke("calibrate", tmp_path / "one.npz", "-o", tmp_path / "s.json").stderr, "image")
        assert f"only {which} samples" in only


@pytest.mark.parametrize("inverted", [True, False])
def test_inverted_masks_are_named(invoke: Invoke, tmp_path: Path, inverted: bool) -> None:
    """Masks in which 0 is anomalous give a pixel AUROC below 0.5, and the warning names them; right ones give none."""
    random = np.random.default_rng(3)
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[2:, 2:5, 2:5] = 1
    maps = (masks + random.normal(0, 0.2, masks.shape)).astype(np.float32)
    np.savez(tmp_path / "val.npz", anomaly_map=maps, gt_mask=1 - masks if inverted else masks)
    ran = invoke("calibrate", tmp_path / "val.npz", "-o", tmp_path / "stats.json")
    assert ran.exit_code == 0
    found = warnings_of(ran.stderr, "pixel")
    assert len(found) == inverted
    assert all(cause in " ".join(found) for cause in (*CAUSES, "wrong masks", "inverted masks") if inverted)


def detector(folder: Path, score: str) -> Path:
    """Write a model of images [N,3,4,4] with a score [N,1]."""
    graph = f"g (float[N,3,4,4] x) => (float[N,1] pred_score) <float one = {{1.0}}, float red = {{2.0}}> {{ {score} }}"
    return hosts.write(hosts.parse(graph), folder / "model.onnx")


def images(folder: Path, *, normal: list[list[int]], anomalous: list[list[int]]) -> Path:
    """Write images of one colour each, in MVTec AD's layout."""
    for name, colours in (("good", normal), ("spot", anomalous)):
        for index, colour in enumerate(colours):
            save(folder / "set" / name / f"{index}.png", np.full((4, 4, 3), colour, np.uint8))
    return folder / "set"


@pytest.mark.parametrize(
    ("score", "normal", "anomalous", "right", "wrong"),
    [
        pytest.param(
            "m = ReduceMean<axes = [1, 2, 3], keepdims = 1>(x) a = Abs(m) pred_score = Flatten(a)",
            [[128] * 3, [120] * 3, [134] * 3],
            [[250] * 3, [3] * 3],
            ["--mean", "0.5"],
            [],
            id="mean-forgotten",
        ),
        pytest.param(
            "c = ReduceMean<axes = [2, 3], keepdims = 0>(x) r, g, b = Split<axis = 1>(c) pred_score = Sub(r, b)",
            [[10, 9, 200], [20, 9, 210]],
            [[200, 9, 10], [210, 9, 30]],
            [],
            ["--channel-order", "bgr"],
            id="bgr-for-rgb",
        ),
    ],
)
def test_wrong_preprocessing_is_warned_of_where_it_shows(
    invoke: Invoke,
    tmp_path: Path,
    score: str,
    normal: list[list[int]],
    anomalous: list[list[int]],
    right: list[str],
    wrong: list[str],
) -> None:
    """Where it takes AUROC below 0.6 the warning names pre-processing first; with the right one there is none."""
    model, folder = detector(tmp_path, score), images(tmp_path, normal=normal, anomalous=anomalous)
    for options, is_warned in ((right, False), (wrong, True)):
        ran = invoke("calibrate", model, "--images", folder, *options, "-o", tmp_path / "stats.json")
        assert ran.exit_code == 0, ran.stderr
        found = [line for line in warnings_of(ran.stderr, "image") if "AUROC" in line]
        assert [CAUSES[0] in line for line in found] == [True] * is_warned
        assert CalibrationStats.load(tmp_path / "stats.json").details["preprocessing"]
