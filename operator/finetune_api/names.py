"""Every name that two parts of the system must agree on: API, labels, environment, paths, condition types and reasons."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT_NAME = "ftj"
CATEGORY = "ml"

FIELD_MANAGER = "finetune-operator"

LABEL_JOB_NAME = f"{GROUP}/job-name"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
ANNOTATION_MARKET = f"{GROUP}/market"
ANNOTATION_PLAN_HASH = f"{GROUP}/plan-hash"

LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
ANNOTATION_NETWORKS = "k8s.v1.cni.cncf.io/networks"

# How the pods of a workload are numbered: by the Job controller, and by Kubeflow's.
LABEL_INDEX = "batch.kubernetes.io/job-completion-index"
LABEL_REPLICA_INDEX = "training.kubeflow.org/replica-index"

PYTORCHJOB_API_VERSION = "kubeflow.org/v1"
WORKLOADS = ("Job", "PyTorchJob")
"""Kinds of what runs the training."""

GPU_RESOURCE = "nvidia.com/gpu"
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"

CONTAINER = "trainer"
# Kubeflow's training operator wants this name, of the container and of the port that the nodes meet at.
PYTORCHJOB_CONTAINER = "pytorch"
PYTORCHJOB_PORT_NAME = "pytorchjob-port"
RENDEZVOUS_PORT = 29400
# What the trainer image starts, behind its init process; the pod gives the arguments.
ENTRYPOINT = ("python", "-m", "finetune_trainer")
METRICS_PORT_NAME = "metrics"
PLAN_KEY = "plan.json"
PLAN_FILE = f"/etc/finetune/{PLAN_KEY}"
PLAN_DIRECTORY = "/etc/finetune"
TERMINATION_LOG = "/dev/termination-log"

# Where the nodes of a job meet, and which of them this is, as torchrun names it.
ENV_MASTER_ADDR = "MASTER_ADDR"
ENV_MASTER_PORT = "MASTER_PORT"
ENV_NODE_RANK = "PET_NODE_RANK"

# Environment of the trainer. POD_IP is where it serves /metrics and /progress.
ENV_POD_IP = "POD_IP"
ENV_POD_NAME = "POD_NAME"
ENV_NODE_NAME = "NODE_NAME"
ENV_HF_TOKEN = "HF_TOKEN"
ENV_HF_HOME = "HF_HOME"
ENV_WANDB_API_KEY = "WANDB_API_KEY"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
ENV_LOG_FORMAT = "FINETUNE_LOG_FORMAT"


class Condition:
    """Condition types of a FineTuneJob; ``kubectl wait --for=condition=…`` works on each."""

    VALIDATED = "Validated"
    READY = "Ready"
    PROGRESSING = "Progressing"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class Phase:
    """One word for a person; machines read the conditions."""

    PENDING = "Pending"
    QUEUED = "Queued"
    PREPARING = "Preparing"
    RUNNING = "Running"
    CHECKPOINTING = "Checkpointing"
    PREEMPTED = "Preempted"
    RESUMING = "Resuming"
    EVALUATING = "Evaluating"
    EXPORTING = "Exporting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class Reason:
    """Reasons of conditions and Events."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    CREATED = "WorkloadCreated"
    REFUSED = "WorkloadRefused"
    POD_REFUSED = "PodRefused"
    CONTAINER_CONFIG = "ContainerConfigError"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePullFailed"
    PREPARING = "Preparing"
    TRAINING = "Training"
    RESTARTING = "Restarting"
    PREEMPTED = "Preempted"
    RESUMING = "Resuming"
    QUEUED = "Queued"
    TOO_MANY_PREEMPTIONS = "TooManyPreemptions"
    MARKET_CHANGED = "MarketChanged"
    BUDGET_EXCEEDED = "BudgetExceeded"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    NOT_SUSPENDED = "NotSuspended"
    SUCCEEDED = "Succeeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    DELETING = "WaitingForDeletion"
