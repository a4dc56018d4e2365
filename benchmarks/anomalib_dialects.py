"""Export a small model with each release of Anomalib 2, and let `inspect`, `detach`, `attach` and `check` work on it.

Usage: python benchmarks/anomalib_dialects.py [RELEASE ...]      in the environment of benchmarks/peers.txt

Each release is installed alone, without what it depends on, into a temporary folder that goes in front of the
environment's own Anomalib. It fits Padim with a random backbone on crops of noise, and exports it in the ways below,
by the exporter of TorchScript and, where the release can, by the present one, and converted to an IR. Per file:

- inspect: every level that was calibrated is called Anomalib's, with the numbers of its buffers;
- detach: the outputs are bit for bit those of the raw export of the same exporter;
- attach: what was detached, with the same numbers and `gt`, decides every label and pixel as the file did;
- check: that one passes.

It prints the table of docs/anomalib.md, and before that what a release cannot export and what was not as it should be.
"""

import inspect
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RELEASES = ("2.0.0", "2.1.0", "2.2.0", "2.3.3", "2.4.2", "2.5.1", "2.6.2", "2.7.0")
SIZE, LEVELS = (64, 64), ("image", "pixel")
WAYS: dict[str, dict[str, Any]] = {  # names of the post-processor's options; a level without numbers borrows
    "default": {},
    "sensitivities": {"image_sensitivity": 0.3, "pixel_sensitivity": 0.7},
    "without normalisation": {"enable_normalization": False},
    "without thresholding": {"enable_thresholding": False},
    "without pixel threshold": {},
}
EXPORTERS = {"legacy": {"dynamo": False}, "dynamo": {"dynamo": True}}


def crops(count: int, *, is_bad: bool, seed: int) -> tuple[Any, Any]:
    """Return images of noise and their masks; those that are bad have a bright square in a corner."""
    rng = np.random.default_rng(seed)
    sides = 20 + np.arange(count)[:, None, None]
    masks = is_bad & (np.indices(SIZE).max(axis=0) < sides)
    return np.where(masks[:, None], 0.9, rng.uniform(0.3, 0.5, (count, 3, *SIZE))).astype(np.float32), masks


def items(count: int, *, is_bad: bool) -> list[Any]:
    """Return such images as Anomalib's items."""
    import torch
    from anomalib.data import ImageItem

    return [
        ImageItem(image=torch.from_numpy(image), gt_label=torch.tensor(is_bad), gt_mask=torch.from_numpy(mask))
        for image, mask in zip(*crops(count, is_bad=is_bad, seed=int(is_bad)), strict=True)
    ]


def bridge() -> None:
    """Let older releases import what they ask for and do not use here.

    OpenVINO's module had another name once, and loggers need four more packages.
    """
    for name in ("runtime", "runtime.utils", "runtime.utils.data_helpers", "runtime.utils.data_helpers.wrappers"):
        sys.modules[f"openvino.{name}"] = import_module(f"openvino{name.removeprefix('runtime')}")
    loggers = import_module("anomalib.loggers")
    for kind in ("Comet", "MLFlow", "TensorBoard", "Wandb"):
        if not hasattr(loggers, f"Anomalib{kind}Logger"):
            setattr(loggers, f"Anomalib{kind}Logger", type(f"Anomalib{kind}Logger", (), {}))


