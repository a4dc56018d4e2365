"""Run attached files in Anomalib's own `OpenVINOInferencer`, and hold that against our contract and our decisions.

Usage: python benchmarks/anomalib_inferencer.py FILE [FILE ...]

In an environment of its own, with this package and `pip install anomalib` (2.7.0 was read and run; it brings
torchvision, timm and much more, which is why no test needs it). FILE is an .onnx or .xml that `attach` wrote. Each is
fed four images of noise, in the size of its input or 64 x 96 where that is open. Exit code 1 where a file that fits the
contract was not run, or a label or mask pixel differs.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postproc_export.check.contracts import check_contract
from postproc_export.runtimes import open_runner

OPEN_SIZE = (64, 96)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


def import_inferencer() -> Any:
    """Import the inferencer, also where the compiled part of torchvision does not fit torch.

    The inferencer itself uses no operator of torchvision. Importing it declares what those of a detector compute, which
    fails where they are not there; an empty declaration of each is enough.
    """
    library = torch.library.Library("torchvision", "DEF")
    while True:
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            missing = re.match(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library.define(f"{missing.group(1)}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            break
    from anomalib.deploy import OpenVINOInferencer

    return OpenVINOInferencer


def compared(path: Path, inferencer: Any) -> dict[str, Any]:
    """Run one file and say what came of it."""
    missed = [item.name for item in check_contract(path, "anomalib") if item.holds is False]
    found: dict[str, Any] = {"file": path.name, "fits": not missed, "missed": missed}
    runner = open_runner(path, runtime="openvino")
    (port,) = runner.inputs
    size = [port.size(axis) or default for axis, default in zip((2, 3), OPEN_SIZE, strict=True)]
    images = np.random.default_rng(0).random((4, *size, 3)).astype(np.float32) ** np.float32(
        [[[[1]]], [[[2]]], [[[4]]], [[[8]]]]
    )
    labels, pixels = 0, 0
    seen = set()
    try:
        model = inferencer(path, device="CPU", config=EXACT)
        for image in images:
            result = model.predict(image)
            expected = runner.run({port.name: image.transpose(2, 0, 1)[None]})
            if "pred_label" in expected:
                label = bool(np.squeeze(result.pred_label))
                seen.add(label)
                labels += label != bool(expected["pred_label"].squeeze())
            if "pred_mask" in expected:
                pixels += int((np.squeeze(result.pred_mask) != expected["pred_mask"].squeeze().astype(bool)).sum())
    except (TypeError, ValueError, RuntimeError) as error:
        return {**found, "ran": False, "error": str(error).splitlines()[0]}
    return {
        **found,
        "ran": True,
        "labels_seen": sorted(seen),
        "labels_that_differ": labels,
        "pixels_that_differ": pixels,
    }


def main() -> int:
    """Run all files and print what was found."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    paths = [Path(argument).resolve() for argument in sys.argv[1:]]
    inferencer = import_inferencer()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the inferencer leaves a cache in the current folder
        rows = [compared(path, inferencer) for path in paths]
        os.chdir("/")
    print(json.dumps(rows, indent=2))
    wrong = [
        row
        for row in rows
        if row["fits"] and (not row["ran"] or row["labels_that_differ"] or row["pixels_that_differ"])
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
