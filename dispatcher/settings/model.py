"""The settings of one dispatcher.

``DISPATCHER_*`` are its own; those whose names begin with ``PREFECT_`` are Prefect's and mean the
same. All durations are seconds.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis import Redis

from dispatcher.ledger import redis_url

ENV_PREFIX = "DISPATCHER_"

Names = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """The settings of one dispatcher; every process of a fleet gets the same ones.

    Raises:
        errors.SettingsError: through :func:`load`, naming each variable that is missing or wrong.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    work_pools: Names = Field(min_length=1, description="Work pools to serve, comma-separated.")
    work_queues: Names = Field(
        default=(), description="Work queues to serve, comma-separated; all queues when empty."
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis or Valkey for the claim ledger, and for Celery if nothing else is set.",
    )
    broker_url: SecretStr | None = Field(
        default=None,
        validate_default=True,
        description="Broker of the Celery workers, if not that Redis: another one, or RabbitMQ.",
    )
    namespace: str = Field(
        default="dispatcher",
        description="Tells apart what several dispatchers or other applications have in one Redis.",
    )
    worker_name: str = Field(
        default="celery-flow-dispatcher",
        description="The name under which the whole fleet appears as a worker in the Prefect UI.",
    )
    pool_type: str = Field(
        default="process", description="Executor type of a work pool that has to be created."
    )
    create_pool_if_not_found: bool = Field(
        default=True, description="Whether a work pool that does not exist is created."
    )
    poll_interval: PositiveFloat = Field(
        default=5.0, description="Seconds between two polls of a work pool."
    )
    prefetch_seconds: NonNegativeFloat = Field(
        default=10.0, description="How many seconds before its start time a run may be claimed."
    )
    cancel_interval: PositiveFloat = Field(
        default=2.0, description="Seconds between two looks for runs to cancel."
    )
    heartbeat_interval: PositiveInt = Field(
        default=30, description="Seconds between two heartbeats of the fleet to Prefect."
    )
    lease_seconds: PositiveFloat = Field(
        default=15.0, description="How long a running claim is held without being renewed."
    )
    recover_interval: PositiveFloat = Field(
        default=5.0, description="Seconds between two looks for runs that nobody takes care of."
    )
    infra_retries: NonNegativeInt = Field(
        default=3,
        description=(
            "How often a run that never reached Running is started again after its worker or "
            "its infrastructure was lost."
        ),
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How workers and beat log: for people, or a JSON line each."
    )
    health_host: str = Field(
        default="127.0.0.1", description="Address on which a worker answers health checks."
    )
    health_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of a worker's health checks; none if empty."
    )
    on_shutdown: Literal["crash", "reschedule"] = Field(
        default="crash",
        description=(
            "What becomes of a flow that has begun when its worker stops without waiting: Crashed, "
            "or started again from its beginning."
        ),
    )
    stop_timeout: PositiveFloat | None = Field(
        default=None,
        description=(
            "Seconds for which a worker that gets SIGTERM waits for its runs before it stops them; "
            "no limit if empty."
        ),
    )
    grace_seconds: NonNegativeFloat = Field(
        default=30.0, description="Seconds a cancelled run has to end before it is killed."
    )
    start: Literal["auto", "warm", "cold"] = Field(
        default="auto",
        description=(
            "How processes of flow runs are started: as forks of one that has imported Prefect "
            "(warm), as new ones (cold), or warm whenever that is possible at once (auto)."
        ),
    )
    preload: Names = Field(
        default=(),
        description="Modules that flow runs started warm find imported, comma-separated.",
    )
    python: str | None = Field(
        default=None,
        description=(
            "Interpreter, or virtual environment, of flow runs whose job variable python names "
            "none; the worker's own if empty."
        ),
    )
    prefect_api_url: str = Field(
        repr=False,  # it may hold a password
        validation_alias=AliasChoices("PREFECT_API_URL", "prefect_api_url"),
        description="Address of the Prefect API.",
    )
    prefect_ui_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("PREFECT_UI_URL", "prefect_ui_url"),
        description="Address of Prefect's user interface, if not that of the API without /api.",
    )
    prefect_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("PREFECT_API_KEY", "prefect_api_key"),
        description="Key of a Prefect Cloud workspace.",
    )
    prefect_api_auth_string: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("PREFECT_API_AUTH_STRING", "prefect_api_auth_string"),
        description="user:password of a self-hosted Prefect server with basic authentication.",
    )
    prefect_api_ssl_cert_file: str | None = Field(
        default=None,
        validation_alias=AliasChoices("PREFECT_API_SSL_CERT_FILE", "prefect_api_ssl_cert_file"),
        description="File with the authorities that the API's certificate is checked against.",
    )
    prefect_api_tls_insecure_skip_verify: bool = Field(
        default=False,
        validation_alias=AliasChoices(
            "PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "prefect_api_tls_insecure_skip_verify"
        ),
        description="Whether the API's certificate is left unchecked.",
    )
    prefect_api_enable_http2: bool = Field(
        default=False,
        validation_alias=AliasChoices("PREFECT_API_ENABLE_HTTP2", "prefect_api_enable_http2"),
        description="Whether the API may be asked by HTTP/2, which needs the package h2.",
    )
    prefect_client_custom_headers: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        repr=False,
        validation_alias=AliasChoices(
            "PREFECT_CLIENT_CUSTOM_HEADERS", "prefect_client_custom_headers"
        ),
        description="Further headers of every API request, as a JSON object.",
    )

    @field_validator("work_pools", "work_queues", "preload", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Take ``a,b`` or, for names with a comma, a JSON list."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("prefect_client_custom_headers", mode="before")
    @classmethod
    def _parse_headers(cls, value: Any) -> Any:
        return _from_json(value) if isinstance(value, str) else value

    @field_validator("worker_name")
    @classmethod
    def _check_worker_name(cls, value: str) -> str:
        if set(value) & {"/", "%"}:
            raise ValueError("a worker name cannot contain '/' or '%'")
        return value

    @field_validator("prefect_api_url")
    @classmethod
    def _check_api_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("it must start with http:// or https://")
        return value.rstrip("/")

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
            raise ValueError("it may have up to 64 letters, digits, '_', '.' and '-'")
        return value

    @field_validator("broker_url")
    @classmethod
    def _check_broker_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        ledger = info.data.get("redis_url", SecretStr(""))
        url = (value or ledger).get_secret_value()
        if url.startswith(redis_url.CLUSTER):
            raise ValueError(
                "it must name another broker for Celery's messages, which a Redis Cluster cannot be"
            )
        if value is None or url.startswith(("amqp://", "amqps://")):
            return value
        if not url.startswith(redis_url.SCHEMES):
            raise ValueError(
                f"it must start with amqp:// or amqps:// (RabbitMQ), {redis_url.EXPECTED}"
            )
        return _checked_redis_url(value)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(redis_url.SCHEMES):
            raise ValueError(f"it must start with {redis_url.EXPECTED}, redis+cluster://")
        return _checked_redis_url(value)


def _checked_redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if url.startswith(redis_url.SENTINEL):
        redis_url.parse_sentinel(url)
        return value
    if url.startswith(redis_url.CLUSTER):
        redis_url.parse_cluster(url)
        return value
    try:
        Redis.from_url(url)
    except ValueError:
        # Its text repeats parts of the URL.
        raise ValueError(
            "it is no URL of a Redis; write special characters of a password as %2F and so on"
        ) from None
    return value


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON ({error.msg})") from None
