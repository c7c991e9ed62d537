"""Who is who in the cluster: one authority, a certificate for each part, a kubeconfig for each that asks the API."""

from __future__ import annotations

from pathlib import Path

import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


class Certificates:
    def __init__(self, folder: Path, api: str) -> None:
        self.folder = folder
        self._api = api
        self._authority = trustme.CA(organization_name="relay-cluster", key_type=trustme.KeyType.RSA)
        self._authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        key = rsa.generate_private_key(65537, 2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / "accounts.key").write_bytes(private)
        (folder / "accounts.pub").write_bytes(public)

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def issue(self, name: str, common: str, group: str = "relay-cluster", *hosts: str) -> tuple[Path, Path]:
        """Certificate and key. The API server reads a user's name out of it, and a group."""
        issued = self._authority.issue_cert(
            *(hosts or ("nobody.invalid",)), common_name=common, organization_name=group, key_type=trustme.KeyType.RSA
        )
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return certificate, key

    def kubeconfig(self, name: str, common: str, group: str = "relay-cluster") -> Path:
        certificate, key = self.issue(name, common, group)
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "relay",
                    "clusters": [
                        {
                            "name": "relay",
                            "cluster": {"server": self._api, "certificate-authority": str(self.authority)},
                        }
                    ],
                    "users": [{"name": name, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
                    "contexts": [{"name": "relay", "context": {"cluster": "relay", "user": name}}],
                }
            )
        )
        return path
