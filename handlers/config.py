"""An archive's settings: the `handler:` section of its model-config.yaml.

Every key carries its help text; `docs/configuration.md` lists them and a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from handlers.errors import ModelError

ENGINES = ("auto", "torch", "openvino")
LAYOUTS = ("auto", "always", "never")  # when channels-last is the layout


def _key(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class HandlerConfig:
    """An archive's configuration, read once when its worker starts."""

    model: str = _key(
        "default", "A hub id, the absolute path of a diffusers folder or of a single file, or `default` (see *Models*)."
    )
    inpainting_model: str = _key("", "Another model for masking, usually one with an inpainting UNet.")
    vae: str = _key(
        "", "A VAE instead of the model's own, such as a tiny one: a hub id, or the absolute path of a folder or file."
    )
    transformer: str = _key(
        "", "A transformer instead of the model's own: the absolute path of a `.safetensors` or `.gguf` file."
    )
    lora: str = _key("", "LoRA files to merge into the weights, one per line: `/a.safetensors=0.8`.")
    lora_dir: str = _key("", "The folder of the LoRAs that prompts may name; without it, `loras` beside the README.")
    max_lora_bytes: int = _key(
        2_147_483_648, "The most bytes of LoRA files that stay loaded; those in use do so in any case."
    )
    embeddings_dir: str = _key(
        "", "The folder of the embeddings (textual inversion) that prompts may name; without it, `embeddings`."
    )
    controlnets_dir: str = _key("", "The folder of the ControlNets' files; without it, `controlnets`.")
    upscalers_dir: str = _key("", "The folder of the upscalers' files; without it, `upscalers`.")
    safety_checker: bool = _key(True, "Whether the model's safety checker is used.")
    allow_pickle: bool = _key(False, "Whether pickled weights are loaded, which can run any program.")
    home: str = _key("", "The folder that holds `models`, unless `SD_HOME` names it. The builder records it.")
    device: str = _key("auto", "`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:1`, `mps`.")
    dtype: str = _key(
        "auto",
        "`auto` (float16 on GPUs that support it, bfloat16 with a transformer; on a CPU bfloat16 if the "
        "processor has it, but float32 with the engine `torch`), `float32`, `float16`, `bfloat16`.",
    )
    low_memory: bool = _key(
        False,
        "Keep only the denoiser on the GPU; text encoders and VAE are moved there for their calls, the VAE in tiles.",
    )
    float8_text_encoders: bool = _key(
        False,
        "Store the layers of T5 and the Qwen models as text encoders in 8 bits: in 0.65 of their memory in bfloat16.",
    )
    cuda_graphs: bool = _key(False, "On a GPU, run the UNet as CUDA graphs, and the VAE in a stream beside it.")
    channels_last: str = _key(
        "auto",
        "`always`, `never`, or `auto`: the UNet and the VAE in the channels-last layout, where it is the faster one "
        "(see devices.md).",
    )
    engine: str = _key(
        "auto",
        "`torch`, to the bit as the plain pipeline on a CPU; `openvino` for denoiser, VAE and safety checker on a CPU; "
        "or `auto`: OpenVINO on an x86-64 CPU that has it, else torch in the dtype that the processor is fastest in.",
    )
    max_num_outputs: int = _key(8, "The largest `num_outputs`.")
    max_num_inference_steps: int = _key(250, "The largest `num_inference_steps`.")
    min_size: int = _key(64, "The shortest side, in pixels, that the model generates.")
    max_size: int = _key(1024, "The longest side, in pixels, that the model generates.")
    max_image_bytes: int = _key(33_554_432, "The largest image file of a request, in bytes before base64.")
    max_image_pixels: int = _key(50_000_000, "The most pixels of an image of a request.")
    max_open_pixels: int = _key(
        200_000_000, "The most pixels of all large images that are held decoded at once; further ones wait."
    )
    max_prompt_chars: int = _key(10_000, "The longest prompt or negative prompt, in characters.")
    max_fields: int = _key(100, "The most fields of a request.")
    max_response_bytes: int = _key(100_663_296, "TorchServe's `max_response_size`: no answer may be larger.")
    max_batch_rows: int = _key(
        0,
        "The most rows of one forward, of native size; 0 = as many as take a second.",
    )
    log_merging: bool = _key(False, "Log why two calls of the denoiser do not share a forward.")
    codec_threads: int = _key(2, "Threads that parse requests and encode images while the UNet steps.")

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> "HandlerConfig":
        """Raises ModelError for an unknown key or a value of the wrong type."""
        known = {f.name: f for f in fields(cls)}
        for name, value in section.items():
            if name not in known:
                raise ModelError(f"model-config.yaml: handler.{name} is not a known key; known are {', '.join(known)}.")
            expected = type(known[name].default)
            if type(value) is not expected:
                raise ModelError(f"model-config.yaml: handler.{name} must be {expected.__name__}, not {value!r}.")
        return cls(**section)
