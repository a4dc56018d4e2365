"""A file of the wrong kind is told by what it is: as a model, as statistics, as raw outputs, as inputs, as images."""

import json
from pathlib import Path
from typing import Final

import hosts
import numpy as np
import pytest
import torch
from conftest import Invoke
from image_files import save

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, inspect_model

STATS: Final = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
METADATA: Final = {"image_threshold": 12.5, "pixel_threshold": 11.0, "transform": {"name": "Compose"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of every kind in the commands' working folder, whole, cut off and under names of other kinds."""
    monkeypatch.chdir(tmp_path)
    STATS.save("stats.json")
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    attach_postprocessing(raw, STATS, output="post.onnx")
    hosts.write(hosts.score_and_map(), tmp_path / "raw.xml")
    np.savez("raw.npz", pred_score=np.arange(40.0), gt_label=np.arange(40) // 20)
    np.save("one.npy", np.zeros(3))
    for suffix in ("onnx", "xml", "json", "npz", "csv"):
        (tmp_path / f"empty.{suffix}").touch()
        (tmp_path / f"text.{suffix}").write_text("hello, this is text\n")
    for name, source, size in (("cut.onnx", raw, 19), ("cut.npz", "raw.npz", 200), ("cut.json", "stats.json", 60)):
        Path(name).write_bytes(Path(source).read_bytes()[:size])
    for name, source in (("json.onnx", "stats.json"), ("npz.onnx", "raw.npz"), ("onnx.json", raw)):
        Path(name).write_bytes(Path(source).read_bytes())
    torch.save({"weight": torch.zeros(3)}, "ae.pt")
    Path("ae.onnx").write_bytes(Path("ae.pt").read_bytes())
    (tmp_path / "nothing").mkdir()
    (tmp_path / "models").mkdir()
    Path("models/raw.onnx").write_bytes(raw.read_bytes())
    save(tmp_path / "images" / "good" / "0.png", np.zeros((8, 8, 3), np.uint8))
    return tmp_path


MODELS: Final = {
    "nowhere.onnx": "cannot read the model nowhere.onnx\n  found:   no such file\n",
    "nothing": "cannot read the model nothing\n  found:   a folder\n.*\n  fix:     give the model file",
    "models": "cannot read the model models\n  found:   a folder\n  needed:  .onnx .*\n  fix:     give models/raw.onnx",
    "empty.onnx": "cannot read empty.onnx: .*\n  found:   an empty file\n",
    "empty.xml": "cannot read empty.xml: not an OpenVINO IR\n  found:   an empty file\n",
    "text.onnx": "cannot read text.onnx: .*\n  found:   text that begins with 'hello, this is text",
    "text.xml": "cannot read text.xml: not an OpenVINO IR\n  found:   text that begins with 'hello, this is text",
    "text.csv": "text.csv is not an exported model\n  found:   the suffix '.csv'\n",
    "cut.onnx": "cannot read cut.onnx: .*\n  found:   it is cut off after 19 bytes\n",
    "json.onnx": "cannot read json.onnx: .*\n  found:   JSON\n",
    "npz.onnx": "cannot read npz.onnx: .*\n  found:   arrays of NumPy \\(.npz\\)\n",
    "ae.onnx": "cannot read ae.onnx: .*\n  found:   a PyTorch checkpoint\n",
    "ae.pt": "ae.pt is a PyTorch checkpoint, .*\n.*\n  fix:     export it first: .* --weights ae.pt",
    "raw.npz": "raw.npz is a file of arrays, .*\n.*\n  fix: .*postproc-export calibrate raw.npz -o stats.json",
    "stats.json": "stats.json is JSON, .*\n.*\n  fix: .*--stats stats.json",
    "raw.bin": "raw.bin is a file of weights, .*\n.*\n  fix:     give the .xml beside it",
}
STATISTICS: Final = {
    "nowhere.json": "cannot read the statistics file nowhere.json\n  found:   no such file\n",
    "nothing": "cannot read the statistics file nothing\n  found:   a folder\n",
    "empty.json": "the statistics file empty.json is not JSON\n  found:   an empty file\n",
    "text.json": "the statistics file text.json is not JSON\n  found:   text that begins with 'hello",
    "cut.json": "the statistics file cut.json is not JSON\n  found:   Expecting .*\n  needed:  the whole file\n",
    "raw.onnx": "the statistics file raw.onnx is not JSON\n  found:   bytes that are no text\n",
    "raw.npz": "the statistics file raw.npz is not JSON\n  found:   arrays of NumPy \\(.npz\\)\n",
    "ae.pt": "ae.pt holds no statistics that are known\n  found:   ",
    "onnx.json": "the statistics file onnx.json is not JSON\n  found:   bytes that are no text\n",
}
OUTPUTS: Final = {
    "nowhere.npz": "nowhere.npz is not there\n",
    "nothing": "nothing has no validation outputs\n  found:   an empty folder\n",
    "empty.npz": "empty.npz is damaged or truncated\n  found:   an empty file\n",
    "text.npz": "text.npz is damaged or truncated\n  found:   text that begins with 'hello",
    "cut.npz": "cut.npz is damaged or truncated\n  found:   arrays of NumPy \\(.npz\\), cut off\n",
    "raw.onnx": "raw.onnx is a model\n(.*\n)*  fix:     postproc-export calibrate raw.onnx --images FOLDER",
    "ae.pt": "ae.pt is a PyTorch checkpoint, and no raw outputs\n.*\n  fix:     export it first: ",
    "stats.json": "stats.json is not of a known kind\n.*\n  fix:     save them with numpy.savez",
    "one.npy": "one.npy does not say what it holds\n",
    "empty.csv": "empty.csv has no column of scores\n",
}
INPUTS: Final = {
    "nowhere.npz": "cannot read the inputs nowhere.npz\n  found:   no such file\n  fix: .* --inputs",
    "nothing": "cannot read the inputs nothing\n  found:   a folder\n",
    "empty.npz": "empty.npz is not an .npz file\n  found:   an empty file\n",
    "stats.json": "stats.json is not an .npz file\n  found:   JSON\n",
    "one.npy": "one.npy is not an .npz file\n  found:   an array of NumPy \\(.npy\\)\n",
    "raw.onnx": "raw.onnx is not an .npz file\n  found:   other bytes\n",
    "ae.pt": "ae.pt is not an .npz file\n  found:   a PyTorch checkpoint\n",
    "cut.npz": "cannot read the inputs cut.npz\n  found:   a damaged or cut off file: ",
    "raw.npz": "raw.npz has no array for the input .*\n  found:   pred_score, gt_label\n.*\n  fix:     numpy.savez",
}
IMAGES: Final = {
    "nowhere": "cannot read the images nowhere\n  found:   no such file or folder\n",
    "nothing": "nothing holds no image\n",
    "text.csv": "text.csv has no column 'image'\n",
    "raw.npz": "raw.npz is not a CSV file\n",
}
COMMANDS: Final = {
    "inspect {}": MODELS,
    "attach {} --stats stats.json": MODELS,
    "update {} --image-sensitivity 0.3": MODELS,
    "detach {}": MODELS,
    "check {}": MODELS,
    "check post.onnx --raw {}": {name: text for name, text in MODELS.items() if not text.startswith("cannot read the")},
    "check post.onnx --preserved {}": {name: text for name, text in MODELS.items() if name.endswith(("onnx", "pt"))},
    "calibrate {} --images images -o new.json": MODELS,
    "attach raw.onnx --stats {}": STATISTICS,
    "update post.onnx --stats {}": STATISTICS,
    "check post.onnx --stats {}": STATISTICS,
    "calibrate {} -o new.json": OUTPUTS,
    "check post.onnx --inputs {}": INPUTS,
    "check post.onnx --images {}": IMAGES,
    "calibrate raw.onnx --images {} -o new.json": IMAGES,
}
CASES: Final = [(command, name) for command, files in COMMANDS.items() for name in files]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_file_of_another_kind_is_told_by_what_it_is(command: str, name: str, folder: Path, invoke: Invoke) -> None:
    """One message with exit code 2 that names the file and a fix; nothing on stdout, nothing written."""
    before = sorted(folder.rglob("*"))
    result = invoke(*command.format(name).split())
    assert (result.exit_code, result.stdout) == (2, "")
    pattern = COMMANDS[command][name].replace("the model", "the (raw )?model")
    with pytest.raises(AssertionError, match=f"^error: {pattern}"):
        raise AssertionError(result.stderr)
    assert "\n  fix: " in result.stderr or name == "nothing"
    assert all(word not in result.stderr for word in ("Traceback", "pickle.load"))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("is_shared", [True, False], ids=["four", "six"])
def test_the_metadata_of_anomalib_1_is_statistics(is_shared: bool, folder: Path, invoke: Invoke) -> None:
    """Its four numbers, with one range for both levels, or its six."""
    names = ["", ""] if is_shared else ["pred_scores.", "anomaly_maps."]
    ranges = {f"{name}{end}": value for name in names for end, value in (("min", 1.0), ("max", 30.0))}
    ranges |= {} if is_shared else {"anomaly_maps.min": 0.5}
    (folder / "metadata.json").write_text(json.dumps(METADATA | ranges))
    assert invoke("attach", "raw.onnx", "--stats", "metadata.json", "-o", "out.onnx").exit_code == 0
    levels = inspect_model("out.onnx").levels
    assert levels["image"] is not None
    assert levels["pixel"] is not None
    assert (levels["image"].threshold, levels["image"].span) == (12.5, 29.0)
    assert (levels["pixel"].threshold, levels["pixel"].span) == (11.0, 29.0 if is_shared else 29.5)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (METADATA, "s.json holds no statistics that are known\n  found:   the keys image_threshold, pixel_"),
        ({**METADATA, "min": 3.0, "max": 1.0}, "s.json: image: the range [3.0, 1.0] is empty"),
        (
            {"a": 1},
            's.json holds no statistics that are known\n  found:   the keys a\n  needed:  {"schema_version": 1, ',
        ),
        ([1, 2], "s.json: not a JSON object\n  found:   a list of 2\n  needed:  {"),
        ({"schema_version": 2}, "s.json: unknown schema_version\n  found:   2\n"),
    ],
    ids=["no-range", "empty-range", "other", "list", "version"],
)
def test_json_that_is_none_shows_what_works(document: object, message: str, folder: Path, invoke: Invoke) -> None:
    """What it had, the JSON that would be taken, and the command that writes it."""
    (folder / "s.json").write_text(json.dumps(document))
    result = invoke("attach", "raw.onnx", "--stats", "s.json")
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert "\n  fix: " in result.stderr


def test_the_json_that_is_shown_is_taken(folder: Path, invoke: Invoke) -> None:
    """The example of the message is a statistics file as it stands."""
    (folder / "s.json").write_text("{}")
    shown = invoke("attach", "raw.onnx", "--stats", "s.json").stderr.partition("  needed:  ")[2].splitlines()[0]
    (folder / "s.json").write_text(shown)
    assert invoke("attach", "raw.onnx", "--stats", "s.json").exit_code == 0
