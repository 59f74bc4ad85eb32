"""A client of the service. It needs only httpx and numpy, so the file may be copied elsewhere.

with Client("http://127.0.0.1:3000") as client:
    samples = client.samples(16, seed=7)
    scores = client.score(samples.items)
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import quote, unquote

import httpx
import numpy as np

Array = np.ndarray
Record = dict[str, Any]
"""A row of a table, by column name; None where there is no value."""
Format = Literal["png", "webp", "zip", "npz", "json", "csv", "parquet", "arrow"]
RowsFormat = Literal["json", "csv", "npz", "parquet", "arrow"]


class ServiceError(Exception):
    """The service refused a request; the message is its `detail`. Subclasses say why."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        errors: list[dict[str, str]],
        retry_after: float | None,
    ) -> None:
        where = [f"{error['path']}: {error['message']}" for error in errors]
        super().__init__("; ".join([detail, *where]))
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        """Faults of the body, each with `path` and `message`."""
        self.retry_after = retry_after
        """Seconds to wait before trying again, if the service says so."""


class BadRequestError(ServiceError):
    """400: the body does not follow the schema; `errors` says where."""


class UnauthorizedError(ServiceError):
    """401: the service asks for an API key, and none or an unknown one was sent."""


class ForbiddenError(ServiceError):
    """403: the API key lacks the scope."""


class NotFoundError(ServiceError):
    """404: no such path, or the version that was named is not served."""


class TooLargeError(ServiceError):
    """413: the body is larger than the service reads."""


class UndecodableError(ServiceError):
    """415: a file is of no kind that the service reads."""


class UnsuitableError(ServiceError):
    """422: well formed, but not what this model makes or takes."""


class BusyError(ServiceError):
    """503: no model is ready, or too many requests are under way; try again."""


class LimitError(BusyError):
    """429: you ask for more at once, or in a second, than is yours; try again."""


class TooSlowError(ServiceError):
    """504: not done in time."""


class UnreachableError(Exception):
    """No answer at all: the address is wrong, nothing listens there, or the connection broke."""


