"""Calibration beside that of others: a threshold by F1 from labelled pixels, at growing sizes and from images.

Every run has a process of its own with one thread; the processes take turns on the same files. The time is that of the
processor, so that other work on the machine does not count; for image files it is that of all threads. Peak memory is
the process's highest resident set above its imports, so arrays count where a method needs them in memory. The F1 is
counted on all pixels at the threshold that a method gave, by the comparison that it decides with. The values are
gamma-distributed, 2 % of them anomalous.

A method whose measured bytes or seconds per pixel forbid the next size is not run there, and says so.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_calibration import peak_kib, postproc_export, postproc_export_shards, sklearn, torchmetrics, write_shards
from onnx import parser
from peer_rows import OURS, Row, Wanted, installed, not_installed, rows_of

SIZES = (10**5, 10**6, 10**7, 10**8, 10**9)
BINS = 200
LONGEST = 150.0  # seconds that a run may take
BATCH = 32 * 256 * 256  # pixels of a batch of a validation loop
Run = Callable[[], Any]


def batches(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield maps [N,1,SIDE] and masks, about as many pixels at a time as a validation loop has."""
    for path in sorted(folder.glob("*_maps.npy")):
        maps = np.load(path, mmap_mode="r")
        masks = np.load(path.with_name(path.name.replace("_maps", "_masks")), mmap_mode="r")
        step = max(1, BATCH // maps.shape[-1])
        for start in range(0, len(maps), step):
            yield np.array(maps[start : start + step]), np.array(masks[start : start + step])


def stream(folder: Path) -> Run:
    """Feed batches to the Calibrator as they come."""
    from postproc_export.calibration import Calibrator

    def run() -> object:
        with Calibrator() as calibrator:
            for maps, masks in batches(folder):
                calibrator.update(anomaly_map=maps, gt_mask=masks)
            return calibrator.compute().to_json()["pixel"]["threshold"]

    return run


def binned(folder: Path) -> Run:
    """Feed batches to torchmetrics' curve of evenly spaced thresholds; it needs values in [0, 1]."""
    import torch
    from torchmetrics.classification import BinaryPrecisionRecallCurve

    def run() -> object:
        low = min(float(maps.min()) for maps, _ in batches(folder))
        high = max(float(maps.max()) for maps, _ in batches(folder))
        metric = BinaryPrecisionRecallCurve(thresholds=BINS)
        for maps, masks in batches(folder):
            scores = (torch.from_numpy(maps).flatten() - low) / (high - low)
            metric.update(scores, torch.from_numpy(masks).flatten().int())
        precision, recall, thresholds = metric.compute()
        f1 = 2 * precision * recall / (precision + recall + 1e-10)
        return float(thresholds[torch.argmax(f1[:-1])]) * (high - low) + low

    return run


def anomalib(folder: Path) -> Run:
    """Feed batches to Anomalib's PostProcessor as its validation loop does."""
    import torch
    from anomalib.data import ImageBatch
    from anomalib.post_processing import PostProcessor

    def run() -> object:
        processor: Any = PostProcessor()
        for maps, masks in batches(folder):
            image = torch.zeros(len(maps), 3, 1, 1)
            batch = ImageBatch(image=image, anomaly_map=torch.from_numpy(maps), gt_mask=torch.from_numpy(masks).bool())
            processor.on_validation_batch_end(None, None, batch)
        processor.on_validation_epoch_end(None, None)
        return float(processor.pixel_threshold)

    return run


PHOTOS, SIZE = 32, 256
IMAGES = f"{PHOTOS} images of 900², model at {SIZE}²"
MODEL = f"""<ir_version: 8, opset_import: ["": 17]>
raw (float[N,3,{SIZE},{SIZE}] input) => (float[N,1] pred_score, float[N,1,{SIZE},{SIZE}] anomaly_map)
<float[1,3,1,1] weight = {{-1.0, -1.0, -1.0}}> {{
    anomaly_map = Conv(input, weight) most = GlobalMaxPool(anomaly_map) pred_score = Flatten(most)
}}"""


def images(folder: Path) -> Run:
    """Calibrate on image files with a model, as `calibrate --images` does; the first run is for the imports."""
    from bench_images import calibrated

    from postproc_export.calibration.model import ModelSource
    from postproc_export.images import Preprocessing

    source = ModelSource.open(folder / "raw.onnx", folder / "images", preprocessing=Preprocessing(size=(SIZE, SIZE)))
    calibrated(source)
    return lambda: calibrated(source).to_json()["pixel"]["threshold"]


def images_by_hand(folder: Path) -> Run:
    """Decode with Pillow, run ONNX Runtime, and build torchmetrics' exact curves of scores and pixels."""
    import onnxruntime
    import torch
    from PIL import Image
    from torchmetrics.functional.classification import binary_precision_recall_curve

    session = onnxruntime.InferenceSession(folder / "raw.onnx", providers=["CPUExecutionProvider"])
    paths = sorted(folder.glob("images/good/*")) + sorted(folder.glob("images/patch/*"))

    def opened(path: Path, kind: str, resampling: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.open(path).convert(kind).resize((SIZE, SIZE), resampling))

    def run() -> object:
        found, masks = [], []
        for start in range(0, len(paths), 8):
            batch = paths[start : start + 8]
            values = np.stack([opened(path, "RGB", Image.Resampling.BILINEAR) for path in batch])
            found.append(session.run(None, {"input": values.transpose(0, 3, 1, 2).astype(np.float32) / 255}))
            for path in batch:
                mask = folder / f"images/ground_truth/patch/{path.stem}_mask.png"
                is_normal = path.parent.name == "good"
                nothing = np.zeros((SIZE, SIZE), np.uint8)
                masks.append(nothing if is_normal else opened(mask, "L", Image.Resampling.NEAREST))
        truth = np.stack(masks) > 0
        reached = []
        for level, labels in ((0, truth.any(axis=(1, 2))), (1, truth)):
            raw = np.concatenate([outputs[level] for outputs in found])
            low, high = raw.min(), raw.max()
            scores = torch.from_numpy((raw - low) / (high - low)).flatten()
            curve = binary_precision_recall_curve(scores, torch.from_numpy(labels).flatten().int())
            precision, recall, thresholds = curve
            f1 = 2 * precision * recall / (precision + recall + 1e-10)
            reached.append(float(thresholds[torch.argmax(f1[:-1])]) * float(high - low) + float(low))
        return reached[1]

    run()
    return run


def image_rows(rounds: int) -> Iterator[Row]:
    """Yield the rows of calibration on image files."""
    from bench_images import write_photos

    ways = {OURS: images}
    if installed("torchmetrics"):
        ways["Pillow, ONNX Runtime and torchmetrics by hand"] = images_by_hand
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(parser.parse_model(MODEL), folder / "raw.onnx")
        (folder / "images").mkdir()
        write_photos(folder / "images", PHOTOS)
        runs = {who: [] for who in ways}
        for _ in range(rounds):
            for who, make in ways.items():
                runs[who].append(child(make, folder))
    seconds = {who: [run["seconds"] for run in found] for who, found in runs.items()}
    results = {who: f"threshold {found[0]['threshold']:.6g}" for who, found in runs.items()}
    for row in rows_of("calibration", IMAGES, seconds, results):
        row.peak_mb = max(run["peak_mb"] for run in runs[row.who])
        yield row


METHODS: dict[str, tuple[str, str, Callable[[Path], Run]]] = {  # who: what it imports, its package, the run
    OURS: ("postproc_export.calibration", "", postproc_export),
    f"{OURS}, stream": ("postproc_export.calibration", "", stream),
    f"{OURS}, files": ("postproc_export.calibration", "", postproc_export_shards),
    "Anomalib's PostProcessor": ("anomalib.post_processing", "anomalib", anomalib),
    "torchmetrics, exact": ("torchmetrics.functional.classification", "torchmetrics", torchmetrics),
    f"torchmetrics, {BINS} bins": ("torchmetrics.classification", "torchmetrics", binned),
    "scikit-learn": ("sklearn.metrics", "scikit-learn", sklearn),
}
STRICT = ("Anomalib's PostProcessor",)  # those that decide by >


def warm_up(whos: Sequence[str]) -> None:
    """Import what the methods need and call each on next to nothing, so that neither is measured."""
    with tempfile.TemporaryDirectory() as warm:
        write_shards(Path(warm), "gamma", 2000)
        for who in whos:
            __import__(METHODS[who][0])
            METHODS[who][2](Path(warm))()


def measure(answer: Any, make: Callable[[Path], Run], folder: Path) -> None:
    """Run one method in this process and send its seconds, its threshold and its peak memory."""
    before, run = peak_kib(), make(folder)
    start = time.process_time()
    threshold = run()
    seconds = time.process_time() - start
    answer.send({"seconds": seconds, "threshold": threshold, "peak_mb": (peak_kib() - before) / 1024})


def child(make: Callable[[Path], Run], folder: Path) -> dict[str, Any]:
    """Measure in a process of its own, a copy of this one, which has imported everything."""
    context = multiprocessing.get_context("fork")
    found, answer = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(answer, make, folder))
    process.start()
    answer.close()  # so that the end of the child ends the wait
    result: dict[str, Any] = found.recv()
    process.join()
    return result


