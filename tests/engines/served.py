"""A real HTTP server that serves a model by plain transformers in OpenAI's wire format, and can misbehave."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from xreasoner.models.loading import Encoded, Loaded, encode

LOCK = threading.Lock()
BANNED = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def decode_from(
    loaded: Loaded, prompt: Encoded, given: str | list[int], body: dict[str, Any]
) -> Iterator[tuple[int, float]]:
    """Tokens and their log-probabilities after the prompt and the beginning of a reply."""
    banned = [loaded.tokenizer.convert_tokens_to_ids(token) for token in BANNED]
    ids, positions = whole(loaded, prompt, given)
    cache, noise = DynamicCache(), torch.Generator().manual_seed(int(body.get("seed") or 0))
    inputs = first_inputs(loaded, prompt, ids, positions)
    for _ in range(body["max_tokens"]):
        with LOCK, torch.no_grad():
            logits = loaded.model(**inputs, past_key_values=cache, use_cache=True).logits[0, -1].float()
        logits[banned] = -torch.inf
        temperature = body.get("temperature", 1.0)
        token = (
            int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=noise))
            if temperature
            else int(logits.argmax())
        )
        yield token, float(torch.log_softmax(logits, -1)[token])
        if token == loaded.tokenizer.eos_token_id:
            return
        positions = positions.amax().expand(3, 1, 1) + 1
        inputs = {"input_ids": torch.tensor([[token]]), "position_ids": positions}


def first_inputs(loaded: Loaded, prompt: Encoded, ids: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
    if prompt.pixel_values is not None:
        inputs |= {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        inputs["mm_token_type_ids"] = (ids == loaded.model.config.image_token_id).int()
    return inputs


def whole(loaded: Loaded, prompt: Encoded, given: str | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [1, T] and positions [3, 1, T] of the prompt and the beginning of the reply."""
    more = loaded.tokenizer.encode(given, add_special_tokens=False) if isinstance(given, str) else given
    begin = int(prompt.position_ids.max()) + 1
    later = torch.arange(begin, begin + len(more)).expand(3, -1)
    ids = torch.cat([prompt.input_ids, torch.tensor(more, dtype=torch.long)])
    return ids[None], torch.cat([prompt.position_ids, later], dim=1)[:, None]


def prompt_logprobs(loaded: Loaded, prompt: Encoded, given: str | list[int]) -> list[dict[str, Any] | None]:
    ids, positions = whole(loaded, prompt, given)
    banned = [loaded.tokenizer.convert_tokens_to_ids(token) for token in BANNED]
    with LOCK, torch.no_grad():
        logits = loaded.model(**first_inputs(loaded, prompt, ids, positions)).logits[0].float()
    logits[:, banned] = -torch.inf
    logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    rows = zip(ids[0, 1:].tolist(), logprobs, strict=True)
    return [None, *({str(token): {"logprob": max(logprob, -9999.0)}} for token, logprob in rows)]


