"""Who, where, with what, and where every number comes from: the head of an NWB file and its provenance tables."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pynwb import NWBFile
from pynwb.file import Subject

from rig.export import interruptions
from rig.export.nwb_tables import ragged, streamed, table
from rig.export.presentations import Field, Presentations
from rig.export.session_file import SessionView
from rig.export.times import Clocks

SIMULATED = "SIMULATED: no animal was recorded; the neurons are a computer program."
WHOLE = {"config_yaml", "config", "subject", "versions"}  # attributes that are given elsewhere or part by part


def head(view: SessionView, sha256: str, shown: Presentations) -> NWBFile:
    """Return an NWB file with the session's description, subject and devices."""
    config = view.config
    said = config.get("experiment", {})
    agents = ", ".join(str(p.get("agent")) for p in config.get("phases", ()))
    usual = f"Closed-loop vision session, agents: {agents}; {len(shown)} presentations."
    what = said.get("session_description") or usual
    before, after = interruptions.replayed(view), interruptions.derived(view)
    what = " ".join([*before, what, *interruptions.happened(view, shown), *after])
    keywords = [*said.get("keywords", ()), "closed loop", "vision", *(["simulated"] if view.simulated else [])]
    start = datetime.fromtimestamp(int(view.attributes["start_utc_ns"]) / 1e9, tz=UTC)
    texts = {
        "experimenter": list(said.get("experimenter", ())),
        "experiment_description": said.get("description"),
        "related_publications": list(said.get("publications", ())),
        **{k: said.get(k) for k in ("institution", "lab", "protocol", "notes", "surgery", "virus", "pharmacology")},
    }
    versions = json.loads(str(view.attributes["versions"]) or "{}")
    nwb = NWBFile(
        session_description=f"{SIMULATED} {what}" if view.simulated else what,
        identifier=f"{view.name}-{sha256[:16]}",
        session_start_time=start,
        session_id=view.name,
        keywords=keywords,
        stimulus_notes=_display(config),
        was_generated_by=[["stimloop", str(versions.get("stimloop", "unknown"))]],
        **{k: v for k, v in texts.items() if v},
    )
    nwb.subject = _subject(view)
    for source in config.get("sources", ()):
        _device(nwb, source, config.get("recording", {}).get(source["name"], {}), view.simulated)
    for name in view.sources:
        if name not in nwb.devices:
            nwb.create_device(name=name, description="A device that the config does not name")
    text, what = str(view.attributes["config_yaml"]), "Config file of the session, verbatim (YAML)"
    nwb.add_scratch(text, name="config_yaml", description=what)
    return nwb


def _display(config: dict[str, Any]) -> str:
    d, place, rhythm = config.get("display", {}), config.get("stimulus", {}), config.get("presentation", {})
    if not d:
        return "The config holds no display."
    width, height = d["size_px"]
    light = d.get("luminance_cd_m2")
    parts = [
        f"Display {width} x {height} px, {d['width_cm']:g} cm wide at {d['distance_cm']:g} cm, {d['refresh_hz']:g} Hz, "
        f"gamma {d['gamma']:g} undone in software, background level {d['background']}, "
        f"lag from flip stamp to light {d['lag_s']:g} s",
        f"luminance of level 0, background and 255: {', '.join(f'{v:g}' for v in light)} cd/m^2" if light else "",
        f"images of {place.get('size_deg')} degrees at {place.get('center_deg')} degrees (right, up), where the table "
        "of presentations does not say otherwise",
        f"on {rhythm.get('on_s')} s, off {rhythm.get('off_s')} s, {rhythm.get('images_per_trial')} images in a trial",
    ]
    reward = config.get("reward")
    if reward:
        parts.append("reward: " + ", ".join(f"{k} {v}" for k, v in reward.items()))
    return "; ".join(p for p in parts if p) + "."


def _subject(view: SessionView) -> Subject:
    said = view.config.get("subject", {})
    born = said.get("date_of_birth")
    known = {
        "age": said.get("age"),
        "strain": said.get("strain"),
        "genotype": said.get("genotype"),
        "species": said.get("species"),
        "description": said.get("description"),
        "weight": f"{said['weight_g'] / 1000:g} kg" if said.get("weight_g") else None,
    }
    if view.simulated:
        known["description"] = f"{SIMULATED} The age P0D stands for none. {said.get('description', '')}".strip()
        known["age"] = known["age"] or (None if born else "P0D")
    return Subject(
        subject_id=re.sub(r"[/\\]", "-", said.get("id", "unknown")),  # DANDI makes folders of it
        sex=said.get("sex", "U"),
        date_of_birth=datetime.combine(date.fromisoformat(born), datetime.min.time(), UTC) if born else None,
        **{k: v for k, v in known.items() if v},
    )


