"""An OpenAI-compatible endpoint with a real, if tiny, language model behind it, and a proxy that injects faults.

The model is a Llama of random weights over bytes. With a response_format it decodes under the schema, as vLLM does:
braces and names are given, and of each number's texts it takes the one it finds likeliest. Without one it writes what
comes to it, which is no JSON.
"""

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

KEY, MODEL = "a-key", "tiny-llama"


class Scorer:
    """The model. It sees a picture as the text of its mean colour."""

    def __init__(self):
        torch.manual_seed(3)
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        self._model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size)).eval()
        for parameter in self._model.parameters():
            parameter.data *= 8  # or random weights prefer nothing
        self._lock = Lock()

    def read(self, messages: list[dict]) -> str:
        parts = [part for m in messages for part in ([m["content"]] if isinstance(m["content"], str) else m["content"])]
        return "\n".join(part if isinstance(part, str) else self._part(part) for part in parts)

    def _part(self, part: dict) -> str:
        if part["type"] == "text":
            return part["text"]
        head, _, body = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        colour = np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))).mean((0, 1))
        return f"<{' '.join(f'{value:.1f}' for value in colour)}>"

    @torch.no_grad()
    def _logprobs(self, text: str) -> torch.Tensor:
        with self._lock:
            return self._model(torch.tensor([list(text.encode())[-200:]])).logits[0].log_softmax(-1)

    def free(self, prompt: str, tokens: int) -> str:
        text = prompt
        for _ in range(min(tokens, 3)):
            text += chr(self._logprobs(text)[-1, 32:127].argmax() + 32)
        return text[len(prompt) :]

    def under(self, schema: dict, prompt: str) -> str:
        text = ""
        for name, field in schema["properties"].items():
            text += f'{", " if text else "{"}"{name}": '
            if field["type"] == "string":
                text += json.dumps(self.free(prompt + text, 2))
            else:
                numbers = [str(n) for n in range(int(field["minimum"]), int(field["maximum"]) + 1)]
                start = self._logprobs(prompt + text)[-1]
                text += max(numbers, key=lambda number: start[ord(number[0])] - 0.1 * len(number))
        return text + "}"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Its base URL, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
        ).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def fail(self, status: int, message: str, **headers: str) -> None:
        self.reply(status, json.dumps({"error": {"message": message, "type": "error"}}).encode(), **headers)


def endpoint(scorer: Scorer) -> type[Quiet]:
    class Endpoint(Quiet):
        def do_POST(self) -> None:
            asked = json.loads(self.body())
            if self.headers["Authorization"] != f"Bearer {KEY}":
                return self.fail(401, "Incorrect API key provided")
            if self.path != "/v1/chat/completions" or asked["model"] != MODEL:
                return self.fail(404, "The model does not exist")
            prompt = scorer.read(asked["messages"])
            form = asked.get("response_format")
            text = (
                scorer.under(form["json_schema"]["schema"], prompt)
                if form
                else scorer.free(prompt, asked["max_tokens"])
            )
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(text), "total_tokens": len(prompt + text)}
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            answer = {"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
            self.reply(200, json.dumps(answer | {"usage": usage}).encode())

    return Endpoint


class Log:
    """What the proxy saw, and the faults that it is to inject into the next requests, one each."""

    def __init__(self):
        self.faults: list[str] = []
        self.times: list[float] = []
        self.bodies: list[dict] = []
        self.always: str | None = None
        self._lock = Lock()

    def next_fault(self, body: bytes) -> str | None:
        with self._lock:
            self.times.append(time.monotonic())
            self.bodies.append(json.loads(body))
            return self.always or (self.faults.pop(0) if self.faults else None)


def proxy(target: str, log: Log, slow_seconds: float) -> type[Quiet]:
    class Proxy(Quiet):
        def do_POST(self) -> None:
            body = self.body()
            fault = log.next_fault(body)
            if fault in ("429", "500", "503"):
                return self.fail(int(fault), "try again", Retry_After="0.05")
            if fault == "html":
                return self.reply(200, b"<html>Bad gateway</html>", Content_Type="text/html")
            if fault == "cut before":
                return self.connection.shutdown(socket.SHUT_RDWR)
            if fault == "slow":
                time.sleep(slow_seconds)
            if fault == "nonsense":
                asked = json.loads(body)
                del asked["response_format"]
                body = json.dumps(asked).encode()
            status, content = self._forward(body)
            if fault == "cut":
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                return self.connection.shutdown(socket.SHUT_RDWR)
            try:
                self.reply(status, content)
            except BrokenPipeError:
                self.close_connection = True  # it took too long for whom it was

        def _forward(self, body: bytes) -> tuple[int, bytes]:
            headers = {"Content-Type": "application/json", "Authorization": self.headers["Authorization"]}
            place = f"{target.removesuffix('/v1')}{self.path}"
            try:
                with urlopen(Request(place, body, headers, method="POST")) as response:
                    return response.status, response.read()
            except HTTPError as error:
                return error.code, error.read()

    return Proxy
