"""Twenty mistakes of people who are new to this, typed: what comes of each, and that its mend works as it stands.

A mistake that can be known is exit code 2, or 1 where a check finds it. In `calibrate` some cannot be known; they are
recorded, shown in the summary, and warned of where they show. None gives a traceback or leaves a file behind.
"""

import json
import shlex
from pathlib import Path
from typing import Final

import hosts
import numpy as np
import onnx
import pytest
from conftest import Invoke
from image_files import save

from postproc_export.cli import main

RIGHT: Final = "--resize none --crop 8x8 --mean 0.45 --batch-size 1"
TO_JSON: Final = f"{RIGHT} -o out.json"
CAUSES: Final = "the usual causes, the most frequent first: pre-processing (mean and std forgotten"
OTHERWISE: Final = "the images would be fed otherwise than in calibration"

Step = tuple[str, int, tuple[str, ...]]

MISTAKES: Final[dict[str, list[Step]]] = {
    "statistics-of-another-model": [
        (
            "attach other.onnx --stats stats.json -o out.onnx",
            2,
            ("belong to another model than other.onnx", "raw.onnx"),
        ),
        ("update post.onnx --stats other.json -o out.onnx", 2, ("belong to another model", "postproc-export detach")),
        ("attach raw.onnx --stats stats.json -o out.onnx", 0, ()),
    ],
    "statistics-of-another-size": [
        ("attach large.onnx --stats stats.json -o out.onnx", 2, ("images of another size", "images of 3 x 8 x 8")),
        ("calibrate large.onnx --images bottle --image-size 16 --mean 0.45 -o out.json", 0, ("large",)),
        ("attach large.onnx --stats out.json -o out.onnx", 0, ()),
    ],
    "missing-raw-file": [
        ("check post.onnx --raw nope.onnx", 2, ("cannot read the raw model nope.onnx", "no such file", "--raw")),
        ("check post.onnx --raw raw.onnx", 0, ()),
    ],
    "raw-file-of-another-model": [
        ("check post.onnx --raw other.onnx", 1, ("other.onnx",)),
        ("check post.onnx --raw raw.onnx", 0, ()),
    ],
    "an-output-that-is-no-score": [
        (
            "attach count.onnx --stats stats.json -o out.onnx",
            2,
            ("count: int64", "export the model with its raw score"),
        ),
        ("attach two.onnx --stats stats.json -o out.onnx", 2, ("no output of the model", "--step channel:index=1")),
        (f"calibrate two.onnx --images bottle --step channel:index=1 {TO_JSON}", 0, ("AUROC 1.0000",)),
        ("attach two.onnx --stats out.json --step channel:index=1 -o out.onnx", 0, ()),
    ],
    "a-channel-last-map": [
        (
            f"calibrate last.onnx --images bottle {TO_JSON} --image-output 0 --pixel-output none",
            2,
            ("cannot be the image score: it has 4 axes",),
        ),
        (f"calibrate last.onnx --images bottle {TO_JSON}", 0, ("anomaly map: anomaly_map (by name)", "AUROC 1.0000")),
        ("attach last.onnx --stats out.json -o out.onnx", 0, ("channel:axis=last",)),
        ("check out.onnx --raw last.onnx", 0, ()),
    ],
    "the-attached-file-calibrated": [
        (
            f"calibrate post.onnx --images bottle {TO_JSON}",
            2,
            ("post-processed already", "postproc-export detach post.onnx,"),
        ),
        ("detach post.onnx", 0, ("post.raw.onnx",)),
        (f"calibrate post.raw.onnx --images bottle {TO_JSON}", 0, ()),
    ],
    "scores-of-the-wrong-sign": [
        ("calibrate negative.npz -o out.json", 0, ("AUROC of 0.0000", CAUSES, "--step negate:level=image")),
        ("calibrate negative.npz --step negate:level=image -o out.json", 0, ()),
    ],
    "labels-of-scikit-learn": [
        ("calibrate forest.npz -o out.json", 2, ("gt_label is not 0/1", "--anomalous-label -1", "is normal")),
        ("calibrate forest.npz --anomalous-label -1 -o out.json", 0, ()),
    ],
    "metadata-of-anomalib-1": [
        ("attach raw.onnx --stats half.json -o out.onnx", 2, ("half.json holds no statistics", '{"schema_version": 1')),
        ("attach raw.onnx --stats metadata.json -o out.onnx", 0, ()),
    ],
    "mean-forgotten": [
        (f"calibrate raw.onnx --images bottle {TO_JSON} --mean 0", 0, (CAUSES, "--mean", "mean 0,")),
        ("check post.onnx --images bottle/validation --mean 0", 2, (OTHERWISE, "--mean 0, recorded 0.45")),
        (f"calibrate raw.onnx --images bottle {TO_JSON}", 0, ()),
    ],
    "mean-for-0-to-255": [
        (f"calibrate raw.onnx --images bottle {TO_JSON} --mean 114.75 --std 255", 0, ("need --scale 1", "mean 114.75")),
        ("check post.onnx --images bottle/validation --mean 114.75", 2, (OTHERWISE, "recorded 0.45")),
        (f"calibrate raw.onnx --images bottle {TO_JSON} --mean 114.75 --std 255 --scale 1", 0, ()),
    ],
    "bgr-for-rgb": [
        (f"calibrate raw.onnx --images bottle {TO_JSON} --channel-order bgr", 0, (CAUSES, "--channel-order", "BGR,")),
        ("check post.onnx --images bottle/validation --channel-order bgr", 2, (OTHERWISE, "bgr, recorded rgb")),
        (f"calibrate raw.onnx --images bottle {TO_JSON} --channel-order rgb", 0, ()),
    ],
    "no-centre-crop": [
        ("calibrate raw.onnx --images bottle --image-size 8x8 --mean 0.45 -o out.json", 0, (CAUSES, "--crop")),
        ("check post.onnx --images bottle/validation --crop 12x12", 2, (OTHERWISE, "--crop 12x12, recorded 8x8")),
        (f"calibrate raw.onnx --images bottle {TO_JSON}", 0, ()),
    ],
    "inverted-masks": [
        (
            f"calibrate raw.onnx --images inverted {TO_JSON}",
            0,
            ("inverted masks, in which 0 is anomalous", "pixel level"),
        ),
        (f"calibrate raw.onnx --images bottle {TO_JSON}", 0, ()),
    ],
    "masks-of-another-size": [
        (f"calibrate raw.onnx --images large {TO_JSON}", 2, ("0_mask.png has another size than its image", "24x24")),
        (f"calibrate raw.onnx --images bottle {TO_JSON}", 0, ()),
    ],
    "masks-with-grey-edges": [
        (f"calibrate raw.onnx --images grey {TO_JSON}", 0, ("pixels between 0 and their largest", "spot/0_mask.png")),
        (f"calibrate raw.onnx --images bottle {TO_JSON}", 0, ()),
    ],
    "only-good-images": [
        (f"calibrate raw.onnx --images good {TO_JSON}", 0, ("only normal samples", "--image-policy quantile=0.995")),
        (f"calibrate raw.onnx --images good {TO_JSON} --image-policy quantile=0.995 --image-only", 0, ()),
    ],
    "test-images-for-calibration": [
        (f"calibrate raw.onnx --images parts {TO_JSON}", 0, ("the split 'test' of parts is taken", "--split test")),
        (f"calibrate raw.onnx --images parts {TO_JSON} --split test", 0, ()),
    ],
    "unknown-layout": [
        (
            f"calibrate raw.onnx --images unknown {TO_JSON}",
            2,
            ("unknown has no layout", "left, right", "image,label,mask"),
        ),
        (f"calibrate raw.onnx --images unknown.csv {TO_JSON} --image-only", 0, ()),
    ],
}


