"""The only reader of the environment. Every field is a setting: its variable, its flag, its explanation."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from backend.errors import InvalidSettings

_CREDENTIALS = re.compile(r"^([a-z]+://)?.*@", re.DOTALL)  # up to the last @: a mistyped password may hold one


class Settings(BaseSettings):
    """All settings. `read` makes one from the environment and the flags."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    host: str = Field("0.0.0.0", alias="GNER_HOST", description="address to listen on")
    port: int = Field(9090, alias="PORT", ge=1, le=65535, description="port to listen on")
    model_dir: Path = Field(
        Path("data"),
        alias="MODEL_DIR",
        description="folder for everything that must survive a restart: the embedded store, trained versions",
    )
    model: str = Field(
        "gner-mini",
        alias="GNER_MODEL",
        min_length=1,
        description="checkpoint: gner-mini (bundled), a folder, or a hub id such as dyyyyyyyy/GNER-T5-base",
    )
    device: str = Field("auto", alias="GNER_DEVICE", description="auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", alias="GNER_DTYPE", description="number format of the model: auto is bfloat16 on a GPU, else float32"
    )
    gpus: Literal["one", "all"] = Field(
        "one",
        alias="GNER_GPUS",
        description="one, or all: spread a model that is too large for one GPU over all of them",
    )
    quantization: Literal["off", "int8", "int4"] = Field(
        "off",
        alias="GNER_QUANTIZATION",
        description="int8 or int4: smaller weights on a GPU, with slightly different labels (needs bitsandbytes)",
    )
    decoding: Literal["exact", "sequential", "generate"] = Field(
        "exact",
        alias="GNER_DECODING",
        description="exact (draft and verify: fast), sequential (token by token: slow, the same labels) or generate "
        "(unconstrained, parsed afterwards: the paper's method)",
    )
    beams: int = Field(1, alias="GNER_BEAMS", ge=1, le=64, description="beams for decoding=generate")
    batch_tokens: int = Field(
        0,
        alias="GNER_BATCH_TOKENS",
        ge=0,
        description="tokens per batch, source and target, padding included; 0: depends on the device",
    )
    draft_window: int = Field(
        0,
        alias="GNER_DRAFT_WINDOW",
        ge=0,
        description="tokens that one decoder pass verifies per text; 0: depends on the device",
    )
    draft_model: str = Field(
        "gner-mini",
        alias="GNER_DRAFT_MODEL",
        min_length=1,
        description="checkpoint whose draft head serves one that has none, with decoding=exact: gner-mini or off",
    )
    redis_url: str = Field(
        "",
        alias="REDIS_URL",
        description="Redis or Valkey to use, e.g. redis://localhost:6379/0; empty: an embedded Valkey under MODEL_DIR",
    )
    cache: Literal["on", "off"] = Field("on", alias="GNER_CACHE", description="keep predictions in Redis: on or off")
    cache_entries: int = Field(
        200_000,
        alias="GNER_CACHE_ENTRIES",
        ge=1,
        description="maximum number of cached predictions; the oldest are dropped",
    )
    cache_days: float = Field(
        30, alias="GNER_CACHE_DAYS", gt=0, description="days after which a cached prediction is dropped"
    )
    predict_deadline_s: float = Field(
        90,
        alias="GNER_PREDICT_DEADLINE_S",
        gt=0,
        description="seconds after which /predict answers with the tasks done so far (Label Studio waits 100)",
    )
    threads: int = Field(
        32,
        alias="GNER_THREADS",
        ge=2,
        description="most /predict requests at the same time, half of them over many tasks; all other requests have "
        "threads of their own",
    )
    max_queue: int = Field(
        20_000,
        alias="GNER_MAX_QUEUE",
        ge=1,
        description="most windows of texts that wait for the model; then requests over many tasks are answered 503",
    )
    worker: Literal["on", "off"] = Field(
        "on",
        alias="GNER_WORKER",
        description="on: serve also starts a training worker; off: workers are started elsewhere",
    )
    train_after: int = Field(
        20,
        alias="GNER_TRAIN_AFTER",
        ge=0,
        description="changed annotations after which a project is trained automatically; 0: only on request. A "
        'project\'s own extra params, {"train_after": N}, take precedence',
    )
    train_device: str = Field(
        "auto",
        alias="GNER_TRAIN_DEVICE",
        description="device for training: auto (the same as --device), cpu, cuda or cuda:N",
    )
    label_studio_url: str = Field(
        "", alias="LABEL_STUDIO_URL", description="address of Label Studio, for everything that needs its API"
    )
    label_studio_api_key: str = Field(
        "", alias="LABEL_STUDIO_API_KEY", repr=False, description="access token of Label Studio, legacy or personal"
    )
    basic_auth_user: str = Field(
        "", alias="BASIC_AUTH_USER", description="user that callers must give; empty: no check"
    )
    basic_auth_pass: str = Field("", alias="BASIC_AUTH_PASS", repr=False, description="password that callers must give")
    webhook_secret: str = Field(
        "",
        alias="GNER_WEBHOOK_SECRET",
        repr=False,
        description="secret that opens /webhook alone: Label Studio calls /webhook/SECRET, or sends X-Webhook-Secret",
    )
    allowed_hosts: str = Field(
        "",
        alias="GNER_ALLOWED_HOSTS",
        description="names under which browsers may call the backend, besides local ones; commas between them",
    )
    max_body_mb: float = Field(
        64,
        alias="GNER_MAX_BODY_MB",
        gt=0,
        description="largest request body in megabytes; all tasks of a bulk request come in one body",
    )
    max_text_chars: int = Field(
        1_000_000,
        alias="GNER_MAX_TEXT_CHARS",
        ge=1,
        description="longest text of a task, in characters; tasks with more are answered empty",
    )
    max_tasks: int = Field(
        10_000,
        alias="GNER_MAX_TASKS",
        ge=1,
        description="most tasks of one request; those after them are answered empty",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", alias="LOG_LEVEL", description="lowest level of messages that are logged"
    )

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _http_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @property
    def auth(self) -> tuple[str, str] | None:
        """User and password that callers must give, if any."""
        return (self.basic_auth_user, self.basic_auth_pass) if self.basic_auth_user else None

    @property
    def allowed_host_names(self) -> frozenset[str]:
        """The names in `allowed_hosts`, in lower case."""
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def store_dir(self) -> Path:
        """Files of the embedded store."""
        return self.model_dir.resolve() / "store"

    def environment(self) -> dict[str, str]:
        """Variables from which another process reads these same settings."""
        return {_alias(name): str(getattr(self, name)) for name in type(self).model_fields}


def variable(name: str) -> str:
    """A field's environment variable."""
    return _alias(name)


def flag(name: str) -> str:
    """A field's command-line flag."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def without_password(url: str) -> str:
    """A URL for people and logs."""
    return _CREDENTIALS.sub(r"\1***@", url)


def _alias(name: str) -> str:
    alias = Settings.model_fields[name].alias
    assert alias is not None
    return alias


def read(**flags: Any) -> Settings:
    """The environment, overridden by flags. Raises InvalidSettings, which names each wrong setting and its value."""
    given = {_alias(name): value for name, value in flags.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise InvalidSettings("; ".join(_sentence(problem) for problem in error.errors())) from None
    if bool(settings.basic_auth_user) != bool(settings.basic_auth_pass):
        raise InvalidSettings("BASIC_AUTH_USER and BASIC_AUTH_PASS must be given together")
    return settings


def _sentence(problem: Any) -> str:
    name = str(problem["loc"][0])
    field = next((n for n in Settings.model_fields if name in (n, _alias(n))), name)
    value = "" if field.endswith(("pass", "key", "secret")) else f"={without_password(str(problem['input']))!r}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{_alias(field)}{value} ({flag(field)}): {message[0].lower()}{message[1:]}"
