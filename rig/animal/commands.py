"""`stimloop fake`: devices that are simulated without an animal, for tests of any program that reads their wires."""

from pathlib import Path
from typing import Annotated

import typer

fake_app = typer.Typer(no_args_is_help=True, help="Simulated devices on their real wires, without screen or session.")

PORT_HELP = "Data port of the ZMQ Interface; heartbeat is the next one; 0: off."
Port = Annotated[int, typer.Option(min=0, max=65534, help=PORT_HELP)]


@fake_app.callback()
def _devices() -> None:
    """Keep the device's name a word of the command, also while there is one device."""


@fake_app.command()
def openephys(
    port: Port = 5556,
    http_port: Annotated[int | None, typer.Option(help="Port of the GUI's HTTP server; off without.")] = None,
    events_port: Annotated[int | None, typer.Option(help="Port of an Event Broadcaster; off without.")] = None,
    events_format: Annotated[str, typer.Option(help="json or raw.")] = "json",
    stream: Annotated[str | None, typer.Option(help="Name of the stream; ProbeA-AP without.")] = None,
    units: Annotated[int, typer.Option(min=0, max=20_000, help="Number of units, E01#0 and so on.")] = 4,
    rate: Annotated[float, typer.Option(min=0, max=1000, help="Spikes/s of each unit.")] = 10.0,
    channels: Annotated[int, typer.Option(min=0, max=4096, help="Continuous channels; 0: an empty mask.")] = 16,
    sample_rate: Annotated[float, typer.Option(min=100, max=999_999, help="Samples per s.")] = 30_000.0,
    line: Annotated[int, typer.Option(min=0, max=63, help="0-based TTL line of the square wave.")] = 0,
    edge_period: Annotated[float, typer.Option(min=0.001, help="Period of the square wave, s.")] = 0.5,
    first_sample: Annotated[int, typer.Option(min=0, help="Number of the first sample.")] = 0,
    ppm: Annotated[float, typer.Option(min=-500, max=500, help="Drift of the device's clock, ppm.")] = 0.0,
    style: Annotated[str, typer.Option(help="JSON as GUI 0.6 or 1.0 writes it.")] = "1.0",
    fault: Annotated[list[str] | None, typer.Option(help="NAME or NAME@SECONDS; may be given again.")] = None,
    quirks: Annotated[bool, typer.Option("--quirks", help="Blocks of varying length, jittered, some late.")] = False,
    voltage: Annotated[bool, typer.Option("--voltage", help="Spikes in noise on all channels.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
    duration: Annotated[float | None, typer.Option(min=0.01, help="Seconds; until Ctrl-C without.")] = None,
    truth: Annotated[Path | None, typer.Option(help="New folder for what was sent.")] = None,
) -> None:
    """Play an Open Ephys GUI (ZMQ Interface, HTTP server, Event Broadcaster) with faults: docs/fake_openephys.md."""
    from rig.animal.fake_openephys import FakeSettings, run
    from rig.animal.openephys_faults import UnknownSwitch
    from rig.animal.wire import WireError
    from rig.clock import HostClock
    from rig.supervision import child

    for name, value, allowed in (("style", style, ("0.6", "1.0")), ("events-format", events_format, ("json", "raw"))):
        if value not in allowed:
            raise typer.BadParameter(f"{value!r}; choose from {', '.join(allowed)}", param_hint=f"--{name}")
    settings = FakeSettings(
        port=port or None,
        http_port=http_port,
        events_port=events_port,
        events_format="raw" if events_format == "raw" else "json",
        stream=stream,
        units=units,
        rate_hz=rate,
        channels=channels,
        sample_rate_hz=sample_rate,
        line=line,
        edge_s=edge_period,
        first_sample=first_sample,
        ppm=ppm,
        style="0.6" if style == "0.6" else "1.0",
        faults=tuple(fault or ()),
        quirks=quirks,
        voltage=voltage,
        seed=seed,
    )
    try:
        child.say(sent=run(settings, HostClock(spin_ns=0), duration, truth, child.say))
    except WireError as error:
        raise typer.Exit(child.fail(error.reason, error.cure)) from error
    except UnknownSwitch as error:
        raise typer.Exit(child.fail(str(error), "docs/fake_openephys.md describes each switch")) from error
    except (OSError, ValueError) as error:
        raise typer.Exit(child.fail(str(error), "correct the options as the reason says")) from error
