"""The calibration callback in real Trainers of two processes, for both packages; all cases in one start.

Usage: PYTHONPATH=tests python lightning_cases.py FOLDER

Lightning starts the second process itself, with the same arguments. Each process writes what it got to its own file.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_cases import sample
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

from postproc_export.calibration import Calibrator, tally
from postproc_export.errors import UsageError
from postproc_export.integrations.lightning import Package, calibration_callback, checkpoint_statistics

MODULES: dict[Package, str] = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


class Samples(Dataset):
    """So many samples."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return sample(index)


class Stream(IterableDataset):
    """Every second sample of 13, by the rank of the process."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (sample(index) for index in range(torch.distributed.get_rank(), 13, 2))


def loader(size: int, batch_size: int = 4, **options: Any) -> DataLoader:
    """Return a dataloader over the first samples."""
    return DataLoader(Samples(size), batch_size=batch_size, **options)


class Steps:
    """Raw maps that are the images times the epoch plus one, so that no two validations are alike."""

    weight: torch.nn.Parameter
    current_epoch: int

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that moves nothing."""
        return (self.weight * batch["image"]).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return scores, and maps under their other name."""
        maps = batch["image"] * (1 + self.current_epoch)
        return {"pred_score": maps.amax(dim=(1, 2, 3)), "maps": maps}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser that stands still."""
        return torch.optim.SGD([self.weight], lr=0.0)


class TupleSteps(Steps):
    """A step that returns scores and maps without names."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return a tuple."""
        return tuple(super().validation_step(batch, batch_idx, dataloader_idx).values())


class SpoiledSteps(Steps):
    """A step that gives NaN in process 1."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return scores and maps."""
        step = super().validation_step(batch, batch_idx, dataloader_idx)
        return {**step, "pred_score": step["pred_score"] * (float("nan") if torch.distributed.get_rank() else 1)}


class BrokenSteps(Steps):
    """A step that raises in its second batch."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return scores and maps."""
        if batch_idx == 1:
            raise RuntimeError("the validation step is broken")
        return super().validation_step(batch, batch_idx, dataloader_idx)


