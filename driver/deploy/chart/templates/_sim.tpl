{{/* What node-sim adds to the node's pod: it makes the host root that the driver is then pointed at. */}}
{{- define "synology-csi.sim.init" -}}
- name: node-sim
  image: {{ include "synology-csi.image" (list . .Values.sim.nodeSim.image "sim.nodeSim.image") | quote }}
  imagePullPolicy: {{ .Values.sim.nodeSim.image.pullPolicy }}
  args: [init, --root={{ .Values.sim.nodeDir }}, --targets={{ .Values.sim.sharedDir }}/targets]
  securityContext:
    runAsUser: 0
    {{- include "synology-csi.unprivileged" . | nindent 4 }}
  volumeMounts:
    - {name: sim-node, mountPath: {{ .Values.sim.nodeDir }}}
{{- end }}

{{- define "synology-csi.sim.volumes" -}}
- name: sim-node
  hostPath: {path: {{ .Values.sim.nodeDir }}, type: DirectoryOrCreate}
- name: sim-nas
  hostPath: {path: {{ .Values.sim.sharedDir }}, type: DirectoryOrCreate}
{{- end }}

{{/* A LUN's file has one path, on the NAS and on the nodes. */}}
{{- define "synology-csi.sim.mounts" -}}
- {name: sim-node, mountPath: {{ .Values.sim.nodeDir }}}
- {name: sim-nas, mountPath: {{ .Values.sim.sharedDir }}}
{{- end }}
