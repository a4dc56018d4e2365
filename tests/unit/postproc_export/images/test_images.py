"""How image and mask files are decoded, and how batches of them are made."""

import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import numpy as np
import pytest
from image_files import PIXELS, mvtec, png_rgb16, save
from PIL import Image

from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.images import Batch, Preprocessing, Sample, find_samples, fit_mask, load_batches
from postproc_export.images import samples as loading
from postproc_export.images.samples import decode, read_mask


class TestDecode:
    """Every kind of file is converted as documented or refused by name."""

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
    def test_color_images_come_as_they_are(self, tmp_path: Path, suffix: str) -> None:
        """Lossless 8-bit color files give their very pixels."""
        np.testing.assert_array_equal(np.asarray(decode(save(tmp_path / f"a.{suffix}"))), PIXELS)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
    def test_gray_palette_and_opaque_alpha_become_rgb(self, tmp_path: Path, mode: str) -> None:
        """Pillow's own conversion; an opaque alpha channel is dropped."""
        image = Image.fromarray(PIXELS).convert(mode)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png")), np.asarray(image.convert("RGB")))

    def test_transparency_is_refused(self, tmp_path: Path) -> None:
        """What lies under a transparent pixel is not defined."""
        image = Image.fromarray(PIXELS).convert("RGBA")
        image.putpixel((0, 0), (1, 2, 3, 77))
        image.save(tmp_path / "a.png")
        with pytest.raises(FileError, match=r"a\.png is transparent in places(.|\n)*alpha down to 77"):
            decode(tmp_path / "a.png")

    def test_a_transparent_palette_color_is_refused(self, tmp_path: Path) -> None:
        """A palette may hide transparency."""
        image = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
        image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
        with pytest.raises(FileError, match="transparent in places"):
            decode(tmp_path / "a.png")

    @pytest.mark.parametrize("bits", [8, 16])
    @pytest.mark.parametrize("kind", ["gray16", "float", "cmyk"])
    def test_other_depths_and_color_spaces_are_refused(self, tmp_path: Path, kind: str, bits: int) -> None:
        """Of 16 bits, floating point and CMYK none has one reading as 8-bit RGB, and only the first as 16-bit gray."""
        pixels = {
            "gray16": Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257),
            "float": Image.fromarray(PIXELS[..., 0].astype(np.float32)),
            "cmyk": Image.fromarray(PIXELS).convert("CMYK"),
        }
        pixels[kind].save(tmp_path / "a.tif")
        if (kind, bits) == ("gray16", 16):
            np.testing.assert_array_equal(
                np.asarray(decode(tmp_path / "a.tif", bits=16)), np.int32(257) * PIXELS[..., 0]
            )
            return
        fix = "--bits 16" if (kind, bits) == ("gray16", 8) or bits == 16 else "convert it to 8-bit RGB"
        with pytest.raises(FileError, match=rf"a\.tif is no {bits}-bit (.|\n)*mode (.|\n)*fix: .*{fix}"):
            decode(tmp_path / "a.tif", bits=bits)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bit_gray_is_read_whole(self, tmp_path: Path, suffix: str) -> None:
        """Every value from 0 to 65535 comes as it is, upright as well; an 8-bit file is refused beside them."""
        values = np.arange(65536, dtype=np.uint16).reshape(128, 512)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(values).save(tmp_path / f"a.{suffix}", exif=exif)
        np.testing.assert_array_equal(np.asarray(decode(tmp_path / f"a.{suffix}", bits=16)), np.rot90(values, -1))
        with pytest.raises(FileError, match=r"b\.png is no 16-bit gray image(.|\n)*8 bits(.|\n)*leave out --bits 16"):
            decode(save(tmp_path / "b.png", PIXELS[..., 0]), bits=16)

    def test_sixteen_bit_color_is_refused_although_pillow_reads_it(self, tmp_path: Path) -> None:
        """Pillow would drop the lower byte without a word."""
        path = tmp_path / "deep.png"
        path.write_bytes(png_rgb16())
        with Image.open(path) as image:
            assert image.mode == "RGB"
        for bits in (8, 16):
            with pytest.raises(FileError, match=rf"deep\.png is no {bits}-bit(.|\n)*16 bits per channel"):
                decode(path, bits=bits)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    @pytest.mark.parametrize("gray", [False, True], ids=["color", "gray"])
    def test_the_exif_orientation_is_applied(self, tmp_path: Path, suffix: str, gray: bool) -> None:
        """A photo taken upright is upright, as cameras, viewers and OpenCV have it; of an uncompressed TIFF, too."""
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90 degrees clockwise to show
        path = save(tmp_path / f"a.{suffix}", PIXELS[..., 0] if gray else PIXELS, exif=exif)
        pixels = np.repeat(PIXELS[..., :1], 3, axis=2) if gray else PIXELS
        np.testing.assert_array_equal(np.asarray(decode(path)), np.rot90(pixels, -1))

    def test_several_frames_are_refused(self, tmp_path: Path) -> None:
        """A TIFF of two pages is not one image."""
        pages = [Image.fromarray(PIXELS)] * 2
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        with pytest.raises(FileError, match=r"a\.tif holds 2 frames"):
            decode(tmp_path / "a.tif")

    @pytest.mark.parametrize("keep", [0, 20, 60, 90], ids=["empty", "header", "middle", "nearly-all"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, keep: int) -> None:
        """Truncated and empty files are errors that name the file."""
        path = save(tmp_path / "broken.png")
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(FileError, match=r"cannot read the image .*broken\.png\n  found: +\S"):
            decode(path)

    @pytest.mark.parametrize(
        ("content", "kind"),
        [(b"", "an empty file"), (b"hello", "text that begins with 'hello'"), (b"\xff" * 9, "no image of a format")],
    )
    def test_a_file_of_another_kind_is_said_to_be_one(self, tmp_path: Path, content: bytes, kind: str) -> None:
        """Whatever its name says."""
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(FileError, match=rf"a\.png\n  found: +{kind}"):
            decode(tmp_path / "a.png")

    def test_a_tga_file_is_read(self, tmp_path: Path) -> None:
        """The last of the formats that are tried."""
        np.testing.assert_array_equal(np.asarray(decode(save(tmp_path / "a.tga"))), PIXELS)


class TestMasks:
    """Masks are binarised above 0 and take the size of the map."""

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
    def test_any_value_above_zero_is_anomalous(self, tmp_path: Path, mode: str) -> None:
        """Whatever the mode and the value (1, 255, colors), and whatever the alpha channel."""
        truth = np.eye(4, 6, dtype=bool)
        gray = Image.fromarray(truth.astype(np.uint8) * (255 if mode == "1" else 3))
        mask = Image.fromarray(truth.astype(np.uint16)) if mode == "I;16" else gray.convert(mode)
        mask.save(tmp_path / "m.png")
        found, between = read_mask(tmp_path / "m.png", image_size=(4, 6))
        np.testing.assert_array_equal(found, truth)
        assert between == 0

    def test_a_mask_of_another_size_than_its_image_is_refused(self, tmp_path: Path) -> None:
        """It may belong to another image."""
        save(tmp_path / "m.png", np.zeros((6, 4), np.uint8))
        with pytest.raises(CalibrationError, match=r"m\.png has another size(.|\n)*6x4(.|\n)*4x6"):
            read_mask(tmp_path / "m.png", image_size=(4, 6))

    def test_pixels_between_zero_and_the_largest_are_counted(self, tmp_path: Path) -> None:
        """The gray edge of a mask that was resized, whatever its largest value; all of it is anomalous."""
        for largest in (255, 200, 2):
            gray = np.zeros((4, 6), np.uint8)
            gray[1:3, 1:5] = largest
            gray[1, 1:4] = 1
            found, between = read_mask(save(tmp_path / "m.png", gray), image_size=(4, 6))
            np.testing.assert_array_equal(found, gray > 0)
            assert between == 3

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (7, 2), (20, 30), (10, 10)])
    def test_fitting_takes_the_pixel_under_each_center(self, height: int, width: int) -> None:
        """The same as Pillow's nearest neighbor, growing and shrinking."""
        mask = np.random.default_rng(height).random((10, 10)) > 0.5
        expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(fit_mask(mask, height=height, width=width), expected)


