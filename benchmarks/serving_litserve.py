"""LitServe around the same torch functions: decoding, tower, precision, threads and batch size are the same.

    python -m benchmarks.serving_litserve MODEL PORT MAX_BATCH PRECISION

It runs in the peers' environment, which has all that ours has (see serving.py). Annotations are not postponed: LitServe reads them.
"""

import base64
import sys
from typing import Any

import litserve
import torch

from sightline.models.codec import decode_rgb
from sightline.models.load import load_model
from sightline.serve.limits import Limits
from sightline.serve.precision import in_bfloat16


class Embeddings(litserve.LitAPI):  # type: ignore[misc]
    """OpenAI's shape, of images alone."""

    def __init__(self, model: str, precision: str, **options: Any) -> None:
        super().__init__(**options)
        self._named = model, precision

    def setup(self, device: str) -> None:
        torch.set_num_threads(2)
        name, precision = self._named
        model = load_model(name)
        self._model = in_bfloat16(model) if precision == "bfloat16" else model

    def decode_request(self, request: dict[str, Any]) -> Any:
        [url] = request["input"]
        rgb_HWC = decode_rgb(base64.b64decode(url.partition(",")[2]), max_pixels=Limits().max_pixels)
        return self._model.preprocess.pixels(rgb_HWC)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, images: list[Any]) -> list[Any]:
        return list(self._model.embed_images(torch.stack(images)))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, vector: Any) -> dict[str, Any]:
        return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector.tolist()}]}


def main(model: str, port: str, max_batch: str, precision: str) -> None:
    api = Embeddings(model, precision, max_batch_size=int(max_batch), batch_timeout=0.005, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error", num_api_servers=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
