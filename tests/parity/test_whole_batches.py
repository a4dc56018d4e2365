"""The whole file at several batch sizes: what is tried, what is a miss, what is only said."""

from pathlib import Path

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest

from postproc_export.attach import attach_postprocessing
from postproc_export.check import check_parity
from postproc_export.check.inputs import array_inputs
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes import PortInfo, open_runner
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
IMAGES = np.random.default_rng(7).integers(0, 256, (5, 3, 8, 8)).astype(np.float32) / 256
PORT = PortInfo("input", "float32", ("N", 3, 8, 8))


def frozen_at(batch: int) -> onnx.ModelProto:
    """Return a detector whose batch axis is declared dynamic and runs at one size only, as some exports do."""
    shapes = f"int64[4] four = {{{batch}, 1, 8, 8}}, int64[1] one = {{{batch}}}"
    return hosts.parse(
        f"""traced (float[N,3,8,8] input) => (float[N] pred_score, float[N,1,8,8] anomaly_map)
        <float[1,3,1,1] weight = {{0.5, 0.25, 0.125}}, {shapes}> {{
            m = Conv(input, weight)
            anomaly_map = Reshape(m, four)
            pooled = GlobalMaxPool(anomaly_map)
            pred_score = Reshape(pooled, one)
        }}"""
    )


def test_a_file_that_freezes_the_batch_is_a_miss_beside_its_raw_file(tmp_path: Path) -> None:
    """Where the raw file runs at a batch size, the attached one has to; the size and the runtime's reason are told."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, STATS).output
    model = onnx.load(path)
    planted_onnx.laid_out_for_one(model)
    onnx.save(model, path)
    report = check_parity(path, raw=raw, inputs={"input": IMAGES}, count=1_000, threads=1)
    batch = [check for check in report.failed if check.subject == "whole/batch"]
    assert {check.way for check in batch} == {"onnxruntime", "onnxruntime-unoptimised", "openvino"}
    assert {check.message.split(":")[0] for check in batch} <= {
        "it does not run at batch size 2",
        "it does not run at batch size 8",
    }


@pytest.mark.parametrize(
    ("ir", "with_raw"),
    [
        pytest.param(False, True, id="onnx-with-raw"),
        pytest.param(False, False, id="onnx-alone"),
        pytest.param(True, True, id="ir-with-raw"),
    ],
)
def test_a_model_that_runs_at_one_batch_size_is_run_at_that(ir: bool, with_raw: bool, tmp_path: Path) -> None:
    """Where the raw file does not run either, the other sizes are no miss; they are listed as not checked."""
    host = frozen_at(2)
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    path = attach_postprocessing(raw, STATS).output
    report = check_parity(path, raw=raw if with_raw else None, inputs={"input": IMAGES}, count=1_000, threads=1)
    assert report, report.describe()
    counts = {check.details["count"] for check in report.checks if check.name.startswith("whole/tapped/pred_score")}
    assert counts == {len(IMAGES)}
    assert any("batch size 8" in sentence for sentence in report.not_checked)


def test_openvino_is_asked_before_it_runs_a_graph_at_another_size() -> None:
    """Its CPU plugin would read beyond its buffers; at the size that the graph allows it runs."""
    runner = open_runner(frozen_at(2).SerializeToString(), runtime="openvino", threads=1)
    for size in (1, 8):
        with pytest.raises(
            UnsupportedModelError, match=rf"failed to run the model on input: float32 \[{size}, 3, 8, 8\]"
        ):
            runner.run({"input": np.zeros((size, 3, 8, 8), np.float32)})
    assert runner.run({"input": IMAGES[:2]})["pred_score"].shape == (2,)


def test_arrays_are_cut_into_batches_and_the_last_one_is_filled() -> None:
    """Every sample is fed once; what fills the last batch is its own last sample, and does not count."""
    inputs = array_inputs({"input": IMAGES}, [PORT])
    batches = list(inputs.batches(2))
    assert [(batch.size, batch.valid) for batch in batches] == [(2, 2), (2, 2), (2, 1)]
    assert np.array_equal(np.concatenate([batch.feeds["input"][: batch.valid] for batch in batches]), IMAGES)
    assert np.array_equal(batches[-1].feeds["input"][1], IMAGES[-1])


def test_the_arrays_of_several_inputs_have_to_be_equally_long() -> None:
    """Samples are paired by their index."""
    ports = [PORT, PortInfo("scale", "float32", ("N",))]
    with pytest.raises(UsageError, match=r"the inputs have \[4, 5\] samples"):
        array_inputs({"input": IMAGES, "scale": np.ones(4, np.float32)}, ports)
    with pytest.raises(UsageError, match="is a single number"):
        array_inputs({"input": IMAGES, "scale": np.float32(1)}, ports)
    assert array_inputs({"input": IMAGES, "scale": np.ones(5, np.float32)}, ports, limit=3).count == 3
