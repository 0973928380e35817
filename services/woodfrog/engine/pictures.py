"""Pictures that come with a chat: data URLs only, and never larger than what was promised."""

import base64
import binascii
import io
import re
import struct
import zlib
from typing import Any, NoReturn

from woodfrog.errors import InvalidArgument

PIXELS_MAX = 1 << 24  # of all pictures of one request; as RGB 50 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # OpenAI's
SMALL_SIZE = (128, 32)  # of a picture with few tiles, where a model cuts it into tiles
_SCANS_MAX = 64  # of a JPEG: each takes its time, whatever is in it
_SCAN = b"\xff\xda"
_HEAD = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error, zlib.error)  # fmt: skip


def opened(url: str, place: str, pixels_max: int = PIXELS_MAX) -> Any:
    """A PIL image in RGB, upright. Raises InvalidArgument naming `place`; what is too large is never decoded."""
    import PIL.Image
    import PIL.ImageOps

    head = _HEAD.match(url)
    if head is None:
        _bad(
            place,
            'is a data URL, "data:image/png;base64,...": this engine fetches nothing from the network',
        )
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        _bad(place, "is not base64 after its comma")
    try:
        picture: Any = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > pixels_max:
            _bad(
                place,
                f"is {picture.width} x {picture.height} pixels, but {pixels_max} are left of the {PIXELS_MAX} that"
                " one request may have; send it smaller",
            )
        if picture.format == "JPEG" and data.count(_SCAN) > _SCANS_MAX:
            _bad(place, f"is a JPEG of more than {_SCANS_MAX} scans")
        picture = PIL.ImageOps.exif_transpose(picture)
        return picture.convert("RGB")
    except (*_BROKEN, PIL.Image.DecompressionBombError):
        _bad(place, f"cannot be read as one of {', '.join(FORMATS)}")


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


def _bad(place: str, what: str) -> NoReturn:
    raise InvalidArgument("INVALID_IMAGE", f"'{place}' {what}", param=place)
