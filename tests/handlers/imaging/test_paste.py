"""Generated crops back in their document: to the bit under black, opaque under white."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from handlers.imaging.colours import from_srgb
from handlers.imaging.documents import Document, read_document
from handlers.imaging.files import ImageFile
from handlers.imaging.masks import inverted, refine
from handlers.imaging.paste import paste, patch_of, regenerated
from handlers.imaging.regions import Crop, plan
from handlers.imaging.sizes import ModelSizes
from tests.support.cases import profile_of
from tests.support.samples import half_mask, sample_image

P3 = profile_of("icc_p3.jpg")
SIZES = ModelSizes((64, 64), 64, 256)
WHOLE = Crop.whole((64, 64), (64, 64))


def generated(crops: tuple[Crop, ...]) -> list[tuple[Crop, Image.Image]]:
    return [(crop, sample_image(*crop.size, seed=i + 1)) for i, crop in enumerate(crops)]


def test_the_result_of_the_models_size_is_pasted_as_it_is() -> None:
    init, result = sample_image(seed=1), sample_image(seed=2)
    for mask in (half_mask(), half_mask().filter(ImageFilter.GaussianBlur(9))):
        pasted = paste(Document(init), mask, [(WHOLE, result)], behind=False)
        assert np.array_equal(pasted, Image.composite(result, init, mask))


def test_a_crop_is_scaled_back_and_replaces_its_region_alone() -> None:
    init = sample_image(300, 200)
    crop, other = (
        Crop((50, 40, 114, 104), (128, 128), (60, 50, 80, 70)),
        Crop((200, 100, 232, 132), (64, 64), (210, 110, 220, 120)),
    )
    mask = Image.new("L", init.size, 255)
    pairs = [(crop, sample_image(128, 128, 1)), (other, sample_image(64, 64, 2))]
    pasted = paste(Document(init), mask, pairs, behind=False)
    expected = init.copy()
    expected.paste(pairs[0][1].resize((64, 64), Image.Resampling.LANCZOS).crop((10, 10, 30, 30)), (60, 50))
    expected.paste(pairs[1][1].resize((32, 32), Image.Resampling.LANCZOS).crop((10, 10, 20, 20)), (210, 110))
    assert np.array_equal(pasted, expected)


def test_the_generated_part_is_in_the_documents_colours() -> None:
    init, result = sample_image(seed=1), sample_image(seed=2)
    pasted = paste(Document(init, P3), half_mask(), [(WHOLE, result)], behind=False)
    assert np.array_equal(pasted, Image.composite(from_srgb(result, P3), init, half_mask()))


def transparent_edges(seed: int = 1) -> Document:
    """Alpha from 0 in its upper quarter to 255 in its lower half."""
    ramp = np.clip((np.arange(64) - 16) * 16, 0, 255).astype(np.uint8)
    image = sample_image(seed=seed)
    image.putalpha(Image.fromarray(np.repeat(ramp[:, None], 64, axis=1)))
    return read_document(ImageFile(image), "init_image")[0]


def test_what_is_generated_is_opaque_and_what_is_kept_keeps_its_alpha() -> None:
    document, result = transparent_edges(), sample_image(seed=2)
    pasted = np.asarray(paste(document, half_mask(), [(WHOLE, result)], behind=False))
    assert np.array_equal(pasted[:, 32:], np.asarray(document.image)[:, 32:])
    assert np.array_equal(pasted[:, :32, :3], np.asarray(result)[:, :32]) and (pasted[:, :32, 3] == 255).all()


def test_a_fade_from_nothing_has_the_generated_colour() -> None:
    nothing = Document(Image.new("RGBA", (64, 64)))
    mask = Image.linear_gradient("L").resize((64, 64))
    pasted = paste(nothing, mask, [(WHOLE, Image.new("RGB", (64, 64), (90, 160, 30)))], behind=False)
    assert np.array_equal(pasted.getchannel("A"), mask)
    visible = np.asarray(pasted)[np.asarray(mask) > 0][:, :3].astype(int)
    assert np.abs(visible - (90, 160, 30)).max() <= 1


def test_holes_are_filled_from_behind() -> None:
    document, result = transparent_edges(), sample_image(seed=2)
    alpha = document.alpha
    assert alpha is not None
    pasted = paste(document, inverted(alpha), [(WHOLE, result)], behind=True)
    assert pasted.getchannel("A").getextrema() == (255, 255)
    shown, kept = np.asarray(pasted)[..., :3], np.asarray(alpha) == 255
    assert np.array_equal(shown[kept], np.asarray(document.image)[kept][:, :3])
    assert np.array_equal(shown[:16], np.asarray(result)[:16])


def test_a_soft_edge_over_what_is_behind_it_is_blended_once() -> None:
    document = Document(Image.new("RGBA", (64, 64), (200, 0, 0, 128)))
    mask, blue = Image.new("L", (64, 64), 127), Image.new("RGB", (64, 64), (0, 0, 200))
    pasted = paste(document, mask, [(WHOLE, blue)], behind=True)
    patch, _ = patch_of(document, mask, [(WHOLE, blue)], behind=True)
    for image in (pasted, patch):
        assert image.getpixel((0, 0)) == (100, 0, 100, 255)


def test_a_grown_or_blurred_mask_takes_more_of_the_document_than_its_holes() -> None:
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (16, 16, 48, 48))
    holes, blue = inverted(image.getchannel("A")), Image.new("RGB", (64, 64), (0, 0, 200))
    grown = np.asarray(paste(Document(image), refine(holes, 4, 0), [(WHOLE, blue)], behind=True))
    assert (grown[12:52, 12:52] == (0, 0, 200, 255)).all() and (grown[:12] == (200, 0, 0, 255)).all()
    mask = refine(holes, 0, 3)
    blurred = np.asarray(paste(Document(image), mask, [(WHOLE, blue)], behind=True)).astype(int)
    assert (blurred[16:48, 16:48] == (0, 0, 200, 255)).all() and (blurred[..., 3] == 255).all()
    outside = np.asarray(mask)[:16].astype(int) / 255
    assert np.abs(blurred[:16, :, 2] - 200 * outside).max() <= 1 and 0.3 < outside.max() < 0.6


def test_an_image_of_a_cut_out_has_the_layers_alpha() -> None:
    document = transparent_edges()
    image = regenerated(document, sample_image(128, 128))
    assert np.array_equal(image.getchannel("A"), document.image.getchannel("A")) and image.size == (64, 64)
    assert regenerated(Document(sample_image()), sample_image(seed=2)).mode == "RGB"


def test_a_patch_over_the_document_is_the_pasted_image() -> None:
    init = Document(sample_image(1200, 800, 3))
    mask = Image.new("L", (1200, 800))
    for box in ((20, 20, 40, 50), (1050, 650, 1070, 660)):
        mask.paste(255, box)
    mask = refine(mask, 0, 3)
    crops = plan(mask, None, SIZES)
    assert len(crops) == 2
    patch, box = patch_of(init, mask, generated(crops), behind=False)
    assert box == mask.getbbox() and patch.size == (box[2] - box[0], box[3] - box[1]) and patch.mode == "RGBA"
    over = init.image.convert("RGBA")
    over.alpha_composite(patch, box[:2])
    pasted = paste(init, mask, generated(crops), behind=False)
    assert np.abs(np.asarray(over.convert("RGB")).astype(int) - np.asarray(pasted)).max() <= 1
    assert patch.getpixel((patch.width // 2, patch.height // 2)) == (0, 0, 0, 0)


def test_a_patch_of_nothing_is_a_transparent_pixel() -> None:
    patch, box = patch_of(Document(sample_image()), Image.new("L", (64, 64)), [], behind=False)
    assert (patch.size, patch.getpixel((0, 0)), box) == ((1, 1), (0, 0, 0, 0), (0, 0, 1, 1))


@st.composite
def documents(draw: st.DrawFn) -> tuple[Document, Image.Image]:
    """A document of any shape, with any alpha or none, with a profile or none; and a mask, hard or soft."""
    size = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    kind = draw(st.sampled_from(["opaque", "hard", "any"]))
    if kind != "opaque":
        alpha = rng.integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        image.putalpha(Image.fromarray(alpha if kind == "any" else (alpha > 99).astype(np.uint8) * 255))
    mask = Image.new("L", size)
    for _ in range(draw(st.integers(0, 3))):
        left, top = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
        mask.paste(
            draw(st.integers(0, 255)), (left, top, draw(st.integers(left, size[0])), draw(st.integers(top, size[1])))
        )
    mask = refine(mask, draw(st.integers(0, 9)), draw(st.integers(0, 9)))
    file = ImageFile(image, draw(st.sampled_from([None, P3])))
    return read_document(file, "init_image")[0], mask


@settings(max_examples=80, deadline=None, derandomize=True)
@given(documents(), st.none() | st.integers(-1, 60), st.booleans())
def test_black_stays_to_the_bit_and_white_is_opaque(
    sample: tuple[Document, Image.Image], padding: int | None, holes: bool
) -> None:
    document, mask = sample
    holes = holes and document.alpha is not None
    if holes and document.alpha is not None:
        mask = inverted(document.alpha)
    pairs = generated(plan(mask, padding, SIZES))
    pasted = paste(document, mask, pairs, behind=holes)
    assert (pasted.size, pasted.mode) == (document.size, document.image.mode)
    black, white = np.asarray(mask) == 0, np.asarray(mask) == 255
    assert np.array_equal(np.asarray(pasted)[black], np.asarray(document.image)[black])
    if pasted.mode == "RGBA":
        alpha = np.asarray(pasted)[..., 3]
        assert (alpha[white] == 255).all() and (not holes or (alpha == 255).all())
    patch, box = patch_of(document, mask, pairs, behind=holes)
    assert 0 <= box[0] < box[2] <= document.size[0] and 0 <= box[1] < box[3] <= document.size[1]
    if mask.getbbox() and not holes:
        assert np.array_equal(patch.getchannel("A"), mask.crop(box))
    over = document.image.convert("RGBA")
    over.alpha_composite(patch, box[:2])
    assert np.abs(np.asarray(over).astype(int) - np.asarray(pasted.convert("RGBA"))).max() <= 1


@pytest.mark.parametrize("behind", [False, True])
def test_two_cut_outs_that_differ_under_alpha_0_differ_only_there(behind: bool) -> None:
    results = []
    for hidden in ((0, 0, 0), (255, 9, 120)):
        image = Image.new("RGBA", (64, 64), (*hidden, 0))
        image.paste(sample_image().crop((0, 0, 40, 40)), (12, 12))
        document = read_document(ImageFile(image), "init_image")[0]
        mask = inverted(image.getchannel("A")) if behind else half_mask()
        result = np.asarray(paste(document, mask, [(WHOLE, sample_image(seed=2))], behind))
        assert np.array_equal(result[np.asarray(mask) == 0], np.asarray(image)[np.asarray(mask) == 0])
        results.append(result)
    visible = results[0][..., 3] > 0
    assert np.array_equal(results[0][..., 3], results[1][..., 3])
    assert np.array_equal(results[0][visible], results[1][visible])


@pytest.mark.parametrize("side", [1, 7, 63])
def test_any_size_comes_back_as_it_was(side: int) -> None:
    assert regenerated(Document(sample_image(side, 3)), sample_image()).size == (side, 3)
