"""Scene files on disk: generate them, import Argoverse 2 logs, and show one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from nemo_mtdrive.driving.bird_eye import draw
from nemo_mtdrive.driving.camera import front_camera, project, render
from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene, save_scene
from nemo_mtdrive.driving.sources.av2 import cut, find_logs, read_log
from nemo_mtdrive.driving.sources.files import MANIFEST, read_picture, write_picture
from nemo_mtdrive.driving.sources.procedural import scene_id, with_camera

CHUNK = 16
"""Scenes a task of the process pool."""
SHOWN_HEIGHT_PX, SHOWN_METRES = 560, 90.0
TRACE_COLOUR = (40, 190, 90)


class Bar(Protocol):
    """A display of how far the work is."""

    def advance(self, count: int = 1, /) -> None:
        """`count` more scenes are done."""
        ...


class Progress(Protocol):
    """What `import_av2` shows its progress with."""

    def phase(self, name: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Show a phase until the block ends."""
        ...


def generate_scenes(count: int, seed: int, out: Path, width: int, height: int, kinds: Mapping[str, float], workers: int,
                    advance: Callable[[int], None]) -> None:
    """Write the scenes of the seeds `seed` .. `seed + count - 1` with their pictures into `out`.

    Every file appears whole; a scene that is there already is kept, so an interrupted call may simply be repeated. The
    folder remembers kinds and size, for a repeat with others would mix two sets.

    Args:
        count, seed: how many and which.
        out: the folder, made if need be.
        width, height: of the pictures [px].
        kinds: the generator's mixture; empty for its own.
        workers: processes; 1 works in this one.
        advance: called with the number of scenes just done or found.

    Raises:
        SceneError: a bad number, or the folder holds scenes of other kinds or another size.
    """
    if count < 1 or seed < 0 or workers < 1 or width < 1 or height < 1:
        raise SceneError(f"generate: got count={count} seed={seed} workers={workers} size={width}x{height}; set all to "
                         "1 or more (seed: 0 or more)")
    mixture = dict(kinds) or dict(MIXTURE)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, {"kinds": mixture, "width": width, "height": height})
    missing = [number for number in range(seed, seed + count) if not (out / f"{scene_id(number)}.json").is_file()]
    if count > len(missing):
        advance(count - len(missing))
    chunks = [missing[k : k + CHUNK] for k in range(0, len(missing), CHUNK)]
    if workers == 1:
        for chunk in chunks:
            advance(_write_chunk(chunk, out, width, height, mixture))
        return
    with ProcessPoolExecutor(min(workers, max(1, len(chunks))), mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_write_chunk, chunk, out, width, height, mixture) for chunk in chunks]
        try:
            for task in as_completed(tasks):
                advance(task.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _claim(out: Path, asked: Mapping[str, object]) -> None:
    """Write what the folder is for, or check that it is for the same."""
    manifest = out / MANIFEST
    text = json.dumps(asked, sort_keys=True)
    if not manifest.is_file():
        temporary = manifest.with_name(f".{MANIFEST}.tmp")
        temporary.write_text(text)
        temporary.replace(manifest)
    elif manifest.read_text() != text:
        raise SceneError(f"{out}: holds scenes made with {manifest.read_text()}, asked for {text}; set another folder")


def _write_chunk(seeds: list[int], out: Path, width: int, height: int, kinds: Mapping[str, float]) -> int:
    cv2.setNumThreads(1)
    for seed in seeds:
        write_scene(generate(seed, kinds), out, width, height)
    return len(seeds)


def write_scene(scene: Scene, out: Path, width: int, height: int) -> None:
    """Write a scene's picture, then its file: where the file is, the picture is too."""
    scene = with_camera(scene, width, height)
    write_picture(out / f"{scene.scene_id}.png", render(scene, width, height))
    save_scene(scene, out / f"{scene.scene_id}.json")


def import_av2(path: Path, out: Path, width: int, height: int, progress: Progress) -> int:
    """Write every window of the AV2 logs at `path` with a drawn picture into `out`; returns how many.

    Raises:
        SceneError: no logs there, or a log that is not whole.
    """
    out.mkdir(parents=True, exist_ok=True)
    folders = find_logs(str(path))
    done = 0
    with progress.phase("AV2 logs", total=len(folders), unit="logs") as bar:
        for folder in folders:
            log = read_log(folder)
            for frame in log.windows():
                write_scene(cut(log, frame), out, width, height)
                done += 1
            bar.advance(1)
    return done


def show_scene(path: Path, out_png: Path) -> None:
    """Draw a scene file as PNG: its front picture (drawn anew if there is none) beside the view from above.

    Raises:
        SceneError: the file is not a scene.
    """
    scene = load_scene(path)
    width = 2 * SHOWN_HEIGHT_PX
    camera = front_camera(width, SHOWN_HEIGHT_PX, "")
    front = render(scene, width, SHOWN_HEIGHT_PX)
    if scene.camera is not None and (path.parent / scene.camera.file).is_file():
        stored = read_picture(path.parent / scene.camera.file)
        if abs(stored.shape[1] / stored.shape[0] - 2.0) > 0.02:
            width = round(SHOWN_HEIGHT_PX * stored.shape[1] / stored.shape[0])
            camera = front_camera(width, SHOWN_HEIGHT_PX, "")
        way = cv2.INTER_AREA if stored.shape[0] > SHOWN_HEIGHT_PX else cv2.INTER_CUBIC
        front = np.asarray(cv2.resize(stored, (width, SHOWN_HEIGHT_PX), interpolation=way), dtype=np.uint8)
    if scene.future is not None:
        pixels, depth = project(scene.future[:, :2], camera)
        ahead = np.round(pixels[depth > 1.0] * 16).astype(np.int32)
        cv2.polylines(front, [ahead], False, TRACE_COLOUR, 2, cv2.LINE_AA, 4)
    above = draw(scene, None, SHOWN_HEIGHT_PX, SHOWN_METRES)
    title = f"{scene.scene_id}  {scene.kind}  {scene.command or 'no command'}  {scene.ego.velocity[0]:.1f} m/s"
    cv2.putText(front, title, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 24, 30), 1, cv2.LINE_AA)
    write_picture(out_png, np.hstack([front, above]))
