"""`vectors` and `judge` on the command line: what they print, their exit codes, and what they refuse."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from attached_files import detector, labelled
from conftest import Invoke
from kits import expected
from onnx import numpy_helper
from tail_forms import attached

from postproc_export import write_vectors

FIRST = "tail/test_data_set_0"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of a detector with a score and a map."""
    folder = tmp_path_factory.mktemp("kit")
    _, file = attached(hosts.score_and_map(), folder)
    return write_vectors(file, output=folder / "kit", count=200).output


@pytest.fixture
def outputs(kit: Path, tmp_path: Path) -> Path:
    """What the kit expects, as if it had been computed."""
    return expected(kit, tmp_path / "outputs")


def rewritten(outputs: Path, place: str = FIRST, **arrays: object) -> None:
    """Put other arrays into the outputs of a set; None leaves one out."""
    path = outputs / place / "outputs.npz"
    with np.load(path) as found:
        kept = {**dict(found), **arrays}
    np.savez(path, **{name: values for name, values in kept.items() if values is not None})


def as_tensors(outputs: Path, *, name: str = "") -> list[Path]:
    """Write the outputs of the first set by number in place of by name."""
    folder = outputs / FIRST
    with np.load(folder / "outputs.npz") as found:
        arrays = dict(found)
    (folder / "outputs.npz").unlink()
    paths = [folder / f"output_{number}.pb" for number in range(len(arrays))]
    for path, values in zip(paths, arrays.values(), strict=True):
        path.write_bytes(numpy_helper.from_array(values, name).SerializeToString())
    return paths


def test_what_is_expected_passes(kit: Path, outputs: Path, invoke: Invoke) -> None:
    """The verdict names the kit, what was judged and where it ran; as JSON it is the report of a check."""
    as_tensors(outputs)
    command = ("judge", kit, outputs, "--where", "a camera", "--reference", "numpy")
    done = invoke(*command)
    assert done.exit_code == 0
    assert f"PASSED: the model of {kit} decides as PyTorch does, by its twin in NumPy: the tail on " in done.stdout
    assert "in a camera. Not checked: an empty batch; real images (--images).\n" in done.stdout
    report = json.loads(invoke(*command, "--json").stdout)
    assert report["passed"] is True
    assert {check["name"] for check in report["checks"]} == {
        f"{part}/{name}/a camera"
        for part in ("tail", "whole/kit")
        for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask")
    }
    assert report["environment"]["reference"] == f"numpy {np.__version__}"
    assert report["given"] == {"kit": str(kit)}


def test_what_differs_fails(kit: Path, outputs: Path, tmp_path: Path, invoke: Invoke) -> None:
    """One label that flipped, and a score that is NaN where a number is expected: exit code 1, cause, mend, JUnit."""
    with np.load(outputs / FIRST / "outputs.npz") as found:
        label, score = found["pred_label"], found["pred_score"]
    at = int(np.flatnonzero(~np.isnan(score))[-1])
    label[at], score[at] = ~label[at], np.nan
    rewritten(outputs, pred_label=label, pred_score=score)
    done = invoke("judge", kit, outputs, "--junit", tmp_path / "junit.xml", "--markdown", tmp_path / "summary.md")
    assert done.exit_code == 1
    assert f"FAILED: {outputs} were not computed as the tail of the kit says (2 of 8 checks failed)" in done.stdout
    assert "  fix      run the tail there in float32, unchanged" in done.stdout
    assert re.search(f"became {'anomalous' if label[at] else 'normal'} at .{at}, 0.: [^;]*; in {FIRST}\n", done.stdout)
    assert 'failures="3"' in (tmp_path / "junit.xml").read_text()
    assert "tail/pred_label" in (tmp_path / "summary.md").read_text()


def _missing_set(outputs: Path) -> None:
    (outputs / FIRST / "outputs.npz").unlink()


def _extra_set(outputs: Path) -> None:
    shutil.copytree(outputs / FIRST, outputs / "tail" / "test_data_set_99")


def _missing_output(outputs: Path) -> None:
    rewritten(outputs, pred_mask=None)


def _extra_output(outputs: Path) -> None:
    rewritten(outputs, heat=np.zeros(3))


