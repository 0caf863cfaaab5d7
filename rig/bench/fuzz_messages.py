"""Hostile messages for `rig.bench.fuzz`: random ones, real ones with something wrong, impossible sizes and claims.

Pure and seeded: real messages in, wrong ones out.
"""

import json
from typing import Any

import numpy as np

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, -0.0, 1e308, -1e308, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**40, "", "0",
    "-1", "\0", "a\0b", "../../../../etc/passwd",
    "/dev/zero", "file:///etc/passwd", "{0.__class__}", "%s%s%n", "; rm -rf x",
    "NaN", "\u202e\ufeff", "x" * 5000, [], {}, [[]], [None] * 100, {"": ""}, {"kind": "tick"}, [1e308, -1],
    list(range(300)),
)  # fmt: skip
TEXTS = (
    b"", b"null", b"[]", b"{}", b"[" * 50_000, b'{"a":' * 20_000, b'{"op":' + b"9" * 6000 + b"}", b'"\\ud800"',
    b"\xff\xfe{}", b"NaN", b"Infinity", b"-" * 1000, b'{"op":"doc","n":1e999}', b'{"op":"doc","n":NaN,"cause":null}',
    b"\0" * 64,
    b'{"document":{"kind":"tick","tick_host_ns":1},"arrays":[]', b"[{}]" * 10_000, b'"' + b"\\u0000" * 1000 + b'"',
)  # fmt: skip
CLAIMS: tuple[Any, ...] = (
    {"shape": [2**62, 4]}, {"shape": [-1]}, {"shape": [2**31, 2**31]}, {"shape": []}, {"shape": [0] * 64},
    {"shape": "8"},
    {"dtype": "O"}, {"dtype": "V1000000000"}, {"dtype": "(1000000,1000000)f8"}, {"dtype": "f8," * 5000},
    {"dtype": "M8[ns]"},
    {"dtype": "{'names':['a']"}, {"dtype": ["<f8"]}, {"sha256": "0" * 64}, {"sha256": None}, {"name": "frames"},
    {"name": []},
)  # fmt: skip


class Mutator:
    """Makes messages (lists of frames), most of them wrong, from real ones."""

    def __init__(self, real: list[list[bytes]], rng: np.random.Generator) -> None:
        self._real, self._rng = real, rng

    def _pick(self, among: Any) -> Any:
        return among[int(self._rng.integers(len(among)))]

    def message(self) -> list[bytes]:
        """Return the next one."""
        kind = int(self._rng.integers(10))
        frames = list(self._pick(self._real))
        if kind == 0:
            return [self._rng.bytes(int(self._rng.integers(200))) for _ in range(int(self._rng.integers(1, 5)))]
        if kind == 1:
            return self._sizes(frames)
        if kind <= 3:
            at = int(self._rng.integers(len(frames)))
            frames[at] = self._bytes(frames[at])
            return frames
        if kind == 4:
            frames[int(self._rng.integers(len(frames)))] = self._pick(TEXTS)
            return frames
        if kind == 5:
            return self._shuffled(frames)
        return self._values(frames)

    def _sizes(self, frames: list[bytes]) -> list[bytes]:
        what = int(self._rng.integers(40))
        if what == 0:
            return [*frames, *[b""] * 3000]
        if what == 1:
            return [*frames[:-1], bytes(1 << 20)]
        if what == 2:
            return [b'{"a":"' + b"x" * 300_000 + b'"}', *frames[1:]]
        return [*frames, *[b"x"] * int(self._rng.integers(1, 20))]

    def _bytes(self, data: bytes) -> bytes:
        raw = bytearray(data or b"\0")
        for _ in range(int(self._rng.integers(1, 5))):
            at = int(self._rng.integers(len(raw)))
            what = int(self._rng.integers(3))
            if what == 0:
                raw[at] ^= 1 << int(self._rng.integers(8))
            elif what == 1:
                del raw[at : at + int(self._rng.integers(1, 30))]
            else:
                raw[at:at] = self._rng.bytes(int(self._rng.integers(1, 9)))
            raw = raw or bytearray(b"\0")
        return bytes(raw)

    def _shuffled(self, frames: list[bytes]) -> list[bytes]:
        what = int(self._rng.integers(3))
        if what == 0:
            return [frames[k] for k in self._rng.permutation(len(frames))]
        if what == 1:
            return frames[: int(self._rng.integers(1, len(frames) + 1))]
        return [*frames, *self._pick(self._real)]

    def _values(self, frames: list[bytes]) -> list[bytes]:
        """Put a hostile value, or a hostile claim about an array, into one of the frames that are JSON."""
        for at in self._rng.permutation(len(frames)):
            try:
                fields = json.loads(frames[at])
            except (ValueError, RecursionError):
                continue
            if not isinstance(fields, dict) or not fields:
                continue
            if fields.get("arrays") and self._rng.random() < 0.4:
                self._pick(fields["arrays"]).update(self._pick(CLAIMS))
            else:
                self._replace(fields)
            frames[at] = json.dumps(fields).encode("utf-8", "surrogatepass")
            return frames
        return frames

    def _replace(self, value: Any) -> None:
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = self._pick(keys)
            inner = value[key]
            if isinstance(inner, dict | list) and inner and self._rng.random() < 0.8:
                value = inner
                continue
            if isinstance(value, dict) and self._rng.random() < 0.15:
                value[self._pick(("extra", "", "__class__", "version"))] = self._pick(HOSTILE)
            elif isinstance(value, dict) and self._rng.random() < 0.1:
                del value[key]
            else:
                value[key] = self._pick(HOSTILE)
            return
