"""LitServe with static batches: up to eight requests that wait are drawn by one call, those of a kind together."""

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

import litserve as ls
from PIL import Image

from benchmarks.peers.pipelines import Fields, Pipelines, answer, kind

BATCH, TIMEOUT = 8, 0.05  # requests; seconds that the first one waits for company


class StaticBatching(ls.LitAPI):
    def __init__(self, model: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=TIMEOUT)
        self._model = model

    def setup(self, device: str) -> None:
        self._pipelines = Pipelines(self._model)

    def decode_request(self, request: Fields) -> Fields:
        return request

    def batch(self, inputs: list[Fields]) -> list[Fields]:
        return inputs

    def predict(self, batch: list[Fields]) -> list[Image.Image]:
        images: dict[int, Image.Image] = {}
        places = sorted(range(len(batch)), key=lambda place: str(kind(batch[place])))
        for _, group in groupby(places, key=lambda place: kind(batch[place])):
            together = list(group)
            images |= zip(together, self._pipelines.draw([batch[place] for place in together]), strict=True)
        return [images[place] for place in range(len(batch))]

    def unbatch(self, output: list[Image.Image]) -> list[Image.Image]:
        return output

    def encode_response(self, output: Image.Image) -> dict[str, Any]:
        return answer(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    server = ls.LitServer(StaticBatching(options.model), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main()
