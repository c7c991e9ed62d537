"""Where a credential may stand: one row per name, of the kinds that upstreams and gateways are known to take."""

from __future__ import annotations

import pytest

from relay.protocol.credentials import is_header, is_parameter, shown, without_credentials


def words(text: str) -> list[str]:
    return text.split()


HOLDING = words(
    """
    authorization x-api-key api-key apikey x-apikey x-goog-api-key xi-api-key x-rapidapi-key x-minimax-api-key x_api_key
    ocp-apim-subscription-key x-subscription-key x-functions-key aeg-sas-key helicone-auth cf-aig-authorization
    cf-access-client-secret cf-access-token x-auth x-auth-token x-access-token token private-token x-vault-token
    x-amz-security-token x-session-token x-serverless-authorization x-goog-iap-jwt-assertion x-user-password
    x-portkey-api-key x-portkey-virtual-key x-portkey-config x-litellm-key x-litellm-api-key x-bf-vk
    x-client-credentials     x-signature x-amz-signature
    """
)
OF_SOMETHING_ELSE = words(
    """
    idempotency-key x-idempotency-key sec-websocket-key x-prompt-cache-key x-partition-key x-csrf-token x-page-token
    continuation-token x-max-tokens x-token-count x-session-affinity session-id thread-id x-claude-code-session-id
    x-codex-turn-state x-codex-beta-features x-stainless-retry-count user-agent accept content-type x-request-id
    traceparent x-author authority x-keyboard x-api-version openai-organization anthropic-beta anthropic-version prefer
    """
)


@pytest.mark.parametrize("name", HOLDING)
def test_a_header_whose_name_says_so_tells_owners_apart(name: str) -> None:
    assert is_header(name.encode())
    shared = (b"authorization", b"Bearer shared")
    owners = {shown([shared, (name.upper().encode(), tenant)]) for tenant in (b"a", b"b")}
    assert len(owners) == 2


@pytest.mark.parametrize("name", OF_SOMETHING_ELSE)
def test_one_that_changes_with_every_request_does_not(name: str) -> None:
    assert not is_header(name.encode())
    assert shown([(b"api-key", b"k"), (name.encode(), b"a")]) == b"k"


PARAMETERS = words(
    """
    key api_key api-key apikey Key KEY k%65y %2565ey%20 key[] access_token token sig code auth password jwt secret
    client_secret subscription-key X-Amz-Signature X-Amz-Security-Token X-Goog-Signature X-Goog-Credential user.token
    """
)
HARMLESS = words(
    """
    beta stream starting_after after limit include[] api-version client_version page_token pageToken nextPageToken
    max_tokens last_event_id ticket order purpose encoding decode keyword
    """
)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "%2565ey%20"])
def test_a_parameter_whose_name_says_so_counts_and_does_not_cross_beside_the_relays_key(name: str) -> None:
    assert is_parameter(name)
    assert shown([], (), f"a=1&{name}=v%31") == b"v1"
    for between in "&;":
        assert without_credentials(f"a=%20{between}{name}=v{between}b") == f"a=%20{between}b"
    assert without_credentials(f"{name}=v") == without_credentials(name) == ""
    assert without_credentials(f"{name}=v&a=1") == "a=1"


@pytest.mark.parametrize("name", HARMLESS)
def test_all_others_cross_as_they_are(name: str) -> None:
    assert not is_parameter(name)
    query = f"{name}=a%20b+c&{name}&x=;y="
    assert without_credentials(query) == query
    assert shown([], (), query) == b""


def test_the_key_that_was_shown_crosses_under_no_name() -> None:
    assert without_credentials("note=is%20rk_1&a=1", b"rk_1") == "a=1"


def test_no_credential_is_what_stands_for_an_owner_of_another_kind() -> None:
    """Those begin with a NUL, which no header can hold; a parameter could."""
    assert shown([], (), "key=%00owner%00team-a") == b"%00owner%00team-a"
    assert shown([], (), "key=%00nobody") == b"%00nobody"


def test_with_keys_of_the_relay_only_the_apis_own_names_count() -> None:
    headers = [(b"authorization", b"Bearer k"), (b"x-auth-token", b"t")]
    assert shown(headers, (), "key=q", any_name=False) == b"k"