class TestLoadBatches:
    """Worker threads decode ahead, in order and within bounds."""

    READY = Preprocessing(size=(4, 6), dtype="float32")

    @pytest.mark.parametrize("workers", [1, 3])
    def test_batches_come_in_order_and_the_last_may_be_smaller(self, tmp_path: Path, workers: int) -> None:
        """Each image is where its sample is, whatever the number of threads."""
        pixels = [np.full((4, 6, 3), value, np.uint8) for value in range(7)]
        samples = [Sample(save(tmp_path / f"{index}.png", image), 0) for index, image in enumerate(pixels)]
        batches = list(load_batches(samples, self.READY, batch_size=3, workers=workers))
        assert [len(batch.samples) for batch in batches] == [len(batch.images) for batch in batches] == [3, 3, 1]
        assert [sample for batch in batches for sample in batch.samples] == samples
        values = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])
        np.testing.assert_array_equal(values, np.arange(7, dtype=np.uint8) / np.float32(255))
        assert {mask for batch in batches for mask in batch.masks} == {None}

    def test_the_next_batch_is_decoded_while_the_model_holds_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A whole batch and one image per thread, and no more, so that memory does not grow with the folder."""
        decoded: SimpleQueue[Path] = SimpleQueue()

        def told(path: Path, *, bits: int) -> Image.Image:
            decoded.put(path)
            return decode(path, bits=bits)

        monkeypatch.setattr(loading, "decode", told)
        samples = [Sample(save(tmp_path / f"{index}.png"), 0) for index in range(20)]
        batches = load_batches(samples, self.READY, batch_size=3, workers=2)
        next(batches)
        ahead = {decoded.get(timeout=60) for _ in range(3 + 3 + 2)}
        join_decoders(batches)
        assert ahead == {sample.image for sample in samples[: 3 + 3 + 2]}
        assert decoded.empty()

    def test_as_many_images_are_decoded_at_once_as_there_are_threads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each waits for two others inside the decoder, which would fail with fewer threads."""
        together = threading.Barrier(3, timeout=60)

        def awaited(path: Path, *, bits: int) -> Image.Image:
            together.wait()
            return decode(path, bits=bits)

        monkeypatch.setattr(loading, "decode", awaited)
        samples = [Sample(save(tmp_path / f"{index}.png"), 0) for index in range(6)]
        assert len(list(load_batches(samples, self.READY, batch_size=2, workers=3))) == 3

    def test_masks_come_at_the_inputs_size_and_normal_ones_are_empty(self, tmp_path: Path) -> None:
        """Masks are read where asked for."""
        samples = find_samples(mvtec(tmp_path))
        (batch,) = load_batches(samples, Preprocessing(size=(2, 3)), batch_size=8, masks=True)
        assert [mask.shape for mask in batch.masks if mask is not None] == [(2, 3)] * 4
        assert batch.shown == (None,) * 4
        assert [bool(mask.any()) for mask in batch.masks if mask is not None] == [True, False, False, True]

    def test_masks_go_where_their_image_goes(self, tmp_path: Path) -> None:
        """Whatever the geometry: the input shows 1 where a mask marks the bright pixels, and padding is not shown."""
        marked = np.zeros((40, 60), np.uint8)
        marked[8:24, 20:36] = 255
        image = save(tmp_path / "a.png", np.repeat(marked[..., None], 3, axis=2))
        sample = Sample(image, 1, save(tmp_path / "m.png", marked))
        ways = (
            Preprocessing(size=(20, 20), interpolation="nearest"),
            Preprocessing(size=(20, 20), interpolation="nearest", precrop=True),
            Preprocessing(size=(20, 20), interpolation="nearest", resize="shorter", crop=(16, 24)),
            Preprocessing(size=(30, 30), interpolation="nearest", resize="pad", pad_value=(77,)),
            Preprocessing(size=(30, 30), interpolation="nearest", resize="pad", pad_at="corner", crop=(28, 22)),
            Preprocessing(resize="none", crop=(30, 50)),
        )
        for way in ways:
            (batch,) = load_batches([sample], way, batch_size=1, masks=True)
            (mask,), (shown,), (pixels,) = batch.masks, batch.shown, batch.images[:, 0] * np.float32(255)
            assert mask is not None
            assert 0 < mask.mean() < 1
            np.testing.assert_array_equal(pixels == 255, mask)
            assert (shown is not None) == (way.resize == "pad")
            if shown is not None:
                np.testing.assert_allclose(pixels[~shown], way.pad_value[0], rtol=1e-6)
                assert set(np.unique(pixels[shown])) == {0, 255}
                assert shown.mean() == (20 / 30 if way.crop is None else 19 / 28)

    def test_an_image_that_does_not_come_to_the_inputs_size_is_named(self, tmp_path: Path) -> None:
        """Without resizing it has to be there, and a crop cannot be larger than what it is cut from."""
        image = save(tmp_path / "a.png")
        for way, needed in (
            (Preprocessing(size=(4, 4), resize="none"), "4x4"),
            (Preprocessing(size=(4, 4), resize="shorter"), "4x4"),
            (Preprocessing(size=(4, 4), resize="shorter", crop=(4, 7)), "4x7 at least"),
        ):
            with pytest.raises(
                UsageError, match=rf"a\.png does not come to (.|\n)*4x6(.|\n)*needed: +{needed}(.|\n)*fix"
            ):
                list(load_batches([Sample(image, 0)], way, batch_size=1))

    def test_a_missing_mask_and_a_contradicting_one_are_refused(self, tmp_path: Path) -> None:
        """Both name the image."""
        image, mask = save(tmp_path / "a.png"), save(tmp_path / "m.png", np.eye(4, 6, dtype=np.uint8))
        for sample, message in (
            (Sample(image, 1), r"anomalous image .*a\.png has no mask"),
            (Sample(image, 0, mask), r"normal image .*a\.png has a mask with anomalous pixels"),
        ):
            with pytest.raises(CalibrationError, match=message):
                list(load_batches([sample], self.READY, batch_size=1, masks=True))

    def test_a_broken_image_in_the_middle_is_named_and_stops_the_threads(self, tmp_path: Path) -> None:
        """The error of a worker reaches the caller, and no decoding thread stays behind."""
        samples = [Sample(save(tmp_path / f"{index}.png"), 0) for index in range(20)]
        samples[5].image.write_bytes(b"no image")
        batches = load_batches(samples, self.READY, batch_size=2, workers=2)
        assert len(next(batches).samples) == 2
        with pytest.raises(FileError, match=r"cannot read the image .*5\.png"):
            list(batches)
        join_decoders(batches)


def join_decoders(batches: Iterator[Batch]) -> None:
    """Stop decoding and wait until none of its threads is left."""
    cast("Generator[Batch]", batches).close()
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(timeout=60)
            assert not thread.is_alive()
