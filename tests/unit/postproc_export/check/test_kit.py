"""Kits: what is in the folder, that it is the same every time, and by which rules what was computed is judged."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from attached_files import detector, labelled
from kits import SUITES, computed, expected, sets
from onnx import numpy_helper
from shipped_tails import stats_behind
from tail_forms import STATS, attached

from postproc_export import judge_outputs, write_vectors
from postproc_export.check.findings import Check
from postproc_export.check.report import ParityReport
from postproc_export.errors import MissingDependencyError
from postproc_export.twin import NumpyPostProcessor

Host = Callable[[], onnx.ModelProto]

FIXED: Host = lambda: hosts.score_and_map(dynamic=False)  # noqa: E731
CASES: dict[str, tuple[Host, dict[str, Any], tuple[str, ...]]] = {
    "map-only": (hosts.map_only, {}, ("tail", "whole")),
    "score-only": (hosts.score_only, {"image_sensitivity": 0.3}, ("tail", "whole")),
    "fixed": (FIXED, {"comparison": "gt"}, ("tail", "tail_open", "whole")),
    "fixed-score": (lambda: hosts.score_only(dynamic=False), {}, ("tail", "tail_open", "whole")),
    "packed": (hosts.score_and_map, {"layout": "packed"}, ("tail", "whole")),
    "raw-scores": (hosts.score_and_map, {"enable_normalization": False, "nan_guard": False}, ("tail", "whole")),
    "no-labels": (hosts.score_and_map, {"enable_thresholding": False}, ("tail", "whole")),
    "pixel-level": (hosts.score_and_map, {"levels": "pixel"}, ("tail", "whole")),
    "adjustable": (FIXED, {"adjustable": "sensitivity"}, SUITES),
    "boundary": (hosts.map_only, {"adjustable": "boundary"}, ("tail", "tail_adjusted", "whole")),
    "float16": (lambda: hosts.score_and_map(dtype="float16"), {}, ("tail", "whole")),
    "bfloat16": (lambda: hosts.score_and_map(dtype="bfloat16"), {}, ("tail", "whole")),
    "labels-float32": (hosts.score_and_map, {"label_dtype": "float32", "mask_dtype": "float32"}, ("tail", "whole")),
    "guard-over-all": (lambda: hosts.identity(score="", map="1,1,8,8"), {}, ("tail", "tail_open", "whole")),
    "keep-raw": (hosts.score_and_map, {"keep_raw": True}, ("tail", "whole")),
}


def checks(report: ParityReport) -> dict[str, Check]:
    """Return the checks of a report by what they are of."""
    return {check.subject: check for check in report.checks}


IN_AN_IR = ("packed", "adjustable", "float16", "guard-over-all", "keep-raw")


@pytest.mark.parametrize(
    ("name", "ir"),
    [*((name, False) for name in CASES), *((name, True) for name in IN_AN_IR)],
    ids=[*CASES, *(f"{name}-ir" for name in IN_AN_IR)],
)
def test_a_runtime_passes(name: str, ir: bool, tmp_path: Path) -> None:
    """Every form of a tail: what the file's own runtime computes of the tensors passes, in every suite."""
    host, options, suites = CASES[name]
    if ir and options.get("adjustable"):
        options = {**options, "as_parameters": True}
    _, file = attached(host(), tmp_path, ir=ir, **options)
    kit = write_vectors(file, output=tmp_path / "kit", count=300)
    assert tuple(kit.sets) == suites
    report = judge_outputs(kit.output, computed(kit.output, file, tmp_path / "outputs"), reference="numpy")
    assert report, report.describe()
    parts = {subject.rpartition("/")[0].partition("/")[0] for subject in checks(report)}
    assert parts == {"tail", "whole"} | ({"adjusted"} if "tail_adjusted" in suites else set())
    assert ("whole/tapped/pred_label" in checks(report)) == (name == "keep-raw")


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_the_same_options_give_the_same_bytes(ir: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At another time, in another folder, from another one; and nothing in it names a path or a time."""
    _, file = attached(FIXED(), tmp_path, ir=ir)
    first = write_vectors(file, output=tmp_path / "first", count=300)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    second = write_vectors(file.name, output="second", count=300)
    assert first.digest == second.digest
    paths = sorted(path.relative_to(first.output) for path in first.output.rglob("*") if path.is_file())
    assert paths == sorted(path.relative_to("second") for path in Path("second").rglob("*") if path.is_file())
    assert [path for path in paths if (first.output / path).read_bytes() != ("second" / path).read_bytes()] == []
    assert [path for path in paths if str(tmp_path).encode() in (first.output / path).read_bytes()] == []
    assert write_vectors(file, output=tmp_path / "third", count=300, seed=1).digest != first.digest


@pytest.mark.parametrize("size", [256, 1024])
def test_a_kit_is_small(size: int, tmp_path: Path) -> None:
    """Below 10 MB whatever the size of the maps; what was left out for that is said in the result and in the report."""
    _, file = attached(hosts.score_and_map(dynamic=False, size=(size, size)), tmp_path)
    kit = write_vectors(file, output=tmp_path / "kit")
    assert kit.size < 10_000_000
    assert any("sets of the declared shapes" in note for note in kit.notes)
    assert any("the whole file on synthetic inputs" in note for note in kit.notes) == (size > 256)
    report = judge_outputs(kit.output, expected(kit.output, tmp_path / "outputs"), reference="numpy")
    assert set(kit.notes) <= set(report.not_checked)


def test_more_values_leave_nothing_out(tmp_path: Path) -> None:
    """However many values are asked for, the sets of the declared shapes and of the whole file are there."""
    _, file = attached(hosts.score_only(), tmp_path)
    few, many = (write_vectors(file, output=tmp_path / str(count), count=count) for count in (100, 600_000))
    assert many.size > 10_000_000
    assert (many.sets, many.notes) == (few.sets, few.notes)


def test_without_a_runtime_there_is_the_tail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit says so; images, which would have to be run, are refused."""
    file = detector(tmp_path)
    monkeypatch.setattr("postproc_export.check.vectors.installed_runtimes", tuple)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    kit = write_vectors(file, output=tmp_path / "kit", count=100)
    assert list(kit.sets) == ["tail"]
    assert "the whole file: onnxruntime is not installed (pip install onnxruntime)" in kit.notes
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        write_vectors(file, output=tmp_path / "other", images=labelled(tmp_path / "photos"))
    assert not (tmp_path / "other").exists()


def test_onnx_reads_all_of_it(tmp_path: Path) -> None:
    """The model is valid with its shapes, the tensors and the arrays by name are the same, and the evaluator agrees."""
    _, file = attached(FIXED(), tmp_path)
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output
    for suite in ("tail", "tail_open"):
        onnx.checker.check_model(kit / suite / "model.onnx", full_check=True)
        model = onnx.load(kit / suite / "model.onnx")
        ports = {"input": model.graph.input, "output": model.graph.output}
        for case in sets(kit, suite):
            for kind, items in ports.items():
                with np.load(case / f"{kind}s.npz") as arrays:
                    assert arrays.files == [item.name for item in items]
                    for number, item in enumerate(items):
                        tensor = onnx.load_tensor(case / f"{kind}_{number}.pb")
                        assert tensor.data_type == item.type.tensor_type.elem_type
                        np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays[item.name])
    outputs = computed(kit, file, tmp_path / "outputs", runtime="onnx.reference")
    assert judge_outputs(kit, outputs, reference="numpy")


