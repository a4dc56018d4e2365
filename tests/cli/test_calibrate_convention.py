"""`postproc-export calibrate`: values of the other sign and labels of another convention, up to the finished file."""

from pathlib import Path

import hosts
import numpy as np
import pytest
from conftest import Invoke
from image_files import save

from postproc_export.record import recorded_tails
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats

CASES = Path(__file__).parents[1] / "data" / "cases"


def loaded(path: Path) -> CalibrationStats:
    """Read a statistics file."""
    return CalibrationStats.load(path)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_scores_of_the_wrong_sign_from_the_file_to_the_model(invoke: Invoke, tmp_path: Path, ir: bool) -> None:
    """With the step the same scores calibrate, and `attach` asks for it: the file then decides as calibrated."""
    stats, given = tmp_path / "stats.json", np.load(CASES / "iforest.raw.npz")
    ran = invoke("calibrate", CASES / "iforest.raw.npz", "--step", "negate", "-o", stats)
    assert (ran.exit_code, "warning" in ran.stderr) == (0, False), ran.stderr
    image = loaded(stats).image
    assert image is not None
    assert (image.n_normal, image.n_anomalous) == (80, 20)
    assert image.details["auroc"]["value"] == pytest.approx(0.994375)
    model = hosts.raw_file(hosts.identity(map=None), tmp_path, ir=ir)
    refused = invoke("attach", model, "--stats", stats)
    assert refused.exit_code == 2
    assert "attach with --step negate, or calibrate without it" in refused.stderr
    target = tmp_path / f"finished{model.suffix}"
    assert invoke("attach", model, "--stats", stats, "--step", "negate", "-o", target).exit_code == 0
    found = open_runner(target).run({"score": given["pred_score"]})["pred_label"].ravel().astype(bool)
    assert np.array_equal(found, -given["pred_score"].ravel() >= np.float32(image.threshold))
    assert (int(found[given["gt_label"] == 1].sum()), int(found[given["gt_label"] == 0].sum())) == (20, 3)
    assert invoke("check", target, "--raw", model, "--no-int8").exit_code == 0


def test_steps_that_are_not_the_recorded_ones_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    """Both ways out are named, for a step that is there and for one that is not."""
    model = hosts.write(hosts.score_only(), tmp_path / "model.onnx")
    for steps in ([], ["--step", "negate:level=image"]):
        invoke("calibrate", CASES / "iforest.raw.npz", *steps, "-o", tmp_path / "stats.json")
        ran = invoke("attach", model, "--stats", tmp_path / "stats.json", "--step", "negate")
        wanted = "attach with --step negate:level=image" if steps else "leave it out here"
        assert (ran.exit_code, f"fix:     {wanted}, or calibrate with --step negate" in ran.stderr) == (2, True)


def test_labels_of_scikit_learn_are_told_apart(invoke: Invoke, tmp_path: Path) -> None:
    """-1 is its outlier: the message says what to type for that and for the reverse, and both can be typed so."""
    stats = tmp_path / "stats.json"
    ran = invoke("calibrate", CASES / "pm1.npz", "-o", stats)
    assert (ran.exit_code, stats.exists()) == (2, False)
    assert "scikit-learn has -1 for outliers and 1 for what is normal" in ran.stderr
    for label, area in (("-1", 1.0), ("1", 0.0)):
        assert f": --anomalous-label {label}" in ran.stderr
        assert invoke("calibrate", CASES / "pm1.npz", "--anomalous-label", label, "-o", stats).exit_code == 0
        image = loaded(stats).image
        assert image is not None
        assert (image.n_normal, image.n_anomalous, image.details["auroc"]["value"]) == (10, 10, area)
        assert loaded(stats).details["anomalous_label"] == label
    invoke("calibrate", CASES / "pm1.npz", "--anomalous-label", "-1", "-o", stats)
    assert loaded(stats).image.threshold == np.float32(-0.01)


