import pytest

from handlers.imaging.sizes import ModelSizes

SD1 = ModelSizes((512, 512), 64, 1024)
FIXED = ModelSizes((128, 128), 64, 1024, drawn=128)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (128, 128)),
        ((512, 512), (128, 128)),
        ((64, 64), (128, 128)),
        ((768, 512), (128, 88)),
        ((300, 600), (64, 128)),
        ((1024, 64), (128, 64)),
    ],
)
def test_a_model_of_one_size_generates_the_shape_that_is_asked_for(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert FIXED.of_image(*size) == FIXED.of_crop(*size) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 333), (504, 336)),
        ((64, 64), (64, 64)),
        ((10, 3000), (64, 1024)),
        ((2048, 1024), (1024, 512)),
        ((1, 1), (64, 64)),
    ],
)
def test_a_whole_image_is_generated_at_a_legal_size_near_its_own(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert SD1.of_image(*size) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 60), (512, 512)),  # enlarged to the native area
        ((100, 200), (360, 728)),
        ((800, 600), (800, 600)),  # its own pixels
        ((2000, 1000), (1024, 512)),  # no more than the server generates
        ((10, 20), (360, 728)),
    ],
)
def test_a_crop_has_the_native_area_at_least(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert SD1.of_crop(*size) == expected


def test_a_crop_of_a_model_of_1024_pixels_stays_within_the_servers_limit() -> None:
    assert ModelSizes((1024, 1024), 64, 1024).of_crop(100, 200) == (512, 1024)
