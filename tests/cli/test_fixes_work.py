"""What a message advises works: for every kind of file and every command, the fix is followed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import hosts
import onnx
import openvino
import pytest
from anomalib_files import FOLDER, files
from checks import runtime_of
from conftest import Invoke
from eager_exports import CASES, write

from postproc_export.attach import attach_postprocessing
from postproc_export.inspect import inspect_model
from postproc_export.record import METADATA_KEY
from postproc_export.stats import CalibrationStats, LevelStats

DATA: Final = Path(__file__).parents[1] / "data"
STATS: Final = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "detach": ("detach",),
    "update": ("update", "--image-sensitivity", "0.3"),
    "update-threshold": ("update", "--image-threshold", "0.4"),
    "keep-dialect": ("update", "--keep-dialect", "--image-sensitivity", "0.3"),
    "attach": ("attach", "--stats", "stats.json"),
}
OUTSIDE: Final = ("export the model again", "attach to the original again", "undo what was changed")


def raw(folder: Path) -> Path:
    """Return a model with raw outputs."""
    return hosts.write(hosts.score_and_map(), folder / "m.onnx")


def ours(folder: Path, *, suffix: str = ".onnx", strip: bool = False, **options: object) -> Path:
    """Return a model with our tail, with or without its record."""
    host, path = folder / f"host{suffix}", folder / f"m{suffix}"
    hosts.write(hosts.score_and_map(), host)
    attach_postprocessing(host, STATS, output=path, **options)  # type: ignore[arg-type]
    return edited(path, lambda model: model.ClearField("metadata_props")) if strip else path


def edited(path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """Edit an ONNX file and return its path."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def copied(source: Path, folder: Path) -> Path:
    """Copy a model file, its weights too."""
    for part in {source, source.with_suffix(".bin")} if source.suffix == ".xml" else {source}:
        shutil.copy(part, folder / f"m{part.suffix}")
    return folder / f"m{source.suffix}"


def eager(case: str, form: str = "torchscript.onnx") -> Callable[[Path], Path]:
    """Return a maker of an export of our eager module."""
    return lambda folder: write(CASES[case], form, folder)[1]


def anomalib(name: str) -> Callable[[Path], Path]:
    """Return a maker of an export of Anomalib's."""
    return lambda folder: copied(FOLDER / name, folder)


def custom_rule_ir(folder: Path) -> Path:
    """Return the custom rule, converted."""
    model = openvino.convert_model(DATA / "cases" / "custom_rule.onnx")
    openvino.save_model(model, folder / "m.xml", compress_to_fp16=False)
    return folder / "m.xml"


def other_mask(folder: Path) -> Path:
    """Return Anomalib's post-processing whose mask alone is by another rule."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if "pred_mask" in node.output)
        node.CopyFrom(onnx.helper.make_node("LessOrEqual", [node.input[1], node.input[0]], ["pred_mask"], name="own"))

    return edited(anomalib("262_default_legacy.onnx")(folder), edit)


def other_map(folder: Path) -> Path:
    """Return Anomalib's post-processing whose map and mask are not known at all."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if "anomaly_map" in node.output:
                node.CopyFrom(onnx.helper.make_node("Tanh", [node.input[0]], ["anomaly_map"], name="own"))

    return edited(other_mask(folder), edit)


def labels_alone(folder: Path) -> Path:
    """Return a model whose label nothing explains, beside a raw score."""

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Cast", ["pred_score"], ["pred_label"], to=onnx.TensorProto.BOOL))
        model.graph.output.append(onnx.helper.make_tensor_value_info("pred_label", onnx.TensorProto.BOOL, None))

    return edited(raw(folder), edit)


