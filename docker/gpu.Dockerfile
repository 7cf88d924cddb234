# Serves a bundle on an NVIDIA GPU, without torch; the driver (580 or later, for CUDA 13) comes from
# the host through the NVIDIA container toolkit:
#   docker build -f docker/gpu.Dockerfile -t deploykit-serve:gpu .
#   docker run --rm --gpus 1 -p 127.0.0.1:8000:8000 -v "$PWD/model.deploy:/bundle:ro" deploykit-serve:gpu

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS cuda

# pycuda is source alone: it needs the headers of CUDA, its libcuda stub and a C++ compiler. It is
# built by the Python that runs it, so the toolkit is copied here and not the other way round.
FROM python:3.11.14-bookworm AS pycuda
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PYCUDA_VERSION=2026.1
COPY --from=cuda /usr/local/cuda-13.0 /usr/local/cuda
ENV PATH="/usr/local/cuda/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Without cuRAND, which the final image has not.
RUN echo "CUDA_ENABLE_CURAND = False" > "$HOME/.aksetup-defaults.py" \
    && pip wheel --no-deps --wheel-dir /wheels "pycuda==${PYCUDA_VERSION}"

FROM python:3.11.14-slim-bookworm AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TENSORRT_VERSION=11.4.0.106
ARG ONNXRUNTIME_GPU_VERSION
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY --from=pycuda /wheels /wheels
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY export ./export
COPY quantize ./quantize
COPY deploy ./deploy
RUN pip install --constraint constraints.txt setuptools \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
# tensorrt itself fetches its libraries from NVIDIA's index.
RUN python -m venv --without-pip /opt/deploy \
    && pip --python /opt/deploy/bin/python install --constraint constraints.txt \
       --find-links /wheels --only-binary pycuda "tensorrt==${TENSORRT_VERSION}" \
       "$(echo /wheels/deploykit-*.whl)[trt,rtx,serve]"
# With --build-arg ONNXRUNTIME_GPU_VERSION=1.31.1, for bundles whose winner is ONNX Runtime on CUDA:
# in place of the one for CPUs, whose files it would else share. CUDA's libraries come with it.
RUN if [ -n "${ONNXRUNTIME_GPU_VERSION}" ]; then \
        pip --python /opt/deploy/bin/python uninstall --yes onnxruntime \
        && pip --python /opt/deploy/bin/python install --constraint constraints.txt \
           "onnxruntime-gpu[cuda,cudnn]==${ONNXRUNTIME_GPU_VERSION}" nvidia-cublas; \
    fi
RUN /opt/deploy/bin/deploy --version \
    && /opt/deploy/bin/python -c "import sys, deploy; sys.exit('torch' in sys.modules)" \
    && ! /opt/deploy/bin/python -c "import torch"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/deploy /opt/deploy
# What the container toolkit is to bring in: libcuda for `compute`, nvidia-smi for `utility`.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PATH="/opt/deploy/bin:$PATH" HOME=/tmp DEPLOY_CACHE=/tmp/deploy PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000 8001
# An engine that does not fit this GPU may be built anew before the first answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["/opt/deploy/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["/opt/deploy/bin/deploy"]
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--port", "8000", "--grpc-port", "8001"]
