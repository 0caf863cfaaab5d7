"""The open wires at full size, their sources as processes of their own: everything arrives, and what it costs."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from rig.clock import HostClock
from rig.links.ports import free_port
from rig.messages import (
    Continuity,
    Fault,
    ProcessStarted,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from tests.collector import Collector

ROOT = Path(__file__).parent.parent
ROIS = 10_000
FRAMES = 240  # 8 s

# A bridge at full size: F and neuropil of 10,000 ROIs, one frame per message, paced by the clock.
BRIDGE = """
import json, sys, time
import numpy as np, zmq
port, rois = int(sys.argv[1]), int(sys.argv[2])
context = zmq.Context.instance()
pub, rep = context.socket(zmq.PUB), context.socket(zmq.REP)
pub.sndhwm = 0; pub.bind(f"tcp://127.0.0.1:{port}"); rep.bind(f"tcp://127.0.0.1:{port + 1}")
head = {"wire": "traces", "version": 1, "run": "load", "number": 0, "rate_hz": 30000, "list": 0, "rois": rois}
F = np.random.default_rng(1).uniform(100, 1000, (2, rois)).astype("<f4")
def send(fields, *arrays):
    head["number"] += 1
    pub.send_multipart([json.dumps(head | fields).encode(), *arrays])
start = time.perf_counter()
for k in range(10_000_000):
    if k % 30 == 0:
        send({"kind": "units", "units": [f"roi{n}" for n in range(rois)]}, np.linspace(0, 0.03, rois).tobytes())
    F[0, 0] = k + 1
    send({"kind": "frames", "frames": [[k, 1000 * k]], "through": 1000 * (k + 1), "motion": [[0, 0, 1]]},
         F[0].tobytes(), F[1].tobytes())
    while (rest := start + (k + 1) / 30 - time.perf_counter()) > 0:
        if rep.poll(max(1, int(rest * 1000))) and rep.recv():
            rep.send_json(head | {"sample": int((time.perf_counter() - start) * 30000)})
"""


SPIKES = 20_000  # per s
UNITS = 384
STOP_S = 3.0
SPIKES_BRIDGE = """
import json, sys, time
import numpy as np, zmq
port, per_s, units = (int(a) for a in sys.argv[1:])
context = zmq.Context.instance()
pub, rep = context.socket(zmq.PUB), context.socket(zmq.REP)
pub.sndhwm = 0; pub.bind(f"tcp://127.0.0.1:{port}"); rep.bind(f"tcp://127.0.0.1:{port + 1}")
head = {"wire": "spikes", "version": 1, "run": "load", "number": 0, "rate_hz": 30000, "list": 0}
head["units"] = [f"U{k}" for k in range(units)]
rng, each, start = np.random.default_rng(1), per_s // 40, time.perf_counter()
for k in range(10_000_000):
    rows = np.stack([np.arange(k * each, (k + 1) * each) % units, rng.integers(750 * k, 750 * (k + 1), each)], axis=1)
    head.update(number=k + 1, through=750 * (k + 1))
    pub.send_multipart([json.dumps(head).encode(), rows.astype("<i8").tobytes()])
    while (rest := start + (k + 1) / 40 - time.perf_counter()) > 0:
        if rep.poll(max(1, int(rest * 1000))) and rep.recv():
            rep.send_json({**head, "units": 0, "sample": int((time.perf_counter() - start) * 30000)})
