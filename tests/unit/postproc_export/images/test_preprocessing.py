"""What is done to an image before the model sees it: explicit, checked against the model's input, and recorded."""

import json
from typing import Any

import numpy as np
import pytest
from image_files import PIXELS
from PIL import Image

from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.images import Preprocessing, image_input
from postproc_export.images.preprocessing import ChannelOrder
from postproc_export.runtimes import PortInfo

DYNAMIC = PortInfo("input", "float32", ("N", 3, "H", "W"))
STATIC = PortInfo("input", "float32", ("N", 3, 4, 6))


class TestPreprocessing:
    """Explicit, checked against the model's input, and recorded."""

    def test_the_defaults_are_the_fields(self) -> None:
        """RGB, NCHW, 0 to 1, no mean or standard deviation; size and dtype are the model's."""
        resolved = Preprocessing().for_input(STATIC)
        array = resolved.array(Image.fromarray(PIXELS))
        assert (resolved.size, resolved.scale, resolved.dtype) == ((4, 6), 255.0, "float32")
        np.testing.assert_array_equal(array, PIXELS.transpose(2, 0, 1) / np.float32(255), strict=True)

    def test_scale_mean_and_standard_deviation_apply_in_this_order(self) -> None:
        """(pixel / scale - mean) / std per channel of the model's order, in float32."""
        resolved = Preprocessing(
            size=(4, 6), scale=1, mean=(1, 2, 3), std=(4, 5, 6), channel_order="bgr", layout="nhwc"
        ).for_input(PortInfo("x", "float16", (None, None, None, 3)))
        expected = (PIXELS[..., ::-1].astype(np.float32) - np.float32([1, 2, 3])) / np.float32([4, 5, 6])
        np.testing.assert_array_equal(resolved.array(Image.fromarray(PIXELS)), expected.astype(np.float16), strict=True)

    def test_gray_is_one_channel(self) -> None:
        """ITU-R 601 luma, as Pillow computes it."""
        resolved = Preprocessing(channel_order="gray").for_input(PortInfo("x", "float32", (1, 1, 4, 6)))
        image = Image.fromarray(PIXELS)
        np.testing.assert_array_equal(resolved.array(image)[0], np.asarray(image.convert("L")) / np.float32(255))

    def test_a_uint8_input_gets_pixels_as_they_are(self) -> None:
        """No scale by default, and any other one is a contradiction."""
        port = PortInfo("x", "uint8", ("N", 3, 4, 6))
        np.testing.assert_array_equal(
            Preprocessing().for_input(port).array(Image.fromarray(PIXELS)), PIXELS.transpose(2, 0, 1), strict=True
        )
        for contradiction in (Preprocessing(scale=255), Preprocessing(mean=(0.5,)), Preprocessing(std=(2, 2, 2))):
            with pytest.raises(UsageError, match="a uint8 input takes pixels as they are"):
                contradiction.for_input(port)

    @pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", "uint8"])
    def test_the_models_element_type_is_fed(self, dtype: str) -> None:
        """Images and the black trial image have the dtype of the input."""
        resolved = Preprocessing().for_input(PortInfo("x", dtype, ("N", 3, 4, 6)))
        arrays = [resolved.array(Image.fromarray(PIXELS)), resolved.blank()]
        assert [(array.dtype.name, array.shape) for array in arrays] == [(dtype, (3, 4, 6))] * 2

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
    def test_images_are_stretched_by_the_filter_asked_for(self, interpolation: str) -> None:
        """The aspect is not kept; each filter is Pillow's of that name."""
        resolved = Preprocessing(size=(3, 3), interpolation=interpolation).for_input(DYNAMIC)
        image = Image.fromarray(PIXELS)
        stretched = np.asarray(image.resize((3, 3), Image.Resampling[interpolation.upper()]))
        np.testing.assert_array_equal(resolved.array(image), stretched.transpose(2, 0, 1) / np.float32(255))

    def test_a_dynamic_size_needs_the_option(self) -> None:
        """Without a static size in the model the user has to say it."""
        with pytest.raises(UsageError, match=r"input: float32 \[N, 3, H, W\](.|\n)*--image-size"):
            Preprocessing().for_input(DYNAMIC)
        assert Preprocessing(size=(8, 9)).for_input(DYNAMIC).size == (8, 9)

    def test_another_size_than_the_models_is_refused(self) -> None:
        """A static size cannot be overridden."""
        with pytest.raises(UsageError, match="--image-size 4x4 does not fit"):
            Preprocessing(size=(4, 4)).for_input(STATIC)

    @pytest.mark.parametrize(
        ("shape", "order", "layout"),
        [
            pytest.param((4, 6, 3), "rgb", "nhwc", id="last"),
            pytest.param((None, None, 3), "rgb", "nhwc", id="last-of-open-ones"),
            pytest.param((4, 6, 1), "gray", "nhwc", id="gray"),
            pytest.param((3, 4, 6), "rgb", "nchw", id="second"),
            pytest.param((3, 4, 3), "rgb", "nchw", id="either"),
            pytest.param((1, 4, 1), "gray", "nchw", id="gray-either"),
            pytest.param((None, None, None), "rgb", "nchw", id="open"),
        ],
    )
    def test_the_layout_is_read_off_the_input(
        self, shape: tuple[int | None, ...], order: ChannelOrder, layout: str
    ) -> None:
        """NHWC where the last axis alone can be that of the channels; what is found out is recorded and shown."""
        height, width = shape[1:] if layout == "nchw" else shape[:2]
        asked = Preprocessing(size=(height or 4, width or 6), channel_order=order)
        resolved = asked.for_input(PortInfo("x", "float32", ("N", *shape)))
        assert resolved.layout == layout == resolved.to_json()["layout"]
        assert layout.upper() in resolved.describe()

    @pytest.mark.parametrize(
        ("shape", "given", "fix"),
        [
            pytest.param(
                (4, 6, 3), {"layout": "nchw"}, r"add --layout nhwc \(the input is \[N, 4, 6, 3\]\)", id="nhwc"
            ),
            pytest.param(
                (3, 4, 6), {"layout": "nhwc"}, r"add --layout nchw \(the input is \[N, 3, 4, 6\]\)", id="nchw"
            ),
            pytest.param((1, 4, 3), {}, r"add --layout nhwc \(the input is \[N, 1, 4, 3\]\)", id="ambiguous"),
            pytest.param((1, 4, 6), {}, "add --channel-order gray", id="gray"),
            pytest.param((4, 6, 1), {}, "add --channel-order gray", id="gray-nhwc"),
            pytest.param((2, 4, 6), {}, "choose --layout", id="neither"),
        ],
    )
    def test_channels_that_do_not_fit_name_the_option(
        self, shape: tuple[int, ...], given: dict[str, Any], fix: str
    ) -> None:
        """What is asked for counts, and what is not clear is not guessed."""
        with pytest.raises(UsageError, match=rf"images with 3 channel(.|\n)*fix:     {fix}"):
            Preprocessing(**given).for_input(PortInfo("x", "float32", ("N", *shape)))

    @pytest.mark.parametrize(
        ("ports", "message"),
        [
            pytest.param([], "no input", id="none"),
            pytest.param([STATIC, DYNAMIC], "exactly one input", id="two"),
            pytest.param([PortInfo("x", "float32", ("N", 12))], "takes no batch of images", id="rank"),
            pytest.param([PortInfo("x", "int64", ("N", 3, 4, 6))], "takes no batch of images", id="dtype"),
        ],
    )
    def test_models_that_do_not_take_images_are_refused(self, ports: list[PortInfo], message: str) -> None:
        """One input of four axes is needed."""
        with pytest.raises(UnsupportedModelError, match=message):
            image_input(ports)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param({"size": (0, 4)}, "image size", id="size"),
            pytest.param({"mean": (1.0, 2.0)}, "2 values of mean", id="mean-count"),
            pytest.param({"std": (1.0, 0.0, 1.0)}, "std not 0", id="std-zero"),
            pytest.param({"scale": 0.0}, "scale and std not 0", id="scale-zero"),
            pytest.param({"mean": (float("nan"),)}, "finite", id="nan"),
            pytest.param({"channel_order": "rbg"}, "unknown channel_order 'rbg'", id="order"),
            pytest.param({"layout": "chw"}, "unknown layout", id="layout"),
            pytest.param({"interpolation": "area"}, "unknown interpolation", id="interpolation"),
        ],
    )
    def test_illegal_options_are_refused_when_made(self, options: dict[str, object], message: str) -> None:
        """Each illegal value is named."""
        with pytest.raises(UsageError, match=message):
            Preprocessing(**options)

    def test_the_record_reads_back_equal(self) -> None:
        """JSON gives the same pre-processing again; unknown keys are ignored, wrong ones refused."""
        resolved = Preprocessing(mean=(0.1, 0.2, 0.3), channel_order="bgr", interpolation="box").for_input(STATIC)
        document = json.loads(json.dumps(resolved.to_json()))
        assert Preprocessing.from_json({**document, "later": 1}) == resolved
        for wrong in (None, {"size": ["a", "b"]}, {"layout": "x"}, {"mean": 3}):
            with pytest.raises(MetadataError, match="recorded pre-processing"):
                Preprocessing.from_json(wrong)

    def test_the_description_says_everything(self) -> None:
        """One line holds size, filter, order, scale, mean, std, layout and dtype."""
        assert Preprocessing(mean=(0.1, 0.2, 0.3)).for_input(STATIC).describe() == (
            "resized to 4x6 (height x width, bilinear, aspect not kept), RGB, divided by 255, mean 0.1/0.2/0.3, std 1, "
            "NCHW, float32"
        )
