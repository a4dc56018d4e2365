"""The command report: one file from statistics or an attached model, and what it refuses."""

import json
from pathlib import Path

import pytest
from attached_files import detector, labelled
from conftest import Invoke
from report_stats import two_bells

from postproc_export import update_postprocessing
from postproc_export.files import model_digests, model_files


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A statistics file of one level."""
    path = tmp_path_factory.mktemp("stats") / "stats.json"
    two_bells().save(path)
    return path


def test_statistics_alone_suffice(stats: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A report and its plots are written, JSON says where, and the same statistics give the same bytes."""
    arguments = ("report", stats, "-o", tmp_path / "report.html", "--png", tmp_path / "plots", "--json")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["output"] == str(tmp_path / "report.html")
    assert document["levels"]["pixel"] is None
    names = ["image-values.png", "image-rates.png", "image-precision-recall.png", "image-roc.png"]
    names.append("image-confusion.png")
    assert document["png"] == [str(tmp_path / "plots" / name) for name in names]
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    first = (tmp_path / "report.html").read_bytes()
    assert invoke("report", stats, "-o", tmp_path / "report.html").exit_code == 0
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_report_never_takes_the_place_of_what_it_reads(stats: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Written onto the statistics or the check it is refused, and these stay."""
    before = stats.read_bytes()
    check = check_json(tmp_path / "check.json", stats)
    written = check.read_bytes()
    for target in (stats, check):
        result = invoke("report", stats, "--check", check, "-o", target)
        assert result.exit_code == 2
        assert "it is the file that is read" in result.stderr
    assert (stats.read_bytes(), check.read_bytes()) == (before, written)


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an attached model, its labelled images and its check."""
    folder = tmp_path_factory.mktemp("attached model")
    detector(folder, ir=False)
    labelled(folder / "images")
    return folder


def check_json(path: Path, model: Path, **more: object) -> Path:
    """Write what a check of a model printed, as far as a report reads it."""
    document = {"passed": False, "verdict": "FAILED: x", "causes": [{"what": "<labels> flip", "fix": "update it"}]}
    path.write_text(json.dumps(document | {"files": model_digests(model)} | more))
    return path


def test_a_model_shows_its_images(attached: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A model in place of statistics is enough; its images, folders and the verdict of its check are on the page."""
    model = next(attached.glob("*.post.onnx"))
    check = check_json(tmp_path / "check.json", model)
    arguments = ("report", model, "--images", attached / "images", "--check", check)
    result = invoke(*arguments, "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="example"') >= 4
    assert page.count("<tr data-folder=") == 2
    assert "&lt;labels&gt; flip" in page
    assert "<labels>" not in page
    assert f"postproc-export update '{model}'" in page
    odd = check_json(tmp_path / "odd.json", model, causes=5, passed=True)
    assert invoke("report", model, "--check", odd, "-o", tmp_path / "report.html").exit_code == 0
    assert "Check passed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_does_not_belong_together_is_refused(attached: Path, stats: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Statistics of another model, a check that is none or of no model, and images without a model."""
    model, output = next(attached.glob("*.post.onnx")), tmp_path / "report.html"
    other = check_json(tmp_path / "other.json", stats)
    unknown = check_json(tmp_path / "unknown.json", model, files={})
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    for arguments, found in (
        ((stats, "--model", model), "the statistics are not those of"),
        ((model, "--model", model), "is a model, and --model"),
        ((model, "--check", other), "is the check of another file"),
        ((model, "--check", unknown), "does not tell of which file it is"),
        ((stats, "--check", other), "--check without a model"),
        ((model, "--check", empty), "is no report of a check"),
        ((model, "--check", stats), "--json > CHECK.json"),
        ((stats, "--images", attached / "images"), "--images would have no effect"),
        ((stats, "--preset", "unit"), "--preset without images"),
        ((model, "--png", tmp_path / "plots"), "--png would have no effect"),
    ):
        result = invoke("report", *arguments, "-o", output)
        assert result.exit_code == 2
        assert found in result.stderr
    assert not output.exists()


@pytest.mark.parametrize("ir", [False, True])
def test_a_verdict_counts_for_the_bytes_that_were_checked(ir: bool, tmp_path: Path, invoke: Invoke) -> None:
    """A copy under another name has it; the file of that name with another sensitivity has not."""
    model, target, check = detector(tmp_path, ir=ir), tmp_path / "report.html", tmp_path / "check.json"
    check.write_text(invoke("check", model, "--json").stdout)
    for path in model_files(model):
        (tmp_path / f"released{path.suffix}").write_bytes(path.read_bytes())
    result = invoke("report", tmp_path / f"released{model.suffix}", "--check", check, "-o", target)
    assert result.exit_code == 0, result.stderr
    assert "Check passed" in target.read_text(encoding="utf-8")
    target.unlink()
    update_postprocessing(model, image_sensitivity=0.9, in_place=True)
    result = invoke("report", model, "--check", check, "-o", target)
    assert result.exit_code == 2
    assert "is the check of another file, or" in result.stderr
    assert not target.exists()


def test_a_target_that_cannot_be_written_is_refused_before_anything_is_drawn(
    stats: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn may take minutes, with images."""
    monkeypatch.setattr("postproc_export.report.plots.plots", lambda view: pytest.fail("it was drawn"))
    for target, found in ((tmp_path, "a folder"), (stats, "it is the file that is read")):
        result = invoke("report", stats, "-o", target)
        assert result.exit_code == 2
        assert found in result.stderr
