"""The stand-in for Anomalib, also where Anomalib is installed; and validations without a Trainer."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

STANDIN: Final = Path(__file__).parent / "standin"

sys.path.insert(0, str(STANDIN))

AnomalibModule: Any = import_module("anomalib.models").AnomalibModule
AnomalibPostProcessor: Any = import_module("anomalib.post_processing").PostProcessor
CompressionType: Any = import_module("anomalib.deploy").CompressionType
ImageBatch: Any = import_module("anomalib.data").ImageBatch
InferenceBatch: Any = import_module("anomalib.data").InferenceBatch


def trainer(*, sanity_checking: bool = False) -> Any:
    """Return what a callback looks at of a Trainer with one process."""
    return SimpleNamespace(
        sanity_checking=sanity_checking, world_size=1, is_global_zero=True, checkpoint_callback=None, callbacks=[]
    )


def validate(post_processor: Any, *batches: Any, sanity_checking: bool = False) -> None:
    """Call a post-processor as a validation does that gives these batches."""
    run = trainer(sanity_checking=sanity_checking)
    post_processor.on_validation_epoch_start(run, None)
    for number, batch in enumerate(batches):
        post_processor.on_validation_batch_end(run, None, batch, batch, number)
    post_processor.on_validation_epoch_end(run, None)