def test_labels_in_which_1_is_normal(invoke: Invoke, tmp_path: Path) -> None:
    """The warning of an AUROC below 0.5 names the option that mends it, and it does."""
    labels = np.repeat([1, 0], 5)
    np.savez(tmp_path / "val.npz", scores=np.arange(10, dtype=np.float32), labels=labels)
    ran = invoke("calibrate", tmp_path / "val.npz", "-o", tmp_path / "stats.json")
    assert "labels in which 1 is normal (`--anomalous-label 0`)" in ran.stderr
    mended = invoke("calibrate", tmp_path / "val.npz", "--anomalous-label", "0", "-o", tmp_path / "stats.json")
    assert (mended.exit_code, "warning" in mended.stderr) == (0, False)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two dark and two bright images in a CSV file whose labels are a plant's own words."""
    rows = ["image,label"]
    for index, (value, label) in enumerate(((10, "OK"), (20, "OK"), (200, "Ausschuss"), (220, "Ausschuss"))):
        save(tmp_path / f"{index}.png", np.full((4, 4, 3), value, np.uint8))
        rows.append(f"{index}.png,{label}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "list.csv"


def bright(folder: Path) -> Path:
    """Write a model whose score is an image's mean."""
    body = "m = ReduceMean<axes = [1, 2, 3], keepdims = 1>(x) pred_score = Flatten(m)"
    model = hosts.parse(f"g (float[N,3,4,4] x) => (float[N,1] pred_score) {{ {body} }}")
    return hosts.write(model, folder / "model.onnx")


def test_words_in_a_list_of_images(invoke: Invoke, listed: Path, tmp_path: Path) -> None:
    """Words that are not known are refused with the option; with it they count, and the statistics say so."""
    model, stats = bright(tmp_path), tmp_path / "stats.json"
    ran = invoke("calibrate", model, "--images", listed, "-o", stats)
    assert ran.exit_code == 2
    assert "label 'Ausschuss'" in ran.stderr
    assert "say which label is anomalous: --anomalous-label VALUE" in ran.stderr
    assert invoke("calibrate", model, "--images", listed, "--anomalous-label", "Ausschuss", "-o", stats).exit_code == 0
    found = loaded(stats)
    assert found.image is not None
    assert (found.image.n_normal, found.image.n_anomalous, found.details["anomalous_label"]) == (2, 2, "Ausschuss")
    assert found.details["samples"]["classes"] == {"Ausschuss": 2, "OK": 2}
    never = invoke("calibrate", model, "--images", listed, "--anomalous-label", "ausschuss", "-o", stats)
    assert never.exit_code == 2
    assert "no image has --anomalous-label ausschuss\n  found:   OK, Ausschuss" in never.stderr
    invoke("attach", model, "--stats", stats, "-o", tmp_path / "a.onnx")
    checked = invoke("check", tmp_path / "a.onnx", "--images", listed, "--no-int8")
    assert checked.exit_code == 0, checked.stderr  # it needs no labels, whatever they are called


def test_steps_and_labels_go_with_a_model_as_well(invoke: Invoke, listed: Path, tmp_path: Path) -> None:
    """The step stands in the model, once: dark images are the anomalies then."""
    model, stats = bright(tmp_path), tmp_path / "stats.json"
    options = ["--anomalous-label", "OK", "--step", "negate"]
    ran = invoke("calibrate", model, "--images", listed, *options, "-o", stats)
    assert (ran.exit_code, "AUROC" in ran.stderr) == (0, False), ran.stderr
    found = loaded(stats)
    assert found.image is not None
    assert found.image.max < 0
    assert [step.text for step in recorded_tails(found)] == ["negate"]


def test_folders_say_themselves_what_is_anomalous(invoke: Invoke, tmp_path: Path) -> None:
    """An option that cannot apply to them is refused."""
    model = bright(tmp_path)
    for name, value in (("good", 10), ("spot", 200)):
        save(tmp_path / "set" / name / "0.png", np.full((4, 4, 3), value, np.uint8))
    ran = invoke("calibrate", model, "--images", tmp_path / "set", "--anomalous-label", "spot", "-o", tmp_path / "s")
    assert ran.exit_code == 2
    assert "--anomalous-label spot: the names of folders say what is anomalous" in ran.stderr


@pytest.mark.parametrize(
    ("rows", "label", "message"),
    [
        ("1,good\n2,bad\n", "worse", "found:   2 images with other labels, such as bad, good"),
        ("1,good\n2,\n3,bad\n", "bad", "label[1], line 3"),
        ("1,good\n2,bad\n", None, "line 2, column 'label': not a number"),
    ],
    ids=["never", "missing", "not-named"],
)
def test_words_in_a_list_of_scores(invoke: Invoke, tmp_path: Path, rows: str, label: str | None, message: str) -> None:
    """They count once one of them is named; what says nothing is refused, and nothing is written."""
    (tmp_path / "scores.csv").write_text(f"score,label\n{rows}")
    options = [] if label is None else ["--anomalous-label", label]
    ran = invoke("calibrate", tmp_path / "scores.csv", *options, "-o", tmp_path / "stats.json")
    assert (ran.exit_code, (tmp_path / "stats.json").exists()) == (2, False)
    assert message in ran.stderr
    (tmp_path / "scores.csv").write_text("score,label\n1,good\n2,bad\n3,bad\n")
    assert invoke("calibrate", tmp_path / "scores.csv", "--anomalous-label", "bad", "-o", tmp_path / "s").exit_code == 0
