"""What `postproc-export check` prints: the verdict first, one line per cause, the mend, and what to run next."""

import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from postproc_export import check
from postproc_export.attach import attach_postprocessing
from postproc_export.stats import CalibrationStats, LevelStats

ALONE = ("--runtime", "onnxruntime")  # what is tested does not depend on the runtime
DOCS = Path(__file__).parents[2] / "docs"
STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75),
    pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625),
    details={"preprocessing": {"size": [32, 32], "scale": 255.0, "channel_order": "rgb", "layout": "nchw"}},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with a model, the attached file, another model, statistics and images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check_parity", partial(check.check_parity, count=1_000))
    hosts.write(hosts.score_and_map(), Path("raw.onnx"))
    other = hosts.score_and_map()
    weight = next(item for item in other.graph.initializer if item.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.float32([0.9, 0.05, 0.4])[None, :, None, None], "weight"))
    hosts.write(other, Path("other.onnx"))
    hosts.write(hosts.score_and_map(dynamic=False, size=(16, 16)), Path("small.onnx"))
    hosts.write(hosts.score_and_map(names=("a", "b")), Path("named.onnx"))
    STATS.save("stats.json")
    attach_postprocessing("raw.onnx", STATS, output="attached.onnx")
    images = Path("bottle/test/good")
    images.mkdir(parents=True)
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number:03}.png")
    return tmp_path


def planted(fault: Any, source: str = "attached.onnx") -> Path:
    """Write a file with a fault in it."""
    model = onnx.load(source)
    fault(model)
    onnx.save(model, "faulty.onnx")
    return Path("faulty.onnx")


def next_of(text: str) -> list[str]:
    """Return the arguments of the command in the last line."""
    last = text.splitlines()[-1]
    assert last.startswith("next: postproc-export "), text
    return shlex.split(last)[2:]


@pytest.mark.usefixtures("folder")
def test_a_wrong_raw_file_is_told_as_the_docs_show(invoke: Any) -> None:
    """docs/parity.md has the command and what it prints, number for number but those of the machine."""
    page = (DOCS / "parity.md").read_text(encoding="utf-8")
    found = re.search(
        r"```sh\npostproc-export (check attached.onnx --raw other.*?)\n```\n\n```text\n(.*?)```", page, re.S
    )
    assert found is not None
    told = re.sub(r"\n {4,}", " ", found.group(2))
    result = invoke(*shlex.split(found.group(1)))
    assert result.exit_code == 1
    printed = result.stdout.replace("; another default precision than float32", "")  # on processors without one
    assert re.sub(r"\d+", "0", printed) == re.sub(r"\d+", "0", told)
    assert len(result.stdout.splitlines()) == 5


@pytest.mark.usefixtures("folder")
def test_a_wrong_raw_file_is_one_cause_without_images_too(invoke: Any) -> None:
    """Synthetic inputs show it, and the right file passes."""
    result = invoke("check", "attached.onnx", "--raw", "other.onnx")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith("FAILED: attached.onnx does not decide as other.onnx (")
    assert result.stdout.count("other.onnx is another model") == 1
    right = [{"RAW": "raw.onnx"}.get(word, word) for word in next_of(result.stdout)]
    mended = invoke(*right)
    assert mended.exit_code == 0, mended.stdout
    assert next_of(mended.stdout)[-2:] == ["--images", "FOLDER"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])
def test_the_model_that_was_calibrated_tells_the_original(ir: bool, invoke: Any) -> None:
    """By its content: another raw file is told from an attached one that was changed, however little values differ."""
    one, near = Path("one.xml" if ir else "one.onnx"), Path("near.xml" if ir else "near.onnx")
    alone = ("--runtime", "openvino") if ir else ALONE
    hosts.write(hosts.score_and_map(), one)
    moved = hosts.score_and_map()
    bias = next(item for item in moved.graph.initializer if item.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(2e-3), bias.name))
    hosts.write(moved, near)
    calibrate = ("calibrate", one, "--images", "bottle/test", "--image-size", 32, "-o", "one.json")
    assert invoke(*calibrate, "--image-only", "--image-policy", "quantile=0.9").exit_code == 0
    for source in (one, near):
        assert invoke("attach", source, "--stats", "one.json", "-o", f"post-{source}", "--other-model").exit_code == 0
    wrong = invoke("check", f"post-{one}", "--raw", near, *alone)
    assert wrong.exit_code == 1
    assert f"  model    {near} is another model than the one in front of the tail: " in wrong.stdout
    assert next_of(wrong.stdout) == ["check", f"post-{one}", "--raw", "RAW"]
    changed = invoke("check", f"post-{near}", "--raw", one, *alone)
    assert changed.exit_code == 1
    assert "another model" not in changed.stdout
    assert next_of(changed.stdout) == ["attach", str(one), "--stats", "FILE", "-o", f"post-{near}"]
    assert "by its content" not in invoke("check", f"post-{one}", "--raw", one, *alone).stdout


