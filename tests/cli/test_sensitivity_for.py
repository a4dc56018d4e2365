"""`--image-sensitivity-for recall=0.99`: chosen from the curve, told with its counts, refused if out of reach."""

import json
from pathlib import Path

import hosts
import numpy as np
import pytest
from anomalib_files import FOLDER
from conftest import Invoke
from doc_pages import run_page

from postproc_export.inspect import inspect_model

TAIL = Path(__file__).parents[1] / "data" / "cases" / "tail.npz"
TOLD = "sensitivity 0.503 for recall=0.99: of the 80 validation images 71 are called anomalous: 20 of 20 anomalous"


@pytest.fixture
def stats(invoke: Invoke, tmp_path: Path) -> Path:
    """Statistics of 80 images, one of which has a score far above the others."""
    assert invoke("calibrate", TAIL, "-o", tmp_path / "stats.json").exit_code == 0
    return tmp_path / "stats.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A raw model with a score."""
    return hosts.write(hosts.score_only(), tmp_path / "raw.onnx")


def validated(path: Path) -> dict[str, int]:
    """Return what a file calls the validation images, as it says itself."""
    found: dict[str, int] = inspect_model(path).to_json()["levels"]["image"]["validation"]
    return found


def test_attach_and_update_choose_what_reaches_the_rate(
    invoke: Invoke, stats: Path, model: Path, tmp_path: Path
) -> None:
    """The summary has the sensitivity and the counts there, and the file decides so; update goes by its record."""
    attached = tmp_path / "attached.onnx"
    ran = invoke("attach", model, "-s", stats, "-o", attached, "--image-sensitivity-for", "recall=0.99")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert TOLD in ran.stdout
    assert "sensitivity 0.503, rule ge" in ran.stdout
    assert validated(attached) == {"tp": 20, "fp": 51, "n_anomalous": 20, "n_normal": 60}
    ran = invoke("update", attached, "-o", tmp_path / "other.onnx", "--image-sensitivity-for", "fpr=0")
    assert ran.exit_code == 0
    assert "sensitivity 0.503 -> 0.5" in ran.stdout
    assert "sensitivity 0.5 for fpr=0: of the 80 validation images 19 are" in ran.stdout
    assert validated(tmp_path / "other.onnx") == {"tp": 19, "fp": 0, "n_anomalous": 20, "n_normal": 60}


def test_update_chooses_by_what_changes_with_it(invoke: Invoke, stats: Path, model: Path, tmp_path: Path) -> None:
    """A new threshold and the other rule are those that the sensitivity is chosen for."""
    attached = tmp_path / "attached.onnx"
    invoke("attach", model, "-s", stats, "-o", attached)
    changes = ("--image-threshold", "0.9", "--comparison", "gt", "--image-sensitivity-for", "fpr=0")
    assert invoke("update", attached, "-o", tmp_path / "other.onnx", *changes).exit_code == 0
    assert validated(tmp_path / "other.onnx") == {"tp": 19, "fp": 0, "n_anomalous": 20, "n_normal": 60}


