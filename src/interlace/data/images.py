"""Decode the bytes of one image, or say why that cannot be done."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened: rasters only. Pillow hands others, EPS above all, to outside programs."""

MAX_PIXELS = 1024**3 // 4 // 3
"""Pixels of an image, at most: a quarter of a GiB in RGB, the limit that Pillow ships with."""


_TILE = 1024**2  # pixels


class ImageDecodeError(ValueError):
    """The bytes are no image, or one beyond `MAX_PIXELS`; `reason` is its short name."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_image(data: bytes | None) -> Image.Image:
    """Return the image in `data` as RGB, turned upright by its EXIF orientation.

    Of an animation the first frame; transparent parts on white (as Qwen's own `qwen_vl_utils` has
    them; the colour stored below full transparency is arbitrary and mostly black); CMYK, palettes
    and grey by Pillow's conversion; 16 and 32 bits a channel scaled to 8, not clipped. A file that
    announces more than `MAX_PIXELS` is refused before it is unpacked, and one that ends too early
    is refused, whatever other packages have set Pillow to.

    Takes 8 bytes a pixel and 20 MB at most, 0.75 GB for `MAX_PIXELS` of them (the unpacked image and
    the result, or the image and one turned by EXIF), where Pillow's decoder takes no more itself:
    those of AVIF, WebP and JPEG2000 do, 1.1, 1.5 and 2.2 GB for as many with transparency.

    Raises `ImageDecodeError` with the reason `missing_image` (no bytes), `too_many_pixels` or
    `undecodable_image`.
    """
    with _opened(data) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:  # of which Pillow only warns up to twice as many
            raise ImageDecodeError(
                "too_many_pixels", f"{pixels} pixels; at most {MAX_PIXELS} are unpacked"
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # else a copy, be it upright already
        return _to_rgb(image)


def image_format(data: bytes | None) -> str:
    """Return Pillow's name of the format of `data`, which is one of `FORMATS` or a kind of one.

    Only the head is read. Raises `ImageDecodeError` as `decode_image` does.
    """
    with _opened(data) as image:
        return str(image.format)


@contextmanager
def _opened(data: bytes | None) -> Iterator[Image.Image]:
    """Open an image for the block; whatever is raised in it leaves as an `ImageDecodeError`."""
    if not data:
        raise ImageDecodeError("missing_image", "no bytes")
    try:
        with _PILLOW, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (ImageDecodeError, MemoryError):  # the latter says nothing about the image
        raise
    except Image.DecompressionBombError as error:
        raise ImageDecodeError("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:  # its own words name an address in memory
        detail = "UnidentifiedImageError: in none of the formats that are read"
        raise ImageDecodeError("undecodable_image", detail) from error
    except Exception as error:
        # Pillow's format plugins raise what they like: OSError, SyntaxError, struct.error, KeyError.
        detail = f"{type(error).__name__}: {error}"
        raise ImageDecodeError("undecodable_image", detail) from error


class _PillowAsShipped:
    """Pillow's process-wide settings as they ship, and no warnings, while any thread is in the block.

    Packages change them on import: VLMEvalKit allows 1e9 pixels, many a training script torn files.
    Which rows are kept must not hang on that. The last thread to leave puts back what was found;
    threads that use Pillow otherwise may meet the stricter settings meanwhile.
    """

    _SHIPPED: tuple[tuple[ModuleType, str, Any], ...] = (
        (Image, "MAX_IMAGE_PIXELS", MAX_PIXELS),
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._found: dict[str, Any] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            for module, name, shipped in self._SHIPPED:
                found = getattr(module, name)
                if found != shipped:
                    self._found[name] = found
                    setattr(module, name, shipped)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            self._filters.__exit__(None, None, None)
            for module, name, shipped in self._SHIPPED:
                # What was set anew meanwhile stays.
                if name in self._found and getattr(module, name) == shipped:
                    setattr(module, name, self._found[name])
            self._found.clear()


_PILLOW = _PillowAsShipped()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of tiles of at most `_TILE` pixels; what has to be copied is one at a time."""
    width = min(image.width, _TILE)
    height = _TILE // width
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            yield left, top, min(left + width, image.width), min(top + height, image.height)


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size)
    for box in _boxes(image):
        tile = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", tile.size, "white")
        white.alpha_composite(tile)
        canvas.paste(white.convert("RGB"), box)
    return canvas


def _scaled(image: Image.Image) -> Image.Image:
    """Return an image of one wide channel in grey, 0-255; `image` is closed.

    16 bits are scaled by their depth, wider ones by what they hold.
    """
    full = 0.0 if image.mode.startswith("I;16") else _full_scale(image)
    canvas = Image.new("L", image.size)
    for box in _boxes(image):
        values = np.asarray(image.crop(box))
        if full:
            values = _positive(values)
            values *= 255 / full
            values = values.round(out=values)
        else:
            values = values >> 8
        canvas.paste(Image.fromarray(values.astype(np.uint8)), box)
    image.close()  # four bytes a pixel, as the result takes
    return canvas


def _full_scale(image: Image.Image) -> float:
    """Return what is white: the least of 1 (fractions only), 8 bits, 16 bits and the largest value."""
    top = max(float(_positive(np.asarray(image.crop(box))).max()) for box in _boxes(image))
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((scale for scale in scales if top <= scale), top)


def _positive(values: np.ndarray) -> np.ndarray:
    """Return a copy in doubles, which hold 32 bits exactly; zero for what is negative or no number."""
    values = values.astype(np.float64)
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    return values.clip(min=0, out=values)
