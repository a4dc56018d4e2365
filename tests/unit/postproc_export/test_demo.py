"""The demo: its images, its detector, its folder and its numbers."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import hosts
import numpy as np
import pytest
from attached_files import labelled
from conftest import Invoke
from numpy.typing import NDArray
from schemas import faults

from postproc_export.attach import attach_postprocessing
from postproc_export.check.findings import Check
from postproc_export.check.report import ParityReport
from postproc_export.cli import main
from postproc_export.demo import data
from postproc_export.demo import detector as evaluation
from postproc_export.demo import run as run_module
from postproc_export.demo.data import CROP_SIZE, DEFECTS, GOOD, NORMAL_PHOTO, REGIONS, Crop, Photos, Split
from postproc_export.demo.detector import Outputs, as_input, dct_filters, direction_sums, fit_detector, fit_gaussian
from postproc_export.demo.factory import TRAINING_CROPS
from postproc_export.demo.run import (
    CROPS_EACH_DEFECT,
    FILES,
    GOOD_CROPS,
    OWN,
    DemoResult,
    Tell,
    commands,
    draw_picture,
    export_detector,
)
from postproc_export.errors import FileError, MissingDependencyError
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, LevelStats

torch = pytest.importorskip("torch")

SPLITS: tuple[Split, ...] = ("training", "validation", "test")


@pytest.fixture(scope="module")
def photos() -> Photos:
    """The photos of the installed scikit-image."""
    return data.load_photos()


@pytest.fixture(scope="module")
def crops(photos: Photos) -> dict[str, tuple[Crop, ...]]:
    """The crops of the demo, by split."""
    counts = {"training": (TRAINING_CROPS, 0)}
    pairs = {split: counts.get(split, (GOOD_CROPS, CROPS_EACH_DEFECT)) for split in SPLITS}
    return {split: data.make_crops(photos, split, good=good, each_defect=each) for split, (good, each) in pairs.items()}


@pytest.fixture(scope="module")
def detector(crops: dict[str, tuple[Crop, ...]]) -> "torch.nn.Module":
    """The demo's detector, fitted as the demo does."""
    return fit_detector(as_input(crop.image for crop in crops["training"]))


