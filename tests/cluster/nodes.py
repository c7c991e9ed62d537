"""Two nodes on one machine: for each an address, a containerd, a kubelet and a network of pods, all of its own.

A pod's interface is a pair of its own with the host (`ptp`), so that everything between two pods is routed, seen by
the Services' rules and judged by policies. One kube-proxy has the rules for both.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster.control_plane import DNS_SERVICE, PODS, Cluster
from tests.cluster.images import PAUSE
from tests.support.waiting import wait_until

_CNI = "/usr/lib/cni"

_CONTAINERD = """version = 2
root = "{folder}/root"
state = "/run/{name}/state"

[grpc]
address = "/run/{name}/containerd.sock"

[ttrpc]
address = "/run/{name}/ttrpc.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
restrict_oom_score_adj = true
sandbox_image = "{pause}"
stream_server_address = "{address}"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{folder}/cni"
"""


@dataclass
class Node:
    """`groups`: the control group, below each controller's root, in which its pods are."""

    cluster: Cluster
    number: int
    groups: str

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def address(self) -> str:
        return f"10.200.0.{self.number}"

    @property
    def pods(self) -> str:
        """The network of its pods."""
        return f"{PODS.rsplit('.', 2)[0]}.{self.number}.0/24"

    @property
    def folder(self) -> Path:
        return self.cluster.folder / self.name

    @property
    def socket(self) -> str:
        return f"/run/{self.name}/containerd.sock"

    def ctr(self, *arguments: str | Path, timeout: float = 300) -> str:
        command = ["ctr", "--address", self.socket, "--namespace", "k8s.io", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
        return done.stdout.strip()

    @property
    def version(self) -> str:
        """Of its containerd."""
        return subprocess.run(["containerd", "--version"], capture_output=True, text=True).stdout.split()[2]

    def by_digest(self, image: str) -> str:
        """Let an image be named by its digest, too, as one is that came from a registry."""
        (line,) = [line for line in self.ctr("images", "list").splitlines() if line.startswith(f"{image} ")]
        digest = line.split()[2]
        self.ctr("images", "tag", "--force", image, f"{image.rpartition(':')[0]}@{digest}")
        return digest

    def start(self, images: list[Path]) -> None:
        self.folder.mkdir()
        (Path("/run") / self.name).mkdir()
        subprocess.run(["ip", "address", "add", f"{self.address}/32", "dev", "lo"], check=True)
        self._containerd()
        for archive in images:
            self.ctr("images", "import", archive)
        self._kubelet()

    def _containerd(self) -> None:
        network = self.folder / "cni"
        network.mkdir()
        (network / "10-pods.conflist").write_text(json.dumps(self._network()))
        config = self.folder / "containerd.toml"
        words = {"folder": self.folder, "name": self.name, "address": self.address, "pause": PAUSE, "cni": _CNI}
        config.write_text(_CONTAINERD.format(**words))
        self.cluster.running.start(f"{self.name}.containerd", "containerd", "--config", config)
        command = ["ctr", "--address", self.socket, "version"]
        wait_until(lambda: subprocess.run(command, capture_output=True).returncode == 0, 60, "containerd")

    def _network(self) -> object:
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.folder / "addresses"),
        }
        plugins = [{"type": "ptp", "ipMasq": False, "ipam": ipam}]
        return {"cniVersion": "0.4.0", "name": self.name, "plugins": plugins}

    def _kubelet(self) -> None:
        certificates = self.cluster.certificates
        kubeconfig = certificates.kubeconfig(self.name, f"system:node:{self.name}", "system:nodes")
        (self.folder / "resolv.conf").write_text("")
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "healthzBindAddress": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(certificates.authority)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.groups,
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.folder / "resolv.conf"),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "podLogsDir": f"/var/log/{self.name}",
            "volumePluginDir": str(self.folder / "plugins"),
            # The machine's disk and memory are not the cluster's to watch.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
            "oomScoreAdj": 0,
        }
        config = self.folder / "kubelet.yaml"
        config.write_text(yaml.safe_dump(settings))
        self.cluster.running.start(
            f"{self.name}.kubelet",
            self.cluster.programs / "kubelet",
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--node-ip={self.address}",
            f"--hostname-override={self.name}",
            f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/pki",
            f"--node-labels=topology.kubernetes.io/zone=zone{self.number}",
        )

    def stop_pods(self) -> None:
        """Whatever containers are left, at once."""
        if not Path(self.socket).exists():
            return
        for task in self.ctr("tasks", "list", "--quiet").split():
            with suppress(AssertionError):  # it has just ended
                self.ctr("tasks", "kill", "--signal", "SIGKILL", "--all", task)


def start_proxy(cluster: Cluster) -> None:
    """The rules of Services and node ports, for both nodes."""
    kubeconfig = cluster.certificates.kubeconfig("proxy", "system:kube-proxy")
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": PODS,
        "hostnameOverride": "node1",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "oomScoreAdj": 0,
    }
    config = cluster.folder / "proxy.yaml"
    config.write_text(yaml.safe_dump(settings))
    cluster.running.start("kube-proxy", cluster.programs / "kube-proxy", f"--config={config}")
