"""A question has one answer, whoever asks it: `ask`, the openai client, curl, a stream, and `batch`."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving.background import QUESTION, Background

from xreasoner.batching import run_batch
from xreasoner.chatting import Chat
from xreasoner.completion import Completion
from xreasoner.engines.base import Sampling
from xreasoner.errors import RequestError, UserError
from xreasoner.media import Guard
from xreasoner.reasoner import Reasoner
from xreasoner.serving.chat_request import RequestRules, parse_request
from xreasoner.serving.openai_schema import CHAT_FIELDS
from xreasoner.tiny.benchmarks import cell
from xreasoner.wire import ImageReference, apply_detail, chat_body, rendered_reply

CHAT = "/v1/chat/completions"


def client(service: Background) -> openai.OpenAI:
    return openai.OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0, timeout=60)


def user(content: Any = QUESTION) -> Any:
    return [{"role": "user", "content": content}]


def png(size: tuple[int, int] = (8, 8)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": png(), **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


# --- the prompt ------------------------------------------------------------------------------------------------------


def test_the_official_client_gets_what_ask_gives(service: Background, reasoner: Reasoner) -> None:
    expected = reasoner.ask(QUESTION)
    with client(service) as there:
        whole: Any = there.chat.completions.create(model="tiny", messages=user())
        streamed: Any = {"stream": True, "stream_options": {"include_usage": True}}  # as simonw's llm asks
        chunks: Any = list(there.chat.completions.create(model="tiny", messages=user(), **streamed))
    message = whole.choices[0].message
    assert (message.content, message.reasoning) == (expected.answer, expected.thought) == ("11", expected.thought)
    assert expected.thought
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == expected.answer
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == expected.thought
    assert chunks[-1].usage == whole.usage


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_gets_what_ask_gives(service: Background, reasoner: Reasoner) -> None:
    body = json.dumps({"messages": user()})
    command = ["curl", "-s", service.url + CHAT, "-H", "content-type: application/json", "-d", body]
    reply = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert reply["choices"][0]["message"]["reasoning"] == reasoner.ask(QUESTION).thought


def test_batch_gets_what_ask_gives(reasoner: Reasoner, tmp_path: Path) -> None:
    bodies = [
        {"messages": user()},
        {"messages": user(), "prompt": "none"},
        {"messages": user(), "prompt": "brief"},
        {"messages": user("Ana has 14 and Ben has 9. Who has more?"), "options": ["Ana", "Ben"], "logprobs": True},
    ]
    lines = [{"custom_id": f"q{k}", "body": body} for k, body in enumerate(bodies)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_batch(reasoner, tmp_path / "in.jsonl", tmp_path / "out.jsonl", Guard())
    rows = {row["custom_id"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    messages = [rows[f"q{k}"]["response"]["body"]["choices"][0]["message"] for k in range(4)]
    expected = reasoner.ask(QUESTION)
    assert (messages[0]["content"], messages[0]["reasoning"]) == (expected.answer, expected.thought)
    assert messages[1]["content"] != expected.answer
    assert messages[2] == messages[0]
    usage = rows["q0"]["response"]["body"]["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": expected.usage.thought_tokens}
    assert usage["total_tokens"] == expected.usage.total_tokens
    decided = reasoner.ask("Ana has 14 and Ben has 9. Who has more?", options=["Ana", "Ben"])
    body = rows["q3"]["response"]["body"]
    assert messages[3]["content"] == decided.answer
    shares = {option["text"]: option["probability"] for option in body["option_probabilities"]}
    assert shares == pytest.approx(decided.option_probabilities, abs=1e-4)
    assert len(body["choices"][0]["logprobs"]["content"]) == body["usage"]["completion_tokens"]


def test_raw_sends_messages_as_they_are(reasoner: Reasoner) -> None:
    with Background(lambda: reasoner, prompt="none") as raw, client(raw) as there:
        replies: Any = [
            there.chat.completions.create(model="tiny", messages=user(), extra_body=more)
            for more in ({}, {"prompt": "none"}, {"prompt": "default"})
        ]
    said = [reply.choices[0].message for reply in replies]
    assert said[0].content == said[1].content
    assert said[0].reasoning is None
    assert said[2].reasoning == reasoner.ask(QUESTION).thought


def test_options_and_images_get_what_ask_gives(service: Background, reasoner: Reasoner) -> None:
    problem = next(p for p in cell("general", "image", 8, 5) if p.options)
    buffer = io.BytesIO()
    problem.images[0].save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    expected = reasoner.ask(problem.question, problem.images, problem.options)
    shown = {"type": "image_url", "image_url": {"url": url}}
    with client(service) as there:
        for content in ([shown, text(problem.question)], [text(problem.question), shown]):
            reply: Any = there.chat.completions.create(
                model="tiny", messages=user(content), extra_body={"options": list(problem.options)}
            )
            assert reply.choices[0].message.content == expected.answer
            assert [option["probability"] for option in reply.option_probabilities] == pytest.approx(
                list((expected.option_probabilities or {}).values()), abs=1e-4
            )


def parsed(reasoner: Reasoner, messages: Any, **more: Any) -> list[Any]:
    return list(parse_request({"messages": messages, **more}, reasoner, Guard(), RequestRules()).request.messages)


def test_earlier_turns_are_as_they_were_written_and_without_thoughts(reasoner: Reasoner) -> None:
    earlier = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Who has more?"},
        {"role": "assistant", "content": "<think> 14 > 9 </think> <answer>Ana</answer>", "reasoning": "14 > 9"},
    ]
    found = parsed(reasoner, [*earlier, *user()])
    assert found[:3] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who has more?"},
        {"role": "assistant", "content": "Ana"},
    ]
    assert found[3:] == list(reasoner.request(QUESTION).messages)
    raw = parsed(reasoner, [*earlier, *user()], prompt="none")
    assert raw[2]["content"] == "<think> 14 > 9 </think> <answer>Ana</answer>"


def test_a_conversation_is_the_same_in_chat_and_in_the_service(service: Background, reasoner: Reasoner) -> None:
    chat = Chat(reasoner, budget=160)
    for line in (QUESTION, "And how much is 14 + 9?"):
        chat.line(line)
    answers = [message["content"] for message in chat.history if message["role"] == "assistant"]
    messages = [*user(), {"role": "assistant", "content": answers[0]}, *user("And how much is 14 + 9?")]
    assert post(service, {"messages": messages})["choices"][0]["message"]["content"] == answers[1]


def test_images_between_texts_stay_where_they_are(reasoner: Reasoner) -> None:
    content = [text("This: "), image(), text(" and <image> this: "), image(), text("?")]
    (message,) = parsed(reasoner, user(content))
    assert [part["type"] for part in message["content"]] == ["text", "image", "text", "image", "text"]
    assert message["content"][2]["text"] == " and <image> this: "
    assert message["content"][0]["text"].endswith("This: ")


def test_a_last_message_without_a_question_is_refused(reasoner: Reasoner) -> None:
    for content in ("", " ", [], [image()]):
        with pytest.raises(RequestError, match="messages"):
            parsed(reasoner, user(content))
    assert parsed(reasoner, user([image()]), prompt="none")


# --- fields ----------------------------------------------------------------------------------------------------------


def test_the_official_client_gets_the_model_by_its_name(reasoner: Reasoner) -> None:
    for name in ("tiny", "microsoft/X-Reasoner-7B", "/srv/models/my model"):
        named = Reasoner("tiny", engine=reasoner.engine)
        named.model = name
        with Background(lambda named=named: named) as running, client(running) as there:  # type: ignore[misc]
            assert there.models.retrieve(name).id == name == there.models.list().data[0].id
            with pytest.raises(openai.NotFoundError, match="expected"):
                there.models.retrieve("gpt-4o")


def test_the_official_clients_stream_helper_ends_with_the_whole_reply(service: Background, reasoner: Reasoner) -> None:
    with client(service) as there, there.chat.completions.stream(model="tiny", messages=user()) as stream:
        final: Any = stream.get_final_completion()
    assert final.choices[0].message.content == reasoner.ask(QUESTION).answer
    assert final.choices[0].finish_reason == "stop"


def test_every_neutral_value_at_once_by_the_official_client(service: Background) -> None:
    with client(service) as there:
        reply = there.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": "Hi", "name": "Ana"},
                {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
                {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
            ],
            **{"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "store": False, "metadata": {}},
            **{"response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0},
            **{"n": 1, "stop": None, "seed": None, "user": "me", "service_tier": "auto", "modalities": ["text"]},
            extra_body={"min_p": 0, "repetition_penalty": 1, "top_k": -1, "ignore_eos": False, "min_tokens": 0},
        )
    assert reply.choices[0].message.content


def test_the_official_client_names_every_field_that_is_refused(service: Background) -> None:
    with client(service) as there, pytest.raises(openai.BadRequestError) as refused:
        there.chat.completions.create(
            model="tiny", messages=user(), store=True, reasoning_effort="high", extra_body={"temprature": 1}
        )
    error: Any = refused.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    for name in ("store: ", "reasoning_effort: ", "temprature: unsupported field; did you mean temperature?"):
        assert name in error["message"]


def test_a_lenient_service_answers_and_lists_what_it_ignores(reasoner: Reasoner) -> None:
    with Background(lambda: reasoner, lenient=True) as running, client(running) as there:
        asked: Any = {"model": "tiny", "messages": [{**user()[0], "foo": 1}], "store": True, "extra_body": {"bar": 1}}
        raw = there.chat.completions.with_raw_response.create(**asked)
        reply: Any = raw.parse()
        assert raw.headers["x-xreasoner-ignored-fields"] == "store, bar, messages[0].foo"
        assert reply.ignored_fields == ["store", "bar", "messages[0].foo"]
        assert reply.choices[0].message.content == "11"
        first: Any = next(iter(there.chat.completions.create(**asked, stream=True)))
        assert first.ignored_fields == reply.ignored_fields
        with pytest.raises(openai.BadRequestError, match="top_p: found"):
            there.chat.completions.create(**asked, top_p=7)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**70),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(["user", "assistant", "text", "image_url", "auto", "none", "default", "data:,", "\ud800"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image_url", "url", "detail"]), inner),
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": VALUES}),
    max_size=3,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from([*CHAT_FIELDS, "foo"]), VALUES, max_size=4),
    messages=st.one_of(MESSAGES, VALUES),
    lenient=st.booleans(),
)
def test_any_body_is_read_or_refused_in_one_line(
    reasoner: Reasoner, fields: dict[str, Any], messages: Any, lenient: bool
) -> None:
    message = "read"
    try:
        parse_request({"messages": messages, **fields}, reasoner, Guard(), RequestRules(lenient=lenient))
    except UserError as refused:
        message = str(refused)
    assert message
    assert "\n" not in message


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "default", "model_pixels", "expected", "areas"),
    [
        (["auto", "auto"], 262_144, 10**7, None, [4_000_000, 4_000_000]),
        (["low"], 262_144, 10**7, 262_144, [4_000_000]),
        (["low"], 100_000, 10**7, 100_000, [4_000_000]),
        (["high"], 262_144, 10**7, 1_048_576, [4_000_000]),
        (["high"], 262_144, 400_000, 400_000, [400_000]),
        (["low", "high"], 262_144, 10**7, 1_048_576, [262_144, 4_000_000]),
        (["low", "auto"], None, 10**7, 10**7, [262_144, 4_000_000]),
        (["low"], None, 12_544, 12_544, [12_544]),
        (["low"], None, 0, None, [262_144]),
        (["high"], None, 0, None, [4_000_000]),
        (["low"], None, float("inf"), 262_144, [4_000_000]),
    ],
)
def test_detail_is_a_bound_of_the_area(
    details: list[str], default: int | None, model_pixels: float, expected: int | None, areas: list[int]
) -> None:
    images = [Image.new("L", (2000, 2000)) for _ in details]
    references = [ImageReference("", detail) for detail in details]
    found, most = apply_detail(images, references, default, model_pixels)
    assert most == expected
    assert [one.width * one.height for one in found] == pytest.approx(areas, rel=0.01)


@pytest.mark.parametrize("detail", ["low", "high", "auto", None])
def test_every_detail_is_accepted(service: Background, detail: Any) -> None:
    with client(service) as there:
        reply = there.chat.completions.create(
            model="tiny",
            messages=user([image(detail=detail), text("What is it?")]),
            extra_body={"thinking_budget": 2, "answer_budget": 2},
        )
    assert reply.usage
    assert reply.usage.prompt_tokens > 0


def test_every_bad_image_of_a_request_is_named_at_once(service: Background) -> None:
    bad = [{"type": "image_url", "image_url": {"url": url}} for url in ("data:image/png;base64,AAAA", "/etc/passwd")]
    with client(service) as there, pytest.raises(openai.BadRequestError) as refused:
        there.chat.completions.create(model="tiny", messages=user([bad[0], image(), bad[1], text("What?")]))
    assert re.search(r"1 of 3 .*; .* 3 of 3 ", str(refused.value))


# --- streams ---------------------------------------------------------------------------------------------------------


class ScriptedTicket:
    """A request whose reply is written already."""

    def __init__(self, reply: str) -> None:
        import threading

        self.done = threading.Event()
        self.done.set()
        thought, answer = rendered_reply(reply)
        self.completions = [Completion(reply, (), (), (), thought, answer, "natural", 1, 1, 1)]

    def cancel(self) -> None:
        pass


TAGS = ("<", "<think>", "</think>", "<answer>", "</answer>", "<thi", "</", " ", "\n", "\n\n", "Ana", "5 < 7", "é", "答")
replies = st.lists(st.one_of(st.sampled_from(TAGS), st.text(max_size=3)), max_size=10).map("".join)


@pytest.fixture(scope="module")
def scripted(reasoner: Reasoner) -> Any:
    """A service whose model writes what the test says, in the pieces that it says."""
    pieces: list[str] = []
    scripted = Reasoner("tiny", engine=reasoner.engine)

    class Engine:
        name = "scripted"
        loaded = reasoner.engine.loaded  # type: ignore[attr-defined]
        info = reasoner.engine.info

        def submit(self, request: Any, on_done: Any = None, on_text: Any = None) -> ScriptedTicket:
            for piece in pieces:
                if on_text is not None:
                    on_text(0, piece)
            return ScriptedTicket("".join(pieces))

        def step(self) -> bool:
            return False

    scripted.engine = Engine()  # type: ignore[assignment]
    with Background(lambda: scripted) as running:
        yield running, pieces


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reply=replies, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_a_streamed_and_a_whole_reply_are_equal_for_every_text(scripted: Any, reply: str, cuts: list[int]) -> None:
    running, pieces = scripted
    places = sorted({0, len(reply), *(cut for cut in cuts if cut < len(reply))})
    pieces[:] = [reply[a:b] for a, b in pairwise(places)]
    whole = post(running, {"messages": user()})["choices"][0]["message"]
    deltas = [choice["delta"] for event in stream(running, {"messages": user()}) for choice in event["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == (whole["reasoning"] or "")
    assert not any(tag in whole["content"] for tag in ("<answer>",)) or reply.count("<answer>") > 1


@pytest.mark.parametrize("reply", ["<", "<<", "5 <", "<think> a </think> <", "<think> a </think> <answer>x<", "  ", ""])
def test_the_beginning_of_a_tag_is_text_where_nothing_follows(scripted: Any, reply: str) -> None:
    running, pieces = scripted
    pieces[:] = list(reply)
    whole = post(running, {"messages": user()})["choices"][0]["message"]
    deltas = [choice["delta"] for event in stream(running, {"messages": user()}) for choice in event["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    assert whole["content"].endswith("<") == reply.endswith("<")


def post(service: Background, body: Any) -> Any:
    return json.loads(_post(service, body))


def stream(service: Background, body: Any) -> list[Any]:
    lines = _post(service, {**body, "stream": True}).split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]


def _post(service: Background, body: Any) -> str:
    import urllib.request

    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(service.url + CHAT, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return str(reply.read().decode())


def test_chat_body_has_its_usage() -> None:
    completion = Completion("<think> a </think> <answer>b</answer>", (), (), (), "a", "b", "refused", 5, 3, 2)
    body = chat_body([completion], "tiny")
    assert body["usage"]["total_tokens"] == 10
    assert body["choices"][0]["finish_reason"] == "content_filter"
    assert time.time() - body["created"] < 5
    assert Sampling().stop == ()
