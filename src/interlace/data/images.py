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
        return _to_rgb(ImageOps.exif_transpose(image))


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
    except ImageDecodeError:
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
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Return grey values scaled to 0-255: 16 bits by their depth, wider ones by what they hold."""
    if values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0).clip(min=0)
    top = values.max()
    full = next((scale for scale in scales if top <= scale), top)
    return (values * (255 / full)).round().astype(np.uint8)
