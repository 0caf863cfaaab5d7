"""`stimloop bench synthesis` and `bench agreement`: their command lines, and what is printed."""

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console

from rig.bench.json_file import JsonFile, words_aside, write
from rig.clock import HostClock, processor_ns
from rig.config.reading import ConfigError
from rig.config.synthesis import AgreementBench, ImagesBench, SynthesisBench

KINDS = ("display", "natural")
Weights = Annotated[Path, typer.Option("--weights", help="Folder of the SENSORIUM 2022 model, or a model's file.")]
Other = Annotated[
    Path | None, typer.Option("--other", help="File of another model of the same units: do images agree?")
]
Photographs = Annotated[Path, typer.Option("--images", help="Folder of zip files of photographs, all of one size.")]
Most = Annotated[int, typer.Option("--photographs", min=100, help="Photographs at most; each network gets half.")]
Pieces = Annotated[int, typer.Option("--pieces", min=1, help="Pictures cut from each photograph.")]
Patterns = Annotated[int, typer.Option("--patterns", min=0, help="Pictures that are no photographs; each gets half.")]
Epochs = Annotated[int, typer.Option("--epochs", min=3, help="Passes of each training at most.")]
Learned = Annotated[int | None, typer.Option("--learned", min=1, help="Units learned together; not given: --units.")]
Filters = Annotated[int, typer.Option("--filters", min=1, help="Filters of each layer of the networks; the twin: 64.")]
Layers = Annotated[int, typer.Option("--layers", min=1, help="Layers of the networks' cores; the twin: 4.")]
Members = Annotated[int, typer.Option("--members", min=1, help="Networks on each side that predict together.")]
Rounds = Annotated[int, typer.Option("--rounds", min=0, help="Times that own images are shown and learned.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder in which the networks are kept.")]
Units = Annotated[int, typer.Option("--units", min=1, help="Units, drawn at random.")]
Starts = Annotated[int, typer.Option("--starts", min=2, help="Images of each unit: noise and photographs in turn.")]
Singles = Annotated[int, typer.Option("--singles", min=1, help="Images that are also made one at a time.")]
Iterations = Annotated[int, typer.Option("--iterations", min=2, help="Steps of each image; published: 1000.")]
Contrast = Annotated[
    float, typer.Option("--contrast", min=0.01, max=1, help="RMS contrast (sd / 127.5) of the frames.")
]
Together = Annotated[int, typer.Option("--together", min=1, help="Images computed at once; hundreds on a GPU.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of both ways.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: the GPU where torch has one.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of units and starts.")]
console = Console()
errors = Console(stderr=True)
Asked = TypeVar("Asked", bound=ImagesBench, contravariant=True)


