"""What Anomalib's guide to post-processing does, with our class imported in place of its own.

Usage: PYTHONPATH=tests python anomalib_guide.py FOLDER

The steps are the guide's, in its order: creating, configuring, printing, the default of a model, disabling, exporting,
deploying, a post-processor of one's own. Where today's packages demand it they differ: models are exported by
`to_openvino`, OpenVINO is imported as `openvino`, and the one output with everything in it is asked for. Between them
models are fitted, which the guide leaves out; backbones are random, so that nothing is downloaded.
"""

import sys
from pathlib import Path

import numpy as np
import openvino
import torch
from anomalib.data import InferenceBatch
from anomalib.data.utils import read_image
from anomalib.models import Padim, Patchcore
from anomalib_cases import SIZE, crops, engine, images, prepare

from postproc_export import update_postprocessing
from postproc_export.integrations.anomalib import PostProcessor


def creating() -> None:
    """By the constructor, with its arguments, and with none: then it is the model's default."""
    post_processor = PostProcessor()
    model = Padim(post_processor=post_processor)
    assert model.post_processor is post_processor

    post_processor = PostProcessor(image_sensitivity=0.4, pixel_sensitivity=0.4)
    model = Padim(post_processor=post_processor)
    assert (model.post_processor.image_sensitivity, model.post_processor.pixel_sensitivity) == (0.4, 0.4)

    Padim.configure_post_processor = staticmethod(PostProcessor)  # one line more than with Anomalib's own
    model = Padim()
    print(model.post_processor)
    print(Padim.configure_post_processor())
    assert type(model.post_processor) is type(Padim.configure_post_processor()) is PostProcessor

    model = Padim(post_processor=False)
    assert model.post_processor is None


def deploying(folder: Path) -> None:
    """Export with post-processing in the graph, and run it without any code for it."""
    model = Patchcore(
        backbone="resnet18",
        layers=["layer1", "layer2"],
        pre_processor=Patchcore.configure_pre_processor(SIZE),
        post_processor=PostProcessor(image_sensitivity=0.5, pixel_sensitivity=0.5),
    )
    runner, data = engine(folder), images(folder / "crops")
    runner.fit(model, datamodule=data)
    path = model.to_openvino(folder, input_size=SIZE)
    packed = update_postprocessing(path, output=folder / "model.xml", layout="packed", model_info=False).output

    core = openvino.Core()
    ov_model = core.read_model(packed)
    compiled_model = core.compile_model(ov_model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    input_key, output_key = compiled_model.input(0), compiled_model.output(0)
    assert input_key.any_name == "input"
    for batch in data.test_dataloader():
        for image in batch.image:
            results = compiled_model([image[None].numpy()])[output_key]
            with torch.inference_mode():
                wanted = model.eval()(image[None])
            assert np.allclose(results[..., 0], wanted.anomaly_map[:, 0], atol=1e-5)  # normalised maps
            assert np.allclose(results[..., 1], wanted.pred_score, atol=1e-5)  # normalised scores
            assert (results[..., 2] == wanted.pred_label.numpy()).all()  # decided
            assert np.array_equal(results[..., 3], wanted.pred_mask[:, 0])


class CustomPostProcessor(PostProcessor):
    """A post-processor of one's own: only the best of the pixels count."""

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process predictions."""
        made = super().forward(predictions)
        return made._replace(pred_mask=made.pred_mask & (made.anomaly_map > 0.75))


def customising(folder: Path) -> None:
    """Give it to a model; test, predict and the exported file decide by it."""
    post_processor = CustomPostProcessor()
    model = Padim(post_processor=post_processor, pre_processor=Padim.configure_pre_processor(SIZE))
    data = images(folder / "crops")
    runner = engine(folder)
    runner.train(model, datamodule=data)
    path = model.to_openvino(folder, "custom", input_size=SIZE)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in runner.predict(model, dataloaders=data.test_dataloader()):
        given = np.stack([read_image(path, as_tensor=True).numpy() for path in batch.image_path])
        assert np.array_equal(compiled(given)["pred_mask"][:, 0], batch.pred_mask)


def main(folder: Path) -> None:
    """Run every step."""
    prepare(folder)
    crops(folder / "crops")
    creating()
    deploying(folder)
    customising(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