def _device(nwb: NWBFile, source: dict[str, Any], said: dict[str, Any], simulated: bool) -> None:
    name = said.get("device") or f"device behind {source['type']}"
    parts = [
        "Simulated device" if simulated else "",
        name,
        said.get("description"),
        *(f"{k}: {said[k]}" for k in ("probe", "filters", "reference", "lens", "indicator") if said.get(k)),
        f"reached through {source['type']}",
    ]
    fields = {k: said[k] for k in ("manufacturer", "serial_number") if said.get(k)}
    if said.get("model"):
        fields["model"] = nwb.create_device_model(
            name=said["model"], manufacturer=said.get("manufacturer") or "unknown", description=f"Model of {name}"
        )
        fields.pop("manufacturer", None)
    nwb.create_device(name=source["name"], description="; ".join(p for p in parts if p), **fields)


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, value) of a nested config."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _flat(one, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for k, one in enumerate(value):
            yield from _flat(one, f"{at}.{k}")
    else:
        yield at, "" if value in ({}, None) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spec(text: str) -> str:
    return "; ".join(f"{k}={v}" for k, v in _flat(json.loads(text)))


def add_provenance(nwb: NWBFile, view: SessionView, clocks: Clocks, shown: Presentations, sha256: str) -> None:
    """Add where everything comes from: config, versions, journal, stimuli with parents and codes, model, clocks."""
    module = nwb.create_processing_module("misc", "Where every number of this file comes from")
    attributes = view.attributes
    rows = [("journal_sha256", sha256), ("exported_by", "stimloop export --nwb")]
    rows += [(k, str(v)) for k, v in sorted(attributes.items()) if k not in WHOLE]
    for name, origin in (("derived_from", view.start.derived_from), ("replay_of", view.start.replay_of)):
        rows += [] if origin is None else list(_flat(origin.model_dump(exclude={"version"}), name))
    rows += [(f"versions.{k}", v) for k, v in _flat(json.loads(str(attributes["versions"]) or "{}"))]
    rows += [(f"config.{k}", v) for k, v in _flat(view.config)]
    tables = [
        table(
            "provenance",
            "The session: its log, program versions, commit and whole config with all defaults (config.*)",
            [
                Field("key", "", "What", [r[0] for r in rows]),
                Field("value", "", "Its value, empty for none", [r[1] for r in rows]),
            ],
        ),
        _stimuli(view),
        *_latents(view),
        _proposals(view, clocks),
        _updates(view, clocks),
        _processes(view, clocks),
        _clock_model(view, clocks),
        _clock_pairs(view, clocks),
    ]
    if shown.units:
        tables.append(
            table(
                "response_units",
                "Columns of count, baseline and rate_hz in the intervals table presentations",
                [Field("unit_name", "", "Name of the unit or region", shown.units)],
            )
        )
    for made in tables:
        if made is not None:
            module.add(made)


def _stimuli(view: SessionView) -> Any:
    parents, ends = ragged([json.loads(p) for p in view.texts("stimuli/parents")], "")
    fields = [
        Field("stimulus_id", "", "Identity, unique in the session", view.texts("stimuli/stimulus_id")),
        Field("type", "", "blank, grating, bank, patches or latent", view.texts("stimuli/type")),
        Field("spec", "", "What it is, as described to the renderer", [_spec(s) for s in view.texts("stimuli/spec")]),
        Field("proposal", "1", "Proposal that named it first", view.column("stimuli/proposal")),
        Field("phase", "1", "Phase, from 0", view.column("stimuli/phase")),
        Field("generation", "1", "Generation, from 0", view.column("stimuli/generation")),
        Field("latent_size", "1", "Length of its latent code, 0 if it has none", view.column("stimuli/latent_size")),
        Field("latent_row", "1", "Row of the table latents_<latent_size>, -1: none", view.column("stimuli/latent_row")),
    ]
    if view.rows("stimuli") and len(ends) and int(ends[-1]) == len(parents) and parents != [""]:
        fields.append(Field("parents", "", "Stimuli it was recombined from", parents, ends))
    return table("stimuli", "Every image that was ever proposed, and what it was made from", fields)


def _latents(view: SessionView) -> Iterator[Any]:
    for name, codes in view.file["stimuli/latents"].items():
        size = name.removeprefix("codes_")

        def read(first: int, end: int, codes: Any = codes) -> npt.NDArray[Any]:
            return np.asarray(codes[first:end])

        if len(codes):
            fields = [
                Field("row", "1", "latent_row of the table stimuli", np.arange(len(codes))),
                Field("code", "", "Latent code that the generator decoded", streamed(codes.shape, codes.dtype, read)),
            ]
            yield table(f"latents_{size}", f"Latent codes of length {size}", fields)


