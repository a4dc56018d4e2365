"""Which models statistics are taken for: false refusals and false passes over copies of models, and over others.

Five detectors are fitted with torch, exported, calibrated and attached to: in copies that are the same model, and in
models that are others. Usage: python benchmarks/belonging.py [FOLDER], with a folder of Anomalib's exports to compare
these instead: FOLDER/<model>/raw_*, with `val_raw.npz` of their raw validation outputs.
"""

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from harness import environment, publish
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from postproc_export import CalibrationStats, attach_postprocessing, calibrate, detach_postprocessing
from postproc_export.errors import UsageError
from postproc_export.formats.base import format_of
from postproc_export.images import Preprocessing
from postproc_export.runtimes.openvino import import_openvino, openvino_core

SIZE = 64
FED = Preprocessing(size=(SIZE, SIZE))


def texture(category: str, count: int, seed: int) -> Tensor:
    """Return images of a category: float32 [N, 3, 64, 64] in [0, 1]."""
    rng = np.random.default_rng([seed, len(category)])
    y, x = np.indices((SIZE, SIZE))
    images = []
    for _ in range(count):
        phase = rng.uniform(0, 2 * np.pi, 2)
        if category == "stripes":
            base = 0.5 + 0.3 * np.sin(x * 0.6 + phase[0])
        elif category == "checkers":
            base = 0.5 + 0.3 * np.sign(np.sin(x * 0.35 + phase[0]) * np.sin(y * 0.35 + phase[1]))
        else:
            base = 0.5 + 0.15 * rng.standard_normal((SIZE, SIZE))
        tinted = np.stack([base, 0.9 * base, 0.8 * base])
        images.append((tinted + 0.03 * rng.standard_normal(tinted.shape)).clip(0, 1))
    return torch.from_numpy(np.stack(images).astype(np.float32))


def defective(images: Tensor, seed: int) -> Tensor:
    """Return the images with a square of one colour each."""
    rng, made = np.random.default_rng(seed), images.clone()
    for image in made:
        top, left = rng.integers(8, 40, 2)
        image[:, top : top + 12, left : left + 12] = torch.from_numpy(rng.random((3, 1, 1), np.float32))
    return made


