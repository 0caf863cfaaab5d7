"""`stimloop fake openephys` as other people use it: a process, read by the real sources, compared with its truth."""

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rig.animal.fake_openephys import Activity, FakeSettings
from rig.clock import HostClock
from rig.config.sources import OpenEphysEventsSource, OpenEphysSource
from rig.links.ports import free_port
from rig.messages import Continuity, EdgeBlock, Fault, Marker, SpikeBlock
from rig.sources.openephys import OpenEphys, probe
from rig.sources.openephys_events import OpenEphysEvents
from rig.sources.openephys_http import mode, request, send_message
from tests.collector import Collector, Running

ROOT = Path(__file__).parents[1]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "rig.cli", "fake", "openephys", *options]


@contextmanager
def fake(*options: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command; ready when entered, ended by a signal if it has not ended by itself."""
    process = subprocess.Popen(
        command(*options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        assert "ready" in json.loads(line), line
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
    finally:
        process.kill()
        process.communicate()


def listen(collector: Collector, port: int, http_port: int | None = None) -> Running:
    source = OpenEphysSource(name="probe", port=port, http_port=http_port)
    return Running(collector, lambda peer, stop, say: OpenEphys(source, peer, HostClock(), stop, say))


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def spikes(collector: Collector) -> set[tuple[str, int]]:
    return {(b.units[k], int(s)) for b in collector.all(SpikeBlock) for k, s in zip(b.unit, b.sample, strict=True)}


def truth_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "truth.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("style", ["0.6", "1.0"])
def test_what_the_real_source_reads_is_what_the_truth_says(tmp_path: Path, style: str) -> None:
    port, folder = free_port(2), tmp_path / "truth"
    options = ("--port", str(port), "--units", "3", "--rate", "100", "--channels", "2", "--truth", str(folder))
    collector = Collector()
    with listen(collector, port) as running:
        with fake(*options, "--style", style, "--first-sample", "90000", "--seed", "5"):
            collector.until(lambda: running.ready)
            collector.until(lambda: len(collector.all(EdgeBlock)) >= 4)
        collector.turn()
        done = collector.all(Continuity)[-1]
        gap_end = max(g.end_sample for c in collector.all(Continuity) for g in c.gaps)
        sent = {(r["unit"], int(r["wire_sample"])) for r in rows(folder, "spikes.csv")}
        inside = {s for s in sent if gap_end <= s[1] < done.watermark_sample}
        assert len(inside) > 100
        assert inside <= spikes(collector) <= sent
        edges = {(int(r["line"]), int(r["state"]), int(r["wire_sample"])) for r in rows(folder, "edges.csv")}
        blocks = collector.all(EdgeBlock)
        got = {(int(b.line[k]), int(b.state[k]), int(b.sample[k])) for b in blocks for k in range(len(b.line))}
        assert {e for e in edges if gap_end <= e[2] < done.watermark_sample} <= got <= edges
        truth = truth_of(folder)
        assert truth["units"] == ["E01#0", "E02#0", "E03#0"]
        assert truth["settings"]["seed"] == 5
        assert truth["messages"] >= done.messages


def test_faults_are_thrown_when_they_should_be_and_the_source_tells_them(tmp_path: Path) -> None:
    port, folder = free_port(2), tmp_path / "truth"
    options = ("--port", str(port), "--rate", "100", "--channels", "1", "--truth", str(folder))
    collector = Collector()
    with listen(collector, port) as running:
        with fake(*options, "--fault", "drop@2.0", "--fault", "restart_reset@3.0"):
            collector.until(lambda: running.ready)
            collector.until(lambda: "messages lost" in [f.what for f in collector.all(Fault)])
            collector.until(lambda: len({c.run for c in collector.all(Continuity)}) == 2)
        truth = truth_of(folder)
        assert [name for name, _ in truth["thrown"]] == ["drop", "restart_reset"]
        assert max(c.lost_messages for c in collector.all(Continuity)) == truth["dropped"] == 40


def test_http_messages_arrive_and_idle_stops_the_data(tmp_path: Path) -> None:
    port, folder = free_port(2), tmp_path / "truth"
    http = free_port(2)
    options = ("--port", str(port), "--http-port", str(http), "--rate", "50", "--truth", str(folder))
    collector = Collector()
    with listen(collector, port, http) as running:
        with fake(*options):
            collector.until(lambda: running.ready)
            assert mode("127.0.0.1", http) == "ACQUIRE"
            send_message("127.0.0.1", http, "trial 7")
            collector.until(lambda: collector.all(Marker))
            assert "104 ZMQ Interface" in collector.all(Marker)[0].text
            request("127.0.0.1", http, "PUT", "/api/status", {"mode": "IDLE"})
            collector.until(lambda: "acquisition stopped" in [f.what for f in collector.all(Fault)])
            first = {c.run for c in collector.all(Continuity)}
            request("127.0.0.1", http, "PUT", "/api/status", {"mode": "RECORD"})
            collector.until(lambda: {c.run for c in collector.all(Continuity)} > first)
            collector.until(lambda: any("RECORD" in m.text for m in collector.all(Marker)))
        assert truth_of(folder)["gui_messages"] == ["trial 7"]


def test_the_event_broadcaster_beside_it_carries_the_same_events(tmp_path: Path) -> None:
    port, events, folder = free_port(2), free_port(2), tmp_path / "truth"
    source = OpenEphysEventsSource(name="probe", port=events, http_port=None)
    collector = Collector()
    with Running(
        collector, lambda peer, stop, say: OpenEphysEvents(source, peer, HostClock(), stop, say)
    ) as running:
        with fake("--port", str(port), "--events-port", str(events), "--rate", "80", "--truth", str(folder)):
            collector.until(lambda: running.ready)
            collector.until(lambda: len(spikes(collector)) > 200)
        sent = {(r["unit"], int(r["wire_sample"])) for r in rows(folder, "spikes.csv")}
        assert spikes(collector) <= sent


def test_it_ends_by_itself_and_says_what_it_sent(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--port", str(free_port(2)), "--duration", "0.5", "--truth", str(tmp_path / "t")),
        cwd=ROOT, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout.splitlines()[-1])["sent"]
    assert sent["messages"] >= 16 * 20
    assert truth_of(tmp_path / "t")["messages"] == sent["messages"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fault", "earthquake"), ("'earthquake'", "drop_tail")),
        (("--port", "0"), ("give data or events",)),
        (("--port", "0", "--events-port", "0", "--fault", "drop"), ("--fault",)),
    ],
)
def test_mistakes_are_one_clear_line(options: tuple[str, ...], words: tuple[str, ...]) -> None:
    given = options if "--port" in options else (*options, "--port", str(free_port(2)))
    done = subprocess.run(
        command(*given), cwd=ROOT, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    said = json.loads(done.stdout)
    for word in words:
        assert word in said["failed"] + said["cure"]


def test_a_truth_folder_that_is_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    given = command("--port", str(free_port(2)), "--truth", str(tmp_path))
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "not empty" in json.loads(done.stdout.splitlines()[-1])["failed"]


def test_activity_is_seeded_and_its_wave_is_exact() -> None:


    settings = FakeSettings(units=5, rate_hz=20.0, edge_s=0.1)
    one, two = (Activity(settings, np.random.default_rng(4)) for _ in range(2))
    edges = []
    for k in range(200):
        a, b = one.block(k * 500, 500), two.block(k * 500, 500)
        assert a.spike_sample.tolist() == b.spike_sample.tolist()
        assert a.edges == b.edges
        assert all(k * 500 <= s < k * 500 + 500 for s in a.spike_sample)
        edges += a.edges
    assert [e[2] for e in edges] == list(range(1500, 100_000, 1500))
    assert [e[1] for e in edges][:4] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("port_conflict_heartbeat", "port {next} was taken when it bound its heartbeat"),
        ("port_conflict_data", "port {port} was taken when it bound it"),
    ],
)
def test_port_conflicts_that_the_fake_plays_are_named_by_the_source(fault: str, words: str) -> None:
    port = free_port(2)
    with fake("--port", str(port), "--fault", fault):
        reason, cure = probe(OpenEphysSource(name="probe", port=port, http_port=None), HostClock(), 0.5)
    assert words.format(port=port, next=port + 1) in reason
    assert "insert the plugin again" in cure