def _other_type(outputs: Path) -> None:
    with np.load(outputs / FIRST / "outputs.npz") as found:
        rewritten(outputs, pred_label=found["pred_label"].astype(np.uint8))


def _other_shape(outputs: Path) -> None:
    with np.load(outputs / FIRST / "outputs.npz") as found:
        rewritten(outputs, pred_score=found["pred_score"].ravel())


def _pickled(outputs: Path) -> None:
    rewritten(outputs, pred_score=np.array([{"a": 1}], object))


def _cut_off(outputs: Path) -> None:
    path = outputs / FIRST / "outputs.npz"
    path.write_bytes(path.read_bytes()[:-100])


def _damaged(outputs: Path) -> None:
    path = outputs / FIRST / "outputs.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _no_zip(outputs: Path) -> None:
    (outputs / FIRST / "outputs.npz").write_text("{}")


def _both(outputs: Path) -> None:
    shutil.copy(outputs / FIRST / "outputs.npz", outputs / "kept.npz")
    as_tensors(outputs)
    shutil.move(outputs / "kept.npz", outputs / FIRST / "outputs.npz")


def _tensor_cut_off(outputs: Path) -> None:
    path = as_tensors(outputs)[0]
    path.write_bytes(path.read_bytes()[:-10])


def _empty_tensor(outputs: Path) -> None:
    as_tensors(outputs)[1].write_bytes(b"")


def _too_many_tensors(outputs: Path) -> None:
    path = as_tensors(outputs)[0]
    shutil.copy(path, path.with_name("output_9.pb"))


def _elsewhere(outputs: Path) -> None:
    path = as_tensors(outputs)[0]
    tensor = onnx.load_tensor(path)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(tensor.SerializeToString())


def _huge_tensor(outputs: Path) -> None:
    as_tensors(outputs)[0].write_bytes(bytes(20 << 20))


def _swapped(outputs: Path) -> None:
    first, second, *_ = as_tensors(outputs)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _empty(outputs: Path) -> None:
    shutil.rmtree(outputs)
    outputs.mkdir()


def _no_folder(outputs: Path) -> None:
    shutil.rmtree(outputs)


def _other_kit(outputs: Path) -> None:
    write_vectors(attached(hosts.map_only(), outputs.parent)[1], output=outputs.parent / "other", count=50)
    shutil.copy(outputs.parent / "other" / "kit.json", outputs)


REFUSED: dict[Callable[[Path], None], str] = {
    _missing_set: "there are no outputs in {0}/tail/test_data_set_0",
    _extra_set: "{0}/tail/test_data_set_99 is no set of the kit",
    _missing_output: "{0}/tail/test_data_set_0 has no output 'pred_mask'",
    _extra_output: "'heat' is no output of this set",
    _other_type: "'pred_label' has another type",
    _other_shape: "'pred_score' has another shape",
    _pickled: "holds Python objects",
    _cut_off: "outputs.npz is no .npz file, or is cut off",
    _damaged: "is damaged or cut off",
    _no_zip: "outputs.npz is no .npz file, or is cut off",
    _both: "has both outputs.npz and output_0.pb",
    _tensor_cut_off: "output_0.pb is damaged or cut off",
    _empty_tensor: "'pred_label' has another type",
    _too_many_tensors: "output_9.pb: the model has no such output",
    _elsewhere: "output_0.pb has its values in another file",
    _huge_tensor: "output_0.pb is too large",
    _swapped: "'pred_score' has another type",
    _empty: "there are no outputs in {0}",
    _no_folder: "cannot read the outputs {0}",
    _other_kit: "the outputs {0} are of another kit",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__.strip("_"))
def test_outputs_that_cannot_be_judged_are_refused(
    spoil: Callable[[Path], None], kit: Path, outputs: Path, invoke: Invoke
) -> None:
    """One message that names the file, and exit code 2."""
    spoil(outputs)
    done = invoke("judge", kit, outputs)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert REFUSED[spoil].format(outputs) in done.stderr
    assert done.stderr.count("error: ") == 1