def export(folder: Path) -> None:
    """Fit a model with the Anomalib that is imported, and write its files and what is known of them."""
    bridge()
    import anomalib
    import timm
    import torch
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from anomalib.models import Padim
    from anomalib.post_processing import PostProcessor
    from torch.utils.data import DataLoader

    warnings.filterwarnings("ignore")
    create = timm.create_model
    timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})
    torch.manual_seed(0)
    random.seed(0)  # Padim's choice of features
    model = Padim(
        backbone="resnet18",
        layers=["layer1"],
        n_features=8,
        pre_processor=Padim.configure_pre_processor(SIZE),
        visualizer=False,
    )
    quiet = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
    good, bad = items(16, is_bad=False), items(12, is_bad=True)
    loaders = [DataLoader(each, batch_size=4, collate_fn=ImageBatch.collate) for each in (good, good + bad)]
    Engine(default_root_dir=folder / "engine", **quiet).fit(model, *loaders)
    fitted = model.post_processor
    known: list[dict[str, Any]] = []
    refused: list[str] = []
    for exporter, asked in EXPORTERS.items():
        if "onnx_kwargs" not in inspect.signature(model.to_openvino).parameters:  # 2.0 leaves it to torch's default
            torch.onnx.export, asked = partial(torch.onnx.export, **asked), {}
        model.post_processor = None
        try:
            raw = model.to_onnx(folder, f"raw_{exporter}", input_size=SIZE, **asked)
        except Exception as error:  # older releases give axes that the present exporter does not take; 2.7 the present
            refused.append(f"{exporter}: {' '.join(str(error).split())[:160]}")
            continue
        for number, (way, options) in enumerate(WAYS.items()):
            made = model.post_processor = PostProcessor(**options)
            made.load_state_dict(fitted.state_dict(), strict=False)
            for name, value in fitted.named_buffers():
                if "metric" not in name:
                    getattr(made, name).copy_(value)
            if way == "without pixel threshold":
                made._pixel_threshold.fill_(float("nan"))
            names = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
            buffers = {name: float(getattr(made, name)) for name in names}
            name = f"{exporter}{number}"
            try:
                onnx = model.to_onnx(folder, name, input_size=SIZE, **asked)
            except Exception as error:  # up to 2.6 it branches on what the present exporter does not know
                refused.append(f"{exporter}, {way}: {' '.join(str(error).split())[:160]}")
                continue
            ir = model.to_openvino(folder, name, input_size=SIZE, **({"onnx_kwargs": asked} if asked else {}))
            for path in (onnx, ir):
                row = {"way": way, "options": options, "exporter": exporter, "path": str(path), "raw": str(raw)}
                known.append({**row, "buffers": buffers})
    (folder / "known.json").write_text(
        json.dumps({"release": anomalib.__version__, "refused": refused, "files": known})
    )


def found(file: dict[str, Any], folder: Path, images: Any) -> dict[str, Any]:
    """Return what inspect, detach, attach and check make of a file."""
    from postproc_export import attach_postprocessing, check_parity, detach_postprocessing, inspect_model

    path, stats, given = Path(file["path"]), statistics(file), {}
    seen = inspect_model(path).to_json()["levels"]
    known = {level: bool(seen[level]) and seen[level]["tail"] == "anomalib" for level in LEVELS}
    for level in LEVELS:
        of_level, options = stats.level(level), file["options"]
        wanted = {}
        if options.get("enable_normalization", True):
            wanted = {"threshold": of_level.threshold, "span": of_level.max - of_level.min}
        if options.get("enable_thresholding", True):
            wanted["sensitivity"] = given[f"{level}_sensitivity"] = options.get(f"{level}_sensitivity", 0.5)
        known[level] &= all(np.isclose(seen[level][name], value, rtol=1e-6) for name, value in wanted.items())
    detached = detach_postprocessing(path, output=folder / f"raw{path.suffix}").output
    own, raw, before = (run(each, images) for each in (detached, Path(file["raw"]), path))
    moved = {
        level: np.abs(own[name] - raw[name].reshape(own[name].shape)).max() / span(stats, level)
        for level, name in zip(LEVELS, ("pred_score", "anomaly_map"), strict=True)
    }
    target = folder / f"attached{path.suffix}"
    attached = attach_postprocessing(detached, stats, output=target, comparison="gt", **given).output
    after = run(attached, images)
    off = {
        name: int((after[name] != before[name].reshape(after[name].shape)).sum())
        for name in ("pred_label", "pred_mask")
        if name in before
    }
    return {
        "recognised": all(known.values()),
        "moved": float(max(moved.values())),
        "off": off,
        "anomalous": {name: float(before[name].mean()) for name in off},
        "check": bool(check_parity(attached).passed),
    }


