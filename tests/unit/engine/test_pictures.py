"""Pictures in requests: every common file is read, and no file takes more than it may."""

import io
import struct
import zlib
from base64 import b64encode
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from woodfrog.engine import pictures
from woodfrog.errors import InvalidArgument

WRONG: list[Any] = [None, 5, [], {}, "", "frog", "data:", "data:image/png,abc", "iVBORw0KGgo="]
ALMOST: list[Any] = ["data:image/png;base64,", "data:image/png;base64,AAAA", "data:;base64,é", "data:;base64,A"]  # fmt: skip


def url(data: bytes) -> str:
    return "data:image/png;base64," + b64encode(data).decode()


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def halves(mode: str = "RGB") -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 16, 32, 32))
    return image.convert(mode)


def refusal(data_url: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        pictures.decode(data_url, "input[3]")
    assert caught.value.metadata["param"] == "input[3]"
    assert caught.value.message.startswith("'input[3]' ")
    return caught.value.message


def png(width: int, height: int) -> bytes:
    """Of black pixels, all of them there."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 9)
    chunks = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *((form, mode) for form in ("PNG", "WEBP") for mode in ("RGB", "RGBA")),
        *((form, "P") for form in ("PNG", "GIF")),
        *(("JPEG", mode) for mode in ("RGB", "CMYK")),
    ],
)
def test_every_form_becomes_rgb(form: str, mode: str) -> None:
    found = pictures.decode(url(file_of(halves(mode), form)), "input")
    assert (found.mode, found.size) == ("RGB", (32, 32))
    for place, wanted in (((5, 5), (255, 0, 0)), ((5, 27), (0, 0, 255))):
        pixel = found.getpixel(place)
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) < 12 for a, b in zip(pixel, wanted, strict=True))


def test_of_an_animation_the_first() -> None:
    data = file_of(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    assert pictures.decode(url(data), "input").getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright(form: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(halves().resize((32, 16)), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert pictures.decode(url(data), "input").tobytes() == upright.tobytes()


@pytest.mark.parametrize("value", [*WRONG, *ALMOST])
def test_what_is_no_picture_is_refused(value: Any) -> None:
    refusal(value)


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS"])
def test_nothing_is_fetched(scheme: str) -> None:
    assert "nothing is fetched" in refusal(f"{scheme}://example.org/frog.png;base64,AAAA")


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM", "ICO"])
def test_other_forms_are_refused(form: str) -> None:
    assert "PNG, JPEG, WebP or GIF" in refusal(url(file_of(halves(), form)))


@pytest.mark.parametrize("data", [png(5001, 5000), png(30_000, 30_000)])
def test_a_bomb_is_refused_by_its_head(data: bytes) -> None:
    assert len(data) < 200_000
    assert str(pictures.PIXELS_MAX) in refusal(url(data))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_a_large_picture_of_any_form_is_refused(form: str) -> None:
    side = 5001
    assert str(pictures.PIXELS_MAX) in refusal(url(file_of(Image.new("L", (side, side)), form)))


def test_a_gif_whose_frame_is_larger_than_it_says_is_refused() -> None:
    data = bytearray(file_of(Image.new("P", (32, 32)), "GIF"))
    place = data.index(b",", 13)
    data[place + 5 : place + 9] = struct.pack("<HH", 60_000, 60_000)
    assert str(pictures.PIXELS_MAX) in refusal(url(bytes(data)))


def test_a_strip_is_refused() -> None:
    """Scaled until its shorter side is a model's, it would have billions of pixels."""
    assert "times as long" in refusal(url(png(1_000_000, 1)))
    pictures.decode(url(png(100, 1)), "input")


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = file_of(halves(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    assert pictures.decode(url(data), "input").size == (32, 32)
    many = data[:-2] + data[scan : scan + 14] * pictures.SCANS_MAX + data[-2:]
    assert "scans" in refusal(url(many))


def test_a_file_of_too_many_bytes_is_refused_undecoded() -> None:
    assert "bytes" in refusal("data:image/png;base64," + "?" * (2 * pictures.BYTES_MAX))


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.data())
def test_a_damaged_file_is_a_picture_or_refused(form: str, data: st.DataObject) -> None:
    damaged = bytearray(file_of(halves(), form))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]
    with suppress(InvalidArgument):
        assert pictures.decode(url(bytes(damaged)), "input").mode == "RGB"
