# The server in a container. Two targets:
#
#   docker build --target cpu  -t farsum:cpu  .
#   docker build --target cuda -t farsum:cuda .     (then: farsum serve --device cuda:0; not yet run on a GPU)
#
# The server listens on loopback only and refuses anything else until tokens and TLS exist. Loopback inside a
# container's own network is of use to nobody, so the image is meant for the host's network:
#
#   docker run --rm --network host --read-only --tmpfs /tmp \
#       -v farsum-cache:/var/cache/farsum farsum:cpu
#
# deploy/compose.yaml says the same. Ports are therefore not published, and none is EXPOSEd.

FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/farsum
# Dependencies first, by an empty package of the same name: they change far less often than the code.
COPY pyproject.toml README.md LICENSE ./
RUN for p in client/farsum server/farsum_server kernels/farsum_kernels proto/farsum_proto; do \
        mkdir -p "$p" && touch "$p/__init__.py"; done \
    && /opt/farsum/bin/pip install --no-cache-dir '.[server]' \
    && /opt/farsum/bin/pip uninstall --yes farsum
COPY client client
COPY kernels kernels
COPY proto proto
COPY server server

FROM build AS build-cpu
RUN /opt/farsum/bin/pip install --no-cache-dir '.[server]'

FROM build AS build-cuda
RUN /opt/farsum/bin/pip install --no-cache-dir '.[server,cuda12]'

FROM python:3.12-slim AS base
RUN useradd --system --uid 10001 --user-group --home-dir /nonexistent --no-create-home farsum \
    && install -d -o farsum -g farsum -m 0700 /var/cache/farsum
ENV PATH=/opt/farsum/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FARSUM_CACHE=/var/cache/farsum
USER farsum
# SIGTERM drains: calls in flight finish, then the process exits with 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["farsum"]
CMD ["serve"]

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/farsum /opt/farsum

# Last, so that a build without --target gives it.
FROM base AS cpu
COPY --from=build-cpu /opt/farsum /opt/farsum
