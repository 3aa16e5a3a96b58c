"""The parts of core/v1 that a FineTuneJob takes over as they are, validated as strictly as the API server does."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from finetune_api.model_base import ApiModel

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
POSITIVE_QUANTITY_PATTERN = (
    r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
)
DURATION_PATTERN = r"^([0-9]+(h|m|s))+$"
DNS_LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_PREFIX = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
_QUALIFIED = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY_PATTERN = f"^({_PREFIX})?{_QUALIFIED}$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
ENV_NAME_PATTERN = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
SECRET_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
ABSOLUTE_PATH_PATTERN = r"^(/[^:/]+)*/?$"
FIELD_PATH_PATTERN = r"^(metadata\.(name|namespace|uid|(labels|annotations)\['[^']{1,317}'\])|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs))$"
RESOURCE_NAME_PATTERN = f"^{_PREFIX}{_QUALIFIED}$"

INT32_MAX = 2_147_483_647

# Quantities are an int or a string, as the API server takes them; a float such as 0.5 has to be quoted.
_AS_TEXT = BeforeValidator(
    lambda value: str(value) if isinstance(value, int) and not isinstance(value, bool) else value
)


def _int_or_string(pattern: str, minimum: int) -> WithJsonSchema:
    return WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": pattern, "maxLength": 32, "minimum": minimum})


Quantity = Annotated[
    str, _AS_TEXT, StringConstraints(pattern=QUANTITY_PATTERN, max_length=32), _int_or_string(QUANTITY_PATTERN, 0)
]
PositiveQuantity = Annotated[
    str,
    _AS_TEXT,
    StringConstraints(pattern=POSITIVE_QUANTITY_PATTERN, max_length=32),
    _int_or_string(POSITIVE_QUANTITY_PATTERN, 1),
]
Duration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN, max_length=32)]
DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL_PATTERN, min_length=1, max_length=63)]
DnsSubdomain = Annotated[str, StringConstraints(pattern=DNS_SUBDOMAIN_PATTERN, min_length=1, max_length=253)]
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY_PATTERN, min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE_PATTERN, max_length=63)]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME_PATTERN, min_length=1, max_length=253)]
SecretKey = Annotated[str, StringConstraints(pattern=SECRET_KEY_PATTERN, min_length=1, max_length=253)]
AbsolutePath = Annotated[str, StringConstraints(pattern=ABSOLUTE_PATH_PATTERN, min_length=1, max_length=1024)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]

_SCALE = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)
}


def parse_quantity(quantity: str) -> float:
    """Value of a Kubernetes quantity in its base unit (bytes, cores).

    Raises ValueError on text that is not a quantity. Source: Kubernetes API conventions, resource.Quantity.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", quantity)
    if match is None or match[2] not in _SCALE:
        raise ValueError(f"{quantity!r} is not a quantity")
    return float(match[1]) * _SCALE[match[2]]


def parse_duration(duration: str) -> int:
    """Seconds of a duration such as ``1h30m``. Raises ValueError on text that is not a duration."""
    if not re.fullmatch(DURATION_PATTERN, duration):
        raise ValueError(f"{duration!r} is not a duration")
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)([hms])", duration))


class SecretKeyRef(ApiModel):
    """One key of a Secret in the job's namespace."""

    name: DnsSubdomain
    """Name of the Secret."""
    key: SecretKey
    """Key in the Secret."""


class LocalObjectReference(ApiModel):
    """An object in the job's namespace."""

    name: DnsSubdomain
    """Name of the object."""


class ConfigMapKeySelector(ApiModel):
    """One key of a ConfigMap."""

    name: DnsSubdomain
    """Name of the ConfigMap."""
    key: SecretKey
    """Key in the ConfigMap."""
    optional: bool | None = None
    """Whether the ConfigMap or key may be absent."""


class SecretKeySelector(ConfigMapKeySelector):
    """One key of a Secret."""


class ObjectFieldSelector(ApiModel):
    """A field of the pod."""

    field_path: Annotated[str, StringConstraints(pattern=FIELD_PATH_PATTERN, max_length=400)] = Field(
        examples=["spec.nodeName"]
    )
    """Path of the field, such as metadata.name."""
    api_version: Literal["v1"] | None = None
    """Version of the path's schema."""


