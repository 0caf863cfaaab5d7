"""A model server on another computer: late, lossy and cut links lose nothing, and the same generation goes on."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from models.remote import NoBank, local_banks, snapshot_folder
from rig.bench.bad_link import PacketLink, ProxyLink, can_join_namespaces
from rig.clock import HostClock
from rig.config.reading import parse
from rig.config.session import Config
from rig.export.images import file_name
from rig.links.bus import Hub
from rig.links.keys import client_keys, make, server_keys
from rig.links.peer import NotWelcome, Peer
from rig.links.ports import free_port
from rig.messages import Document, Fault, Proposal, Response, SessionStart, SessionStop
from rig.provenance import program
from rig.recording.journal import read_all
from rig.recording.recorder import Recorder
from tests.test_bus import CONFIG, start
from tests.test_end_to_end import config_text

ROOT = Path(__file__).parent.parent


def whole_start() -> SessionStart:
    """Return a start from which a real model server can begin."""
    return start().model_copy(update={"config": parse(CONFIG).model_dump(mode="json")})


class Far:
    """A recorder with a remote endpoint, stepped by hand, and a link to it that the test spoils."""

    def __init__(self, folder: Path, remote: str = "tcp://127.0.0.1:0") -> None:
        if not (folder / "keys").exists():
            make(folder / "keys", "model")
        self.path, self.clock = folder / "session.journal", HostClock()
        self.keys = client_keys(folder / "keys" / "model")
        self.hub = Hub("tcp://127.0.0.1:0", (remote, server_keys(folder / "keys" / "server", "model")))
        self.recorder = Recorder(self.path, self.hub, parse(CONFIG), self.clock, whole_start)

    def peer(self, port: int, last_seq: int = 0, wants: frozenset[str] = frozenset({"fault"})) -> Peer:
        endpoint = f"tcp://127.0.0.1:{port}"
        return Peer("model", endpoint, wants, self.clock, last_seq, keys=self.keys, program=program())

    @property
    def faults(self) -> list[Fault]:
        return [e.document for e in read_all(self.path) if isinstance(e.document, Fault)]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    made = Far(tmp_path)
    yield made
    made.recorder.close("test")


def said(k: int) -> Fault:
    return Fault(what="test", detail=str(k), done="nothing")


def test_nothing_is_lost_or_doubled_over_a_bad_link_that_is_cut_and_broken(far: Far) -> None:
    """Documents go both ways all the time; the link stalls, is cut with the connection standing, and is broken."""
    target = ("127.0.0.1", int(far.hub.remote_endpoint.rsplit(":", 1)[1]))
    with ProxyLink(target, 0.02, 0.05, 1, far.clock) as link:
        peer = far.peer(link.port)
        local = Peer("rig", far.hub.endpoint, frozenset({"fault"}), far.clock)
        got: list[str] = []
        news: list[str] = []
        sent = turn = 0
        end_ns = far.clock.now_ns() + 25_000_000_000
        while far.clock.now_ns() < end_ns:
            turn += 1
            if turn == 60:
                link.cut()
            elif turn == 160:
                link.mend()
            elif turn == 260:
                link.drop()
            if sent < 600 and turn > 10:
                (peer if sent % 2 else local).send(said(sent))
                sent += 1
            far.recorder.step(0.005)
            local.poll(0.0)
            came = [e.document for e in peer.poll(0.002)]
            got += [d.detail for d in came if isinstance(d, Fault) and d.what == "test"]
            news += peer.news()
            if sent == 600 and len(got) == 600 and not peer.unacked and not local.unacked:
                break
        peer.close()
        local.close()
    assert sorted(got, key=int) == [str(k) for k in range(600)]
    assert [f.detail for f in far.faults if f.what == "test"] == got
    assert news[:2] == ["connected", "link lost; connecting again"]


def test_the_log_says_that_the_model_server_is_away_and_back(far: Far) -> None:
    target = ("127.0.0.1", int(far.hub.remote_endpoint.rsplit(":", 1)[1]))
    with ProxyLink(target, 0.0, 0.0, 1, far.clock) as link:
        peer = far.peer(link.port)

        def until(what: str) -> None:
            end_ns = far.clock.now_ns() + 10_000_000_000
            while not any(f.what == what for f in far.faults):
                assert far.clock.now_ns() < end_ns, f"no fault {what!r} in time"
                far.recorder.step(0.01)
                peer.poll(0.0)

        for _ in range(100):
            far.recorder.step(0.005)
            peer.poll(0.0)
        link.cut()
        link.drop()
        until("model server away")
        link.mend()
        link.drop()
        until("model server back")
        peer.close()
    away, back = (f for f in far.faults if f.what.startswith("model server"))
    assert away.since_host_ns is not None
    assert back.since_host_ns is not None
    assert away.since_host_ns <= back.since_host_ns


def test_a_server_that_has_read_more_than_the_log_holds_must_start_over(far: Far) -> None:
    """After a power loss on the rig's computer the last second of the log may be gone that the other one has seen."""
    peer = far.peer(int(far.hub.remote_endpoint.rsplit(":", 1)[1]), last_seq=10_000)

    def turn() -> None:
        for _ in range(300):
            far.recorder.step(0.01)
            peer.poll(0.0)

    with pytest.raises(NotWelcome, match="has read 10000 entries of this log, which has") as caught:
        turn()
    assert caught.value.code == "session"
    peer.close()


