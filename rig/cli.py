"""The command line and the composition root: the one module that may know all three packages.

It joins the rig with the models and the simulated animal; every heavy import happens inside the command that needs it.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rig.animal.commands import fake_app
from rig.bench.commands import add_replay_bench, bench_app
from rig.bench.evolve_commands import add_evolve_bench
from rig.bench.json_file import with_alone
from rig.bench.mei_commands import add_mei_bench
from rig.bench.refit_commands import add_refit_bench
from rig.bench.synthesis_commands import add_synthesis_bench
from rig.clock import HostClock, StrayReplayClock, replayed
from rig.config.reading import ConfigError, load
from rig.config.session import Config
from rig.config.subject import Subject, lacking
from rig.export.commands import export
from rig.generator_sheet import add_generator
from rig.links.keys_commands import keys_app
from rig.log_commands import SessionFolder, clocks, die, existing, journal, recover
from rig.replay.commands import add_replay
from rig.saved_evolution import with_saved
from rig.similarity import EXAMPLE as COMPARE_EXAMPLE
from rig.similarity import compare_evolutions
from rig.supervision.child import leave_at_once
from rig.train_generator import add_train_generator
from rig.true_rates import add_truth
from rig.units.commands import units_app
from rig.why.tree import add_why

if TYPE_CHECKING:
    from rig.bench.evolve import EvolveSide
    from rig.bench.mei_commands import Run as MeiRun
    from rig.bench.refit import RefitSide
    from rig.bench.synthesis_commands import Benches as SynthesisBenches
    from rig.replay.model_side import ModelSide, Neurons
    from rig.train_generator import Train
    from rig.why.origin import Build

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Closed-loop visual neuroscience: show images, record neurons, evolve the next images, log everything.",
)
app.add_typer(bench_app, name="bench")
app.add_typer(fake_app, name="fake")
app.add_typer(units_app, name="units")
app.add_typer(keys_app, name="keys")
app.command()(export)
app.command("compare-evolutions", help=COMPARE_EXAMPLE)(compare_evolutions)
console = Console()
errors = Console(stderr=True)
ConfigFile = Annotated[Path, typer.Argument(help="Config file of the session, YAML.")]
Sessions = Annotated[Path, typer.Option("--sessions", help="Folder in which sessions are kept.")]


@app.callback()
def _on_our_own_clock() -> None:
    try:
        replayed()
    except StrayReplayClock as error:
        raise die(error) from error


def _config(path: Path) -> tuple[Config, str]:
    try:
        return with_saved(*load(path))
    except ConfigError as error:
        raise die(error) from error


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="Config file of the session, YAML.")] = None,
    sessions: Sessions = Path("sessions"),
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of a session that was broken off: go on with it.")
    ] = None,
) -> None:
    """Run a session: screen, devices, model, log.

    Example: stimloop run configs/my-session.yaml; after a power failure: stimloop run --resume sessions/DATE-NAME
    """
    from rig.supervision.processes import SessionFailed
    from rig.supervision.runs import new_folder, run_session

    if resume is not None:
        _resume(resume, config)
        return
    if config is None:
        raise die("give the config file of a session, or --resume and the folder of one that was broken off")
    settings, text = _config(config)
    if settings.subject == Subject():
        raise die(f"{config}: subject: missing; name the animal (id, species), or use `stimloop demo --config`")
    if missing := lacking(settings.model_dump(mode="json")):
        console.print(f"exports will lack: {', '.join(missing)} (docs/export.md)", highlight=False, soft_wrap=True)
    try:
        clock = HostClock()
        folder = new_folder(sessions, settings.name, text, clock)
        console.print(f"session folder [bold]{folder}[/]", soft_wrap=True)
        reason = run_session(folder, settings, False, clock, console)
    except (SessionFailed, OSError) as error:
        raise die(error) from error
    console.print(f"session {reason}; log {folder / 'session.journal'}, data {folder / 'session.h5'}", soft_wrap=True)
    _write_report(folder)


def _resume(folder: Path, config: Path | None) -> None:
    from rig.display.virtual import NoScreen
    from rig.supervision.processes import SessionFailed
    from rig.supervision.resume import resume

    if config is not None:
        raise die(f"{config}: a resumed session goes on with its own config; leave this argument out")
    try:
        reason = resume(folder, HostClock(), console)
    except (SessionFailed, ConfigError, NoScreen, OSError) as error:
        raise die(error) from error
    console.print(f"session {reason}; log {folder / 'session.journal'}, data {folder / 'session.h5'}", soft_wrap=True)
    _write_report(folder)


@app.command()
def animal(
    config: ConfigFile,
    truth: Annotated[Path, typer.Option("--truth", help="Folder for the truth of the simulation.")] = Path("truth"),
) -> None:
    """Run the simulated animal: it looks at the screen and plays the recording device of the config."""
    import numpy as np

    from models.truth import build_for
    from rig.animal.process import run as run_animal
    from rig.supervision.child import Stop
    from stimuli.bank import natural_bank

    settings, _ = _config(config)
    stop = Stop()
    try:
        pictures = None
        if settings.animal.population == "v4":  # the others' rates are not set by pictures, which take a while to open
            bank = natural_bank()
            pictures = np.stack([bank.image(name, 112, 112) for name in bank.names])
        population = build_for(settings, pictures)
    except ConfigError as error:
        raise die(f"{config}: {error}") from error
    raise typer.Exit(run_animal(settings, truth, population, stop))


@app.command()
def demo(
    config: Annotated[Path | None, typer.Option("--config", help="Another config than the shipped demo.")] = None,
    sessions: Sessions = Path("sessions"),
) -> None:
    """Watch a simulated neuron's favourite image evolve: screen, eye, neurons, wire, recorder, evolution, log."""
    from rig.demo import run_demo
    from rig.display.virtual import NoScreen
    from rig.preflight.machine import animal as files_of_animal
    from rig.supervision.processes import SessionFailed

    path = config or Path(__file__).parent.parent / "configs" / "demo.yaml"
    settings, text = _config(path)
    for lacking_file in files_of_animal(settings):
        raise die(f"{path}: {lacking_file.message}: {lacking_file.remedy}")
    try:
        folder, ok = run_demo(settings, text, sessions, HostClock(), console)
    except (SessionFailed, NoScreen, OSError) as error:
        raise die(error) from error
    _write_report(folder)
    if not ok:
        raise die("the demo ran to its end but did not reach its goals; see the lines above")