SCORE: Final = "pooled = GlobalMaxPool(far) score = Flatten<axis = 1>(pooled)"
MODELS: Final = {
    "float[N,1] score, float[N,1,H,W] far": SCORE,
    "float[N,H,W,1] anomaly_map": "anomaly_map = Transpose<perm = [0, 2, 3, 1]>(far)",
    "float[N,2] two": f"{SCORE} normal = Neg(score) two = Concat<axis = 1>(normal, score)",
    "int64[N,1] count": f"{SCORE} count = Cast<to = 7>(score)",
}


def detector(outputs: str, *, red: float = 0.5, size: str = "H,W") -> onnx.ModelProto:
    """Return a model of images around 0: each pixel is as anomalous as it is far from that, in red above all."""
    return hosts.parse(
        f"""detector (float[N,3,{size}] input) => ({outputs.replace("H,W", size)})
        <float[1,3,1,1] weight = {{{red}, 0.25, 0.125}}> {{
            weighted = Conv(input, weight) far = Abs(weighted) {MODELS[outputs]}
        }}"""
    )


def write_images(
    root: Path, split: str = "validation", *, masks: str = "right", groups: tuple[str, str] = ("good", "spot")
) -> None:
    """Write images of 12x12 with a white frame that is to be cropped: four light ones, and three with a dark spot."""
    for group, count, grey in zip(groups, (4, 3), (138, 115), strict=True):
        for index in range(count if masks != "none" or group == "good" else 0):
            pixels = np.full((12, 12, 3), 255 if group == groups[0] else 250, np.uint8)
            pixels[2:10, 2:10] = grey - index
            mask = np.zeros((12, 12), np.uint8)
            if group != groups[0]:
                pixels[4:6, 4:6] = (0, 110, 115)
                mask[4:6, 4:6] = 255
                if masks == "grey":
                    mask[6, 4:6] = 128
                inverted = 255 - mask if masks == "inverted" else mask
                shown = inverted.repeat(2, 0).repeat(2, 1) if masks == "large" else inverted
                save(root / "ground_truth" / group / f"{index}_mask.png", shown)
            save(root / split / group / f"{index}.png", pixels)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, images, outputs in files, and a calibrated and attached model, as `post.onnx`."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images(Path("bottle"))
        for masks in ("inverted", "large", "grey"):
            write_images(Path(masks), masks=masks)
        write_images(Path("good"), masks="none")
        write_images(Path("parts"), "test")
        write_images(Path(), "unknown", groups=("left", "right"))
        listed = [
            f"unknown/{name}/{index}.png,{label}" for name, label in (("left", 0), ("right", 1)) for index in (0, 1)
        ]
        Path("unknown.csv").write_text("\n".join(["image,label", *listed]))
        for name, outputs in zip(("raw", "last", "two", "count"), MODELS, strict=True):
            hosts.write(detector(outputs), Path(f"{name}.onnx"))
        hosts.write(detector(next(iter(MODELS)), red=-0.9), Path("other.onnx"))
        hosts.write(detector(next(iter(MODELS)), size="16,16"), Path("large.onnx"))
        scores = np.float32([1, 2, 1.5, 5, 6, 4])
        np.savez("negative.npz", pred_score=-scores, gt_label=[0, 0, 0, 1, 1, 1])
        np.savez("forest.npz", pred_score=scores, gt_label=[1, 1, 1, -1, -1, -1])
        numbers = {"image_threshold": 0.4, "pixel_threshold": 0.3, "min": 0.0, "max": 1.0}
        Path("metadata.json").write_text(json.dumps({"task": "segmentation", **numbers}))
        Path("half.json").write_text(json.dumps({"task": "segmentation", "image_threshold": 0.4}))
        assert main(["calibrate", "raw.onnx", "--images", "bottle", *RIGHT.split(), "-o", "stats.json"]) == 0
        assert main(["calibrate", "other.onnx", "--images", "bottle", *RIGHT.split(), "-o", "other.json"]) == 0
        assert main(["attach", "raw.onnx", "--stats", "stats.json", "-o", "post.onnx"]) == 0
    return folder


@pytest.mark.parametrize("steps", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_met_by_its_mend(
    steps: list[Step], world: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """Each command ends as it should and says what leads on; the last one is the mend, and draws no such message."""
    monkeypatch.chdir(world)
    for typed, exit_code, words in steps:
        arguments = shlex.split(typed)
        target = Path(arguments[arguments.index("-o") + 1]) if "-o" in arguments else None
        if target is not None:
            target.unlink(missing_ok=True)
        ran = invoke(*arguments)
        told = " ".join((ran.stdout + ran.stderr).split())
        assert (ran.exit_code, "Traceback" in told) == (exit_code, False), told
        assert [word for word in words if word not in told] == [], told
        assert target is None or target.exists() == (exit_code == 0)
    assert steps[-1][1:] == (0, ())
    assert steps[0][2][0] not in told
