# One image for worker, beat, Flower and the Prefect server of docker-compose.yml:
#
#   docker build --tag celery-flow-dispatcher .
#
# It needs neither BuildKit nor anything outside this directory.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dispatcher
# First what seldom changes, so that a change of ours does not fetch all of it again.
COPY requirements.lock /src/
RUN /opt/dispatcher/bin/python -m pip install --require-hashes --requirement /src/requirements.lock
COPY . /src
RUN /opt/dispatcher/bin/python -m pip install --no-deps /src

FROM ${PYTHON_IMAGE}

# Process 1 must reap what flows leave behind, and pass SIGTERM on to Celery's main process alone.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dispatcher

COPY --from=build /opt/dispatcher /opt/dispatcher
COPY examples /opt/dispatcher/examples

ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/dispatcher

# SIGTERM ends a worker once its runs have ended. Give it time for that: docker stop --time 600,
# stop_grace_period, terminationGracePeriodSeconds.
STOPSIGNAL SIGTERM
# Of a worker. Beat: dispatcher health --beat. Others have a page of their own.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 \
    CMD ["dispatcher", "health", "--timeout", "5"]

ENTRYPOINT ["tini", "--"]
CMD ["celery", "-A", "dispatcher", "worker"]
