{{/* What an upgrade needs: the cluster refuses a change of some fields. `lookup` finds nothing when the
chart is only rendered, as Argo CD does. */}}

{{/* Eight characters that change with any field of the given YAML. */}}
{{- define "wgan.hash" -}}
{{ fromYaml . | toJson | sha256sum | trunc 8 }}
{{- end }}

{{/* The Deployment's replicas: (dict "root" $ "name" NAME "autoscaled" true "replicas" 2). Without the
field the cluster would set one; with an autoscaler, stay at what the autoscaler found. */}}
{{- define "wgan.replicas" -}}
{{- if .autoscaled }}
{{- with lookup "apps/v1" "Deployment" .root.Release.Namespace .name }}
replicas: {{ .spec.replicas }}
{{- end }}
{{- else }}
replicas: {{ .replicas }}
{{- end }}
{{- end }}

{{/* The specification of a claim: (dict "root" $ "name" NAME "path" "runs" "values" VALUES "accessModes" LIST).
A claim that is there can only grow, so any other change ends the upgrade before it changes anything. */}}
{{- define "wgan.claim" -}}
{{- $path := .path }}
{{- $values := .values }}
{{- $accessModes := .accessModes }}
{{- with lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name }}
{{- $instead := printf "copy what the claim %s holds to a claim of your own, and name that in %s.existingClaim" .metadata.name $path }}
{{- if ne (toJson (sortAlpha .spec.accessModes)) (toJson (sortAlpha $accessModes)) }}
{{- fail (printf "%s.accessModes cannot change from %s to %s: %s" $path (toJson .spec.accessModes) (toJson $accessModes) $instead) }}
{{- end }}
{{- if and $values.storageClass (ne $values.storageClass (default "" .spec.storageClassName)) }}
{{- fail (printf "%s.storageClass cannot change from %s to %s: %s" $path (default "none" .spec.storageClassName) $values.storageClass $instead) }}
{{- end }}
{{- $size := .spec.resources.requests.storage }}
{{- if lt (include "wgan.mebibytes" $values.size | float64) (include "wgan.mebibytes" $size | float64) }}
{{- fail (printf "%s.size cannot shrink from %s to %s: %s" $path $size $values.size $instead) }}
{{- end }}
{{- end }}
accessModes: {{- toYaml $accessModes | nindent 2 }}
{{- with $values.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ $values.size }}}}
{{- end }}

{{/* A size such as 10Gi in mebibytes. Sizes of other units are not ours, and count as nothing. */}}
{{- define "wgan.mebibytes" -}}
{{- $number := regexFind "^[0-9.]+" . | float64 }}
{{- mulf $number (get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[A-Za-z]*$" .) | default 0) }}
{{- end }}
