"""Reading torchvision's and Anomalib's transforms, by stand-ins of the same names and attributes."""

import enum
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
import torch
from PIL import Image

from postproc_export.calibration.model import ModelSource
from postproc_export.errors import UsageError
from postproc_export.images import Preprocessing
from postproc_export.images.preprocessing import given_fields

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Mode(enum.Enum):
    """torchvision's InterpolationMode."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


def made(name: str, **attributes: Any) -> Any:
    """Return an object of a class of this name, with these attributes; it can be called, as transforms can."""
    members = {"__call__": lambda self, image: image, "__repr__": lambda self: f"{name}({attributes})"}
    item = type(name, (), members)()
    for key, value in attributes.items():
        setattr(item, key, value)
    return item


def resize(size: Any = (8, 8), **given: Any) -> Any:
    """Return torchvision's Resize, with what v1 and v2 keep."""
    return made(
        "Resize", **{"size": size, "interpolation": Mode.BILINEAR, "max_size": None, "antialias": True, **given}
    )


def compose(*steps: Any) -> Any:
    """Return torchvision's Compose."""
    return made("Compose", transforms=list(steps))


def preprocessor(transform: Any) -> Any:
    """Return Anomalib's PreProcessor, a torch module with its transform."""
    module = type("PreProcessor", (torch.nn.Module,), {})()
    module.transform = transform
    return module


NORMALIZE = made("Normalize", mean=MEAN, std=STD, inplace=False)
TO_TENSOR = made("ToTensor")
SHORTER = Preprocessing(resize="shorter", size=(256, 256), crop=(224, 224), preset="imagenet")
STRETCHED = Preprocessing(size=(256, 256), preset="imagenet")


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        pytest.param(compose(resize(256), made("CenterCrop", size=(224, 224)), TO_TENSOR, NORMALIZE), SHORTER, id="v1"),
        pytest.param(
            compose(
                made("ToImage"),
                made("ToDtype", dtype=torch.uint8, scale=True),
                resize([256]),
                made("CenterCrop", size=[224, 224]),
                made("ToDtype", dtype=torch.float32, scale=True),
                NORMALIZE,
                made("ToPureTensor"),
            ),
            SHORTER,
            id="v2",
        ),
        pytest.param(preprocessor(compose(resize((256, 256)), NORMALIZE)), STRETCHED, id="anomalib"),
        pytest.param(preprocessor(resize((256, 256))), Preprocessing(size=(256, 256)), id="anomalib-alone"),
        pytest.param(compose(resize((256, 256)), compose(TO_TENSOR, NORMALIZE)), STRETCHED, id="nested"),
        pytest.param([resize((256, 256)), NORMALIZE], STRETCHED, id="list"),
        pytest.param(
            torch.nn.Sequential(torch.nn.Identity()), Preprocessing(resize="none"), id="sequential-of-nothing"
        ),
        pytest.param(
            compose(resize((4, 6), interpolation=Mode.BICUBIC), TO_TENSOR),
            Preprocessing(size=(4, 6), interpolation="bicubic"),
            id="pair",
        ),
        pytest.param(
            compose(resize((4, 6), interpolation=4, antialias="warn"), TO_TENSOR),
            Preprocessing(size=(4, 6), interpolation="box"),
            id="pillows-number",
        ),
        pytest.param(
            compose(TO_TENSOR, resize((4, 6), interpolation=Mode.NEAREST_EXACT, antialias=None)),
            Preprocessing(size=(4, 6), interpolation="nearest"),
            id="nearest",
        ),
        pytest.param(
            compose(made("Grayscale", num_output_channels=1), made("CenterCrop", size=8), TO_TENSOR),
            Preprocessing(channel_order="gray", resize="none", crop=(8, 8)),
            id="gray",
        ),
        pytest.param(
            compose(
                made("PILToTensor"),
                made("ConvertImageDtype", dtype=torch.float32),
                made("Normalize", mean=(0.5,), std=torch.tensor([0.25])),
            ),
            Preprocessing(resize="none", mean=(0.5,), std=(0.25,)),
            id="converted",
        ),
        pytest.param(
            compose(
                made("ToImage"),
                made("ToDtype", dtype=torch.float32, scale=False),
                made("Normalize", mean=[127.5], std=[127.5]),
            ),
            Preprocessing(resize="none", scale=1.0, mean=(127.5,), std=(127.5,)),
            id="unscaled",
        ),
    ],
)
def test_what_can_be_expressed_is_read(transform: Any, expected: Preprocessing) -> None:
    """Every form in which it is handed over, by `from_transforms` and wherever a pre-processing is taken."""
    assert Preprocessing.from_transforms(transform) == expected
    assert given_fields(transform) == given_fields(expected)


