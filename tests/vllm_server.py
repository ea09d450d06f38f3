"""A server on this machine that speaks as vLLM does, and writes what our own engine would have written."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from luthier.methods.lora import Lora
from luthier.models.causal import CausalModel
from luthier.models.folding import folded
from luthier.models.load import load_model
from luthier.train.decoding import Answer, Order, decode
from luthier.train.generate import Sampling

FAULTS = ("500", "429", "cut", "garbage", "broken-off", "too-few", "hang-up")


class Served:
    """The served base, with one adapter at a time in it."""

    def __init__(self, folder: Path, method: Lora) -> None:
        model = load_model(str(folder))
        assert isinstance(model, CausalModel)
        method.prepare(model.module)
        self.model, self.method, self.lock = model, method, threading.Lock()

    def write(self, adapter: Path, body: Mapping) -> list[Answer]:
        """Return the answers that our own engine gives: the numbers of its draws can be read off the seed."""
        seed, first = body["seed"] >> 24, body["seed"] % 2**24
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"], seed)
        order = Order(
            [body["prompt"]], [range(first, first + body["n"])], body["max_tokens"], body["stop_token_ids"], True
        )
        with self.lock, self.model.evaluating(), self.model.computing():
            self.method.load(self.model.module, adapter)
            with folded(self.model.module):
                [found] = decode(self.model, order, sampling)
        return found


class VllmDouble(ThreadingHTTPServer):
    """The server.

    Attributes:
        plan: the fault that each request meets before it is carried out, in the order in which requests come.
        takes_adapters: it was started such that adapters may come and go.
        tells_ids: answers hold token_ids, as newer servers give them.
        events: what was asked, in order, with the body.
        weights: what the adapters that were loaded hold, in order.
    """

    daemon_threads = True

    def __init__(self, served: Served, plan: Sequence[str] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served, self.plan = served, list(plan)
        self.takes_adapters, self.tells_ids = True, True
        self.events: list[tuple[str, dict]] = []
        self.adapters: dict[str, Path] = {}
        self.weights: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def bodies(self, path: str) -> list[dict]:
        """Return what was asked of one path."""
        return [body for asked, body in self.events if asked == path]

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections are broken on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: VllmDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        base = {"id": "served-base", "object": "model", "parent": None, "max_model_len": 64}
        cards = [base, *({"id": name, "parent": "served-base"} for name in self.server.adapters)]
        self._send(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v1/")
        with server.lock:
            server.events.append((path, body))
            fault = server.plan.pop(0) if server.plan else ""
        if fault in ("500", "429"):
            self._error(int(fault), "busy")
        elif fault == "hang-up":
            self.close_connection = True
        elif fault == "garbage":
            self._raw(200, b'{"choices": [')
        elif path == "completions":
            self._complete(body, fault)
        elif not server.takes_adapters:
            self._raw(404, b'{"detail":"Not Found"}')
        elif path == "load_lora_adapter":
            self._load(body, fault)
        else:
            self._unload(body)

    def _load(self, body: dict, fault: str) -> None:
        server, name, folder = self.server, body["lora_name"], Path(body["lora_path"])
        if name in server.adapters:
            self._error(400, f"The lora adapter '{name}' has already been loaded.")
            return
        if not (folder / "adapter_config.json").is_file():
            self._error(404, f"Loading lora {name} failed: No adapter found for {folder}")
            return
        server.adapters[name] = folder
        server.weights.append(hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest())
        if fault == "cut":  # it is there, and whoever asked never hears of it
            self.close_connection = True
            return
        self._raw(200, f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _unload(self, body: dict) -> None:
        if self.server.adapters.pop(body["lora_name"], None) is None:
            self._error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            return
        self._raw(200, b"Success: LoRA adapter removed successfully.")

    def _complete(self, body: dict, fault: str) -> None:
        server = self.server
        adapter = server.adapters.get(body["model"])
        if adapter is None:
            self._error(404, f"The model `{body['model']}` does not exist.")
            return
        choices = [_choice(i, a, server.tells_ids) for i, a in enumerate(server.served.write(adapter, body))]
        if fault == "broken-off":
            choices[0]["finish_reason"] = "abort"
        if fault == "too-few":
            choices.pop()
        whole = json.dumps({"object": "text_completion", "choices": choices[::-1]}).encode()
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[:20])
            self.close_connection = True
            return
        self._raw(200, whole)

    def _error(self, status: int, said: str) -> None:
        self._send(status, {"error": {"message": said, "type": "BadRequestError", "code": status}})

    def _send(self, status: int, value: object) -> None:
        self._raw(status, json.dumps(value).encode())

    def _raw(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _choice(index: int, answer: Answer, tells_ids: bool) -> dict[str, object]:
    tokens = answer.tokens.tolist()
    assert answer.logps is not None
    return {
        "index": index,
        "text": "",
        "finish_reason": "length" if answer.is_truncated else "stop",
        "stop_reason": None if answer.is_truncated else tokens[-1],
        "token_ids": tokens if tells_ids else None,
        "logprobs": {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": [float(number) for number in answer.logps],
            "top_logprobs": [{} for _ in tokens],
            "text_offset": [0 for _ in tokens],
        },
    }


@contextmanager
def serving(server: VllmDouble) -> Iterator[VllmDouble]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