@pytest.fixture(scope="module")
def exported(detector: "torch.nn.Module", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector as an ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    export_detector(detector, folder)
    return folder / "raw.onnx"


def run(detector: "torch.nn.Module", images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return score (N, 1) and map (N, 1, H, W) of a torch module."""
    with torch.no_grad():
        score, anomaly_map = detector(torch.from_numpy(images))
    return score.numpy(), anomaly_map.numpy()


def clean_image(photos: Photos, crop: Crop) -> NDArray[np.uint8]:
    """Return the piece of the photo that a crop was cut out of."""
    return photos[NORMAL_PHOTO][crop.top : crop.top + CROP_SIZE, crop.left : crop.left + CROP_SIZE]


def counted_auroc(scores: NDArray[np.float32], anomalous: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve by its definition: all pairs, one after the other level of the scores."""
    levels, index = np.unique(scores, return_inverse=True)
    normal = np.bincount(index[~anomalous], minlength=len(levels))
    positive = np.bincount(index[anomalous], minlength=len(levels))
    lower = np.concatenate([[0], np.cumsum(normal)[:-1]])
    return float((positive * (2 * lower + normal)).sum() / (2 * normal.sum() * positive.sum()))


def test_the_photos_are_real_files_of_the_installed_package(photos: Photos) -> None:
    """Three grey photos of 512 x 512 pixels, read without asking the network."""
    assert {name: photo.shape for name, photo in photos.items()} == dict.fromkeys(
        ("gravel", "grass", "brick"), (512, 512)
    )
    assert all(photo.dtype == np.uint8 and photo.std() > 20 for photo in photos.values())


def test_a_missing_photo_is_named_and_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scikit-image without its texture images is refused with the way out."""
    monkeypatch.setattr(data, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(
        FileError, match=r"'gravel' is not in the installed scikit-image\n  found:   no file .*gravel\.png"
    ):
        data.load_photos()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-image the demo says what to install."""
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(
        MissingDependencyError, match=r"the demo needs the package 'skimage'.*\n.*pip install scikit-image$"
    ):
        data.load_photos()


def test_the_regions_are_disjoint() -> None:
    """No column of a photo belongs to two splits."""
    columns = [set(region) for region in REGIONS.values()]
    assert sum(map(len, columns)) == len(set.union(*columns)) == 512


@pytest.mark.parametrize("split", SPLITS)
def test_crops_stay_in_their_region(crops: dict[str, tuple[Crop, ...]], split: Split) -> None:
    """Every crop lies in the strip of its split as a whole, so no crop of one split overlaps another's."""
    assert all(REGIONS[split].start <= crop.left <= REGIONS[split].stop - CROP_SIZE for crop in crops[split])
    assert all(0 <= crop.top <= 512 - CROP_SIZE for crop in crops[split])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_masks_are_exact(photos: Photos, crops: dict[str, tuple[Crop, ...]], split: Split) -> None:
    """Outside the mask a crop is the photo to the last bit, and inside most pixels are not."""
    for crop in crops[split]:
        changed = crop.image != clean_image(photos, crop)
        assert not (changed & ~crop.mask).any(), crop.name
        assert (crop.kind == GOOD) == (not crop.mask.any()), crop.name
        assert crop.kind == GOOD or changed[crop.mask].mean() > 0.75, crop.name


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_have_a_plausible_size(crops: dict[str, tuple[Crop, ...]], kind: str) -> None:
    """A defect covers some pixels of its crop and never most of them."""
    shares = [crop.mask.mean() for crop in (*crops["validation"], *crops["test"]) if crop.kind == kind]
    assert len(shares) == 2 * CROPS_EACH_DEFECT
    assert min(shares) > 0.01
    assert max(shares) < 0.25


def test_patches_come_out_of_the_region_of_their_split(photos: Photos) -> None:
    """A patch shows pixels of the same strip of the other photo."""
    marked = {name: np.tile(np.arange(512) // 2, (512, 1)).astype(np.uint8) for name in photos}
    marked[NORMAL_PHOTO] = np.full((512, 512), 255, dtype=np.uint8)
    patches = [crop for crop in data.make_crops(marked, "test", good=0, each_defect=5) if crop.kind == "patch"]
    columns = np.concatenate([crop.image[crop.mask] for crop in patches])
    assert columns.min() >= REGIONS["test"].start // 2
    assert columns.max() < REGIONS["test"].stop // 2


def test_the_same_seed_gives_the_same_crops(photos: Photos) -> None:
    """Crops depend on the arguments only, and another seed gives others."""
    first, again, other = (data.make_crops(photos, "test", good=3, each_defect=2, seed=seed) for seed in (0, 0, 1))
    assert [(crop.name, crop.image.tobytes(), crop.mask.tobytes()) for crop in first] == [
        (crop.name, crop.image.tobytes(), crop.mask.tobytes()) for crop in again
    ]
    assert all(one.image.tobytes() != two.image.tobytes() for one, two in zip(first, other, strict=True))


def test_image_files_have_the_layout_of_mvtec_ad(photos: Photos) -> None:
    """Images in a folder per kind, masks of defects beside them under `ground_truth`, 255 where anomalous."""
    some = data.make_crops(photos, "test", good=1, each_defect=1)
    files = data.image_files(some)
    names = ["good/000.png", *(f"{kind}/000.png" for kind in DEFECTS)]
    masks = [f"ground_truth/{kind}/000_mask.png" for kind in DEFECTS]
    assert sorted(map(str, files)) == sorted([*names, *masks])
    scratch = next(crop for crop in some if crop.kind == "scratch")
    np.testing.assert_array_equal(files[PurePosixPath("ground_truth/scratch/000_mask.png")] == 255, scratch.mask)
    assert set(np.unique(files[PurePosixPath("ground_truth/scratch/000_mask.png")])) == {0, 255}


def test_dct_filters_are_orthonormal() -> None:
    """The filters keep the energy of a block, and the first one is its mean."""
    rows = dct_filters().reshape(16, 16)
    np.testing.assert_allclose(rows @ rows.T, np.eye(16), atol=1e-6)
    np.testing.assert_allclose(rows[0], 0.25, atol=1e-7)


def test_direction_sums_add_each_pair_once() -> None:
    """Every frequency but the mean counts in exactly one feature, with its mirror image."""
    sums = direction_sums()[..., 0, 0]
    np.testing.assert_array_equal(sums.sum(axis=0), [0, *[1] * 15])
    np.testing.assert_array_equal(sums.reshape(9, 4, 4), sums.reshape(9, 4, 4).transpose(0, 2, 1))


def test_the_gaussian_whitens() -> None:
    """Features that it was fitted to have mean 0 and covariance 1 once whitened."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5000, 3)) @ np.array([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.7]]) + 5.0
    mean, whitening = fit_gaussian(features)
    np.testing.assert_allclose(np.cov((features - mean) @ whitening.T, rowvar=False), np.eye(3), atol=0.01)


def test_the_fit_is_deterministic(crops: dict[str, tuple[Crop, ...]], detector: "torch.nn.Module") -> None:
    """Fitting again gives the same buffers, bit for bit."""
    again = fit_detector(as_input(crop.image for crop in crops["training"])).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_detector_separates_both_levels(
    crops: dict[str, tuple[Crop, ...]], detector: "torch.nn.Module", split: Split
) -> None:
    """AUROC is above 0.9 on images and on pixels, counted pair by pair."""
    score, anomaly_map = run(detector, as_input(crop.image for crop in crops[split]))
    anomalous = np.array([crop.kind != GOOD for crop in crops[split]])
    masks = np.stack([crop.mask for crop in crops[split]])
    assert counted_auroc(score[:, 0], anomalous) > 0.9
    assert counted_auroc(anomaly_map[:, 0].ravel(), masks.ravel()) > 0.9


def test_the_score_is_the_maximum_of_the_map(detector: "torch.nn.Module") -> None:
    """Score (N, 1) and map (N, 1, H, W) belong together, for any size of image."""
    score, anomaly_map = run(detector, np.random.default_rng(0).random((2, 3, 61, 130), dtype=np.float32))
    assert anomaly_map.shape == (2, 1, 61, 130)
    np.testing.assert_array_equal(score, anomaly_map.max(axis=(2, 3)))


@pytest.mark.parametrize("shape", [(1, 3, 96, 96), (5, 3, 96, 96), (2, 3, 61, 130)], ids=str)
def test_the_export_equals_eager(detector: "torch.nn.Module", exported: Path, shape: Sequence[int]) -> None:
    """The ONNX file gives the module's score and map, at batches and sizes that it was not traced at."""
    images = np.random.default_rng(1).random(tuple(shape), dtype=np.float32)
    score, anomaly_map = run(detector, images)
    outputs = open_runner(exported).run({"input": images})
    assert list(outputs) == ["pred_score", "anomaly_map"]
    np.testing.assert_allclose(outputs["anomaly_map"], anomaly_map, rtol=1e-5)
    np.testing.assert_allclose(outputs["pred_score"], score, rtol=1e-5)


def test_the_export_is_dynamic(exported: Path) -> None:
    """Batch, height and width are named axes of the file, and the channels are not."""
    runner = open_runner(exported)
    (port,) = runner.inputs
    assert (port.name, port.shape) == ("input", ("batch", 3, "height", "width"))
    assert [output.shape for output in runner.outputs] == [("batch", 1), ("batch", 1, "height", "width")]


@pytest.mark.parametrize(
    ("scores", "anomalous", "expected"),
    [
        pytest.param([1, 2, 3, 4], [0, 0, 1, 1], 1.0, id="perfect"),
        pytest.param([4, 3, 2, 1], [0, 0, 1, 1], 0.0, id="reversed"),
        pytest.param([1, 1, 1, 1], [0, 0, 1, 1], 0.5, id="all-tied"),
        pytest.param([1, 2, 2, 3], [0, 0, 1, 1], 0.875, id="one-tie"),
    ],
)
def test_auroc_counts_pairs(scores: list[int], anomalous: list[int], expected: float) -> None:
    """A pair in order counts one, a tie one half."""
    assert evaluation.auroc(np.array(scores, np.float32), np.array(anomalous, bool)) == expected


def test_auroc_agrees_with_the_definition() -> None:
    """The demo's AUROC is the one counted level by level, ties included."""
    rng = np.random.default_rng(2)
    scores, anomalous = rng.integers(0, 50, size=1000).astype(np.float32), rng.random(1000) < 0.3
    assert evaluation.auroc(scores, anomalous) == counted_auroc(scores, anomalous)


FIRST = [PurePosixPath("test/good/000.png"), PurePosixPath("raw.onnx")]


def test_a_new_folder_is_made_and_marked(tmp_path: Path) -> None:
    """`claim` makes the folders of the files and lists the files in the marker."""
    data.claim(tmp_path / "new", FIRST)
    assert (tmp_path / "new/test/good").is_dir()
    assert (tmp_path / "new" / data.MARKER).read_text(encoding="utf-8").splitlines()[1:] == sorted(map(str, FIRST))


def test_a_second_claim_removes_only_the_demos_own_files(tmp_path: Path) -> None:
    """What an earlier run wrote goes, even if it is not written again; what the user put there stays."""
    data.claim(tmp_path, FIRST)
    for name in (*FIRST, "mine.txt", "test/good/mine.png"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    data.claim(tmp_path, FIRST[1:])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [data.MARKER, "mine.txt", "test/good/mine.png"]


def test_what_something_else_wrote_for_the_demo_is_its_own_too(tmp_path: Path) -> None:
    """A file, or all files of a folder: the next claim removes them, and the folders that are empty then."""
    data.claim(tmp_path, FIRST)
    for name in ("report.html", "more/a/1.csv", "more/b/2.csv", "other/mine.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    for name in ("report.html", "more"):
        data.claim_written(tmp_path, name)
    (tmp_path / "more" / "b" / "mine.txt").write_text("x", encoding="utf-8")
    data.claim(tmp_path, FIRST)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name != data.MARKER)
    assert left == ["more", "more/b", "more/b/mine.txt", "other", "other/mine.txt", "test", "test/good"]


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    """A folder with files that no demo wrote is left as it is."""
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(FileError, match=r"is not the demo's to write to\n  found:   files that no demo wrote"):
        data.claim(tmp_path, FIRST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """`--output` with the path of a file is refused."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(FileError, match="found:   a file"):
        data.claim(tmp_path / "file", FIRST)


def test_a_file_in_the_way_is_never_overwritten(tmp_path: Path) -> None:
    """In a demo's folder, a file that no demo wrote blocks one of the same name before anything is removed."""
    data.claim(tmp_path, FIRST[:1])
    for name in FIRST:
        (tmp_path / name).write_text("x", encoding="utf-8")
    with pytest.raises(FileError, match=r"raw\.onnx is in the demo's way, and no demo wrote it"):
        data.claim(tmp_path, FIRST)
    assert all((tmp_path / name).is_file() for name in FIRST)


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/outside.txt"])
def test_a_list_that_leads_outside_is_refused(tmp_path: Path, path: str) -> None:
    """An edited list deletes nothing outside its folder."""
    data.claim(tmp_path, FIRST)
    (tmp_path / data.MARKER).write_text(path, encoding="utf-8")
    with pytest.raises(FileError, match="names files outside its folder"):
        data.claim(tmp_path, FIRST)


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """What the file system refuses comes with its reason and a way out."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(
        FileError, match=r"cannot write the demo to .*\n  found:   .*\n  fix:     choose another folder"
    ):
        data.claim(tmp_path / "file" / "below", FIRST)


def outputs(crops: Sequence[Crop], labels: Sequence[bool]) -> tuple[Outputs, Outputs]:
    """Return what a raw and an attached model could give for some crops."""
    units = np.stack([crop.image[None] for crop in crops]).astype(np.float32) / 255
    raw = {"pred_score": np.full((len(crops), 1), 7.0, np.float32), "anomaly_map": units * 10}
    masks = np.stack([crop.mask[None] for crop in crops])
    unit = {"pred_score": np.full((len(crops), 1), 0.45, np.float32), "anomaly_map": units}
    return raw, {**unit, "pred_label": np.array(labels)[:, None], "pred_mask": masks}


def test_evaluation_counts_both_kinds_of_mistake(photos: Photos) -> None:
    """Found anomalous crops, and good ones that are called so, are counted apart."""
    good, scratch = (data.make_crops(photos, "test", good=2, each_defect=1)[index] for index in (0, 4))
    assert (good.kind, scratch.kind) == ("good", "scratch")
    crops = [scratch, good, scratch, good]
    separation, decisions = evaluation.evaluate(crops, *outputs(crops, [True, True, False, False]))
    assert decisions == "1 of 2 anomalous crops, and calls 1 of 2 good ones anomalous"
    assert separation.startswith("AUROC 0.500 of images")


def test_the_picture_is_a_small_png(photos: Photos, tmp_path: Path) -> None:
    """A column per crop is drawn, of a normal crop without an outline, too."""
    crops = data.make_crops(photos, "test", good=1, each_defect=1)[:3]
    level = LevelStats(threshold=5.0, min=0.0, max=10.0)
    given = outputs(crops, [True] * len(crops))
    draw_picture(crops, *given, tmp_path / "picture.png", image=level, pixel=level)
    content = (tmp_path / "picture.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 300_000


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_a_missed_check_is_shown_and_exits_1(
    passed: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo fails when one of its files fails its check, and prints what failed."""
    report = ParityReport(subject="attached.xml", checks=(Check(name="tail", passed=passed, message="1 flipped"),))
    result = DemoResult(folder=Path("home"), attached=None, reports=(report,))  # type: ignore[arg-type]
    monkeypatch.setattr(run_module, "run_demo", lambda folder, tell: result)
    assert main(["demo"]) == code
    assert ("(1 of 1 checks failed)" in capsys.readouterr().out) == (not passed)


def test_the_demo_speaks_json_and_can_be_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object with what was written; in quiet not a word, though the steps are told while they are done."""
    level = LevelStats(threshold=5.0, min=0.0, max=10.0)
    host = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    attached = attach_postprocessing(host, CalibrationStats(image=level, pixel=level), output=tmp_path / "a.onnx")
    report = ParityReport(subject="attached.xml", checks=(Check(name="tail", passed=True, message="alike"),))

    def run(folder: Path, tell: Tell) -> DemoResult:
        tell("1. Photos", "as they are", "postproc-export demo")
        return DemoResult(folder=folder, attached=attached, reports=(report,))

    monkeypatch.setattr(run_module, "run_demo", run)
    assert main(["demo", "-o", str(tmp_path / "home"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert faults("demo", document) == []
    assert (document["passed"], document["sensitivities"]) == (True, {"image": 0.5, "pixel": 0.5})
    assert str(tmp_path / "home" / "picture.png") in document["written"]
    assert main(["demo", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["demo"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("\n1. Photos\n  as they are\n  $ postproc-export demo\n")
    assert told.endswith("\n".join(["", *(f"  {line}" for line in OWN), ""]))


def test_the_commands_for_a_model_of_ones_own_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """What the demo ends with, on a model and labelled images with masks of these names."""
    hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")
    labelled(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    for line in OWN:
        result = invoke(*shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "report.html").is_file()


def test_commands_quote_the_folder() -> None:
    """The commands can be pasted into a shell whatever the folder is called."""
    calibrate, attach, check, predict, report = commands(Path("my demo"))
    assert calibrate.startswith("postproc-export calibrate 'my demo/raw.onnx' --images 'my demo/validation'")
    assert attach.endswith("-o 'my demo/attached.onnx'")
    assert check.endswith("--raw 'my demo/raw.onnx' --images 'my demo/test'")
    assert predict == "postproc-export predict 'my demo/attached.onnx' 'my demo/test' -o 'my demo/predictions'"
    assert "--model 'my demo/attached.onnx' --images 'my demo/test' --check 'my demo/check.json'" in report
    assert "picture.png" in FILES


def stopped_demo(home: Path) -> None:
    """Begin to write a demo's files."""
    with data.whole_or_nothing(home):
        data.claim(home, FIRST)
        (home / FIRST[0]).write_text("half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("was_there", [False, True], ids=["new", "there"])
def test_a_demo_that_fails_takes_its_files_away(was_there: bool, tmp_path: Path) -> None:
    """Of a demo that was stopped nothing stays but what it found."""
    home = tmp_path / "demo"
    if was_there:
        home.mkdir()
    with pytest.raises(KeyboardInterrupt):
        stopped_demo(home)
    assert list(tmp_path.rglob("*")) == ([home] if was_there else [])