def test_no_path_from_the_wire_is_opened_by_the_remote_server(tmp_path: Path) -> None:
    hostile = SessionStart(
        session="../../etc/cron.d", simulated=True, config_yaml="", config={}, versions={}, commit=None, dirty=None,
        start_host_ns=1, start_utc_ns=2,
    )  # fmt: skip
    folder = snapshot_folder(tmp_path, hostile)
    assert folder.parent == tmp_path
    assert "." not in folder.name
    config = parse(CONFIG + "banks: {mine: /etc}")
    with pytest.raises(NoBank, match="--bank mine=FOLDER"):
        local_banks(config, {})
    assert local_banks(config, {"mine": tmp_path, "other": Path("/")}).banks == {"mine": tmp_path}


@pytest.mark.parametrize("text", ["../../etc/passwd", "/etc/passwd", "a/../b", "C:\\x", "..", ""])
def test_no_text_of_a_document_becomes_a_path(text: str, tmp_path: Path) -> None:
    assert Path(file_name(text, text)).name == file_name(text, text)
    assert (tmp_path / file_name(text, text)).resolve().parent == tmp_path.resolve()


# --- a whole session --------------------------------------------------------------------------------------------------


def run_session(folder: Path, cut_s: float, generations: int, link: PacketLink | ProxyLink | None) -> list[Document]:
    """Run a simulated session whose model server is behind `link`, cut for a while; return what the log holds."""
    make(folder / "keys", "model")
    spaces = isinstance(link, PacketLink)
    port = free_port(2)
    address = PacketLink.addresses[0] if spaces else "127.0.0.1"
    raw = yaml.safe_load(config_text(free_port(2), generations))
    raw["processes"] = {"model_server": {"bind": f"tcp://{address}:{port}", "keys": str(folder / "keys" / "server")}}
    (folder / "c.yaml").write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "rig.cli"]
    demo = [*program, "demo", "--config", str(folder / "c.yaml"), "--sessions", str(folder / "sessions")]
    with ExitStack() as stack:
        if link is None:
            link = stack.enter_context(ProxyLink(("127.0.0.1", port), 0.02, 0.05, 1, HostClock()))
        near = link.port if isinstance(link, ProxyLink) else port
        model = [*program, "model", "--connect", f"tcp://{address}:{near}", "--keys", str(folder / "keys" / "model")]
        commands = [demo, [*model, "--snapshots", str(folder / "snapshots")]]
        running = []
        for k, command in enumerate(commands):
            log = stack.enter_context((folder / f"{k}.log").open("wb"))
            line = link.command(k, *command) if isinstance(link, PacketLink) else command
            running.append(subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=log))
        try:
            pause = threading.Event()
            for _ in range(400):  # until the evolution has begun
                if "evolve generation 1" in (folder / "0.log").read_text() or running[0].poll() is not None:
                    break
                pause.wait(0.1)
            pause.wait(2.0)
            link.cut()
            pause.wait(cut_s)
            link.mend()
            running[0].wait(120)
        finally:
            for each in running:
                if each.poll() is None:
                    each.terminate()
                each.wait(60)
    (journal,) = folder.glob("sessions/*/session.journal")
    return [e.document for e in read_all(journal)]


