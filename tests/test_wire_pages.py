"""The programs on the pages of the open wires and of docs/add-a-source.md, run as they stand there."""

import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rig.clock import HostClock
from rig.config.sources import SpikesWireSource, TracesWireSource
from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Continuity,
    Fault,
    Gap,
    SpikeBlock,
    TraceBlock,
    UnitList,
)
from rig.sources.spikes_zmq import SpikesWire
from rig.sources.traces_zmq import TracesWire
from tests.collector import Collector, Running

ROOT = Path(__file__).parent.parent

# What a lab puts in place of its device: a counter at 30 kHz of this computer's clock.
DEVICE = """
import time
import numpy as np

class Device:
    start_ns, read_to = time.perf_counter_ns(), 0
    def sample(self):
        return (time.perf_counter_ns() - self.start_ns) * 30_000 // 1_000_000_000
    def read(self):
        first, self.read_to = self.read_to, self.sample()
        samples = np.arange(-(-first // 100) * 100, self.read_to, 100)  # one spike every 100 samples, in turn
        return np.stack([samples // 100 % 2, samples], axis=1), self.read_to

class Scope:
    units, scan_offset_s, done = ["roi1", "roi2", "roi3"], np.array([0.0, 0.01, 0.02]), 0
    tick = Device().sample
    def new_frames(self):
        while (self.done + 1) * 1000 <= self.tick():
            k, self.done = self.done, self.done + 1
            yield k, 1000 * k, 1000 * (k + 1), np.array([k, k + 0.25, k + 0.5]) + 1, np.full(3, 7.0), [0.5, -0.5, k]

device, scope = Device(), Scope()
print(Device.start_ns, flush=True)
"""


def program(page: str, port_in_page: int, port: int) -> str:
    """Return the Python of a page, ports replaced, with a simulated device in front."""
    text = (ROOT / "docs" / "wires" / page).read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.splitlines()) <= 13
    assert str(port_in_page) in block
    assert str(port_in_page + 1) in block
    return DEVICE + block.replace(str(port_in_page + 1), str(port + 1)).replace(str(port_in_page), str(port))


@pytest.fixture
def running_bridge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Run a page's bridge; return its port and the host time at which its device counted 0, ns."""
    page, port_in_page = request.param
    port = free_port(2)
    script = tmp_path / "bridge.py"
    script.write_text(program(page, port_in_page, port))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield port, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("running_bridge", [("spikes.md", 5560)], indirect=True, ids=["spikes"])
