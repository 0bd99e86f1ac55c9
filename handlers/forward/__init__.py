"""One call for several jobs, and what runs it: torch, a CUDA graph or OpenVINO."""
