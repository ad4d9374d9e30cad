"""Images whose bytes nobody vouches for: decoded alike everywhere, or refused by name."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from interlace.data.images import MAX_PIXELS, ImageDecodeError, decode_image, image_format
from tests.unit.pictures import bomb, encoded


def refusal(data):
    """Return why an image is refused, None if it is not."""
    try:
        decode_image(data)
    except ImageDecodeError as error:
        return error.reason
    return None


LENIENT = {"MAX_IMAGE_PIXELS": 1e9, "LOAD_TRUNCATED_IMAGES": True}
UNLIMITED = {"MAX_IMAGE_PIXELS": None, "LOAD_TRUNCATED_IMAGES": False}
STRICT = {"MAX_IMAGE_PIXELS": 10, "LOAD_TRUNCATED_IMAGES": False}


def set_pillow(monkeypatch, values):
    """Set what Pillow has for the whole process, as other packages do when they are imported."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", values["MAX_IMAGE_PIXELS"])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", values["LOAD_TRUNCATED_IMAGES"])


@pytest.mark.parametrize("values", [None, LENIENT, UNLIMITED, STRICT])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(monkeypatch, values):
    if values is not None:
        set_pillow(monkeypatch, values)
    assert MAX_PIXELS == 89_478_485
    for side in (9460, 10_000, 60_000):  # just too many, what Pillow warns of, what it refuses
        assert refusal(bomb(side)) == "too_many_pixels"
    # Not too many; there is nothing to unpack.
    assert refusal(bomb(9459)) == "undecodable_image"


@pytest.mark.parametrize("values", [LENIENT, UNLIMITED, STRICT])
def test_what_other_packages_set_pillow_to_decides_nothing_and_stays_as_it_was(monkeypatch, values):
    good = [encoded(Image.new("RGB", (40, 30), "blue"), format) for format in ("JPEG", "PNG")]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    formats = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    torn = [encoded(Image.fromarray(noise), format) for format in formats]
    torn = [data[: len(data) // 2] for data in torn]
    set_pillow(monkeypatch, values)
    for data in good:
        assert decode_image(data).size == (40, 30)
    for data, format in zip(torn, formats, strict=True):
        assert refusal(data) == "undecodable_image", format
    assert values["MAX_IMAGE_PIXELS"] == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is values["LOAD_TRUNCATED_IMAGES"]


def test_threads_that_decode_at_once_agree_and_leave_pillow_as_they_found_it(monkeypatch):
    set_pillow(monkeypatch, LENIENT)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    files = [whole, whole[: len(whole) // 2], bomb(10_000)] * 100

    def judge(data):
        return refusal(data) or decode_image(data).size

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(judge, files)) == [
            (64, 64), "undecodable_image", "too_many_pixels",
        ] * 100  # fmt: skip
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (1e9, True)


def test_threads_that_decode_at_once_leave_the_filters_of_warnings_as_they_were():
    before = list(warnings.filters)
    data = encoded(Image.new("RGB", (40, 30)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_image, [data] * 300))
    assert warnings.filters == before


def test_the_format_is_read_from_the_head_alone():
    data = encoded(Image.effect_noise((200, 200), 50), "JPEG")
    assert image_format(data) == image_format(data[: len(data) // 2]) == "JPEG"
    for data, name in (
        (b"", "missing_image"), (b"root:x:0:0", "undecodable_image"), (bomb(60_000), "too_many_pixels"),
    ):  # fmt: skip
        with pytest.raises(ImageDecodeError) as caught:
            image_format(data)
        assert caught.value.reason == name


def pixel(data, at=(0, 0)):
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    return decoded.getpixel(at)


def near(left, right):
    return all(abs(a - b) <= 3 for a, b in zip(left, right, strict=True))


def test_cmyk_becomes_the_colour_it_prints():
    assert near(pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")), (254, 0, 0))


def test_what_is_transparent_is_white():
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert pixel(encoded(Image.new(mode, (4, 4), colour))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    data = encoded(palette, transparency=0)
    assert (pixel(data), pixel(data, (1, 1))) == ((255, 255, 255), (0, 0, 255))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(format):
    values = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), format)
    assert [pixel(data, (x, 0))[0] for x in range(4)] == [0, 0x40, 0x80, 0xFF]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-5.0, 100.0, np.nan]], np.float32), [0, 100, 0]),
        (np.array([[0, 1, 255]], np.int32), [0, 1, 255]),
        (np.array([[-1, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 500_000, 1_000_000]], np.int32), [0, 128, 255]),
        (np.zeros((1, 3), np.int32), [0, 0, 0]),
    ],
)
def test_32_bits_are_scaled_to_what_they_hold(values, expected):
    data = encoded(Image.fromarray(values), "TIFF")
    assert [pixel(data, (x, 0))[0] for x in range(3)] == expected


