"""The OpenAPI description in the hands of others' programs: a linter, and generators of clients."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import tools
from tests.attacks import KEYS, line
from tests.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HELP = "run `python deploy/tools.py clients node`"
PYTHON_CLIENT = tools.TOOLS / "clients/bin"

PYTHON = '''
import io, json, sys
from generated import AuthenticatedClient, Client
from generated.api.model import get_model, get_picture, list_models
from generated.api.operations import get_drift, get_metrics, get_readiness
from generated.api.samples import generate_samples, impute_rows
from generated.api.scores import score_items
from generated.models import *
from generated.types import File

address, key, latents, items = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
client = AuthenticatedClient(base_url=address, token=key, raise_on_unexpected_status=True)
npz = SamplesRequestFormat.NPZ


def generated(**fields):
    """The bytes of samples, in hexadecimal digits; or the error's detail."""
    answer = generate_samples.sync(client=client, body=SamplesRequest(format_=npz, **fields))
    return answer.detail if isinstance(answer, Problem) else answer.payload.read().hex()


def scores(body):
    return score_items.sync(client=client, body=body).scores


def array(name):
    return File(payload=io.BytesIO(bytes.fromhex(name)), file_name="a.npz", mime_type="x/y")


model = get_model.sync(client=client)
version = model["version"]
seeded = generated(count=5, seed=7)
told = {
    "samples": seeded,
    "latents": generated(latents=latents),
    "walk": generated(seed=7, interpolation=Interpolation(to=8, at=[0.0, 0.5, 1.0])),
    "pinned": generated(count=5, seed=7, model=version),
    "wrong": generated(model="none@1"),
    "picture": get_picture.sync(client=client).payload.read().hex(),
    "scores": scores(ScoresRequest(samples=items)),
    "scores of files": scores(ScoresForm(files=[array(seeded), array(seeded)])),
    "served": list_models.sync(client=client).serving[0].version == version,
    "drift": get_drift.sync(client=client).detail,
    "metrics": get_metrics.sync_detailed(client=client).status_code,
    "ready": get_readiness.sync_detailed(client=client).status_code,
    "no key": get_model.sync(client=Client(base_url=address)).status,
}
print(json.dumps(told))
'''
TYPESCRIPT = """
import { createClient, createConfig } from "./generated/client";
import * as api from "./generated";

declare const process: { argv: string[] };
const [address, key, latents, items] = process.argv.slice(2);
const client = createClient(createConfig({ baseUrl: address, auth: () => key }));

const hex = async (content: unknown): Promise<string> =>
  Array.from(new Uint8Array(await (content as Blob).arrayBuffer()), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");

async function generated(body: Partial<api.SamplesRequest>): Promise<string> {
  const answer = await api.generateSamples({ client, body: { format: "npz", ...body } });
  return answer.error ? answer.error.detail : hex(answer.data);
}

async function main(): Promise<void> {
  const model = await api.getModel({ client, throwOnError: true });
  const version = model.data.version as string;
  const scores = await api.scoreItems({
    client,
    body: { samples: JSON.parse(items) },
    throwOnError: true,
  });
  const models = await api.listModels({ client, throwOnError: true });
  const picture = await api.getPicture({ client, throwOnError: true });
  const told = {
    samples: await generated({ count: 5, seed: 7 }),
    latents: await generated({ latents: JSON.parse(latents) }),
    walk: await generated({ seed: 7, interpolation: { to: 8, at: [0, 0.5, 1] } }),
    pinned: await generated({ count: 5, seed: 7, model: version }),
    wrong: await generated({ model: "none@1" }),
    picture: await hex(picture.data),
    scores: scores.data.scores,
    served: models.data.serving[0].version === version,
    drift: (await api.getDrift({ client })).error?.detail,
    metrics: (await api.getMetrics({ client })).response?.status,
    ready: (await api.getReadiness({ client })).response?.status,
    "no key": (await api.getModel({ client: createClient(createConfig({ baseUrl: address })) }))
      .error?.status,
  };
  console.log(JSON.stringify(told));
}

main();
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "keys").write_text(line("all", KEYS["all"], "samples,scores,metrics"))
    server = Server("vector", folder, WGAN_API_KEYS_FILE=str(folder / "keys"))
    with server.running():
        yield server


@pytest.fixture
def description(server: Server, tmp_path: Path) -> Path:
    file = tmp_path / "docs.json"
    file.write_bytes(server.client.get("/docs.json").content)
    return file


def run(*command: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    path = f"{PYTHON_CLIENT}:{os.environ['PATH']}"  # the generator formats with its own ruff
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def needed(name: str) -> Path:
    found = tools.find(name)
    if found is None:
        pytest.skip(f"no {name}: {HELP}")
    return found


def arguments(server: Server) -> list[str]:
    latents = server.model.latents(seed=3, count=2).tolist()
    items = server.model.sample(seed=7, count=5).tolist()
    return [str(server.client.base_url), KEYS["all"], json.dumps(latents), json.dumps(items)]


def check(told: dict[str, Any], server: Server) -> None:
    """Compare what a client was told with the model itself."""
    key = {"authorization": f"Bearer {KEYS['all']}"}

    def npz(**body: object) -> str:
        body = {"format": "npz", **body}
        return server.client.post("/v1/samples", json=body, headers=key).content.hex()

    assert told["samples"] == told["pinned"] == npz(count=5, seed=7)
    assert told["latents"] == npz(latents=server.model.latents(seed=3, count=2).tolist())
    assert told["walk"] == npz(seed=7, interpolation={"to": 8, "at": [0, 0.5, 1]})
    assert told["wrong"].startswith("none@1 is not served here")
    assert bytes.fromhex(told["picture"]) == server.model.picture
    scores = server.model.score(server.model.sample(seed=7, count=5))
    np.testing.assert_array_equal(np.float32(told["scores"]), scores)
    assert told["served"]
    assert told["drift"].startswith("drift is off")
    assert (told["metrics"], told["ready"], told["no key"]) == (200, 200, 401)


def test_a_linter_has_nothing_to_say(description: Path) -> None:
    spectral = needed("spectral")
    rules = description.with_name("rules.yaml")
    rules.write_text('extends: ["spectral:oas"]\n')
    said = run(
        spectral, "lint", description, "--ruleset", rules, "--fail-severity", "hint",
        folder=description.parent,
    )  # fmt: skip
    assert "No results" in said.stdout


def test_a_python_client(server: Server, description: Path) -> None:
    generator, folder = needed("openapi-python-client"), description.parent
    made = run(
        generator, "generate", "--path", description, "--output-path", folder / "generated",
        "--meta", "none", folder=folder,
    )  # fmt: skip
    # The generator knows no bodies of these types; a form takes the same files.
    unknown = ("text/csv", "application/vnd.apache.parquet", "application/vnd.apache.arrow.file")
    warnings = [
        text for text in made.stderr.splitlines() if text.startswith(("Unsupported", "Cannot"))
    ]
    assert set(warnings) == {f"Unsupported content type {kind}" for kind in unknown}
    (folder / "main.py").write_text(PYTHON)
    done = run(PYTHON_CLIENT / "python", "main.py", *arguments(server), folder=folder)
    told = json.loads(done.stdout)
    check(told, server)
    np.testing.assert_array_equal(told["scores of files"], told["scores"] * 2)


def test_a_typescript_client(server: Server, description: Path) -> None:
    generator, compiler, folder = needed("openapi-ts"), needed("tsc"), description.parent
    if shutil.which("node") is None:
        pytest.skip("no node")
    run(generator, "--input", description, "--output", folder / "generated", folder=folder)
    (folder / "main.ts").write_text(TYPESCRIPT)
    run(
        compiler, "--strict", "--target", "es2022", "--module", "commonjs", "--outDir", "made",
        "main.ts", folder=folder,
    )  # fmt: skip
    done = run("node", "made/main.js", *arguments(server), folder=folder)
    check(json.loads(done.stdout), server)
