{{/* The release's own name where it already says Trimtab, so that `helm install trimtab` gives `trimtab-gateway`. */}}
{{- define "trimtab.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of one component's objects. Takes (dict "root" $ "component" "gateway"). */}}
{{- define "trimtab.name" -}}
{{- printf "%s-%s" (include "trimtab.fullname" .root) .component -}}
{{- end -}}

{{/* Labels that select a component's pods: they never change while the release lives. */}}
{{- define "trimtab.selectorLabels" -}}
app.kubernetes.io/name: trimtab
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/*
Labels of pods. Neither the chart's nor the application's version is here: a label that changes with every release would
restart pods for nothing.
*/}}
{{- define "trimtab.podLabels" -}}
{{ include "trimtab.selectorLabels" . }}
app.kubernetes.io/part-of: trimtab
app.kubernetes.io/managed-by: Helm
{{- end -}}

{{/* Labels of every other object. */}}
{{- define "trimtab.labels" -}}
{{ include "trimtab.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Name of the component's ServiceAccount. */}}
{{- define "trimtab.serviceAccountName" -}}
{{- $own := (index .root.Values .component).serviceAccount -}}
{{- if $own.create -}}
{{- $own.name | default (include "trimtab.name" .) -}}
{{- else -}}
{{- required (printf "%s.serviceAccount.name must name an existing ServiceAccount when %s.serviceAccount.create is false." .component .component) $own.name -}}
{{- end -}}
{{- end -}}

{{/* An image reference from {repository, tag, digest}; the tag is the application's version unless one is given. */}}
{{- define "trimtab.imageReference" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The image of an own pod: podDefaults.image stands for all of them, unless the component stays out. */}}
{{- define "trimtab.image" -}}
{{- $values := index .root.Values .component -}}
{{- $shared := "" -}}
{{- if $values.inheritPodDefaults -}}{{- $shared = .root.Values.podDefaults.image -}}{{- end -}}
{{- $shared | default (include "trimtab.imageReference" (dict "root" .root "image" $values.image)) -}}
{{- end -}}

{{/* Where users reach the gateway: what status.endpoint of every intent says. */}}
{{- define "trimtab.endpoint" -}}
{{- if .Values.gateway.endpoint -}}
{{- .Values.gateway.endpoint -}}
{{- else -}}
{{- $port := int .Values.gateway.service.port -}}
{{- printf "http://%s.%s%s/v1" (include "trimtab.name" (dict "root" . "component" "gateway")) .Release.Namespace (ternary "" (printf ":%d" $port) (eq $port 80)) -}}
{{- end -}}
{{- end -}}
