"""What goes into a model archive: from a request's bytes to images, on stock diffusers pipelines.

Public, for the other folders: `wire`, `errors` and `catalogue` (the proxy), `installation`, `config`, `custom_models`,
`pipelines.sources`, `.hub` and `.families`, and `hardware.device` (admin and launch), `worker.Worker` (the doctor), and
the entry points that TorchServe loads: `txt2img`, `img2img`, `masking`, `stable_diffusion`.
docs/architecture.md shows the rooms.
"""