@pytest.mark.parametrize("suite", SUITES)
def test_a_wrong_value_fails(suite: str, tmp_path: Path) -> None:
    """In each suite: a label that flipped, a score beyond its bound."""
    _, file = attached(FIXED(), tmp_path, adjustable="sensitivity")
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output

    def spoiled(place: str, arrays: dict[str, Any]) -> dict[str, Any]:
        if place == f"{suite}/test_data_set_0":
            arrays["pred_mask"].flat[-1] ^= True
            arrays["pred_score"].flat[-1] = np.nan_to_num(arrays["pred_score"].flat[-1] - 0.25)
        return arrays

    report = judge_outputs(kit, expected(kit, tmp_path / "outputs", spoiled), reference="numpy")
    found = {check.subject.partition("/")[0] for check in report.failed}
    assert found == {suite.partition("_")[0] if suite != "tail_adjusted" else "adjusted"}
    outputs = {check.output for check in report.failed}
    assert outputs == ({"pred_mask"} if suite == "tail_adjusted" else {"pred_mask", "pred_score"})


def test_a_packed_score_that_is_not_the_same_all_over_its_image_fails(tmp_path: Path) -> None:
    """One pixel of the plane of labels."""
    _, file = attached(hosts.score_and_map(), tmp_path, layout="packed")
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output

    def spoiled(_: str, arrays: dict[str, Any]) -> dict[str, Any]:
        arrays["output"][-1, -1, -1, 2] = 1.0 - arrays["output"][-1, -1, -1, 2]
        return arrays

    report = judge_outputs(kit, expected(kit, tmp_path / "outputs", spoiled), reference="numpy")
    assert {"tail/pred_label", "whole/kit/pred_label"} <= {check.subject for check in report.failed}
    assert "is not the same all over each image" in report.describe()


