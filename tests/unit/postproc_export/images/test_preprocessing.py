"""What is done to an image before the model sees it: explicit, checked against the model's input, and recorded."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import PIXELS
from PIL import Image

from postproc_export.errors import FileError, MetadataError, UnsupportedModelError, UsageError
from postproc_export.images import Preprocessing, image_input
from postproc_export.images.preprocessing import ChannelOrder, settled
from postproc_export.runtimes import PortInfo

DYNAMIC = PortInfo("input", "float32", ("N", 3, "H", "W"))
STATIC = PortInfo("input", "float32", ("N", 3, 4, 6))
GRAY = PortInfo("input", "float32", ("N", 1, "H", "W"))


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

    def test_gray_comes_before_resizing(self) -> None:
        """The luma is rounded first, then filtered: as a deployment that opens images in gray has it."""
        resolved = Preprocessing(size=(3, 3), channel_order="gray", scale=1).for_input(GRAY)
        image = Image.fromarray(PIXELS)
        before = np.asarray(image.convert("L").resize((3, 3), Image.Resampling.BILINEAR))
        after = np.asarray(image.resize((3, 3), Image.Resampling.BILINEAR).convert("L"))
        assert not np.array_equal(before, after), "the order makes a difference to these pixels"
        np.testing.assert_array_equal(resolved.array(image)[0], before.astype(np.float32))

    def test_sixteen_bits_are_divided_by_65535(self) -> None:
        """Gray of mode I, once or in three channels; a uint8 input cannot take it."""
        values = np.random.default_rng(2).integers(0, 65536, (4, 6)).astype(np.int32)
        for order, channels in (("gray", 1), ("rgb", 3), ("bgr", 3)):
            port = PortInfo("x", "float32", ("N", channels, 4, 6))
            resolved = Preprocessing(bits=16, channel_order=order).for_input(port)
            array = resolved.array(Image.fromarray(values))
            assert resolved.scale == 65535
            np.testing.assert_array_equal(array, np.stack([values.astype(np.float32) / np.float32(65535)] * channels))
        with pytest.raises(UsageError, match=r"a uint8 input takes pixels as they are(.|\n)*--bits"):
            Preprocessing(bits=16).for_input(PortInfo("x", "uint8", ("N", 3, 4, 6)))

    def test_a_dynamic_size_needs_the_option(self) -> None:
        """Without a static size in the model the user has to say it."""
        with pytest.raises(UsageError, match=r"input: float32 \[N, 3, H, W\](.|\n)*--image-size"):
            Preprocessing().for_input(DYNAMIC)
        assert Preprocessing(size=(8, 9)).for_input(DYNAMIC).size == (8, 9)

    def test_another_size_than_the_models_is_refused(self) -> None:
        """A static size cannot be overridden."""
        with pytest.raises(UsageError, match=r"images of 4x4 (.|\n)*do not fit(.|\n)*fix: +give --image-size 4x6"):
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
                (4, 6, 3), {"layout": "nchw"}, r"add --input-layout nhwc \(the input is \[N, 4, 6, 3\]\)", id="nhwc"
            ),
            pytest.param(
                (3, 4, 6), {"layout": "nhwc"}, r"add --input-layout nchw \(the input is \[N, 3, 4, 6\]\)", id="nchw"
            ),
            pytest.param((1, 4, 3), {}, r"add --input-layout nhwc \(the input is \[N, 1, 4, 3\]\)", id="ambiguous"),
            pytest.param((1, 4, 6), {}, "add --channel-order gray", id="gray"),
            pytest.param((4, 6, 1), {}, "add --channel-order gray", id="gray-nhwc"),
            pytest.param((2, 4, 6), {}, "choose --input-layout", id="neither"),
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
            pytest.param({"size": (0, 4)}, "--image-size 0x4", id="size"),
            pytest.param({"crop": (1.5, 4)}, "--crop 1.5,4", id="crop-fraction"),
            pytest.param({"map_crop": "big"}, "--map-crop big", id="map-crop-text"),
            pytest.param({"mean": (1.0, 2.0)}, "2 values of mean", id="mean-count"),
            pytest.param({"preset": "imagenet", "channel_order": "gray"}, "3 values of mean", id="preset-gray"),
            pytest.param({"std": (1.0, 0.0, 1.0)}, "std not 0", id="std-zero"),
            pytest.param({"scale": 0.0}, "scale and std not 0", id="scale-zero"),
            pytest.param({"scale": "255"}, "a scale of '255'", id="scale-text"),
            pytest.param({"mean": (float("nan"),)}, "finite", id="nan"),
            pytest.param({"channel_order": "rbg"}, "unknown channel_order 'rbg'", id="order"),
            pytest.param({"layout": "chw"}, r"unknown layout(.|\n)*--input-layout", id="layout"),
            pytest.param({"interpolation": "area"}, r"unknown interpolation(.|\n)*cv2-area", id="interpolation"),
            pytest.param({"interpolation": "cv2-cubic"}, "unknown interpolation 'cv2-cubic'", id="cv2-cubic"),
            pytest.param({"resize": "longer"}, r"unknown resize(.|\n)*stretch or shorter or pad or none", id="resize"),
            pytest.param({"bits": 12}, r"unknown bits 12(.|\n)*8 or 16", id="bits"),
            pytest.param({"preset": "clip"}, r"unknown preset(.|\n)*imagenet or half or unit", id="preset"),
            pytest.param({"pad_at": "left"}, "unknown pad_at", id="pad-at"),
            pytest.param({"pad_value": (256,)}, r"pad_value of 256(.|\n)*0 to 255", id="pad-value"),
            pytest.param({"pad_value": (1, 2)}, "2 values of pad_value", id="pad-count"),
            pytest.param({"resize": "shorter", "size": (4, 5)}, r"4x5 for the shorter side", id="shorter"),
            pytest.param({"resize": "pad", "precrop": True}, r"precrop(.|\n)*--no-precrop", id="precrop"),
            pytest.param({"resize": "none", "size": 4, "crop": 2}, "without resizing", id="none-and-crop"),
            pytest.param({"size": 4, "crop": (5, 4)}, r"crop of 5x4 is larger(.|\n)*--crop 4x4", id="crop"),
            pytest.param({"resize": "shorter", "size": 4, "crop": 5}, "crop of 5x5 is larger", id="shorter-crop"),
            pytest.param({"size": 9, "crop": 8, "map_crop": 9}, "map_crop of 9x9 is larger", id="map-crop"),
        ],
    )
    def test_illegal_options_are_refused_when_made(self, options: dict[str, object], message: str) -> None:
        """Each illegal value is named."""
        with pytest.raises(UsageError, match=message):
            Preprocessing(**options)

    def test_the_record_reads_back_equal(self) -> None:
        """JSON gives the same pre-processing again; unknown keys are ignored, wrong ones refused."""
        some = Preprocessing(mean=(0.1, 0.2, 0.3), channel_order="bgr", interpolation="box").for_input(STATIC)
        port = PortInfo("x", "float32", ("N", "H", "W", 3))
        shorter = Preprocessing(
            resize="shorter", size=(9, 9), crop=(8, 7), preset="half", layout="nhwc", map_crop=(4, 4)
        )
        padded = Preprocessing(resize="pad", size=(9, 8), pad_at="corner", pad_value=(1, 2, 3), bits=16)
        for resolved in (some, shorter.for_input(port), padded.for_input(DYNAMIC)):
            document = json.loads(json.dumps(resolved.to_json()))
            assert Preprocessing.from_json({**document, "later": 1}) == resolved
        for wrong in (None, {"size": ["a", "b"]}, {"layout": "x"}, {"mean": ["a"]}, {"scale": "x"}):
            with pytest.raises(MetadataError, match="recorded pre-processing"):
                Preprocessing.from_json(wrong)

    def test_an_old_record_reads_as_it_was_meant(self) -> None:
        """Records of before cropping, padding and 16 bits: stretched, nothing cut or padded, 8 bits."""
        old = {"size": [4, 6], "scale": 255.0, "mean": [0.0], "std": [1.0], "channel_order": "rgb"}
        old |= {"layout": "nchw", "interpolation": "bilinear", "dtype": "float32"}
        assert Preprocessing.from_json(old) == Preprocessing().for_input(STATIC)

    def test_the_description_says_everything(self) -> None:
        """One line holds size, filter, order, scale, mean, std, layout and dtype."""
        assert Preprocessing(mean=(0.1, 0.2, 0.3)).for_input(STATIC).describe() == (
            "resized to 4x6 (height x width, bilinear, aspect not kept), RGB, divided by 255, mean 0.1/0.2/0.3, std 1, "
            "NCHW, float32"
        )
        everything = Preprocessing(
            bits=16, channel_order="gray", resize="shorter", size=(8, 8), crop=(4, 6), map_crop=(2, 2)
        )
        assert everything.describe() == (
            "16 bits, the shorter side resized to 8 (bilinear), the central 4x6 cropped, GRAY, divided by "
            "255 (1 for uint8), mean 0, std 1, the model's layout, the map covers the central 2x2"
        )
        padded = Preprocessing(resize="pad", size=(8, 9), interpolation="cv2-area", pad_value=(1, 2, 3))
        assert (
            "resized into 8x9 (height x width, cv2-area), padded with 1/2/3 around the centre, RGB" in padded.describe()
        )
        assert Preprocessing(resize="none", precrop=False).describe().startswith("not resized, RGB")
        assert "cut to the aspect of 8x9, resized to 8x9" in Preprocessing(precrop=True, size=(8, 9)).describe()


class TestGeometry:
    """Cut, resized, placed and cropped, as torchvision and Model API have it."""

    @pytest.mark.parametrize("image", [(300, 400), (401, 333), (256, 256), (257, 511), (224, 9000)])
    def test_shorter_side_and_central_crop_are_torchvisions(self, image: tuple[int, int]) -> None:
        """The longer side is cut off to whole pixels, the crop's offset is rounded to the even side."""
        way = Preprocessing(resize="shorter", size=(256, 256), crop=(224, 224))
        short = min(image)
        expected = [256 if side == short else int(256 * side / short) for side in image]
        rows, columns = way.axes(image)
        assert [rows.resized, columns.resized] == expected
        offsets = [round((side - 224) / 2.0) for side in expected]
        assert [axis.shown for axis in (rows, columns)] == [slice(offset, offset + 224) for offset in offsets]
        assert rows.place == columns.place == slice(0, 224)

    def test_the_crops_offset_is_rounded_to_the_even_side(self) -> None:
        """Of 1, 2, 3, 5 and 7 pixels too many, 0, 1, 2, 2 and 4 are above."""
        for extra, above in ((1, 0), (2, 1), (3, 2), (5, 2), (7, 4)):
            rows, _ = Preprocessing(size=(10 + extra, 10), crop=(10, 10)).axes((50, 50))
            assert rows.shown == slice(above, above + 10)

    def test_precrop_cuts_to_the_aspect_like_model_api(self) -> None:
        """The middle, rounded down twice: what the longer side keeps, and where it begins."""
        for image, size, cut in (
            ((300, 401), (64, 64), (slice(0, 300), slice(50, 350))),
            ((401, 300), (64, 64), (slice(50, 350), slice(0, 300))),
            ((100, 100), (30, 60), (slice(25, 75), slice(0, 100))),
            ((100, 100), (60, 31), (slice(0, 100), slice(24, 75))),
            ((100, 100), (60, 60), (slice(0, 100), slice(0, 100))),
        ):
            rows, columns = Preprocessing(precrop=True, size=size).axes(image)
            assert (rows.cut, columns.cut) == cut
            assert (rows.resized, columns.resized) == size

    def test_padding_keeps_the_aspect_and_places_the_image(self) -> None:
        """As large as fits; what cannot be halved goes below and to the right of the centre."""
        centre = Preprocessing(resize="pad", size=(64, 64)).axes((100, 51))
        corner = Preprocessing(resize="pad", size=(64, 64), pad_at="corner").axes((100, 51))
        assert [axis.resized for axis in centre] == [axis.resized for axis in corner] == [64, 33]
        assert [axis.place for axis in centre] == [slice(0, 64), slice(15, 48)]
        assert [axis.place for axis in corner] == [slice(0, 64), slice(0, 33)]
        assert {axis.size for axis in centre} == {64}

    def test_padding_is_in_pixel_units_and_the_models_order(self) -> None:
        """A value per channel, before scale, mean and standard deviation; a uint8 input takes whole numbers only."""
        image = Image.fromarray(PIXELS)
        way = Preprocessing(
            resize="pad", size=(6, 6), pad_value=(51, 102.5, 153), channel_order="bgr", mean=(0.1,), std=(2,)
        ).for_input(DYNAMIC)
        array = way.array(image)
        expected = (np.float32([51, 102.5, 153]) / np.float32(255) - np.float32(0.1)) / np.float32(2)
        np.testing.assert_array_equal(array[:, 0], np.repeat(expected[:, None], 6, axis=1))
        np.testing.assert_array_equal(array[:, 5], array[:, 0])
        inside = (PIXELS[..., ::-1] / np.float32(255) - np.float32(0.1)) / np.float32(2)
        np.testing.assert_array_equal(array[:, 1:5], inside.transpose(2, 0, 1))
        byte = PortInfo("x", "uint8", ("N", 3, 6, 6))
        plain = Preprocessing(resize="pad", size=(6, 6), pad_value=(7,)).for_input(byte).array(image)
        assert (plain.dtype, plain[0, 0, 0], plain[1, 5, 5]) == (np.uint8, 7, 7)
        with pytest.raises(UsageError, match="pad with whole numbers"):
            Preprocessing(resize="pad", size=(6, 6), pad_value=(7.5,)).for_input(byte)

    def test_an_image_is_cut_as_its_geometry_says(self) -> None:
        """Precrop, resize and crop are those of Pillow on the boxes that the axes name."""
        pixels = np.random.default_rng(8).integers(0, 256, (40, 71, 3), np.uint8)
        image = Image.fromarray(pixels)
        cut = image.crop((15, 0, 55, 40)).resize((20, 20), Image.Resampling.BICUBIC)
        way = Preprocessing(precrop=True, size=(20, 20), interpolation="bicubic", crop=(15, 16), scale=1)
        found = way.for_input(DYNAMIC).array(image)
        np.testing.assert_array_equal(found, np.asarray(cut)[2:17, 2:18].transpose(2, 0, 1).astype(np.float32))

    def test_the_map_covers_the_middle(self) -> None:
        """With map_crop; without, all of the input."""
        mask = np.arange(30).reshape(5, 6) > 7
        np.testing.assert_array_equal(Preprocessing(map_crop=(2, 2)).covered(mask), mask[2:4, 2:4])
        assert Preprocessing().covered(mask) is mask

    def test_the_input_has_the_size_of_the_crop(self) -> None:
        """A model of that size takes it, another one does not; what is resized to has to be said."""
        port = PortInfo("x", "float32", ("N", 3, 224, 224))
        way = Preprocessing(resize="shorter", size=(256, 256), crop=(224, 224))
        assert way.for_input(port).input_size == (224, 224)
        assert way.for_input(DYNAMIC).blank().shape == (3, 224, 224)
        for wrong, message in (
            (Preprocessing(crop=(200, 200), size=(256, 256)), r"200x200 (.|\n)*--crop 224x224"),
            (Preprocessing(crop=(224, 224)), r"resized to before they are cropped(.|\n)*--image-size 256"),
            (Preprocessing(resize="shorter"), r"resized to before they are cropped(.|\n)*--image-size 256"),
            (Preprocessing(map_crop=(225, 1)), "map_crop of 225x1 is larger"),
        ):
            with pytest.raises(UsageError, match=message):
                wrong.for_input(port)
        assert Preprocessing(resize="none", crop=(224, 224)).for_input(port).size is None
        assert Preprocessing(resize="none").for_input(port).size == (224, 224)


