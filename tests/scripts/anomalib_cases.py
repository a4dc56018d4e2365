"""The drop-in post-processor in the real Anomalib: one model through every way that it is fitted, run and exported.

Usage: PYTHONPATH=tests python anomalib_cases.py MODEL FOLDER        writes MODEL.json: what was found
       PYTHONPATH=tests python anomalib_cases.py more FOLDER         the same for what is tried with Padim alone
       PYTHONPATH=tests python anomalib_cases.py ranks FOLDER        calibrates in two processes
       PYTHONPATH=tests python anomalib_cases.py memory FOLDER       measures the memory of a validation

Backbones are random and images are crops of photos, so nothing is downloaded. Lightning starts the second process
itself, with the same arguments; each writes its own file.
"""

import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.data import Folder, ImageBatch, InferenceBatch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.metrics import F1Score
from anomalib.models import Dfkde, Padim, Patchcore, Stfpm
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.post_processing import PostProcessor as AnomalibPostProcessor
from calibration_memory import megabytes, watched
from image_files import save
from lightning.pytorch import Callback, Trainer

from postproc_export import check_parity, detach_postprocessing, inspect_model, update_postprocessing
from postproc_export.demo.data import load_photos
from postproc_export.eager import PostProcessor as EagerPostProcessor
from postproc_export.integrations.anomalib import PostProcessor
from postproc_export.prediction import predict
from postproc_export.prediction.run import predict_folder
from postproc_export.runtimes import open_runner

SIZE = (64, 64)
CROP = (32, 32)  # what PatchCore cuts out of it, inside its graph
COUNTS = {"train/good": 24, "test/good": 42, "test/bad": 40}  # 41 of these validate
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


class MapOnly(PadimModel):
    """Padim without its score."""

    def forward(self, images: torch.Tensor) -> Any:
        """Return the map alone; while it is fitted, what Padim returns."""
        made = super().forward(images)
        return made._replace(pred_score=None) if isinstance(made, InferenceBatch) else made


class Smoothed(PostProcessor):
    """A custom post-processor, in the manner of the guide: what is decided is a map that was smoothed."""

    def transform(self, predictions: InferenceBatch) -> InferenceBatch:
        """Smooth the map, and take the score from it."""
        maps = torch.nn.functional.avg_pool2d(predictions.anomaly_map, 3, stride=1, padding=1)
        return InferenceBatch(pred_score=maps.amax(dim=(1, 2, 3)), anomaly_map=maps)


class AnyPixel(PostProcessor):
    """A custom post-processor with a `forward` of its own: an image with an anomalous pixel is anomalous."""

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Decide the image by its mask."""
        made = super().forward(predictions)
        return made._replace(pred_label=made.pred_mask.flatten(1).any(dim=1))


class DefaultPadim(Padim):
    """A model whose default post-processor is ours."""

    configure_post_processor = staticmethod(PostProcessor)


class SaneStfpm(Stfpm):
    """A model that wants a sanity check: Anomalib's own turn it off, whatever the engine is told."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """What the engine takes from a model."""
        return {**super().trainer_arguments, "num_sanity_val_steps": 2}


SMALL = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "visualizer": False}


def build(name: str, post_processor: Any) -> Any:
    """Return a model with a random backbone."""
    given = {"post_processor": post_processor, "visualizer": False}
    small = {**SMALL, **given}
    made: dict[str, Callable[[], Any]] = {
        "padim": lambda: Padim(n_features=20, pre_processor=Padim.configure_pre_processor(SIZE), **small),
        "patchcore": lambda: Patchcore(
            coreset_sampling_ratio=0.05, pre_processor=Patchcore.configure_pre_processor(SIZE, CROP), **small
        ),
        "stfpm": lambda: Stfpm(pre_processor=Stfpm.configure_pre_processor(SIZE), **small),
        "dfkde": lambda: Dfkde(
            backbone="resnet18", n_pca_components=8, pre_processor=Dfkde.configure_pre_processor(SIZE), **given
        ),
    }
    model = made["padim" if name in ("map_only", "more") else name]()
    if name == "map_only":
        model.model.__class__ = MapOnly
    return model


