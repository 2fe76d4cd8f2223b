# Images of what `make dist` left in dist/:
#   docker build -t lorabooth .                          for the CPU, from the .tar.zst
#   docker build -t lorabooth-cuda --target cuda .       for NVIDIA GPUs, from the wheel and PyPI's PyTorch
#   docker run --rm -v "$PWD:/work" lorabooth demo       add --gpus all for the second
FROM debian:bookworm-slim AS unpacked
RUN apt-get update && apt-get install -y --no-install-recommends zstd
COPY dist/lorabooth-*-linux-x86_64.tar.zst /tmp/
RUN mkdir /opt/lorabooth && tar --zstd -xf /tmp/lorabooth-*-linux-x86_64.tar.zst -C /opt/lorabooth --strip-components=1

FROM python:3.12-slim-bookworm AS cuda
COPY dist/lorabooth-*.whl /tmp/
RUN pip install --no-cache-dir /tmp/lorabooth-*.whl && rm /tmp/lorabooth-*.whl
WORKDIR /work
ENTRYPOINT ["lorabooth"]

FROM debian:bookworm-slim
COPY --from=unpacked /opt/lorabooth /opt/lorabooth
ENV PATH=/opt/lorabooth:$PATH
WORKDIR /work
ENTRYPOINT ["lorabooth"]
