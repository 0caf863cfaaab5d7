"""Keys and doors: files only their owner reads, listed keys only, addresses outside this computer only with keys."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from click.testing import Result
from typer.testing import CliRunner

from rig.cli import app
from rig.clock import HostClock
from rig.config.reading import ConfigError, parse
from rig.links.bus import Hub, Malformed
from rig.links.keys import ClientKeys, KeysError, client_keys, listing, make, server_keys
from rig.links.loopback import NotPrivate, is_loopback, split_endpoint
from rig.links.peer import Peer

REST = 'sources: [{type: openephys}]\nresponses: {units: ["E01#0"]}\nphases: [{agent: present}]\n'


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make(tmp_path / "keys", "model")
    return tmp_path / "keys"


def stimloop(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_command_makes_keys_that_only_the_owner_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    done = stimloop("keys", "new", str(folder))
    assert done.exit_code == 0, done.stderr
    secrets = sorted(folder.rglob("*.key_secret"))
    assert [p.relative_to(folder).as_posix() for p in secrets] == ["model/model.key_secret", "server/server.key_secret"]
    assert [p.stat().st_mode & 0o777 for p in secrets] == [0o600, 0o600]
    assert [p.stat().st_mode & 0o077 for p in (folder / "model", folder / "server")] == [0, 0]
    server, client = server_keys(folder / "server", "model"), client_keys(folder / "model")
    assert server.allowed == {client.public: "model"}
    assert client.server == server.public
    shown = stimloop("keys", "show", str(folder))
    assert shown.exit_code == 0
    assert server.secret.decode() not in shown.stdout + repr(server) + repr(client)
    secrets[0].chmod(0o644)
    assert stimloop("keys", "show", str(folder)).exit_code == 1
    again = stimloop("keys", "new", str(folder))
    assert again.exit_code == 2
    assert "has keys for model" in again.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_secret_that_others_can_read_is_refused(keys: Path) -> None:
    (keys / "model" / "model.key_secret").chmod(0o640)
    with pytest.raises(KeysError, match=r"can be read by other users.*chmod 600"):
        client_keys(keys / "model")
    (keys / "server" / "server.key_secret").chmod(0o604)
    with pytest.raises(KeysError, match="can be read by other users"):
        server_keys(keys / "server", "model")
    assert any("WRONG" in line for line in listing(keys))


def test_what_is_no_key_is_refused_with_the_cure(keys: Path, tmp_path: Path) -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: client_keys(tmp_path), "copy the folder"),
        (lambda: server_keys(tmp_path, "model"), "stimloop keys new"),
        (lambda: server_keys(keys, "model"), "give the folder of the server's end"),
        (lambda: server_keys(keys / "server", "guest"), "--client guest"),
        (lambda: make(keys, "../evil"), "no name of a client"),
        (lambda: make(keys, "rig"), "no name of a client"),
    ]
    for read, reason in wrong:
        with pytest.raises(KeysError, match=reason):
            read()
    (keys / "server" / "allowed" / "model.key").write_text("nonsense")
    with pytest.raises(KeysError, match=r"model.key is no key"):
        server_keys(keys / "server", "model")
    secret = keys / "model" / "model.key_secret"
    secret.write_text(secret.read_text().replace("public-key = \"", "public-key = \"0"))
    with pytest.raises(KeysError, match="copy it again"):
        client_keys(keys / "model")


def test_a_second_client_gets_its_own_key_and_guests_are_not_models(keys: Path) -> None:
    make(keys, "model-gpu2")
    make(keys, "guest")
    assert sorted(server_keys(keys / "server", "model").allowed.values()) == ["model", "model-gpu2"]
    assert list(server_keys(keys / "server", "guest").allowed.values()) == ["guest"]


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_these_are_inside(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["*", "0.0.0.0", "10.0.0.5", "eth0", "lo", "", "127.0.0.1.example.org", "::", "2130706433"],  # noqa: S104 - refused
)
def test_these_are_outside(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "text",
    ["10.0.0.5:1", "udp://1.2.3.4:5", "tcp://", "tcp://a", "tcp://a:b", "tcp://a:99999", "tcp://a;b:1:2"],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="tcp://ADDRESS:PORT"):
        split_endpoint(text)


def test_the_bus_stays_inside_this_computer_without_keys() -> None:
    with pytest.raises(NotPrivate, match="stimloop keys new"):
        Peer("rig", "tcp://10.0.0.5:5600", frozenset(), HostClock())
    for endpoint in ("tcp://0.0.0.0:0", "tcp://*:0"):
        with pytest.raises(NotPrivate):
            Hub(endpoint)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (
            "processes: {model_server: {bind: 'tcp://10.0.0.5:5600'}}",
            r"processes.model_server: keys is missing.*stimloop keys new",
        ),
        (
            "processes: {model_server: {bind: '10.0.0.5', keys: k}}",
            r"processes.model_server.bind: .*tcp://ADDRESS:PORT",
        ),
        ("guest: {bind: 0.0.0.0}", r"guest: bind 0.0.0.0 lies outside.*stimloop keys new"),
    ],
)
def test_a_config_without_keys_is_refused_with_the_cure(part: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(REST + part)


def test_a_config_with_keys_is_taken() -> None:
    assert parse(REST + "guest: {bind: 0.0.0.0, keys: k}").guest is not None
    server = parse(REST + "processes: {model_server: {bind: 'tcp://10.0.0.5:5600', keys: k}}").processes.model_server
    assert server is not None


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(keys: Path) -> Iterator[Hub]:
    made = Hub("tcp://127.0.0.1:0", ("tcp://127.0.0.1:0", server_keys(keys / "server", "model")))
    made.program = "1"
    yield made
    made.close()


def turn(hub: Hub, peer: Peer | None, until: Callable[[list[object]], object]) -> list[object]:
    got: list[object] = []
    for _ in range(400):
        got += hub.poll(0.01)
        if peer is not None:
            peer.poll(0.0)
        if until(got):
            return got
    raise AssertionError(f"not in time; came: {got[-5:]}")


def refusals(got: list[object]) -> list[Malformed]:
    return [m for m in got if isinstance(m, Malformed)]


def test_a_listed_key_comes_in_and_only_as_the_model(hub: Hub, keys: Path) -> None:
    own = client_keys(keys / "model")
    model = Peer("model", hub.remote_endpoint, frozenset(), HostClock(), keys=own, program="1")
    turn(hub, model, lambda got: any(getattr(m, "process", "") == model.process for m in got))
    assert hub.welcome("model", 0)
    impostor = Peer("rig", hub.remote_endpoint, frozenset(), HostClock(), keys=own, program="1")
    got = turn(hub, impostor, refusals)
    assert "'rig' may not speak from another computer" in refusals(got)[0].why
    local = Peer("model", hub.endpoint, frozenset(), HostClock())
    got = turn(hub, local, refusals)
    assert "may not speak from this computer" in refusals(got)[0].why
    for peer in (model, impostor, local):
        peer.close()


def test_an_unknown_key_is_refused_and_counted_and_its_owner_is_told(hub: Hub, keys: Path, tmp_path: Path) -> None:
    make(tmp_path / "others", "model")
    stranger = client_keys(tmp_path / "others" / "model")
    known_server = ClientKeys("model", stranger.public, stranger.secret, client_keys(keys / "model").server)
    peer = Peer("model", hub.remote_endpoint, frozenset(), HostClock(), keys=known_server, program="1")
    news: list[str] = []
    got = turn(hub, peer, lambda got: refusals(got) and (news.extend(peer.news()) or news))
    first = refusals(got)[0]
    assert (first.what, stranger.public.decode() in first.why) == ("connection refused", True)
    assert "does not list the key model.key" in news[0]
    assert all(isinstance(m, Malformed) for m in got)
    peer.close()


def test_a_connection_without_keys_is_refused_and_counted(hub: Hub) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.IDENTITY, b"model")
        raw.connect(hub.remote_endpoint)
        raw.send(b'{"op": "got", "seq": 1}')
        got = turn(hub, None, refusals)
    assert refusals(got)[0].what == "connection refused"
    assert all(isinstance(m, Malformed) for m in got)


def test_another_version_is_refused_with_words(hub: Hub, keys: Path) -> None:
    from rig.links.peer import NotWelcome

    peer = Peer("model", hub.remote_endpoint, frozenset(), HostClock(), keys=client_keys(keys / "model"), program="2")
    with pytest.raises(NotWelcome, match=r"model is stimloop 2, this is 1: install the same on both") as caught:
        turn(hub, peer, lambda got: False)
    assert caught.value.code == "version"
    peer.close()


def test_another_session_is_refused(hub: Hub, keys: Path) -> None:
    from rig.links.peer import NotWelcome

    hub.session = "monday"
    peer = Peer("model", hub.remote_endpoint, frozenset(), HostClock(), keys=client_keys(keys / "model"), program="1")
    turn(hub, peer, lambda got: got)
    hub.welcome("model", 0)
    turn(hub, peer, lambda got: peer.session == "monday")
    hub.session = "tuesday"
    hub.who("model")
    with pytest.raises(NotWelcome, match="comes from session monday, this is tuesday") as caught:
        turn(hub, peer, lambda got: False)
    assert caught.value.code == "session"
    peer.close()
