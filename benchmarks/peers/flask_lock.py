"""Flask on waitress, and the plain pipeline behind a lock, as the original server and the AUTOMATIC1111 web UI do it.

With one thread the lock is never waited for. That is the quicker one: OpenMP keeps a team of workers for every thread
that computes, and where there are more of them than cores each image takes twice as long, though one is generated at a
time. For the same reason the model is loaded by anybody who generates, at the first call.
"""

import argparse
import threading
from functools import cache
from pathlib import Path
from typing import Any

from flask import Flask, request
from waitress import serve

from benchmarks.peers.pipelines import Pipelines, answer


def make_app(model: Path) -> Flask:
    app, lock = Flask(__name__), threading.Lock()
    pipelines = cache(lambda: Pipelines(model))

    @app.get("/health")
    def health() -> str:
        with lock:
            pipelines()
        return "ok"

    @app.post("/<task>")
    def generate(task: str) -> dict[str, Any]:
        fields = request.get_json() | {"task": task}
        with lock:
            (image,) = pipelines().generate([fields])
        return answer(image)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=1, help="of waitress (default: %(default)s)")
    options = parser.parse_args()
    serve(make_app(options.model), host="127.0.0.1", port=options.port, threads=options.threads)


if __name__ == "__main__":
    main()
