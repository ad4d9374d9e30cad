"""Decode the bytes of one image, or say why that cannot be done."""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError


class ImageDecodeError(ValueError):
    """The bytes are not an image that can be opened within Pillow's own size limit."""


def decode_image(data: bytes | None) -> Image.Image:
    """Return the image in `data` as RGB, turned upright by its EXIF orientation.

    A file that announces more pixels than Pillow's decompression-bomb limit is refused before it
    is unpacked. Raises `ImageDecodeError`.
    """
    if not data:
        raise ImageDecodeError("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageDecodeError(f"too many pixels: {error}") from error
    except UnidentifiedImageError as error:  # its own words name an address in memory
        raise ImageDecodeError("UnidentifiedImageError: in no format that Pillow knows") from error
    except Exception as error:
        # Pillow's format plugins raise what they like: OSError, SyntaxError, struct.error, KeyError.
        raise ImageDecodeError(f"{type(error).__name__}: {error}") from error