class _Handler(BaseHTTPRequestHandler):
    server: Served  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def _json(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self._json(401, {"error": {"message": "who are you?"}})
        entry = {"id": "tiny", "object": "model", "owned_by": self.server.owner, "max_model_len": 2048}
        self._json(200, {"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served = self.server
        tokens = self.path in ("/tokenize", "/detokenize")
        if not tokens:
            served.bodies.append(body)
        fault = "" if tokens else served.faults.pop(0) if served.faults else served.fault
        try:
            self._reply(body, fault)
        except (OSError, ValueError):
            served.aborted += 1

    def _reply(self, body: dict[str, Any], fault: str) -> None:
        served = self.server
        if self.path in ("/tokenize", "/detokenize"):
            return self._json(*_tokens(served, self.path, body))
        if fault == "500":
            return self._json(500, {"error": {"message": "out of luck"}})
        if fault == "400":
            return self._json(400, {"error": {"message": "top_p must be in (0, 1]"}})
        if fault in ("401", "404"):
            return self._json(int(fault), {"error": {"message": "out of luck"}})
        if fault == "busy":
            return self._json(429, {"error": {"message": "slowly"}}, Retry_After="0.1")
        if fault == "hang":
            served.released.wait(30)
            raise BrokenPipeError
        if body.get("continue_final_message") and fault == "refuses-continuing":
            return self._json(400, {"error": {"message": "unknown field continue_final_message"}})
        if fault == "ignores-continuing":
            body["messages"] = [m for m in body["messages"] if m["role"] != "assistant"]
            body.pop("continue_final_message", None)
        if "prompt" in body:  # tokens: the prompt's and those of the reply, which are told apart by nobody
            ids = torch.tensor(body["prompt"])
            prompt, given = Encoded(ids, torch.arange(len(ids)).expand(3, -1), None, None), ""
        else:
            messages, images, given = _read(body)
            prompt = encode(served.loaded, messages, images)
        if body.get("prompt_logprobs") is not None:
            found = {} if fault == "no-logprobs" else {"prompt_logprobs": prompt_logprobs(served.loaded, prompt, given)}
            return self._json(200, {"choices": [], **found})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._stream(body, prompt, given, fault)

    def _stream(self, body: dict[str, Any], prompt: Encoded, given: str, fault: str) -> None:
        served, tokenizer = self.server, self.server.loaded.tokenizer
        said: list[int] = []
        logprobs: list[float] = []
        told, finish = "", "length"
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if fault == "empty":
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._line("[DONE]")
            return
        split = _Split() if served.split else None
        for token, logprob in decode_from(served.loaded, prompt, given, body):
            time.sleep(served.pause)
            said.append(token)
            logprobs.append(logprob)
            if fault == "cut" and len(said) == 5:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault == "stream-error" and len(said) == 5:
                self._event({"error": {"message": "the GPU fell over", "code": 500}})
                return
            if fault == "ends" and len(said) == 12 and not given:  # the turn, as if in the middle of the thought
                token = said[-1] = tokenizer.eos_token_id
            if token == tokenizer.eos_token_id:
                finish = "stop"
            skip = body.get("skip_special_tokens", True)
            shown = said if skip else [i for i in said if i != tokenizer.eos_token_id]
            whole = tokenizer.decode(shown, skip_special_tokens=skip)
            ends = [whole.index(stop) for stop in body.get("stop") or () if stop in whole]
            whole = whole[: min(ends)] if ends else whole
            longest = max((len(stop) for stop in body.get("stop") or ()), default=0)
            held = max((n for n in range(longest) if n and not ends and _begins(whole[-n:], body["stop"])), default=0)
            whole = whole[: len(whole) - held]
            new = whole[len(told) :]
            told = whole
            delta = {"content": new} if split is None else split(whole)
            choice: dict[str, Any] = {"index": 0, "delta": delta}
            if "prompt" in body:
                choice = {"index": 0, "text": new}
            if body.get("return_token_ids"):
                choice["token_ids"] = [token]
            if body.get("logprobs"):
                choice["logprobs"] = (
                    {"tokens": [new], "token_logprobs": [logprob]}
                    if "prompt" in body
                    else {"content": [{"token": new, "logprob": logprob}]}
                )
            first = body.get("return_token_ids") and len(said) == 1
            self._event({"choices": [choice]} | ({"prompt_token_ids": prompt.input_ids.tolist()} if first else {}))
            if ends or finish == "stop":
                finish = "stop"
                break
        rest = split(told, ended=True) if split else {}
        self._event({"choices": [{"index": 0, "delta": rest, "finish_reason": finish}]})
        n = len(prompt.input_ids) + len(tokenizer.encode(given))
        self._event({"choices": [], "usage": {"prompt_tokens": n, "completion_tokens": len(said)}})
        self._line("[DONE]")
        served.answered += 1

    def _event(self, value: Any) -> None:
        self._line(json.dumps(value))

    def _line(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()


def _tokens(served: Served, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """vLLM's own routes."""
    tokenizer = served.loaded.tokenizer
    if served.owner != "vllm":
        return 404, {"detail": "Not Found"}
    if path == "/detokenize":
        return 200, {"prompt": tokenizer.decode(body["tokens"])}
    if "messages" in body:
        generation = body["add_generation_prompt"]
        ids = tokenizer.apply_chat_template(
            body["messages"], tokenize=True, add_generation_prompt=generation, return_dict=False
        )
    else:
        ids = tokenizer.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))
    return 200, {"tokens": ids, "token_strs": [tokenizer.decode([i]) for i in ids]}


def _begins(text: str, stops: list[str]) -> bool:
    return any(stop.startswith(text) for stop in stops)


class _Split:
    """What a server's own reasoning parser does."""

    def __init__(self) -> None:
        self.reasoning = self.content = ""

    def __call__(self, whole: str, ended: bool = False) -> dict[str, str]:
        thought, tag, content = whole.partition("</think>")
        if whole.startswith("<think>"):
            reasoning = thought.removeprefix("<think>")
            reasoning = reasoning if tag or ended else reasoning[:-8]  # a tag may be on its way
        else:
            reasoning, content = "", "" if "<think>".startswith(whole) and not ended else whole
        found = {"reasoning_content": reasoning[len(self.reasoning) :], "content": content[len(self.content) :]}
        self.reasoning, self.content = reasoning, content
        return {name: text for name, text in found.items() if text}


def _read(body: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Image.Image], str]:
    """Messages, pictures, and the beginning of the reply."""
    messages, images = [dict(message) for message in body["messages"]], []
    given = ""
    if body.get("continue_final_message"):
        last = messages.pop()
        given = last["content"]
        if "reasoning_content" in last:  # as Qwen3-VL-Thinking's template writes it
            given = last["reasoning_content"].strip("\n") + "\n</think>\n\n" + given.lstrip("\n")
    for message in messages:
        if isinstance(message["content"], list):
            parts = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
                    images.append(Image.open(io.BytesIO(data)))
                    part = {"type": "image"}
                parts.append(part)
            message["content"] = parts
    return messages, images, given


class Served(ThreadingHTTPServer):
    """fault: how every request goes wrong; faults: how the next ones do, first to last."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, loaded: Loaded, fault: str = "", port: int = 0, **more: Any) -> None:
        self.loaded, self.fault, self.faults = loaded, fault, list[str]()
        self.owner: str = more.get("owner", "somebody")
        self.split: bool = more.get("split", False)
        self.pause: float = more.get("pause", 0.0)
        self.key: str = more.get("key", "")
        self.bodies: list[dict[str, Any]] = []
        self.connections: list[socket.socket] = []
        self.released = threading.Event()
        self.answered = self.aborted = 0
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def kill(self) -> None:
        """As a killed process does: nobody listens any more, and all connections break."""
        self.released.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def __exit__(self, *_: Any) -> None:
        self.kill()
