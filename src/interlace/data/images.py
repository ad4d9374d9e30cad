"""Decode the bytes of one image, or say why that cannot be done."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened: rasters only. Pillow hands others, EPS above all, to outside programs."""


class ImageDecodeError(ValueError):
    """The bytes are no image, or one beyond Pillow's own size limit; `reason` is its short name."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_image(data: bytes | None) -> Image.Image:
    """Return the image in `data` as RGB, turned upright by its EXIF orientation.

    Of an animation the first frame; transparent parts on white (as Qwen's own `qwen_vl_utils` has
    them; the colour stored below full transparency is arbitrary and mostly black); CMYK, palettes
    and grey by Pillow's conversion; 16 and 32 bits a channel scaled to 8, not clipped. A file that
    announces more pixels than Pillow's decompression-bomb limit is refused before it is unpacked.

    Raises `ImageDecodeError` with the reason `missing_image` (no bytes), `too_many_pixels` or
    `undecodable_image`.
    """
    if not data:
        raise ImageDecodeError("missing_image", "no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_pixels(image)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
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


def _check_pixels(image: Image.Image) -> None:
    """Refuse what Pillow only warns of, without a warning filter that other threads would share."""
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise ImageDecodeError("too_many_pixels", f"{pixels} pixels; at most {most} are unpacked")


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
