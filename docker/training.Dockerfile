# The image of training ranks, environment servers, preflight and data jobs (IMAGE in slurm/site.env).
# Not built or run yet: no machine with a GPU and a container runtime was at hand. From the root of the checkout:
#
#   docker build -f docker/training.Dockerfile -t mtdrive-training .
#   enroot import -o /shared/images/mtdrive.sqsh dockerd://mtdrive-training       # pyxis
#   apptainer build /shared/images/mtdrive.sif docker-daemon://mtdrive-training:latest
#
# NeMo's own container: torch, transformer-engine, megatron-core and NeMo as NVIDIA built them for each other. They are not
# replaced; only what the container lacks is added, at the versions of requirements/train-cpu.lock, without resolving.
ARG BASE=nvcr.io/nvidia/nemo:25.11
FROM ${BASE}

WORKDIR /opt/nemo_mtdrive
COPY requirements/train-cpu.lock /tmp/train.lock
RUN grep -iE '^(nemo_aligner|fastjsonschema|shapely|opencv-python-headless|gymnasium|farama-notifications|msgpack|pyzmq|fastapi|starlette|uvicorn|prometheus_client)==' \
      /tmp/train.lock > /tmp/added.lock \
 && python -m pip install --no-cache-dir --no-deps -r /tmp/added.lock \
 && rm /tmp/train.lock /tmp/added.lock

COPY . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e .

# The build ends here if the container's versions do not go together with ours: names and shapes are NeMo 2.6's and
# megatron-core 0.15's (docs/model.md).
RUN python -c "import megatron.core, nemo, nemo_aligner; from nemo_mtdrive.models import qwen25_vl" \
 && nemo-mtdrive plan --model 7b --tp 4 --gpus 32 --recompute selective > /dev/null

ENV OMP_NUM_THREADS=1 CUDA_DEVICE_MAX_CONNECTIONS=1 PYTHONUNBUFFERED=1
