"""Captions: what an image shows, in the words that prompts use, so that prompts compose."""

import random

# the name in captions -> sRGB
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (12, 12, 14),
    "grey": (150, 150, 155),
    "red": (205, 45, 45),
    "orange": (245, 145, 45),
    "yellow": (250, 215, 75),
    "green": (60, 160, 75),
    "blue": (50, 95, 210),
    "light blue": (165, 215, 245),
    "purple": (120, 65, 175),
    "pink": (245, 165, 195),
    "brown": (125, 80, 50),
}
STYLE_WORDS = {
    "3d": ("3d", "3d render"),
    "flat": ("flat", "flat icon"),
    "cartoon": ("cartoon", "cartoon style"),
}
PLAIN = 0.35  # share of the captions that leave out a background or a style: the model then chooses (white mostly)


def describe(names: tuple[str, ...], style: str, background: str, draw: random.Random) -> str:
    """A caption for an image of `names[0]` in `style` on the `background`, worded anew at each call."""
    name = names[0] if draw.random() < 0.6 else draw.choice(names)
    caption = name if draw.random() < 0.4 else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    # white is what one gets unasked, so it is named less often
    if draw.random() > (0.75 if background == "white" else 0.1):
        caption += f" on a {background} background" if draw.random() < 0.85 else f", {background} background"
    if style in STYLE_WORDS and draw.random() > PLAIN:
        caption += f", {draw.choice(STYLE_WORDS[style])}"
    return caption


def every_word() -> list[str]:
    """All that captions are made of besides names: for the tokenizer."""
    words = [f"{name} background" for name in BACKGROUNDS] + ["a an on the of"]
    return words + [word for words_ in STYLE_WORDS.values() for word in words_]
