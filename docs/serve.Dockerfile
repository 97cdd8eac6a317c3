# edge-asr serve on the CPU. Written, not yet built or run. From the root of the repository:
#     docker build -t edge-asr-serve -f docs/serve.Dockerfile .
#     docker run --rm --read-only -p 127.0.0.1:8765:8765 -e EDGE_ASR_TOKEN edge-asr-serve
FROM python:3.13-slim AS build
COPY . /src
RUN python -m venv /opt/edge-asr \
    && /opt/edge-asr/bin/pip install --no-cache-dir '/src[cpu,serve,riva,vad]'

FROM python:3.13-slim
COPY --from=build /opt/edge-asr /opt/edge-asr
ENV PATH=/opt/edge-asr/bin:$PATH
USER 65534:65534
EXPOSE 8765
HEALTHCHECK --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/readyz', timeout=3)"]
# In a container the server has to listen at every address, so it asks for a token (EDGE_ASR_TOKEN); who can reach
# it is decided by -p. SIGTERM, which docker stop sends, lets the last finals out.
ENTRYPOINT ["edge-asr", "serve", "--host", "0.0.0.0"]
