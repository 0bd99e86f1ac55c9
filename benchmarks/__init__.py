"""What serving costs and gains, measured: `make bench`, `make bench-true-shapes`."""

import os

# what the libraries advise is not the run's result; read when they are imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# as server.py sets it for the workers; OpenMP reads it when torch is imported, and the peers inherit it
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
