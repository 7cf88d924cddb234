# Serves a bundle on a CPU, without torch:
#   docker build -f docker/cpu.Dockerfile -t deploykit-serve:cpu .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/model.deploy:/bundle:ro" deploykit-serve:cpu

FROM python:3.11.14-slim-bookworm AS build
# Given with --build-arg where packages come from another index; pip reads them.
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
       "$(echo /wheels/deploykit-*.whl)[openvino,serve]"
# Fails here and not in production: the command starts, and torch is not there.
RUN /opt/deploy/bin/deploy --version \
    && /opt/deploy/bin/python -c "import sys, deploy; sys.exit('torch' in sys.modules)" \
    && ! /opt/deploy/bin/python -c "import torch"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/deploy /opt/deploy
# /tmp: the user has no home, and the root file system may be read-only.
ENV PATH="/opt/deploy/bin:$PATH" HOME=/tmp DEPLOY_CACHE=/tmp/deploy PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/deploy/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["/opt/deploy/bin/deploy"]
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--port", "8000", "--grpc-port", "8001"]
