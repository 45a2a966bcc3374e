import io
import pickle
import zlib

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles_mutations import fuzzing, mutated
from PIL import Image, ImageOps

from fastrcnn.errors import FastRCNNError
from fastrcnn.images import SUFFIXES, image_scale, image_size, prepare_image, read_image, used_range


def picture(width=40, height=24, seed=0):
    """Smooth, so that JPEG keeps it nearly unchanged, and different in each corner, so that a turn shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


# ---- reading


def test_png_comes_back_exactly(tmp_path):
    image = picture()
    (tmp_path / "a.png").write_bytes(encode(image, "PNG"))
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, image)
    assert image_size(tmp_path / "a.png") == (40, 24)


def test_channels_come_in_rgb_order(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 250
    (tmp_path / "red.jpg").write_bytes(encode(red, quality=95))
    assert read_image(tmp_path / "red.jpg").reshape(-1, 3).mean(0) == pytest.approx([250, 0, 0], abs=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, kind, orientation):
    data = encode(picture(), kind, exif=exif(orientation))
    (tmp_path / "a").write_bytes(data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    read = read_image(tmp_path / "a")
    np.testing.assert_array_equal(read, expected)
    assert image_size(tmp_path / "a") == (read.shape[1], read.shape[0])
    assert image_size(tmp_path / "a") == ((24, 40) if orientation >= 5 else (40, 24))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_ignored(tmp_path, orientation):
    (tmp_path / "a.png").write_bytes(encode(picture(), "PNG", exif=exif(orientation)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())


def test_damaged_exif_does_not_hide_the_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())


def test_grey_is_repeated(tmp_path):
    grey = picture()[..., 0]
    (tmp_path / "a.png").write_bytes(encode(grey, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    grey = picture()[..., 0]
    (tmp_path / "a.png").write_bytes(encode(grey.astype(np.uint16) * 256 + 77, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped(tmp_path):
    image = picture()
    alpha = np.dstack((image, np.full((24, 40), 3, np.uint8)))
    (tmp_path / "a.png").write_bytes(encode(alpha, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    (tmp_path / "b.png").write_bytes(encode(Image.fromarray(alpha).convert("LA"), "PNG"))
    assert read_image(tmp_path / "b.png").shape == (24, 40, 3)


def test_palette_and_one_bit_become_rgb(tmp_path):
    palette = Image.fromarray(picture()).quantize(8)
    (tmp_path / "a.png").write_bytes(encode(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(picture()).convert("1")
    (tmp_path / "b.png").write_bytes(encode(bits, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 1], np.asarray(bits) * 255)


def test_cmyk_jpeg_has_the_colours_of_the_rgb_one(tmp_path):
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    (tmp_path / "a.jpg").write_bytes(encode(red.convert("CMYK"), quality=95))
    assert read_image(tmp_path / "a.jpg").reshape(-1, 3).mean(0) == pytest.approx([255, 0, 0], abs=4)


# ---- what cannot be read


def expect_error(path, *words):
    with pytest.raises(FastRCNNError) as error:
        read_image(path)
    for word in (str(path), *words):
        assert word in str(error.value)


def test_missing_and_foreign_files_are_named(tmp_path):
    expect_error(tmp_path / "none.jpg", "no such image")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    expect_error(tmp_path / "text.jpg", "not a picture")
    (tmp_path / "empty.jpg").touch()
    expect_error(tmp_path / "empty.jpg", "not a picture")
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    expect_error(tmp_path / "a.eps", "not a picture")
    expect_error(tmp_path, "cannot be read")


THUMBNAIL = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + encode(picture(8, 8))  # a whole JPEG within the header


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(), quality=90),
        encode(picture(), progressive=True),
        encode(picture(), restart_marker_rows=1),
        encode(picture(), exif=THUMBNAIL),
        encode(picture(), "PNG"),
    ],
    ids=["baseline", "progressive", "restart", "thumbnail", "png"],
)
def test_a_file_cut_anywhere_is_found(tmp_path, data):
    path = tmp_path / "a"
    path.write_bytes(data)
    read_image(path)
    for length in {*range(2, len(data) - 1, max(len(data) // 150, 1)), len(data) - 12, len(data) - 2, len(data) - 1}:
        if data.startswith(b"\x89PNG") and length > len(data) - 5:
            continue  # only the checksum of the empty last chunk is gone
        for tail in (b"", bytes(len(data) - length)):  # a download may also have set aside the space for the rest
            path.write_bytes(data[:length] + tail)
            expect_error(path)


def test_a_cut_webp_or_bmp_is_found(tmp_path):
    for kind in ("WEBP", "BMP"):
        data = encode(picture(), kind)
        for length in range(4, len(data) - 1, 40):
            (tmp_path / "a").write_bytes(data[:length])
            expect_error(tmp_path / "a")


def png_of(side):
    """The header of a PNG of this many pixels, and next to no pixels."""
    data = bytearray(encode(np.zeros((4, 4), np.uint8), "PNG"))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return data


def test_decompression_bombs_are_refused_at_pillow_s_own_limit(tmp_path):
    (tmp_path / "large.png").write_bytes(png_of(12_000))  # Pillow warns above 90 million pixels
    assert image_size(tmp_path / "large.png") == (12_000, 12_000)
    (tmp_path / "bomb.png").write_bytes(png_of(13_400))  # and raises above twice that
    expect_error(tmp_path / "bomb.png", "decompression bomb", str(2 * Image.MAX_IMAGE_PIXELS))
    with pytest.raises(FastRCNNError, match="bomb.png: .*decompression bomb"):
        image_size(tmp_path / "bomb.png")


# ---- kinds of pictures


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_suffix_may_lie(tmp_path, suffix):
    for kind in ("PNG", "BMP", "TIFF"):
        (tmp_path / f"a{suffix}").write_bytes(encode(picture(), kind))
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), picture())


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff_is_read_and_turned_upright(tmp_path, compression):
    path = tmp_path / "a.tif"
    path.write_bytes(encode(picture(), "TIFF", compression=compression))
    np.testing.assert_array_equal(read_image(path), picture())
    path.write_bytes(encode(picture(), "TIFF", compression=compression, exif=exif(6)))
    assert image_size(path) == (24, 40)
    np.testing.assert_array_equal(read_image(path), np.rot90(picture(), -1))


def test_a_gif_still_is_read(tmp_path):
    still = Image.fromarray(picture()).quantize(64)
    (tmp_path / "a.gif").write_bytes(encode(still, "GIF"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.asarray(still.convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("GIF", "animation of 3 frames"), ("WEBP", "animation of 3 frames"), ("PNG", "animation"), ("TIFF", "3 pages")],
)
def test_several_pictures_in_a_file_are_refused(tmp_path, kind, words):
    frames = [Image.fromarray(picture() + np.uint8(shift)) for shift in (0, 60, 120)]
    path = tmp_path / "a"
    path.write_bytes(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    expect_error(path, words, "save the one you mean")
    with pytest.raises(FastRCNNError, match=words):
        image_size(path)


def test_a_tiff_may_hold_a_smaller_copy_of_its_picture(tmp_path):
    thumbnail = Image.fromarray(picture(20, 12))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    path = tmp_path / "a.tif"
    path.write_bytes(encode(Image.fromarray(picture()), "TIFF", save_all=True, append_images=[thumbnail]))
    np.testing.assert_array_equal(read_image(path), picture())


def test_the_first_picture_of_an_mpo_is_the_photograph(tmp_path):
    frames = [Image.fromarray(picture()), Image.fromarray(picture(20, 12))]
    (tmp_path / "a.jpg").write_bytes(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert read_image(tmp_path / "a.jpg").shape == (24, 40, 3)


def test_pixels_of_32_bits_are_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(encode(picture()[..., 0].astype(np.float32), "TIFF"))
    expect_error(tmp_path / "a.tif", "32 bits", "8 bits")


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 3)])
def test_sixteen_bits_that_use_twelve_are_noticed(tmp_path, kind, shape):
    path = tmp_path / f"a.{kind}"
    values = np.random.default_rng(0).integers(256, 3000, shape, np.uint16)
    values.flat[:3] = 3000
    path.write_bytes(cv2.imencode(f".{kind}", values)[1].tobytes())
    low, high = used_range(path)
    assert 256 <= low < 512 and 3000 <= high < 3072
    path.write_bytes(cv2.imencode(f".{kind}", values * np.uint16(16))[1].tobytes())
    assert used_range(path) is None
    path.write_bytes(encode(picture() // 16, "PNG"))  # 8 bits may be dark
    assert used_range(path) is None


SEEDS = [
    encode(picture(), exif=exif(6)),
    encode(picture(), progressive=True),
    encode(picture(), "PNG", exif=exif(3)),
    encode(Image.fromarray(picture()).quantize(8), "PNG"),
    encode(picture(), "WEBP"),
    encode(picture(), "BMP"),
    encode(picture(), "TIFF", compression="tiff_lzw", exif=exif(6)),
    encode(Image.fromarray(picture()).quantize(8), "GIF"),
]


@fuzzing
@given(data=mutated(SEEDS))
def test_mutated_images_are_read_or_refused(tmp_path, data):
    path = tmp_path / "mutated"
    path.write_bytes(data)
    try:
        width, height = image_size(path)
    except FastRCNNError as e:
        assert str(path) in str(e)
        return
    try:
        assert read_image(path).shape == (height, width, 3)
    except FastRCNNError as e:
        assert str(path) in str(e)


# ---- scaling


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(500, 375, 1.6), (375, 500, 1.6), (500, 333, 600 / 333), (500, 300, 2.0), (500, 299, 2.0), (1000, 100, 1.0)],
)
def test_scale_takes_the_short_side_unless_the_long_one_exceeds_its_limit(width, height, scale):
    assert image_scale(width, height, 600, 1000) == scale


def test_the_limit_is_compared_after_rounding():
    # 600 / 600 * 1000.4 rounds to 1000 and is allowed: the case that tells `round` from a plain comparison.
    assert image_scale(2501, 1500, 600, 1000) == 600 / 1500
    assert image_scale(2502, 1500, 600, 1000) == 1000 / 2502


MEAN = (122.7717, 115.9465, 102.9801)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(500, 375), (500, 333), (37, 51)])
def test_prepared_image_is_the_original_recipe(size, flip):
    image = picture(*size)
    scale = image_scale(*size, 600, 1000)
    expected = image[:, ::-1].astype(np.float32) if flip else image.astype(np.float32)
    expected = cv2.resize(expected - np.float32(MEAN), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    prepared = prepare_image(image, scale, MEAN, (1, 1, 1), flip)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared, torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-3)
    assert prepared[None].is_contiguous(memory_format=torch.channels_last)


def test_std_divides_each_channel():
    image = picture()
    plain, divided = (prepare_image(image, 2.0, MEAN, d) for d in ((1, 1, 1), (2, 4, 8)))
    torch.testing.assert_close(divided * torch.tensor([2.0, 4.0, 8.0])[:, None, None], plain, rtol=1e-5, atol=1e-4)


def test_the_image_given_is_left_alone():
    image = picture()
    prepare_image(image, 1.0, MEAN, (1, 1, 1), flip=True)
    np.testing.assert_array_equal(image, picture())


def test_a_picture_thinner_than_a_scaled_pixel_keeps_one():
    prepared = prepare_image(np.full((1, 5000, 3), 200, np.uint8), image_scale(5000, 1, 600, 1000), MEAN, (1, 1, 1))
    assert prepared.shape == (3, 1, 1000)
    assert torch.allclose(prepared[0], torch.tensor(200 - MEAN[0]))


def test_a_prepared_image_travels_between_processes():
    prepared = prepare_image(picture(), 1.5, MEAN, (1, 1, 1))
    copy = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(copy, prepared) and copy.stride() == prepared.stride()