def test_a_kit_is_not_judged_by_itself(kit: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Neither the kit nor a copy of it, whose expected outputs would be taken for computed ones."""
    shutil.copytree(kit, tmp_path / "copy")
    for folder in (kit, tmp_path / "copy"):
        done = invoke("judge", kit, folder)
        assert done.exit_code == 2
        assert "is a kit or a copy of one" in done.stderr


def test_a_damaged_kit_is_refused(kit: Path, outputs: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A file that was changed or lost, a manifest that was edited, is of another version or no manifest."""
    copy = tmp_path / "copy"
    shutil.copytree(kit, copy)
    manifest, text = copy / "kit.json", (kit / "kit.json").read_text()
    for edited, message in (
        (text.replace('"threshold": 0.5', '"threshold": 0.6'), "was changed since it was written"),
        (text.replace('"kit_version": 1', '"kit_version": 2'), "is no manifest of a kit"),
        (text[:-20], "is not JSON"),
        ("[1]", "is no manifest of a kit"),
    ):
        manifest.write_text(edited)
        done = invoke("judge", copy, outputs)
        assert done.exit_code == 2, message
        assert message in done.stderr
    manifest.write_text(text)
    (copy / "tail" / "model.onnx").write_bytes(b"")
    done = invoke("judge", copy, outputs)
    assert done.exit_code == 2
    assert f"the kit is damaged: {copy / 'tail' / 'model.onnx'}" in done.stderr
    manifest.unlink()
    done = invoke("judge", copy, outputs)
    assert done.exit_code == 2
    assert "cannot read the manifest" in done.stderr


def _no_files(document: Any) -> None:
    del document["files"]


def _outside(document: Any) -> None:
    document["files"]["../outside"] = "0"


def _no_suites(document: Any) -> None:
    document["suites"] = []


def _set_outside(document: Any) -> None:
    document["suites"]["tail"]["sets"][0]["name"] = "../../elsewhere"


def _no_digest_of_a_set(document: Any) -> None:
    del document["files"][f"{FIRST}/inputs.npz"]


def _unknown_output(document: Any) -> None:
    document["suites"]["whole"]["judged_outputs"] = ["heat"]


def _strange_point(document: Any) -> None:
    document["suites"]["whole"]["points"] = {"pred_label_strict": []}


def _unknown_option(document: Any) -> None:
    document["tail"]["options"]["rounding"] = "up"


def _unknown_guard(document: Any) -> None:
    document["tail"]["guard"] = "some"


def _null_byte(document: Any) -> None:
    document["files"]["a\0b"] = "0"


def _no_raw_values(document: Any) -> None:
    document["tail"]["raw"] = {}


def _strange_alias(document: Any) -> None:
    document["suites"]["whole"]["outputs"][0]["aliases"] = [["pred_score"]]


def _unknown_raw_output(document: Any) -> None:
    document["suites"]["whole"]["raw_outputs"] = {"image": "heat"}


def _other_threshold(document: Any) -> None:
    document["tail"]["statistics"]["image"]["threshold"] = 0.6


def _other_sensitivity(document: Any) -> None:
    document["tail"]["options"]["image_sensitivity"] = 1.0


def _no_guard(document: Any) -> None:
    document["tail"]["guard"] = None


def _one_level(document: Any) -> None:
    document["tail"]["options"]["levels"] = "image"


def _no_labels(document: Any) -> None:
    document["tail"]["options"]["enable_thresholding"] = False


def _packed(document: Any) -> None:
    document["tail"]["options"]["layout"] = "packed"


def _less_is_judged(document: Any) -> None:
    document["suites"]["tail"]["judged_outputs"] = ["pred_score"]


def _gated(document: Any) -> None:
    document["suites"]["whole"]["is_gated"] = True


def _other_type_of_input(document: Any) -> None:
    document["suites"]["tail"]["inputs"][0]["dtype"] = "bfloat16"


CRAFTED: dict[Callable[[Any], None], str] = {
    _no_files: "another files than vectors writes",
    _outside: "../outside",
    _no_suites: "another suites than vectors writes",
    _set_outside: "another suites than vectors writes",
    _no_digest_of_a_set: f"no digest of {FIRST}/inputs.npz",
    _unknown_output: "another suites than vectors writes",
    _strange_point: "another suites than vectors writes",
    _unknown_option: "the tail is not legal",
    _unknown_guard: "the tail is not legal",
    _null_byte: "the kit is damaged",
    _no_raw_values: "the tail is not legal",
    _strange_alias: "another suites than vectors writes",
    _unknown_raw_output: "another suites than vectors writes",
    _other_threshold: f"{FIRST} is not what kit.json says\n  found:   pred_score: ",
    _other_sensitivity: f"{FIRST} is not what kit.json says\n  found:   pred_label: ",
    _no_guard: f"{FIRST} is not what kit.json says\n  found:   pred_score: ",
    _one_level: f"{FIRST} is not what kit.json says",
    _no_labels: f"{FIRST} is not what kit.json says",
    _packed: f"{FIRST} is not what kit.json says",
    _less_is_judged: f"{FIRST} is not what kit.json says\n  found:   judged are pred_score\n",
    _gated: "whole/test_data_set_0 is not what kit.json says\n  found:   pred_mask: ",
    _other_type_of_input: f"{FIRST} is not what kit.json says",
}


@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__.strip("_"))
def test_a_crafted_manifest_is_refused(
    craft: Callable[[Any], None], kit: Path, outputs: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Though its digest fits: it has to say what the sets of the kit were made by, and nothing outside is read."""
    shutil.copytree(kit, tmp_path / "copy")
    crafted(tmp_path / "copy", craft)
    (outputs / "kit.json").unlink()
    done = invoke("judge", tmp_path / "copy", outputs)
    assert done.exit_code == 2
    assert CRAFTED[craft] in done.stderr


def crafted(kit: Path, craft: Callable[[Any], None]) -> None:
    """Change the manifest of a kit, so that its digest fits."""
    document = json.loads((kit / "kit.json").read_text())
    del document["digest"]
    craft(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (kit / "kit.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["inputs.npz", "outputs.npz", "raw.npz"])
@pytest.mark.parametrize("content", [b"", b"PK", None], ids=["empty", "no zip", "other arrays"])
def test_a_crafted_set_is_refused(
    content: bytes | None, name: str, kit: Path, outputs: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Though all digests fit: it is a file of arrays, those that the manifest tells of."""
    shutil.copytree(kit, tmp_path / "copy")
    place = f"{'whole/test_data_set_0' if name == 'raw.npz' else FIRST}/{name}"
    path = tmp_path / "copy" / place
    np.savez(path, pred_score=np.zeros((1, 1), "U2"))
    if content is not None:
        path.write_bytes(content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    crafted(tmp_path / "copy", lambda document: document["files"].update({place: digest}))
    (outputs / "kit.json").unlink()
    done = invoke("judge", tmp_path / "copy", outputs)
    assert done.exit_code == 2
    assert place.rpartition("/")[0] in done.stderr
    assert done.stderr.count("error: ") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes that are files")
def test_a_pipe_in_a_kit_is_not_waited_for(kit: Path, outputs: Path, tmp_path: Path, invoke: Invoke) -> None:
    """It is no file of the kit."""
    shutil.copytree(kit, tmp_path / "copy")
    path = tmp_path / "copy" / "tail" / "model.onnx"
    path.unlink()
    os.mkfifo(path)
    done = invoke("judge", tmp_path / "copy", outputs)
    assert done.exit_code == 2
    assert f"the kit is damaged: {path}\n  found:   a pipe" in done.stderr


def test_no_report_is_written_onto_what_is_read(kit: Path, outputs: Path, invoke: Invoke) -> None:
    """Neither into the kit nor among the outputs."""
    before = (kit / "kit.json").read_bytes()
    for target in (kit / "kit.json", outputs / "report.xml"):
        done = invoke("judge", kit, outputs, "--junit", target)
        assert done.exit_code == 2
        assert f"cannot write {target}" in done.stderr
    assert (kit / "kit.json").read_bytes() == before


def test_a_kit_replaces_nothing_but_a_kit(kit: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A folder with other files, a file, the images: refused, and nothing is written; an earlier kit is replaced."""
    _, file = attached(hosts.score_and_map(), tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for target in (tmp_path / "full", file, tmp_path):
        done = invoke("vectors", file, "-o", target)
        assert done.exit_code == 2, target
        assert f"cannot write to {target}" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    again = tmp_path / "again"
    shutil.copytree(kit, again)
    done = invoke("vectors", file, "-o", again)
    assert done.exit_code == 0
    assert f"next: postproc-export judge {again} OUTPUTS" in done.stdout
    assert (again / "kit.json").read_bytes() != (kit / "kit.json").read_bytes()
    document = json.loads(invoke("vectors", file, "-o", again, "--json").stdout)
    assert document["output"] == str(again)
    assert document["sets"] == {"tail": 3, "whole": 4}


def test_a_kit_is_of_a_file_that_decides_as_it_says(tmp_path: Path, invoke: Invoke) -> None:
    """A tail with another constant, and the original of another model: refused, with what differs; nothing is left."""
    _, file = attached(hosts.score_and_map(), tmp_path)
    model = onnx.load(file)
    alpha = (each for node in model.graph.node for each in node.attribute if each.name == "alpha")
    next(alpha).f *= 1.5
    onnx.save(model, tmp_path / "faulty.onnx")
    other = hosts.score_and_map()
    bias = next(item for item in other.graph.initializer if item.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "bias"))
    onnx.save(other, tmp_path / "other.onnx")
    for arguments, message in (
        ((tmp_path / "faulty.onnx",), "faulty.onnx does not decide here as its record says"),
        ((file, "--raw", tmp_path / "other.onnx"), "other.onnx is not the original of"),
    ):
        done = invoke("vectors", *arguments, "-o", tmp_path / "kit")
        assert done.exit_code == 2
        assert message in done.stderr
        assert "scores differ" in done.stderr
        assert not (tmp_path / "kit").exists()


def test_images_are_fed_as_the_statistics_record_it(tmp_path: Path, invoke: Invoke) -> None:
    """An option that says the same is taken, another one is refused unless it is asked to go on."""
    file, images = detector(tmp_path), labelled(tmp_path / "photos")
    command = ("vectors", file, "-o", tmp_path / "kit", "--images", images)
    refused = invoke(*command, "--mean", "0.5")
    assert refused.exit_code == 2
    assert "the images would be fed otherwise than in calibration" in refused.stderr
    assert not (tmp_path / "kit").exists()
    for options in (("--mean", "0"), ("--mean", "0.5", "--other-preprocessing")):
        assert invoke(*command, *options).exit_code == 0


def test_a_file_that_does_not_run_here_gets_its_tail(tmp_path: Path, invoke: Invoke) -> None:
    """An operator that no runtime here knows: the whole file is left out, with the reason, unless it was asked for."""
    _, file = attached(hosts.score_and_map(), tmp_path)
    model = onnx.load(file)
    model.opset_import.add(domain="own", version=1)
    model.graph.node.add(op_type="Own", domain="own", input=["input"], output=["own"])
    model.graph.output.add(name="own").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, file)
    done = invoke("vectors", file, "-o", tmp_path / "kit")
    assert done.exit_code == 0
    assert "the whole file: ONNX Runtime cannot load" in done.stdout
    assert (tmp_path / "kit" / "tail").is_dir()
    assert not (tmp_path / "kit" / "whole").exists()
    assert invoke("vectors", file, "-o", tmp_path / "kit", "--raw", tmp_path / "raw.onnx").exit_code == 2


def test_what_is_no_attached_file_gets_no_kit(tmp_path: Path, invoke: Invoke) -> None:
    """A raw model, no file, and options that cannot apply."""
    raw, file = attached(hosts.score_and_map(), tmp_path)
    for arguments, message in (
        ((raw,), f"{raw} cannot be checked: it has no record"),
        ((tmp_path / "none.onnx",), "no such file"),
        ((file, "--mean", "0"), "--mean without images"),
        ((file, "--raw", file), "has post-processing, and is no raw file"),
        ((file, "--raw", tmp_path / "none.onnx"), "cannot read the raw model"),
        ((file, "--images", tmp_path / "none"), "no such file or folder"),
        ((file, "--count", "0"), "--count 0"),
    ):
        done = invoke("vectors", *arguments, "-o", tmp_path / "kit")
        assert done.exit_code == 2, arguments
        assert message in done.stderr
        assert not (tmp_path / "kit").exists()