class CountingSteps(TupleSteps):
    """Steps that count the training."""

    trained = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss."""
        self.trained += 1
        return super().training_step(batch, batch_idx)


def missing_in_one(outputs: Any, batch: Any) -> dict[str, Any]:
    """Return arrays, or raise in process 1."""
    found = {"pred_score": outputs["pred_score"], "gt_label": batch["gt_label"]}
    if torch.distributed.get_rank() == 1:
        del found["pred_score"], found["no_such_key"]
    return found


@dataclass(frozen=True)
class Cases:
    """The cases with one package."""

    package: Package
    folder: Path

    @property
    def pl(self) -> Any:
        """The package."""
        return import_module(MODULES[self.package])

    def model(self, steps: type[Steps] = Steps) -> Any:
        """Return a module of the package with these steps."""
        made = type("Model", (steps, self.pl.LightningModule), {})()
        made.weight = torch.nn.Parameter(torch.zeros(1))
        return made

    def trainer(self, name: str, *callbacks: Any, **options: Any) -> Any:
        """Return a Trainer of two processes with a folder of its own."""
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        processes = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
        given = {"max_epochs": 2, "default_root_dir": self.folder / name, **quiet, **processes, **options}
        return self.pl.Trainer(callbacks=[*callbacks], **given)

    def callback(self, *, policy: str = "f1", **options: Any) -> Any:
        """Return a callback with few resamples."""
        calibrator = Calibrator(resamples=20, image_policy=policy)
        return calibration_callback(calibrator, package=self.package, **options)

    def fitted(self) -> Any:
        """Two epochs, 13 shuffled samples in batches of 4 on two processes, a sanity check before."""
        calibration = self.callback()
        keeper = self.pl.callbacks.ModelCheckpoint(save_top_k=-1, filename="{epoch}")
        run = self.trainer("fitted", calibration, keeper, num_sanity_val_steps=2)
        run.fit(self.model(), loader(4), loader(13, shuffle=True))
        folder = Path(keeper.dirpath)
        found = {
            "stats": calibration.stats.to_json(),
            "file": json.loads((folder / "calibration.json").read_text(encoding="utf-8")),
            "first": checkpoint_statistics(folder / "epoch=0.ckpt").to_json(),
            "last": checkpoint_statistics(folder / "epoch=1.ckpt").to_json(),
        }
        again = self.callback()
        self.trainer("again", again).fit(self.model(), loader(4), loader(13), ckpt_path=folder / "epoch=1.ckpt")
        return found | {"resumed": again.stats.to_json()}

    def validated(self) -> Any:
        """`validate` on other samples than an earlier `fit` had; one process has nothing but a repetition."""
        calibration = self.callback(output=self.folder / "sub" / "own.json")
        run = self.trainer("validated", calibration, max_epochs=1)
        run.fit(self.model(), loader(4), loader(13))
        run.validate(self.model(), loader(3, batch_size=1))
        three = calibration.stats.to_json()
        run.validate(self.model(), [loader(5), loader(2, batch_size=8)])
        return {"three": three, "two-loaders": calibration.stats.to_json()}

    def extracted(self) -> Any:
        """A function says where the arrays are; the only sample is repeated for the second process."""
        calibration = self.callback(extract=lambda outputs, batch: {"maps": outputs[1], "masks": batch["gt_mask"]})
        one = DataLoader(Subset(Samples(13), [2]), batch_size=4)
        self.trainer("extracted", calibration).validate(self.model(TupleSteps), one)
        return calibration.stats.to_json()

    def not_found(self) -> Any:
        """Nothing says where the predictions are."""
        self.trainer("not-found", self.callback()).validate(self.model(TupleSteps), loader(4))

    def streamed(self) -> Any:
        """The user vouches for an iterable dataset that deals out its samples itself."""
        calibration = self.callback(no_duplicates=True)
        self.trainer("streamed", calibration).validate(self.model(), DataLoader(Stream(), batch_size=4))
        return calibration.stats.to_json()

    def not_vouched(self) -> Any:
        """Nobody vouches for it."""
        self.trainer("not-vouched", self.callback()).validate(self.model(), DataLoader(Stream(), batch_size=4))

    def not_distributed(self) -> Any:
        """Every process reads every sample."""
        run = self.trainer("not-distributed", self.callback(), use_distributed_sampler=False)
        run.validate(self.model(), loader(13))

    def same_share(self) -> Any:
        """Both processes read the first half."""
        sampler = DistributedSampler(Samples(13), num_replicas=2, rank=0, shuffle=False)
        half = DataLoader(Samples(13), batch_size=4, sampler=sampler)
        self.trainer("same-share", self.callback()).validate(self.model(), half)

    def wrong_count(self) -> Any:
        """One value per batch is extracted, so the repetition among its samples cannot be found."""
        calibration = self.callback(extract=lambda outputs, batch: {"scores": outputs[0][:1], "gt_label": [True]})
        self.trainer("wrong-count", calibration).validate(self.model(TupleSteps), loader(13))

    def spoiled(self) -> Any:
        """One process meets a NaN in its first batch."""
        self.trainer("spoiled", self.callback()).validate(self.model(SpoiledSteps), loader(13))

    def two_callbacks(self) -> Any:
        """Two policies in one Trainer, each with a file of its own."""
        path = self.folder / "two" / "recall.json"
        one, other = self.callback(), self.callback(policy="recall=1", output=path)
        run = self.trainer("two", one, other, max_epochs=1)
        run.fit(self.model(), loader(4), loader(13))
        checkpoint, beside = run.checkpoint_callback.best_model_path, Path(run.checkpoint_callback.dirpath)
        found = {"f1": beside / "calibration.json", "recall=1": path}
        return {
            policy: [
                json.loads(file.read_text(encoding="utf-8")),
                checkpoint_statistics(checkpoint, image_policy=policy).to_json(),
            ]
            for policy, file in found.items()
        }

    def same_file(self) -> Any:
        """Two policies in one Trainer, whose file would be that of the last one."""
        run = self.trainer("same-file", self.callback(), self.callback(policy="recall=1"))
        run.fit(self.model(), loader(4), loader(13))

    def broken_step(self) -> Any:
        """A validation step raises while values are on disk."""
        calibration = self.callback()
        spools = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tally, "IN_MEMORY", 0)
            patch.setattr(tally, "SPOOLED", 10)
            patch.setattr(Calibrator, "close", lambda self: (spools.append(on_disk(self)), self.reset()))
            with pytest.raises(RuntimeError, match="the validation step is broken"):
                self.trainer("broken-step", calibration).validate(self.model(BrokenSteps), loader(13, batch_size=2))
            return {"before": spools[0], "after": on_disk(calibration._calibrator)}

    def found_early(self) -> Any:
        """Nothing says where the predictions are, which the sanity check finds before a step of training."""
        model = self.model(CountingSteps)
        with pytest.raises(UsageError) as raised:
            self.trainer("found-early", self.callback()).fit(model, loader(4), loader(13))
        return {"text": str(raised.value), "trained": model.trained}

    def missing_in_one(self) -> Any:
        """The user's function raises in one process only."""
        self.trainer("missing", self.callback(extract=missing_in_one)).validate(self.model(), loader(13))

    def not_written(self) -> Any:
        """The process that writes the file cannot: there is a folder in its place."""
        path = self.folder / "folder.json"
        path.mkdir(parents=True, exist_ok=True)
        self.trainer("not-written", self.callback(output=path)).validate(self.model(), loader(13))

    def results(self) -> dict[str, Any]:
        """Return what every case returns, or the error that it raises."""
        calculating = (
            *(self.fitted, self.validated, self.extracted, self.streamed),
            *(self.two_callbacks, self.broken_step, self.found_early),
        )
        refused = (
            self.missing_in_one,
            self.not_written,
            self.same_file,
            self.not_found,
            self.not_vouched,
            self.not_distributed,
            self.same_share,
            self.wrong_count,
            self.spoiled,
        )
        return {case.__name__: result_of(case) for case in (*calculating, *refused)}


def on_disk(calibrator: Calibrator) -> bool:
    """Whether there are values of pixels in a temporary file."""
    kept = calibrator._levels["pixel"].spool
    return kept is not None and kept.on_disk


def result_of(case: Callable[[], Any]) -> Any:
    """Return what a case returns, or the error that it raises."""
    try:
        return case()
    except Exception as error:
        return {"class": type(error).__name__, "text": str(error)}


def main(folder: Path) -> None:
    """Run all cases with both packages, and write the results."""
    warnings.filterwarnings("ignore")
    results = {package: Cases(package, folder / package).results() for package in MODULES}
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
