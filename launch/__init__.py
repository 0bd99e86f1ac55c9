"""What server.py starts the server with: this machine, the processes, the console."""
