"""Files as phones and editors write them: longer, shorter or odder than the image in them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from handlers.errors import InvalidRequest
from handlers.imaging.documents import Document, read_document
from handlers.imaging.files import ImageFile, open_image
from handlers.imaging.jpeg import still_image
from handlers.imaging.png import needed_chunks
from tests.support.cases import case, case_image, profile_of
from tests.support.samples import file_bytes, sample_image

P3 = profile_of("icc_p3.jpg")


def opened(data: bytes) -> ImageFile:
    return open_image(data, "init_image", 10**6)


def read(data: bytes) -> Document:
    return read_document(opened(data), "init_image")[0]


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def with_chunk(extra: bytes, image: Image.Image | None = None, **options: object) -> bytes:
    data = file_bytes(image or sample_image(), **options)
    return data[:33] + extra + data[33:]  # behind IHDR


def test_bytes_behind_the_images_end_do_not_count() -> None:
    data = case("motion_photo.jpg")
    still, complete = still_image(data, "init_image")
    assert complete and still.endswith(b"\xff\xd9") and len(still) < len(data)
    assert np.array_equal(read(data).image, case_image("motion_photo.jpg")) and not opened(data).warnings
    # a video has every pair of bytes, those of a scan's marker too
    assert read(data + b"\xff\xda" * 1000).image.size == (64, 48)


def test_the_first_image_of_several_is_taken() -> None:
    first, second = file_bytes(sample_image(), "JPEG"), file_bytes(sample_image(32, 32), "JPEG")
    assert read(first + second).image.size == (64, 64)
    frames = [sample_image(seed=1), sample_image(seed=2)]
    mpo = file_bytes(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(mpo).image, read(file_bytes(frames[0], "JPEG")).image)
    for format in ("GIF", "TIFF", "PNG", "WEBP", "AVIF"):
        frames = [sample_image(seed=1), sample_image(seed=2)]
        data = file_bytes(frames[0], format, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(read(data).image).astype(int) - np.asarray(frames[0])).mean() < 25


def test_a_preview_within_the_head_is_not_the_image() -> None:
    exif = b"Exif\0\0" + file_bytes(sample_image(16, 16), "JPEG")
    data = file_bytes(sample_image(), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert still_image(data, "init_image") == (data, True)


def test_a_jpeg_that_lost_its_last_bytes_is_taken_with_a_warning() -> None:
    whole = file_bytes(sample_image(256, 256), "JPEG")
    for lost in (1, 2, 200):
        file = opened(whole[:-lost])
        assert file.warnings == ("init_image lost the end of its file: its last rows may be grey.",)
        assert np.array_equal(np.asarray(file.image)[:200], np.asarray(opened(whole).image)[:200])
    for kept in (0.3, 0.7):
        with pytest.raises(InvalidRequest, match="init_image is damaged or incomplete"):
            opened(whole[: int(len(whole) * kept)])


def test_a_flat_jpeg_that_lost_its_end_is_not_taken_for_half_an_image() -> None:
    assert opened(file_bytes(Image.new("RGB", (256, 256), "white"), "JPEG")[:-2]).warnings


def test_megabytes_of_texts_are_skipped() -> None:
    file = opened(case("png_long_xmp.png"))
    assert file.image.size[0] > 0 and file.warnings == ()
    zipped = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
    assert np.array_equal(read(with_chunk(zipped)).image, sample_image())


@pytest.mark.parametrize("kind", [b"tEXt", b"tIME", b"prVt"])
def test_a_wrong_sum_of_a_chunk_without_meaning_is_ignored(kind: bytes) -> None:
    file = opened(with_chunk(chunk(kind, b"Comment\0text", crc=1)))
    assert np.array_equal(file.image, sample_image()) and file.warnings == ()


def test_the_first_side_chunk_of_a_kind_counts_and_no_other_is_unpacked() -> None:
    first, other = (chunk(b"iCCP", b"name\0\0" + zlib.compress(profile)) for profile in (P3, bytes(900_000)))
    data = with_chunk(first + 50 * other + 3 * chunk(b"eXIf", b""))
    file = opened(data)
    assert file.profile == P3 and needed_chunks(data, "init_image", []).count(b"iCCP") == 1
    assert file.warnings == ("init_image has several iCCP, eXIf chunks: the first one counts.",)


@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(128)), crc=1),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iCCP", b"name\0\0no zlib"),
        chunk(b"iCCP", b"no end"),
    ],
)
def test_a_damaged_profile_is_ignored_with_a_warning(damaged: bytes) -> None:
    file = opened(with_chunk(damaged))
    assert np.array_equal(file.image, sample_image()) and file.profile is None
    assert file.warnings == ("init_image has a damaged or too long iCCP chunk, which is ignored.",)


def test_a_wrong_sum_of_the_image_itself_is_damage() -> None:
    data = bytearray(file_bytes(sample_image()))
    data[data.index(b"IDAT") + 100] ^= 255
    with pytest.raises(InvalidRequest, match="damaged"):
        opened(bytes(data))


def test_what_is_said_about_an_image_is_its_profile_and_its_resolution() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    file = opened(file_bytes(sample_image(), dpi=(300, 150), exif=exif, icc_profile=b"profile"))
    assert file.profile == b"profile" and file.image.info == {}
    assert file.dpi is not None and [round(value) for value in file.dpi] == [300, 150]
    exif[0x0112] = 6
    turned = opened(file_bytes(sample_image(40, 20), dpi=(300, 150), exif=exif))
    assert turned.image.size == (20, 40) and turned.dpi is not None and round(turned.dpi[0]) == 150


def test_a_tiff_of_an_editor() -> None:
    assert np.array_equal(read(case("chart.tif")).image, case_image("chart.png"))


def test_a_colour_of_16_bits_may_stand_for_transparency() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 4660, 4660, 4660, 60_000, 30_000, 0) for _ in range(2))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">3H", 4660, 4660, 4660)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )
    assert np.asarray(read(data).image)[0].tolist() == [[18, 18, 18, 0], [234, 117, 0, 255]]