def _proposals(view: SessionView, clocks: Clocks) -> Any:
    at = "model/proposals"
    times = clocks.host.seconds(view.column(f"{at}/receipt_host_ns"), view.column(f"{at}/seq"))
    return table(
        "proposals",
        "What the agents asked to show",
        [
            Field("proposal", "1", "Number of the proposal", view.column(f"{at}/proposal")),
            Field("received_time", "s", "When the log had it", times),
            Field("phase", "1", "Phase, from 0", view.column(f"{at}/phase")),
            Field("generation", "1", "Generation or block, from 0", view.column(f"{at}/generation")),
            Field("agent", "", "Agent", view.texts(f"{at}/agent")),
            Field("model_version", "", "Hash of the agent's state", view.texts(f"{at}/model_version")),
            Field("stimuli", "1", "Number of its stimuli", view.column(f"{at}/stimuli")),
        ],
    )


def _updates(view: SessionView, clocks: Clocks) -> Any:
    at = "model/updates"
    times = clocks.host.seconds(view.column(f"{at}/receipt_host_ns"), view.column(f"{at}/seq"))
    reports = [json.loads(text) for text in view.texts(f"{at}/report")]
    names = sorted({name for report in reports for name in report})
    return table(
        "model_updates",
        "Changes of the agent or model, with the figures it reported",
        [
            Field("received_time", "s", "When the log had it", times),
            Field("phase", "1", "Phase, from 0", view.column(f"{at}/phase")),
            Field("generation", "1", "Generation, from 0", view.column(f"{at}/generation")),
            Field("model_version", "", "Hash of the state", view.texts(f"{at}/model_version")),
            *(Field(f"report_{n}", "as reported", f"Reported {n}", np.array([r.get(n, np.nan) for r in reports]))
              for n in names),
        ],
    )  # fmt: skip


def _processes(view: SessionView, clocks: Clocks) -> Any:
    times = clocks.host.seconds(view.column("processes/start_host_ns"), view.column("processes/seq"))
    notes = ["; ".join(f"{k}={v}" for k, v in _flat(json.loads(n)) if k) for n in view.texts("processes/notes")]
    return table(
        "processes",
        "Every start of a process of the session",
        [
            Field("started_time", "s", "When", times),
            Field("process", "", "Name", view.texts("processes/name")),
            Field("boot_id", "", "Boot of the computer", view.texts("processes/boot_id")),
            Field("notes", "", "What it said about itself", notes),
        ],
    )


def _clock_model(view: SessionView, clocks: Clocks) -> Any:
    """Return the knots of every device's clock: session time is linear in between."""
    rows = []
    for (source, run, boot), device in sorted(clocks.devices.items()):
        for stretch, knots in enumerate(zip(device.sample, device.session_s, device.uncertainty_s, strict=True)):
            known = zip(*(k.tolist() for k in knots), strict=True)
            rows += [(view.sources[source], run, boot, stretch, device.how, *knot) for knot in known]
    if not rows:
        return None
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)]
    source, run, boot, stretch, how, sample, at, doubt = columns
    return table(
        "clock_model",
        "From device samples to session time: linear between these points; a new stretch where a clock stepped",
        [
            Field("source", "", "Device", source),
            Field("run", "1", "Acquisition run", np.array(run)),
            Field("boot", "1", "Boot of the session computer, from 0", np.array(boot)),
            Field("stretch", "1", "Stretch between steps of a clock", np.array(stretch)),
            Field("how", "", "How it was found", how),
            Field("device_sample", "device sample", "The device's side", np.array(sample)),
            Field("session_s", "s", "Session time of it", np.array(at)),
            Field("uncertainty_s", "s", "Bound on the error there, 99 %; NaN beyond the pairs", np.array(doubt)),
        ],
    )


def _clock_pairs(view: SessionView, clocks: Clocks) -> Any:
    count = view.rows("clocks")

    def column(name: str) -> Any:
        data = view.file[f"clocks/{name}"]
        return streamed((count,), data.dtype, lambda first, end: np.asarray(data[first:end]))

    if not count:
        return None
    return table(
        "clock_pairs",
        "The raw pairs of device samples and host times that the clock model was fitted to",
        [
            Field("source", "", "Device", [view.sources[k] for k in view.column("clocks/source")]),
            Field("run", "1", "Acquisition run", column("run")),
            Field("device_sample", "device sample", "The device's side", column("device_sample")),
            Field("pair_host_ns", "ns", "The host's side, host monotonic clock (start_host_ns is in provenance)",
                  column("pair_host_ns")),
            Field("method", "", "arrival, round_trip, edge or barcode", view.texts("clocks/method")),
        ],
    )  # fmt: skip
