"""An engine that costs next to nothing: it takes llama-server's command line and streams ready-made chunks.

Given to Oprel as its llama-server, what is measured is the gateway. Each event is a write of its own, as the real
engine does it: a word, with its logprobs where they are asked for, or a piece of a call where there are tools. Threads
and blocking sockets: no event loop stands between a chunk and the kernel.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from itertools import repeat

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FLAGS = (
    "--model --alias --host --port --parallel --ctx-size --threads --threads-batch --batch-size --ubatch-size "
    "--no-kv-unified --kv-unified --n-gpu-layers --gpu-layers --flash-attn --fit --load-mode --cache-ram --no-ui "
    "--offline --embeddings --pooling --jinja --no-warmup --verbosity --log-verbosity --cache-type-k --cache-type-v "
    "--chat-template --no-repack --metrics --slots"
)


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _event(
    delta: dict[str, object], finish: str | None = None, logprobs: dict[str, object] | None = None, **extra: object
) -> bytes:
    told = {} if logprobs is None else {"logprobs": logprobs}
    body = {
        "choices": [{"finish_reason": finish, "index": 0, "delta": delta, **told}],
        "created": 1764000000, "id": "chatcmpl-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "model": "bench",
        "system_fingerprint": "b1-costless", "object": "chat.completion.chunk", **extra,
    }  # fmt: skip
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


_TEXT = _chunk(_event({"content": " word"}))
_ROLE = _chunk(_event({"role": "assistant", "content": None}))


def _token(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _with_logprobs(top: int) -> bytes:
    others = [_token(f" other{rank}", -1.0 - rank) for rank in range(1, top)]
    row = {**_token(" word", -0.1), "top_logprobs": [_token(" word", -0.1), *others][:top]}
    return _chunk(_event({"content": " word"}, logprobs={"content": [row]}))


def _call(**parts: object) -> bytes:
    opening = {"id": parts.pop("id"), "type": "function"} if "id" in parts else {}
    return _chunk(_event({"tool_calls": [{"index": 0, **opening, "function": parts}]}))


# The first, those between, and the last: together one object.
_CALL = (_call(id="call_1", name="f", arguments='{"text":"'), _call(arguments=" word"), _call(arguments='"}'))


def _pieces(body: bytes, events: int) -> Iterator[bytes]:
    if b'"tools":' in body:
        yield _CALL[0]
        yield from repeat(_CALL[1], events - 2)
        yield _CALL[2]
        return
    asked = re.search(rb'"top_logprobs": ?(\d+)', body)
    yield from repeat(_with_logprobs(int(asked[1])) if asked else _TEXT, events)


def _ending(events: int) -> bytes:
    timings = {"cache_n": 0, "prompt_n": 4, "prompt_ms": 1.0, "predicted_n": events, "predicted_ms": 1.0}
    usage = {"completion_tokens": events, "prompt_tokens": 4, "total_tokens": events + 4}
    last = _event({}, "length", timings=timings)
    counted = json.loads(last[6:])
    counted.update(choices=[], usage=usage)
    return _chunk(last) + _chunk(b"data: " + json.dumps(counted).encode() + b"\n\n") + _chunk(b"data: [DONE]\n\n")


def _answer(conn: socket.socket, path: bytes, body: bytes) -> None:
    if b"/chat/completions" in path:
        found = re.search(rb'"(?:max_tokens|n_predict|max_completion_tokens)": ?(\d+)', body)
        events = int(found[1]) if found else 64
        conn.sendall(_HEAD + _ROLE)
        for piece in _pieces(body, events):
            conn.sendall(piece)
        conn.sendall(_ending(events) + b"0\r\n\r\n")
        return
    reply: dict[str, object] = {"status": "ok"}
    if path.startswith(b"/props"):
        reply = {
            "total_slots": 16, "default_generation_settings": {"n_ctx": 8192}, "model_path": "bench",
            "modalities": {"vision": False, "audio": False}, "chat_template": "x", "build_info": "costless",
            "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True},
        }  # fmt: skip
    payload = json.dumps(reply).encode()
    conn.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload
    )


def _serve(conn: socket.socket) -> None:
    buffer = b""
    with conn:
        while True:
            while b"\r\n\r\n" not in buffer:
                piece = conn.recv(1 << 16)
                if not piece:
                    return
                buffer += piece
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            need = int(length[1]) if length else 0
            while len(buffer) < need:
                buffer += conn.recv(1 << 16)
            try:
                _answer(conn, head.split(b" ", 2)[1], buffer[:need])
            except OSError:
                return
            buffer = buffer[need:]


def main(argv: list[str]) -> None:
    if "--help" in argv:
        print("\n".join(f"{flag} VALUE" for flag in _FLAGS.split()))
        return
    if "--version" in argv:
        print("version: 99999 (costless)")
        return
    if "--list-devices" in argv:
        print("Available devices:\n  (none)")
        return
    host = argv[argv.index("--host") + 1]
    if host.endswith(".sock"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(host)
    else:
        listener = socket.create_server((host, int(argv[argv.index("--port") + 1])))
    listener.listen(128)
    while True:
        conn, _ = listener.accept()
        if conn.family == socket.AF_INET:  # as real servers do
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(conn,), daemon=True).start()


if __name__ == "__main__":
    os.environ.pop("LLAMA_API_KEY", None)
    main(sys.argv[1:])
