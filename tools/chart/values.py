"""The chart's values as a model: values.yaml, its schema and the README's table are generated from it."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from finetune_api.kubernetes import (
    Affinity,
    DnsLabel,
    DnsSubdomain,
    Duration,
    LabelKey,
    Labels,
    LocalObjectReference,
    PodSecurityContext,
    Quantity,
    SeccompProfile,
    Toleration,
)
from finetune_api.model_base import ApiModel
from finetune_operator.settings import Settings

SET_BY_THE_CHART = frozenset({"namespaces", "health_port", "lease_namespace", "lease_name"})
"""Fields of Settings that follow from other values or from the release."""

Port = Annotated[int, Field(ge=1, le=65535)]
Annotations = dict[LabelKey, str]
Cidr = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f.:]+/[0-9]{1,3}$")]


class Image(ApiModel):
    """The operator's image; the trainer's is settings.trainerImage."""

    repository: Annotated[str, StringConstraints(pattern=r"^[^\s@]+$")] = "finetune-operator"
    """Name of the image, with its registry if it has one."""
    tag: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{0,128}$")] = ""
    """Tag; the chart's appVersion when empty."""
    digest: Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """Digest, such as sha256:…; the tag is ignored with it."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the node pulls it."""


class Crds(ApiModel):
    """The CustomResourceDefinition of FineTuneJob."""

    install: bool = True
    """Install and upgrade it with the chart."""
    keep: bool = True
    """Leave it at `helm uninstall`. Without it every FineTuneJob goes too."""


class Rbac(ApiModel):
    """Who may do what."""

    create: bool = True
    """Make the operator's roles: a ClusterRole, or Roles in watchNamespaces when that is set."""
    user_roles: bool = True
    """Make ClusterRoles that add FineTuneJobs to the cluster's roles view, edit and admin."""


class ServiceAccount(ApiModel):
    """The operator's identity."""

    create: bool = True
    """Make it."""
    name: DnsSubdomain | Literal[""] = ""
    """Name; the release's full name when empty, 'default' when it isn't made."""
    annotations: Annotations = {}
    """Annotations."""


class PodDisruptionBudget(ApiModel):
    """Keeps one replica while nodes are drained."""

    enabled: bool = True
    """Make it; only with two replicas or more."""


class Resources(ApiModel):
    """Requests and limits of the operator's container."""

    requests: dict[Literal["cpu", "memory", "ephemeral-storage"], Quantity] = {"cpu": "100m", "memory": "192Mi"}
    """What is set aside on the node."""
    limits: dict[Literal["cpu", "memory", "ephemeral-storage"], Quantity] = {"memory": "512Mi"}
    """What it may use at most."""


class Service(ApiModel):
    """The Service in front of /metrics, /healthz and /readyz."""

    annotations: Annotations = {}
    """Annotations."""


class ApiServer(ApiModel):
    """Where the operator reaches the API server."""

    ports: Annotated[list[Port], Field(min_length=1)] = [443, 6443]
    """Its ports: of the Service, and of the endpoints behind it."""
    cidrs: list[Cidr] = []
    """Its addresses, such as 10.0.0.0/28; any when empty."""


class NetworkPolicy(ApiModel):
    """What the operator may talk to: the API server, and the metrics port of trainers."""

    enabled: bool = True
    """Make it."""
    api_server: ApiServer = ApiServer()
    """Where the operator reaches the API server."""
    ingress_from: list[dict[str, Any]] = []
    """Peers (NetworkPolicyPeer) that may reach port 8080; all when empty. The kubelet's probes come from the node."""
    extra_egress: list[dict[str, Any]] = []
    """More rules (NetworkPolicyEgressRule), such as DNS where the API server is reached by name."""


class Scrape(ApiModel):
    """A monitor."""

    enabled: bool = False
    """Make it; needs the Prometheus operator's CustomResourceDefinitions."""
    interval: Duration = "30s"
    """Time between two scrapes."""


class Rules(ApiModel):
    """The PrometheusRule with the alerts."""

    enabled: bool = False
    """Make it; needs the Prometheus operator's CustomResourceDefinitions."""


class Dashboards(ApiModel):
    """ConfigMaps with Grafana dashboards, for Grafana's sidecar."""

    enabled: bool = False
    """Make them."""
    labels: Labels = {"grafana_dashboard": "1"}
    """Labels that the sidecar looks for."""
    annotations: Annotations = {}
    """Annotations, such as grafana_folder."""


class Monitoring(ApiModel):
    """For the Prometheus operator and Grafana."""

    labels: Labels = {}
    """Labels of the monitors and rules, where Prometheus selects by one, such as release: kube-prometheus-stack."""
    service_monitor: Scrape = Scrape()
    """ServiceMonitor: the operator's metrics."""
    pod_monitor: Scrape = Scrape()
    """PodMonitor: the trainers' metrics."""
    rules: Rules = Rules()
    """The PrometheusRule with the alerts."""
    dashboards: Dashboards = Dashboards()
    """ConfigMaps with Grafana dashboards, for Grafana's sidecar."""


class Values(ApiModel):
    """All values of the chart."""

    image: Image = Image()
    """The operator's image; the trainer's is settings.trainerImage."""
    image_pull_secrets: list[LocalObjectReference] = []
    """Secrets for the registry of the operator's image, in the release's namespace."""
    name_override: DnsLabel | Literal[""] = ""
    """Instead of the chart's name."""
    fullname_override: DnsLabel | Literal[""] = ""
    """Instead of the name made of release and chart."""
    replicas: Annotated[int, Field(ge=1, le=9)] = 2
    """Replicas; one leads, the others wait for its Lease."""
    watch_namespaces: Annotated[list[DnsLabel], Field(json_schema_extra={"uniqueItems": True})] = []
    """Namespaces whose FineTuneJobs are worked on, with Roles there instead of a ClusterRole; all when empty."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    crds: Crds = Crds()
    """The CustomResourceDefinition of FineTuneJob."""
    rbac: Rbac = Rbac()
    """Who may do what."""
    service_account: ServiceAccount = ServiceAccount()
    """The operator's identity."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """Keeps one replica while nodes are drained."""
    resources: Resources = Resources()
    """Requests and limits of the operator's container."""
    pod_security_context: PodSecurityContext = PodSecurityContext(
        run_as_non_root=True, seccomp_profile=SeccompProfile(type="RuntimeDefault")
    )
    """Security of the operator's pod; the user is the image's own unless runAsUser says another."""
    pod_labels: Labels = {}
    """More labels of the operator's pods."""
    pod_annotations: Annotations = {}
    """More annotations of the operator's pods."""
    priority_class_name: DnsSubdomain | Literal[""] = ""
    """Priority class of the operator's pods."""
    node_selector: Labels = {}
    """Labels of the nodes that the operator may run on."""
    tolerations: list[Toleration] = []
    """Taints that the operator tolerates."""
    affinity: Affinity = Affinity()
    """Affinity of the operator's pods."""
    topology_keys: list[LabelKey] = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    """Node labels over which the replicas are spread, if there is a choice."""
    service: Service = Service()
    """The Service in front of /metrics, /healthz and /readyz."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """What the operator may talk to: the API server, and the metrics port of trainers."""
    monitoring: Monitoring = Monitoring()
    """For the Prometheus operator and Grafana."""
    settings: Settings = Settings()
    """What every job gets unless it says otherwise: the operator's settings file."""
    global_: Annotated[dict[str, Any], Field(alias="global")] = {}
    """Helm passes this to charts that are part of another; not used."""
