# yolact-deploy on a machine with an NVIDIA GPU and the NVIDIA container toolkit. The driver comes from the host.
#
#     docker build -f docker/server.Dockerfile -t yolact-deploy .
#     docker run --rm --gpus all yolact-deploy doctor
#     docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/data" yolact-deploy build yolact_base.onnx
#
# EXTRAS: "tensorrt" (servers), "rtx" (GeForce RTX and RTX workstation cards) or "gpu" (ONNX Runtime with CUDA); "bench" adds what
# measuring needs. PACKAGES: what compiles our kernels, for the CUDA that the host's driver supports.

FROM python:3.12-slim-bookworm

ARG EXTRAS=tensorrt,bench
ARG PACKAGES="nvidia-cuda-nvrtc nvidia-cuda-runtime"

WORKDIR /opt/yolact-deploy
COPY setup.cfg pyproject.toml README.md LICENSE NOTICE ./
COPY yolact_deploy ./yolact_deploy
RUN python -m pip install --no-cache-dir --extra-index-url https://pypi.nvidia.com ".[${EXTRAS}]" ${PACKAGES}

# What the container toolkit is to bring in: compute for CUDA, utility for nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    YOLACT_DEPLOY_CACHE=/var/cache/yolact-deploy

# The cache is open to all, so that --user works; mount a volume there to keep engines and kernels.
RUN useradd --create-home yolact && mkdir -m 1777 /var/cache/yolact-deploy
USER yolact
WORKDIR /data
ENTRYPOINT ["yolact-deploy"]
CMD ["doctor"]
