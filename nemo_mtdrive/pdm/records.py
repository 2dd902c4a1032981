"""Reads the pickles that NAVSIM writes without running what is in them.

A pickle is a program. This reader knows the few names that a NAVSIM v1.1 metric cache holds and gives each a harmless
stand-in: a `Record` that keeps what it is given, and readers of numbers and polygons of our own. Nothing is imported, so
neither nuPlan nor NAVSIM need be installed, and any other name ends the reading.
"""

from __future__ import annotations

import io
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import shapely

from nemo_mtdrive.driving.scene import SceneError

LARGEST_BYTES = 1 << 30
"""Unpacked size of a cache at most: real ones are a few megabytes, and a small file may unpack to terabytes."""

_STATE = "nuplan.common.actor_state."
_PLANNER = "navsim.planning.simulation.planner.pdm_planner."
RECORD_NAMES = frozenset((
    "navsim.planning.metric_caching.metric_cache.MetricCache",
    f"{_PLANNER}observation.pdm_observation.PDMObservation",
    f"{_PLANNER}observation.pdm_occupancy_map.PDMOccupancyMap",
    f"{_PLANNER}observation.pdm_occupancy_map.PDMDrivableMap",
    f"{_PLANNER}utils.pdm_path.PDMPath",
    "nuplan.planning.simulation.trajectory.interpolated_trajectory.InterpolatedTrajectory",
    f"{_STATE}agent.Agent", f"{_STATE}car_footprint.CarFootprint", f"{_STATE}dynamic_car_state.DynamicCarState",
    f"{_STATE}ego_state.EgoState", f"{_STATE}oriented_box.OrientedBox", f"{_STATE}scene_object.SceneObject",
    f"{_STATE}scene_object.SceneObjectMetadata", f"{_STATE}state_representation.Point2D",
    f"{_STATE}state_representation.StateSE2", f"{_STATE}state_representation.StateVector2D",
    f"{_STATE}state_representation.TimePoint", f"{_STATE}static_object.StaticObject",
    f"{_STATE}tracked_objects_types.TrackedObjectType", f"{_STATE}vehicle_parameters.VehicleParameters",
    "nuplan.common.maps.maps_datatypes.SemanticMapLayer", "pathlib.PosixPath", "pathlib.PurePosixPath",
    "pathlib.WindowsPath", "pathlib._local.PosixPath",
))
"""Classes that a metric cache holds (NAVSIM v1.1, nuplan-devkit v1.2)."""

_NUMBER_KINDS = "fiub"


class PickleRefused(SceneError):
    """A file that is no NAVSIM cache, a broken one, or one that asks for something else; one line."""


class Record:
    """Stands for an object of a class that is not installed: the arguments that made it, and its attributes."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


class _Dtype:
    """A number's type, checked when it is used; replaces numpy.dtype, whose state may hold objects."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def plain(self) -> np.dtype[Any]:
        dtype = np.dtype(self.name).newbyteorder(">" if self.order == ">" else "=")
        if dtype.kind not in _NUMBER_KINDS:
            raise PickleRefused(f"it holds an array of {dtype}, want plain numbers")
        return dtype


class _Array:
    """An array of numbers, or of polygons: `plain_array` gives the numpy array."""

    def __init__(self) -> None:
        self.array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):  # an array of objects: polygons
            self.array = data
            return
        self.array = np.frombuffer(_bytes(data), dtype.plain()).reshape(shape, order="F" if fortran else "C")


def _bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise PickleRefused(f"it holds {type(data).__name__} in the place of bytes")
    return bytes(data)


def _new_array(*_: Any) -> _Array:
    return _Array()


def _number(dtype: _Dtype, data: Any) -> Any:
    return np.frombuffer(_bytes(data), dtype.plain())[0].item()


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> Any:
    return np.frombuffer(_bytes(data), dtype.plain()).reshape(shape, order="F" if order == "F" else "C")


def _latin_bytes(text: Any, _: Any) -> bytes:
    return str(text).encode("latin1")


def _polygon(data: Any) -> Any:
    return shapely.from_wkb(_bytes(data))


def _stand_ins() -> dict[str, Callable[..., Any]]:
    """New ones for each file, so that none can leave anything behind for the next."""
    table: dict[str, Callable[..., Any]] = {
        name: type(name.rpartition(".")[2], (Record,), {"__module__": __name__}) for name in RECORD_NAMES}
    table |= {"shapely.io.from_wkb": _polygon, "numpy.ndarray": type("ndarray", (), {}),
              "numpy.dtype": _Dtype, "_codecs.encode": _latin_bytes}
    for core in ("numpy.core", "numpy._core"):
        table |= {f"{core}.multiarray._reconstruct": _new_array, f"{core}.multiarray.scalar": _number,
                  f"{core}.numeric._frombuffer": _from_buffer}
    return table


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._table = _stand_ins()

    def find_class(self, module: str, name: str, /) -> Any:
        found = self._table.get(f"{module}.{name}")
        if found is None:
            raise PickleRefused(f"it asks for {module}.{name}, which no NAVSIM v1.1 metric cache holds; nothing was run")
        return found

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise PickleRefused("it refers to objects outside the file")


def read_pickle(path: Path) -> Any:
    """The records in a lzma pickle of NAVSIM.

    Raises:
        PickleRefused: truncated, not lzma, not a pickle, too large, or with names that a metric cache does not hold.
        OSError: the file cannot be read.
    """
    packed = path.read_bytes()
    unpacker = lzma.LZMADecompressor()
    try:
        data = unpacker.decompress(packed, LARGEST_BYTES)
        if not unpacker.eof:
            at_limit = len(data) >= LARGEST_BYTES
            raise PickleRefused(f"it unpacks to more than {LARGEST_BYTES >> 20} MB" if at_limit else "it is cut short")
        return _Reader(data).load()
    except PickleRefused as error:
        raise PickleRefused(f"{path}: {error}") from error
    except (lzma.LZMAError, EOFError, pickle.UnpicklingError, AttributeError, IndexError, KeyError, TypeError, ValueError,
            RecursionError, OverflowError, MemoryError, shapely.errors.ShapelyError) as error:
        raise PickleRefused(f"{path}: not a whole NAVSIM metric cache: {error}") from error


def plain_list(value: Any) -> list[Any]:
    """A list, or the contents of an object array.

    Raises:
        PickleRefused: neither.
    """
    if isinstance(value, _Array):
        value = value.array
    if not isinstance(value, (list, tuple)):
        raise PickleRefused(f"it holds {type(value).__name__} in the place of a list")
    return list(value)
