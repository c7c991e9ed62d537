"""etcd, the API server, the controllers and the scheduler, as processes of this machine.

Everything listens in the cluster's own network namespace. The API server has an address of its own on loopback's
interface, by which pods and kubelets reach it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.cluster.certificates import Certificates
from tests.cluster.running import Running
from tests.support.waiting import wait_until

ADDRESS = "10.200.0.9"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
PODS = "10.201.0.0/16"


class Cluster:
    """The API as an administrator asks it, by kubectl; what is started for it ends with `running`."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        self.running = Running(folder)
        self.certificates = Certificates(folder, f"https://{ADDRESS}:6443")
        self.admin = self.certificates.kubeconfig("admin", "admin", "system:masters")
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(self.admin),
            "HELM_CACHE_HOME": str(folder / "helm"),
            "HELM_CONFIG_HOME": str(folder / "helm"),
            "HELM_DATA_HOME": str(folder / "helm"),
            "HOME": str(folder),
        }

    def start(self) -> None:
        subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
        self._etcd()
        self._api_server()
        wait_until(self.is_ready, 120, "the API server")
        self._controllers()

    def _etcd(self) -> None:
        self.running.start(
            "etcd",
            self.programs / "etcd",
            *("--data-dir", self.folder / "etcd", "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379"),
            *("--listen-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "default=http://127.0.0.1:2380"),
            *("--initial-advertise-peer-urls", "http://127.0.0.1:2380"),
        )

    def _api_server(self) -> None:
        issue = self.certificates.issue
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1")
        certificate, key = issue("apiserver", "kube-apiserver", "relay-cluster", *names, ADDRESS, API_SERVICE)
        kubelet, kubelet_key = issue("to-kubelets", "apiserver", "system:masters")
        proxy, proxy_key = issue("front-proxy", "front-proxy")
        authority = self.certificates.authority
        accounts = self.certificates.folder
        self.running.start(
            "kube-apiserver",
            self.programs / "kube-apiserver",
            f"--advertise-address={ADDRESS}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={SERVICES}",
            "--service-node-port-range=30000-30100",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={authority}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--kubelet-client-certificate={kubelet}",
            f"--kubelet-client-key={kubelet_key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts / 'accounts.pub'}",
            f"--service-account-signing-key-file={accounts / 'accounts.key'}",
            f"--requestheader-client-ca-file={authority}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={proxy}",
            f"--proxy-client-key-file={proxy_key}",
            "--enable-aggregator-routing=true",
        )

    def _controllers(self) -> None:
        config = self.certificates.kubeconfig("controllers", "system:kube-controller-manager")
        self.running.start(
            "kube-controller-manager",
            self.programs / "kube-controller-manager",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.certificates.folder / 'accounts.key'}",
            f"--root-ca-file={self.certificates.authority}",
            # An autoscaler that looks every five seconds: an exercise takes minutes.
            "--horizontal-pod-autoscaler-sync-period=5s",
        )
        config = self.certificates.kubeconfig("scheduler", "system:kube-scheduler")
        self.running.start(
            "kube-scheduler",
            self.programs / "kube-scheduler",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
        )

    # -- the API, by kubectl ------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        self.running.check()
        return self.try_kubectl("get", "--raw", "/readyz").returncode == 0

    def try_kubectl(
        self, *arguments: str | Path, given: str = "", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return self.run(self.programs / "kubectl", *arguments, given=given, timeout=timeout)

    def run(self, *command: str | Path, given: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def kubectl(self, *arguments: str | Path, given: str = "", timeout: float = 120) -> str:
        done = self.try_kubectl(*arguments, given=given, timeout=timeout)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def get(self, *arguments: str) -> Any:
        """An object, or the list of them."""
        found = json.loads(self.kubectl("get", *arguments, "--output", "json"))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, text: str) -> None:
        self.kubectl("apply", "--filename", "-", given=text)

    def wait(self, *arguments: str, timeout: float = 180) -> None:
        """`kubectl wait`, which is an error while there is nothing to wait for."""
        deadline = time.monotonic() + timeout
        while True:
            done = self.try_kubectl("wait", *arguments, "--timeout=10s", timeout=60)
            if done.returncode == 0:
                return
            self.running.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"kubectl wait {' '.join(arguments)}: {done.stderr.strip()[-1000:]}")
