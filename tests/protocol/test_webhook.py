"""What a webhook is told, and how it is signed."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import time

import pytest

from relay.protocol import webhook
from relay.protocol.outcomes import Cause, Ending, Outcome
from tests.support.processes import needs

KEYS = [bytes(range(24)), bytes(range(64))]
SECRETS = ["whsec_" + base64.b64encode(key).decode() for key in KEYS]
STREAM = "st_HSuYoFjMBUhfb8iBAVCifw"


def test_secrets_are_read() -> None:
    assert webhook.parse_secrets(SECRETS[0]) == KEYS[:1]
    assert webhook.parse_secrets(f" {SECRETS[0]}, {SECRETS[1]}\n") == KEYS
    assert webhook.parse_secrets(" ".join(SECRETS)) == KEYS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "shibboleth",
        base64.b64encode(KEYS[0]).decode(),
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_!!!",
        f"{SECRETS[0]},",
    ],
)
def test_what_is_no_secret_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="openssl rand") as raised:
        webhook.parse_secrets(text)
    assert not text or text.strip(",") not in str(raised.value).replace("`whsec_`", "")


def test_the_signature_is_the_standard_s() -> None:
    """The example of the specification's own reference implementations."""
    (secret,) = webhook.parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = dict(webhook.signed([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'))
    assert headers[b"webhook-signature"] == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers[b"webhook-id"] == b"msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert headers[b"webhook-timestamp"] == b"1614265330"


@pytest.mark.parametrize("secret", SECRETS)
def test_receivers_of_either_secret_verify_it(secret: str) -> None:
    needs(importlib.util.find_spec("standardwebhooks"), "standardwebhooks (make .venv)")
    library = importlib.import_module("standardwebhooks.webhooks")
    body = told(Ending.COMPLETED)
    head = webhook.signed(webhook.parse_secrets(",".join(SECRETS)), webhook.id_of(STREAM), int(time.time()), body)
    headers = {name.decode(): value.decode() for name, value in head}
    assert library.Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(library.WebhookVerificationError):
        library.Webhook(secret).verify(body + b" ", headers)
    with pytest.raises(library.WebhookVerificationError):
        library.Webhook("whsec_" + base64.b64encode(b"another secret of enough bytes").decode()).verify(body, headers)


def told(outcome: Outcome | str, name: str | None = "chat-1") -> bytes:
    return webhook.body_of(
        STREAM,
        name=name,
        api="chat",
        model="gpt-5",
        outcome=str(outcome),
        events=7,
        ended=1760000000.25,
        usage={"input_tokens": 1, "output_tokens": 2},
    )


def test_what_is_told() -> None:
    assert json.loads(told(Ending.COMPLETED)) == {
        "type": "stream.ended",
        "timestamp": "2025-10-09T08:53:20.250Z",
        "data": {
            "id": STREAM,
            "name": "chat-1",
            "api": "chat",
            "model": "gpt-5",
            "outcome": "completed",
            "code": None,
            "events": 7,
            "usage": {"input_tokens": 1, "output_tokens": 2},
        },
    }


@pytest.mark.parametrize("outcome", [*Ending, *Cause, "of_a_newer_version"])
def test_every_outcome_is_an_end_or_a_failure_with_its_code(outcome: str) -> None:
    data = json.loads(told(outcome))["data"]
    well = outcome in list(Ending)
    assert (data["outcome"], data["code"]) == ((str(outcome), None) if well else ("failed", str(outcome)))


def test_the_id_is_the_stream_s() -> None:
    assert webhook.id_of(STREAM) == "msg_HSuYoFjMBUhfb8iBAVCifw"
    assert webhook.id_of("st_other") != webhook.id_of(STREAM)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_pauses_grow_to_a_bound(chance: float) -> None:
    elapsed, pauses = 0.0, []
    while elapsed < 3600:
        pauses.append(webhook.pause(elapsed, chance, None))
        elapsed += pauses[-1]
    assert 0.5 <= pauses[0] <= 1.5
    assert pauses[:5] == sorted(pauses[:5])
    assert max(pauses) <= 375
    assert 10 <= len(pauses) <= 30


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("30", 30, 30),
        ("0", 0.5, 2),
        ("99999", 600, 600),
        ("1e3", 0.5, 2),
        ("-5", 0.5, 2),
        ("soon", 0.5, 2),
        ("９", 0.5, 2),
    ],
)
def test_a_receiver_may_ask_for_a_longer_pause(said: str, least: float, most: float) -> None:
    assert least <= webhook.pause(0, 0.5, said) <= most
