# The image of rollout workers with rollout.engine=vllm (ROLLOUT_IMAGE in slurm/site.env).
# Not built or run yet: no machine with a GPU and a container runtime was at hand. From the root of the checkout:
#
#   docker build -f docker/rollout.Dockerfile -t mtdrive-rollout .
#   enroot import -o /shared/images/mtdrive-rollout.sqsh dockerd://mtdrive-rollout
#
# vLLM's own container at the version that rollout/vllm.py is written against; torch, vLLM and transformers stay as they are.
ARG BASE=vllm/vllm-openai:v0.32.0
FROM ${BASE}

WORKDIR /opt/nemo_mtdrive
COPY requirements/rollout-cpu.lock /tmp/rollout.lock
RUN grep -iE '^(antlr4-python3-runtime|fastjsonschema|hydra-core|msgpack|omegaconf|shapely)==' /tmp/rollout.lock > /tmp/added.lock \
 && python3 -m pip install --no-cache-dir --no-deps -r /tmp/added.lock \
 && rm /tmp/rollout.lock /tmp/added.lock

COPY . .
RUN python3 -m pip install --no-cache-dir --no-deps --no-build-isolation -e . \
 && python3 -c "import vllm; from nemo_mtdrive.rollout import vllm as engine"

# The workers are started by Slurm, not by the image.
ENTRYPOINT []
ENV OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