def crops(root: Path) -> Path:
    """Write crops of a photo, those that are bad with a square of noise, and return their folder."""
    photo, rng = load_photos()["brick"], np.random.default_rng(0)
    for folder, count in COUNTS.items():
        for number in range(count):
            top, left = rng.integers(0, photo.shape[0] - SIZE[0], 2)
            crop = photo[top : top + SIZE[0], left : left + SIZE[1]].copy()
            if folder.endswith("bad"):
                (top, left), side = rng.integers(0, 40, 2), rng.integers(8, 24)
                mask = np.zeros(SIZE, np.uint8)
                mask[top : top + side, left : left + side] = 255
                crop = np.where(mask, rng.integers(0, 256, SIZE), crop).astype(np.uint8)
                save(root / "mask" / f"{number:03d}.png", mask)
            save(root / folder / f"{number:03d}.png", np.repeat(crop[..., None], 3, axis=2))
    return root


def images(root: Path, **options: Any) -> Folder:
    """Return the crops as Anomalib has them: half of the test images validate."""
    given = {"train_batch_size": 8, "eval_batch_size": 8, "num_workers": 0, **options}
    return Folder(
        name="crops",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/bad",
        mask_dir="mask",
        val_split_mode="from_test",
        seed=1,
        **given,
    )


