{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "finetune-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "finetune-operator.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "finetune-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: finetune-operator
{{ include "finetune-operator.instance" . }}
{{- end }}

{{- define "finetune-operator.instance" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The operator's pods, and not that of the test. */}}
{{- define "finetune-operator.selector" -}}
{{ include "finetune-operator.instance" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "finetune-operator.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{- define "finetune-operator.port" -}}
8080
{{- end }}

{{- /* The file that the operator reads at its start. */}}
{{- define "finetune-operator.settings" -}}
{{- $own := dict
      "namespaces" .Values.watchNamespaces
      "healthPort" (include "finetune-operator.port" . | int)
      "leaseNamespace" .Release.Namespace
      "leaseName" (include "finetune-operator.fullname" .) -}}
{{- toYaml (merge $own .Values.settings) }}
{{- end }}

{{- /* Pod Security 'restricted'; nothing is written to the image. */}}
{{- define "finetune-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Where the FineTuneJobs' pods are, as a namespaceSelector of a NetworkPolicy. */}}
{{- define "finetune-operator.watchedNamespaces" -}}
{{- if .Values.watchNamespaces -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values: {{ toJson .Values.watchNamespaces }}
{{- else -}}
matchLabels: {}
{{- end }}
{{- end }}

{{- /* What the operator may do with FineTuneJobs and what belongs to them. */}}
{{- define "finetune-operator.rules" -}}
# Nothing on Secrets: they only pass through as references.
#
# The jobs it works on; it never changes a spec.
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch]
# Its one write on them.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [update]
# The workload: server-side apply needs create and patch. Deleted to be made anew, on another market say.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# The workload of jobs with parallelism.backend PyTorchJob.
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, create, patch, delete]
# The gang of jobs with resources.gang.
- apiGroups: [scheduling.volcano.sh, scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [get, create, patch]
# The name that the pods of several nodes find each other by.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
# The workload's pods are only looked at.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The plan; deleted when it is outdated before anything ran.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch, delete]
# Claims for output and cache.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create, patch]
# What kubectl describe shows; listed to learn why a workload gets no pod.
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end }}

{{- define "finetune-operator.subject" -}}
- kind: ServiceAccount
  name: {{ include "finetune-operator.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
