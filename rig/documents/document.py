"""What every document is made of: its base class, and the contracts of its arrays."""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema


class Axes:
    """Contract of one array field: dtype and named axes, checked whenever a document is made."""

    def __init__(self, dtype: str, axes: str) -> None:
        """Remember dtype (numpy name) and the axes' names (their number is the rank)."""
        self.dtype = np.dtype(dtype)
        self.axes = axes.split()

    def _check(self, value: Any) -> npt.NDArray[Any]:
        if not isinstance(value, np.ndarray):
            raise ValueError(f"expected a numpy array, got {type(value).__name__}")
        if value.dtype != self.dtype:
            raise ValueError(f"expected dtype {self.dtype}, got {value.dtype}")
        if value.ndim != len(self.axes):
            raise ValueError(f"expected axes ({', '.join(self.axes)}), got shape {value.shape}")
        out = np.ascontiguousarray(value).view()
        out.flags.writeable = False
        return out

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate with `_check`; arrays never pass through JSON."""
        return core_schema.no_info_plain_validator_function(self._check)


U8Frames = Annotated[npt.NDArray[np.uint8], Axes("uint8", "frame y x rgb")]
U8Frame = Annotated[npt.NDArray[np.uint8], Axes("uint8", "y x rgb")]
F32Rows = Annotated[npt.NDArray[np.float32], Axes("float32", "row latent")]
F64Units = Annotated[npt.NDArray[np.float64], Axes("float64", "unit")]
F32Courses = Annotated[npt.NDArray[np.float32], Axes("float32", "unit bin")]
U16Events = Annotated[npt.NDArray[np.uint16], Axes("uint16", "event")]
U8Events = Annotated[npt.NDArray[np.uint8], Axes("uint8", "event")]
I64Events = Annotated[npt.NDArray[np.int64], Axes("int64", "event")]
I64Rows = Annotated[npt.NDArray[np.int64], Axes("int64", "row")]
F32Traces = Annotated[npt.NDArray[np.float32], Axes("float32", "row unit")]
F32Motion = Annotated[npt.NDArray[np.float32], Axes("float32", "row xyz")]
F64Channels = Annotated[npt.NDArray[np.float64], Axes("float64", "row channel")]


class Document(BaseModel):
    """What every document shares: frozen, versioned, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    version: Literal[1] = 1

    # Fields that may hold integers, and the named axes of array fields: looked up once for each kind of document.
    _integers: ClassVar[tuple[str, ...]] = ()
    _array_axes: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Look through the fields of a kind of document."""
        fields = cls.model_fields.items()
        axes = [(name, tuple(m.axes)) for name, f in fields for m in f.metadata if isinstance(m, Axes)]
        cls._array_axes = tuple(axes)
        cls._integers = tuple(n for n, f in fields if "int" in str(f.annotation) and n not in dict(axes))

    @model_validator(mode="after")
    def _axes_agree(self) -> Self:
        """Columns along one axis have one length, the `unit` axis that of `units`; integers fit into 64 bits."""
        values = self.__dict__
        for name in self._integers:
            value = values[name]
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} does not fit into 64 bits")
        if self._array_axes:
            lengths = {"unit": len(values["units"])} if "units" in values else {}
            for name, axes in self._array_axes:
                for axis, length in zip(axes, values[name].shape, strict=True):
                    if lengths.setdefault(axis, length) != length:
                        raise ValueError(f"{name} has {length} along {axis}, where there are {lengths[axis]}")
        return self