def f1_reached(threshold: float, folder: Path, *, is_strict: bool) -> float:
    """Return F1 of all pixels at a threshold."""
    hits = called = anomalous = 0
    for maps, masks in batches(folder):
        decided = maps > np.float32(threshold) if is_strict else maps >= np.float32(threshold)
        hits += int(np.count_nonzero(decided & (masks > 0)))
        called += int(np.count_nonzero(decided))
        anomalous += int(np.count_nonzero(masks))
    return 2 * hits / (called + anomalous)


def free_mb() -> float:
    """Return the memory that is free for a process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


def forbidden(before: tuple[int, float, float] | None, size: int) -> str:
    """Return why a method is not run at a size, by what it took at the last one; nothing if it can be."""
    if before is None:
        return ""
    last, seconds, peak = before
    needed, took, free = peak * size / last, seconds * size / last, free_mb()
    if needed > 0.8 * free and needed > 1000:
        return (
            f"not run: {needed / 1024:,.0f} GB by the {peak * 2**20 / last:.0f} bytes a pixel measured at {last:.0e}, "
            f"of {free / 1024:.0f} GB that are free"
        )
    if took > LONGEST:
        return f"not run: {took / 60:,.0f} minutes by the {1e9 * seconds / last:,.0f} ns a pixel measured at {last:.0e}"
    return ""


def sized_case(size: int) -> str:
    """Return the case of so many pixels."""
    return f"{size:.0e} pixels".replace("e+0", "e")


def sized(size: int, took: dict[str, tuple[int, float, float]], rounds: int) -> Iterator[Row]:
    """Yield the rows of one size; `took` has what each method took at the last one, and is brought up to date."""
    case = sized_case(size)
    reasons = {
        who: forbidden(took.get(who), size) for who, (module, *_) in METHODS.items() if installed(module.split(".")[0])
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, "gamma", size)
        methods = [who for who, reason in reasons.items() if not reason]
        runs: dict[str, list[dict[str, Any]]] = {who: [] for who in methods}
        for _ in range(rounds):
            for who in methods:
                runs[who].append(child(METHODS[who][2], folder))
        reached = {
            who: f1_reached(found[0]["threshold"], folder, is_strict=who in STRICT) for who, found in runs.items()
        }
    best = max(reached.values())
    seconds = {who: [run["seconds"] for run in found] for who, found in runs.items()}
    for row in rows_of("calibration", case, seconds):
        row.peak_mb = max(run["peak_mb"] for run in runs[row.who])
        took[row.who] = (size, row.seconds or 0.0, row.peak_mb)
        less = best - reached[row.who]
        row.result = f"F1 {reached[row.who]:.6f}" + (f", {less:.1g} less than can be had" if less else "")
        yield row
    for who, reason in reasons.items():
        if reason:
            yield Row(part="calibration", case=case, who=who, result=reason)


def rows(wanted: Wanted) -> Iterator[Row]:
    """Measure every size."""
    took: dict[str, tuple[int, float, float]] = {}
    warm_up([who for who, (module, *_) in METHODS.items() if installed(module.split(".")[0])])
    for size in SIZES:
        if wanted(sized_case(size)):
            yield from sized(size, took, rounds=1 if size >= 10**8 else 3 if size < 10**7 else 2)
    if wanted(IMAGES):
        yield from image_rows(rounds=5)
    for who, (module, package, _) in METHODS.items():
        if not installed(module.split(".")[0]):
            yield not_installed("calibration", "all", who, package)
