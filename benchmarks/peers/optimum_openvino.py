"""optimum-intel's pipeline: `python -m benchmarks.peers.optimum_openvino MODEL FOLDER f32|bf16 THREADS`.

It converts the model into FOLDER first, where OpenVINO GenAI reads it too.
"""

import sys
from pathlib import Path

from optimum.intel import OVStableDiffusionPipeline

from benchmarks.peers.lines import answer_with


def main() -> None:
    model, folder, precision, threads = sys.argv[1:]
    if not Path(folder, "model_index.json").is_file():
        OVStableDiffusionPipeline.from_pretrained(model, export=True, compile=False).save_pretrained(folder)
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, ov_config=config)
    answer_with(pipeline)


if __name__ == "__main__":
    main()