TENSORS = made("ToImage")


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (compose(resize(), made("RandomHorizontalFlip", p=0.5)), "the transform RandomHorizontalFlip"),
        (compose(made("Lambda", lambd=abs)), "the transform Lambda"),
        (compose(made("Pad", padding=4)), "the transform Pad"),
        (made("RandomApply", transforms=[resize()], p=0.5), "the transform RandomApply"),
        (resize(8, max_size=16), "Resize(.|\n)*max_size"),
        (resize(antialias=False), "Resize(.|\n)*antialias is False"),
        (compose(TENSORS, resize(antialias="warn")), "Resize(.|\n)*antialias is 'warn'"),
        (preprocessor(resize(antialias=None)), "Resize(.|\n)*antialias is None"),
        (compose(TENSORS, resize(interpolation=Mode.NEAREST)), "Resize(.|\n)*nearest-exact"),
        (resize(interpolation="area"), "Resize(.|\n)*interpolation is 'area'"),
        (resize(interpolation=9), "Resize(.|\n)*interpolation is 9"),
        (resize(None), "Resize(.|\n)*size is None"),
        (resize((1, 2, 3)), r"Resize(.|\n)*size is \(1, 2, 3\)"),
        (made("Resize", height=8, width=8), "Resize(.|\n)*no attribute 'interpolation'"),
        (compose(made("CenterCrop", size=(4, 4)), resize()), "Resize(.|\n)*after CenterCrop"),
        (compose(TO_TENSOR, NORMALIZE, resize()), "Resize(.|\n)*after Normalize"),
        (compose(resize(), resize()), "Resize(.|\n)*after Resize"),
        (compose(resize(), made("Grayscale", num_output_channels=1)), "Grayscale(.|\n)*after Resize"),
        (made("Grayscale", num_output_channels=3), "Grayscale(.|\n)*repeats"),
        (compose(NORMALIZE, made("ToDtype", dtype=torch.float32, scale=True)), "ToDtype(.|\n)*after Normalize"),
        (compose(made("ToDtype", dtype=torch.float16, scale=True)), "ToDtype(.|\n)*float16"),
        (compose(TO_TENSOR, made("ToDtype", dtype=torch.uint8, scale=True)), "ToDtype(.|\n)*uint8"),
        (preprocessor(None), "NoneType"),
        (5, "the transform int"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(transform: Any, message: str) -> None:
    """The message names the class, and why; nothing is left out in silence."""
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_transforms(transform)
    with pytest.raises(UsageError, match=message):
        given_fields(transform)


def test_it_does_what_the_transforms_do() -> None:
    """Shorter side, central crop, tensor and normalising, by Pillow and torch as torchvision computes them."""
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    way = Preprocessing.from_transforms(compose(resize(16), made("CenterCrop", size=(12, 12)), TO_TENSOR, NORMALIZE))
    small = Image.fromarray(pixels).resize((int(16 * 45 / 31), 16), Image.Resampling.BILINEAR)
    top, left = round((16 - 12) / 2.0), round((small.width - 12) / 2.0)
    tensor = torch.from_numpy(np.array(small)[top : top + 12, left : left + 12]).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    np.testing.assert_array_equal(way.array(Image.fromarray(pixels)), (tensor - mean).div(std).numpy())


def test_a_calibration_takes_them(tmp_path: Path) -> None:
    """Where a calibration takes a pre-processing it takes transforms, and records what they are."""
    folder = tmp_path / "set"
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((20, 24, 3), 90 if name == "good" else 200, np.uint8)).save(folder / name / "0.png")
    model = hosts.write(hosts.score_and_map(dynamic=False, size=(12, 12)), tmp_path / "model.onnx")
    transform = compose(resize(16), made("CenterCrop", size=(12, 12)), TO_TENSOR, NORMALIZE)
    source = ModelSource.open(model, folder, preprocessing=transform, image_only=True)
    assert (source.preprocessing.resize, source.preprocessing.crop) == ("shorter", (12, 12))
    assert source.preprocessing.mean == tuple(MEAN)
