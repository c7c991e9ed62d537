{{/* Names, labels and the few values that several objects share. */}}

{{- define "relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for -metrics, -valkey-0 and a pod's own suffix. */}}
{{- define "relay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains (include "relay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "relay.name" .) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a selector may hold: it cannot change while a release lives. Call with (list $ "relay"). */}}
{{- define "relay.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "relay.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "relay.labels" -}}
{{- $ := index . 0 -}}
{{ include "relay.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* With an autoscaler the number that runs: one that is left out would be 1 until the autoscaler acts. */}}
{{- define "relay.replicas" -}}
{{- $count := int .Values.replicaCount -}}
{{- with .Values.autoscaling -}}
{{- if .enabled -}}
{{- $live := lookup "apps/v1" "Deployment" $.Release.Namespace (include "relay.fullname" $) -}}
{{- $count = dig "spec" "replicas" (max $count .minReplicas | min .maxReplicas) $live | int -}}
{{- end -}}
{{- end -}}
{{- $count -}}
{{- end -}}

{{- define "relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "relay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "relay.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "relay.valkeyImage" -}}
{{- with .Values.valkey.image -}}
{{ .repository }}{{ ternary (printf "@%s" .digest) (printf ":%s" .tag) (ne .digest "") }}
{{- end -}}
{{- end -}}

{{/* The relay's user, as deploy/redis has it, word by word; Kubernetes puts the password in. */}}
{{- define "relay.valkeyUser" -}}
{{- $line := regexFind "(?m)^user relay .*$" (.Files.Get "files/redis/users.acl") -}}
{{- $prefix := dig "store" "prefix" "relay:" .Values.config -}}
{{- regexReplaceAllLiteral "#0+" ($line | replace "relay:*" (printf "%s*" $prefix)) ">$(VALKEY_PASSWORD)" | trimPrefix "user " -}}
{{- end -}}

{{/* Whole seconds, rounded up, of a duration as the relay's settings write it. */}}
{{- define "relay.seconds" -}}
{{- if kindIs "float64" . -}}
{{ ceil . | int }}
{{- else -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 "" 1.0 -}}
{{- $number := regexFind "^[0-9.]+" (toString .) | float64 -}}
{{ mulf $number (get $units (regexFind "[a-z]*$" (toString .))) | ceil | int }}
{{- end -}}
{{- end -}}

{{/* The settings that shape other objects, the relay's own default where `config` has none. */}}
{{- define "relay.setting" -}}
{{- $defaults := dict "drain.timeout" "600s" "streams.heartbeat" "15s" "streams.upstream_idle_timeout" "300s"
  "streams.unstreamed_answer_timeout" "600s"
  "bind" "0.0.0.0:8080" "metrics_bind" "0.0.0.0:9464" -}}
{{- $value := index . 0 -}}
{{- range splitList "." (index . 1) -}}
{{- $value = get ($value | default dict) . -}}
{{- end -}}
{{- if has $value (list nil "") -}}{{- $value = get $defaults (index . 1) -}}{{- end -}}
{{- $value -}}
{{- end -}}

{{- define "relay.settingSeconds" -}}
{{- include "relay.seconds" (include "relay.setting" .) -}}
{{- end -}}

{{- define "relay.httpPort" -}}
{{- include "relay.setting" (list .Values.config "bind") | splitList ":" | last -}}
{{- end -}}

{{- define "relay.metricsPort" -}}
{{- include "relay.setting" (list .Values.config "metrics_bind") | splitList ":" | last -}}
{{- end -}}

{{/* preStop, then the drain, then a margin: all three run inside the grace period. */}}
{{- define "relay.graceSeconds" -}}
{{- $drain := include "relay.settingSeconds" (list .Values.config "drain.timeout") | int -}}
{{- add .Values.drain.preStopSeconds $drain .Values.drain.marginSeconds -}}
{{- end -}}

{{/* Above a heartbeat for streams, and above the longest silence of an answer that is not streamed. */}}
{{- define "relay.proxyIdleSeconds" -}}
{{- $heartbeat := include "relay.settingSeconds" (list .Values.config "streams.heartbeat") | int -}}
{{- $idle := include "relay.settingSeconds" (list .Values.config "streams.upstream_idle_timeout") | int -}}
{{- $answer := include "relay.settingSeconds" (list .Values.config "streams.unstreamed_answer_timeout") | int -}}
{{- add 10 (max $answer $idle (mul 4 $heartbeat)) -}}
{{- end -}}

{{/* secret, valkey, url, embedded, or nothing. */}}
{{- define "relay.storeKind" -}}
{{- $url := dig "store" "url" "" .Values.config -}}
{{- if .Values.store.existingSecret -}}
secret
{{- else if .Values.valkey.enabled -}}
valkey
{{- else if eq $url "embedded" -}}
embedded
{{- else if $url -}}
url
{{- end -}}
{{- end -}}

{{/* The ports that `config.store.url` names, and that of the servers which sentinels name. A Secret's URL is not read. */}}
{{- define "relay.storePorts" -}}
{{- $url := dig "store" "url" "" .Values.config -}}
{{- $sentinels := contains "+sentinel:" $url -}}
{{- $ports := dict -}}
{{- range regexReplaceAll "^[a-z+]*://([^/?#]*@)?([^/?#]*).*$" $url "${2}" | splitList "," -}}
{{- $own := regexFind ":[0-9]+$" . | trimPrefix ":" -}}
{{- $_ := set $ports ($own | default (ternary "26379" "6379" $sentinels)) true -}}
{{- end -}}
{{- if $sentinels }}{{- $_ := set $ports "6379" true }}{{- end -}}
{{- keys $ports | sortAlpha | join " " -}}
{{- end -}}

{{- define "relay.valkeySecret" -}}
{{- .Values.valkey.auth.existingSecret | default (printf "%s-valkey" (include "relay.fullname" .)) -}}
{{- end -}}

{{/* The API that examples and the test speak. */}}
{{- define "relay.exampleApi" -}}
{{- $first := first .Values.config.upstreams | default dict -}}
{{- .Values.test.api | default (first (get $first "apis" | default (list "chat"))) -}}
{{- end -}}

{{/* The relay's settings file. */}}
{{- define "relay.settingsFile" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $key := list "bind" "metrics_bind" -}}
{{- $_ := set $config $key (include "relay.setting" (list $.Values.config $key)) -}}
{{- end -}}
{{- if eq (include "relay.storeKind" .) "embedded" -}}
{{- $store := merge (dict) $config.store (dict "data_dir" "/var/lib/relay") -}}
{{- $_ := set $config "store" $store -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
