"""The recipe of the embedded model, every stage in seconds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image
from safetensors.torch import load_file

from training import __main__ as command
from training import art, clip, concepts, evaluate, loop, safety, signs, tokenizer, vae
from training.compose import GENTLE, Composer
from training.config import PRESETS, Run, Stage


@pytest.mark.thorough
def test_every_stage_from_the_packages_to_a_model_that_is_measured(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "README.md").write_text("before\n<!-- evaluation -->\nold\n<!-- end of evaluation -->\nafter\n")
    for stage in ("tokenizer", "clip", "vae", "decoder", "unet", "safety", "export"):
        assert command.perform(stage, run, None, target) == 0

    pipeline = AutoPipelineForText2Image.from_pretrained(target, dtype=torch.float32)
    assert pipeline.vae_scale_factor == 8
    for weights in target.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(weights).values()} <= {torch.float16, torch.int64}
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline("a red apple", num_inference_steps=2)
    assert output.images[0].size == (64, 64)
    assert json.loads((target / "generation_config.json").read_text())["drawn_size"] == 64

    # three steps teach nothing, and the evaluation says so
    assert command.perform("evaluate", run, None, target) == 1
    card = (target / "README.md").read_text()
    assert card.startswith("before\n") and card.endswith("after\n") and "old" not in card
    assert "**missed**" in card
    assert (target / "contact-sheet.png").is_file()


def test_a_download_that_is_not_what_the_registry_states_is_refused() -> None:
    with pytest.raises(RuntimeError, match="download it again"):
        art.check("x.tgz", b"abc", "0" * 40)


def test_names_are_of_code_points_without_variation_selectors(run: Run) -> None:
    assert art.names(run.art)["1f34e"] == {"label": "red apple", "tags": ["thing"]}
    drawings = art.Art.load(run.art, 80, ["3d", "flat"], {"1f499"})
    assert drawings.labels == [("1f499", "3d"), ("1f499", "flat")]
    assert drawings.images.shape == (2, 4, 80, 80)
    assert drawings.images[:, :, 40, 40].tolist() == [[0, 0, 255, 255]] * 2
    art.fetch(run.art, art.CHECKER_STYLES.values())
    art.render(run.art, safety.ART_SIZE, art.STYLES | art.CHECKER_STYLES)
    signs_of_all = art.Art.load(run.art, safety.ART_SIZE, [*art.STYLES, *art.CHECKER_STYLES], {"1f51e"})
    assert {style for _, style in signs_of_all.labels} == {*art.STYLES, *art.CHECKER_STYLES}


def test_signs_differ_in_all_and_in_what_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    art.fetch(run.art, [art.FONTS])

    def draw() -> art.Art:
        return signs.draw(30, 64, ("1f51e", "1f6ab"), signs.fonts(run.art), seed=3)

    drawn = draw()
    assert drawn.labels == [("1f51e", signs.STYLE)] * 30 + [("1f6ab", signs.STYLE)] * 30
    assert drawn.images.shape == (60, 4, 64, 64) and len(drawn.images.flatten(1).unique(dim=0)) == 60
    assert not drawn.images[:, 3, 0, 0].any() and (drawn.images[:, 3, 32, 32] == 255).all()
    monkeypatch.setattr(signs, "FLAGGED", "81")
    assert (draw().images[:30] != drawn.images[:30]).flatten(1).any(1).all()


def test_a_concept_has_the_names_that_prompts_use(run: Run) -> None:
    apple, heart, eighteen = concepts.load(run)
    assert (apple.code, apple.names) == ("1f34e", ("red apple", "apple"))
    assert heart.names == ("blue heart",)
    assert [c.flagged for c in (apple, heart, eighteen)] == [False, False, True]


def test_known_words_are_one_token_and_unknown_ones_are_spelt(run: Run) -> None:
    pruned = tokenizer.build(run.art)
    assert pruned.tokenize("Red apple") == ["red</w>", "apple</w>"]
    assert pruned.tokenize("zz") == ["z", "z</w>"]  # the merge that no caption uses is gone
    ids = pruned("apple", padding="max_length").input_ids
    assert (len(ids), ids[0], ids[-1]) == (77, pruned.bos_token_id, pruned.eos_token_id)


def test_an_image_shows_its_drawing_in_the_middle_and_its_caption_names_it(run: Run) -> None:
    listed = concepts.load(run)
    drawings = art.Art.load(run.art, 80, ["flat"], {"1f499"})
    images, captions, indices = Composer(drawings, listed, 64, GENTLE, 3).batch(40)
    assert images.shape == (40, 3, 64, 64) and images.min() >= -1 and images.max() <= 1
    assert images[:, :, 32, 32].tolist() == [[-1, -1, 1]] * 40
    assert indices.tolist() == [1] * 40
    assert all("blue heart" in caption for caption in captions)
    on_black = [i for i, caption in enumerate(captions) if "on a black background" in caption]
    assert on_black and all(evaluate.background_of(images[i]) == "black" for i in on_black)
    again = Composer(drawings, listed, 64, GENTLE, 3).batch(40)
    assert torch.equal(images, again[0]) and captions == again[1]


def test_wide_and_high_images_show_the_whole_drawing(run: Run) -> None:
    drawings = art.Art.load(run.art, 80, ["flat"], {"1f499"})
    composer = Composer(drawings, concepts.load(run), 64, GENTLE, 3)
    wide, high = composer.batch(1, 32, 64)[0][0], composer.batch(1, 64, 32)[0][0]
    for image in (wide, high):
        blue = (image[2] > 0.9) & (image[0] < -0.9)
        rows, columns = blue.any(1).nonzero(), blue.any(0).nonzero()
        height, width = (int(x.max() - x.min() + 1) for x in (rows, columns))
        assert abs(height - width) <= 2 and 20 <= height <= 32


def test_latents_are_normalised_without_changing_what_is_decoded() -> None:
    torch.manual_seed(0)
    model = vae.create(PRESETS["smoke"]).eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.decode(model.encode(images).latent_dist.mean).sample
        vae.normalise(model, images)
        posterior = model.encode(images).latent_dist
        after = model.decode(posterior.mean).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert posterior.mean.mean((0, 2, 3)).abs().max() < 1e-3
    assert (posterior.mean.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert posterior.std.max() < 0.1


def test_the_decoder_goes_on_alone_and_latents_stay_what_they_are(run: Run) -> None:
    torch.manual_seed(0)
    model = vae.create(run.preset)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images).latent_dist.mean
        before = model.decode(latents).sample
        other = replace(run, preset=replace(run.preset, decoder=Stage(2, 6, 1e-2)), folder=run.folder / "other")
        (other.folder / "art").parent.mkdir()
        other.art.symlink_to(run.art)
    vae.run_decoder(other, model)
    with torch.no_grad():
        assert torch.allclose(model.encode(images).latent_dist.mean, latents, atol=1e-4)
        assert (model.decode(latents).sample - before).abs().max() > 1e-2


def test_the_discriminator_pulls_as_hard_as_it_is_told_to() -> None:
    torch.manual_seed(0)
    judge = vae.Discriminator()
    decoded = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    own, pull = vae.adversarial(judge, decoded, torch.zeros(2, 3, 32, 32))
    pull.backward()
    assert decoded.grad is not None
    # an L1's mean pulls each value with 1 / their number
    assert decoded.grad.abs().sum().item() == pytest.approx(vae.ADVERSARIAL, rel=1e-3)
    assert all(parameter.grad is None for parameter in judge.parameters())
    own.backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())


def test_lean_norms_compute_the_same_and_are_gone_afterwards() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8))
    images = torch.randn(2, 3, 8, 8)
    expected = module(images)
    with loop.lean_norms(module):
        assert "forward" in vars(module[1])
        assert torch.equal(module(images), expected)
    assert "forward" not in vars(module[1])


class Repeating(loop.GraphedStep):
    """Without a GPU: what is captured is called again."""

    def _capture(self, kind: object, held: list[torch.Tensor]) -> Any:
        if kind == "broken":
            raise RuntimeError("no")
        value = torch.zeros(())

        class Graph:
            def replay(graph) -> None:
                value.copy_(self._work(kind, *held))

        return Graph(), held, value


def test_a_graphed_step_reads_each_batch_and_runs_without_graphs_where_there_are_none() -> None:
    step = Repeating(lambda kind, batch: batch.sum() * (2 if kind == "twice" else 1))
    assert [step("once", torch.full((2,), float(i))).item() for i in (1, 2)] == [2, 4]
    assert step("twice", torch.ones(3)).item() == 6
    assert step("broken", torch.ones(3)).item() == 3
    assert step("once", torch.ones(3)).item() == 3  # of another size: no graph would take it


def test_other_styles_stay_images_and_change_most_of_them() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 3, 64, 64) * 2 - 1
    changed = safety.restyled(images)
    assert changed.shape == images.shape and changed.abs().max() <= 1
    assert 0.4 < (changed != images).flatten(1).any(1).float().mean() < 1


def test_sharpness_is_that_of_the_edges() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    step = (torch.arange(64) >= 32).float().expand(1, 3, 64, 64) * 2 - 1
    assert evaluate.sharpness(step) > 10 * evaluate.sharpness(ramp)


def test_parts_of_a_finished_model_stand_in_for_the_stages_before_the_checker(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    finished = tmp_path / "finished"
    vision = safety.CLIPVisionModelWithProjection(clip.vision_config())
    safety.as_standard(safety.Checker(vision)).save_pretrained(finished / "safety_checker")
    tokenizer.build(run.art).save_pretrained(finished / "tokenizer")
    for part in ("text_encoder", "vae", "unet"):
        (finished / part).mkdir()
    other = replace(run, folder=tmp_path / "work")
    (other.model / "vae").mkdir(parents=True)
    (other.model / "vae" / "of this run").touch()
    command.take_parts(finished, other)
    assert (other.model / "vae" / "of this run").is_file()
    assert {part.name for part in other.model.iterdir()} == {"tokenizer", "text_encoder", "vae", "unet"}
    again = safety.CLIPVisionModelWithProjection.from_pretrained(other.folder / "clip-vision")
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.allclose(again.eval()(pixels).image_embeds, vision.eval()(pixels).image_embeds, atol=1e-5)


def test_training_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    seen: list[int] = []

    def train(checkpoint: Path, interrupted_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(1)
        module = torch.nn.Linear(4, 1)

        def loss(step: int, done: float) -> torch.Tensor:
            if step == interrupted_at:
                raise KeyboardInterrupt
            assert done == step / 6
            seen.append(step)
            return module(torch.randn(8, 4)).square().mean()

        loop.train("test", module, loss, Stage(6, 8, 1e-2), checkpoint, "cpu")
        return module.weight.detach().clone()

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pt", interrupted_at=2)
    resumed = train(tmp_path / "parts.pt")
    assert seen == list(range(6))
    assert torch.equal(resumed, train(tmp_path / "whole.pt"))


def test_minutes_end_a_stage_with_its_whole_schedule(tmp_path: Path) -> None:
    parts: list[float] = []
    module = torch.nn.Linear(4, 1)

    def loss(step: int, done: float) -> torch.Tensor:
        parts.append(done)
        return module(torch.randn(8, 4)).square().mean()

    loop.train("test", module, loss, Stage(10**9, 8, 1e-2, minutes=0.005), tmp_path / "x.pt", "cpu")
    assert parts == sorted(parts) and parts[-1] > 0.5
    assert loop.learning_rate(10**4, 0.5, 1.0) == 1.0
    assert loop.learning_rate(10**4, 2 / 3, 1.0) == pytest.approx(0.1)
    assert loop.learning_rate(10**4, 1.0, 1.0) == pytest.approx(0.01)
    assert loop.learning_rate(0, 0.0, 1.0) == 0.01


@pytest.mark.parametrize("stages", [["export"], ["unet", "evaluate"], ["all"]])
def test_within_wants_a_last_stage_that_trains(
    stages: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(command, "perform")
    with pytest.raises(SystemExit):
        command.main([*stages, "--within", "5"])
    assert "name one that trains last" in capsys.readouterr().err


def test_the_text_encoder_is_the_mini_clips(run: Run) -> None:
    pruned = tokenizer.build(run.art)
    model = clip.Clip(clip.text_config(run.preset, pruned), clip.vision_config()).eval()
    ids = clip.tokens(pruned, ["red apple", "blue heart"], "cpu")
    with torch.no_grad():
        assert torch.allclose(clip.text_encoder(model)(ids)[0], model.text(ids).last_hidden_state, atol=1e-5)


def test_the_standard_checker_flags_what_the_trained_one_points_at() -> None:
    torch.manual_seed(0)
    from transformers import CLIPVisionModelWithProjection

    from training.clip import to_pixels, vision_config

    model = safety.Checker(CLIPVisionModelWithProjection(vision_config())).eval()
    images = torch.stack([torch.full((3, 64, 64), i / 4 - 1) + 0.3 * torch.randn(3, 64, 64) for i in range(9)])
    with torch.no_grad():
        cosines = model.cosine(to_pixels(images))
        ordered = cosines.sort().values
    i = int(ordered.diff().argmax())  # the checker rounds to three digits, so the widest gap
    threshold = (ordered[i] + ordered[i + 1]).item() / 2
    checker = safety.as_standard(model, threshold)
    assert safety.flags(checker, images) == (cosines > threshold).tolist()
