{{/* Labels of everything. */}}
{{- define "portolan.labels" -}}
app.kubernetes.io/name: portolan
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that pods are found by; they never change. Given: a list of the root and the component. */}}
{{- define "portolan.selector" -}}
app.kubernetes.io/name: portolan
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "portolan.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Options of a command line, each if it is set. Given: a list of lists of an option's name and its value. */}}
{{- define "portolan.options" -}}
{{- range . }}
{{- $name := index . 0 }}
{{- $value := index . 1 }}
{{- if kindIs "slice" $value }}
{{- if $value }}
- {{ printf "--%s=%s" $name (join "," $value) | quote }}
{{- end }}
{{- else if kindIs "float64" $value }}
{{- /* Numbers of values are floats: large ones would have exponents. */}}
- {{ printf "--%s=%d" $name (int64 $value) | quote }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "portolan.agent.args" -}}
{{- if not .Values.apiServers }}
{{- fail "apiServers: name the API servers' own addresses, as --set 'apiServers={https://192.0.2.10:6443}'; their service address is what the agent is to make work" }}
{{- end -}}
- agent
- --node-name=$(NODE_NAME)
- --source=kubernetes
{{- include "portolan.options" (list
  (list "apiserver" .Values.apiServers)
  (list "service-cidr" .Values.serviceCIDRs)
  (list "routing-mode" .Values.routingMode)
  (list "overlay-port" .Values.overlay.port)
  (list "overlay-id" .Values.overlay.id)
  (list "overlay-family" .Values.overlay.family)
  (list "mtu" .Values.mtu)
  (list "masquerade" .Values.masquerade)
  (list "non-masquerade-cidr" .Values.nonMasqueradeCIDRs)
  (list "routable-pods" .Values.routablePods)
  (list "external-mode" .Values.externalMode)
  (list "external-selection" .Values.externalSelection)
  (list "departed-backends" .Values.departedBackends)
  (list "node-port-range" .Values.nodePortRange)
  (list "nodeport-addresses" .Values.nodePortAddresses)
  (list "masquerade-range" .Values.masqueradeRange)
  (list "socket-cgroup" .Values.socketCgroup)
  (list "load-balancer-class" .Values.loadBalancerClass)
  (list "bgp-asn" .Values.bgp.asn)
  (list "bgp-listen" .Values.bgp.listen)
  (list "l2-interfaces" .Values.l2.interfaces)
  (list "l2-port" .Values.l2.port)
  (list "on-stop" .Values.onStop)
  (list "services" .Values.sizes.services)
  (list "slots" .Values.sizes.slots)
  (list "backends" .Values.sizes.backends)
  (list "frontends" .Values.sizes.frontends)
  (list "sources" .Values.sizes.sources)
  (list "clients" .Values.sizes.clients)
  (list "flows" .Values.sizes.flows)
  (list "audit-interval" .Values.auditInterval)
  (list "metrics" .Values.metricsBindAddress)
  (list "healthz-bind-address" .Values.healthzBindAddress)
  (list "log-format" .Values.logFormat)
) }}
{{- if .Values.externalIPs }}
- --external-ips
{{- end }}
{{- range .Values.agent.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "portolan.controller.args" -}}
- controller
- --source=kubernetes
{{- include "portolan.options" (list
  (list "apiserver" .Values.apiServers)
  (list "service-cidr" .Values.serviceCIDRs)
  (list "lease-duration" .Values.controller.leaseDuration)
  (list "load-balancer-class" .Values.loadBalancerClass)
  (list "default-load-balancer" .Values.controller.defaultLoadBalancer)
  (list "log-format" .Values.logFormat)
) }}
{{- range .Values.controller.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
