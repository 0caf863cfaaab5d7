"""Traffic of a real Open Ephys GUI: every message of every capture is accounted for, also over a real socket."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
import zmq

from rig.animal.openephys_wire import heartbeat_reply
from rig.clock import HostClock
from rig.config.sources import OpenEphysSource
from rig.links.ports import free_port
from rig.messages import (
    ClockSample,
    Continuity,
    EdgeBlock,
    Fault,
    SpikeBlock,
)
from rig.sources.continuity import Ledger
from rig.sources.openephys import OpenEphys
from rig.sources.openephys_parse import Data, Message, Refusal, Spike, Ttl, parse, who_replied
from tests.collector import Collector, Running, openephys_data


def records(path: Path) -> list[list[Any]]:
    with path.open("rb") as stream:
        return list(msgpack.Unpacker(stream, raw=False, strict_map_key=False))[1:]


def messages(path: Path) -> list[tuple[int, list[bytes]]]:
    return [(r[0], r[3]) for r in records(path) if r[1] == "sub"]


def parsed(path: Path) -> list[tuple[int, Message]]:
    out = []
    for arrival, frames in messages(path):
        message = parse(frames)
        assert not isinstance(message, Refusal), (message, frames[:2])
        out.append((arrival, message))
    return out


@pytest.mark.parametrize(
    ("name", "whole", "repaired"),
    [
        ("main_5556.msgpack", {"Data": 170, "Spike": 18, "Ttl": 5}, {}),
        ("main_events_5558.msgpack", {"Spike": 3932, "Ttl": 314}, {}),
        ("utf8.msgpack", {}, {"Data": 34, "Spike": 3, "Ttl": 2}),
        ("long.msgpack", {}, {"Data": 53, "Spike": 7, "Ttl": 2}),
    ],
)
def test_every_message_is_accounted_for(name: str, whole: dict[str, int], repaired: dict[str, int]) -> None:
    got = parsed(openephys_data(name))
    assert Counter(type(m).__name__ for _, m in got if not m.repaired) == whole
    assert Counter(type(m).__name__ for _, m in got if m.repaired) == repaired


def test_names_survive_the_repair() -> None:
    got = [m for _, m in parsed(openephys_data("long.msgpack"))]
    assert {m.stream for m in got} == {"\u30d7\u30ed\u30fc\u30d6A"}
    assert "\u96fb\u6975-Tetrode 1#0" in {m.unit for m in got if isinstance(m, Spike)}


def test_the_word_of_every_edge_follows_from_the_edges() -> None:
    word, seen, number = 0, 0, 0
    for _, message in parsed(openephys_data("main_events_5558.msgpack")):
        word = 0 if message.message_num < number else word  # lines fall when acquisition stops
        number = message.message_num
        if isinstance(message, Ttl):
            word = word | 1 << message.line if message.state else word & ~(1 << message.line)
            assert message.word == word
            seen += 1
    assert seen == 314


def test_edges_repeat_in_every_pass_through_the_file() -> None:
    edges = [m for _, m in parsed(openephys_data("main_events_5558.msgpack")) if isinstance(m, Ttl)]
    assert len({(e.line, e.state, e.sample_num) for e in edges}) == 94


def test_heartbeat_replies_are_those_of_the_fake() -> None:
    beats = [r for r in records(openephys_data("main_events_5558.msgpack")) if r[1] == "hb"]
    assert len(beats) == 58
    for beat in beats:
        assert heartbeat_reply(bytes(beat[3])) == bytes(beat[4])
        assert who_replied(bytes(beat[4])) == "ZMQ Interface"


def fold(path: Path) -> tuple[Ledger, list[Any]]:
    ledger, documents, due = Ledger("probe", 1), [], 0
    for arrival, message in parsed(path):
        if arrival > due:
            documents += ledger.harvest(arrival)
            due = arrival + 25_000_000
        ledger.take(message, arrival)
    return ledger, [*documents, *ledger.harvest(due + 10_000_000_000)]


def test_the_complete_capture_has_no_loss() -> None:
    path = openephys_data("main_events_5558.msgpack")
    ledger, documents = fold(path)
    assert ledger.total == 4246
    assert not any(c.lost_messages for c in documents if isinstance(c, Continuity))
    faults = Counter(d.what for d in documents if isinstance(d, Fault))
    # Three acquisitions in one file that loops three times, seen without continuous channels.
    assert faults == {"samples jumped back": 3, "acquisition restarted": 2, "no data channel": 1}
    assert ledger.run == 1 + 2 + 3
    spikes = [d for d in documents if isinstance(d, SpikeBlock)]
    edges = [d for d in documents if isinstance(d, EdgeBlock)]
    assert (sum(len(s.sample) for s in spikes), sum(len(e.sample) for e in edges)) == (3932, 314)
    units = Counter(s.units[k] for s in spikes for k in s.unit)
    assert units["Electrode 3#0"] == 1147
    assert units["Electrode 4 peak#0"] == 195


def test_an_excerpt_loses_exactly_what_was_cut_out() -> None:
    path = openephys_data("main_5556.msgpack")
    numbers = [m.message_num for _, m in parsed(path)]
    cut = [b - a - 1 for a, b in pairwise(numbers) if b > a + 1]
    assert len(cut) == 3
    _, documents = fold(path)
    gaps = [g for d in documents if isinstance(d, Continuity) for g in d.gaps]
    assert [g.messages for g in gaps if g.messages] == cut
    blocks = {(m.sample_num, m.sample_num + m.num_samples) for _, m in parsed(path) if isinstance(m, Data)}
    for before, gap in pairwise(gaps):
        if gap.messages:  # from before the last block seen whole to the end of the first block after the hole
            assert any(gap.end_sample == end for _, end in blocks)
            assert any(gap.first_sample in (start - 100, before.end_sample) for start, _ in blocks)
    assert Counter(d.what for d in documents if isinstance(d, Fault))["samples jumped back"] == 1


def test_no_spike_comes_behind_the_watermark() -> None:
    """The deferral rule, on the GUI's own traffic: an event never lies 100 samples before its block."""
    late = [d for d in fold(openephys_data("main_5556.msgpack"))[1] if isinstance(d, Fault) and d.what == "late event"]
    assert late == []