class Bench(Protocol[Asked]):
    """A bench itself, which needs the models."""

    def __call__(
        self,
        asked: Asked,
        wall_ns: Callable[[], int],
        processor_ns: Callable[[], int],
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Return figures and rows. Raises ConfigError."""
        ...


class Benches(NamedTuple):
    """What `rig.cli` joins with the models."""

    synthesis: Bench[SynthesisBench]
    agreement: Bench[AgreementBench]


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def add_synthesis_bench(app: typer.Typer, side: Callable[[], Benches]) -> None:
    """Add `synthesis` and `agreement`, which need the models: `rig.cli` joins them."""

    @app.command("synthesis")
    def synthesis_command(
        weights: Weights,
        json_file: JsonFile = None,
        other: Other = None,
        units: Units = 64,
        starts: Starts = 4,
        singles: Singles = 2,
        iterations: Iterations = 1000,
        contrast: Contrast = 0.25,
        together: Together = 8,
        threads: Threads = 2,
        device: Device = "auto",
        seed: Seed = 0,
    ) -> None:
        """Make most exciting images of a mouse V1 model, many at once and one at a time; docs/synthesis.md.

        Example: stimloop bench synthesis --weights v1_twin --units 8 --starts 2 --json synthesis.json
        """
        given = _asked(
            starts, iterations, contrast, together, weights=weights, other=other, units=units, singles=singles,
            seed=seed, threads=threads, device=device,
        )  # fmt: skip
        _measure(SynthesisBench, given, lambda: side().synthesis, json_file, _report)

    @app.command("agreement")
    def agreement_command(
        weights: Weights,
        images: Photographs,
        json_file: JsonFile = None,
        units: Units = 24,
        starts: Starts = 4,
        photographs: Most = 5000,
        pieces: Pieces = 2,
        patterns: Patterns = 0,
        epochs: Epochs = 13,
        learned: Learned = None,
        filters: Filters = 16,
        layers: Layers = 3,
        members: Members = 1,
        rounds: Rounds = 0,
        out: Out = None,
        iterations: Iterations = 1000,
        contrast: Contrast = 0.25,
        together: Together = 8,
        threads: Threads = 2,
        device: Device = "auto",
        seed: Seed = 0,
    ) -> None:
        """Train two networks apart on the same simulated units: are their best images alike? docs/synthesis.md.

        Example: stimloop bench agreement --weights v1_twin --images v4/images --units 24 --json agreement.json
        """
        given = _asked(
            starts, iterations, contrast, together, weights=weights, images=images, units=units, seed=seed,
            photographs=photographs, epochs=epochs, learned=learned, filters=filters, layers=layers, members=members,
            rounds=rounds, pieces=pieces, patterns=patterns, out=out, threads=threads, device=device,
        )  # fmt: skip
        _measure(AgreementBench, given, lambda: side().agreement, json_file, _report_models)


def _asked(starts: int, iterations: int, contrast: float, together: int, **others: object) -> dict[str, Any]:
    """Return what was given on a command line as the bench's config takes it."""
    settings = {"iterations": iterations, "contrast": contrast, "together": together}
    return {"starts": tuple(islice(cycle(KINDS), starts)), "settings": settings, **others}


Config = TypeVar("Config", bound=ImagesBench)


def _measure(
    kind: type[Config],
    given: dict[str, Any],
    side: Callable[[], Bench[Config]],
    json_file: Path | None,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Check what was given, run the bench, print and write its figures."""
    try:
        asked = kind.model_validate(given)
        with words_aside(json_file):
            found = side()(asked, HostClock().now_ns, processor_ns, _say)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        errors.print(f"[bold red]error[/] {name}: {first['msg']}".replace(": Value error,", ":"), highlight=False)
        raise typer.Exit(2) from error
    except ConfigError as error:
        errors.print(f"[bold red]error[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    with words_aside(json_file):
        report(found)
    write(json_file, found)


def _report(found: dict[str, Any]) -> None:
    """Print the figures."""
    _say(
        f"{found['images']} images, {found['iterations']} iterations on {found['device']}: {found['together_s']:.0f} s"
        f" together, {found['single_s']:.0f} s one at a time ({found['single_measured_on']}):"
        f" {found['speedup_vs_single']:.1f} times as fast, {found['speedup_processor_time']:.1f} times by processor"
        " time"
    )
    _say(f"response of the displayed frames, ours over one at a time: {found['activation_ratio']:.3f}")
    _say(
        f"agreement between starts within the mask: median {found['agreement_median']:.3f},"
        f" at least .95 in {found['agreement_at_least_.95']:.0%} of units;"
        f" several equally good images: {', '.join(found['multimodal']) or 'none'}"
    )
    if "agreement_with_other" in found:
        _report_other(found)
    _say(
        f"frames: mean level off by {found['worst_mean_error_levels']:.4f} levels at most, RMS by"
        f" {found['worst_rms_error_levels']:.4f}; contrast out of reach in {found['contrast_out_of_reach']}"
    )


def _report_other(found: dict[str, Any]) -> None:
    first, second = found["share_of_other"]
    _say(
        f"agreement with the other model's images: median {found['agreement_with_other']:.3f}, of the closest among"
        f" equally good ones {found['agreement_with_other_closest']:.3f}; either model answers to the other's image"
        f" with {first:.0%} and {second:.0%} of what its own drives"
    )


def _report_models(found: dict[str, Any]) -> None:
    """Print how two networks agree."""
    _say(
        "held-out correlation of the networks, median over units: "
        + " and ".join(f"{score:.3f}" for score in found["score_median"])
    )
    _report_other(found)
    unimodal = found["agreement_unimodal"]
    _say(
        f"units with one best image in all models: {found['unimodal_units']}, agreement of these: "
        + ("-" if unimodal is None else f"{unimodal:.3f}")
    )
    _say(
        "agreement with the simulated units' own images: "
        + " and ".join(f"{one:.3f}" for one in found["agreement_with_truth"])
        + "; the networks' images drive these units to "
        + " and ".join(f"{one:.0%}" for one in found["share_of_truth"])
        + " of what their own do"
    )