ERRORS: dict[int, type[ServiceError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    413: TooLargeError,
    415: UndecodableError,
    422: UnsuitableError,
    429: LimitError,
    503: BusyError,
    504: TooSlowError,
}


@dataclass(frozen=True)
class Origin:
    """The model, and the seed, that an answer comes from."""

    version: str
    """The model's registry name and number, or its artifact's digest."""
    constraint: str
    """Kind of the critic constraint that it was trained under."""
    seed: int | None
    """The seed of samples; None for scores, and for samples from given latents."""


class SampleOptions(TypedDict, total=False):
    """Options of the samples to generate; each may be left out."""

    seed: int
    """The same seed gives the same samples; without it, the service takes a random one."""
    label: str
    """A class of a class-conditional model."""
    truncation: float
    """Standard deviations at which latents are cut off."""
    latents: Array
    """float ``(N, latent_size)``, in place of seed and truncation; the count is their number."""
    refine: bool
    """True: the critic guides the generator, which takes four to eight times as long."""
    model: str
    """Which served model: champion, challenger, or a version such as `Origin.version` tells it;
    without it, the champion, or the challenger for its share of requests."""
    where: dict[str, Any]
    """What every row of a table meets, by column: a value, a list of values, None for no value, or
    a range such as ``{"above": 5000}``."""
    walk_to: int
    """A second seed: samples at even steps on the way from `seed` to it, both ends included."""


@dataclass(frozen=True)
class Samples:
    """Samples and their origin."""

    items: Array
    """``(N, H, W, C)``, ``(N, D)`` or ``(N, T, D)``; uint8 of usual images, else float32 or 64."""
    origin: Origin


@dataclass(frozen=True)
class Rows:
    """Rows of a table and their origin."""

    items: list[Record]
    """In order; ``pandas.DataFrame(rows.items)`` makes a DataFrame."""
    origin: Origin


@dataclass(frozen=True)
class File:
    """Samples as a file's content, and their origin."""

    content: bytes
    origin: Origin


@dataclass(frozen=True)
class Scores:
    """Scores in the order of the items; each array is ``(N,)``."""

    scores: Array
    """Unbounded; higher is more like real data to this critic. No probability."""
    percentiles: Array
    """Percentile, 0 to 100, of each score among those of real held-out items."""
    out_of_range: Array
    """bool: True where a score lies outside those of all real held-out items."""
    normalized: Array | None
    """Scores divided by the critic's certified Lipschitz constant; None where it has none."""
    origin: Origin


@dataclass(frozen=True)
class Anomalies:
    """What the model's detector finds, in the order of the items."""

    p_values: Array
    """float ``(N,)``: of items like the held-out ones, at most a share a has at most a."""
    statistics: Array
    """float ``(N,)``: how far each item is from the training items, in the critic's features."""
    residuals: Array | None
    """If explained: squared differences of images, ``(N, H, W)``, or of each number."""
    blame: list[dict[str, float]] | None
    """If explained, of rows: the share of each column in the differences."""
    origin: Origin


class Client:
    """A connection to one service.

    Args:
        base_url: such as ``http://127.0.0.1:3000``; a path in it is kept.
        key: an API key, where the service asks for one.
        timeout: seconds to wait for a connection, and for each part of an answer.
        name: of the model, where the service has several; `models` tells the names.

    Raises:
        ServiceError: by every method, if the service refused; see its subclasses.
        UnreachableError: by every method, if there was no answer.
    """

    def __init__(
        self, base_url: str, key: str | None = None, timeout: float = 60.0, name: str | None = None
    ) -> None:
        self._record = "/v1/model" if name is None else f"/v1/models/{quote(name, safe='')}"
        self._root = "/v1" if name is None else self._record
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def samples(self, count: int | None = None, **options: Unpack[SampleOptions]) -> Samples:
        """Generate samples as an array; ``count`` is 1 unless given. For tables see `rows`."""
        file = self.file("npz", count, **options)
        with np.load(io.BytesIO(file.content)) as arrays:
            return Samples(arrays["samples"], file.origin)

    def rows(self, count: int | None = None, **options: Unpack[SampleOptions]) -> Rows:
        """Generate rows of a table of mixed columns; ``count`` is 1 unless given."""
        file = self.file("json", count, **options)
        return Rows(json.loads(file.content)["samples"], file.origin)

    def impute(
        self, rows: Sequence[Record], seed: int | None = None, *, model: str | None = None
    ) -> Rows:
        """Fill the gaps of rows: what is None, or is not there.

        Args:
            rows: of the model's table.
            seed: another one gives another completion; without it, the service takes a random one.
            model: which served model.
        """
        body = {"rows": list(rows), **_given(seed=seed, model=model)}
        response = self._send("POST", f"{self._root}/imputations", json=body)
        return Rows(response.json()["rows"], _origin(response))

    def impute_file(
        self,
        file: str | Path,
        seed: int | None = None,
        *,
        format: RowsFormat | None = None,
        model: str | None = None,
    ) -> File:
        """Fill the gaps of the rows in a CSV, Parquet or Arrow file; see `impute`.

        Without ``format``, the answer is what the file is.
        """
        parts = [("files", (Path(file).name, Path(file).read_bytes()))]
        query = _given(seed=seed, format=format, model=model)
        response = self._send("POST", f"{self._root}/imputations", files=parts, params=query)
        return File(response.content, _origin(response))

    def file(
        self,
        format: Format | None = None,
        count: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> File:
        """Generate samples as a file: png and webp are one grid, zip is one PNG for each.

        Without ``format``, png of images, else json.
        """
        body: dict[str, Any] = {**_given(format=format, count=count), **options}
        if "label" in body:
            body["class"] = body.pop("label")
        if "latents" in body:
            body["latents"] = np.asarray(body["latents"]).tolist()
        if "walk_to" in body:
            body["interpolation"] = {"to": body.pop("walk_to")}
        response = self._send("POST", f"{self._root}/samples", json=body)
        return File(response.content, _origin(response))

    def score(
        self,
        items: Array | Sequence[Record],
        classes: Sequence[str] | None = None,
        *,
        resize: bool = False,
        model: str | None = None,
    ) -> Scores:
        """Score items.

        Args:
            items: ``(N, H, W[, C])`` whole numbers from 0 to 255, ``(N, D)`` or ``(N, T, D)``; of a
                table of mixed columns, rows as `rows` returns them.
            classes: the class of each item, for a class-conditional model.
            resize: bring images to the model's size and channels.
            model: which served model.
        """
        body = _items(items, classes, resize) | _given(model=model)
        return _scores(self._send("POST", f"{self._root}/scores", json=body))

    def score_files(
        self,
        *files: str | Path,
        classes: Sequence[str] | None = None,
        resize: bool = False,
        model: str | None = None,
    ) -> Scores:
        """Score the items in image, .npy and .npz files, in order; for the rest see `score`.

        Of a table, the rows in CSV, Parquet and Arrow files.
        """
        form, query = _form(files, classes, resize), _given(model=model)
        return _scores(self._send("POST", f"{self._root}/scores", params=query, **form))

    def anomalies(
        self,
        items: Array | Sequence[Record],
        classes: Sequence[str] | None = None,
        *,
        resize: bool = False,
        explain: bool = False,
        model: str | None = None,
    ) -> Anomalies:
        """Say which items do not belong; see `score`.

        Args:
            items: as for scores.
            classes: likewise.
            resize: likewise.
            explain: say where each item differs from what the generator makes.
            model: which served model.

        Raises:
            NotFoundError: the model has no detector.
        """
        query = {"explain": str(explain).lower()}
        body = _items(items, classes, resize) | _given(model=model)
        return _anomalies(self._send("POST", f"{self._root}/anomalies", json=body, params=query))

    def anomalies_of_files(
        self,
        *files: str | Path,
        classes: Sequence[str] | None = None,
        resize: bool = False,
        explain: bool = False,
        model: str | None = None,
    ) -> Anomalies:
        """Say which items in files do not belong; see `score_files` and `anomalies`."""
        query = {"explain": str(explain).lower()} | _given(model=model)
        form = _form(files, classes, resize)
        return _anomalies(self._send("POST", f"{self._root}/anomalies", params=query, **form))

    def model(self, model: str | None = None) -> dict[str, Any]:
        """Get a model's record: the champion's, unless another is named."""
        return dict(self._send("GET", self._record, params=_given(model=model)).json())

    def models(self) -> dict[str, Any]:
        """Get the registry's versions, and which are served."""
        return dict(self._send("GET", "/v1/models").json())

    def drift(self, model: str | None = None) -> dict[str, Any]:
        """Get the drift: the distance of recently scored items from real ones.

        Raises:
            NotFoundError: the service does not measure it.
        """
        return dict(self._send("GET", f"{self._root}/drift", params=_given(model=model)).json())

    def picture(self, model: str | None = None) -> bytes:
        """Get a PNG of samples, drawn when the model was made."""
        return self._send("GET", f"{self._record}/samples.png", params=_given(model=model)).content

    def is_ready(self) -> bool:
        """Return True if a model is served."""
        try:
            self._send("GET", "/readyz")
        except (BusyError, UnreachableError):
            return False
        return True

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            address = str(self._http.base_url.copy_with(userinfo=b"")).rstrip("/")
            raise UnreachableError(f"{address}: {error or type(error).__name__}") from error
        if response.is_success:
            return response
        raise _error(response)


def _given(**options: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in options.items() if value is not None}


def _items(
    items: Array | Sequence[Record], classes: Sequence[str] | None, resize: bool
) -> dict[str, Any]:
    """The JSON body that holds items."""
    body: dict[str, Any] = {"resize": resize}
    if isinstance(items, Sequence) and items and isinstance(items[0], dict):
        body["rows"] = list(items)
    else:
        body["samples"] = np.asarray(items).tolist()
    return body if classes is None else body | {"classes": list(classes)}


def _form(
    files: Sequence[str | Path], classes: Sequence[str] | None, resize: bool
) -> dict[str, Any]:
    """The form that holds files of items, as httpx takes it."""
    parts = [("files", (Path(file).name, Path(file).read_bytes())) for file in files]
    texts: dict[str, Any] = {"resize": str(resize).lower()}
    return {"files": parts, "data": texts if classes is None else texts | {"classes": [*classes]}}


def _anomalies(response: httpx.Response) -> Anomalies:
    answer = response.json()
    residuals = answer["residuals"]
    return Anomalies(
        np.array(answer["p_values"]),
        np.array(answer["statistics"]),
        None if residuals is None else np.array(residuals),
        answer["blame"],
        _origin(response),
    )


def _scores(response: httpx.Response) -> Scores:
    answer = response.json()
    normalized = answer["normalized_scores"]
    return Scores(
        np.array(answer["scores"]),
        np.array(answer["percentiles"]),
        np.array(answer["out_of_range"]),
        None if normalized is None else np.array(normalized),
        _origin(response),
    )


def _origin(response: httpx.Response) -> Origin:
    headers = response.headers
    seed = headers.get("X-Seed")
    return Origin(
        unquote(headers.get("X-Model-Version", "")),
        headers.get("X-Constraint", ""),
        None if seed is None else int(seed),
    )


def _error(response: httpx.Response) -> ServiceError:
    """Make the error of a problem+json (RFC 9457), or of a proxy's answer in another form."""
    problem: dict[str, Any] = {}
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        problem = response.json()
    wait = response.headers.get("retry-after", "")
    return ERRORS.get(response.status_code, ServiceError)(
        response.status_code,
        problem.get("title", response.reason_phrase),
        problem.get("detail", response.text[:200] or response.reason_phrase),
        problem.get("errors", []),
        float(wait) if wait.isdigit() else None,
    )
