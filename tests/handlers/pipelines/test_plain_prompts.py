"""Prompts that a stock pipeline reads as they are: what is no syntax there."""

from handlers.pipelines.plain_prompts import PlainPrompts


def test_weights_are_named_and_tags_are_taken() -> None:
    prompts = PlainPrompts("a (red:1.3) house <lora:mine:0.5>", "plain")
    assert [tag.name for tag in prompts.loras] == ["mine"]
    assert prompts.warnings == ("prompt: weights and BREAK are not applied, since this model reads it as plain text.",)
