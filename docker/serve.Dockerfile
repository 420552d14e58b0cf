# The HTTP service of yolact-deploy on CPUs.
#
#     docker build -f docker/serve.Dockerfile -t yolact-deploy-serve .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/models:ro" yolact-deploy-serve /models/yolact.onnx@openvino
#
# For a GPU, install the extra "serve" in the image of server.Dockerfile as well.

FROM python:3.12-slim-bookworm

ARG EXTRAS=serve,onnx,openvino

WORKDIR /opt/yolact-deploy
COPY setup.cfg pyproject.toml README.md LICENSE NOTICE ./
COPY yolact_deploy ./yolact_deploy
RUN python -m pip install --no-cache-dir ".[${EXTRAS}]"

RUN useradd --create-home --uid 10001 yolact
USER yolact
WORKDIR /models
EXPOSE 8000
ENTRYPOINT ["yolact-deploy", "serve", "--host", "0.0.0.0"]
CMD ["yolact.onnx@openvino"]