WIDE = [
    (np.uint16, 65_535), (np.int32, 200), (np.int32, 50_000), (np.int32, 2_000_000_000),
    (np.float32, 1), (np.float32, 250), (np.float32, 60_000), (np.float32, 1e30),
]  # fmt: skip


@pytest.mark.parametrize(("size", "tile"), [((7, 90), 37), ((90, 7), 37), ((64, 64), 4096)])
def test_large_images_are_converted_tile_by_tile_as_if_at_once(monkeypatch, size, tile):
    monkeypatch.setattr("interlace.data.images._TILE", tile)
    width, height = size
    noise = np.random.default_rng(0)
    for dtype, high in WIDE:
        values = (noise.random((height, width)) * high).astype(dtype)
        values[-1, -1] = high  # what all others are scaled by is in the last tile
        if dtype is np.uint16:
            expected = values >> 8
        else:
            full = next((n for n in (1, 255, 65_535) if n >= high), float(values.max()))
            expected = (values.astype(np.float64) * (255 / full)).round()
        decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))
        assert (decoded == expected.astype(np.uint8)[..., None]).all()
    colours = Image.fromarray(noise.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    on_white = Image.new("RGBA", size, "white")
    on_white.alpha_composite(colours)
    decoded = decode_image(encoded(colours))
    assert (np.asarray(decoded) == np.asarray(on_white)[..., :3]).all()


PEAK = """
import sys
from interlace.data.images import decode_image
def peak():
    lines = open("/proc/self/status").read()
    return 1024 * int(lines.split("VmHWM:")[1].split()[0])
data = sys.stdin.buffer.read()
before = peak()
decode_image(data)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("mode", "format"), [("F", "TIFF"), ("I", "TIFF"), ("CMYK", "TIFF"), ("RGBA", "PNG")]
)
def test_a_bomb_within_the_limit_takes_eight_bytes_a_pixel(mode, format):
    side = 3000
    options = {"compression": "tiff_adobe_deflate"} if format == "TIFF" else {"compress_level": 1}
    data = encoded(Image.new(mode, (side, side)), format, **options)
    assert len(data) < 1_000_000
    child = subprocess.run(
        [sys.executable, "-c", PEAK], input=data, stdout=subprocess.PIPE, check=True
    )
    assert int(child.stdout) < 8 * side**2 + 40_000_000


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert pixel(data) == (255, 0, 0), format


def test_a_machine_out_of_memory_is_no_fault_of_the_image(monkeypatch):
    def full(image):
        raise MemoryError

    monkeypatch.setattr("interlace.data.images._to_rgb", full)
    with pytest.raises(MemoryError):
        decode_image(encoded(Image.new("RGB", (4, 4))))


def test_photographs_are_turned_upright():
    lying = Image.new("RGB", (8, 4), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    assert decode_image(encoded(lying, exif=exif)).size == (4, 8)


def test_no_outside_program_is_asked_to_draw(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", refuse)
    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.raises(ImageDecodeError, match="in none of the formats"):
        decode_image(encoded(Image.new("RGB", (9, 9)), "EPS"))


@pytest.mark.parametrize(
    "format", ["AVIF", "BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
)
def test_common_formats_are_read(format):
    assert near(pixel(encoded(Image.new("RGB", (16, 16), (200, 30, 40)), format)), (200, 30, 40))