class ResourceFieldSelector(ApiModel):
    """A resource of the container."""

    resource: Literal[
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
    ]
    """Such as limits.cpu."""
    container_name: DnsLabel | None = None
    """Container; the trainer when absent."""
    divisor: Quantity | None = None
    """Unit of the value."""


class EnvVarSource(ApiModel):
    """Where a variable's value comes from; exactly one is set."""

    secret_key_ref: SecretKeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: ConfigMapKeySelector | None = None
    """A key of a ConfigMap."""
    field_ref: ObjectFieldSelector | None = None
    """A field of the pod."""
    resource_field_ref: ResourceFieldSelector | None = None
    """A resource of the container."""


class EnvVar(ApiModel):
    """One environment variable: ``value`` or ``valueFrom``."""

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Plain value. Never a secret: use valueFrom.secretKeyRef."""
    value_from: EnvVarSource | None = None
    """Reference to the value."""


class EnvFromSource(ApiModel):
    """All keys of a ConfigMap or Secret as variables."""

    prefix: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Put before each key."""
    config_map_ref: LocalObjectReference | None = None
    """The ConfigMap."""
    secret_ref: LocalObjectReference | None = None
    """The Secret."""


class Toleration(ApiModel):
    """Lets the pod run on nodes with a matching taint."""

    key: LabelKey | None = None
    """Key of the taint; absent with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Equal when absent."""
    value: LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; absent: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """How long a NoExecute taint is tolerated; absent: for ever."""


class KeyToPath(ApiModel):
    """A key as a file."""

    key: SecretKey
    """The key."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Relative path of the file."""
    mode: Annotated[int, Field(ge=0, le=511)] | None = None
    """Permission bits."""


class EmptyDirVolumeSource(ApiModel):
    """A folder that lives as long as the pod."""

    medium: Literal["", "Memory"] | None = None
    """Memory: a tmpfs."""
    size_limit: Quantity | None = None
    """Most it may hold."""


class PersistentVolumeClaimVolumeSource(ApiModel):
    """A PersistentVolumeClaim of the namespace."""

    claim_name: DnsSubdomain
    """Name of the claim."""
    read_only: bool | None = None
    """Mount it read-only."""


class ConfigMapVolumeSource(ApiModel):
    """A ConfigMap as files."""

    name: DnsSubdomain
    """Name of the ConfigMap."""
    items: Annotated[list[KeyToPath], Field(max_length=64)] | None = None
    """Only these keys."""
    default_mode: Annotated[int, Field(ge=0, le=511)] | None = None
    """Permission bits."""
    optional: bool | None = None
    """Whether it may be absent."""


class SecretVolumeSource(ApiModel):
    """A Secret as files."""

    secret_name: DnsSubdomain
    """Name of the Secret."""
    items: Annotated[list[KeyToPath], Field(max_length=64)] | None = None
    """Only these keys."""
    default_mode: Annotated[int, Field(ge=0, le=511)] | None = None
    """Permission bits."""
    optional: bool | None = None
    """Whether it may be absent."""


class HostPathVolumeSource(ApiModel):
    """A path of the node. Pod Security 'restricted' and 'baseline' refuse it."""

    path: AbsolutePath
    """Path on the node."""
    type: (
        Literal["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"]
        | None
    ) = None
    """What must be there."""


class NFSVolumeSource(ApiModel):
    """An NFS export."""

    server: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Host name or address."""
    path: AbsolutePath
    """Exported path."""
    read_only: bool | None = None
    """Mount it read-only."""


class CSIVolumeSource(ApiModel):
    """An inline volume of a CSI driver."""

    driver: DnsSubdomain
    """Name of the driver."""
    fs_type: Annotated[str, StringConstraints(max_length=64)] | None = None
    """File system."""
    read_only: bool | None = None
    """Mount it read-only."""
    volume_attributes: (
        Annotated[
            dict[Annotated[str, StringConstraints(max_length=253)], Annotated[str, StringConstraints(max_length=1024)]],
            Field(max_length=64),
        ]
        | None
    ) = None
    """Settings for the driver."""
    node_publish_secret_ref: LocalObjectReference | None = None
    """Secret for the driver."""


class Volume(ApiModel):
    """A volume of the pod: a name and exactly one source."""

    name: DnsLabel
    """Name of the volume."""
    empty_dir: EmptyDirVolumeSource | None = None
    """A folder that lives as long as the pod."""
    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None
    """A PersistentVolumeClaim."""
    config_map: ConfigMapVolumeSource | None = None
    """A ConfigMap."""
    secret: SecretVolumeSource | None = None
    """A Secret."""
    host_path: HostPathVolumeSource | None = None
    """A path of the node."""
    nfs: NFSVolumeSource | None = None
    """An NFS export."""
    csi: CSIVolumeSource | None = None
    """An inline CSI volume."""


class VolumeMount(ApiModel):
    """Where a volume appears in the trainer."""

    name: DnsLabel
    """Name of a volume of podTemplate.volumes."""
    mount_path: AbsolutePath
    """Where it is mounted."""
    sub_path: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Path in the volume."""
    read_only: bool | None = None
    """Mount it read-only."""


