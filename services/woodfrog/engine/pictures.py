"""Pictures that come in requests, as data: URLs. What decoding one takes is bounded, whatever the bytes say."""

import base64
import io
import struct
import warnings
import zlib

# All four here: `Image.open` would import every plugin that Pillow has, in the first request.
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ExifTags import Base

from woodfrog.errors import InvalidArgument

BYTES_MAX = 6 << 20  # of a file
PIXELS_MAX = 25_000_000  # 100 MB in Pillow's memory, twice that while it is converted
SIDES_MAX = 100  # times: models scale the shorter side up, and the longer one with it
SCANS_MAX = (
    50  # of a JPEG, about ten are common; each is a pass over all pixels for a few bytes of file
)
_PLUGINS = (PngImagePlugin, JpegImagePlugin, WebPImagePlugin, GifImagePlugin)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_SCAN = b"\xff\xda"
_BASE64 = ";base64,"
_HEAD_MAX = 200
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of EXIF's orientation
SMALL_SIZE = (128, 32)  # of a picture with few tiles, where a model cuts it into tiles

Image.MAX_IMAGE_PIXELS = PIXELS_MAX


def decode(data_url: object, param: str, pixels_max: int = PIXELS_MAX) -> Image.Image:
    """The picture in RGB, upright as its EXIF says; of an animation the first. Raises InvalidArgument naming `param`."""
    data = _bytes(data_url, param)
    if data.startswith(b"\xff\xd8") and data.count(_SCAN) > SCANS_MAX:
        raise _bad(param, f"is a JPEG of more than {SCANS_MAX} scans; save it as a plain one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if max(width, height) > SIDES_MAX * min(width, height):
                    raise _bad(param, f"has one side over {SIDES_MAX} times as long as the other")
                if width * height > pixels_max:
                    raise _bad(
                        param,
                        f"is {width} x {height} pixels, {pixels_max} are left in this request; scale it down",
                    )
                turn = _TURNS.get(image.getexif().get(Base.Orientation, 1))
                upright = image.convert("RGB")
                return upright if turn is None else upright.transpose(turn)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _bad(param, f"has more than {PIXELS_MAX} pixels; scale it down") from None
    except _BROKEN:
        raise _bad(param, "is not a whole PNG, JPEG, WebP or GIF file") from None


def pattern(width: int, height: int) -> str:
    """A picture as a data URL, always the same, for whoever must ask something."""
    rows = b"".join(
        bytes([0, *(value & 255 for x in range(width) for value in (x & 240, 8 * y, 128))])
        for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _bytes(data_url: object, param: str) -> bytes:
    if not isinstance(data_url, str):
        raise _bad(param, 'is a text "data:image/png;base64,..."')
    head = data_url[:_HEAD_MAX]
    if head[:8].lower().startswith(("http://", "https://")):
        raise _bad(param, "is an address; nothing is fetched: send the picture as a data: URL")
    place = head.find(_BASE64)
    if not head[:5].lower() == "data:" or place < 0:
        raise _bad(param, 'is no picture: send "data:image/png;base64,..."')
    encoded = data_url[place + len(_BASE64) :]
    if len(encoded) > -(-BYTES_MAX // 3) * 4:
        raise _bad(param, f"is over {BYTES_MAX} bytes; scale it down")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise _bad(param, "is not valid base64") from None


def _bad(param: str, what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_VALUE", f"'{param}' {what}", param=param)
