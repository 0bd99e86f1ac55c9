"""`python -m benchmarks.previews`: what a preview costs of a step, and how like the coming image it is."""

import base64
import io
import time
from statistics import median

import numpy as np
import torch
from PIL import Image

from handlers.config import HandlerConfig
from handlers.engine.pipeline_job import PipelineJob
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.pipelines.loading import load_pipelines
from handlers.pipelines.noise import generator
from handlers.pipelines.previews import fit_preview
from tests.support.paths import CONFIGS, EMBEDDED

GUIDANCE = 3.5


def main() -> None:
    cpu = torch.device("cpu")
    pipelines = load_pipelines(EMBEDDED, ["txt2img"], cpu, torch.float32, HandlerConfig(), CONFIGS)
    pipeline = pipelines["txt2img"]
    begin = time.perf_counter()
    preview_map = fit_preview(pipeline)
    print(f"fitted in {time.perf_counter() - begin:.2f} s, once")
    assert preview_map is not None
    job = PipelineJob(
        pipeline,
        {"prompt": "a red apple", "num_inference_steps": 20, "guidance_scale": GUIDANCE, "generator": generator(3)},
    )
    job.start()
    seconds: dict[str, list[float]] = {"step": [], "look": [], "render": []}
    previews = []
    while isinstance(job.call, DenoiserCall):
        times = [time.perf_counter()]
        output = forward(job.call)
        times.append(time.perf_counter())
        seen = preview_map.look(job.call, output, GUIDANCE)
        times.append(time.perf_counter())
        previews.append(preview_map.render(seen))
        times.append(time.perf_counter())
        for name, begin, end in zip(seconds, times, times[1:], strict=False):
            seconds[name].append(end - begin)
        job.advance(output)
    assert job.call is not None
    job.advance(forward(job.call))
    step, look, render = (median(seconds[name]) for name in seconds)
    print(f"a UNet step {step * 1000:.1f} ms; a preview {look * 1000:.2f} ms in the engine's thread "
          f"({look / step:.1%} of the step) and {render * 1000:.2f} ms beside it ({render / step:.1%})")  # fmt: skip
    half_way = Image.open(io.BytesIO(base64.b64decode(previews[len(previews) // 2])))
    final = job.result.images[0].resize(half_way.size, Image.Resampling.BOX)
    pixels = [np.asarray(image).astype(float).ravel() for image in (half_way, final)]
    print(f"correlation of the preview half way with the image: {np.corrcoef(pixels[0], pixels[1])[0, 1]:.2f}")


if __name__ == "__main__":
    main()
