"""Keys as they are made, written down and read: a typing error is told, a secret never."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.auth.keyring import Keyring
from relay.config import SettingsError, load
from relay.config.auth import AuthSettings, KeySettings
from relay.protocol.keys import digest, hash_of, is_key, new_key

HASH = "sha256:" + "5e" * 32
KEY = new_key()
UPSTREAM = {"name": "a", "base_url": "http://a", "api_key_env": "HOME"}


def relay(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=30)


class TestForm:
    def test_a_key_is_random_and_can_be_found_by_scanners(self) -> None:
        made = {new_key() for _ in range(1000)}
        assert len(made) == 1000
        assert all(re.fullmatch("rk_[0-9A-Za-z]{38}", key) for key in made)
        assert len({key[3:35] for key in made}) == 1000
        assert 62**32 > 2**160

    def test_a_typing_error_is_told_apart(self) -> None:
        assert is_key(KEY.encode())
        for at in range(3, len(KEY)):
            wrong = KEY[:at] + ("a" if KEY[at] != "a" else "b") + KEY[at + 1 :]
            assert not is_key(wrong.encode()), at
        for at in range(3, len(KEY) - 1):
            if KEY[at] != KEY[at + 1]:
                assert not is_key((KEY[:at] + KEY[at + 1] + KEY[at] + KEY[at + 2 :]).encode()), at
        for wrong in ("", KEY[:-1], KEY + "a", KEY + "\n", " " + KEY, KEY.lower(), HASH):
            assert not is_key(wrong.encode())

    def test_only_a_key_s_hash_is_kept(self) -> None:
        ring = Keyring(lambda: [KeySettings(hash=hash_of(KEY), owner="a")])
        found = ring.find(KEY.encode())
        assert found is not None
        assert found.digest == digest(KEY.encode())
        assert KEY not in str(found)
        assert ring.find(hash_of(KEY).encode()) is None
        assert ring.find(digest(KEY.encode())) is None

    def test_what_could_be_guessed_is_no_key_even_if_its_hash_is_listed(self) -> None:
        ring = Keyring(lambda: [KeySettings(hash=hash_of("password"), owner="a")])
        assert ring.find(b"password") is None

    def test_10000_cost_a_request_what_one_does(self) -> None:
        def cost(number: int) -> float:
            keys = [KeySettings(hash=hash_of(KEY), owner="a")]
            keys += [KeySettings(hash=f"sha256:{n:064x}", owner="a") for n in range(number - 1)]
            ring = Keyring(lambda: keys)
            shown = KEY.encode()
            assert ring.find(shown) is not None
            times = []
            for _ in range(20):
                start = time.perf_counter()
                for _ in range(200):
                    ring.find(shown)
                times.append(time.perf_counter() - start)
            return min(times)

        assert cost(10_000) < 5 * cost(1)


class TestCommand:
    def test_what_it_prints_is_what_the_settings_take(self, tmp_path: Path) -> None:
        limits = ["--rate", "60/m", "--concurrency", "4", "--expires", "90d", "--name", "laptop"]
        made = relay("key", "new", "--owner", "team-a", "--models", "gpt-*", "o*", *limits)
        assert made.returncode == 0, made.stderr
        key, _, entry = made.stdout.partition("\n")
        assert is_key(key.encode())
        assert key not in entry
        path = tmp_path / "keys.yaml"
        path.write_text(entry)
        (read,) = AuthSettings(mode="keys", keys_file=path).all_keys()
        assert (read.hash, read.owner, read.models) == (hash_of(key), "team-a", ["gpt-*", "o*"])
        assert (read.rate, read.concurrency, read.name) == ("60/m", 4, "laptop")
        assert read.expires is not None
        assert 89 < (read.expires.timestamp() - time.time()) / 86400 < 91
        ring = Keyring(lambda: [read])
        assert ring.find(key.encode()) is not None

    def test_a_key_s_hash_is_told_and_a_typing_error_too(self) -> None:
        assert relay("key", "hash", given=KEY + "\n").stdout == hash_of(KEY) + "\n"
        assert relay("key", "hash", KEY).stdout == hash_of(KEY) + "\n"
        assert relay("key", "hash", KEY[:-1]).returncode == 1
        wrong = relay("key", "hash", given=KEY[:-1] + "\n")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "copy it again" in wrong.stderr
        assert KEY[:-1] not in wrong.stderr

    @pytest.mark.parametrize(
        "words",
        [
            ["--rate", "60"],
            ["--expires", "soon"],
            ["--expires", "90"],
            ["--expires", "0d"],
            ["--expires", "2020-01-01T00:00:00Z"],
            ["--expires", "2030-01-01T00:00:00"],
            ["--expires", "99999999999d"],
            ["--paths", "/v1/files*", "files"],
            ["--concurrency", "0"],
            ["--name", "a b"],
        ],
    )
    def test_a_wrong_limit_makes_no_key(self, words: list[str]) -> None:
        made = relay("key", "new", "--owner", "team-a", *words)
        assert (made.returncode, made.stdout) == (2, "")
        assert words[0] in made.stderr


WRONG: dict[str, tuple[Any, str]] = {
    "a key for its hash": ({"hash": KEY, "owner": "a"}, "auth.keys.0.hash"),
    "a bare hash": ({"hash": HASH[7:], "owner": "a"}, "relay key hash"),
    "no hash": ({"owner": "a"}, "auth.keys.0.hash: is missing"),
    "no owner": ({"hash": HASH}, "auth.keys.0.owner: is missing"),
    "a key for an owner": ({"hash": HASH, "owner": KEY}, "auth.keys.0.owner: this is a key"),
    "a key for a name": ({"hash": HASH, "owner": "a", "name": KEY}, "auth.keys.0.name: this is a key"),
    "a key for a setting": ({"hash": HASH, "owner": "a", KEY: 1}, "no such setting"),
    "a word misspelled": ({"hash": HASH, "owner": "a", "expire": "never"}, "auth.keys.0.expire: no such setting"),
    "a rate without a time": ({"hash": HASH, "owner": "a", "rate": "60"}, "60/m"),
    "a time without a zone": ({"hash": HASH, "owner": "a", "expires": "2030-01-01T00:00:00"}, "auth.keys.0.expires"),
    "a number in quotes for a time": ({"hash": HASH, "owner": "a", "expires": "90"}, "2027-01-31T00:00:00Z"),
    "a number for a time": ({"hash": HASH, "owner": "a", "expires": 2030}, "2027-01-31T00:00:00Z"),
    "a key alone": (KEY, "auth.keys.0"),
    "no models": ({"hash": HASH, "owner": "a", "models": []}, "auth.keys.0.models"),
}


class TestSettings:
    @pytest.mark.parametrize("name", WRONG)
    @pytest.mark.parametrize("place", ["settings", "file"])
    def test_what_is_wrong_is_told_without_repeating_it(self, name: str, place: str, tmp_path: Path) -> None:
        entry, told = WRONG[name]
        path = tmp_path / "keys.yaml"
        path.write_text(yaml.safe_dump([entry]))
        auth = {"mode": "keys", "keys": [entry]} if place == "settings" else {"mode": "keys", "keys_file": str(path)}
        with pytest.raises((SettingsError, ValueError)) as refused:
            load(flags={"upstreams": [UPSTREAM], "auth": auth}, environ={}).auth.all_keys()
        message = str(refused.value)
        assert (told if place == "settings" else told.removeprefix("auth.keys.")) in message
        assert KEY not in message
        assert HASH[7:] not in message

    @pytest.mark.parametrize("suffix", [".yaml", ".json"])
    def test_a_file_that_cannot_be_parsed_is_not_quoted(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"keys{suffix}"
        path.write_text(f'[{{"hash": "{HASH}",\n "owner": {KEY}: }}]')
        with pytest.raises(ValueError, match="line 2") as refused:
            AuthSettings(mode="keys", keys_file=path).all_keys()
        assert KEY not in str(refused.value)
        assert HASH not in str(refused.value)

    def test_one_key_twice_is_told(self, tmp_path: Path) -> None:
        entry = {"hash": HASH, "owner": "a"}
        path = tmp_path / "keys.yaml"
        path.write_text(yaml.safe_dump([entry]))
        with pytest.raises(ValueError, match=r"keys\.yaml: 0: is the same key as auth\.keys\.0") as refused:
            AuthSettings(mode="keys", keys=[KeySettings(hash=HASH, owner="b")], keys_file=path).all_keys()
        assert HASH[7:] not in str(refused.value)

    @pytest.mark.parametrize(
        ("auth", "told"),
        [
            ({"mode": "keys"}, "relay key new"),
            ({"keys": [{"hash": HASH, "owner": "a"}]}, "set mode to keys"),
            ({"keys_file": "keys.yaml"}, "set mode to keys"),
            ({"secret_env": "NOT_SET"}, "openssl rand -hex 32"),
            ({"secret_env": "SHORT"}, "openssl rand -hex 32"),
            ({"secret_env": "RELAY_SECRET"}, "does not begin with RELAY_"),
        ],
    )
    def test_what_does_not_go_together_is_told(
        self, auth: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHORT", "canary-short-secret")
        with pytest.raises(SettingsError) as refused:
            load(flags={"upstreams": [UPSTREAM], "auth": auth}, environ={})
        assert told in str(refused.value)
        assert "canary" not in str(refused.value)
        assert HASH[7:] not in str(refused.value)

    def test_check_reads_the_file_of_keys(self, tmp_path: Path) -> None:
        settings = {"upstreams": [UPSTREAM], "auth": {"mode": "keys", "keys_file": str(tmp_path / "none.yaml")}}
        path = tmp_path / "relay.yaml"
        path.write_text(yaml.safe_dump(settings))
        done = relay("check", "--config", str(path))
        assert done.returncode == 2
        assert "none.yaml: cannot be read" in done.stderr