def moved(kit: Path, outputs: Path, share: float, *, tells: bool = False) -> Path:
    """Write what a machine gives whose raw values lie higher by a share of the span, and maybe these as well."""

    def of_set(place: str, arrays: dict[str, Any]) -> dict[str, Any]:
        if not place.startswith("whole"):
            return arrays
        with np.load(kit / place / "raw.npz") as raw:
            own = {
                name: raw[name] + np.float32(share * getattr(STATS, level).span)
                for name, level in (("raw_score", "image"), ("raw_map", "pixel"))
            }
        made = NumpyPostProcessor(stats=STATS)(own["raw_score"], own["raw_map"])
        return {**made, **(own if tells else {})}

    return expected(kit, outputs, of_set)


def test_the_whole_file_may_have_other_raw_values_within_the_band(tmp_path: Path) -> None:
    """Half of the band passes, and flips of values that lie in it are told; ten times the band fails."""
    identity = hosts.identity(map="N,1,32,4096")
    _, file = attached(identity, tmp_path)
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output
    near = judge_outputs(kit, moved(kit, tmp_path / "near", 5e-5), reference="numpy")
    assert near, near.describe()
    mask = checks(near)["whole/kit/pred_mask"]
    assert mask.details["flipped"] == mask.details["near"] > 0
    assert "from the boundary" in mask.message
    forgiven = f"{mask.details['flipped']} of {mask.details['count']:,} in pred_mask"
    assert f"decides as PyTorch does, by its twin in NumPy but for {forgiven}, which the band" in near.headline()
    far = judge_outputs(kit, moved(kit, tmp_path / "far", 1e-3), reference="numpy")
    assert {check.subject for check in far.failed} == {
        "whole/kit/pred_mask",
        "whole/kit/anomaly_map",
        "whole/kit/pred_score",
    }
    assert "are of other raw values than those of the kit" in far.headline()