def damaged(folder: Path) -> Path:
    """Return a model with our record, whose label is another one now."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if "pred_label" in node.output)
        node.op_type = "Identity"

    return edited(ours(folder), edit)


def record_alone(folder: Path) -> Path:
    """Return a raw model with the record of a tail that is not there."""
    text = next(item.value for item in onnx.load(ours(folder)).metadata_props if item.key == METADATA_KEY)
    return edited(raw(folder), lambda model: model.metadata_props.add(key=METADATA_KEY, value=text))


KINDS: Final[dict[str, Callable[[Path], Path]]] = {
    "raw": raw,
    "ours": ours,
    "ours-ir": lambda folder: ours(folder, suffix=".xml"),
    "ours-without-record": lambda folder: ours(folder, strip=True),
    "ours-without-record-raw-scores": lambda folder: ours(folder, strip=True, enable_normalization=False),
    "ours-without-record-no-labels": lambda folder: ours(folder, strip=True, enable_thresholding=False),
    "anomalib": anomalib("270_default_dynamo.onnx"),
    "anomalib-ir": anomalib("262_default_legacy.xml"),
    "anomalib-not-normalised": anomalib("262_no_norm_legacy.onnx"),
    "anomalib-no-range": anomalib("262_zero_range_legacy.onnx"),
    "anomalib-no-labels": anomalib("270_no_thr_legacy.onnx"),
    "eager": eager("default"),
    "eager-dynamo": eager("gt", "dynamo.onnx"),
    "eager-ir": eager("default", "torchscript.xml"),
    "eager-raw-scores": eager("no_scores"),
    "eager-no-labels": eager("no_labels"),
    "eager-guard-alone": eager("guard_alone"),
    "custom-rule": lambda folder: copied(DATA / "cases" / "custom_rule.onnx", folder),
    "custom-rule-ir": custom_rule_ir,
    "other-mask": other_mask,
    "labels-alone": labels_alone,
    "damaged": damaged,
    "record-alone": record_alone,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_fix_names_a_way_that_works(kind: str, tmp_path: Path, invoke: Invoke) -> None:
    """A command that is named works on this very file; where none does, the fix is an action outside."""
    STATS.save(tmp_path / "stats.json")
    path = KINDS[kind](tmp_path)
    for command in COMMANDS.values():
        given = [str(tmp_path / "stats.json") if item == "stats.json" else item for item in command]
        result = run(invoke, path, given)
        if result.exit_code == 0:
            continue
        if result.exit_code == 1:
            assert "no post-processing" in result.stdout
            continue
        assert result.exit_code == 2, result.stderr
        follow(invoke, path, given, fix_of(result.stderr), stats=str(tmp_path / "stats.json"))


def run(invoke: Invoke, path: Path, command: list[str]):  # type: ignore[no-untyped-def]
    """Run a command on a file, with another output, which must not be there after a failure."""
    target = path.with_name(f"out{path.suffix}")
    result = invoke(command[0], path, *command[1:], "-o", target)
    assert target.exists() == (result.exit_code == 0 and "nothing to change" not in result.stdout)
    if target.exists() and command[0] == "detach":
        assert all(level is None or level.tail == "none" for level in inspect_model(target).levels.values())
    for suffix in (".onnx", ".xml", ".bin"):
        target.with_suffix(suffix).unlink(missing_ok=True)
    return result


def follow(
    invoke: Invoke, path: Path, command: list[str], fix: str, *, stats: str, before: tuple[str, ...] = ()
) -> None:
    """Follow a fix, and assert that it works; of two faults in one command the second is told after the first."""
    assert fix not in before, "in a circle"
    named = set(re.findall(r"`postproc-export (\w+)`", fix))
    rest = [item for item in command if item != "--keep-dialect"]
    ways = [["detach"]] if "detach" in named else []
    if "update" in named:
        ways.append(["update", "--stats", stats])
    elif "--stats" in fix:
        ways.append([*rest, "--stats", stats])
    elif "leave out --keep-dialect" in fix:
        ways.append(rest)
    if "with --threshold" in fix:
        ways.append([*rest, "--threshold"])
    if not ways:
        assert fix.startswith(OUTSIDE), fix
    for way in ways:
        result = run(invoke, path, way)
        if result.exit_code and "--keep-dialect" in command:
            follow(invoke, path, way, fix_of(result.stderr), stats=stats, before=(*before, fix))
        else:
            assert result.exit_code == 0, f"{fix}\n{way}: {result.stderr}"


def fix_of(message: str) -> str:
    """Return the fix that an error names."""
    found = re.search(r"\n  fix: +(.*)", message)
    assert found is not None, message
    return found[1]


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("raw", "attach"),
        ("ours-without-record", "--stats"),
        ("anomalib", "update"),
        ("anomalib-ir", "update"),
        ("anomalib-not-normalised", "update --stats"),
        ("anomalib-no-range", "update --stats"),
        ("eager", "update"),
        ("eager-ir", "update"),
        ("eager-guard-alone", "update --stats"),
        ("custom-rule", "outside"),
    ],
)
def test_a_check_says_how_the_file_can_be_checked(kind: str, way: str, tmp_path: Path, invoke: Invoke) -> None:
    """Without a record, statistics judge a tail that was attached alone; for all else the way leads to a check."""
    STATS.save(tmp_path / "stats.json")
    path, stats = KINDS[kind](tmp_path), ["--stats", tmp_path / "stats.json"]
    refused = invoke("check", path)
    assert refused.exit_code == 2
    fix = fix_of(refused.stderr)
    if way == "--stats":
        assert "(--stats)" in fix
        assert invoke("check", path, *stats, "--runtime", runtime_of(path)).exit_code == 0
        return
    assert fix_of(invoke("check", path, *stats).stderr) == fix
    if way == "outside":
        assert fix.startswith(OUTSIDE)
        return
    command, needs_stats = way.split()[0], way != "update"
    assert f"`postproc-export {command}{' --stats FILE' if way == 'update --stats' else ''}`" in fix
    target = path.with_name(f"out{path.suffix}")
    assert invoke(command, path, *(stats if needs_stats else []), "-o", target).exit_code == 0
    assert invoke("check", target, "--runtime", runtime_of(target)).exit_code == 0


@pytest.mark.parametrize("kind", ["custom-rule", "custom-rule-ir", "other-mask"])
def test_what_is_not_known_as_a_whole_is_said_and_left(kind: str, tmp_path: Path, invoke: Invoke) -> None:
    """`inspect` says that the label is there and by another rule; `detach` and `update` name it and write nothing."""
    path = KINDS[kind](tmp_path)
    shown = invoke("inspect", path).stdout
    assert "the label is by another rule, which is not known" in shown
    assert "gives no label" not in shown
    assert "no decision" not in shown
    for command in (["detach"], ["update", "--pixel-sensitivity", "0.3"], ["update", "--keep-dialect"]):
        result = run(invoke, path, command)
        assert result.exit_code == 2
        assert "'pred_mask' is by another rule" in result.stderr


def test_a_level_that_is_not_known_at_all_is_said_and_left(tmp_path: Path, invoke: Invoke) -> None:
    """Beside a score that is known."""
    path = other_map(tmp_path)
    shown = invoke("inspect", path).stdout
    assert "pixel    post-processing that is not known" in shown
    for command in (["detach"], ["update", "--image-sensitivity", "0.3"]):
        result = run(invoke, path, command)
        assert result.exit_code == 2
        assert "'pred_mask' is by another rule" in result.stderr


def test_a_label_without_an_explanation_is_no_raw_model(tmp_path: Path, invoke: Invoke) -> None:
    """`inspect` does not call a level raw where a label stands that nothing explains."""
    shown = invoke("inspect", labels_alone(tmp_path)).stdout
    assert "image    post-processing that is not known at pred_score and pred_label" in shown


FINISHED: Final = [*files(), *sorted((DATA / "other_tools").iterdir())]


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.name)
def test_after_detaching_nothing_is_found(path: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Of every finished model that `detach` takes, what it writes has no post-processing, as it stands or stripped."""
    copy = copied(path, tmp_path)
    assert run(invoke, copy, ["detach"]).exit_code == 0
    if path.suffix == ".onnx":
        assert run(invoke, edited(copy, lambda model: model.ClearField("metadata_props")), ["detach"]).exit_code == 0


OWN: Final[dict[str, dict[str, object]]] = {
    "plain": {},
    "raw-scores": {"enable_normalization": False},
    "no-labels": {"enable_thresholding": False},
    "no-guard": {"nan_guard": False, "comparison": "gt"},
    "dtypes": {"label_dtype": "uint8", "mask_dtype": "float32", "keep_raw": True},
    "packed": {"layout": "packed"},
    "adjustable": {"adjustable": "sensitivity"},
    "image": {"levels": "image"},
}


@pytest.mark.parametrize("options", OWN.values(), ids=OWN)
@pytest.mark.parametrize("kind", ["recorded.onnx", "stripped.onnx", "recorded.xml"])
def test_after_detaching_our_tail_nothing_is_found(
    kind: str, options: dict[str, object], tmp_path: Path, invoke: Invoke
) -> None:
    """So it is for our own tail in every form."""
    path = ours(tmp_path, suffix=Path(kind).suffix, strip=kind.startswith("stripped"), **options)
    assert run(invoke, path, ["detach"]).exit_code == 0
