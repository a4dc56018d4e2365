"""`check.report`: the verdict, the JSON form, the table."""

import io
import json

import numpy as np
from rich.console import Console

from postproc_export.check.report import Check, ParityReport, failed

PASSED = Check(name="tail/pred_label/openvino", way="openvino", passed=True, message="9 labels equal", brief="9")
SHOWN = Check(name="tail/pred_label/openvino-default", way="openvino-default", passed=True, judged=False, message="m")
FAILED = failed("outputs", "output 'pred_mask' is missing")


def report(*checks: Check, not_checked: tuple[str, ...] = ()) -> ParityReport:
    """Return a report with these checks."""
    return ParityReport(subject="model.onnx", checks=checks, not_checked=not_checked, environment={"seed": 1})


def test_one_miss_is_enough() -> None:
    """A report is truthy where every judged check passed."""
    assert report(PASSED)
    assert not report(PASSED, FAILED)
    assert report(PASSED, FAILED).failed == (FAILED,)


def test_a_report_without_a_judged_check_fails() -> None:
    """Nothing checked, or only shown, is no pass."""
    assert not report()
    assert not report(SHOWN)
    assert report().verdict() == "model.onnx: nothing was checked"


def test_the_verdict_names_the_misses() -> None:
    """One sentence with the count and the names."""
    assert report(PASSED, FAILED).verdict() == "model.onnx: 1 of 2 checks failed: outputs"
    assert report(PASSED, SHOWN).verdict() == "model.onnx: passed, 1 checks"


def test_the_description_holds_everything() -> None:
    """Every check with its verdict, and what was not checked."""
    text = report(PASSED, SHOWN, FAILED, not_checked=("other devices",)).describe()
    assert "FAILED  outputs: output 'pred_mask' is missing" in text
    assert "shown   tail/pred_label/openvino-default: m" in text
    assert "not checked: other devices" in text


def test_json_has_no_number_that_json_does_not_know() -> None:
    """NaN and infinities become strings, NumPy numbers become plain ones, tuples lists."""
    details = {"raw": float("nan"), "far": np.float32(np.inf), "count": np.int64(3), "index": (1, 2)}
    check = Check(name="x", passed=False, message="", details=details)
    (document,) = json.loads(report(check).dumps())["checks"]
    assert document["passed"] is False
    assert (document["raw"], document["far"], document["count"], document["index"]) == ("nan", "inf", 3, [1, 2])


def test_the_table_has_a_column_for_each_way_of_running() -> None:
    """One row per subject; the cells hold verdict and numbers."""
    screen = io.StringIO()
    Console(width=160, file=screen).print(report(PASSED, SHOWN, FAILED).table())
    text = screen.getvalue()
    assert "default" in text
    assert "ok 9" in text
    assert "FAIL" in text
    assert text.count("pred_label") == 1
