{{- define "wgan.name" -}}
{{ default .Release.Name .Values.fullname | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Labels that choose pods: (list . "serve"). */}}
{{- define "wgan.selector" -}}
app.kubernetes.io/name: wgan-foundry
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels: (list . "serve"). */}}
{{- define "wgan.labels" -}}
{{ include "wgan.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- with (index . 0).Values.objects.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "wgan.image" -}}
image: {{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}

{{- define "wgan.trackingUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "wgan.name" . }}-mlflow:5000
{{- else -}}
{{ .Values.mlflow.externalUri }}
{{- end }}
{{- end }}

{{/* The chart's own variables for the tracking server and its credentials, for wgan.env. */}}
{{- define "wgan.trackingEnv" -}}
- name: MLFLOW_TRACKING_URI
  value: {{ include "wgan.trackingUri" . | quote }}
  by: mlflow.enabled or mlflow.externalUri
{{- if .Values.mlflow.secret }}
- {name: MLFLOW_TRACKING_USERNAME_FILE, value: /etc/mlflow/username, by: mlflow.secret}
- {name: MLFLOW_TRACKING_PASSWORD_FILE, value: /etc/mlflow/password, by: mlflow.secret}
{{- end }}
{{- if .Values.mlflow.tokenSecret }}
- {name: MLFLOW_TRACKING_TOKEN_FILE, value: /etc/mlflow/token, by: mlflow.tokenSecret}
{{- end }}
{{- end }}

{{- define "wgan.runsClaim" -}}
{{ default (printf "%s-runs" (include "wgan.name" .)) .Values.runs.existingClaim }}
{{- end }}

{{/* A container that trains; its name and command are added by the caller. */}}
{{- define "wgan.trainer" -}}
{{ include "wgan.image" .Values.images.train }}
{{ include "wgan.container" (list . "train") }}
workingDir: /runs
resources: {{- include "wgan.trainerResources" . | nindent 2 }}
volumeMounts: {{- include "wgan.trainerMounts" . | nindent 2 }}
{{- end }}

{{/* Resources of one training pod. */}}
{{- define "wgan.trainerResources" -}}
requests:
  {{- toYaml .Values.retrain.resources.requests | nindent 2 }}
limits:
  {{- toYaml .Values.retrain.resources.limits | nindent 2 }}
  {{- if .Values.retrain.gpu.count }}
  {{ .Values.retrain.gpu.resource }}: {{ .Values.retrain.gpu.count }}
  {{- end }}
{{- end }}

{{- define "wgan.trainerMounts" -}}
- {name: runs, mountPath: /runs}
- {name: config, mountPath: /etc/wgan, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- include "wgan.mounts" (list . "train") }}
{{- end }}

{{/* Environment of a container that trains or samples: (list $ OWN), with OWN as wgan.env has it. */}}
{{- define "wgan.trainerEnv" -}}
{{- $root := index . 0 }}
{{- $own := printf "%s\n%s\n%s" (index . 1) (include "wgan.trackingEnv" $root) (include "wgan.s3Env" $root) }}
{{- include "wgan.env" (list $root "train" $root.Values.retrain.env $own) }}
{{- end }}

{{/* The chart's own variables for buckets, for wgan.env. */}}
{{- define "wgan.s3Env" -}}
{{- with .Values.s3 }}
{{- if .secret }}
{{- range $name := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.s3.secret }}, key: {{ $name }}}}
  by: s3.secret
{{- end }}
- {name: AWS_DEFAULT_REGION, value: {{ .region | quote }}, by: s3.region}
# Do not wait for the metadata service: the network policy refuses connections to it.
- {name: AWS_EC2_METADATA_DISABLED, value: "true", by: s3.secret}
{{- end }}
{{- if .endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ .endpoint | quote }}, by: s3.endpoint}
{{- end }}
{{- end }}
{{- end }}

{{- define "wgan.trainerVolumes" -}}
- name: runs
  persistentVolumeClaim: {claimName: {{ include "wgan.runsClaim" . }}}
- name: config
  configMap: {name: {{ include "wgan.name" . }}-retrain}
- name: tmp
  emptyDir: {sizeLimit: {{ index .Values.retrain.resources.limits "ephemeral-storage" }}}
{{- include "wgan.volumes" (list . "train") }}
{{- end }}

{{/* The key by which retraining signs: an environment variable, its mount and its volume. */}}
{{- define "wgan.signingEnv" -}}
{{- if .Values.signing.key }}
- {name: WGAN_SIGNING_KEY, value: /etc/wgan-signing/key.pem, by: signing.key}
{{- end }}
{{- end }}

{{- define "wgan.signingMount" -}}
{{- if .Values.signing.key }}
- {name: signing, mountPath: /etc/wgan-signing, readOnly: true}
{{- end }}
{{- end }}

{{- define "wgan.signingVolume" -}}
{{- if .Values.signing.key }}
- name: signing
  secret: {secretName: {{ .Values.signing.key }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* Egress: DNS, this release's MLflow, and the rules of the values: (list . rules). */}}
{{- define "wgan.egress" -}}
{{- $root := index . 0 -}}
- to: {{- toYaml $root.Values.networkPolicy.dns | nindent 4 }}
  ports:
    {{- range $root.Values.networkPolicy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- if $root.Values.mlflow.enabled }}
- to:
    - podSelector:
        matchLabels: {{- include "wgan.selector" (list $root "mlflow") | nindent 10 }}
  ports: [{port: http, protocol: TCP}]
{{- end }}
{{- with index . 1 }}
{{ toYaml . }}
{{- end }}
{{- end }}