def test_clock_pairs_hold_the_rate_of_the_file_reader() -> None:
    """It plays 30 kHz at 29,974 Hz: pairs of a run seen without continuous channels still say so."""
    _, documents = fold(openephys_data("main_events_5558.msgpack"))
    pairs = [d for d in documents if isinstance(d, ClockSample)]
    runs = {run: [p for p in pairs if p.run == run] for run in {p.run for p in pairs}}
    longest = max(runs.values(), key=len)
    span_s = (longest[-1].pair_host_ns - longest[0].pair_host_ns) * 1e-9
    assert span_s > 8
    rate = (longest[-1].device_sample - longest[0].device_sample) / span_s
    assert rate == pytest.approx(29_974, rel=1e-3)


@pytest.mark.parametrize("name", ["main_5556.msgpack", "main_events_5558.msgpack", "utf8.msgpack", "long.msgpack"])
def test_replayed_over_a_real_socket(name: str) -> None:
    sent = [frames for _, frames in messages(openephys_data(name))]
    expected = Counter(type(parse(frames)).__name__ for frames in sent)
    port = free_port(2)
    source = OpenEphysSource(name="probe", port=port)
    collector = Collector()
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.setsockopt(zmq.SNDHWM, 0)
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(f"tcp://127.0.0.1:{port}")
        with Running(collector, lambda peer, stop, say: OpenEphys(source, peer, HostClock(), stop, say)) as running:
            collector.until(lambda: publisher.poll(0))  # the subscription is here: nothing sent now is lost
            for frames in sent:
                publisher.send_multipart(frames)

            def received() -> Counter[str]:
                return Counter(
                    Spike=sum(len(d.sample) for d in collector.all(SpikeBlock)),
                    Ttl=sum(len(d.sample) for d in collector.all(EdgeBlock)),
                )

            collector.until(lambda: received() == Counter(Spike=expected["Spike"], Ttl=expected["Ttl"]))
            collector.until(lambda: running.ready)  # said after the first blocks were sent, by another thread
            collector.until(lambda: sum({c.run: c.messages for c in collector.all(Continuity)}.values()) == len(sent))
    assert not [f for f in collector.all(Fault) if f.what == "message refused"]
    said = [f for f in collector.all(Fault) if f.what == "non-ASCII name"]
    assert len(said) == (1 if name in ("utf8.msgpack", "long.msgpack") else 0)
