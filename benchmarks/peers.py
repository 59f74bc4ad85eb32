"""Other servers of the same generator, for `benchmarks.serve`; each does the same work.

    python -m benchmarks.peers NAME PORT ARTIFACT

Their generator is torch's own, eager, with all samples of a request in one forward.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.artifact import load_artifact
from models.formats import encode
from models.model import Model
from models.sampling import latents

try:
    LIT_API: Any = importlib.import_module("litserve").LitAPI
except ImportError:  # the benchmark installs it, for its own process
    LIT_API = object
TYPES = {"npz": "application/octet-stream", "png": "image/png", "json": "application/json"}


class Wanted(BaseModel):
    count: int
    seed: int
    format: str


def made(model: Model, wanted: Wanted) -> bytes:
    z = torch.from_numpy(latents(wanted.seed, 0, wanted.count, model.latent_size))
    with torch.inference_mode():
        samples: np.ndarray = model.scaling.to_data(model.generator(z)).numpy()
    return encode(samples, wanted.format)


def starlette(model: Model) -> Any:
    """The least that can be done: our own sampling and encoding in a thread."""

    async def post(request: Request) -> Response:
        wanted = Wanted.model_validate_json(await request.body())

        def work() -> bytes:
            parts = model.samples(wanted.seed, wanted.count)
            return encode(np.concatenate(list(parts)), wanted.format)

        return Response(await run_in_threadpool(work), media_type=TYPES[wanted.format])

    return Starlette(routes=[Route("/v1/samples", post, methods=["POST"])])


def fastapi(model: Model) -> Any:
    app = importlib.import_module("fastapi").FastAPI()

    @app.post("/v1/samples")
    def post(wanted: Wanted) -> Response:
        return Response(made(model, wanted), media_type=TYPES[wanted.format])

    return app


class Api(LIT_API):  # type: ignore[misc, valid-type]
    """LitServe's idea of a service; a process of its own sets it up."""

    folder: Path

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.model = load_artifact(self.folder)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads types
        return Wanted.model_validate(request)

    def predict(self, wanted: Wanted) -> tuple[bytes, str]:
        return made(self.model, wanted), TYPES[wanted.format]

    def encode_response(self, output: tuple[bytes, str]) -> Response:
        return Response(output[0], media_type=output[1])


def litserve(folder: Path) -> Any:
    api = Api(api_path="/v1/samples")
    api.folder = folder
    server = importlib.import_module("litserve").LitServer
    return server(api, accelerator="cpu", workers_per_device=1)


def main() -> None:
    name, port, folder = sys.argv[1:]
    torch.set_num_threads(1)
    options = {"host": "127.0.0.1", "port": int(port), "log_level": "warning"}
    if name == "litserve":
        litserve(Path(folder)).run(generate_client_file=False, **options)
        return
    app = {"starlette": starlette, "fastapi": fastapi}[name](load_artifact(Path(folder)))
    uvicorn.run(app, access_log=False, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