def test_a_machine_that_tells_its_raw_values_is_judged_exactly(tmp_path: Path) -> None:
    """Its tail by its own raw values: a flip within the band of the kit's is a failure then."""
    _, file = attached(hosts.identity(map="N,1,32,4096"), tmp_path)
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output
    told = judge_outputs(kit, moved(kit, tmp_path / "told", 5e-5, tells=True), reference="numpy")
    assert told, told.describe()
    assert {"whole/raw/raw_score", "whole/raw/raw_map", "whole/tapped/pred_mask"} <= checks(told).keys()
    outputs = moved(kit, tmp_path / "wrong", 5e-5, tells=True)
    path = outputs / "whole" / "test_data_set_0" / "outputs.npz"
    with np.load(path) as found:
        arrays = dict(found)
    at = np.abs(arrays["raw_map"] - np.float32(STATS.pixel.threshold)).argmin()
    arrays["pred_mask"].flat[at] ^= True
    np.savez(path, **arrays)
    wrong = judge_outputs(kit, outputs, reference="numpy")
    assert [check.subject for check in wrong.failed] == ["whole/tapped/pred_mask"]


def test_what_stands_behind_the_decision_is_judged(tmp_path: Path) -> None:
    """A gated mask by the machine's own label, and the label of an operating point, which a flip fails."""
    steps = ["gate", "points:strict=0.3"]
    raw, file = hosts.attached(hosts.score_and_map(), tmp_path, stats=stats_behind(steps), step=steps)
    kit = write_vectors(file, output=tmp_path / "kit", raw=raw, count=300)
    assert any("the custom steps alone (gate, points:strict=0.3)" in note for note in kit.notes)
    outputs = computed(kit.output, file, tmp_path / "outputs")
    report = judge_outputs(kit.output, outputs, reference="numpy")
    assert report, report.describe()
    assert "whole/kit/pred_label_strict" in checks(report)

    def spoiled(place: str, arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: ~values if name == "pred_label_strict" else values for name, values in arrays.items()}

    wrong = judge_outputs(kit.output, expected(kit.output, tmp_path / "wrong", spoiled), reference="numpy")
    assert [check.subject for check in wrong.failed] == ["whole/kit/pred_label_strict"]


def test_images_are_cases_of_the_whole_file(tmp_path: Path) -> None:
    """As many as the limit says, of every class, under the names of their files and folders; the report counts them."""
    file = detector(tmp_path)
    images = labelled(tmp_path / "photos")
    kit = write_vectors(file, output=tmp_path / "kit", images=images, limit=3, count=300).output
    document = json.loads((kit / "kit.json").read_text())
    names = [case["what"] for case in document["suites"]["whole"]["sets"]][-3:]
    assert sorted(names) == ["good/000.png", "good/001.png", "spot/000.png"]
    report = judge_outputs(kit, computed(kit, file, tmp_path / "outputs"), where="here", reference="numpy")
    assert report
    assert "the whole file on 3 of 4 images, in here" in report.headline()
    assert not [sentence for sentence in report.not_checked if "images" in sentence]


def test_a_suite_may_be_left_out(tmp_path: Path) -> None:
    """The report says so; with no suite at all nothing is judged."""
    _, file = attached(FIXED(), tmp_path)
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output
    outputs = expected(kit, tmp_path / "outputs")
    for suite in ("tail_open", "whole"):
        (outputs / suite).rename(tmp_path / suite)
    (outputs / "kit.json").unlink()
    report = judge_outputs(kit, outputs, reference="numpy")
    assert report
    assert f"the whole file: there is no folder whole in {outputs}" in report.not_checked
    assert "whether the outputs are of this kit" in report.headline()


WITHOUT = """
import sys
for name in ("torch", "onnxruntime", "openvino"):
    sys.modules[name] = None
from postproc_export.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_judging_needs_neither_torch_nor_a_runtime_nor_the_model(tmp_path: Path) -> None:
    """In a process in which none of them can be imported, and without the attached file."""
    _, file = attached(hosts.score_and_map(), tmp_path)
    kit = write_vectors(file, output=tmp_path / "kit", count=300).output
    outputs = computed(kit, file, tmp_path / "outputs")
    file.unlink()
    command = [sys.executable, "-c", WITHOUT, "judge", str(kit), str(outputs), "--reference", "numpy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "decides as PyTorch does, by its twin in NumPy" in " ".join(done.stdout.split())
