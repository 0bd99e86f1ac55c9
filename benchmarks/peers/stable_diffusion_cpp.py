"""stable-diffusion.cpp, as cyllama has it: `python -m benchmarks.peers.stable_diffusion_cpp FILE THREADS`."""

import sys

from cyllama import sd

from benchmarks.peers.lines import GUIDANCE_SCALE, answer


def main() -> None:
    file, threads = sys.argv[1:]
    settings = sd.SDContextParams()
    settings.model_path, settings.n_threads = file, int(threads)
    # its options that are fastest on a CPU
    settings.diffusion_flash_attn = settings.diffusion_conv_direct = settings.vae_conv_direct = True
    context = sd.SDContext(settings)
    answer(
        lambda prompt, size, steps: context.generate(
            prompt,
            width=size,
            height=size,
            sample_steps=steps,
            cfg_scale=GUIDANCE_SCALE,
            sample_method=sd.SampleMethod.EULER,
        )
    )


if __name__ == "__main__":
    main()
