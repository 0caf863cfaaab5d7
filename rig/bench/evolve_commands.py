"""`stimloop bench evolve`: the command line of it, and what is printed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rig.bench.json_file import JsonFile, words_aside, write
from rig.clock import HostClock
from rig.config.evolution_bench import NOISES, OURS, POPULATIONS
from rig.config.reading import ConfigError

if TYPE_CHECKING:
    from rig.bench.evolve import Choices, EvolveSide

PUBLISHED = ("xdream_actmax", "xdream_plos2020", "xdream_invivo", "cholesky_cma", "sphere_cma", "separable_cma")
PEERS = ("pycma_diagonal", "nevergrad_CMA", "nevergrad_DiagonalCMA", "nevergrad_NGOpt")
EVERY_NOISE = ",".join(NOISES)
OURS_AND_PUBLISHED = ",".join((OURS, *PUBLISHED))
PopulationFolder = Annotated[
    Path | None, typer.Option("--population", help="Folder of compact V4 models: adds population v4.")
]
ImagesZip = Annotated[
    Path | None, typer.Option("--images", help="Zip file of natural images; else crops of shipped ones.")
]
Populations = Annotated[
    str | None, typer.Option("--populations", help="Of v1,v4,deep. Default: v4 with --population, else v1.")
]
Units = Annotated[int, typer.Option("--units", min=1, help="Units of each population.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Runs of each combination.")]
Presentations = Annotated[
    int, typer.Option("--presentations", min=80, help="Budget of a run, references and repeats included.")
]
NoiseNames = Annotated[str, typer.Option("--noise", help="Of none,poisson,gain0.2,gain0.5.")]
Generators = Annotated[str, typer.Option("--generators", help="As in a config, the first one for the headline.")]
Optimisers = Annotated[str, typer.Option("--optimisers", help="Ours and published ones, by name.")]
Peers = Annotated[str, typer.Option("--peers", help="all: also the packages cma and nevergrad; none; or names.")]
Natural = Annotated[int, typer.Option("--natural", min=10, help="Natural images to compare with.")]
Disturbed = Annotated[
    bool, typer.Option("--disturbed", help="Also with dropped and late responses and drifting gain.")
]
Updates = Annotated[
    bool, typer.Option("--updates", help="Only measure the time of an update, 40 codes of 4,096 numbers.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes that compute runs.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for checkpoint and figures.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the checkpoint in --out.")]
Minutes = Annotated[
    float | None, typer.Option("--minutes", help="Begin no run after so long; --resume goes on.")
]
console = Console()
errors = Console(stderr=True)


def _words(text: str, allowed: tuple[str, ...] | None, option: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(w.strip() for w in text.split(",") if w.strip()))
    wrong = [w for w in words if allowed is not None and w not in allowed]
    if wrong or not words:
        there = "" if allowed is None else f"; there are: {', '.join(allowed)}"
        raise typer.BadParameter(f"{', '.join(wrong) or 'nothing given'}{there}", param_hint=option)
    return words


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def add_evolve_bench(app: typer.Typer, side: "Callable[[], EvolveSide]") -> None:
    """Add `evolve`, which needs the models: `rig.cli` joins them."""

    @app.command("evolve")
    def evolve_command(
        json_file: JsonFile = None,
        population: PopulationFolder = None,
        images: ImagesZip = None,
        populations: Populations = None,
        units: Units = 20,
        seeds: Seeds = 5,
        presentations: Presentations = 3000,
        noise: NoiseNames = EVERY_NOISE,
        generators: Generators = "dct",
        optimisers: Optimisers = OURS_AND_PUBLISHED,
        peers: Peers = "all",
        natural: Natural = 400,
        disturbed: Disturbed = False,
        updates: Updates = False,
        workers: Workers = 1,
        out: Out = Path("bench-evolve"),
        resume: Resume = False,
        minutes: Minutes = None,
    ) -> None:
        """Compare optimisers and generators on simulated neurons, at equal presentations; docs/bench_evolve.md.

        Example: stimloop bench evolve --generators dct,pixels --noise poisson --units 4 --seeds 2 --json evolve.json
        """
        from rig.bench.evolve import Choices, evolve
        from rig.bench.evolve import updates as time_of_updates

        kinds = _words(populations or ("v1" if population is None else "v4"), POPULATIONS, "--populations")
        foreign = {"all": PEERS, "none": ()}.get(peers, tuple(peers.split(",")))
        names = tuple(dict.fromkeys((*_words(optimisers, None, "--optimisers"), *foreign)))
        choices = Choices(
            populations=kinds,  # type: ignore[arg-type]
            units=units,
            generators=_words(generators, None, "--generators"),
            noises=_words(noise, NOISES, "--noise"),  # type: ignore[arg-type]
            optimisers=names,
            seeds=seeds,
            presentations=presentations,
            out=out,
            models=population,
            images=images,
            natural=natural,
            disturbed=disturbed,
            workers=workers,
            resume=resume,
            minutes=minutes,
        )
        try:
            with words_aside(json_file):
                if updates:
                    found = time_of_updates(names, 4096, side(), HostClock())
                    for r in found["rows"]:
                        _say(f"{r['optimiser']:24s} {r['update_ms']:8.2f} ms for 40 codes of {r['latent']} numbers")
                else:
                    found = evolve(choices, side(), HostClock(), _say)
                    _report(found, choices)
        except (ConfigError, OSError) as error:
            errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        write(json_file, found)
        if found.get("failed"):
            raise typer.Exit(1)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _spread(r: dict[str, Any]) -> str:
    """Return a ratio with its interval and what was left out of it, in words."""
    out = f"{_number(r['ratio'])}x ({_number(r['low'])} to {_number(r['high'])}) over {r['units']} units,"
    out += f" ahead in {r['wins']} of {r['compared']}"
    for key, words in (("only_a", "only the first"), ("only_b", "only the second"), ("neither", "neither")):
        if r.get(key):
            out += f"; {words} above the natural mean in {', '.join(r[key])}"
    return out


def _report(found: dict[str, Any], choices: "Choices") -> None:
    """Print the figures and write the pictures."""
    from rig.bench.evolve_figures import write

    _say("")
    for line in found["by_optimiser"]:
        ratio = line["ours_over_it"]
        _say(
            f"{line['generator']:12s} {line['noise']:8s} {line['optimiser']:22s}"
            f" strength {_number(line['strength'])} ({line['nominates']}; best {_number(line['strength_of_best'])},"
            f" centre {_number(line['strength_of_center'])}, best shown {_number(line['strength_of_best_shown'])})"
            f"  beats nature {_number(line['beats_best_natural'])}"
            f"  90 % after {_number(line['presentations_to_90'], 0)} ({line['reached_90']})"
            f"  update {_number(line['update_ms'])} ms" + ("" if ratio is None else f"  ours {_spread(ratio)}")
        )
    _say("")
    for noise, versus in found["versus"].items():
        _say(f"{noise}: ours over {versus['peer']} ({versus['nominates']}): {_spread(versus['ratio'])}")
        _say(f"{noise}: the same, saturated: {_spread(versus['saturated'])}")
    for noise, fraction in found["beats_best_natural"].items():
        count = found["natural_images"]
        _say(f"{noise}: nominated image beats the best of {count} natural ones: {fraction:.0%} of units")
    for noise, others in found["generators"].items():
        for other, ratio in others.items():
            _say(f"{noise}: {found['generator']} over {other} with {ratio['optimiser']}: {_spread(ratio)}")
    for line in found["disturbed"]:
        _say(
            f"{line['noise']}, {line['generator']}, {line['optimiser']}: disturbed over undisturbed, median"
            f" {_number(line['median'])} ({_number(line['median_low'])} to {_number(line['median_high'])}),"
            f" {line['units']} units"
        )
    for remark in found["unusual"]:
        _say(f"unusual: {remark}")
    for failure in found["failed"]:
        _say(f"failed: {failure}")
    _say(f"runs {found['runs']}" + ("" if found["complete"] else "; not complete: go on with --resume"))
    for path in write(found, choices.out):
        _say(f"figure {path}")
