"""How images become inputs: the options of calibrate and check, files of them, the record, and typical mistakes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import numpy.typing as npt
import pytest
from checks import runtime_of
from conftest import Invoke
from image_files import save
from PIL import Image

from postproc_export import check_parity
from postproc_export.errors import UsageError
from postproc_export.images import Preprocessing
from postproc_export.stats import CalibrationStats

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
REAL = ("--resize", "shorter", "--image-size", "256", "--crop", "224", "--preset", "imagenet")
SMALL = ("--resize", "shorter", "--image-size", "12", "--crop", "8")


def dataset(root: Path, *, count: int, longest: int) -> Path:
    """Write photos of many sizes, half of them with a bright spot and its mask, in MVTec AD's layout."""
    rng = np.random.default_rng(count)
    for index in range(count):
        height, width = (int(side) for side in rng.integers(longest * 2 // 3, longest, 2))
        coarse = rng.integers(0, 200, (5, 6, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels, mask = np.asarray(photo).copy(), np.zeros((height, width), np.uint8)
        if index % 2:
            top, left = height * 2 // 5, width // 2
            mask[top : top + height // 6, left : left + width // 9] = 255
            pixels[mask > 0] = np.minimum(pixels[mask > 0].astype(int) + rng.integers(10, 60), 255)
            save(root / "ground_truth" / "spot" / f"{index:02}_mask.png", mask)
        save(root / "validation" / ("spot" if index % 2 else "good") / f"{index:02}.png", pixels)
    return root / "validation"


def auroc(values: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve by ranks; ties count one half."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    anomalous = int(truth.sum())
    below = ranks[truth].sum() - anomalous * (anomalous + 1) / 2
    return float(below / (anomalous * (truth.size - anomalous)))


def as_torchvision(path: Path, mode: str, resampling: Image.Resampling) -> npt.NDArray[np.uint8]:
    """Return what Resize(256) and CenterCrop(224) of torchvision make of a file, by Pillow."""
    with Image.open(path) as file:
        image = file.convert(mode)
    short, long = sorted(image.size)
    new_long = int(256 * long / short)
    width, height = (256, new_long) if image.width <= image.height else (new_long, 256)
    top, left = (round((side - 224) / 2.0) for side in (height, width))
    return np.asarray(image.resize((width, height), resampling).crop((left, top, left + 224, top + 224)))


def raw_and_truth(images: Path) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the detector's raw outputs, labels and masks for a data set, with the arithmetic of torchvision."""
    files = sorted(images.rglob("*.png"))
    fed, masks = [], []
    for path in files:
        pixels = as_torchvision(path, "RGB", Image.Resampling.BILINEAR)
        fed.append(((pixels.astype(np.float32) / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))
        mask = images.parent / "ground_truth" / "spot" / f"{path.stem}_mask.png"
        is_marked = (
            as_torchvision(mask, "L", Image.Resampling.NEAREST) > 0 if mask.exists() else np.zeros((224, 224), bool)
        )
        masks.append(is_marked)
    labels = np.array([path.parent.name == "spot" for path in files])
    return hosts.expected(np.stack(fed)), labels, np.stack(masks)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen photos of about 300 pixels, and a detector of 224 x 224 as ONNX and IR."""
    folder = tmp_path_factory.mktemp("real")
    dataset(folder / "set", count=16, longest=330)
    host = hosts.score_and_map(dynamic=False, batch="N", size=(224, 224))
    hosts.write(host, folder / "model.onnx")
    hosts.to_ir(host, folder / "model.xml")
    return folder


@pytest.mark.parametrize("suffix", ["onnx", pytest.param("xml", marks=pytest.mark.slow)])
def test_the_real_case(real: Path, tmp_path: Path, invoke: Invoke, suffix: str) -> None:
    """Resize 256, central crop 224, ImageNet's mean and standard deviation: one command each, and torchvision's AUROC.

    The pixel level is judged on masks of the same geometry. Without the crop the numbers are others.
    """
    model, images = real / f"model.{suffix}", real / "set" / "validation"
    stats, attached = tmp_path / "stats.json", tmp_path / f"attached.{suffix}"
    done = invoke("calibrate", model, "--images", images, *REAL, "-o", stats)
    assert done.exit_code == 0, done.stderr
    assert "the shorter side resized to 256 (bilinear), the central 224x224 cropped" in done.stderr
    done = invoke("attach", model, "--stats", stats, "-o", attached)
    assert done.exit_code == 0, done.stderr
    done = invoke("check", attached, "--raw", model, "--images", images, "--limit", 4, "--runtime", runtime_of(model))
    assert done.exit_code == 0, done.stdout

    raw, labels, masks = raw_and_truth(images)
    found = CalibrationStats.load(stats)
    assert found.image is not None
    assert found.pixel is not None
    of_images = auroc(raw["pred_score"].ravel(), labels)
    of_pixels = auroc(raw["anomaly_map"].ravel(), masks.ravel())
    assert 0.6 < of_images < 0.999, "neither chance nor trivial"
    assert found.image.details["auroc"]["value"] == pytest.approx(of_images, abs=1e-3)
    assert found.pixel.details["auroc"]["value"] == pytest.approx(of_pixels, abs=1e-3)
    assert found.pixel.n_anomalous == pytest.approx(masks.sum(), rel=0.02), "Pillow takes either side of a tie"

    stretched = tmp_path / "stretched.json"
    assert invoke("calibrate", model, "--images", images, "--preset", "imagenet", "-o", stretched).exit_code == 0
    other = CalibrationStats.load(stretched)
    assert other.image is not None
    assert abs(other.image.details["auroc"]["value"] - of_images) > 1e-3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of about 30 pixels, a detector of 8 x 8, and it attached with statistics of a central crop."""
    from postproc_export import Calibrator, attach_postprocessing
    from postproc_export.calibration.model import ModelSource

    folder = tmp_path_factory.mktemp("small")
    images = dataset(folder / "set", count=10, longest=30)
    model = hosts.write(hosts.score_and_map(dynamic=False, batch="N"), folder / "model.onnx")
    way = {"resize": "shorter", "size": 12, "crop": 8}
    with Calibrator(resamples=0) as calibrator:
        ModelSource.open(model, images, preprocessing=way).calibrate(calibrator).save(folder / "stats.json")
    attach_postprocessing(model, folder / "stats.json", output=folder / "attached.onnx")
    return folder


def check(invoke: Invoke, folder: Path, *options: object) -> tuple[int, str, str]:
    """Check the small attached file on two of its images; return the exit code, what was fed, and stderr."""
    images = ("--images", folder / "set" / "validation", "--limit", 2)
    done = invoke("check", folder / "attached.onnx", *images, "--runtime", "onnxruntime", "--json", *options)
    fed = json.loads(done.stdout)["environment"]["inputs"] if done.stdout else ""
    return done.exit_code, fed, done.stderr


@pytest.mark.parametrize(
    ("options", "contradiction"),
    [
        pytest.param(["--scale", "1"], "--scale 1, recorded 255", id="scale"),
        pytest.param(
            ["--resize", "stretch", "--image-size", "8", "--crop", "none"],
            "--resize stretch, recorded shorter; --image-size 8x8, recorded 12x12; --crop none, recorded 8x8",
            id="no-crop",
        ),
        pytest.param(["--channel-order", "bgr"], "--channel-order bgr, recorded rgb", id="bgr"),
        pytest.param(["--preset", "imagenet"], "--mean 0.485,0.456,0.406, recorded 0; --std 0.229", id="preset"),
        pytest.param(["--interpolation", "cv2-linear"], "--interpolation cv2-linear, recorded bilinear", id="filter"),
    ],
)
def test_images_fed_otherwise_than_in_calibration_are_refused(
    small: Path, invoke: Invoke, options: list[str], contradiction: str
) -> None:
    """What is recorded and what was given are named; --other-preprocessing goes on, with one field replaced alone."""
    code, fed, message = check(invoke, small, *options)
    assert (code, fed) == (2, "")
    assert message.startswith("error: the images would be fed otherwise than in calibration")
    assert contradiction in " ".join(message.split())
    assert "--other-preprocessing" in message
    code, fed, _ = check(invoke, small, *options, "--other-preprocessing")
    assert code in (0, 1)
    assert fed


def test_the_record_is_used_and_what_equals_it_is_accepted(small: Path, invoke: Invoke) -> None:
    """In any form, from options, from the statistics themselves, and from the calibration's own options."""
    code, recorded, errors = check(invoke, small)
    assert (code, errors) == (0, "")
    assert "the shorter side resized to 12 (bilinear), the central 8x8 cropped, RGB, divided by 255" in recorded
    for same in (SMALL, ["--scale", "255"], ["--mean", "0,0,0"], ["--preprocessing", small / "stats.json"]):
        assert check(invoke, small, *same) == (0, recorded, "")
    code, fed, _ = check(invoke, small, "--other-preprocessing", "--mean", "0.5")
    assert code == 0
    assert fed == recorded.replace("mean 0", "mean 0.5"), "one option replaces one field"


def test_a_file_without_a_record_is_fed_as_asked(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Statistics from files record no pre-processing: the defaults and the options count, and a doubt is told."""
    stats = json.loads((small / "stats.json").read_text())
    del stats["preprocessing"]
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    attached = tmp_path / "attached.onnx"
    assert invoke("attach", small / "model.onnx", "--stats", tmp_path / "stats.json", "-o", attached).exit_code == 0
    arguments = [
        "check",
        attached,
        "--images",
        small / "set" / "validation",
        "--limit",
        1,
        "--runtime",
        "onnxruntime",
        "--json",
    ]
    done = invoke(*arguments)
    assert "resized to 8x8 (height x width, bilinear, aspect not kept), RGB, divided by 255" in done.stdout
    assert done.stderr == ""
    done = invoke(*arguments, *SMALL, "--mean", "120")
    assert "the central 8x8 cropped" in done.stdout
    assert "warning: --mean 120: beyond the pixels" in done.stderr


def test_one_option_replaces_one_field_of_a_file(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    """TOML, JSON and statistics serve calibrate; an option takes the place of that field alone."""
    (tmp_path / "way.toml").write_text('resize = "shorter"\nsize = 12\ncrop = 8\npreset = "half"\n')
    (tmp_path / "way.json").write_text(
        '{"resize": "shorter", "size": [12, 12], "crop": "8x8", "mean": 0.5, "std": 0.5}'
    )
    recorded = []
    for file in (tmp_path / "way.toml", tmp_path / "way.json"):
        arguments = [
            "calibrate",
            small / "model.onnx",
            "--images",
            small / "set" / "validation",
            "--preprocessing",
            file,
        ]
        assert invoke(*arguments, "-o", tmp_path / "a.json").exit_code == 0
        assert invoke(*arguments, "--std", "0.25", "-o", tmp_path / "b.json").exit_code == 0
        whole, changed = (
            CalibrationStats.load(tmp_path / name).details["preprocessing"] for name in ("a.json", "b.json")
        )
        assert (whole["resize"], whole["crop"], whole["mean"], whole["std"]) == ("shorter", [8, 8], [0.5], [0.5])
        assert changed == {**whole, "std": [0.25]}
        recorded.append(whole)
    assert recorded[0] == recorded[1]
    again = ["--preprocessing", tmp_path / "b.json", "--preset", "unit", "-o", tmp_path / "c.json"]
    assert invoke(*arguments[:4], *again).exit_code == 0
    assert CalibrationStats.load(tmp_path / "c.json").details["preprocessing"]["std"] == [1.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--bits", "16"], "16 bits, resized to 8x8", id="16-bits"),
        pytest.param(
            ["--precrop", "--interpolation", "cv2-area"], "cut to the aspect of 8x8, resized to 8x8", id="precrop"
        ),
        pytest.param(
            ["--resize", "pad", "--pad-at", "corner", "--pad-value", "114"],
            "padded with 114 around the corner",
            id="pad",
        ),
        pytest.param(["--resize", "none", "--crop", "8"], "not resized, the central 8x8 cropped", id="crop-alone"),
    ],
)
def test_other_ways_go_from_calibration_to_check(
    small: Path, tmp_path: Path, invoke: Invoke, options: list[str], said: str
) -> None:
    """What calibrate was told is what check feeds, without a word; the masks of padded images count no padding."""
    images = dataset(tmp_path / "set", count=6, longest=30)
    if "16" in options:
        for path in images.rglob("*.png"):
            with Image.open(path) as file:
                gray = np.asarray(file.convert("L")).astype(np.uint16)
            Image.fromarray(gray * np.uint16(257)).save(path)
    stats, attached = tmp_path / "stats.json", tmp_path / "attached.onnx"
    done = invoke("calibrate", small / "model.onnx", "--images", images, *options, "-o", stats)
    assert done.exit_code == 0, done.stderr
    assert said in done.stderr
    pixel = CalibrationStats.load(stats).pixel
    assert pixel is not None
    assert ((pixel.n_normal or 0) + (pixel.n_anomalous or 0) < 6 * 64) == ("pad" in options)
    assert invoke("attach", small / "model.onnx", "--stats", stats, "-o", attached).exit_code == 0
    alone = ("--runtime", "onnxruntime", "--json")
    done = invoke("check", attached, "--raw", small / "model.onnx", "--images", images, *alone)
    assert done.exit_code == 0, done.stdout
    assert said in json.loads(done.stdout)["environment"]["inputs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--preprocessing", "absent.toml"], "cannot read the pre-processing absent.toml", id="absent"),
        pytest.param(["--preprocessing", "model.onnx"], "the pre-processing model.onnx is not JSON", id="a-model"),
        pytest.param(["--preprocessing", "bare.json"], "bare.json record no pre-processing", id="bare-statistics"),
        pytest.param(["--preprocessing", "empty.toml"], "empty.toml is no table of fields", id="empty"),
        pytest.param(["--preprocessing", "bad.toml"], "bad.toml: a pre-processing has no field 'croop'", id="field"),
        pytest.param(["--preprocessing", "out.json"], "out.json", id="the-output"),
        pytest.param(["--crop", "9", "--image-size", "12"], "images of 9x9", id="crop"),
        pytest.param(["--crop", "8"], "what images are resized to before they are cropped is not known", id="no-size"),
        pytest.param(["--pad-value", "114"], "--pad-value would have no effect", id="pad-value"),
        pytest.param(["--resize", "none"], "does not come to the size of the model's input", id="none"),
        pytest.param(["--bits", "16"], "is no 16-bit gray image", id="bits"),
        pytest.param(["--interpolation", "cv2-cubic"], "cv2-cubic", id="filter"),
        pytest.param(["--layout", "nchw", "--input-layout", "nchw"], "--input-layout alone", id="layout-twice"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke, options: list[str], message: str
) -> None:
    """Exit code 2, one message, no statistics; a file that is read is not overwritten."""
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes((small / "model.onnx").read_bytes())
    Path("bare.json").write_text('{"schema_version": 1, "image": {"threshold": 1, "min": 0, "max": 2}, "pixel": null}')
    Path("bad.toml").write_text("croop = 3\n")
    Path("empty.toml").touch()
    if "out.json" in options:
        Path("out.json").write_text("{}")
    done = invoke("calibrate", "model.onnx", "--images", small / "set" / "validation", *options, "-o", "out.json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert Path("out.json").exists() == ("out.json" in options)
    assert not Path("out.json").exists() or Path("out.json").read_text() == "{}"


def test_mean_and_std_of_bytes_are_warned_of(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Pixels from 0 to 1 beside ImageNet's mean of 0 to 255: told with the mend, which is silent."""
    arguments = ["calibrate", small / "model.onnx", "--images", small / "set" / "validation", "-o", tmp_path / "s.json"]
    of_bytes = ["--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"]
    done = invoke(*arguments, *of_bytes)
    assert done.exit_code == 0
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: --mean")]
    assert len(warned) == 1
    assert warned[0].startswith(
        "warning: --mean 123.675,116.28,103.53 and --std 58.395,57.12,57.375: beyond the pixels"
    )
    assert warned[0].endswith("need --scale 1")
    done = invoke(*arguments, *of_bytes, "--scale", "1")
    assert done.exit_code == 0
    assert "beyond the pixels" not in done.stderr


def test_masks_of_another_size_are_refused_and_gray_edges_noted(tmp_path: Path, invoke: Invoke) -> None:
    """Each names the mask; the second calibrates, and the statistics count what was between."""
    images = dataset(tmp_path / "set", count=6, longest=30)
    model = hosts.write(hosts.score_and_map(dynamic=False, batch="N"), tmp_path / "model.onnx")
    mask = tmp_path / "set" / "ground_truth" / "spot" / "01_mask.png"
    with Image.open(mask) as file:
        sharp = file.copy()
    sharp.resize((7, 7)).resize(sharp.size, Image.Resampling.BILINEAR).save(mask)
    arguments = ["calibrate", model, "--images", images, "-o", tmp_path / "s.json"]
    done = invoke(*arguments)
    assert done.exit_code == 0
    assert "warning: 1 mask(s) hold " in done.stderr
    assert "between 0 and their largest value" in done.stderr
    assert str(mask) in " ".join(done.stderr.split())
    assert CalibrationStats.load(tmp_path / "s.json").details["samples"]["gray_masks"] == 1
    sharp.resize((9, 9)).save(mask)
    (tmp_path / "s.json").unlink()
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert "01_mask.png has another size than its image" in done.stderr
    assert "export the masks at the size of the images" in done.stderr
    assert not (tmp_path / "s.json").exists()


def test_the_old_name_of_the_layout_is_taken_and_not_shown(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    """In calibrate and check `--layout` is `--input-layout`; the help knows the new name alone."""
    arguments = ["calibrate", small / "model.onnx", "--images", small / "set" / "validation", "-o", tmp_path / "s.json"]
    assert invoke(*arguments, "--layout", "nchw").exit_code == 0
    done = invoke(*arguments, "--layout", "nhwc")
    assert done.exit_code == 2
    assert "add --input-layout nchw" in done.stderr
    assert check(invoke, small, "--layout", "nchw")[0] == 0
    for command in ("calibrate", "check"):
        shown = invoke(command, "--help").stdout
        assert "--input-layout" in shown
        assert " --layout" not in shown


def test_the_help_of_check_shows_no_default_for_what_is_recorded(invoke: Invoke) -> None:
    """It says whose value counts; the help of calibrate has the defaults."""
    shown = " ".join(invoke("check", "--help").stdout.split())
    assert "the default of every option for that is what is recorded" in shown
    of_images = shown.partition("Images: ")[2]
    assert "--channel-order" in of_images
    assert "[default:" not in of_images
    assert "[default: bilinear]" in " ".join(invoke("calibrate", "--help").stdout.split())


@pytest.mark.parametrize("option", [["--preprocessing", "stats.json"], ["--other-preprocessing"], ["--crop", "8"]])
def test_options_of_images_need_images(small: Path, invoke: Invoke, option: list[str]) -> None:
    """Without images they would decide nothing."""
    done = invoke("check", small / "attached.onnx", *option)
    assert done.exit_code == 2
    assert f"{option[0]} without images" in done.stderr


def test_inspect_shows_how_images_are_fed(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    """The recorded description, as text and as JSON; a file without one has null and no such line."""
    done = invoke("inspect", small / "attached.onnx")
    assert "  images   calibrated on: the shorter side resized to 12 (bilinear), the central 8x8 cropped" in done.stdout
    recorded = json.loads(invoke("inspect", small / "attached.onnx", "--json").stdout)["preprocessing"]
    assert recorded == json.loads((small / "stats.json").read_text())["preprocessing"]
    assert (recorded["resize"], recorded["crop"]) == ("shorter", [8, 8])
    document = json.loads((small / "stats.json").read_text())
    document["preprocessing"]["resize"] = "longer"
    (tmp_path / "odd.json").write_text(json.dumps(document))
    invoke("attach", small / "model.onnx", "--stats", tmp_path / "odd.json", "-o", tmp_path / "odd.onnx")
    assert "not legal: unknown resize 'longer'" in invoke("inspect", tmp_path / "odd.onnx").stdout
    bare = invoke("inspect", small / "model.onnx")
    assert "  images " not in bare.stdout
    assert json.loads(invoke("inspect", small / "model.onnx", "--json").stdout)["preprocessing"] is None


def test_python_is_told_the_same(small: Path) -> None:
    """In check_parity: fields, or a whole description, against the record; and none without images."""
    attached, images = small / "attached.onnx", small / "set" / "validation"
    for other in ({"crop": "none"}, Preprocessing(size=(8, 8))):
        with pytest.raises(UsageError, match=r"fed otherwise than in calibration(.|\n)*--crop none, recorded 8x8"):
            check_parity(attached, images=images, preprocessing=other, limit=1)
    same = Preprocessing(resize="shorter", size=(12, 12), crop=(8, 8))
    assert check_parity(attached, images=images, preprocessing=same, limit=1, runtimes=["onnxruntime"])
    report = check_parity(
        attached, images=images, preprocessing={"scale": 1}, other_preprocessing=True, limit=1, runtimes=["onnxruntime"]
    )
    assert "divided by 1," in report.environment["inputs"]
    for options in ({"preprocessing": same}, {"other_preprocessing": True}):
        with pytest.raises(UsageError, match="without images"):
            check_parity(attached, **options)


def test_export_feeds_images_alike(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    """`--calibrate` takes the options and records them, at the example's size; statistics are not contradicted."""
    images = small / "set" / "validation"
    model = ["export", "export_modules:detector", "--input", "1,3,8,8", "--dynamic", "batch,height,width"]
    done = invoke(*model, "--calibrate", images, *SMALL, "--preset", "half", "-o", tmp_path / "first")
    assert done.exit_code == 0, done.stderr
    recorded = CalibrationStats.load(tmp_path / "first" / "statistics.json").details["preprocessing"]
    assert (recorded["resize"], recorded["size"], recorded["crop"], recorded["mean"]) == (
        "shorter",
        [12, 12],
        [8, 8],
        [0.5],
    )
    again = [*model, "--stats", tmp_path / "first" / "statistics.json", "--images", images, "-o", tmp_path / "second"]
    done = invoke(*again, "--crop", "none", "--image-size", "8", "--resize", "stretch")
    assert done.exit_code == 2
    assert "--crop none, recorded 8x8" in " ".join(done.stderr.split())
    assert "--other-preprocessing" not in done.stderr, "which export does not have"
    assert not (tmp_path / "second").exists()


PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8")


def test_the_page_runs_as_written(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """Every block of docs/images.md, in order, on the real case; the file and the fields say what the options say."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(real / "model.onnx", "model.onnx")
    for split in ("validation", "test"):
        shutil.copytree(real / "set" / "validation", Path("bottle", split))
    shutil.copytree(real / "set" / "ground_truth", Path("bottle", "ground_truth"))
    names: dict[str, Any] = {}
    for language, text in re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL):
        if language == "toml":
            Path("images.toml").write_text(text)
        elif language == "python":
            exec(compile(text, "docs/images.md", "exec"), names)
        else:
            for line in text.strip().splitlines():
                done = invoke(*line.split()[1:])
                assert done.exit_code == 0, line + done.stderr
    recorded = [
        CalibrationStats.load(f"{name}.json").details["preprocessing"] for name in ("stats", "again", "bicubic")
    ]
    assert recorded[0] == recorded[1] == names["stats"].details["preprocessing"]
    assert recorded[2] == {**recorded[0], "interpolation": "bicubic"}


def test_every_option_of_the_page_is_one(invoke: Invoke) -> None:
    """What its table names stands in the help, and the help's options of images stand in the table."""
    shown = invoke("calibrate", "--help").stdout.partition("Images:")[2].partition("Printing:")[0]
    listed = set(re.findall(r"^  (--[a-z-]+)", shown, flags=re.MULTILINE)) - {"--images", "--split"}
    assert listed == set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {
        "--images",
        "--stats",
        "--raw",
        "--model-info",
        "--contract",
        "--other-preprocessing",
    }
