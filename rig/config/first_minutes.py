"""What must agree between the phases `map` and `screen` and the rest of a config, and how long they are. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from rig.config.phases import MapPhase, ScreenPhase
from rig.config.scoring import Responses

BUILT_IN_BANKS = ("natural", "gratings")


def mistakes(phases: Sequence[object], responses: Responses, banks: Iterable[str], spikes: bool) -> Iterator[str]:
    """Yield what is wrong; `banks` are the config's own, `spikes` says that the scored source sends spikes."""
    units = ", ".join(responses.units)
    for k, phase in enumerate(phases):
        if isinstance(phase, MapPhase):
            for name in sorted(set(phase.around) - set(responses.units)):
                yield f"phases.{k}.around: {name!r} is not in responses.units ({units}); add it or choose another"
        if isinstance(phase, ScreenPhase):
            known = [*BUILT_IN_BANKS, *banks]
            for bank in sorted(set(phase.images) - set(known)):
                yield f"phases.{k}.images: no bank {bank!r}; choose from {', '.join(known)} or add it to banks"
            if phase.lock_window and responses.psth is None:
                yield (
                    f"phases.{k}.lock_window: the window is found from time courses, and there are none; add "
                    "responses.psth, or leave lock_window out"
                )
    if responses.psth is not None and not spikes:
        yield "responses.psth: the scored source sends no spikes; remove it"


def presentations(phase: MapPhase | ScreenPhase) -> int:
    """Return how many presentations a phase asks for."""
    if isinstance(phase, ScreenPhase):
        return phase.repeats * (phase.count + phase.blanks)
    return phase.presentations
