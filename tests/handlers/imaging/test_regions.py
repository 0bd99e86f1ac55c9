"""Where crops lie, and at which size they are generated."""

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from handlers.imaging.regions import GAIN, MAX_CROPS, Box, Crop, plan
from handlers.imaging.sizes import ModelSizes

SD1 = ModelSizes((512, 512), 64, 1024)
FIXED = ModelSizes((256, 256), 64, 1024, drawn=256)


def a_mask(size: tuple[int, int], *boxes: Box) -> Image.Image:
    """White in `boxes`, whose right and bottom edges are outside, as Pillow has them."""
    mask = Image.new("L", size)
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


def only(crops: tuple[Crop, ...]) -> Crop:
    (crop,) = crops
    return crop


def test_a_black_mask_has_no_crop() -> None:
    assert plan(a_mask((500, 400)), None, SD1) == ()


def test_a_small_mask_in_a_photo_is_generated_at_the_native_size() -> None:
    box = 1350, 1000, 1650, 1300
    crop = only(plan(a_mask((3000, 2000), box), None, SD1))
    assert crop == Crop((1275, 925, 1725, 1375), (512, 512), box)  # a quarter of 300 around it


def test_a_tiny_mask_sees_32_pixels_around_it() -> None:
    crop = only(plan(a_mask((3000, 2000), (100, 100, 110, 110)), None, SD1))
    assert crop == Crop((68, 68, 142, 142), (512, 512), (100, 100, 110, 110))


def test_a_crop_at_an_edge_stays_within_the_image() -> None:
    crop = only(plan(a_mask((3000, 2000), (0, 1990, 10, 2000)), None, SD1))
    assert crop.box == (0, 1926, 74, 2000)


def test_a_model_of_one_size_generates_the_crop_at_it() -> None:
    crop = only(plan(a_mask((3000, 2000), (1000, 1000, 1100, 1050)), None, FIXED))
    assert crop.size == (256, 176) and crop.box[2] - crop.box[0] in (164, 165, 166)


def test_a_long_mask_is_shown_at_most_twice_as_long_as_wide() -> None:
    crop = only(plan(a_mask((3000, 2000), (500, 1000, 1300, 1010)), None, SD1))
    width, height = crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]
    assert width == 1200 and 590 <= height <= 610 and crop.size == (1024, 512)


def test_a_large_mask_in_an_image_of_the_models_size_is_generated_as_ever() -> None:
    for box in ((0, 0, 256, 512), (100, 100, 420, 420)):
        assert only(plan(a_mask((512, 512), box), None, SD1)) == Crop((0, 0, 512, 512), (512, 512), box)


def test_a_small_mask_in_an_image_of_the_models_size_is_enlarged() -> None:
    crop = only(plan(a_mask((512, 512), (226, 226, 286, 286)), None, SD1))
    assert crop.box == (194, 194, 318, 318) and crop.size == (512, 512)


def test_the_context_is_what_was_asked_for() -> None:
    mask = a_mask((3000, 2000), (1000, 1000, 1200, 1200))
    assert only(plan(mask, 0, SD1)).box == (1000, 1000, 1200, 1200)
    assert only(plan(mask, 300, SD1)).box == (700, 700, 1500, 1500)
    assert only(plan(mask, -1, SD1)) == Crop((0, 0, 3000, 2000), (1024, 680), (1000, 1000, 1200, 1200))
    assert only(plan(a_mask((64, 64), (0, 0, 32, 64)), 0, SD1)).box == (0, 0, 32, 64)


def test_distant_regions_have_crops_of_their_own() -> None:
    boxes = [(100, 100, 200, 200), (2700, 1700, 2800, 1800)]
    crops = plan(a_mask((3000, 2000), *boxes), None, SD1)
    assert sorted(crop.region for crop in crops) == boxes
    assert {crop.size for crop in crops} == {(512, 512)}


def test_near_regions_share_a_crop() -> None:
    crop = only(plan(a_mask((3000, 2000), (1000, 1000, 1050, 1050), (1300, 1100, 1350, 1150)), None, SD1))
    assert crop.region == (1000, 1000, 1350, 1150)
    # far apart, but the image has the model's size: a crop for each would show the model less and be no sharper
    assert len(plan(a_mask((512, 512), (0, 0, 40, 40), (470, 470, 512, 512)), None, SD1)) == 1


def test_a_ring_is_one_region() -> None:
    mask = a_mask((3000, 3000), (100, 100, 2900, 2900))
    mask.paste(0, (200, 200, 2800, 2800))
    mask.paste(255, (1490, 1490, 1510, 1510))  # whose box is within the ring's
    assert only(plan(mask, None, SD1)).region == (100, 100, 2900, 2900)


def test_many_regions_have_few_crops() -> None:
    corners = [(x, y, x + 20, y + 20) for x in (50, 900, 7900) for y in (50, 900, 5900)]
    crops = plan(a_mask((8000, 6000), *corners), None, SD1)
    assert len(crops) == MAX_CROPS
    for corner in corners:
        assert sum(contains(crop.region, corner) for crop in crops) == 1
    scattered = [(x, y, x + 20, y + 20) for x in range(50, 8000, 900) for y in range(50, 6000, 900)]
    assert len(plan(a_mask((8000, 6000), *scattered), None, SD1)) == 1


def contains(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


@st.composite
def masks(draw: st.DrawFn) -> Image.Image:
    width, height = draw(st.integers(1, 2500)), draw(st.integers(1, 2500))
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    return a_mask((width, height), *boxes)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    masks(),
    st.none() | st.integers(-1, 300),
    st.sampled_from([SD1, FIXED, ModelSizes((1024, 1024), 64, 1024), ModelSizes((64, 64), 64, 100)]),
)
def test_any_mask_is_covered_by_legal_crops(mask: Image.Image, padding: int | None, sizes: ModelSizes) -> None:
    crops = plan(mask, padding, sizes)
    whole = Crop.whole(mask.size, sizes.of_image(*mask.size))
    left = mask.copy()
    assert len(crops) <= MAX_CROPS
    for crop in crops:
        assert contains(whole.box, crop.box) and contains(crop.box, crop.region)
        for side in crop.size:
            assert side % 8 == 0 and sizes.low <= side <= sizes.high
        if padding is None and crop.box != whole.box:
            assert crop.scale >= GAIN * whole.scale
        assert left.crop(crop.region).getbbox() is not None  # no region is another's
        left.paste(0, crop.region)
    assert left.getbbox() is None