def test_the_page_about_finished_models_runs(
    invoke: Invoke, stats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/finished_models.md as it stands, on Anomalib's own export; it shows what is printed."""
    assert stats.name == "stats.json"
    (tmp_path / "model.onnx").write_bytes((FOLDER / "270_default_dynamo.onnx").read_bytes())
    scores = np.linspace(0, 9, 10, dtype=np.float32)
    np.savez(tmp_path / "validation.npz", pred_score=scores, gt_label=scores > 6)
    monkeypatch.chdir(tmp_path)
    assert TOLD in run_page("finished_models.md", invoke, lambda: "")


@pytest.mark.parametrize("dialect", [[], ["--keep-dialect"]])
def test_anomalibs_post_processing_is_updated_with_statistics(
    invoke: Invoke, stats: Path, tmp_path: Path, dialect: list[str]
) -> None:
    """Statistics that come with the update bring the curve; without them there is none, and that is said."""
    source = FOLDER / "270_default_dynamo.onnx"
    rate, output = ["--image-sensitivity-for", "recall=0.99"], tmp_path / "updated.onnx"
    ran = invoke("update", source, "-o", output, *rate, *dialect)
    assert (ran.exit_code, output.exists()) == (2, False)
    assert "the statistics have no curve of the image level" in ran.stderr
    ran = invoke("update", source, "-o", output, "-s", stats, *rate, *dialect)
    assert ran.exit_code == 0
    assert TOLD in ran.stdout


REFUSED = [
    pytest.param(["recall=1.1"], "out of range", id="number"),
    pytest.param(["best"], "unknown policy 'best'", id="name"),
    pytest.param(["f1"], "needed:  recall=NUMBER, precision=NUMBER, fpr=NUMBER", id="no-rate"),
    pytest.param(
        ["recall=1", "--image-sensitivity", "0.5"],
        "--image-sensitivity and --image-sensitivity-for contradict each other",
        id="both",
    ),
    pytest.param(["recall=1", "--pixel-sensitivity-for", "recall=1"], "no curve of the pixel level", id="no-level"),
    pytest.param(["recall=1", "--no-threshold"], "--image-sensitivity-for would have no effect", id="no-labels"),
    pytest.param(["recall=1", "--levels", "pixel"], "--image-sensitivity-for would have no effect", id="left-out"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_chosen_is_refused(
    invoke: Invoke, stats: Path, model: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """Exit code 2, one message, and nothing written."""
    output = tmp_path / "attached.onnx"
    ran = invoke("attach", model, "-s", stats, "-o", output, "--image-sensitivity-for", *options)
    assert (ran.exit_code, ran.stdout, output.exists()) == (2, "", False)
    assert message in ran.stderr


def test_what_is_out_of_reach_is_refused_with_what_is_in_reach(
    invoke: Invoke, stats: Path, model: Path, tmp_path: Path
) -> None:
    """The advice can be typed as it stands; at 1 everything would be found, which is no answer."""
    attached = tmp_path / "attached.onnx"
    invoke("attach", model, "-s", stats, "-o", attached)
    change = ["update", attached, "-o", tmp_path / "other.onnx", "--image-threshold", "70", "--image-sensitivity-for"]
    ran = invoke(*change, "recall=0.5")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "recall 0.05 (1 of 20) at best, at sensitivity 0." in ran.stderr
    assert "at 1 every score is anomalous" in ran.stderr
    advice = ran.stderr.partition("ask for ")[2].split()[0]
    assert invoke(*change, advice).exit_code == 0
    assert validated(tmp_path / "other.onnx")["tp"] == 1


def test_calibrate_and_inspect_show_where_something_changes(
    invoke: Invoke, stats: Path, model: Path, tmp_path: Path
) -> None:
    """Few rows, from least to most, in both tables and in JSON; with a heavy tail they lie side by side."""
    table = invoke("calibrate", TAIL, "-o", stats).stdout
    rows = ("0.48 0.0500 1.0000 0.0000 0 0.4997", "0.5 0.9500 1.0000 0.0000 0 0.50115", "0.51 1.0000 0.2500 1.0000 60")
    for row in ("image level: 20 anomalous, 60 normal", *rows):
        assert row in " ".join(table.replace("│", " ").split())
    document = json.loads(invoke("calibrate", TAIL, "-o", stats, "--json").stdout)
    rows = document["image"]["sensitivities"]
    assert [row["sensitivity"] for row in rows] == [0.48, 0.4997, 0.5, 0.50115, 0.503, 0.51]
    assert rows[2] | {"tp": 19, "fp": 0, "recall": 0.95, "precision": 1.0, "fpr": 0.0} == rows[2]
    attached = tmp_path / "attached.onnx"
    invoke("attach", model, "-s", stats, "-o", attached, "--image-sensitivity", "0.4")
    shown = [line.split() for line in invoke("inspect", attached).stdout.splitlines()]
    assert ["sensitivity", "recall", "precision", "FPR", "false", "alarms"] in shown
    assert ["0.4", "0.0500", "1.0000", "0.0000", "0"] in shown
    found = json.loads(invoke("inspect", attached, "--json").stdout)["levels"]["image"]["sensitivities"]
    assert [row for row in found if row["sensitivity"] != 0.4] == [row for row in rows if row["sensitivity"] != 0.48]


def test_a_level_without_a_curve_has_no_table(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    """Four numbers alone: nothing is shown, and nothing fails."""
    document = {"schema_version": 1, "image": {"threshold": 1, "min": 0, "max": 2}, "pixel": None}
    (tmp_path / "s.json").write_text(json.dumps(document))
    invoke("attach", model, "-s", tmp_path / "s.json", "-o", tmp_path / "attached.onnx")
    assert "false alarms" not in invoke("inspect", tmp_path / "attached.onnx").stdout
    level = json.loads(invoke("inspect", tmp_path / "attached.onnx", "--json").stdout)["levels"]["image"]
    assert (level["sensitivities"], level["range"], level["validation"]) == ([], None, None)


def test_inspect_shows_a_range_of_quantiles(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    """Which quantiles they are, and what was seen."""
    invoke("calibrate", TAIL, "-o", tmp_path / "s.json", "--image-range", "quantile=0,0.98")
    invoke("attach", model, "-s", tmp_path / "s.json", "-o", tmp_path / "attached.onnx")
    shown = invoke("inspect", tmp_path / "attached.onnx").stdout
    assert "range        quantile=0,0.98 of all values; those seen are 0.8837485 to 60.0" in shown
    level = json.loads(invoke("inspect", tmp_path / "attached.onnx", "--json").stdout)["levels"]["image"]
    assert (level["range"], level["extremes"]) == ("quantile=0,0.98", {"min": 0.8837485, "max": 60.0})