def _model_side() -> "ModelSide":
    """Join replay and its bench with the models."""
    from models.agents import build_from_config
    from models.server import WANTS, ModelServer
    from models.truth import build_for
    from models.truth_best import best_hz
    from rig.replay.model_side import ModelSide, WhatIf

    def server(settings: Config) -> ModelServer:
        _torch_as_live(settings)
        return ModelServer(
            build_from_config(settings), len(settings.phases), settings.presentation.repeats_of_unusable
        )

    def neurons(settings: Config) -> "Neurons":
        return build_for(settings)

    def what_if() -> WhatIf:
        from models.twin import fit, reduced
        from models.what_if import closed_loop, decode, evolving, facts, facts_in_words, would_show

        return WhatIf(
            reduced=reduced,
            fit=fit,
            wants=WANTS,
            facts=lambda settings, entries, before: facts(server(settings), entries, before),
            facts_in_words=facts_in_words,
            evolving=evolving,
            would_show=would_show,
            decode=decode,
            closed_loop=closed_loop,
        )

    return ModelSide(wants=WANTS, server=server, neurons=neurons, best_hz=best_hz, what_if=what_if)


def _generators() -> "Build":
    """Join `why` and `generator` with the generators."""
    from models.generators.factory import build_generator

    return build_generator


add_why(app, _generators)
add_generator(app, _generators)
add_replay(app, _model_side)
add_replay_bench(bench_app, _model_side)
add_truth(app, _model_side)


def _evolve_side() -> "EvolveSide":
    """Join the bench of evolution with neurons, generators and optimisers."""
    from models.evolution_bench.contestants import copes_with_missing, lacking
    from models.evolution_bench.run import check_generator
    from models.evolution_bench.run import run as one_run
    from models.evolution_bench.units import contrast_of, draw, natural_images
    from models.evolution_bench.updates import update_ms
    from rig.bench.evolve import EvolveSide

    return EvolveSide(
        one_run, natural_images, contrast_of, draw, check_generator, lacking, copes_with_missing, update_ms
    )


