{{/* What is common to all pods: restrictions, and what the values add under `pods`. Each template here takes
(list $ COMPONENT ...), with serve, train or mlflow as the component. */}}

{{/* What the values add to a component's pods, as JSON. Lists of pods.all come first; of everything else the
component's own wins, and null takes away. */}}
{{- define "wgan.added" -}}
{{- $pods := (index . 0).Values.pods }}
{{- $added := deepCopy $pods.all }}
{{- range $key, $own := index $pods (index . 1) }}
{{- $all := get $added $key }}
{{- if kindIs "slice" $own }}
{{- $_ := set $added $key (concat $all $own) }}
{{- else if kindIs "map" $own }}
{{- $_ := set $added $key (include "wgan.over" (list $own $all) | fromJson) }}
{{- else }}
{{- $_ := set $added $key $own }}
{{- end }}
{{- end }}
{{- toJson $added }}
{{- end }}

{{/* Two maps as one, as JSON: (list OWN ALL). The own keys win, with empty values too, and null takes away. */}}
{{- define "wgan.over" -}}
{{- $all := deepCopy (default dict (index . 1)) }}
{{- range $name, $value := default dict (index . 0) }}
{{- if kindIs "invalid" $value }}{{ $_ := unset $all $name }}{{ else }}{{ $_ := set $all $name $value }}{{ end }}
{{- end }}
{{- toJson $all }}
{{- end }}

{{/* Metadata of a pod template. */}}
{{- define "wgan.podMetadata" -}}
{{- $added := include "wgan.added" . | fromJson -}}
labels:
  {{- include "wgan.selector" . | nindent 2 }}
  {{- with $added.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $added.annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "wgan.account" -}}
{{ default (include "wgan.name" .) .Values.serviceAccount.name }}
{{- end }}

{{/* Fields of a pod: (list $ COMPONENT WORKLOAD), where the workload's values may have a nodeSelector and
tolerations. As it stands: no token, no privileges, a user that the node does not have. */}}
{{- define "wgan.pod" -}}
{{- $root := index . 0 }}
{{- $workload := index . 2 }}
{{- $added := include "wgan.added" . | fromJson -}}
serviceAccountName: {{ default (include "wgan.account" $root) $added.serviceAccountName }}
automountServiceAccountToken: {{ $added.automountServiceAccountToken }}
enableServiceLinks: false
{{- with $added.securityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $field := list "priorityClassName" "runtimeClassName" }}
{{- with get $added $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- with $added.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "wgan.over" (list $workload.nodeSelector $added.nodeSelector) | fromJson }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (default list $workload.tolerations) $added.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $containers := $added.initContainers }}
{{- range $added.sidecars }}
{{- $containers = append $containers (set . "restartPolicy" "Always") }}
{{- end }}
{{- with $containers }}
initContainers:
  {{- range . }}
  - {{ include "wgan.over" (list . (dict "securityContext" $added.containerSecurityContext)) | fromJson | toYaml | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Fields of our container in each pod. */}}
{{- define "wgan.container" -}}
{{- $added := include "wgan.added" . | fromJson -}}
{{- with $added.containerSecurityContext -}}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $added.envFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Environment of our container: (list $ COMPONENT ENV OWN). OWN is a list, as text, of the chart's own variables,
each with `by`, the value that sets it; nobody else may set them. Of all others the workload's ENV wins. */}}
{{- define "wgan.env" -}}
{{- $root := index . 0 }}
{{- $added := include "wgan.added" . | fromJson }}
{{- $variables := include "wgan.over" (list (index . 2) $added.env) | fromJson }}
{{- range index . 3 | fromYamlArray }}
{{- if hasKey $variables .name }}
{{- fail (printf "%s: set %s, not this variable in env: the chart sets it from there" .name .by) }}
{{- end }}
{{ list (omit . "by") | toYaml }}
{{- end }}
{{- with $root.Values.caBundle }}
{{- if or .configMap .secret }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" "OTEL_EXPORTER_OTLP_CERTIFICATE" }}
{{- $variables = include "wgan.over" (list $variables (dict . "/etc/ca/ca.crt")) | fromJson }}
{{- end }}
{{- end }}
{{- end }}
{{- with $root.Values.proxy }}
{{- if or .http .https }}
{{- $here := list "localhost" "127.0.0.1" ".svc" ".cluster.local" (printf ".%s" $root.Release.Namespace) (printf "%s-mlflow" (include "wgan.name" $root)) (printf "%s-workers" (include "wgan.name" $root)) }}
{{- $proxies := dict "HTTP_PROXY" .http "HTTPS_PROXY" .https "NO_PROXY" (concat $here .except | join ",") }}
{{- $variables = include "wgan.over" (list $variables $proxies) | fromJson }}
{{- end }}
{{- end }}
{{- range $name, $value := $variables }}
- name: {{ $name }}
  {{- if kindIs "string" $value }}
  value: {{ $value | quote }}
  {{- else }}
  {{- toYaml $value | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Mounts of our container, with a line for each volume of the next template. */}}
{{- define "wgan.mounts" -}}
{{- $root := index . 0 }}
{{- $added := include "wgan.added" . | fromJson }}
{{- if include "wgan.trackingSecret" . }}
- {name: mlflow-login, mountPath: /etc/mlflow, readOnly: true}
{{- end }}
{{- if or $root.Values.caBundle.configMap $root.Values.caBundle.secret }}
- {name: ca, mountPath: /etc/ca, readOnly: true}
{{- end }}
{{- if $added.sharedMemory }}
- {name: shared-memory, mountPath: /dev/shm}
{{- end }}
{{- with $added.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "wgan.volumes" -}}
{{- $root := index . 0 }}
{{- $added := include "wgan.added" . | fromJson }}
{{- with include "wgan.trackingSecret" . }}
- name: mlflow-login
  secret: {{- . | nindent 4 }}
{{- end }}
{{- with $root.Values.caBundle }}
{{- if or .configMap .secret }}
- name: ca
  {{- if .configMap }}
  configMap: {name: {{ .configMap }}, items: [{key: {{ .key }}, path: ca.crt}]}
  {{- else }}
  secret: {secretName: {{ .secret }}, items: [{key: {{ .key }}, path: ca.crt}]}
  {{- end }}
{{- end }}
{{- end }}
{{- with $added.sharedMemory }}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}
{{- with $added.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The Secret volume of what MLflow is asked with; nothing without a Secret, and for MLflow itself. */}}
{{- define "wgan.trackingSecret" -}}
{{- $mlflow := (index . 0).Values.mlflow }}
{{- if ne (index . 1) "mlflow" }}
{{- with $mlflow.secret -}}
secretName: {{ . }}
defaultMode: 0440
items:
  - {key: MLFLOW_TRACKING_USERNAME, path: username}
  - {key: MLFLOW_TRACKING_PASSWORD, path: password}
{{- end }}
{{- with $mlflow.tokenSecret -}}
secretName: {{ . }}
defaultMode: 0440
items:
  - {key: MLFLOW_TRACKING_TOKEN, path: token}
{{- end }}
{{- end }}
{{- end }}

{{/* Annotations of an object: (list $ OWN). */}}
{{- define "wgan.annotations" -}}
{{- with merge (deepCopy (index . 1)) (index . 0).Values.objects.annotations -}}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
