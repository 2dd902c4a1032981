"""`nemo-mtdrive serve-env` as a user starts it: real scenes, the paper's agent, refusals in one line."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from nemo_mtdrive.config import Config, load_config, save_config
from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.driving.scene import load_scene, save_scene
from nemo_mtdrive.environment.arguments import TOKEN_VARIABLE
from nemo_mtdrive.environment.client import EnvironmentClient
from nemo_mtdrive.launch import make_endpoints, write_endpoints
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.process import free_port

COMMAND = [sys.executable, "-m", "nemo_mtdrive.cli", "serve-env"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two generated scenes as files."""
    made = tmp_path_factory.mktemp("made")
    for seed in (1, 2):
        scene = generate(seed, MIXTURE)
        save_scene(scene, made / f"{scene.scene_id}.json")
    return made


def plans(scene):
    """[5, 8, 3] what was driven, and the same pushed aside."""
    plan = np.repeat(scene.future[None], 5, axis=0)
    plan[:, :, 1] += np.linspace(-3.0, 3.0, 5)[:, None]
    return plan


def check(url, token, folder):
    """The server's reviews are those of the agent in this process, bit for bit."""
    agent = PDMAgent("oracle", 4)
    scenes = [load_scene(file) for file in sorted(folder.glob("*.json"))]
    with EnvironmentClient(url, token, timeout_s=120.0, retries=2) as client:
        client.wait_ready(300.0)
        items = [(scene.scene_id, plans(scene)) for scene in scenes]
        found = client.score_many(items, feedback=True)
        assert found == [agent.review(scene, plan) for scene, (_, plan) in zip(scenes, items, strict=True)]
        [unknown] = client.score_many([("nowhere", items[0][1])])
        assert unknown == "UnknownScene: scene 'nowhere': the source has no such scene"


@pytest.mark.parametrize("with_run", [False, True], ids=["scenes", "run"])
def test_it_serves_a_folder_or_a_run(tmp_path, folder, with_run):
    if with_run:
        config: Config = load_config("scratch_cpu", [f"run_dir={tmp_path}"])
        save_config(config, tmp_path / "config.yaml")
        endpoints = make_endpoints(config, tmp_path)
        write_endpoints(endpoints, tmp_path / "endpoints.json")
        (tmp_path / "scenes").symlink_to(folder)
        [url], token, arguments = endpoints.environment_urls, endpoints.environment_token, ["--run-dir", str(tmp_path)]
    else:
        port, token = free_port(), "secret"
        url, arguments = f"http://127.0.0.1:{port}", ["--scenes", str(folder), "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, env={**os.environ, TOKEN_VARIABLE: token})
    try:
        check(url, token, folder)
    finally:
        server.terminate()
        out, _ = server.communicate(timeout=30)
    assert (server.returncode, out) == (0, b"")


@pytest.mark.parametrize(("arguments", "token", "line"), [
    (["--scenes", "/nowhere"], "secret", "/nowhere: no such folder of scene files"),
    (["--scenes", "."], "", f"no token: set --token-file FILE or {TOKEN_VARIABLE} to a secret of your own"),
    (["--scenes", ".", "--workers", "0"], "secret", "--workers 0: set it to 1 or more"),
])
def test_wrong_requests_are_one_line(arguments, token, line, monkeypatch, capsys):
    from nemo_mtdrive.cli import main

    monkeypatch.setenv(TOKEN_VARIABLE, token)
    assert main(["serve-env", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"nemo-mtdrive: {line}") and said.err.count("\n") == 1


def test_help_teaches(capsys):
    from nemo_mtdrive.cli import main

    with pytest.raises(SystemExit):
        main(["serve-env", "--help"])
    said = capsys.readouterr().out
    for word in ("--run-dir", "--scenes", "--workers", "--queue-items", TOKEN_VARIABLE, "/v1/score", "docs/environment.md"):
        assert word in said
