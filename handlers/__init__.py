"""What goes into a model archive: the contract's fields, the pipelines, step batching, images."""
