"""`POST /v1/anomalies`: say which items do not belong, by the model's detector."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import numpy as np
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import ShapeError
from service.endpoint import Context, Endpoint, model_headers, spend_samples
from service.endpoints.scores import REQUEST_BODY, ScoresForm, ScoresRequest, read_and
from service.openapi import MODEL_HEADERS, MODEL_PARAMETER, errors, json_answer, ref
from service.problems import BadRequest
from service.scoring import ScoreJob
from service.served import Served

if TYPE_CHECKING:  # torch is for the worker alone: importing it here costs the supervisor too
    from models.model import Model

Array = np.ndarray
MAX_EXPLAINED = 2**17
"""Numbers in the residuals or the blame of one answer: while JSON is made, nothing else is done."""


class Anomalies(BaseModel):
    """One entry for each item, in order: arrays side by side."""

    p_values: list[float] = Field(
        description="Of items like the held-out ones, at most a share a has p-values of at most a."
    )
    statistics: list[float] = Field(
        description="Mean distance of each item from the nearest training items, in the critic's "
        "features: larger is stranger."
    )
    calibration_items: int = Field(
        description="Held-out items behind the p-values: with n of them, none is below 1 / (n + 1)."
    )
    residuals: list[Any] | None = Field(
        description="With `explain`: squared differences from what the generator makes, of images "
        "(N,H,W), means over channels; (N,D) or (N,T,D) of other data. Null for tables."
    )
    blame: list[dict[str, float]] | None = Field(
        description="With `explain`, of rows: the share of each column in the differences."
    )


async def post_anomalies(context: Context, request: Request) -> Response:
    """Examine items given as JSON or as files."""
    explain = request.query_params.get("explain", "false")
    if explain not in ("true", "false"):
        errors = [{"path": "/explain", "message": "is true or false"}]
        raise BadRequest("the query does not follow the schema", errors)

    def examine(job: ScoreJob) -> Response:
        detector = job.served.detector
        assert detector is not None, "a model without one is refused"
        found = detector.examine(job.items)
        residuals = blame = None
        if explain == "true":
            _require_few(detector.model, job.items)
            # The generator makes as many samples.
            anyio.from_thread.run_sync(spend_samples, context, request, len(job.items))
            differences = detector.residuals(job.items, job.labels)
            if detector.model.table is None:
                residuals = _short(differences)
            else:
                blame = in_columns(detector.blame(differences))
        answer = Anomalies(
            p_values=found.p_values.tolist(),
            statistics=found.statistics.tolist(),
            calibration_items=len(detector.calibration),
            residuals=residuals,
            blame=blame,
        )
        return JSONResponse(answer.model_dump(), headers=model_headers(job.served))

    async def work(read: Callable[[], ScoreJob], alone: bool) -> Response:
        return await context.processors.run("anomalies", lambda: examine(read()))

    return await read_and(work, context, request, _require_detector)


def _require_detector(served: Served) -> None:
    """Require a model with a detector.

    Raises:
        HTTPException: 404: it has none.
    """
    if served.detector is None:
        raise HTTPException(
            404, f"{served.version} has no detector; `wgan train-detector` makes one"
        )


def _require_few(model: Model, items: Array) -> None:
    """Require that items are not too many to be explained at once."""
    if model.table is None:
        numbers = math.prod(items.shape[:3])  # of images all but the channels
    else:
        numbers = len(items) * len(model.table.coded)
    if numbers > MAX_EXPLAINED:
        raise ShapeError(f"over {MAX_EXPLAINED} numbers to explain; send fewer items at once")


def in_columns(shares: dict[str, Array]) -> list[dict[str, float]]:
    """Write shares ``(N,)`` of columns row by row."""
    rows = zip(*map(_short, shares.values()), strict=True)
    return [dict(zip(shares, row, strict=True)) for row in rows]


def _short(numbers: Array) -> list[Any]:
    """Round numbers, which float32 would not leave short, to six decimals."""
    rounded: list[Any] = numbers.astype(np.float64).round(6).tolist()
    return rounded


EXPLAIN: dict[str, Any] = {
    "name": "explain",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "True: say where each item differs from what the generator makes.",
}
ENDPOINT = Endpoint(
    "POST",
    "/v1/anomalies",
    post_anomalies,
    {
        "operationId": "findAnomalies",
        "tags": ["scores"],
        "summary": "Say which items do not belong",
        "description": "By a calibrated p-value of each. Items are given as for scores. A model "
        "without a detector answers with a 404.",
        "parameters": [MODEL_PARAMETER, EXPLAIN],
        "requestBody": REQUEST_BODY,
        "responses": {
            **json_answer("The p-values.", ref(Anomalies), MODEL_HEADERS),
            **errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503, 504),
        },
    },
    schemas=(ScoresRequest, ScoresForm, Anomalies),
    scope="scores",
    by_name="/v1/models/{name}/anomalies",
)
