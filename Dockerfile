# Two images from one file: `--target service` answers requests, `--target train` trains and judges.
#
#   docker build --target service --tag wgan-foundry:service .
#   docker build --target train --tag wgan-foundry:train .
#   docker build --target train --tag wgan-foundry:train-cuda --build-arg COMPUTE=cuda .
#   docker build --target service --tag wgan-foundry:service-cuda --build-arg COMPUTE=cuda .
#
# docs/deploy.md says how to run them, on a CPU and on a GPU, and how a release is built: there the
# base is named by its digest too (python:3.11-slim-bookworm@sha256:...).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# cpu or cuda.
ARG COMPUTE=cpu

# ---- what every stage starts from -------------------------------------------------------------
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# ---- torch, and then one environment for each image ---------------------------------------------
# pip installs nothing without a hash in requirements/, not even what builds our own package. What it
# downloads stays in the builder's cache, and in no layer.
FROM base AS torch
ENV PIP_CACHE_DIR=/var/cache/pip
ARG COMPUTE
# PyTorch's own index has the builds for CPUs. The CUDA builds are in the ordinary index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY requirements/torch.txt requirements/cuda.txt requirements/
# Nothing in the images is compiled against torch, so they need no headers and static libraries of it,
# nor its tests.
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    python -m venv /opt/venv \
    && case "${COMPUTE}" in \
        cpu) set -- --index-url "${TORCH_INDEX}" ;; \
        cuda) set -- --requirement requirements/cuda.txt ;; \
        *) echo "COMPUTE is cpu or cuda, not ${COMPUTE}" >&2; exit 2 ;; \
    esac \
    && /opt/venv/bin/pip install --require-hashes --no-deps --requirement requirements/torch.txt "$@" \
    && rm -rf /opt/venv/lib/python3*/site-packages/torch/include \
        /opt/venv/lib/python3*/site-packages/torch/share \
        /opt/venv/lib/python3*/site-packages/torch/test \
    && find /opt/venv -name '*.a' -delete

# The dependencies come before our code: a change of code does not install them again.
FROM torch AS service-dependencies
COPY requirements/service.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    /opt/venv/bin/pip install --require-hashes --no-deps --requirement requirements/service.txt
COPY . .
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation . \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes pip

FROM torch AS train-dependencies
COPY requirements/train.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    /opt/venv/bin/pip install --require-hashes --no-deps --requirement requirements/train.txt
COPY . .
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation . \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes pip

# ---- what both images share: a user without rights, and nothing that is written to ---------------
FROM base AS runtime
ARG PYTHON_IMAGE
ARG VERSION=0.2.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="wgan-foundry" \
      org.opencontainers.image.description="Train, judge and serve Wasserstein GANs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# The user has no entry in /etc/passwd, so it is named here: promotions record who made them.
# Only /tmp must be writable.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=wgan \
    PYTHONDONTWRITEBYTECODE=1 \
    BENTOML_DO_NOT_TRACK=True \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    OMP_NUM_THREADS=1
WORKDIR /tmp
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["wgan"]

# On a GPU `training.critic_step=compiled` and `graphed_compiled` compile: by Triton, which is
# in the lock and calls a C compiler when it runs. Python's headers are in the base.
FROM runtime AS train-runtime
ARG COMPUTE
USER 0:0
# The release of Debian decides the versions; a fixed one would miss its security updates.
# hadolint ignore=DL3008
RUN if [ "${COMPUTE}" = cuda ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
USER 10001:10001

FROM train-runtime AS train
LABEL org.opencontainers.image.title="wgan-foundry train"
COPY --from=train-dependencies /opt/venv /opt/venv
CMD ["--help"]

FROM runtime AS service
LABEL org.opencontainers.image.title="wgan-foundry service"
COPY --from=service-dependencies /opt/venv /opt/venv
EXPOSE 3000
# The certificate is for the service's name, not for this address, so it is not verified. Proxies are not
# asked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import http.client as h, os, ssl; \
        tls = {'context': ssl._create_unverified_context()} if os.environ.get('WGAN_TLS_CERT') else {}; \
        c = (h.HTTPSConnection if tls else h.HTTPConnection)('127.0.0.1', 3000, timeout=4, **tls); \
        c.request('GET', '/livez'); \
        raise SystemExit(c.getresponse().status != 200)"]
CMD ["serve", "--host", "0.0.0.0", "--port", "3000"]
