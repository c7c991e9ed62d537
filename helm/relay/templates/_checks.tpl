{{/* What the schema cannot say. Each refusal names the key and what to do. */}}

{{- define "relay.checks" -}}
{{- $config := .Values.config -}}
{{- $url := dig "store" "url" "" $config -}}

{{- $name := include "relay.fullname" . -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" $name) -}}
{{- fail (printf "%s is no name for a Service, which begins with a letter and has letters, digits and - alone; set fullnameOverride, or take another name for the release" $name) -}}
{{- end -}}

{{- if not $config.upstreams -}}
{{- fail "config.upstreams: there is none; name at least one, such as [{name: openai, base_url: https://api.openai.com}]" -}}
{{- end -}}

{{- $stores := list -}}
{{- if .Values.store.existingSecret }}{{- $stores = append $stores "store.existingSecret" }}{{- end -}}
{{- if .Values.valkey.enabled }}{{- $stores = append $stores "valkey.enabled" }}{{- end -}}
{{- if $url }}{{- $stores = append $stores "config.store.url" }}{{- end -}}
{{- if not $stores -}}
{{- fail "no store: set store.existingSecret (a Secret with the URL of your Redis or Valkey), config.store.url (a URL without a password), valkey.enabled: true (one Valkey, for trials), or, with replicaCount: 1, config.store.url: embedded" -}}
{{- end -}}
{{- if gt (len $stores) 1 -}}
{{- fail (printf "%s are all set, but there is one store; keep one of them" (join " and " $stores)) -}}
{{- end -}}
{{- if or (regexMatch "://[^/@]*:[^/@]*@" $url) (regexMatch "[?&](sentinel_)?password=" $url) -}}
{{- fail "config.store.url holds a password, which a ConfigMap would show; put the URL in a Secret and name it in store.existingSecret" -}}
{{- end -}}
{{- if and (eq $url "embedded") (or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1)) -}}
{{- fail "config.store.url: embedded is a store inside one pod, which other replicas cannot read; set replicaCount: 1 and autoscaling.enabled: false, or name a store that all share" -}}
{{- end -}}

{{- range $key := list "bind" "metrics_bind" -}}
{{- $address := include "relay.setting" (list $config $key) -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" $address -}}
{{- fail (printf "config.%s: %s cannot be reached from outside the pod; write 0.0.0.0:PORT or [::]:PORT" $key $address) -}}
{{- end -}}
{{- end -}}
{{- if eq (include "relay.httpPort" .) (include "relay.metricsPort" .) -}}
{{- fail "config.bind and config.metrics_bind have the same port; give metrics another" -}}
{{- end -}}

{{- $needed := include "relay.graceSeconds" . | int -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int .) $needed -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is shorter than drain.preStopSeconds + config.drain.timeout + drain.marginSeconds = %d, and streams would be killed in their drain; raise it, leave it out, or lower config.drain.timeout" (int .) $needed) -}}
{{- end -}}
{{- end -}}

{{- $given := list -}}
{{- range concat .Values.secretEnv .Values.extraEnv -}}
{{- if hasPrefix "RELAY_" .name -}}
{{- fail (printf "%s: a setting in the environment wins over config, which the chart computes with; write it in config (the store's URL: store.existingSecret)" .name) -}}
{{- end -}}
{{- $given = append $given .name -}}
{{- end -}}
{{- if not .Values.extraEnvFrom -}}
{{- $secrets := list (list "auth.secret_env" (dig "auth" "secret_env" "" $config)) (list "store.encryption_env" (dig "store" "encryption_env" "" $config)) (list "webhook.secret_env" (dig "webhook" "secret_env" "" $config)) -}}
{{- range $config.upstreams -}}
{{- $secrets = append $secrets (list (printf "upstreams.%s.api_key_env" .name) .api_key_env) -}}
{{- end -}}
{{- range $secrets -}}
{{- $setting := index . 0 -}}
{{- $name := index . 1 -}}
{{- if and $name (not (has $name $given)) -}}
{{- fail (printf "config.%s: nothing sets %s; add {name: %s, secretName: …, secretKey: …} to secretEnv" $setting $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $mounted := list -}}
{{- range .Values.files }}{{- $mounted = append $mounted .name }}{{- end -}}
{{- range regexFindAll "/etc/relay-files/[^/?&#\\s\"]*" (toJson $config) -1 -}}
{{- if not (has (base .) $mounted) -}}
{{- fail (printf "config names a file in %s, which nothing mounts; add {name: %s, secretName: …} to files" . (base .)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.caBundle.configMap .Values.caBundle.secret -}}
{{- fail "caBundle: configMap and secret are both set; keep one" -}}
{{- end -}}

{{- if and .Values.autoscaling.enabled (not (or .Values.autoscaling.streams.enabled .Values.autoscaling.cpu.enabled)) -}}
{{- fail "autoscaling.enabled: there is no metric; enable autoscaling.streams or autoscaling.cpu" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas; lower the first or raise the second" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.autoscaling.cpu.enabled (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.cpu is a share of resources.requests.cpu, which is not set; set it or disable autoscaling.cpu" -}}
{{- end -}}
{{- if and (eq (toString (default 1 $config.workers)) "auto") (not (dig "limits" "cpu" "" .Values.resources)) -}}
{{- fail "config.workers: auto is one for each CPU of resources.limits.cpu, which is not set: it would be all of the node's; set it, or write a number" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics.serviceMonitor and metrics.podMonitor are both enabled, and everything would be counted twice; keep one" -}}
{{- end -}}

{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: there is none; name at least one host" -}}
{{- end -}}
{{- $heartbeat := include "relay.settingSeconds" (list $config "streams.heartbeat") | int -}}
{{- with .Values.ingress.readTimeoutSeconds -}}
{{- if le (int .) $heartbeat -}}
{{- fail (printf "ingress.readTimeoutSeconds: %d is not above config.streams.heartbeat (%ds), and the proxy would cut silent streams; raise it or leave it out" (int .) $heartbeat) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: there is none; name the Gateway to attach to, [{name: …, namespace: …}]" -}}
{{- end -}}
{{- if and .Values.gateway.envoy.enabled (not .Values.gateway.enabled) -}}
{{- fail "gateway.envoy.enabled: the policy belongs to the HTTPRoute; set gateway.enabled: true" -}}
{{- end -}}
{{- end -}}
