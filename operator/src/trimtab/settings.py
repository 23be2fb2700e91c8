"""The operator's settings: the only place that reads environment variables (contracts §9, §10)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from trimtab.observe.gpus import RESOURCES


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, alias_generator=None
    )


class PodDefaults(_Strict):
    """What every pod that Trimtab creates gets on top of its own template (contracts §10)."""

    image: str = ""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"  # noqa: N815 - the chart's names
    imagePullSecrets: tuple[dict[str, Any], ...] = ()  # noqa: N815
    extraEnv: tuple[dict[str, Any], ...] = ()  # noqa: N815
    extraVolumes: tuple[dict[str, Any], ...] = ()  # noqa: N815
    extraVolumeMounts: tuple[dict[str, Any], ...] = ()  # noqa: N815
    nodeSelector: dict[str, str] = Field(default_factory=dict)  # noqa: N815
    tolerations: tuple[dict[str, Any], ...] = ()
    priorityClassName: str = ""  # noqa: N815
    runtimeClassName: str = ""  # noqa: N815


class HostPathPolicy(_Strict):
    """Whether intents may mount folders of nodes, and below which prefixes."""

    enabled: bool = False
    allowedPrefixes: tuple[str, ...] = ()  # noqa: N815

    @field_validator("allowedPrefixes")
    @classmethod
    def _absolute(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            if not prefix.startswith("/") or ".." in prefix.split("/"):
                raise ValueError(
                    f"sources.hostPath.allowedPrefixes holds {prefix!r}; "
                    "give absolute paths without '..', such as /srv/models."
                )
        return prefixes


class HubPolicy(_Strict):
    """Whether models may be downloaded, and from where."""

    enabled: bool = False
    endpoint: str = "https://huggingface.co"


class ImagePolicy(_Strict):
    """Whether models may come as image volumes."""

    enabled: bool = False


class Sources(_Strict):
    """Which sources of models this installation allows; claims are always allowed."""

    hostPath: HostPathPolicy = HostPathPolicy()  # noqa: N815
    huggingFace: HubPolicy = HubPolicy()  # noqa: N815
    image: ImagePolicy = ImagePolicy()


class Settings(BaseSettings):
    """Everything that an installation decides; each field is TRIMTAB_<NAME> in the environment."""

    model_config = SettingsConfigDict(env_prefix="TRIMTAB_", frozen=True, extra="ignore")

    system_namespace: str = "trimtab-system"
    pod_name: str = "trimtab-operator"
    pod_uid: str = ""
    log_level: str = "info"
    bind_address: str = "0.0.0.0"  # noqa: S104 - pods listen on all addresses
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8081
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 8002

    worker_image: str = "trimtab-worker:latest"
    gpu_images: dict[str, str] = Field(default_factory=dict)
    """Images of workers by the resource of their GPUs; GPUs without one are not planned on."""
    pod_defaults: PodDefaults = PodDefaults()
    sources: Sources = Sources()

    metrics_peers: tuple[dict[str, Any], ...] = (
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
        },
    )
    """NetworkPolicyPeers that may read metrics ports; the chart's `networkPolicy.prometheus`."""

    gateway_auth: Literal["Kubernetes", "None"] = "Kubernetes"
    gateway_service: str = "trimtab-gateway"
    gateway_endpoint: str = ""

    lease_name: str = "trimtab-operator"
    lease_seconds: Annotated[float, Field(gt=0)] = 15.0
    renew_deadline_seconds: Annotated[float, Field(gt=0)] = 10.0
    retry_seconds: Annotated[float, Field(gt=0)] = 2.0

    policy_time_divisor: Annotated[float, Field(ge=1)] = 1.0
    """Tests divide policy times (not time-outs of requests) by this; printed at start."""

    cpu_reserve_millicores: Annotated[int, Field(ge=0)] = 0
    sharing_headroom_models: Annotated[int, Field(ge=0, le=8)] = 1
    """For how many more models a sharing group's worker reserves memory (chart: sharing)."""
    fingerprint_grid: Literal["cpu", "quick"] = "cpu"

    network_error_seconds: Annotated[float, Field(gt=0)] = 600.0
    """How long kopf's own requests are repeated before the process ends; tests shorten it."""

    @field_validator("gpu_images")
    @classmethod
    def _known(cls, images: dict[str, str]) -> dict[str, str]:
        for resource in images:
            if resource not in RESOURCES:
                raise ValueError(
                    f"worker.gpuImages has key {resource!r}; name one of {', '.join(RESOURCES)}."
                )
        return images

    @property
    def image(self) -> str:
        """Image of workers and Jobs."""
        return self.pod_defaults.image or self.worker_image

    @property
    def endpoint(self) -> str:
        """The OpenAI base URL that users see."""
        return self.gateway_endpoint or (
            f"http://{self.gateway_service}.{self.system_namespace}.svc:8080/v1"
        )

    def policy_seconds(self, seconds: float) -> float:
        """Return a policy time, divided where tests ask for it."""
        return seconds / self.policy_time_divisor

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            pydantic.ValidationError: With one entry per wrong variable.
        """
        return cls()
