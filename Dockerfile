# syntax=docker/dockerfile:1
FROM python:3.12-slim AS build
RUN python -m venv /opt/riverkeeper
WORKDIR /build
# src/riverkeeper/{agents,topics,models,supervisor} are links to the folders beside it: COPY keeps links
# within a folder, and all of them stand where the links point.
COPY pyproject.toml README.md ./
COPY agents/ agents/
COPY topics/ topics/
COPY models/ models/
COPY supervisor/ supervisor/
COPY src/ src/
RUN /opt/riverkeeper/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --no-create-home riverkeeper \
    && install -d -o riverkeeper -g riverkeeper /var/lib/riverkeeper
COPY --from=build /opt/riverkeeper /opt/riverkeeper
# PYTHONHASHSEED: replaying a version's spans must give the same bytes, and sets iterate by hash.
# RIVERKEEPER_HOST: probes and Prometheus come from outside the container.
ENV PATH=/opt/riverkeeper/bin:$PATH \
    PYTHONHASHSEED=0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RIVERKEEPER_HOST=0.0.0.0
USER 10001:10001
# The only place that a process may write to; what stands there may be lost.
WORKDIR /var/lib/riverkeeper
EXPOSE 9464
ENTRYPOINT ["riverkeeper"]
CMD ["--help"]
