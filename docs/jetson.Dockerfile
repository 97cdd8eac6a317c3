# edge-asr on NVIDIA's image with TensorRT 10.3 for JetPack 6.1 and 6.2. Written, not yet built or run (docs/jetson.md).
# From the root of the repository, on the Jetson: sudo docker build -t edge-asr -f docs/jetson.Dockerfile .
FROM nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip python3-venv libportaudio2 \
    && rm -rf /var/lib/apt/lists/*

# The environment sees the image's TensorRT. The driver, and libnvdla_compiler.so, come with --runtime nvidia at run
# time, so whether TensorRT loads shows only then; that it is there at all shows now.
RUN python3 -m venv --system-site-packages /opt/edge-asr \
    && python3 -c "import importlib.util as u; assert u.find_spec('tensorrt'), 'no TensorRT module: take -devel'"

COPY . /src
RUN /opt/edge-asr/bin/pip install --no-cache-dir '/src[jetson]' && rm -rf /src

ENV PATH=/opt/edge-asr/bin:$PATH
ENTRYPOINT ["edge-asr"]
CMD ["doctor"]
