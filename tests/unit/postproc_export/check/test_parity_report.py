"""`check.report`: the verdict, the causes, the JSON form, what Python and a notebook show."""

import json

import numpy as np
import pytest

from postproc_export.check.findings import Check, failed
from postproc_export.check.report import ParityReport

PASSED = Check(
    name="tail/pred_score/openvino",
    way="openvino",
    passed=True,
    message="9 scores",
    runtime="openvino-cpu 2026",
    precision="float32",
    details={"count": 9},
)
SHOWN = Check(name="tail/pred_label/openvino-default", way="openvino-default", passed=True, judged=False, message="m")
FAILED = failed("outputs", "output 'pred_mask' is missing")


def report(*checks: Check, **more: object) -> ParityReport:
    """Return a report with these checks."""
    environment = {"seed": 1, "synthetic": "noise"}
    return ParityReport(**{"subject": "model.onnx", "checks": checks, "environment": environment, **more})  # type: ignore[arg-type]


def test_one_miss_is_enough() -> None:
    """A report is truthy where every judged check passed."""
    assert report(PASSED)
    assert not report(PASSED, FAILED)
    assert report(PASSED, FAILED).failed == (FAILED,)


def test_a_report_without_a_judged_check_fails() -> None:
    """Nothing checked, or only shown, is no pass."""
    assert not report()
    assert not report(SHOWN)
    assert report().headline() == "FAILED: model.onnx: nothing was checked."
    assert report().summary().splitlines()[-1] == "next: postproc-export check model.onnx --images FOLDER"


def test_the_verdict_of_a_pass_says_what_was_proven_on_what_and_what_was_not() -> None:
    """How many values, which file, runtimes and precision stand in it; of what was not checked the name alone."""
    unchecked = ("the raw file (--raw): none was given", "other devices than the CPU")
    found = report(PASSED, SHOWN, not_checked=unchecked, given={"images": "some"})
    assert found.headline() == (
        "PASSED: model.onnx decides as PyTorch does: the tail on 9 raw values, the whole file on synthetic inputs, "
        "in openvino-cpu 2026 at float32. Not checked: the raw file (--raw); other devices than the CPU."
    )
    fed = {"inputs": "3 images, resized", "torch": {}}
    beside = report(PASSED, environment=fed, given={"raw": "raw.onnx", "torch": "nets:build"})
    assert "the whole file on 3 images beside raw.onnx and nets:build" in beside.headline()
    assert beside.summary().splitlines()[-1] == "next: nothing, model.onnx can be deployed"
    alone = report(PASSED, environment={}, not_run="its input is a string")
    assert "but the file was not run as a whole (its input is a string)" in alone.headline()


def test_the_verdict_of_a_failure_says_what_is_wrong() -> None:
    """The cause's title and how many checks failed; the first lines lead to the mend, which the last one is."""
    lines = report(PASSED, FAILED, given={"raw": "my raw.onnx", "stats": "stats.json"}).summary().splitlines()
    assert lines == [
        "FAILED: model.onnx does not decide as stats.json says (1 of 2 checks failed).",
        "  tail     output 'pred_mask' is missing",
        "  fix      attach to the original again: the end of the graph was changed since",
        "next: postproc-export attach 'my raw.onnx' --stats stats.json -o model.onnx",
    ]


def test_what_could_not_be_run_in_one_way_stands_beside_a_pass_alone() -> None:
    """Where something failed it is mostly a consequence; in the list of all it is there."""
    unchecked = ("batch size 8 in openvino-default: it is frozen", "image_sensitivity in OpenVINO: a constant there")
    assert "batch size 8 in openvino-default;" in report(PASSED, not_checked=unchecked).headline()
    missed = report(FAILED, not_checked=unchecked)
    assert missed.headline().endswith("Not checked: image_sensitivity in OpenVINO.")
    assert "not checked: batch size 8 in openvino-default: it is frozen" in missed.describe()


def test_the_description_holds_everything_between_summary_and_next_step() -> None:
    """Every check with its verdict, ways that found the same at once, what was fed, and what was not checked."""
    other = Check(name="tail/pred_score/onnxruntime", way="onnxruntime", passed=True, message="9 scores")
    found = report(PASSED, other, SHOWN, FAILED, not_checked=("other devices",))
    text = found.describe()
    assert "\nFAILED outputs: output 'pred_mask' is missing\n" in text
    assert "\npassed tail/pred_score (openvino, onnxruntime): 9 scores\n" in text
    assert "\nshown  tail/pred_label (openvino-default): m\n" in text
    assert "\nseed: 1\n" in text
    assert "\nnot checked: other devices\n" in text
    *summary, last = found.summary().splitlines()
    assert text.splitlines()[: len(summary)] == summary
    assert text.splitlines()[-1] == last


def test_json_has_no_number_that_json_does_not_know() -> None:
    """NaN and infinities become strings, NumPy numbers become plain ones, tuples lists."""
    details = {"raw": float("nan"), "far": np.float32(np.inf), "count": np.int64(3), "index": (1, 2)}
    check = Check(name="x", passed=False, message="", details=details, fix="mend it")
    (document,) = json.loads(json.dumps(report(check).to_json(), allow_nan=False))["checks"]
    assert document["passed"] is False
    assert (document["raw"], document["far"], document["count"], document["index"]) == ("nan", "inf", 3, [1, 2])
    assert document["fix"] == "mend it"


def test_json_holds_the_verdict_the_causes_and_the_next_step() -> None:
    """A machine gets what a person reads, and which checks each cause explains."""
    found = report(PASSED, FAILED, given={"raw": "raw.onnx"})
    document = found.to_json()
    assert document["verdict"] == found.headline()
    assert document["next"] == found.next_step()
    assert document["given"] == {"raw": "raw.onnx"}
    (cause,) = document["causes"]
    assert (cause["stage"], cause["checks"]) == ("tail", ["outputs"])
    assert report(PASSED).to_json()["causes"] == []


@pytest.mark.parametrize("checks", [(PASSED,), (PASSED, FAILED)], ids=["passed", "failed"])
def test_a_report_shows_itself(checks: tuple[Check, ...]) -> None:
    """`repr` fits on a screen, and a notebook gets a table of the same facts, with nothing unescaped."""
    found = report(*checks, subject="<b>.onnx")
    lines = repr(found).splitlines()
    assert lines[0].startswith(f"<ParityReport: {found.headline()[:40]}")
    assert max(map(len, lines)) <= 80
    assert len(lines) < 24
    html = found._repr_html_()
    assert html.count("<tr>") == len([*found.facts()])
    assert "<b>" not in html
    assert "&lt;b&gt;.onnx" in html