def engine(folder: Path, **options: Any) -> Engine:
    """Return an engine of one process that prints little."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Engine(default_root_dir=folder, **{"devices": 1, "max_epochs": 1, **quiet, **options})


def numbers(model: Any) -> dict[str, float]:
    """Return the buffers of a post-processor."""
    return {name: tensor.item() for name, tensor in model.post_processor.state_dict().items()}


class Case:
    """One model, fitted, and what it predicts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.root = name, folder, folder / "crops"
        self.data = images(self.root if self.root.is_dir() else crops(self.root))
        self.model = build(name, PostProcessor())
        self.batch = 2 if name == "dfkde" else 8  # its graph runs at the batch it was exported with
        self.engine = engine(folder / name)
        self.engine.fit(self.model, datamodule=self.data)

    def predicted(self) -> dict[str, Any]:
        """Return labels, masks and scores of `Engine.predict` for the test images."""
        batches = self.engine.predict(self.model, dataloaders=self.data.test_dataloader())
        self.paths = [path for batch in batches for path in batch.image_path]
        fields = ("pred_label", "pred_mask", "pred_score")
        given = {name: [getattr(batch, name) for batch in batches] for name in fields}
        return {
            name: torch.cat(made).numpy().reshape(-1)
            for name, made in given.items()
            if all(m is not None for m in made)
        }

    def pixels(self) -> np.ndarray:
        """Return the test images as a file is fed them."""
        return np.stack([read_image(path, as_tensor=True).numpy() for path in self.paths])

    def off(self, path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return how many labels and pixels a file decides otherwise, by runtime, and how far scores are apart."""
        found = {}
        for runtime in ("onnxruntime", "openvino") if path.suffix == ".onnx" else ("openvino",):
            runner, pixels = open_runner(path, runtime=runtime), self.pixels()
            pixels = np.concatenate([pixels, pixels[: -len(pixels) % self.batch]])  # the last batch is full, too
            runs = [
                runner.run({runner.inputs[0].name: pixels[at : at + self.batch]})
                for at in range(0, len(pixels), self.batch)
            ]
            given = {name: np.concatenate([run[name].reshape(-1) for run in runs]) for name in wanted}
            made = {name: values[: wanted[name].size] for name, values in given.items()}
            found[runtime] = {
                "labels": int((made["pred_label"] != wanted["pred_label"]).sum()),
                "pixels": int((made["pred_mask"] != wanted["pred_mask"]).sum()) if "pred_mask" in wanted else 0,
                "scores": float(np.abs(made["pred_score"] - wanted["pred_score"]).max()),
            }
        return found

    def in_inferencers(self, onnx: Path, ir: Path, wanted: dict[str, Any]) -> dict[str, int]:
        """Return how many labels Anomalib's inferencers and Model API decide otherwise."""
        os.environ["TRUST_REMOTE_CODE"] = "1"
        torch_file = self.model.to_torch(self.folder / self.name)
        ways = {"torch": TorchInferencer(torch_file, device="cpu")}
        if self.batch != 2:
            ways |= {path.suffix: OpenVINOInferencer(path, device="CPU", config=EXACT) for path in (onnx, ir)}
        made = {
            name: [bool(np.all(np.asarray(way.predict(path).pred_label))) for path in self.paths]
            for name, way in ways.items()
        }
        if self.batch != 2:
            from model_api.adapters import OpenvinoAdapter
            from model_api.models import Model
            from PIL import Image

            from postproc_export.runtimes.openvino import openvino_core

            core = openvino_core(purpose="this test")
            wrapper = Model.create_model(OpenvinoAdapter(core, str(ir), device="CPU", plugin_config=EXACT))
            made["model_api"] = [wrapper(np.asarray(Image.open(path))).pred_label == "True" for path in self.paths]
        return {name: int((np.array(labels) != wanted["pred_label"]).sum()) for name, labels in made.items()}

    def commands(self, path: Path) -> dict[str, Any]:
        """Return what our commands find of a file: inspect, check, predict, update and detach."""
        moved = update_postprocessing(path, output=path.with_stem("moved"), image_sensitivity=0.9)
        raw = detach_postprocessing(path, output=path.with_stem("raw")).output
        return {
            "tails": tails(path),
            "check": check_parity(path).passed,
            "moved": check_parity(moved.output).passed,
            "raw": tails(raw),
        }

    def checkpoints(self) -> dict[str, Any]:
        """Return the classes and numbers that checkpoints come back with, ours and Anomalib's."""
        ours = self.saved("ours.ckpt")
        kind = type(self.model)
        theirs_given = kind.load_from_checkpoint(ours, post_processor=AnomalibPostProcessor())
        mine, self.model.post_processor = self.model.post_processor, theirs_given.post_processor
        theirs = self.saved("theirs.ckpt")
        self.model.post_processor = mine
        loaded = {
            "ours": kind.load_from_checkpoint(ours),
            "ours, in theirs": theirs_given,
            "theirs": kind.load_from_checkpoint(theirs),
            "theirs, in ours": kind.load_from_checkpoint(theirs, post_processor=PostProcessor()),
        }
        return {
            name: {"class": type(model.post_processor).__name__, "same": same(numbers(model), numbers(self.model))}
            for name, model in loaded.items()
        }

    def saved(self, name: str) -> Path:
        """Write a checkpoint of the model, and return its path."""
        path = self.folder / self.name / name
        self.engine.trainer.save_checkpoint(path)
        return path

    def results(self) -> dict[str, Any]:
        """Return all that was found."""
        model, data = self.model, self.data
        found: dict[str, Any] = {"shown": repr(model.post_processor), "stats": model.post_processor.stats.to_json()}
        self.engine.validate(model, datamodule=data, verbose=False)
        found["validated"] = model.post_processor.stats.to_json()
        found["metrics"] = self.engine.test(model, datamodule=data, verbose=False)[0]
        for comparison in ("ge", "gt"):
            model.post_processor.comparison = comparison
            wanted, root = self.predicted(), self.folder / self.name / comparison
            onnx = model.to_onnx(root, input_size=SIZE)
            ir = self.engine.export(model, "openvino", export_root=root, input_size=SIZE)
            found[comparison] = {"onnx": self.off(onnx, wanted), "ir": self.off(ir, wanted)}
            found[comparison]["seen"] = sorted(set(wanted["pred_label"].tolist()))
            if comparison == "ge":
                found["inferencers"] = self.in_inferencers(onnx, ir, wanted)
                found["commands"] = {path.suffix: self.commands(path) for path in (onnx, ir)}
                found["misplaced"] = [self.misplaced(path, wanted) for path in (onnx, ir) if "pred_mask" in wanted]
        found["gt"]["anomalib"] = self.off_anomalib(wanted)
        found["trained"] = self.trained()
        return found

    def trained(self) -> dict[str, Any]:
        """Return what `Engine.train`, which fits and tests, leaves in a new model, and what a validation does then."""
        model = build(self.name, PostProcessor())
        other = engine(self.folder / self.name / "trained")
        metrics = other.train(model, datamodule=self.data)[0]
        found = {"stats": model.post_processor.stats.to_json(), "metrics": metrics}
        other.validate(model, datamodule=self.data, verbose=False)
        return {**found, "validated": model.post_processor.stats.to_json()}

    def misplaced(self, path: Path, wanted: dict[str, Any]) -> int:
        """Return how many pixels of the images our `predict` calls otherwise than Engine.predict's mask, put in place.

        A model that crops has a mask of the central part, beside which nothing is anomalous.
        """
        side = round((wanted["pred_mask"].size / len(self.paths)) ** 0.5)
        edge = (SIZE[0] - side) // 2
        masks = np.pad(wanted["pred_mask"].reshape(-1, side, side), ((0, 0), (edge, edge), (edge, edge)))
        table = self.folder / self.name / "test.csv"
        table.write_text("\n".join(["image", *self.paths]), encoding="utf-8")
        found = predict(model=path, images=table)
        return sum(
            int((made.placement.on_image(made.mask) != mask).sum()) for made, mask in zip(found, masks, strict=True)
        )

    def off_anomalib(self, wanted: dict[str, Any]) -> dict[str, int]:
        """Return how many labels and pixels Anomalib's own class decides otherwise than `gt`, by the same buffers."""
        mine, theirs = self.model.post_processor, AnomalibPostProcessor()
        theirs.load_state_dict(mine.state_dict())
        self.model.post_processor = theirs
        self.engine = engine(self.folder / self.name)
        made = self.predicted()
        self.model.post_processor = mine
        self.engine = engine(self.folder / self.name)
        return {name: int((made[name] != wanted[name]).sum()) for name in made if name != "pred_score"}

    def more(self) -> dict[str, Any]:
        """Return what is found with one model alone: other classes, compression, open sizes, checkpoints, folders."""
        root, wanted = self.folder / "more", self.predicted()
        found: dict[str, Any] = {"checkpoints": self.checkpoints()}
        kinds = {"fp16": CompressionType.FP16, "int8": CompressionType.INT8, "int8_ptq": CompressionType.INT8_PTQ}
        for name, kind in kinds.items():
            given = {"compression_type": kind, "datamodule": self.data, "input_size": SIZE}
            found[name] = self.commands(self.engine.export(self.model, "openvino", root, name, **given))
        found |= {"int8_acq": self.quantised_by_labels(root, wanted), "sanity": self.sanity()}
        free = self.model.to_onnx(root, "free")
        found["free"] = self.off(free, wanted)
        loaded = self.engine.export(self.model, "onnx", root, "loaded", input_size=SIZE, ckpt_path=self.saved("m.ckpt"))
        found["loaded"] = self.off(loaded, wanted)
        pictures = predict_folder(loaded, self.folder / "crops" / "test" / "bad", output=self.folder / "predicted")
        found["predicted"] = pictures.headline()
        default = DefaultPadim(n_features=20, backbone="resnet18", layers=["layer1"], visualizer=False)
        found["default"] = type(default.post_processor).__name__
        found["eager"] = self.eager()
        for custom in (Smoothed, AnyPixel):
            self.model.post_processor = custom()
            self.engine = engine(self.folder / custom.__name__)
            self.engine.validate(self.model, datamodule=self.data, verbose=False)
            wanted = self.predicted()
            made = {path.suffix: path for path in self.exports(root, custom.__name__)}
            found[custom.__name__] = {
                suffix: {"off": self.off(path, wanted), "tails": tails(path)} for suffix, path in made.items()
            }
        return found

    def quantised_by_labels(self, root: Path, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return what our commands find of a file quantised under control of its labels, and whether they were ours.

        The model as it was is judged, too. No image may come alone: Anomalib takes the batch axis from such labels. Any
        drop will do, so that it is quick.
        """
        seen: list[Any] = []

        class Seen(F1Score):  # type: ignore[misc]
            def update(self, batch: Any) -> None:
                seen.append(batch.pred_label.numpy())
                super().update(batch)

        kind, data = CompressionType.INT8_ACQ, images(self.root, eval_batch_size=7)
        metric = Seen(fields=["pred_label", "gt_label"])
        path = self.model.to_openvino(
            root, "acq", input_size=SIZE, compression_type=kind, datamodule=data, metric=metric, max_drop=1.0
        )
        labels, count = np.concatenate(seen), len(wanted["pred_label"])
        runs = [labels[at : at + count] for at in range(len(labels) - count)]  # it tries a single batch before
        return {**self.commands(path), "ours": any(np.array_equal(run, wanted["pred_label"]) for run in runs)}

    def sanity(self) -> dict[str, Any]:
        """Return what is calibrated when a sanity check ends, in a model that asks for one, and after its epoch."""
        model, found = SaneStfpm(post_processor=PostProcessor(), **SMALL), {}

        class Looking(Callback):  # type: ignore[misc]
            def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
                found["checked"] = model.post_processor.stats.to_json()

        engine(self.folder / "sanity", callbacks=[Looking()]).fit(model, datamodule=self.data)
        return {**found, "fitted": model.post_processor.stats.to_json()}

    def exports(self, root: Path, name: str) -> Iterator[Path]:
        """Yield the model as ONNX and as an IR."""
        yield self.model.to_onnx(root, name, input_size=SIZE)
        yield self.model.to_openvino(root, name, input_size=SIZE)

    def eager(self) -> dict[str, Any]:
        """Return how many labels the eager module, in the place of Anomalib's, decides otherwise."""
        mine = self.model.post_processor
        pixels = torch.from_numpy(self.pixels())
        with torch.inference_mode():
            wanted = self.model.eval()(pixels)
            self.model.post_processor = EagerPostProcessor(mine.stats)
            made = self.model(pixels)
        self.model.post_processor = mine
        return {level: bool(torch.equal(getattr(made, level), getattr(wanted, level))) for level in made._fields}


def tails(path: Path) -> dict[str, str]:
    """Return what is found at each level that a file has."""
    levels = inspect_model(path).to_json()["levels"]
    return {level: found["tail"] for level, found in levels.items() if found is not None}


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two mappings have the same numbers, NaN included."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def ranks(folder: Path) -> None:
    """Validate a model image by image, alone and in two processes, then fit it in these; each writes its statistics.

    The model is Stfpm, untrained at first: Padim and Patchcore refuse several devices.
    """
    root = folder / "ranks"
    data = images(root / "crops" if (root / "crops").is_dir() else crops(root / "crops"), eval_batch_size=1)
    model = build("stfpm", PostProcessor())
    found = {}
    if "LOCAL_RANK" not in os.environ:  # which Lightning gives to the second process
        engine(root / "alone", logger=False).validate(model, datamodule=data, verbose=False)
        found["alone"] = model.post_processor.stats.to_json()
    two = engine(root / "two", logger=False, devices=2, strategy="ddp")
    two.validate(model, datamodule=data, verbose=False)
    found |= {"size": two.trainer.world_size, "validated": model.post_processor.stats.to_json()}
    two.fit(model, datamodule=data)
    found["fitted"] = model.post_processor.stats.to_json()
    (folder / f"ranks{two.trainer.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")


def memory() -> dict[str, float]:
    """Return by how many MB a validation of 210 MB of maps raises the memory of the process, ours and Anomalib's.

    Ours runs first: what a process took once it may keep.
    """
    rng, found = torch.Generator().manual_seed(0), {}
    for name, made in {"ours": PostProcessor(), "theirs": AnomalibPostProcessor()}.items():
        before, trainer = megabytes("RssAnon"), Trainer(logger=False, accelerator="cpu")
        with watched() as peak:
            validate_maps(made, trainer, rng)
        found[name] = peak[0] - before
    return found


def validate_maps(made: Any, trainer: Trainer, rng: torch.Generator) -> None:
    """Call a post-processor as a validation does, with 100 batches of 8 random maps."""
    made.on_validation_epoch_start(trainer, None)
    for number in range(100):
        maps = torch.rand(8, 256, 256, generator=rng)
        batch = ImageBatch(image=maps[:, None].expand(-1, 3, -1, -1), anomaly_map=maps, gt_mask=maps > 0.99)
        batch.update(pred_score=maps.amax(dim=(1, 2)), gt_label=torch.arange(8) % 2 == 0)
        made.on_validation_batch_end(trainer, None, batch, batch, number)
    made.on_validation_epoch_end(trainer, None)


def interface() -> dict[str, list[str]]:
    """Return the parameters of what the stand-in stands in for."""
    from anomalib.models import AnomalibModule

    found = {"InferenceBatch": [*InferenceBatch._fields]}
    theirs, ours = (
        [(each.name, each.default) for each in inspect.signature(kind).parameters.values() if each.name != "kwargs"]
        for kind in (AnomalibPostProcessor, PostProcessor)
    )
    found["other in ours"] = [
        name for (name, default), mine in zip(theirs, ours, strict=False) if (name, default) != mine
    ]
    for kind in (AnomalibPostProcessor, AnomalibModule, InferenceBatch, ImageBatch):
        for name in {name for each in kind.__mro__ for name in vars(each)}:
            member = inspect.getattr_static(kind, name)
            if inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)):
                found[f"{kind.__name__}.{name}"] = [*inspect.signature(getattr(kind, name)).parameters]
    return found


def prepare(folder: Path) -> None:
    """Let nothing be downloaded or left elsewhere, and make what is drawn at random the same each time."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    create = timm.create_model
    timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})
    torch.manual_seed(0)
    os.chdir(folder)  # Anomalib's inferencer leaves a cache in the current folder


def main(name: str, folder: Path) -> None:
    """Run one case."""
    prepare(folder)
    if name == "ranks":
        ranks(folder)
        return
    if name == "memory":
        (folder / "memory.json").write_text(json.dumps(memory()), encoding="utf-8")
        return
    case = Case(name, folder)
    found = case.results() if name != "more" else {**case.more(), "interface": interface()}
    (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
