"""Settings of the service: every environment variable that it reads, in one class.

`python -m service.settings` writes the table in docs/operating.md from this class.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from models import registry
from models.errors import ConfigError
from models.redaction import redacted
from service import sources

MIN_DRIFT_WINDOW = 50
"""With fewer scores than this, only gross changes would show."""
MAX_SHOWN = 60
"""Characters of a value in a message."""
PAGE = Path(__file__).parent.parent / "docs/operating.md"
START, END = "<!-- made by `python -m service.settings` -->\n", "<!-- end -->"


def _folder(path: Path) -> Path:
    """Check that a folder is there, or could be made."""
    path = path.absolute()
    try:
        existing = next(p for p in (path, *path.parents) if p.exists())
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"write the path of a folder ({error.strerror})") from None
    if not existing.is_dir():
        raise ValueError(f"write the path of a folder; {existing} is a file")
    return path


def _window(size: int) -> int:
    if 0 < size < MIN_DRIFT_WINDOW:
        raise ValueError(f"write 0, or at least {MIN_DRIFT_WINDOW} items")
    return size


def _url(text: str) -> str:
    if not re.match(r"https?://[^\s/]", text):
        raise ValueError("write a URL that begins with http:// or https://")
    return text


def _origins(text: str) -> str:
    """Check origins, separated by commas, and write them as browsers do."""
    origins = [origin.strip().lower() for origin in text.split(",") if origin.strip()]
    if not all(re.fullmatch(r"https?://[^\s/*@?#]+", origin) for origin in origins):
        raise ValueError("write origins such as https://a.example, separated by commas")
    return ",".join(origins)


Url = Annotated[str, AfterValidator(_url)]
ModelName = Annotated[str, AfterValidator(sources.absolute)]
ModelNames = Annotated[str, AfterValidator(sources.named)]


def _challengers(text: str, info: ValidationInfo) -> str:
    """Check a list; of one model alone the challenger is all of the text, `=` and commas too."""
    return sources.absolute(text) if info.data.get("model") else sources.named(text)


class Settings(BaseSettings):
    """Settings for operators, one for each variable. An empty variable counts as not set."""

    model_config = SettingsConfigDict(
        case_sensitive=True,
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    model: ModelName = Field(
        "",
        alias="WGAN_MODEL",
        description="an artifact folder, or a registry name such as `digits@champion` or "
        "`digits@3`; `--model`",
    )
    models: ModelNames = Field(
        "",
        alias="WGAN_MODELS",
        description="in its place, several models, such as `digits@champion,wine@champion`, or "
        "`NAME=MODEL` for another name: see [below](#several-models); `--model` for each",
    )
    models_memory: int = Field(
        0,
        alias="WGAN_MODELS_MEMORY",
        ge=0,
        le=1_000_000,
        description="MiB that the files of all versions held by one process may have together: "
        "see [below](#several-models). 0: any number",
    )
    tracking_uri: str = Field(
        default_factory=registry.tracking_uri,
        alias="MLFLOW_TRACKING_URI",
        description="the registry; a folder needs none",
        json_schema_extra={"default": "`mlflow.db` here"},
    )
    registry_poll_seconds: float = Field(
        30.0,
        alias="WGAN_REGISTRY_POLL_SECONDS",
        ge=0.05,
        le=604_800,
        description="how often the registry is asked which version its alias names; each wait "
        "varies by a fifth, so that replicas do not ask at once",
    )
    cache: Annotated[Path, AfterValidator(_folder)] | None = Field(
        None,
        alias="WGAN_CACHE",
        description="downloaded versions are kept below `models/` there; on a volume they outlive "
        "the container",
        json_schema_extra={"default": "`~/.cache/wgan-foundry`"},
    )
    challenger: Annotated[str, AfterValidator(_challengers)] = Field(
        "",
        alias="WGAN_CHALLENGER",
        description="a second model, named like the first, such as `digits@challenger`; of several "
        "models, a list of them",
    )
    challenger_share: float = Field(
        0.0,
        alias="WGAN_CHALLENGER_SHARE",
        ge=0,
        le=1,
        description="share of the requests that name no model which goes to the challenger",
    )
    workers: int = Field(
        1, alias="WGAN_WORKERS", ge=1, le=1024, description="processes that answer; `--workers`"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        alias="WGAN_DEVICE",
        description="what the models compute on: `cpu` or `cuda`; versions that were made with "
        "`serving.device=cuda` fill a GPU",
    )
    max_in_flight: int = Field(
        144,
        alias="WGAN_MAX_IN_FLIGHT",
        ge=1,
        le=1_000_000,
        description="requests that one process answers at the same time, a third of them of one "
        "caller alone; more are refused: see [service.md](service.md#limits)",
    )
    requests_per_second: float = Field(
        0.0,
        alias="WGAN_REQUESTS_PER_SECOND",
        ge=0,
        le=1_000_000,
        description="requests below `/v1` that one process takes from one key (without keys: from "
        "one address) in a second, on average; more are refused (429). 0: any number",
    )
    samples_per_second: float = Field(
        0.0,
        alias="WGAN_SAMPLES_PER_SECOND",
        ge=0,
        le=1_000_000_000,
        description="the same of samples that are asked for",
    )
    proxies: int = Field(
        0,
        alias="WGAN_PROXIES",
        ge=0,
        le=16,
        description="proxies that every request comes through; with any, a client's address is "
        "read from the `X-Forwarded-For` to which each of them adds",
    )
    # Absolute, because the workers run in another folder.
    api_keys_file: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        alias="WGAN_API_KEYS_FILE",
        description="the file of API keys: see [service.md](service.md#keys)",
        json_schema_extra={"default": "none: anybody may ask"},
    )
    tls_cert: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        alias="WGAN_TLS_CERT",
        description="the file of the TLS certificate and its chain, in PEM; `--tls-cert`. With it "
        "the service speaks HTTPS alone; both files are read again when they change",
        json_schema_extra={"default": "none: HTTP"},
    )
    tls_key: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        alias="WGAN_TLS_KEY",
        description="the file of the certificate's key, not encrypted; `--tls-key`",
    )
    trusted_keys: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        alias="WGAN_TRUSTED_KEYS",
        description="a public key in PEM, or a folder of them; a version that none of them has "
        "signed is refused: see [signed models](#signed-models)",
        json_schema_extra={"default": "none: anything sound is served"},
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        "",
        alias="WGAN_CORS_ORIGINS",
        description="pages that may call the service from browsers, by origin, such as "
        "`https://a.example,https://b.example:8443`",
        json_schema_extra={"default": "none: its own pages alone"},
    )
    finish_seconds: int = Field(
        20,
        alias="WGAN_FINISH_SECONDS",
        ge=1,
        le=86_400,
        description="how long requests under way may still take at the end, after draining; a "
        "streamed answer takes up to 11 minutes",
    )
    drain_seconds: float = Field(
        0.0,
        alias="WGAN_DRAIN_SECONDS",
        ge=0,
        le=86_400,
        description="how long the service is unready, still answering, between SIGTERM and its "
        "end; longer than a load balancer takes to notice",
    )
    keep_alive_seconds: int = Field(
        620,
        alias="WGAN_KEEP_ALIVE_SECONDS",
        ge=1,
        le=86_400,
        description="how long a connection is kept for its next request; longer than the load "
        "balancer in front keeps it: see [below](#behind-a-load-balancer)",
    )
    drift_window: Annotated[int, AfterValidator(_window)] = Field(
        0,
        alias="WGAN_DRIFT_WINDOW",
        ge=0,
        le=1_000_000,
        description=f"scored items that drift is measured over, at least {MIN_DRIFT_WINDOW}; "
        "0 turns it off",
    )
    kept_items: Annotated[Path, AfterValidator(_folder)] | None = Field(
        None,
        alias="WGAN_KEPT_ITEMS",
        description="a folder for the last scored items of each model: see [below](#drift)",
        json_schema_extra={"default": "none: none are"},
    )
    otlp_endpoint: Url | None = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="where traces go, by OTLP over HTTP; OpenTelemetry's other variables hold too",
        json_schema_extra={"default": "none: no traces"},
    )
    otlp_traces_endpoint: Url | None = Field(
        None, alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", description="the same, as the whole URL"
    )
    otel_service_name: str = Field(
        "wgan", alias="OTEL_SERVICE_NAME", description="the service's name in traces"
    )
    metrics_folder: Path | None = Field(
        None,
        alias="PROMETHEUS_MULTIPROC_DIR",
        exclude=True,  # no operator's business: BentoML sets it for its workers
        description="folder of the metrics and drift windows that the workers share",
    )

    @model_validator(mode="after")
    def _share_has_challenger(self) -> Self:
        if self.challenger_share and not self.challenger:
            raise ValueError("WGAN_CHALLENGER_SHARE: name the challenger in WGAN_CHALLENGER")
        return self

    @model_validator(mode="after")
    def _models_agree(self) -> Self:
        if self.model and self.models:
            raise ValueError("WGAN_MODELS: leave out WGAN_MODEL, and name its model here")
        strangers = self.challengers.keys() - self.champions.keys()
        if strangers and self.champions:
            raise ValueError(
                f"WGAN_CHALLENGER: {min(strangers):.100} is none of the models "
                f"{', '.join(self.champions):.300}; write NAME=MODEL"
            )
        return self

    @model_validator(mode="after")
    def _tls_has_both(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            names = ["WGAN_TLS_CERT", "WGAN_TLS_KEY"]
            given, missing = names if self.tls_key is None else names[::-1]
            raise ValueError(f"{given}: give {missing} too")
        return self

    @classmethod
    def read(cls, **variables: Any) -> Settings:
        """Read the environment.

        Args:
            variables: values, by variable, that take the environment's place.

        Raises:
            ConfigError: a variable has a bad value; one line that names it.
        """
        try:
            return cls(**variables)
        except ValidationError as error:
            raise ConfigError("; ".join(map(_complaint, error.errors()))) from None

    @property
    def champions(self) -> dict[str, str]:
        """The source of each model's champion, by the model's name."""
        if self.model:
            return {sources.name_of(self.model): self.model}
        return sources.by_name(self.models)

    @property
    def challengers(self) -> dict[str, str]:
        """The sources of challengers, by the name of their model."""
        if self.model:
            return dict.fromkeys(self.champions, self.challenger) if self.challenger else {}
        return sources.by_name(self.challenger)

    @property
    def is_tracing(self) -> bool:
        """True if spans are sent anywhere."""
        return bool(self.otlp_endpoint or self.otlp_traces_endpoint)

    def environment(self) -> dict[str, str]:
        """The variables that hold these settings, for processes in other folders."""
        values = self.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
        values["MLFLOW_TRACKING_URI"] = self.tracking_uri  # its default depends on the folder
        return {name: str(value) for name, value in values.items()}


def public_fields() -> dict[str, FieldInfo]:
    """The settings that operators may use, by variable."""
    fields = Settings.model_fields.values()
    return {str(field.alias): field for field in fields if not field.exclude}


def misspelt() -> list[str]:
    """Warn, in a line each, of variables that are set and not read but have nearly a known name.

    Other names are ignored: for a Service named wgan, Kubernetes sets WGAN_PORT and others.
    """
    known = public_fields()
    return [
        f"{name} is not read by the service; did you mean {nearest[0]}?"
        for name in sorted(os.environ.keys() - known.keys())
        if name.startswith("WGAN_") and (nearest := difflib.get_close_matches(name, known, 1, 0.85))
    ]


def table() -> str:
    """The settings as a Markdown table."""
    lines = ["| variable | what | values | default |", "|---|---|---|---|"]
    for name, field in public_fields().items():
        extra = field.json_schema_extra
        default = extra["default"] if isinstance(extra, dict) else field.default
        shown = f"{default:g}" if isinstance(default, float) else default or "none"
        if default == 0:
            shown = "0"
        lines.append(f"| `{name}` | {field.description} | {_allowed(field)} | {shown} |")
    return "\n".join(lines) + "\n"


def page(content: str) -> str:
    """The page's text with the present table in it."""
    before, _, rest = content.partition(START)
    return before + START + table() + END + rest.partition(END)[2]


def _allowed(field: FieldInfo) -> str:
    """Describe the values that a number may have, such as "0 to 1"; empty without bounds."""
    lowest = next((m.ge for m in field.metadata if isinstance(m, Ge)), None)
    highest = next((m.le for m in field.metadata if isinstance(m, Le)), None)
    return "" if lowest is None else f"{lowest:,} to {highest:,}"


def _complaint(error: ErrorDetails) -> str:
    """One line for one bad value."""
    if not error["loc"]:  # of several settings together: it names them itself
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    field = public_fields()[name]
    text = redacted(str(error["input"]))  # before it is cut
    shown = text if text.isprintable() else ascii(text)
    shown = shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."
    if error["type"] == "value_error":
        return f"{name}={shown}: {error['ctx']['error']}"
    if error["type"] == "literal_error":
        return f"{name}={shown}: write {error['ctx']['expected']}"
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{name}={shown}: write {kind}, {_allowed(field)}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