@pytest.mark.usefixtures("folder")
def test_a_raw_file_of_another_content_passes_by_its_values(invoke: Any) -> None:
    """Values decide; that the file is another one is said in the verdict."""
    calibrate = ("calibrate", "raw.onnx", "--images", "bottle/test", "--image-size", 32, "-o", "one.json")
    assert invoke(*calibrate, "--image-only", "--image-policy", "quantile=0.9").exit_code == 0
    assert invoke("attach", "raw.onnx", "--stats", "one.json", "-o", "one.onnx").exit_code == 0
    model = onnx.load("raw.onnx")
    model.graph.node.append(onnx.helper.make_node("Identity", [model.graph.output[0].name], ["unused"]))
    onnx.save(model, "again.onnx")
    result = invoke("check", "one.onnx", "--raw", "again.onnx", *ALONE)
    assert result.exit_code == 0, result.stdout
    assert ", though by its content again.onnx is not the model in front of the tail, " in result.stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("fault", ["one_ulp_off", "half_precision_boundary", "swapped_range", "half_precision_slope"])
def test_constants_that_are_not_the_records_are_mended_by_the_last_line(fault: str, invoke: Any) -> None:
    """The command that is printed last runs as it stands, and what it writes passes."""
    path = planted(getattr(planted_onnx, fault))
    result = invoke("check", path, *ALONE)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("  tail     ")
    assert next_of(result.stdout) == ["update", "faulty.onnx"]
    assert invoke(*next_of(result.stdout)).exit_code == 0
    assert invoke("check", "faulty.updated.onnx", *ALONE).exit_code == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("fault", ["greater", "nan_as_normal", "swapped_order", "missing_mask", "frozen_input"])
def test_a_graph_that_was_changed_is_mended_by_attaching_again(fault: str, invoke: Any) -> None:
    """With the statistics put in, the command that is printed last mends the file."""
    result = invoke("check", planted(getattr(planted_onnx, fault)), "--raw", "raw.onnx", *ALONE)
    assert result.exit_code == 1
    again = [{"FILE": "stats.json"}.get(word, word) for word in next_of(result.stdout)]
    assert again == ["attach", "raw.onnx", "--stats", "stats.json", "-o", "faulty.onnx"]
    assert invoke(*again).exit_code == 0
    assert invoke("check", "faulty.onnx", "--raw", "raw.onnx", *ALONE).exit_code == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param({"image_sensitivity": 0.7}, "--image-sensitivity 0.7", id="image"),
        pytest.param(
            {"image_sensitivity": 0.65, "pixel_sensitivity": 0.4},
            "--image-sensitivity 0.65 --pixel-sensitivity 0.4",
            id="both",
        ),
        pytest.param(
            {"pixel_sensitivity": 0.7, "comparison": "gt"}, "--comparison gt --pixel-sensitivity 0.7", id="comparison"
        ),
        pytest.param({"image_sensitivity": 1.0}, "--image-sensitivity 1.0", id="everything"),
    ],
)
def test_options_that_were_forgotten_are_read_off_the_file(options: dict[str, Any], told: str, invoke: Any) -> None:
    """Where the record is gone, the last line is the check with the options that the file decides by; it passes."""
    attach_postprocessing("raw.onnx", STATS, output="own.onnx", **options)
    path = planted(planted_onnx.lost_record, "own.onnx")
    result = invoke("check", path, "--stats", "stats.json", *ALONE)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2] == f"  fix      say what it was attached with: {told}"
    mended = invoke(*next_of(result.stdout))
    assert mended.exit_code == 0, mended.stdout
    assert ", by stats.json, in " in mended.stdout.splitlines()[0]


