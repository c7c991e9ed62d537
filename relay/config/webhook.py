"""What can be set of the webhook that is told of detached generations' ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from relay.config import tls
from relay.config.units import Duration, OrOff, Section, off_to_word, variable
from relay.protocol.webhook import parse_secrets


class WebhookSettings(Section):
    url: OrOff[Annotated[str, Field(pattern=r"""^https?://[A-Za-z0-9.:_\[\]-]+([/?][!-"$-~]*)?$""")]] = Field(
        None,
        description="Where the end of each detached generation (`Prefer: respond-async`) is told, by a POST signed as "
        "Standard Webhooks have it. No redirect is followed. Generations that may take longer than "
        "`streams.detached` before anybody reads them need a longer one, or `off`. `off`: nobody is told.",
    )
    secret_env: OrOff[Annotated[str, AfterValidator(variable)]] = Field(
        None,
        description="The environment variable that holds the secrets that sign: `whsec_` and 24 to 64 bytes in base64 "
        "each, separated by commas. Each of them signs, so that receivers can change from one to the next.",
    )
    timeout: Duration = Field(15.0, description="How long one attempt may take, the receiver's answer included.")
    retry_for: Duration = Field(
        3600.0,
        description="For how long after the end it is tried again, with longer and longer pauses, up to 5 minutes; at "
        "most `streams.retention`.",
    )
    proxy: Annotated[
        str, BeforeValidator(off_to_word), Field(pattern=r"^(env|off|https?://([^/?#@\s]+@)?[^/?#@\s]+/?)$")
    ] = Field("env", description="The proxy on the way to it, as `upstreams[].proxy`.")
    ca_file: OrOff[Path] = Field(None, description="Who may vouch for it, as `upstreams[].ca_file`.")

    @model_validator(mode="after")
    def _check(self) -> WebhookSettings:
        if self.url is not None and self.secret_env is None:
            raise ValueError("secret_env: is missing: name the variable that holds the secret that signs (`whsec_…`)")
        try:
            self.secrets()
        except ValueError as error:
            raise ValueError(f"secret_env: {self.secret_env}: {error}") from None
        if self.ca_file is not None:
            tls.context(self.ca_file)
        return self

    def secrets(self) -> list[bytes]:
        """Raises ValueError, with a message that quotes none of them."""
        return parse_secrets(os.environ.get(self.secret_env, "")) if self.secret_env else []
