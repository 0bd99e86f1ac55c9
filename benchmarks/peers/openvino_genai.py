"""OpenVINO GenAI's pipeline: `python -m benchmarks.peers.openvino_genai FOLDER f32|bf16 THREADS`.

FOLDER has what optimum-intel converted.
"""

import sys
from pathlib import Path

import openvino_genai
from openvino import save_model
from openvino_tokenizers import convert_tokenizer
from transformers import CLIPTokenizer

from benchmarks.peers.lines import GUIDANCE_SCALE, answer


def main() -> None:
    folder, precision, threads = sys.argv[1:]
    tokenizer = Path(folder, "tokenizer", "openvino_tokenizer.xml")
    if not tokenizer.is_file():
        save_model(convert_tokenizer(CLIPTokenizer.from_pretrained(tokenizer.parent)), tokenizer)
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": int(threads)}
    pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", PERFORMANCE_HINT="LATENCY", **config)
    answer(
        lambda prompt, size, steps: pipeline.generate(
            prompt, num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE, width=size, height=size
        )
    )


if __name__ == "__main__":
    main()
