"""An attached file, loaded: what it is, and what it is given."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from attached_files import SIDE, anomalib_export, detector

from postproc_export.errors import FileError, MetadataError, UnsupportedModelError
from postproc_export.prediction.attached import AttachedFile
from postproc_export.run_options import PredictOptions


def test_the_record_is_there_or_none(tmp_path: Path) -> None:
    """Of what was attached with its statistics; an export has none."""
    own = AttachedFile(PredictOptions(detector(tmp_path), ""))
    assert own.stats is not None
    assert {level: tail.kind for level, tail in own.tails.items()} == {"image": "attached", "pixel": "attached"}
    other = AttachedFile(PredictOptions(anomalib_export(tmp_path / "other.onnx"), ""))
    assert (other.stats, other.record) == (None, None)


def test_a_smaller_batch_is_filled_up(tmp_path: Path) -> None:
    """What comes of the filling is left out, and the time is that of one image of the batch."""
    images = np.random.default_rng(1).random((5, 3, SIDE, SIDE), np.float32)
    file = AttachedFile(PredictOptions(detector(tmp_path), ""))
    few, all_of_them = file.run(images[:2], 4), file.run(images, 5)
    assert few.raw_scores is not None
    assert all_of_them.raw_scores is not None
    np.testing.assert_array_equal(few.raw_scores, all_of_them.raw_scores[:2])
    assert few.seconds > 0


def test_a_nan_in_the_map_makes_the_score_nan(tmp_path: Path) -> None:
    """The image is anomalous, and so is the pixel."""
    images = np.zeros((1, 3, SIDE, SIDE), np.float32)
    images[0, 0, 3, 4] = np.nan
    outputs = AttachedFile(PredictOptions(detector(tmp_path), "")).run(images, 1)
    assert outputs.labels is not None
    assert outputs.masks is not None
    assert outputs.labels.tolist() == [True]
    assert np.argwhere(outputs.masks[0]).tolist() == [[3, 4]]


def test_a_record_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A file whose record was changed by hand, and one that is no model."""
    path = detector(tmp_path)
    model = onnx.load(path)
    (entry,) = (item for item in model.metadata_props if item.key == "postproc_export")
    entry.value = entry.value.replace('"enable_normalization":true', '"enable_normalization":false')
    onnx.save(model, path)
    with pytest.raises((MetadataError, UnsupportedModelError)):
        AttachedFile(PredictOptions(path, ""))
    with pytest.raises(FileError, match="no such file"):
        AttachedFile(PredictOptions(tmp_path / "absent.onnx", ""))
