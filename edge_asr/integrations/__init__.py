"""Recognition inside other frameworks, in their process: pipecat.py and livekit.py (docs/integrations.md).

Each needs its framework (`pip install 'edge-asr[cpu,pipecat]'`, `'edge-asr[cpu,livekit]'`), and none of them
is imported unless asked for. listening.py is what they share.
"""
