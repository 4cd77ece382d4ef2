"""Job configuration of the docker executor: the fields of Prefect's ``docker`` work pools."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib import parse

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from executors import attribution, memory_limits
from executors import configuration as configurations

if TYPE_CHECKING:
    from dispatcher.prefect_api import schemas

API_URL = "PREFECT_API_URL"
LOOPBACK = frozenset({"localhost", "127.0.0.1"})
# By this name a container reaches the host it runs on.
HOST_ALIAS = "host.docker.internal"
HOST_GATEWAY = "host-gateway"

PREFECT_IMAGE = "prefecthq/prefect"
NEWEST_PREFECT_TAG = "3-latest"
MAX_NAME_LENGTH = 250

# Which attempt of its run a container is, by the transition id of the claim.
ATTEMPT_LABEL = "dispatcher.attempt"
FLOW_RUN_LABEL = "io.prefect.flow-run-id"

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_.-]+")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")

PullPolicy = Literal["IfNotPresent", "Always", "IfPossible", "Never"]


def _check_volume(volume: str) -> str:
    source, _, rest = volume.partition(":")
    target, _, options = rest.partition(":")
    if not rest:
        target = source
    elif not is_path(source) and not _VOLUME_NAME.fullmatch(source):
        raise ValueError(f"{source!r} is neither the name of a volume nor a path")
    if not target.startswith("/"):
        raise ValueError(f"{target!r} is not an absolute path in the container")
    if options not in {"", "ro", "rw"}:
        raise ValueError(f"the option {options!r} is neither 'ro' nor 'rw'")
    return volume


def is_path(source: str) -> bool:
    """Whether a volume's source is a path on the host rather than the name of a volume."""
    return source.startswith(("/", "./", "../")) or source in {".", ".."}


Volume = Annotated[str, AfterValidator(_check_volume)]