"""
Started = tuple[Collector, psutil.Process]


@contextmanager
def running(folder: Path, kind: str, bridge_code: str, *numbers: int) -> Iterator[Started]:
    """Run a bridge and the source that listens to it, each as a process; yield the source and what it sends to."""
    port, collector = free_port(2), Collector()
    (folder / "config.yaml").write_text(
        f"sources: [{{type: {kind}, name: device, port: {port}}}]\n"
        "responses: {units: [any], baseline: {kind: none}}\nphases: [{agent: present}]\n"
    )
    command = [sys.executable, "-m", "rig.sources", "--folder", str(folder), "--name", "device"]
    bridge = subprocess.Popen([sys.executable, "-c", bridge_code, str(port), *map(str, numbers)])
    source = subprocess.Popen(
        [*command, "--endpoint", collector.endpoint], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        yield collector, psutil.Process(source.pid)
    finally:
        bridge.kill()
        bridge.wait()
        assert source.stdin is not None
        source.stdin.close()
        while source.poll() is None:
            collector.turn()
        collector.hub.close()


@pytest.fixture
def imaging(tmp_path: Path) -> Iterator[Started]:
    with running(tmp_path, "traces_zmq", BRIDGE, ROIS) as started:
        yield started


@pytest.fixture
def sorter(tmp_path: Path) -> Iterator[Started]:
    with running(tmp_path, "spikes_zmq", SPIKES_BRIDGE, SPIKES, UNITS) as started:
        yield started


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process with SIGSTOP")
def test_a_source_that_stood_still_for_seconds_loses_no_spike(sorter: Started) -> None:
    collector, source = sorter
    clock = HostClock(spin_ns=0)

    def watermark() -> int:
        done = collector.all(Continuity)
        return done[-1].watermark_sample if done else 0

    collector.until(lambda: watermark() > 0)
    begin = watermark()
    source.send_signal(signal.SIGSTOP)
    end_ns = clock.now_ns() + int(STOP_S * 1e9)
    collector.until(lambda: clock.now_ns() > end_ns)
    source.send_signal(signal.SIGCONT)
    collector.until(lambda: watermark() > begin + (STOP_S + 2) * 30_000)
    blocks, end = collector.all(SpikeBlock), watermark()
    got = np.concatenate([b.sample for b in blocks])
    wanted = (end - begin) // 750 * (SPIKES // 40)
    assert wanted >= SPIKES * STOP_S
    assert int(((got >= begin) & (got < end)).sum()) == wanted
    assert collector.all(Continuity)[-1].lost_messages == 0
    assert [g for c in collector.all(Continuity) for g in c.gaps if g.first_sample > 0] == []


def test_10_000_rois_at_30_hz(
    imaging: Started, record_property: Callable[[str, object], None]
) -> None:
    collector, source = imaging
    clock = HostClock()
    ages_ns: list[int] = []
    seen = 0

    def look() -> None:
        nonlocal seen
        new = [d for d in collector.documents[seen:] if isinstance(d, TraceBlock)]
        ages_ns.extend(clock.now_ns() - int(block.arrival_host_ns[0]) for block in new)
        seen = len(collector.documents)

    def rows() -> int:
        return sum(len(b.frame) for b in collector.all(TraceBlock))

    collector.until(lambda: rows() > 30, each=look)
    skipped, cpu, start_ns = len(ages_ns), source.cpu_times(), clock.now_ns()
    until = rows() + FRAMES
    collector.until(lambda: rows() >= until, 20.0, each=look)
    now, wall_s = source.cpu_times(), (clock.now_ns() - start_ns) * 1e-9
    share = (now.user + now.system - cpu.user - cpu.system) / wall_s
    age_ms = np.percentile(np.array(ages_ns[skipped:]) * 1e-6, [50, 99, 100])
    size_mb = source.memory_info().rss / 1e6
    figures = f"{share:.3f} of a core, {size_mb:.0f} MB, age p50, p99, max {age_ms.round(1).tolist()} ms"
    record_property("figures", figures)
    blocks = collector.all(TraceBlock)
    frame = np.concatenate([b.frame for b in blocks])
    assert (np.diff(frame) == 1).all()
    assert np.array_equal(np.concatenate([b.values[:, 0] for b in blocks]), (frame + 1).astype(np.float32))
    assert all(b.neuropil is not None and b.neuropil.shape == (len(b.frame), ROIS) for b in blocks)
    assert len(collector.all(UnitList)) == 1
    assert len(collector.all(ProcessStarted)) == 1
    assert collector.all(Fault) == []
    assert collector.all(Continuity)[-1].lost_messages == 0
    assert len(blocks) / wall_s < 60
    assert share < 0.5, figures  # of one core; about 0.05 on an idle machine
    assert age_ms[0] < 100, figures
