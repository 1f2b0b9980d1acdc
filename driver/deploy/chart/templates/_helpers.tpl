{{- define "synology-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "synology-csi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Selector labels, which must never change. Takes a list: the root and the component's name. */}}
{{- define "synology-csi.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "synology-csi.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Takes a list: the root and the component's name. */}}
{{- define "synology-csi.labels" -}}
{{- $root := index . 0 -}}
{{ include "synology-csi.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* An image reference. Takes a list: the root, the image and its path in the values, for error messages. */}}
{{- define "synology-csi.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $repository := required (printf "%s.repository: no image is published yet; build it and name it here" (index . 2)) $image.repository }}
{{- $name := ternary (printf "%s/%s" $image.registry $repository) $repository (ne $image.registry "") }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default $root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "synology-csi.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A value as a string, as Kubernetes and the driver require it: true or 5 without quotes is not a string in YAML, and Helm writes 5000000 as 5e+06. */}}
{{- define "synology-csi.text" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* An object with all values as strings. */}}
{{- define "synology-csi.texts" -}}
{{- $texts := dict }}
{{- range $key, $value := . }}
{{- $_ := set $texts $key (include "synology-csi.text" $value) }}
{{- end }}
{{- toYaml $texts }}
{{- end }}

{{/* Converts nested values (tolerations, affinity, peers of a policy) to strings, except two fields that are numbers. Takes and returns `it`. */}}
{{- define "synology-csi.textual" -}}
{{- $out := .it }}
{{- if kindIs "map" .it }}
{{- $out = dict }}
{{- range $key, $value := .it }}
{{- if not (has $key (list "weight" "tolerationSeconds")) }}
{{- $value = (include "synology-csi.textual" (dict "it" $value) | fromYaml).it }}
{{- end }}
{{- $_ := set $out $key $value }}
{{- end }}
{{- else if kindIs "slice" .it }}
{{- $out = list }}
{{- range .it }}
{{- $out = append $out (include "synology-csi.textual" (dict "it" .) | fromYaml).it }}
{{- end }}
{{- else if not (kindIs "invalid" .it) }}
{{- $out = include "synology-csi.text" .it }}
{{- end }}
{{- toYaml (dict "it" $out) }}
{{- end }}

{{/* A number, or a percentage such as 10%. */}}
{{- define "synology-csi.count" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ int64 . }}{{ end }}
{{- end }}

{{/* Scheduling of a component's pods. Takes its values. */}}
{{- define "synology-csi.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- include "synology-csi.texts" . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- (include "synology-csi.textual" (dict "it" .) | fromYaml).it | toYaml | nindent 2 }}
{{- end }}
{{- end }}

{{/* Security context of a container without privileges. */}}
{{- define "synology-csi.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
# Also set per container: it cannot be set for the whole node pod, because its driver container is privileged.
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The NASes as a YAML list: those in the values, or the simulated one. */}}
{{- define "synology-csi.nas" -}}
{{- if .Values.sim.enabled }}
{{- if .Values.nas }}
{{- fail "sim.enabled: nodes with a simulated iscsiadm reach no real NAS; leave nas empty" }}
{{- end }}
- name: sim
  url: http://{{ include "synology-csi.fullname" . }}-dsm-sim.{{ .Release.Namespace }}.svc:5000
  # The traffic stays within the cluster, and the data is not secret.
  plainHttp: true
  username: admin
  password: admin
  # No packets are sent there: node-sim uses it to find the targets of its only NAS.
  portals: ["127.0.0.1:3260"]
{{- else }}
{{- if not .Values.nas }}
{{- fail "nas: name at least one NAS" }}
{{- end }}
{{- $seen := dict }}
{{- range .Values.nas }}
{{- if eq (empty .password) (empty .passwordSecret) }}
{{- fail (printf "nas %s: give either passwordSecret or password" .name) }}
{{- end }}
{{- if and .ca .caConfigMap }}
{{- fail (printf "nas %s: give either ca or caConfigMap" .name) }}
{{- end }}
{{- if and .tlsPins (or .ca .caConfigMap .tlsServerName) }}
{{- fail (printf "nas %s: tlsPins takes the place of ca, caConfigMap and tlsServerName" .name) }}
{{- end }}
{{- if and (hasPrefix "http://" .url) (not .plainHttp) }}
{{- fail (printf "nas %s: url: %s would send the administrator's password in the clear; write https:// (port 5001; driver/docs/tls.md), or plainHttp: true" .name .url) }}
{{- end }}
{{- range prepend (default list .aliases) .name }}
{{- if hasKey $seen . }}
{{- fail (printf "nas %s: a name or alias is given twice" .) }}
{{- end }}
{{- $_ := set $seen . true }}
{{- end }}
{{- end }}
{{- toYaml .Values.nas }}
{{- end }}
{{- end }}

{{/* The driver's configuration file. It contains no secrets: passwords and keys are in separate files. */}}
{{- define "synology-csi.config" -}}
nas:
{{- range include "synology-csi.nas" . | fromYamlArray }}
  - name: {{ .name | quote }}
    {{- with .aliases }}
    aliases: {{ toJson . }}
    {{- end }}
    url: {{ .url | quote }}
    username: {{ .username | quote }}
    password_file: /etc/synology-csi/passwords/{{ .name }}
    {{- if or .ca .caConfigMap }}
    ca_file: /etc/synology-csi/ca/{{ .name }}.crt
    {{- end }}
    {{- with .tlsServerName }}
    tls_server_name: {{ . | quote }}
    {{- end }}
    {{- with .tlsPins }}
    tls_pins: {{ toJson . }}
    {{- end }}
    {{- if .plainHttp }}
    plain_http: true
    {{- end }}
    {{- with .portals }}
    portals: {{ toJson . }}
    {{- end }}
    {{- if hasKey . "minFreeSpace" }}
    min_free_space: {{ .minFreeSpace | quote }}
    {{- end }}
{{- end }}
{{- with .Values.cluster }}
# Distinguishes this cluster's volumes from those of other clusters on the same NASes.
cluster: {{ . | quote }}
{{- end }}
# Records which logins were refused, and when. The directory belongs to the pod, so it survives restarts of the driver's container.
state_file: /var/lib/synology-csi/refused.json
{{- $chap := include "synology-csi.chap" . | fromYaml }}
# CHAP mode for logins to targets. The keys are in separate files.
chap: {{ $chap.mode | quote }}
{{- $former := list }}
{{- if eq $chap.mode "off" }}
{{- if $chap.keySecret }}
{{- $former = append $former "/etc/synology-csi/chap/key" }}
{{- end }}
{{- else }}
chap_key_file: /etc/synology-csi/chap/key
{{- end }}
{{- range $index, $key := $chap.former }}
{{- $former = append $former (printf "/etc/synology-csi/chap/former-%d" $index) }}
{{- end }}
{{- with $former }}
chap_former_key_files: {{ toJson . }}
{{- end }}
{{- end }}

{{/*
The CHAP configuration, as a YAML object:
  mode       mutual, one-way or off
  keySecret  name and key of the Secret with the CHAP key; empty if none is needed: mode off, and no key ever existed
  data       the content of that Secret in base64, if the chart writes it; empty if the user created it
  isNew      the key was generated by this call; each call generates another one, so it must be called only once (controller.yaml)
  former     name and key of the Secret of each former key
  formerData the content of the chart's own Secret of former keys: those given in the values
*/}}
{{- define "synology-csi.chap" -}}
{{- $fullname := include "synology-csi.fullname" . }}
{{- $values := .Values.chap }}
{{- /* In YAML, off without quotes means false. */}}
{{- $mode := ternary "off" (default "mutual" $values.mode) (kindIs "bool" $values.mode) }}
{{- $former := list }}
{{- $formerData := dict }}
{{- range $index, $it := $values.formerKeys }}
{{- if eq (empty $it.key) (empty $it.keySecret) }}
{{- fail (printf "chap.formerKeys[%d]: give either key or keySecret" $index) }}
{{- end }}
{{- if $it.key }}
{{- $_ := set $formerData (printf "former-%d" $index) ($it.key | b64enc) }}
{{- $former = append $former (dict "name" (printf "%s-chap-former" $fullname) "key" (printf "former-%d" $index)) }}
{{- else }}
{{- $former = append $former (dict "name" $it.keySecret.name "key" (default "key" $it.keySecret.key)) }}
{{- end }}
{{- end }}
{{- $own := dict "name" (printf "%s-chap-key" $fullname) "key" "key" }}
{{- $keySecret := dict }}
{{- $data := "" }}
{{- $isNew := false }}
{{- $named := default dict $values.keySecret }}
{{- if $named.name }}
{{- if $values.key }}
{{- fail "chap: give either key or keySecret" }}
{{- end }}
{{- $keySecret = dict "name" $named.name "key" (default "key" $named.key) }}
{{- else }}
{{- /* Without a cluster (helm template), lookup finds nothing. */}}
{{- $found := dig "data" "key" "" (lookup "v1" "Secret" .Release.Namespace $own.name) }}
{{- if $values.key }}
{{- $keySecret = $own }}
{{- $data = $values.key | b64enc }}
{{- range $former }}
{{- if eq .name $own.name }}
{{- fail (printf "chap.formerKeys: chap.key is written into the Secret %s, over the former key: put that one under another name first, or give the new one as chap.keySecret" .name) }}
{{- end }}
{{- end }}
{{- /* An overwritten key is lost, and with it the CHAP credentials of all published volumes. If a former key is in a Secret of the user, that may be this one. */}}
{{- if and $found (ne $found $data) (not (has $found (values $formerData))) (eq (len $former) (len $formerData)) }}
{{- fail (printf "chap.key: the Secret %s holds another key, by which volumes may be published now: name that one in chap.formerKeys (kubectl -n %s get secret %s -o jsonpath={.data.key} | base64 -d), or delete the Secret first" $own.name .Release.Namespace $own.name) }}
{{- end }}
{{- else if $found }}
{{- if lt (len (b64dec $found)) 32 }}
{{- fail (printf "the key in the Secret %s is shorter than 32 bytes: delete the Secret, and a new one is made" $own.name) }}
{{- end }}
{{- $keySecret = $own }}
{{- $data = $found }}
{{- else if ne $mode "off" }}
{{- $keySecret = $own }}
{{- $data = randAlphaNum 64 | b64enc }}
{{- $isNew = true }}
{{- end }}
{{- end }}
{{- toYaml (dict "mode" $mode "keySecret" $keySecret "data" $data "isNew" $isNew "former" $former "formerData" $formerData) }}
{{- end }}

{{/* Common flags of the sidecars that use the API server. Takes a list: the root and the sidecar's values. */}}
{{- define "synology-csi.sidecarArgs" -}}
{{- $root := index . 0 }}
{{- $own := index . 1 -}}
- --csi-address=/csi/csi.sock
- --v={{ int64 $root.Values.sidecars.verbosity }}
- --timeout={{ $own.timeout }}
- --retry-interval-max={{ $own.retryIntervalMax }}
- --kube-api-qps={{ int64 $root.Values.sidecars.kubeApiQps }}
- --kube-api-burst={{ int64 $root.Values.sidecars.kubeApiBurst }}
{{- if ge (int $root.Values.controller.replicas) 2 }}
- --leader-election
{{- end }}
{{- end }}
