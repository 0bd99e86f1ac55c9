"""A model's stock diffusers pipelines: where its files are, how they are loaded, and what they are called with."""
