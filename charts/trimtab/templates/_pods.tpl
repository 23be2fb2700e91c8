{{/*
What every pod of this chart shares. Each takes (dict "root" $ "component" "operator"); podDefaults come first, so that
the component's own values are added to them or win.
*/}}

{{- define "trimtab.podDefaults" -}}
{{- if (index .root.Values .component).inheritPodDefaults -}}
{{- toJson .root.Values.podDefaults -}}
{{- else -}}
{{- toJson (dict "imagePullPolicy" .root.Values.podDefaults.imagePullPolicy) -}}
{{- end -}}
{{- end -}}

{{- define "trimtab.podSpec" -}}
{{- $values := index .root.Values .component -}}
{{- $defaults := include "trimtab.podDefaults" . | fromJson -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with $defaults.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with mergeOverwrite (dict) ($defaults.nodeSelector | default dict) $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat ($defaults.tolerations | default list) $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName | default $defaults.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $defaults.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "trimtab.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "trimtab.env" -}}
{{- $defaults := include "trimtab.podDefaults" . | fromJson -}}
- name: TRIMTAB_SYSTEM_NAMESPACE
  value: {{ .root.Release.Namespace | quote }}
- name: TRIMTAB_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: TRIMTAB_POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: TRIMTAB_LOG_LEVEL
  value: {{ .root.Values.logLevel | quote }}
{{- end -}}

{{/* Last in the list of variables: a later entry of the same name wins. */}}
{{- define "trimtab.extraEnv" -}}
{{- $defaults := include "trimtab.podDefaults" . | fromJson -}}
{{- with concat ($defaults.extraEnv | default list) (index .root.Values .component).extraEnv }}
{{- toYaml . }}
{{- end }}
{{- end -}}

{{- define "trimtab.volumeMounts" -}}
{{- $defaults := include "trimtab.podDefaults" . | fromJson -}}
- name: tmp
  mountPath: /tmp
{{- with concat ($defaults.extraVolumeMounts | default list) (index .root.Values .component).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "trimtab.volumes" -}}
{{- $defaults := include "trimtab.podDefaults" . | fromJson -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- with concat ($defaults.extraVolumes | default list) (index .root.Values .component).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
