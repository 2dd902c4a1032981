"""What a picture must tell, also at 224 x 112: lamps, people, closed lanes; who covers whom; weather and hour."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import front_camera, project, render
from nemo_mtdrive.driving.rendering.atmosphere import TIMES_OF_DAY, WEATHERS
from nemo_mtdrive.driving.rendering.land import Land
from nemo_mtdrive.driving.rendering.order import paint_order
from nemo_mtdrive.driving.rendering.signals import masts
from nemo_mtdrive.driving.rendering.vehicles import PAINTS, form_of, is_braking, look_seed
from nemo_mtdrive.driving.rendering.view import View
from nemo_mtdrive.driving.scene import Scene
from tests.driving.drawing import HEIGHT, WIDTH, empty_road, track_ahead

CAR = (4.5, 1.9, 1.5)
AIRS = [(weather, hour) for weather in WEATHERS for hour in TIMES_OF_DAY]


def small(scene: Scene) -> NDArray[np.int64]:
    """The picture that a small model gets."""
    return render(scene, WIDTH, HEIGHT).astype(np.int64)


def in_air(scene: Scene, weather: str, hour: str, **more: object) -> Scene:
    return replace(scene, extra={"appearance": {"weather": weather, "time_of_day": hour, **more}})


def near(picture: NDArray[np.int64], point: tuple[float, float, float], radius: int) -> NDArray[np.int64]:
    """The pixels around a projected point."""
    pixels, _ = project(np.array([point]), front_camera(WIDTH, HEIGHT, ""))
    u, v = np.round(pixels[0]).astype(int).tolist()
    return picture[max(v - radius, 0) : v + radius + 1, max(u - radius, 0) : u + radius + 1]


@pytest.mark.parametrize("weather, hour", AIRS)
def test_a_red_and_a_green_light_differ_where_the_lamps_are(weather: str, hour: str) -> None:
    red, green = (small(in_air(empty_road([("straight", state), ("left", state)]), weather, hour))
                  for state in (True, False))
    # the far-side head hangs over the lane, 21 m behind its end at x = 30
    spots = [near(picture, (51.0, 0.0, 6.0), 4) for picture in (red, green)]
    assert (np.abs(spots[0] - spots[1]).sum(-1) > 120).sum() >= 4
    redness = [(spot[..., 0] - spot[..., 1]).max() for spot in spots]
    assert redness[0] > 90 > redness[1]
    changed = (np.abs(red - green).sum(-1) > 20).sum()
    assert changed < 500, "a light changes its lamps, not the picture"


def test_connectors_share_a_head_only_when_their_states_agree() -> None:
    def heads(lights: list[tuple[str, bool]]) -> list[tuple[bool, int]]:
        scene = empty_road(lights)
        found = masts(_view(scene), scene, Land(scene))
        return [(head.red, head.turn) for mast in found if mast.arm is not None for head in mast.heads]

    assert heads([("straight", True), ("left", True)]) == [(True, 0)]
    assert heads([("straight", False), ("left", True)]) == [(True, 1), (False, 0)]
    assert heads([("straight", False)]) == [(False, 0)]
    assert heads([]) == []


def _view(scene: Scene) -> View:
    from nemo_mtdrive.driving.rendering.atmosphere import atmosphere_of
    from nemo_mtdrive.driving.rendering.canvas import Canvas
    from nemo_mtdrive.driving.rendering.terrain import Terrain

    return View(Canvas(front_camera(WIDTH, HEIGHT, ""), atmosphere_of(scene), Terrain(scene), 0.0, (90, 90, 90), 0), scene)


def test_brake_lights_are_read_off_the_motion_of_a_recorded_scene() -> None:
    scene = empty_road()
    rolling, braking, stopped = (track_ahead(scene, "vehicle", CAR, (18.0, 0.0, 0.0), speeds)
                                 for speeds in ((8.0, 8.0), (8.0, 6.5), (0.0, 0.0)))
    assert [is_braking(track) for track in (rolling, braking, stopped)] == [False, True, True]
    dark, lit = (small(replace(scene, tracks=(track,))) for track in (rolling, braking))
    assert (near(lit, (15.7, 0.7, 0.75), 3)[..., 0] - near(dark, (15.7, 0.7, 0.75), 3)[..., 0]).max() > 90


@pytest.mark.parametrize("size, form", [(CAR, "saloon"), ((7.0, 2.3, 2.9), "lorry"), ((12.0, 2.5, 3.1), "bus")])
@pytest.mark.parametrize("weather, hour", [("clear", "day"), ("rain", "dusk"), ("fog", "day"), ("clear", "night")])
def test_signals_can_be_seen_from_afar(size: tuple[float, float, float], form: str, weather: str, hour: str) -> None:
    scene = empty_road()
    track = track_ahead(scene, "vehicle", size, (30.0 + size[0] / 2, 0.0, 0.0), (5.0, 5.0))
    assert form_of(track.size, track.token, 1) == form

    def picture(*signals: str) -> NDArray[np.int64]:
        return small(in_air(replace(scene, tracks=(track,)), weather, hour, signals={"probe": list(signals)}))

    none = picture()
    for signal, aside in (("left", 0.8), ("right", -0.8)):
        pixels, _ = project(np.array([[30.0, 0.0, 0.8]]), front_camera(WIDTH, HEIGHT, ""))
        changed = np.argwhere(np.abs(picture(signal) - none).sum(-1) > 60)
        assert len(changed) >= 2
        assert ((changed[:, 1] < pixels[0, 0]) == (aside > 0)).all()
    braking = picture("brake")
    assert (np.abs(braking - none).sum(-1) > 60).sum() >= 4
    assert (braking - none)[..., 0].max() > 50


@pytest.mark.parametrize("kind, size, far", [("pedestrian", (0.6, 0.6, 1.7), 30.0), ("bicycle", (1.8, 0.6, 1.7), 30.0),
                                             ("traffic_cone", (0.4, 0.4, 0.8), 20.0), ("barrier", (0.4, 1.5, 1.0), 20.0),
                                             ("czone_sign", (0.6, 0.9, 1.6), 20.0),
                                             ("generic_object", (0.8, 0.8, 1.0), 20.0)])
@pytest.mark.parametrize("weather, hour", [("clear", "day"), ("fog", "dawn"), ("rain", "night")])
def test_objects_can_be_seen(kind: str, size: tuple[float, float, float], far: float, weather: str, hour: str) -> None:
    scene = in_air(empty_road(), weather, hour)
    there = replace(scene, tracks=(track_ahead(scene, kind, size, (far, 0.5, 0.0), (1.0, 1.0)),))
    behind = replace(scene, tracks=(track_ahead(scene, kind, size, (-far, 0.5, 0.0), (1.0, 1.0)),))
    empty = small(scene)
    assert (np.abs(small(there) - empty).sum(-1) > 30).sum() >= 8
    assert (small(behind) == empty).all()


def test_a_bus_hides_who_stands_behind_it() -> None:
    scene = empty_road()
    bus = track_ahead(scene, "vehicle", (11.0, 2.6, 3.2), (20.0, 0.0, 0.0), token="bus")
    walker = track_ahead(scene, "pedestrian", (0.6, 0.6, 1.7), (28.0, 0.0, 0.0), token="walker")
    alone = render(replace(scene, tracks=(bus,)), 640, 360)
    for tracks in ((bus, walker), (walker, bus)):
        np.testing.assert_array_equal(render(replace(scene, tracks=tracks), 640, 360), alone)
    before = replace(scene, tracks=(bus, track_ahead(scene, "pedestrian", (0.6, 0.6, 1.7), (12.0, 0.0, 0.0))))
    assert (render(before, 640, 360) != alone).any(-1).sum() > 200


def test_order_of_long_things_is_not_that_of_their_middles() -> None:
    def rectangle(x: float, y: float, length: float, width: float) -> NDArray[np.float64]:
        return np.array([[x + length / 2, y - width / 2], [x + length / 2, y + width / 2], [x - length / 2, y + width / 2],
                         [x - length / 2, y - width / 2]])

    # somebody stands beside the front half of a long lorry, on the far side of it: nearer than its middle, yet behind
    lorry, person = rectangle(20.0, 0.0, 24.0, 2.0), rectangle(14.0, 2.0, 0.5, 0.5)
    assert paint_order(np.array([lorry, person]), np.array([0.0, -8.0])) == [1, 0]
    assert paint_order(np.array([lorry, person]), np.array([0.0, 8.0])) == [0, 1]
    # a chain of three, given in any order, from the far to the near
    row = [rectangle(x, 0.2 * x, 4.0, 2.0) for x in (10.0, 20.0, 30.0)]
    assert paint_order(np.array(row), np.zeros(2)) == [2, 1, 0]
    assert paint_order(np.array(row[::-1]), np.zeros(2)) == [0, 1, 2]
    assert paint_order(np.zeros((0, 4, 2)), np.zeros(2)) == []


def test_a_wheel_lies_under_the_bodywork() -> None:
    scene = empty_road()
    cars = [track_ahead(scene, "vehicle", CAR, (12.0, 0.0, np.pi / 2), token=token) for token in "abcdefgh"]
    car = next(track for track in cars if min(PAINTS[look_seed(track) % len(PAINTS)]) > 200)
    seen = render(replace(scene, tracks=(car,)), 1280, 720)
    camera = front_camera(1280, 720, "")
    x = 12.0 - CAR[1] / 2
    places = np.array([[x, 0.31 * CAR[0], 0.12], [x, 0.31 * CAR[0], 0.8], [x, 0.0, 0.5]])
    pixels, _ = project(places, camera)
    tyre, wing, door = (seen[int(v), int(u)].astype(int) for u, v in pixels)
    np.testing.assert_array_equal(wing, door)
    assert tyre.max() < 60 and np.abs(tyre - wing).max() > 15


@pytest.mark.parametrize("weather, hour", AIRS)
def test_every_weather_and_hour_has_a_picture_of_its_own(weather: str, hour: str) -> None:
    picture = small(in_air(empty_road(), weather, hour))
    plain = small(empty_road())
    assert (weather, hour) == ("clear", "day") or np.abs(picture - plain).mean() > 5.0
    brightness = picture.mean()
    assert brightness < 85 if hour == "night" else brightness > 60
    if hour == "night" and weather != "fog":
        road = picture[85:108, 90:134].mean()
        assert road > picture[:20].mean(), "headlights light the road"


def test_an_unknown_weather_is_refused() -> None:
    with pytest.raises(ValueError, match="weather='hail'.*clear, cloudy, rain, fog"):
        small(in_air(empty_road(), "hail", "day"))


def test_things_close_to_the_lens_are_clipped() -> None:
    scene = empty_road()
    for x in (0.5, 2.0, 3.5, 5.0):
        for y in (-3.0, 0.0, 2.5):
            box = replace(scene, tracks=(track_ahead(scene, "vehicle", (12.0, 2.5, 3.2), (x, y, 0.3)),))
            assert render(box, 320, 180).shape == (180, 320, 3)


def test_far_things_do_not_flicker() -> None:
    """The ego creeps forward by 2 cm: a car 90 m ahead keeps its look."""
    scene = empty_road()
    track = track_ahead(scene, "vehicle", CAR, (90.0, 0.0, 0.0), (8.0, 8.0))
    patches = []
    for step in range(5):
        ego = replace(scene.ego, rear_axle_pose=np.array([0.02 * step, 0.0, 0.0]))
        picture = render(replace(scene, ego=ego, tracks=(track,)), 448, 252).astype(int)
        pixels, _ = project(np.array([[90.0, 0.0, 0.7]]), front_camera(448, 252, ""))
        u, v = np.round(pixels[0]).astype(int).tolist()
        patches.append(picture[v - 3 : v + 4, u - 4 : u + 5])
    assert max(np.abs(a - b).max() for a, b in pairwise(patches)) < 25