def run(path: Path, images: Any) -> dict[str, Any]:
    """Return all outputs for the images, one by one: some exports run at one batch size, whatever they declare."""
    from anomalib_exports import outputs

    runs = [outputs(path, image[None]) for image in images]
    return {name: np.concatenate([each[name] for each in runs]) for name in runs[0]}


def span(stats: Any, level: str) -> float:
    """Return max - min of a level."""
    return float(stats.level(level).max - stats.level(level).min)


def statistics(file: dict[str, Any]) -> Any:
    """Return what decides in a file.

    A level without a threshold borrows the other's. Without normalisation Anomalib compares the raw value with one
    minus the sensitivity, here 0.5.
    """
    from postproc_export import CalibrationStats, LevelStats

    buffers = file["buffers"]
    is_raw = not file["options"].get("enable_normalization", True)
    levels = {}
    for level in LEVELS:
        own = buffers[f"_{level}_threshold"]
        threshold = 0.5 if is_raw else buffers["_image_threshold"] if np.isnan(own) else own
        levels[level] = LevelStats(threshold=threshold, min=buffers[f"{level}_min"], max=buffers[f"{level}_max"])
    return CalibrationStats(**levels)


def release(name: str) -> list[dict[str, Any]]:
    """Return what is found of the files of one release, in the order in which they were exported."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = [os.environ.get("PYTHONPATH", "")]
        if name != version("anomalib"):
            target = folder / "release"
            options = ("--quiet", "--no-deps", "--target", str(target))
            subprocess.run([sys.executable, "-m", "pip", "install", *options, f"anomalib=={name}"], check=True)
            paths.insert(0, str(target))
        command = [sys.executable, __file__, "--export", str(folder)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        run = subprocess.run(command, check=False, env=environ, capture_output=True, text=True, cwd=folder)
        if run.returncode:
            sys.exit(f"{name}: {run.stdout[-2000:]}{run.stderr[-4000:]}")
        known = json.loads((folder / "known.json").read_text())
        for each in known["refused"]:
            print(f"{name} does not export: {each}")
        images = np.concatenate([crops(4, is_bad=False, seed=2)[0], crops(4, is_bad=True, seed=3)[0]])
        return [
            {**file, **found(file, folder, images), "release": known["release"], "path": Path(file["path"]).name}
            for file in known["files"]
        ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of docs/anomalib.md: a row per release and format."""
    titles = ("Anomalib", "exporters", "files", "recognised", "raw values moved by", "labels, pixels off", "checked")
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for name, suffix in dict.fromkeys((row["release"], Path(row["path"]).suffix) for row in rows):
        mine = [row for row in rows if row["release"] == name and row["path"].endswith(suffix)]
        exporters = ", ".join(dict.fromkeys(row["exporter"] for row in mine))
        counts = (len(mine), sum(row["recognised"] for row in mine))
        moved = max(row["moved"] for row in mine)
        off = ", ".join(str(sum(row["off"].get(label, 0) for row in mine)) for label in ("pred_label", "pred_mask"))
        cells = (f"{name} {suffix}", exporters, *counts, f"{moved:.1g}", off, sum(row["check"] for row in mine))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    """Export where that is asked for; else run every release, one after the other."""
    if sys.argv[1:2] == ["--export"]:
        export(Path(sys.argv[2]))
        return
    for name in sys.argv[1:] or RELEASES:
        made = release(name)
        for row in made:
            if not row["recognised"] or any(row["off"].values()) or not row["check"]:
                print({key: row[key] for key in row if key not in ("raw", "buffers")})
        print("\n".join(table(made)), flush=True)


if __name__ == "__main__":
    main()
