"""The machine under a worker: its device, its memory, its cores."""