@pytest.mark.usefixtures("folder")
def test_wrong_statistics_are_one_cause(invoke: Any) -> None:
    """All constants differ, in every output and runtime: one line, and the mend."""
    other = CalibrationStats(
        image=LevelStats(threshold=0.4, min=-2.0, max=3.0), pixel=LevelStats(threshold=0.1, min=-0.5, max=0.5)
    )
    other.save("other.json")
    result = invoke("check", planted(planted_onnx.lost_record), "--stats", "other.json", *ALONE)
    assert result.exit_code == 1
    verdict, cause, mend, *_ = result.stdout.splitlines()
    assert verdict.startswith("FAILED: faulty.onnx does not decide as other.json says (")
    assert cause.endswith("by the statistics; the like in pred_label, anomaly_map, pred_mask")
    assert mend == "  fix      give the statistics that it was attached with, or attach to the original with other.json"


@pytest.mark.usefixtures("folder")
def test_int8_is_run_on_request_only(invoke: Any) -> None:
    """Where nncf is installed, too; else it stands beside the verdict. `--no-int8` says what is the default."""
    pytest.importorskip("nncf")
    fed = ("check", "attached.onnx", "--images", "bottle/test", "--limit", 2)
    plain = invoke(*fed)
    assert plain.stdout == invoke(*fed, "--no-int8").stdout
    assert "INT8 (--int8)" in plain.stdout.splitlines()[0]
    asked = invoke(*fed, "--int8", "-v")
    assert asked.exit_code == 0
    assert "INT8 (--int8)" not in asked.stdout
    assert "\nopenvino-int8 quantised, else at float32: " in asked.stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        pytest.param(["--limit", 3], "--limit would have no effect", id="limit"),
        pytest.param(["--int8"], "--int8 would have no effect", id="int8"),
        pytest.param(["--max-flips", 1], "--max-flips would have no effect", id="max-flips"),
        pytest.param(["--raw", "attached.onnx"], "attached.onnx has post-processing, and is no raw file", id="raw"),
        pytest.param(["--raw", "small.onnx"], "small.onnx is not the original of attached.onnx", id="other-size"),
        pytest.param(["--raw", "named.onnx"], "needed:  an output 'pred_score'", id="other-outputs"),
        pytest.param(["--raw", "nope.onnx"], "cannot read the raw model nope.onnx", id="no-raw"),
        pytest.param(["--raw", "bottle"], "bottle", id="folder"),
        pytest.param(["--preserved", "nope.onnx"], "cannot read the raw model nope.onnx", id="no-preserved"),
        pytest.param(["--seed", -4], "--seed -4", id="seed"),
    ],
)
def test_an_option_that_cannot_apply_is_refused(arguments: list[Any], finding: str, invoke: Any) -> None:
    """Exit code 2, one message, nothing on stdout."""
    result = invoke("check", "attached.onnx", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert finding in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("folder")
def test_options_that_apply_are_taken(invoke: Any) -> None:
    """What is refused without its counterpart is accepted with it."""
    fed = ("--images", "bottle/test", "--limit", 2, "--raw", "raw.onnx", "--max-flips", 1, "--seed", 4)
    assert invoke("check", "attached.onnx", *fed).exit_code == 0


@pytest.mark.usefixtures("folder")
def test_python_says_what_the_command_prints(invoke: Any) -> None:
    """`summary` is the command's output, and `describe` is that of -v; JSON has the same verdict."""
    report = check.check_parity(Path("attached.onnx"), raw="other.onnx")
    assert f"{report.summary()}\n" == invoke("check", "attached.onnx", "--raw", "other.onnx").stdout
    document = json.loads(invoke("check", "attached.onnx", "--raw", "other.onnx", "--json").stdout)
    assert document["verdict"] == report.headline()
    assert report.describe() == invoke("check", "attached.onnx", "--raw", "other.onnx", "-v").stdout.rstrip("\n")