@pytest.mark.slow
@pytest.mark.display
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["two namespaces", "proxy"])
def test_a_session_goes_on_over_a_link_that_is_cut_for_ten_seconds(
    tmp_path: Path, private_screen: str, kind: str
) -> None:
    with ExitStack() as stack:
        link: PacketLink | None = None
        if kind == "two namespaces":
            if not can_join_namespaces():
                pytest.skip("needs root, network namespaces and TUN devices (Linux)")
            link = stack.enter_context(PacketLink("stimtest", 0.02, 0.05, 1, HostClock()))
        documents = run_session(tmp_path, 10.0, 6, link)
        if link is not None:
            assert link.lost > 0.03 * link.passed
    faults = {d.what for d in documents if isinstance(d, Fault)}
    assert "late proposal" in faults
    assert {"model server away", "model server back"} <= faults
    assert "document refused" not in faults
    assert isinstance(documents[-1], SessionStop)
    proposals = [d for d in documents if isinstance(d, Proposal)]
    assert [(p.phase, p.generation) for p in proposals if p.phase == 1] == [(1, k) for k in range(6)]
    slots = [(d.proposal, d.slot) for d in documents if isinstance(d, Response) and d.slot >= 0 and d.usable]
    wanted = {(p.proposal, k) for p in proposals for k in range(len(p.plan))}
    assert sorted(slots) == sorted(wanted)
    session = next(tmp_path.glob("sessions/*/session.journal")).parent
    verify = [sys.executable, "-m", "rig.cli", "replay", "--verify", str(session)]
    done = subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_config_of_these_tests_is_valid() -> None:
    assert isinstance(parse(config_text(5600)), Config)


@pytest.mark.timeout(400)
def test_a_frozen_server_is_away_and_comes_back(far: Far, tmp_path: Path) -> None:
    """A real `stimloop model`, stopped: its sockets take what is sent, and nothing comes.

    How long all that takes on a busy computer is not the subject, nor whether a server that gets no processor for five
    seconds is called away before it is stopped.
    """
    command = [sys.executable, "-m", "rig.cli", "model", "--connect", far.hub.remote_endpoint]
    command += ["--keys", str(tmp_path / "keys" / "model"), "--snapshots", str(tmp_path / "snapshots")]
    link = far.recorder.link
    assert link is not None

    def until(there: bool, within_s: int) -> None:
        end_ns = far.clock.now_ns() + within_s * 10**9
        while link.there != there:
            assert far.clock.now_ns() < end_ns, f"not {'there' if there else 'away'} in time"
            assert server.poll() is None, (tmp_path / "log").read_text()
            far.recorder.step(0.01)

    def news() -> list[str]:
        return [f.what for f in far.faults if f.what.startswith("model server")]

    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        until(True, 120)
        before = len(news())
        server.send_signal(signal.SIGSTOP)
        until(False, 30)
        server.send_signal(signal.SIGCONT)
        until(True, 60)
    finally:
        server.kill()
        server.wait()
    assert news()[before:] == ["model server away", "model server back"]
