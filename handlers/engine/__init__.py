"""The thread that does all of torch's work, step after step, for every open request.

| name | what it is |
|---|---|
| `GenerationRequest` (request/fields.py) | the validated fields of a request |
| `Generation` (generation.py) | one open request, from its bytes to its answer |
| `PipelineJob` (pipeline_job.py) | one image of it: a stock pipeline, paused at each call of its UNet and VAE |
| `UpscaleJob` (upscale_job.py) | one image that is enlarged by a model from a file, tile by tile |
| `Slot` (scheduling.py) | the job's place in the batch |
| `Engine` (loop.py) | the loop that moves all of them on |
"""
