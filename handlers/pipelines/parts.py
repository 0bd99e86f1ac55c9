"""A VAE or a transformer instead of a model's own."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from handlers.config import HandlerConfig
from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.hub import fetch_vae


def load_vae(config: HandlerConfig, own: Any, dtype: torch.dtype) -> Any:
    """The VAE to use instead of a model's `own`. Raises ModelError."""
    from diffusers import AutoencoderKL, AutoModel

    name = config.vae
    path = fetch_vae(name, Installation.find(config.home), config.allow_pickle)
    try:
        if path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                own.save_config(folder)  # a single file has none
                vae = AutoencoderKL.from_single_file(str(path), config=folder, dtype=dtype, local_files_only=True)
        else:
            vae = AutoModel.from_pretrained(
                str(path), dtype=dtype, use_safetensors=None if config.allow_pickle else True
            )
        shape, others = [(one.config.latent_channels, len(one.config.block_out_channels)) for one in (own, vae)]
    except Exception as error:  # not a VAE, or one that is not there
        raise ModelError(f"The VAE {name} cannot be loaded: {error}") from error
    if shape != others:
        raise ModelError(
            f"The VAE {name} does not fit this model: it has {others[0]} latent channels and {others[1]} levels, the "
            f"model's own {shape[0]} and {shape[1]}."
        )
    return vae


def load_transformer(file: Path, model: Path, kind: str, dtype: torch.dtype) -> Any:
    """The transformer of a checkpoint, quantised as it is if that is GGUF, with the configuration of a model's own.

    Args:
        model: the folder in diffusers' format.
        kind: its transformer's class, by diffusers' name.

    Raises ModelError.
    """
    import diffusers

    options: dict[str, Any] = {}
    try:
        if file.suffix == ".gguf":
            options = {"quantization_config": diffusers.GGUFQuantizationConfig(compute_dtype=dtype)}
        return getattr(diffusers, kind).from_single_file(
            str(file), config=str(model), subfolder="transformer", dtype=dtype, local_files_only=True, **options
        )
    except Exception as error:  # not a transformer, or of another model; for GGUF a package is missing
        raise ModelError(
            f"The transformer {file} cannot be loaded as a {kind}: it is damaged, not complete, or of another model "
            f"({error})."
        ) from error