def backbone(seed: int) -> nn.Module:
    """Return a network of random weights that gives features at a quarter of the size."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1))
    return nn.Sequential(*layers).eval()


class Detector(nn.Module):
    """A distance per place, its upsampled map, and the maximum of that."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return a score [N, 1] and a map [N, 1, H, W]."""
        distance = self.distance(image)
        scores = functional.interpolate(distance, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        return scores.amax(dim=(2, 3)), scores

    def distance(self, image: Tensor) -> Tensor:
        """Return how far each place is from normal."""
        raise NotImplementedError

    def train_on(self, loss: Callable[[], Tensor], parameters: Any, steps: int) -> None:
        """Minimise a loss."""
        optimizer = torch.optim.Adam(parameters, 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        self.eval()


class Gaussians(Detector):
    """As Padim: a Gaussian of the features at each place."""

    def __init__(self, seed: int, category: str, again: int = 0) -> None:
        super().__init__()
        self.features = backbone(seed)
        with torch.no_grad():
            found = self.features(texture(category, 40, 1 + again)).flatten(2).permute(2, 1, 0)
            mean = found.mean(dim=2, keepdim=True)
            covariance = (found - mean) @ (found - mean).transpose(1, 2) / 39 + 0.01 * torch.eye(found.shape[1])
        self.register_buffer("mean", mean[..., 0])
        self.register_buffer("inverse", torch.linalg.inv(covariance))

    def distance(self, image: Tensor) -> Tensor:
        """Return Mahalanobis distances."""
        centred = self.features(image).flatten(2).permute(2, 0, 1) - self.get_buffer("mean")[:, None]
        squares = ((centred @ self.get_buffer("inverse")) * centred).sum(dim=2).clamp(min=0)
        return squares.sqrt().permute(1, 0).reshape(-1, 1, SIZE // 4, SIZE // 4)


class Memory(Detector):
    """As PatchCore: the nearest of the features that were kept."""

    def __init__(self, seed: int, category: str, again: int = 0) -> None:
        super().__init__()
        self.features = backbone(seed)
        with torch.no_grad():
            found = self.features(texture(category, 40, 1)).permute(0, 2, 3, 1).flatten(0, 2)
        torch.manual_seed(again)
        self.register_buffer("bank", found[torch.randperm(len(found))[:400]])

    def distance(self, image: Tensor) -> Tensor:
        """Return distances to the nearest feature."""
        bank, found = self.get_buffer("bank"), self.features(image).permute(0, 2, 3, 1).reshape(-1, 24)
        squares = found.square().sum(1, keepdim=True) - 2 * found @ bank.T + bank.square().sum(1)
        return squares.clamp(min=0).sqrt().amin(1).reshape(-1, 1, SIZE // 4, SIZE // 4)


class Student(Detector):
    """As STFPM: a student of a teacher that is the same for all."""

    def __init__(self, seed: int, category: str, again: int = 0) -> None:
        super().__init__()
        self.teacher, self.student = backbone(7), backbone(seed + 100)
        images = texture(category, 40, 1)
        with torch.no_grad():
            wanted = self.teacher(images)
        loss = lambda: (self.student(images) - wanted).square().mean()  # noqa: E731
        self.train_on(loss, self.student.parameters(), 150 + 50 * again)

    def distance(self, image: Tensor) -> Tensor:
        """Return squared differences."""
        return (self.teacher(image) - self.student(image)).square().mean(dim=1, keepdim=True)


class Autoencoder(Detector):
    """What a narrow network does not give back."""

    def __init__(self, seed: int, category: str, again: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        narrow = (nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 4, 2, 1), nn.ReLU())
        wide = (nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Sigmoid())
        self.network, images = nn.Sequential(*narrow, *wide), texture(category, 40, 1)
        loss = lambda: (self.network(images) - images).square().mean()  # noqa: E731
        self.train_on(loss, self.network.parameters(), 150 + 50 * again)

    def distance(self, image: Tensor) -> Tensor:
        """Return smoothed squared errors."""
        return functional.avg_pool2d((self.network(image) - image).square().mean(dim=1, keepdim=True), 5, 1, 2)


class Segmenter(Detector):
    """As DRAEM: a probability of being defective, learned from drawn defects."""

    def __init__(self, seed: int, category: str, again: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(3, 16, 5, 1, 2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 5, 1, 2),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, 1, 1),
        )
        self.network, images = nn.Sequential(*layers), texture(category, 24, 1)
        drawn = defective(images, 3)
        wanted = ((drawn - images).abs().sum(dim=1, keepdim=True) > 0).float()
        loss = lambda: functional.binary_cross_entropy_with_logits(self.network(drawn), wanted)  # noqa: E731
        self.train_on(loss, self.network.parameters(), 100 + 50 * again)

    def distance(self, image: Tensor) -> Tensor:
        """Return probabilities."""
        return torch.sigmoid(self.network(image))


KINDS = {
    "gaussians": Gaussians,
    "memory": Memory,
    "student": Student,
    "autoencoder": Autoencoder,
    "segmenter": Segmenter,
}


def export(detector: nn.Module, path: Path, *, dynamo: bool = False, opset: int = 17) -> Path:
    """Export a detector to ONNX with either of torch's exporters."""
    names = ["input", "pred_score", "anomaly_map"]
    axes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        if dynamo
        else {"dynamic_axes": {name: {0: "batch"} for name in names}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            detector, (torch.rand(2, 3, SIZE, SIZE),), str(path), input_names=names[:1], output_names=names[1:],
            dynamo=dynamo, opset_version=opset, verbose=False, **axes,
        )  # fmt: skip
    return path


def calibrated(detector: nn.Module, model: Path, category: str) -> CalibrationStats:
    """Calibrate on normal and defective images of a category."""
    images = texture(category, 30, 2)
    with torch.no_grad():
        scores, maps = detector(torch.cat([images, defective(texture(category, 30, 4), 5)]))
    labels = np.repeat([0, 1], 30)
    masks = np.zeros(maps.shape, bool)
    masks[30:, :, 24:40, 24:40] = True
    values = {"pred_score": scores.numpy(), "gt_label": labels, "anomaly_map": maps.numpy(), "gt_mask": masks}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(values, model=model, preprocessing=FED, resamples=0)


def to_ir(model: Path, path: Path, *, half: bool = False) -> Path:
    """Convert a model to an IR, with weights in float16 on request."""
    openvino = import_openvino(purpose="the benchmark")
    openvino.save_model(openvino_core(purpose="the benchmark").read_model(model), path, compress_to_fp16=half)
    return path


def half_weights(model: Path, path: Path) -> Path:
    """Store the larger weights of an ONNX model in float16, behind casts."""
    loaded = onnx.load(model)
    nodes = []
    for tensor in loaded.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 16:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    others = list(loaded.graph.node)
    del loaded.graph.node[:]
    loaded.graph.node.extend([*nodes, *others])
    onnx.save(loaded, path)
    return path


def slimmed(model: Path, path: Path) -> Path:
    """Save what ONNX Runtime's basic optimisations leave: constants folded, operators fused."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return path


def renamed_data(model: Path, path: Path) -> Path:
    """Save with the weights beside it, under another name."""
    onnx.save(onnx.load(model), path, save_as_external_data=True, location=f"{path.stem}.weights", size_threshold=0)
    return path


def quantised(model: Path, path: Path) -> Path:
    """Quantise convolutions and matrix products to INT8, calibrated on some images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(texture("stripes", 16, 6).numpy())

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"input": image[None]}

    quantize_static(str(model), str(path), Images(), weight_type=QuantType.QInt8)
    return path


def detached(model: Path, path: Path, stats: CalibrationStats) -> Path:
    """Attach, and take it off again."""
    attached = attach_postprocessing(model, stats, output=path.with_name(f"attached_{path.name}"), other_model=True)
    detach_postprocessing(attached.output, output=path)
    return path


@dataclass(frozen=True, slots=True)
class Row:
    """What became of statistics on one model."""

    statistics: str
    model: str
    should: str  # "same" or "other"
    outcome: str  # "digest", "probe", "refused" or "not compared"
    share: float | None  # the largest difference of the probe, as a share of the range
    ms: float

    @property
    def is_wrong(self) -> bool:
        """Whether it is a false refusal, or a false pass."""
        return (self.outcome == "refused") is (self.should == "same")


def judged(name: str, stats: CalibrationStats, model: str, path: Path, should: str) -> Row:
    """Attach, into a folder that goes again, and tell what was found."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            remarks = attach_postprocessing(path, stats, output=Path(folder) / path.name).remarks
            text = " ".join(remarks)
            outcome = "digest" if not remarks else "probe" if "taken for the same model" in text else "not compared"
        except UsageError as error:
            outcome, text = "refused", str(error)
        spent = time.perf_counter() - start
    found = text.split(" % of the range off")[0].rpartition(" ")[2] if "% of the range off" in text else None
    return Row(name, model, should, outcome, None if found is None else float(found) / 100, 1e3 * spent)


def rows_of(kind: str, folder: Path) -> Iterator[Row]:
    """Yield the rows of one detector: its copies, what it was quantised to, and others."""
    folder.mkdir()
    made = KINDS[kind]
    detector = made(0, "stripes")
    model = export(detector, folder / "model.onnx")
    stats = calibrated(detector, model, "stripes")
    ir = to_ir(model, folder / "model.xml")
    same = {
        "the file itself": model,
        "TorchScript exporter, opset 14": export(detector, folder / "opset14.onnx", opset=14),
        "dynamo exporter, opset 18": export(detector, folder / "dynamo.onnx", dynamo=True, opset=18),
        "OpenVINO IR": ir,
        "OpenVINO IR, float16 weights": to_ir(model, folder / "half.xml", half=True),
        "ONNX, float16 weights": half_weights(model, folder / "half.onnx"),
        "slimmed": slimmed(model, folder / "slim.onnx"),
        "weights in a renamed file": renamed_data(model, folder / "data.onnx"),
        "attached and detached": detached(model, folder / "detached.onnx", stats),
        "IR, attached and detached": detached(ir, folder / "detached.xml", stats),
    }
    yield from (judged(kind, stats, name, path, "same") for name, path in same.items())
    yield judged(kind, stats, "INT8", quantised(model, folder / "int8.onnx"), "other")
    moved = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in (*moved.parameters(), *moved.buffers()):
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    others = {
        "another seed": made(1, "stripes"),
        "another category": made(0, "checkers"),
        "a third category": made(0, "grain"),
        "trained again": made(0, "stripes", 1),
        "5 % noise on the weights": moved,
    }
    for number, (name, other) in enumerate(others.items()):
        path = export(other, folder / f"other{number}.onnx")
        yield judged(kind, stats, name, path, "other")
        yield judged(kind, stats, f"{name}, as IR", to_ir(path, folder / f"other{number}.xml"), "other")


def anomalib_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of Anomalib's raw exports: those of one model are the same, those of two are not."""
    paths = [path for path in sorted(folder.glob("*/raw_*")) if path.suffix in (".onnx", ".xml")]
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fed = Preprocessing(size=(128, 128))
            stats = calibrate(path.parent / "val_raw.npz", model=path, preprocessing=fed, resamples=0)
        for other in paths:
            should = "same" if other.parent == path.parent else "other"
            names = [f"{each.parent.name}/{each.name}" for each in (path, other)]
            yield judged(names[0], stats, names[1], other, should)


def digest_times(folder: Path) -> dict[str, float]:
    """Return the milliseconds that the digest of 1 GiB of external data takes, in 8 tensors and in 1000."""
    times = {}
    for count in (8, 1000):
        rows = 2**30 // 4 // 1024 // count
        tensors = [TensorProto(name=f"w{n}", data_type=TensorProto.FLOAT, dims=[rows, 1024]) for n in range(count)]
        for number, tensor in enumerate(tensors):
            tensor.data_location = TensorProto.EXTERNAL
            size = rows * 4096
            for key, value in {"location": f"w{count}", "offset": number * size, "length": size}.items():
                tensor.external_data.add(key=key, value=str(value))
        with (folder / f"w{count}").open("wb") as stream:
            block = np.random.default_rng(0).bytes(2**20)
            for _ in range(2**10):
                stream.write(block)
        path = folder / f"large{count}.onnx"
        graph = helper.make_graph([], "large", [], [], tensors)
        path.write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
        spent = []
        for _ in range(5):
            start = time.perf_counter()
            format_of(path).digest(path)
            spent.append(time.perf_counter() - start)
        times[f"digest of 1 GiB in {count} tensors, ms"] = round(1e3 * sorted(spent)[2], 1)
    return times


def table(rows: list[Row]) -> dict[str, Any]:
    """Print the rows, and return how many refusals and passes are false."""
    print("| statistics of | on | should be | found | largest difference | ms |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        share = "" if row.share is None else f"{100 * row.share:.2g} %"
        wrong = "  WRONG" if row.is_wrong else ""
        print(f"| {row.statistics} | {row.model} | {row.should} | {row.outcome}{wrong} | {share} | {row.ms:.0f} |")
    same, other = ([row for row in rows if row.should == should] for should in ("same", "other"))
    shares = [[row.share for row in each if row.share is not None] for each in (same, other)]
    return {
        "false refusals": f"{sum(row.is_wrong for row in same)} of {len(same)}",
        "false passes": f"{sum(row.is_wrong for row in other)} of {len(other)}",
        "largest difference of the same model, %": round(100 * max(shares[0], default=0.0), 5),
        "smallest difference of another model, %": round(100 * min(shares[1], default=0.0), 5),
    }


def main() -> None:
    """Compare Anomalib's exports where they are given, else models that are made here."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path)
    given = arguments.parse_args()
    if given.folder is not None:
        print(json.dumps(table(list(anomalib_rows(given.folder))), indent=2))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row for kind in KINDS for row in rows_of(kind, folder / kind)]
        quoted = {**table(rows), **digest_times(folder)}
    figures = [{**{name: getattr(row, name) for name in Row.__slots__}, "wrong": row.is_wrong} for row in rows]
    machine = environment("torch", "onnx", "onnxruntime", "openvino")
    publish("belonging", {"ratios": quoted, "figures": figures, "environment": machine})


if __name__ == "__main__":
    main()
