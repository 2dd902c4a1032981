"""A whole job whose rollout workers run vLLM in the rollout environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_mtdrive.config import ConfigError, load_config
from tests.rollout.remote_engine import rollout_interpreter
from tests.test_end_to_end import logs, start, steps

pytestmark = pytest.mark.end_to_end

LIMIT_S = 1800.0


def test_an_rl_step_with_vllm_scores_its_tokens_as_the_trainer_does(tmp_path: Path) -> None:
    """Two steps, so that new weights go to vLLM once; in float32 engine and trainer agree to 1e-4 in every token."""
    with start(tmp_path, "rollout.engine=vllm", f"rollout.python={rollout_interpreter()}", "rollout.sleep=true",
               f"rollout.start_timeout_s={LIMIT_S}", "rollout.workers=1", "sft.stages=[]", "parallel.tensor=1",
               "validation.scenes=2", "mtgrpo.lr=1e-3") as process:
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors[-3000:] + logs(tmp_path)
    found = steps(tmp_path, "rl")
    assert len(found) == 2 and all(step["episodes/valid"] == 1.0 for step in found if "episodes/valid" in step)
    assert all(0.0 < step["logprob_gap/max"] < 1e-4 for step in found), found


def test_without_the_rollout_environment_the_request_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no Python at /nowhere/python; run `make rollout-env`"):
        load_config("scratch_cpu", ["rollout.engine=vllm", "rollout.python=/nowhere/python"])
    with pytest.raises(ConfigError, match=r"rollout.engine=tgi: set it to one of native, vllm"):
        load_config("scratch_cpu", ["rollout.engine=tgi"])
