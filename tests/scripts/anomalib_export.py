"""Checkpoints of the real Anomalib, exported by the command, beside what its Engine predicts.

Usage: PYTHONPATH=tests python anomalib_export.py MODEL FOLDER        writes MODEL.json: what was found

Backbones are random: nothing is downloaded.
"""

import json
import sys
from pathlib import Path

from anomalib_cases import SIZE, AnomalibPostProcessor, Case, engine, prepare

from postproc_export.cli import main as command


def main(name: str, folder: Path) -> None:
    """Validate with Anomalib's own class, save, export by both rules, and count what is decided otherwise."""
    prepare(folder)
    case = Case(name, folder)
    case.model.post_processor = AnomalibPostProcessor(image_sensitivity=0.45)
    case.engine = engine(folder / f"{name}-validated")  # the other one still calls the post-processor of before
    case.engine.validate(case.model, datamodule=case.data, verbose=False)
    case.engine.trainer.save_checkpoint("model.ckpt")
    wanted = case.predicted()
    found = {"seen": sorted(set(wanted["pred_label"].tolist()))}
    spec, size = f"anomalib:{type(case.model).__name__}", ",".join(map(str, (case.batch, 3, *SIZE)))
    for rule in ("ge", "gt"):
        dist = folder / f"{name}-{rule}"
        words = ["export", spec, "--weights", "model.ckpt", "--input", size, "--comparison", rule]
        found[f"{rule}: exit code"] = command([*words, "--to", "onnx,openvino", "-o", str(dist)])
        checks = [check for file in json.loads((dist / "parity.json").read_text())["files"] for check in file["checks"]]
        found[f"{rule}: compared"] = sum(check["name"].startswith("anomalib/") for check in checks)
        found[rule] = {suffix: case.off(dist / f"model{suffix}", wanted) for suffix in (".onnx", ".xml")}
    Path(f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
