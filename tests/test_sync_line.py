"""Barcodes that the host sends: the sender on a real (simulated) port, the fold that pairs them, a whole session."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from rig.animal.sync_input import SyncInput
from rig.animal.valve import make_register
from rig.clock import HostClock
from rig.clocks.barcodes import BarcodeFormat, signal
from rig.clocks.clockmap import ClockMap
from rig.config.outputs import ParallelOutput, Sync
from rig.config.session import Config
from rig.messages import BarcodeSent, ClockSample, EdgeBlock, Fault
from rig.outputs.lines import OutputError
from rig.outputs.sync import BarcodeSender
from rig.responses.fault_batch import FaultBatch
from rig.responses.sync_line import UNREAD, SyncLine
from tests.test_outputs_session import demo, log_of, short

RATE_HZ = 30_000.0
LINE = 5


def config_with_sync() -> Config:
    return Config.model_validate(
        {
            "sources": [{"type": "openephys", "name": "probe", "port": 5556}],
            "responses": {"units": ["a"], "window_s": [0.05, 0.15]},
            "outputs": [{"type": "parallel", "name": "sync", "port": "/dev/parport0", "line": 3}],
            "sync": {"output": "sync", "line": LINE},
            "phases": [{"agent": "present", "images": ["natural"], "count": 1, "repeats": 1}],
        }
    )


def edges_of(number: int, first_sample: int) -> list[tuple[int, int]]:
    """Return (sample, state) of a barcode whose first edge lies at a sample."""
    out, at, level = [], 0.0, 0
    for state, length_s in signal(number, BarcodeFormat()):
        if state != level:
            out.append((first_sample + round(at * RATE_HZ), state))
            level = state
        at += length_s
    return out


def block(edges: list[tuple[int, int]], line: int = LINE) -> EdgeBlock:
    sample, state = (np.array(column, dtype=np.int64) for column in zip(*edges, strict=True))
    return EdgeBlock(
        source="probe",
        run=1,
        line=np.full(len(edges), line, dtype=np.uint8),
        state=state.astype(np.uint8),
        sample=sample,
        arrival_host_ns=sample,
    )


def sent(number: int, host_ns: int) -> BarcodeSent:
    return BarcodeSent(output="sync", number=number, sent_host_ns=host_ns, uncertainty_ns=1000)


@pytest.mark.parametrize("sent_first", [True, False])
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_barcode_becomes_one_pair_however_its_parts_arrive(sent_first: bool, cut: int) -> None:
    line = SyncLine(config_with_sync(), "probe", FaultBatch())
    edges = edges_of(987_654, 60_000)
    pairs: list[ClockSample] = []
    if sent_first:
        line.sent(sent(987_654, 5_000_000))
    for k in range(0, len(edges), cut):
        line.take(block(edges[k : k + cut]))
        line.take(block([(edges[k][0], 1)], line=LINE + 1))  # another line's edges are nobody's
        pairs += line.pairs(1, edges[min(k + cut, len(edges)) - 1][0] + 1, RATE_HZ)
    pairs += line.pairs(1, 60_000 + 3 * 30_000, RATE_HZ)
    if not sent_first:
        assert pairs == []
        line.sent(sent(987_654, 5_000_000))
        pairs = line.pairs(1, 60_000 + 3 * 30_000, RATE_HZ)
    assert [(p.device_sample, p.pair_host_ns, p.method) for p in pairs] == [(60_000, 5_000_000, "barcode")]
    assert pairs[0].uncertainty_ns == 1000 + 33_333 + 1  # the stamp's and one sample
    assert line.pairs(1, 10**9, RATE_HZ) == []


def test_a_barcode_with_an_edge_lost_gives_no_pair_and_the_next_one_does() -> None:
    faults = FaultBatch()
    line = SyncLine(config_with_sync(), "probe", faults)
    torn, whole = edges_of(0b1011_0111, 5 * 30_000), edges_of(0b1011_1001, 10 * 30_000)
    rest = edges_of(0b1011_0101, 0)[3:]  # the run began in the middle of it: nobody's fault
    del torn[4]
    for number, at in ((0b1011_0111, 1), (0b1011_1001, 2)):
        line.sent(sent(number, at))
    line.take(block(rest + torn + whole))
    assert [p.pair_host_ns for p in line.pairs(1, 10**6, RATE_HZ)] == [2]
    (fault,) = [d for d in faults.due(everything=True) if isinstance(d, Fault)]
    assert fault.what == UNREAD
    assert "1 so far" in fault.detail


def test_the_samples_of_a_run_that_is_over_are_not_paired() -> None:
    line = SyncLine(config_with_sync(), "probe", FaultBatch())
    line.take(block(edges_of(77, 0)))
    line.new_run()
    line.sent(sent(77, 1))
    assert line.pairs(2, 10**6, RATE_HZ) == []


def test_without_sync_in_the_config_nothing_is_read() -> None:
    config = config_with_sync().model_copy(update={"sync": None})
    line = SyncLine(config, "probe", FaultBatch())
    line.take(block(edges_of(77, 0)))
    line.sent(sent(77, 1))
    assert line.pairs(1, 10**6, RATE_HZ) == []


@pytest.mark.alone
def test_what_goes_out_on_a_port_comes_back_as_the_same_number_and_time(tmp_path: Path) -> None:
    """A real sender on a register file, a real input that watches it: number and time of the first edge agree."""
    clock = HostClock(spin_ns=0)
    port = make_register(tmp_path / "port")
    seen = SyncInput(port, 3, clock)
    sender = BarcodeSender(
        Sync(output="sync", line=LINE, every_s=3, delay_s=0.0005),
        ParallelOutput(name="sync", port=str(port), line=3),
        clock,
    )
    try:
        said: list[BarcodeSent] = []
        end_ns = clock.now_ns() + 20_000_000_000
        while not said and clock.now_ns() < end_ns:
            said += [d for d in sender.documents() if isinstance(d, BarcodeSent)]
            clock.sleep_until_ns(clock.now_ns() + 10_000_000)
    finally:
        sender.close()
        edges = seen.before(clock.now_ns() + 1)
        seen.close()
    assert said, "no barcode went out in time in 20 s"
    number, host_ns = said[0].number, said[0].sent_host_ns
    own = [e for e in edges if e.host_ns >= host_ns - 1_000_000]
    assert -1_000_000 < own[0].host_ns - host_ns < 20_000_000
    line = SyncLine(config_with_sync(), "probe", FaultBatch())
    line.sent(said[0])
    line.take(block([(round(e.host_ns * RATE_HZ * 1e-9), e.state) for e in own]))
    (pair,) = line.pairs(1, round((host_ns + 4e9) * RATE_HZ * 1e-9), RATE_HZ)
    assert pair.pair_host_ns == host_ns
    assert number < 1 << BarcodeFormat().bits
    assert port.read_bytes()[0] == 0


def test_a_port_that_is_not_there_is_named(tmp_path: Path) -> None:
    output = ParallelOutput(name="sync", port=str(tmp_path / "none"), line=3)
    with pytest.raises(OutputError, match="none: No such file"):
        BarcodeSender(Sync(output="sync", line=LINE), output, HostClock(spin_ns=0))


@pytest.mark.slow
@pytest.mark.display
def test_a_session_with_a_sync_line_has_its_clock_from_barcodes(private_screen: str, tmp_path: Path) -> None:
    port = make_register(tmp_path / "port")
    raw = yaml.safe_load(Path("configs/reward.yaml").read_text())
    config = short(
        tmp_path,
        outputs=[*raw["outputs"], {"type": "parallel", "name": "sync", "port": str(port), "line": 3}],
        sync={"output": "sync", "line": LINE, "every_s": 3, "delay_s": 0.001},
        animal={**raw.get("animal", {}), "sync_port": str(port)},
        phases=[{**raw["phases"][0], "count": 4, "repeats": 8}],
    )
    with demo(config, tmp_path / "sessions") as process:
        output, _ = process.communicate(timeout=100)
    documents = log_of(tmp_path / "sessions")
    said = [d for d in documents if isinstance(d, BarcodeSent)]
    samples = [d for d in documents if isinstance(d, ClockSample) and d.source == "probe"]
    paired = [d for d in samples if d.method == "barcode"]
    assert len(said) >= 2, output
    assert len(paired) >= 2, output
    assert {d.pair_host_ns for d in paired} <= {d.sent_host_ns for d in said}
    # The arrivals agree: a message is late, by a little, and never early by more than both bounds.
    by_arrival = ClockMap(RATE_HZ)
    for d in samples:
        if d.method == "arrival":
            by_arrival.take(d)
    for d in paired:
        mapped = by_arrival.to_host_ns(d.device_sample)
        assert mapped is not None
        assert abs(mapped[0] - d.pair_host_ns) < mapped[1] + (d.uncertainty_ns or 0) + 2_000_000