class TestFields:
    """Single fields: from options, mappings, files and records; one replaces one."""

    RECORDED = Preprocessing(resize="shorter", size=(256, 256), crop=(224, 224), preset="imagenet").for_input(DYNAMIC)

    def test_a_preset_stands_for_mean_and_standard_deviation(self) -> None:
        """What is given beside it takes its place; over a record it takes the place of mean, std and scale."""
        assert Preprocessing(preset="half").mean == (0.5,)
        assert Preprocessing(preset="imagenet", std=(1.0,)) == Preprocessing(mean=(0.485, 0.456, 0.406))
        raw = Preprocessing(scale=1, mean=(104.0,), std=(58.0,))
        assert raw.replaced({"preset": "unit"}) == Preprocessing()
        assert raw.replaced({"preset": "unit", "scale": 2.0}) == Preprocessing(scale=2.0)

    def test_one_field_replaces_one_field(self) -> None:
        """In the forms of the command line, of JSON and of Python alike."""
        for crop in ("200", "200x200", 200, (200, 200), [200, 200]):
            changed = self.RECORDED.replaced({"crop": crop})
            assert changed.crop == (200, 200)
            assert changed.replaced({"crop": (224, 224)}) == self.RECORDED
        assert self.RECORDED.replaced({"crop": "none"}).crop is None
        assert self.RECORDED.replaced({"mean": "0.5"}).mean == (0.5,)
        assert self.RECORDED.replaced(None) == self.RECORDED
        assert self.RECORDED.replaced(Preprocessing()).resize == "stretch"
        assert self.RECORDED.replaced(Preprocessing()).size == (256, 256), "None leaves it open"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            pytest.param({"croop": 3}, r"no field 'croop'(.|\n)*write crop", id="unknown"),
            pytest.param({"pad_value": (3,)}, r"--pad-value would have no effect(.|\n)*shorter", id="pad-value"),
            pytest.param({"pad_at": "corner"}, "--pad-at would have no effect", id="pad-at"),
            pytest.param({"pad_value": (0, 0, 1)}, "--pad-value would have no effect", id="pad-values"),
            pytest.param(
                {"resize": "none", "size": "none", "interpolation": "box"}, "--interpolation would have", id="filter"
            ),
        ],
    )
    def test_a_field_that_decides_nothing_is_refused(self, given: dict[str, object], message: str) -> None:
        """Unknown ones with the nearest name; one that equals the default is accepted."""
        with pytest.raises(UsageError, match=message):
            self.RECORDED.replaced(given)
        assert self.RECORDED.replaced({"pad_value": 0, "pad_at": "centre"}) == self.RECORDED

    def test_a_file_holds_fields_or_statistics(self, tmp_path: Path) -> None:
        """TOML, JSON, the object of the statistics, and the statistics themselves give the same."""
        document = self.RECORDED.to_json()
        texts = {
            "fields.toml": 'resize = "shorter"\nsize = 256\ncrop = [224, 224]\npreset = "imagenet"\n',
            "fields.json": '{"resize": "shorter", "size": "256", "crop": 224, "preset": "imagenet"}',
            "record.json": json.dumps(document),
            "stats.json": json.dumps({"schema_version": 1, "image": None, "pixel": None, "preprocessing": document}),
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            assert Preprocessing().replaced(tmp_path / name).for_input(DYNAMIC) == self.RECORDED

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            pytest.param("a.toml", "size = ", "is not TOML", id="toml"),
            pytest.param("a.json", "{", "is not JSON", id="json"),
            pytest.param("a.json", "[1]", "is no table of fields", id="list"),
            pytest.param("a.toml", "sizes = 3", r"a\.toml: .*no field 'sizes'(.|\n)*write size", id="unknown"),
            pytest.param("a.toml", "size = 2.5", r"a\.toml: --image-size 2\.5", id="value"),
            pytest.param("a.json", '{"layout": "x"}', r"a\.json: unknown layout", id="choice"),
            pytest.param("a.json", '{"schema_version": 1, "image": null}', "record no pre-processing", id="statistics"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_named(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        """With what is wrong in it, or that it is not there."""
        (tmp_path / name).write_text(text)
        with pytest.raises(MetadataError, match=message):
            Preprocessing().replaced(tmp_path / name)
        with pytest.raises(FileError, match="absent"):
            Preprocessing().replaced(tmp_path / "absent" / name)

    def test_what_contradicts_a_record_is_named_with_both_values(self) -> None:
        """What equals it in another form does not contradict it."""
        recorded, port = self.RECORDED.to_json(), DYNAMIC
        same = {"size": 256, "crop": "224x224", "preset": "imagenet", "scale": 255.0, "pad_value": (0.0, 0.0, 0.0)}
        assert settled(recorded, same, port) == self.RECORDED
        assert (
            settled(recorded, Preprocessing(resize="shorter", crop=(224, 224), preset="imagenet"), port)
            == self.RECORDED
        )
        for other in (None, False):
            with pytest.raises(UsageError) as raised:
                settled(recorded, {"crop": "none", "mean": 0.5}, port, other=other)
            assert "--crop none, recorded 224x224; --mean 0.5, recorded 0.485,0.456,0.406" in str(raised.value)
            assert ("--other-preprocessing" in str(raised.value)) == (other is False)
        assert settled(recorded, {"crop": "none"}, port, other=True).crop is None
        fixed = PortInfo("input", "float32", ("N", 3, 224, 224))
        with pytest.raises(UsageError, match="--crop none, recorded 224x224"):  # before it is said not to fit
            settled(recorded, {"crop": "none"}, fixed)
        with pytest.raises(UsageError, match="--scale 255, recorded 2"):
            settled({**recorded, "scale": 2.0}, {"preset": "imagenet"}, port)
        assert settled(None, {"crop": 3, "size": 4}, port).crop == (3, 3), "nothing is recorded"

    @pytest.mark.parametrize(
        ("given", "doubt"),
        [
            pytest.param(
                {"mean": (123.675, 116.28, 103.53), "std": (58.395,)},
                r"^--mean 123\.675,116\.28,103\.53 and --std 58\.395: beyond the pixels .*--scale 1$",
                id="of-bytes",
            ),
            pytest.param({"std": (58.4,)}, r"^--std 58\.4: beyond .*--scale 1$", id="std-of-bytes"),
            pytest.param(
                {"scale": 1.0, "preset": "imagenet"}, r"^--mean .* and --std .*: small .*no --scale$", id="of-units"
            ),
            pytest.param({"mean": (-0.5,)}, r"^--mean -0\.5: .*not negative$", id="negative"),
            pytest.param({"scale": 1 / 255}, r"reach 65025", id="factor"),
        ],
    )
    def test_values_for_other_pixels_are_doubted(self, given: dict[str, Any], doubt: str) -> None:
        """What is usual is not: every preset, Caffe's means, a scale of 127.5 with a mean of 1, bytes as they are."""
        assert re.search(doubt, "\n".join(Preprocessing(**given).doubts()))
        for usual in (
            *({"preset": name, "bits": bits} for name in ("imagenet", "half", "unit") for bits in (8, 16)),
            {"scale": 1.0, "mean": (103.94, 116.78, 123.68)},
            {"scale": 1.0, "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            {"scale": 127.5, "mean": (1.0,)},
            {"scale": 256.0},
            {"scale": 1.0},
        ):
            assert list(Preprocessing(**usual).doubts()) == []
