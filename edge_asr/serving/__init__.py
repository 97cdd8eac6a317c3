"""A server of recognition: one core, and a thin face for each protocol.

The core (sessions.py and session.py, with what a client may ask in options.py and how much in limits.py)
knows no web framework; its docstring describes the seam to the faces. A face listens somewhere and
translates: http_face.py (with access.py, websocket.py, openai_api.py and realtime.py) is the first,
riva_face.py, wyoming_face.py (with wyoming_service.py and wyoming_wire.py) and unix_socket.py are others.
run.py starts faces and stops them gracefully. The HTTP and Wyoming faces and metrics.py need
`pip install 'edge-asr[serve]'`, the Riva face `[riva]`, the core and the Unix socket neither.
"""
