"""Weather and time of day: the light, the haze and the sky that a picture is painted with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nemo_mtdrive.driving.scene import Array, Scene

Colour = tuple[int, int, int]
Triple = tuple[float, float, float]

WEATHERS = ("clear", "cloudy", "rain", "fog")
TIMES_OF_DAY = ("day", "dawn", "dusk", "night")
SUN_AZIMUTH = 0.9
"""In the map frame [rad]: shadows turn with the road, as they should."""

_HAZE_M = {"clear": 360.0, "cloudy": 280.0, "rain": 140.0, "fog": 58.0}
_GREY = {"clear": 0.0, "cloudy": 0.7, "rain": 0.85, "fog": 0.92}
_SUNSHINE = {"clear": 1.0, "cloudy": 0.12, "rain": 0.0, "fog": 0.0}
_DAYLIGHT = {"clear": 1.0, "cloudy": 1.12, "rain": 1.04, "fog": 1.06}


@dataclass(frozen=True)
class _Hour:
    top: Triple
    low: Triple
    ambient: Triple
    sun: Triple
    elevation: float


_HOURS = {
    "day": _Hour((84, 138, 208), (196, 217, 236), (0.64, 0.66, 0.70), (0.46, 0.44, 0.38), 0.85),
    "dawn": _Hour((118, 142, 190), (250, 212, 178), (0.60, 0.58, 0.62), (0.38, 0.28, 0.16), 0.28),
    "dusk": _Hour((70, 80, 136), (246, 166, 116), (0.46, 0.42, 0.48), (0.30, 0.17, 0.08), 0.22),
    "night": _Hour((8, 12, 26), (30, 36, 54), (0.19, 0.21, 0.28), (0.02, 0.02, 0.04), 0.8),
}


@dataclass(frozen=True)
class Atmosphere:
    """The light of a scene. Colours are 0..255; `ambient` and `sun` multiply the colours of surfaces."""

    weather: str
    time_of_day: str
    top: Triple
    low: Triple
    ambient: Triple
    sun: Triple
    elevation: float
    haze_m: float

    @property
    def night(self) -> bool:
        """Whether headlights light the road."""
        return self.time_of_day == "night"

    @property
    def lamps_on(self) -> bool:
        """Whether vehicles drive with their lights on."""
        return self.time_of_day != "day" or self.weather in ("rain", "fog")

    @property
    def wet(self) -> bool:
        """Whether the road shines."""
        return self.weather == "rain"

    @property
    def casts_shadows(self) -> bool:
        """Whether the sun is strong enough for shadows with an edge."""
        return sum(self.sun) > 0.3

    def sun_direction(self, heading: float) -> Array:
        """Unit vector [3] towards the sun in a frame turned by `heading` [rad] against the map."""
        azimuth = SUN_AZIMUTH - heading
        flat = math.cos(self.elevation)
        return np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(self.elevation)])

    def surface(self, colours: Array, light: Array | float, beam: float, distance: float) -> Array:
        """What the eye sees of surfaces [n, 3]: `light` 0..1 [n] is how they face the sun, `beam` how they are lit by
        the ego's headlights, `distance` m away in the haze; [n, 3] of 0..255.
        """
        strength = np.multiply.outer(np.asarray(light), np.array(self.sun)) + (np.array(self.ambient) + beam)
        clear = math.exp(-distance / self.haze_m)
        seen: Array = np.minimum(colours * strength, 255.0) * clear + np.array(self.low) * (1.0 - clear)
        return seen

    def shaded(self, colour: Colour, distance: float, light: float = 0.5, beam: float = 0.0) -> Colour:
        """One colour of `surface`."""
        clear = math.exp(-distance / self.haze_m)
        haze = 1.0 - clear
        (red, green, blue), ambient, sun, low = colour, self.ambient, self.sun, self.low
        # written out: it runs some hundred times a picture
        return (int(min(red * (ambient[0] + sun[0] * light + beam), 255.0) * clear + low[0] * haze),
                int(min(green * (ambient[1] + sun[1] * light + beam), 255.0) * clear + low[1] * haze),
                int(min(blue * (ambient[2] + sun[2] * light + beam), 255.0) * clear + low[2] * haze))

    def emitted(self, colour: Colour, distance: float) -> Colour:
        """A lamp's colour: the haze takes far less of it than of a lit surface."""
        clear = math.exp(-distance / (4.0 * self.haze_m))
        red, green, blue = (int(c * clear + h * (1.0 - clear)) for c, h in zip(colour, self.low, strict=True))
        return red, green, blue

    def beam(self, ahead: float, aside: float) -> float:
        """How strongly the ego's own headlights light something [m ahead, m aside]."""
        if not self.night or ahead <= 0.0:
            return 0.0
        distance = math.hypot(ahead, aside)
        return 0.75 * math.exp(-distance / 32.0) * (ahead / distance) ** 10


def atmosphere_of(scene: Scene) -> Atmosphere:
    """The atmosphere that the scene's `appearance` names; a clear day where it names none (recorded logs).

    Raises:
        ValueError: an unknown weather or time of day.
    """
    appearance = appearance_of(scene)
    return atmosphere(str(appearance.get("weather", "clear")), str(appearance.get("time_of_day", "day")))


def appearance_of(scene: Scene) -> Mapping[str, object]:
    """`scene.extra["appearance"]`, or nothing."""
    appearance = scene.extra.get("appearance", {})
    return appearance if isinstance(appearance, Mapping) else {}


@lru_cache(maxsize=16)
def atmosphere(weather: str, time_of_day: str) -> Atmosphere:
    """The atmosphere of a weather and a time of day; ValueError for a word it does not know."""
    if weather not in WEATHERS or time_of_day not in TIMES_OF_DAY:
        raise ValueError(f"appearance: got weather={weather!r} time_of_day={time_of_day!r}; weather is one of "
                         f"{', '.join(WEATHERS)}, time_of_day one of {', '.join(TIMES_OF_DAY)}")
    hour, grey, daylight = _HOURS[time_of_day], _GREY[weather], _DAYLIGHT[weather]
    overcast = 0.55 * sum(hour.low) / 3.0 + 0.45 * sum(hour.top) / 3.0
    if weather == "rain":
        overcast *= 0.88

    def clouded(colour: Triple, lift: float) -> Triple:
        red, green, blue = (min(255.0, c * (1.0 - grey) + grey * overcast * lift) for c in colour)
        return red, green, blue

    ambient = tuple(daylight * a for a in hour.ambient)
    sun = tuple(_SUNSHINE[weather] * s for s in hour.sun)
    return Atmosphere(weather, time_of_day, clouded(hour.top, 0.9), clouded(hour.low, 1.1),
                      (ambient[0], ambient[1], ambient[2]), (sun[0], sun[1], sun[2]), hour.elevation,
                      _HAZE_M[weather])
