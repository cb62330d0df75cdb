"""The newest openai client and simonw's llm against the running service: `make test-clients` installs both.

The clients run in `.venv-clients`, and the service in the project's own environment, as for users.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from serving.background import QUESTION, Background

from xreasoner.reasoner import Reasoner

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-clients/bin"
Output = tuple[int, str, str]
Llm = Callable[..., Output]
SHAPES = "How many circles are there in the image?"
OPENAI_CLIENT = """
import base64, json, sys
import openai

url, question, path, about_image = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
said = [{"role": "user", "content": question}]
whole = client.chat.completions.create(model="tiny", messages=said)
stream = client.chat.completions.create(
    model="tiny", messages=said, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
address = "data:image/png;base64," + base64.encodebytes(open(path, "rb").read()).decode()
parts = [
    {"type": "image_url", "image_url": {"url": address, "detail": "low"}}, {"type": "text", "text": about_image}
]
seen = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
errors = {}
for name, changes in {
    "unknown model": {"model": "gpt-4o"},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "long": {"messages": [{"role": "user", "content": "word " * 4000}]},
}.items():
    try:
        client.chat.completions.create(**{"model": "tiny", "messages": said, **changes})
    except openai.APIStatusError as error:
        errors[name] = [error.status_code, error.code, error.param]
print(json.dumps({
    "content": whole.choices[0].message.content,
    "reasoning": whole.choices[0].message.reasoning,
    "reasoning_tokens": whole.usage.completion_tokens_details.reasoning_tokens,
    "streamed": "".join(delta.content or "" for delta in deltas),
    "streamed_reasoning": "".join(getattr(delta, "reasoning", None) or "" for delta in deltas),
    "same_usage": chunks[-1].usage == whole.usage,
    "seen": seen.choices[0].message.content,
    "errors": errors,
    "models": [client.models.list().data[0].id, client.models.retrieve("tiny").id],
}))
"""


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner("tiny")


@pytest.fixture(scope="module")
def service(reasoner: Reasoner) -> Iterator[Background]:
    with Background(lambda: reasoner) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (112, 112), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def run(arguments: list[str], **environment: str) -> Output:
    given = {**os.environ, "OPENAI_API_KEY": "none", **environment}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, env=given, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def llm(service: Background, tmp_path: Path) -> Llm:
    models = "".join(
        f"- model_id: {name}\n  model_name: {name}\n  api_base: {service.url}/v1\n  vision: true\n"
        for name in ("tiny", "gpt-9")
    )
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "extra-openai-models.yaml").write_text(models)
    return lambda *arguments: run([str(BIN / "llm"), *arguments], LLM_USER_PATH=str(tmp_path / "llm"))


def test_the_newest_openai_client(service: Background, reasoner: Reasoner, image: Path) -> None:
    code, out, err = run([str(BIN / "python"), "-c", OPENAI_CLIENT, f"{service.url}/v1", QUESTION, str(image), SHAPES])
    assert code == 0, err
    found, expected = json.loads(out), reasoner.ask(QUESTION)
    assert found["content"] == found["streamed"] == expected.answer
    assert found["reasoning"] == found["streamed_reasoning"] == expected.thought
    assert found["reasoning_tokens"] == expected.usage.thought_tokens
    assert found["same_usage"]
    assert found["seen"] == reasoner.ask(SHAPES, [str(image)]).answer
    assert found["models"] == ["tiny", "tiny"]
    assert found["errors"] == {
        "unknown model": [404, "model_not_found", "model"],
        "tools": [400, None, "tools"],
        "long": [400, "context_length_exceeded", "messages"],
    }


@pytest.mark.parametrize("options", [(), ("--no-stream",), ("-o", "temperature", "0", "-o", "seed", "3")])
def test_llm_asks_and_streams(llm: Llm, reasoner: Reasoner, options: tuple[str, ...]) -> None:
    code, out, err = llm("-m", "tiny", QUESTION, *options)
    assert (code, out.strip()) == (0, reasoner.ask(QUESTION).answer), err


def test_llm_shows_an_image_and_continues_a_conversation(llm: Llm, reasoner: Reasoner, image: Path) -> None:
    code, out, err = llm("-m", "tiny", SHAPES, "-a", str(image))
    assert (code, out.strip()) == (0, reasoner.ask(SHAPES, [str(image)]).answer), err
    code, out, err = llm("-c", QUESTION)
    assert code == 0, err
    assert out.strip()


def test_llm_counts_tokens(llm: Llm, reasoner: Reasoner) -> None:
    code, _, err = llm("-m", "tiny", QUESTION, "-u")
    usage = reasoner.ask(QUESTION).usage
    assert code == 0
    assert f"{usage.prompt_tokens} input" in err
    assert f'"reasoning_tokens": {usage.thought_tokens}' in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "gpt-9", QUESTION), "404 - model: found 'gpt-9', expected tiny"),
        (("-m", "tiny", QUESTION, "-o", "max_tokens", "0"), "400 - max_tokens: found '0'"),
        (("-m", "tiny", QUESTION, "-o", "frequency_penalty", "1"), "400 - frequency_penalty: not supported here"),
        (("-m", "tiny", "word " * 4000), "400 - the prompt has"),
    ],
)
def test_llm_shows_the_services_errors(llm: Llm, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = llm(*arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