def test_the_spikes_bridge_of_the_page(running_bridge: tuple[int, int]) -> None:
    port, start_ns = running_bridge
    collector = Collector()
    source = SpikesWireSource(name="probe", port=port)
    with Running(collector, lambda peer, stop, say: SpikesWire(source, peer, HostClock(), stop, say)) as running:
        collector.until(lambda: running.ready and vouched_for(collector))
        begin = collector.all(Continuity)[-1].watermark_sample
        collector.until(lambda: collector.all(Continuity)[-1].watermark_sample > begin + 45_000)
        end = collector.all(Continuity)[-1].watermark_sample
    assert collector.all(Fault) == []
    got = {(int(s), b.units[k]) for b in collector.all(SpikeBlock) for k, s in zip(b.unit, b.sample, strict=True)}
    names = ("SPK01a", "SPK02a")
    wanted = {(s, names[s // 100 % 2]) for s in range(-(-begin // 100) * 100, end, 100)}
    assert len(wanted) >= 449
    assert wanted <= got
    check_clock(collector, start_ns)


def vouched_for(collector: Collector) -> bool:
    return any(c.watermark_sample for c in collector.all(Continuity))


def check_clock(collector: Collector, start_ns: int) -> None:
    pairs = [p for p in collector.all(ClockSample) if p.method == "round_trip"]
    assert len(pairs) >= 4
    for p in pairs:
        assert p.round_trip_ns is not None
        error_ns = p.pair_host_ns - start_ns - p.device_sample * 1e9 / 30_000
        assert abs(error_ns) <= p.round_trip_ns / 2 + 34_000


@pytest.mark.parametrize("running_bridge", [("traces.md", 5570)], indirect=True, ids=["traces"])
def test_the_traces_bridge_of_the_page(running_bridge: tuple[int, int]) -> None:
    port, start_ns = running_bridge
    collector = Collector()
    source = TracesWireSource(name="scope", port=port)
    with Running(collector, lambda peer, stop, say: TracesWire(source, peer, HostClock(), stop, say)) as running:
        collector.until(lambda: running.ready)
        collector.until(lambda: sum(len(b.frame) for b in collector.all(TraceBlock)) > 75)
    assert collector.all(Fault) == []
    (listed,) = collector.all(UnitList)
    assert (listed.units, listed.scan_offset_s.tolist()) == (("roi1", "roi2", "roi3"), [0.0, 0.01, 0.02])
    blocks = collector.all(TraceBlock)
    frame = np.concatenate([b.frame for b in blocks])
    assert (np.diff(frame) == 1).all()
    assert np.array_equal(np.concatenate([b.sample for b in blocks]), 1000 * frame)
    values = np.concatenate([b.values for b in blocks])
    assert np.array_equal(values, (frame[:, None] + np.array([1, 1.25, 1.5])).astype(np.float32))
    for b in blocks:
        assert b.neuropil is not None
        assert b.motion is not None
        assert (b.neuropil == 7).all()
        assert np.array_equal(b.motion[:, 2], b.frame.astype(np.float32))
    check_clock(collector, start_ns)


# --- the example of docs/add-a-source.md ------------------------------------------------------------------------------


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("my_source", ROOT / "docs" / "examples" / "my_source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_source_takes_spikes_and_declares_what_is_lost(example: ModuleType) -> None:
    port, collector = free_port(2), Collector()
    source = example.UdpSource(name="probe", port=port, rate_hz=30_000.0)

    def watermark() -> int:
        return collector.all(Continuity)[-1].watermark_sample

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:

        def send(number: int, spikes: str = "") -> None:
            device.sendto(f"{number} {750 * number}{spikes}".encode(), ("127.0.0.1", port))

        with Running(
            collector, lambda peer, stop, say: example.UdpSpikes(source, peer, HostClock(), stop, say)
        ) as running:
            collector.until(lambda: collector.documents)  # the port is open
            send(11, " A#1:8000")
            collector.until(lambda: running.ready)
            send(12, " B#1:8990 A#1:8400")
            send(15)
            device.sendto(b"\xff\xfe garbage", ("127.0.0.1", port))
            collector.until(lambda: watermark() == 15 * 750)
            run = collector.all(Continuity)[-1].run
            gaps = [g for c in collector.all(Continuity) for g in c.gaps]
            assert gaps == [
                Gap(first_sample=0, end_sample=11 * 750, messages=0),
                Gap(first_sample=12 * 750, end_sample=15 * 750, messages=2),
            ]
            assert collector.all(Continuity)[-1].lost_messages == 2
            blocks = collector.all(SpikeBlock)
            spikes = [(b.units[k], int(s)) for b in blocks for k, s in zip(b.unit, b.sample, strict=True)]
            assert spikes == [("A#1", 8000), ("B#1", 8990), ("A#1", 8400)]
            send(1)
            collector.until(lambda: collector.all(Continuity)[-1].run == run + 1 and watermark() == 750)
            collector.until(lambda: collector.all(Continuity)[-1].state == "stalled")
            told = {f.what for f in collector.all(Fault)}
            assert told == {"messages lost", "message refused", "device restarted"}
            assert len(collector.all(ClockSample)) >= 1
    assert running.code == 0


def test_the_example_source_says_when_nobody_sends(example: ModuleType) -> None:
    collector = Collector()
    source = example.UdpSource(port=free_port(2), rate_hz=30_000.0)
    with Running(
        collector, lambda peer, stop, say: example.UdpSpikes(source, peer, HostClock(), stop, say)
    ) as running:
        collector.until(lambda: running.over)
    assert running.code == 2
    assert "no datagram on UDP port" in running.said[0]["failed"]


def test_the_example_source_says_when_its_port_is_taken(example: ModuleType) -> None:
    collector = Collector()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        source = example.UdpSource(port=holder.getsockname()[1], rate_hz=30_000.0)
        with Running(
            collector, lambda peer, stop, say: example.UdpSpikes(source, peer, HostClock(), stop, say)
        ) as running:
            collector.until(lambda: running.over)
    assert running.code == 2
    assert "in use" in running.said[0]["failed"]
