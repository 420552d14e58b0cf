# yolact-deploy on a Jetson with JetPack 6 and the NVIDIA container runtime.
#
#     docker build -f docker/jetson.Dockerfile -t yolact-deploy:jetson .
#     docker run --rm --runtime nvidia yolact-deploy:jetson doctor
#     docker run --rm --runtime nvidia -v "$PWD:/data" yolact-deploy:jetson build yolact_base.onnx
#
# BASE must fit the board's L4T release (/etc/nv_tegra_release); it brings CUDA, cuDNN and TensorRT with its Python module.
# For JetPack 7 take one of NVIDIA's TensorRT images for ARM servers, and CUDA_PYTHON=13.*.

ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

ARG CUDA_PYTHON=12.6.*

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/yolact-deploy
# The system's packages hold TensorRT.
RUN python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
COPY setup.cfg pyproject.toml README.md LICENSE NOTICE ./
COPY yolact_deploy ./yolact_deploy
RUN python -m pip install --no-cache-dir . onnx "cuda-python==${CUDA_PYTHON}"

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=all \
    YOLACT_DEPLOY_CACHE=/var/cache/yolact-deploy

RUN useradd --create-home --groups video yolact && mkdir -m 1777 /var/cache/yolact-deploy
USER yolact
WORKDIR /data
ENTRYPOINT ["yolact-deploy"]
CMD ["doctor"]