class SELinuxOptions(ApiModel):
    """SELinux context."""

    level: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Level."""
    role: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Role."""
    type: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Type."""
    user: Annotated[str, StringConstraints(max_length=253)] | None = None
    """User."""


class SeccompProfile(ApiModel):
    """Seccomp profile."""

    type: Literal["RuntimeDefault", "Localhost", "Unconfined"]
    """Kind of profile."""
    localhost_profile: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """File on the node, with type Localhost."""


class PodSecurityContext(ApiModel):
    """Security of the pod; what is absent keeps the operator's restricted default."""

    run_as_user: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """User id."""
    run_as_group: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """Group id."""
    run_as_non_root: bool | None = None
    """Refuse to run as root."""
    fs_group: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """Group that owns the volumes."""
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    """When the volumes' owner is changed."""
    supplemental_groups: Annotated[list[Annotated[int, Field(ge=0, le=INT32_MAX)]], Field(max_length=64)] | None = None
    """More groups."""
    seccomp_profile: SeccompProfile | None = None
    """Seccomp profile."""
    se_linux_options: SELinuxOptions | None = None
    """SELinux context."""


class NodeSelectorRequirement(ApiModel):
    """One condition on a node's label."""

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """Comparison."""
    values: Annotated[list[LabelValue], Field(max_length=64)] | None = None
    """Values compared with."""


class NodeSelectorTerm(ApiModel):
    """Conditions that all hold."""

    match_expressions: Annotated[list[NodeSelectorRequirement], Field(max_length=32)] | None = None
    """On labels."""
    match_fields: Annotated[list[NodeSelectorRequirement], Field(max_length=32)] | None = None
    """On fields."""


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=32)]
    """The terms."""


class PreferredSchedulingTerm(ApiModel):
    """A weighed wish."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Weight, 1 to 100."""
    preference: NodeSelectorTerm
    """The wish."""


class NodeAffinity(ApiModel):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=32)] | None
    ) = None
    """Should hold."""


class LabelSelectorRequirement(ApiModel):
    """One condition on a label."""

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """Comparison."""
    values: Annotated[list[LabelValue], Field(max_length=64)] | None = None
    """Values compared with."""


class LabelSelector(ApiModel):
    """Which pods."""

    match_labels: Labels | None = None
    """Labels that pods have."""
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=32)] | None = None
    """Conditions on labels."""


class PodAffinityTerm(ApiModel):
    """Near or far from which pods."""

    label_selector: LabelSelector | None = None
    """Which pods."""
    namespaces: Annotated[list[DnsLabel], Field(max_length=32)] | None = None
    """In which namespaces."""
    namespace_selector: LabelSelector | None = None
    """In namespaces with which labels."""
    topology_key: LabelKey
    """What counts as near: a node label."""


class WeightedPodAffinityTerm(ApiModel):
    """A weighed wish."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Weight, 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The wish."""


class PodAffinity(ApiModel):
    """Near or far from other pods."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodAffinityTerm], Field(max_length=32)] | None
    ) = None
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[WeightedPodAffinityTerm], Field(max_length=32)] | None
    ) = None
    """Should hold."""


class PodAntiAffinity(PodAffinity):
    """Far from other pods."""


class Affinity(ApiModel):
    """Where the pod runs."""

    node_affinity: NodeAffinity | None = None
    """By nodes."""
    pod_affinity: PodAffinity | None = None
    """Near other pods."""
    pod_anti_affinity: PodAntiAffinity | None = None
    """Far from other pods."""