def default_image() -> str:
    """Return Prefect's own image, for the Prefect and Python of this process if it has one."""
    try:
        version = metadata.version(attribution.PREFECT_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return f"{PREFECT_IMAGE}:{NEWEST_PREFECT_TAG}"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{PREFECT_IMAGE}:{version}-python{python}"


class RegistryCredentials(BaseModel):
    """What Prefect's block ``docker-registry-credentials`` holds."""

    model_config = ConfigDict(
        extra="ignore",
        title="DockerRegistryCredentials",
        hide_input_in_errors=True,
        # By these, Prefect's UI lets the user choose a block.
        json_schema_extra={
            "block_type_slug": "docker-registry-credentials",
            "block_schema_references": {},
            "secret_fields": ["password"],
        },
    )

    username: str = Field(description="Name to log into the registry with.")
    password: SecretStr = Field(description="Password to log into the registry with.")
    registry_url: str = Field(description="Address of the registry; http(s):// can be left out.")
    reauth: bool = Field(default=True, description="Whether to log in anew for each pull.")


class DockerJobConfiguration(configurations.BaseJobConfiguration):
    """What a run's container is made with."""

    image: str = Field(
        default_factory=default_image,
        description="The image of the container; Prefect's own of this version if left out.",
        examples=["prefecthq/prefect:3-latest"],
    )
    registry_credentials: RegistryCredentials | None = Field(
        default=None, description="What to log into a registry with when the image is pulled."
    )
    image_pull_policy: PullPolicy | None = Field(
        default=None,
        description=(
            "When the image is pulled. Left empty: always for the tag 'latest' or none, otherwise"
            " if it is not present. IfPossible goes on with the present one if it cannot be pulled."
        ),
    )
    networks: list[str] = Field(
        default_factory=list, description="Docker networks that the container is connected to."
    )
    network_mode: str | None = Field(
        default=None,
        description="The network mode of the container (host, bridge …); not with 'networks'.",
    )
    auto_remove: bool = Field(
        default=False, description="Whether the container is removed when it has ended."
    )
    volumes: list[Volume] = Field(
        default_factory=list,
        description=(
            "Volumes and directories to mount. Relative paths start at the worker's directory."
        ),
        examples=["/my/local/path:/path/in/container", "./data:/path/in/container"],
    )
    stream_output: bool = Field(
        default=True,
        description="Whether the worker's standard output shows what the container prints.",
    )
    mem_limit: str | None = Field(
        default=None,
        title="Memory Limit",
        description="How much memory the container may use: bytes, or 100000b, 1000k, 128m, 1g.",
    )
    memswap_limit: str | None = Field(
        default=None,
        title="Memory Swap Limit",
        description=(
            "How much memory and swap it may use together, -1 for any amount of swap; only with"
            " 'mem_limit', and twice that if left empty."
        ),
    )
    privileged: bool = Field(
        default=False, description="Whether the container gets extended privileges."
    )
    container_create_kwargs: dict[str, Any] | None = Field(
        default=None,
        title="Container Configuration",
        description="Further arguments of docker-py's containers.create.",
    )

    def take_variables(self, values: Mapping[str, Any]) -> None:
        """Take the memory limit as the process executor knows it; raises as the inherited does."""
        limit = memory_limits.parse(values.get(memory_limits.LIMIT_VARIABLE))
        if limit is not None and self.mem_limit is None:
            self.mem_limit = self.memswap_limit = f"{limit}b"

    def prepare_for_flow_run(
        self,
        flow_run: schemas.FlowRun,
        deployment: schemas.Deployment | None = None,
        flow: schemas.Flow | None = None,
        work_pool: schemas.WorkPool | None = None,
        worker_name: str | None = None,
    ) -> None:
        """Add what depends on the run, and write it as Docker wants it.

        An API address on the loopback interface, unless it is the job's own, is replaced by one
        under which a container with a network of its own reaches this host.
        """
        has_own_address = API_URL in self.env
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name)
        if not has_own_address and self.get_network_mode() != "host" and API_URL in self.env:
            self.env[API_URL] = _seen_from_container(str(self.env[API_URL]))
        self.labels = {docker_label(name): value for name, value in self.labels.items()}
        details = flow_run.state.state_details if flow_run.state else None
        if details is not None and details.transition_id is not None:
            self.labels[ATTEMPT_LABEL] = str(details.transition_id)
        self.name = container_name(self.name)

    def get_network_mode(self) -> str | None:
        """Return the network mode: the host's own if Prefect's API is on its loopback interface.

        An explicit mode wins; networks exclude any.
        """
        if self.network_mode or self.networks:
            return self.network_mode
        host = parse.urlsplit(self.env.get(API_URL) or "").hostname
        return "host" if host in LOOPBACK and sys.platform == "linux" else None

    def get_extra_hosts(self) -> dict[str, str]:
        """Return names for the container's hosts file: the host, if Prefect's API may be there."""
        address = self.env.get(API_URL) or ""
        if not address or parse.urlsplit(address).hostname in {*LOOPBACK, HOST_ALIAS}:
            return {HOST_ALIAS: HOST_GATEWAY}
        return {}

    def get_pull_policy(self) -> PullPolicy:
        """Return when to pull the image, with the default that Kubernetes has too."""
        if self.image_pull_policy is not None:
            return self.image_pull_policy
        _, _, tag = self.image.rpartition("/")[2].partition(":")
        is_digest = "@" in self.image
        return "IfNotPresent" if is_digest or tag not in {"", "latest"} else "Always"


def docker_label(name: str) -> str:
    """Write a label as Docker's are written: ``prefect.io/a`` becomes ``io.prefect.a``."""
    namespace, slash, key = name.partition("/")
    return f"{'.'.join(reversed(namespace.split('.')))}.{key}" if slash else name


def container_name(name: str | None) -> str | None:
    """Return a name that Docker takes, ``None`` where it has to find one."""
    plain = unicodedata.normalize("NFKD", name or "").encode("ascii", "ignore").decode()
    return _NOT_IN_A_NAME.sub("-", plain).strip("-").lstrip("_-.")[:MAX_NAME_LENGTH] or None


def absolute_volume(volume: str) -> str:
    """Resolve a relative path on the host against this process' directory."""
    source, colon, rest = volume.partition(":")
    return f"{Path(source).absolute()}{colon}{rest}" if colon and source[0] == "." else volume


def _seen_from_container(address: str) -> str:
    for name in LOOPBACK:
        address = address.replace(name, HOST_ALIAS)
    return address
