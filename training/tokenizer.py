"""The tokenizer: CLIP's byte-pair vocabulary, pruned to the merges that emoji names, tags and captions use."""

import gzip
import zipfile
from pathlib import Path

import httpx
from transformers import CLIPTokenizer

from training import art
from training.captions import every_word

# the wheel carries CLIP's merges as a file; a build-time download and no dependency of the server
WHEEL = ("open_clip_torch", "3.3.0")
MERGES = "open_clip/bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGES = 49152 - 256 - 2  # the file lists more than CLIP uses
START, END = "<|startoftext|>", "<|endoftext|>"


def fetch(folder: Path) -> None:
    """Downloads the wheel that holds CLIP's merges."""
    name, version = WHEEL
    target = folder / f"{name}-{version}.whl"
    if target.is_file():
        return
    about = httpx.get(f"https://pypi.org/pypi/{name}/{version}/json", timeout=60).raise_for_status().json()
    wheel = next(file for file in about["urls"] if file["packagetype"] == "bdist_wheel")
    data = httpx.get(wheel["url"], timeout=120, follow_redirects=True).raise_for_status().content
    art.check(target.name, data, "sha256", wheel["digests"]["sha256"])
    target.write_bytes(data)


def build(folder: Path) -> CLIPTokenizer:
    """Every text tokenizes as with CLIP if its words are known, else into smaller pieces of known ones."""
    with zipfile.ZipFile(folder / "{}-{}.whl".format(*WHEEL)) as wheel:
        lines = gzip.decompress(wheel.read(MERGES)).decode().splitlines()[1 : CLIP_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(_bytes_to_unicode().values())
    letters += [letter + "</w>" for letter in letters]

    full = _tokenizer(letters, merges)
    texts = every_word()
    for about in art.names(folder).values():
        texts += [str(about["label"]), *map(str, about["tags"])]  # type: ignore[call-overload]
    used = {token for text in texts for token in full.tokenize(text)}
    made_of = {left + right: (left, right) for left, right in merges}
    open_ = list(used)
    while open_:  # a token needs the tokens that it is merged from
        parts = made_of.get(open_.pop(), ())
        open_ += [part for part in parts if part not in used]
        used |= set(parts)
    return _tokenizer(letters, [(left, right) for left, right in merges if left + right in used])


def _tokenizer(letters: list[str], merges: list[tuple[str, ...]]) -> CLIPTokenizer:
    tokens = dict.fromkeys([*letters, *("".join(merge) for merge in merges), START, END])
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes (https://github.com/openai/gpt-2, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