add_evolve_bench(bench_app, _evolve_side)


def _refit_side() -> "RefitSide":
    """Join the bench of online readouts with them."""
    from models.refit_bench.run import run as one_session
    from models.refit_bench.timing import time_updates
    from rig.bench.refit import RefitSide

    return RefitSide(one_session, time_updates)


add_refit_bench(bench_app, _refit_side)


def _synthesis_benches() -> "SynthesisBenches":
    """Join the benches of synthesis with the models."""
    from models.synthesis_bench.run import bench
    from models.synthesis_bench.trained import bench as agreement
    from rig.bench.synthesis_commands import Benches

    return Benches(bench, agreement)


add_synthesis_bench(bench_app, _synthesis_benches)


def _mei_bench() -> "MeiRun":
    """Join the bench of most exciting images with the models."""
    from models.mei_bench.run import run

    return run


add_mei_bench(bench_app, _mei_bench)


def _training() -> "Train":
    from models.generator_training.run import follow

    return follow


add_train_generator(app, _training)


def _torch_as_live(settings: Config) -> None:
    """Use the live run's thread count: sums in another order give other bits."""
    import torch

    torch.set_num_threads(settings.processes.torch_threads)
    torch.use_deterministic_algorithms(True)


def _write_report(folder: Path) -> None:
    from rig.report.page import write
    from rig.view.h5 import up_to_date

    if (folder / "session.h5").exists() and not up_to_date(folder):
        console.print("session.h5 is older than the journal, or damaged: it is made anew", soft_wrap=True)
    console.print(f"report [bold]{write(folder)}[/], figures {folder / 'figures'}")


@app.command()
def model(
    connect: Annotated[str, typer.Option("--connect", help="Address of the rig's computer, tcp://HOST:PORT.")],
    keys: Annotated[Path, typer.Option("--keys", help="Folder of this computer's keys, see `stimloop keys new`.")],
    snapshots: Annotated[Path, typer.Option("--snapshots", help="Folder for its memory.")] = Path("snapshots"),
    bank: Annotated[
        list[str] | None, typer.Option("--bank", help="NAME=FOLDER: where a picture bank of the config lies here.")
    ] = None,
) -> None:
    """Run the model server here for a rig on another computer.

    For example: stimloop model --connect tcp://10.0.0.5:5600 --keys keys/model (docs/remote.md)
    """
    from threadpoolctl import threadpool_limits

    from models.remote import NoBank, serve
    from rig.links.keys import KeysError, client_keys
    from rig.links.loopback import NotPrivate, split_endpoint
    from rig.links.peer import NotWelcome

    banks = {}
    for given in bank or ():
        name, _, folder = given.partition("=")
        if not folder:
            raise die(f"--bank {given}: write NAME=FOLDER")
        banks[name] = Path(folder)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    try:
        split_endpoint(connect)
        with threadpool_limits(1):  # as the supervisor gives it to a model server beside it
            serve(connect, client_keys(keys), snapshots, banks, HostClock(), say)
    except (KeysError, NotPrivate, NotWelcome, NoBank, ValueError) as error:
        raise die(error) from error


@app.command()
def report(folder: SessionFolder) -> None:
    """Write figures and a self-contained HTML report of a session."""
    _write_report(existing(folder))


@app.command()
def check(config: ConfigFile) -> None:
    """Look before the session whether everything is in place; each failed check prints its cure."""
    from rig.preflight import checks

    settings, _ = _config(config)
    failed = 0
    for result in checks(settings, HostClock()):
        mark = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}[result.status]
        console.print(f"{mark}  {result.name}: {result.message}", highlight=False, soft_wrap=True)
        if result.status != "ok":
            console.print(f"      cure: {result.remedy}", highlight=False, soft_wrap=True)
        failed += result.status == "fail"
    if failed:
        raise typer.Exit(1)


app.command()(clocks)
app.command()(recover)
app.command()(journal)


def main() -> None:
    """Run the command line."""
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, lambda *_: sys.exit(143))  # so that screens and animals end with us
    leave_at_once()
    try:
        app(with_alone(sys.argv[1:]) if sys.argv[1:2] == ["bench"] else None)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
