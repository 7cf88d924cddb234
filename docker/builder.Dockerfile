# Builds bundles: torch, OpenVINO and TensorRT for RTX, which builds engines without a GPU.
#   docker build -f docker/builder.Dockerfile -t deploykit-builder .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" deploykit-builder build model.pt
# The torch of the common index is the CUDA build, several gigabytes. With an index that has the CPU
# build: docker build --build-arg PIP_EXTRA_INDEX_URL=URL ...

FROM python:3.11.14-slim-bookworm AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY export ./export
COPY quantize ./quantize
COPY deploy ./deploy
RUN pip install --constraint constraints.txt setuptools \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
RUN python -m venv --without-pip /opt/deploy \
    && pip --python /opt/deploy/bin/python install --constraint constraints.txt \
       "$(echo /wheels/deploykit-*.whl)[build,rtx]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/deploy /opt/deploy
ENV PATH="/opt/deploy/bin:$PATH" HOME=/tmp DEPLOY_CACHE=/tmp/deploy PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /work
# It runs to its end and listens to nobody.
HEALTHCHECK NONE
ENTRYPOINT ["/opt/deploy/bin/deploy"]
CMD ["--help"]
