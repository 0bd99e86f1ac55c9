"""What an operator runs: builds archives, replaces running ones, and inspects this machine and a running server.

Each command is a module: `python -m admin.archive`, `admin.reload`, `admin.custom_archives`, `admin.ready`. Nothing
here goes into an archive, and nothing but `admin.probe` and `admin.download`, in processes of their own, imports torch.
"""
