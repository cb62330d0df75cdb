"""`Reasoner`: the card's snippets as one call, over the torch engine and over a real server."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from engines.served import Served
from PIL import Image

from xreasoner import Reasoner
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.info import EngineInfo
from xreasoner.engines.openai_engine import OpenAIEngine
from xreasoner.engines.opening import addresses, open_engine, placed
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import MediaError, UserError
from xreasoner.media import Guard
from xreasoner.models.loading import load
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS, chat_messages
from xreasoner.tiny import benchmarks
from xreasoner.trace import split
from xreasoner.wire import read_chat

QUESTION = "Ana has 14, Ben has 9, Cara has 20. By how much does the highest score exceed the lowest?"


@pytest.fixture(scope="module")
def tiny() -> Reasoner:
    return Reasoner("tiny")


def test_the_package_gives_it_and_stays_quick() -> None:
    program = "import sys, xreasoner; assert 'torch' not in sys.modules; print(xreasoner.Reasoner.__name__)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout == "Reasoner\n", result.stderr
    with pytest.raises(ImportError):
        from xreasoner import nonsense  # type: ignore[attr-defined]  # noqa: F401


def test_one_call(tiny: Reasoner) -> None:
    answer = tiny.ask(QUESTION)
    trace = split(answer.text)
    assert (answer.thought, answer.answer) == (trace.thought, trace.answer)
    assert answer.exit == "natural"
    assert answer.usage.prompt_tokens > 20
    assert answer.usage.thought_tokens + answer.usage.answer_tokens == len(answer.completion.token_ids)
    assert answer.option_probabilities is None
    assert tiny.ask(QUESTION) == answer  # greedy


def test_options_have_probabilities(tiny: Reasoner) -> None:
    answer = tiny.ask("Ana has 14 and Ben has 9. Who has more?", options=["Ana", "Ben"])
    assert answer.option_probabilities is not None
    assert list(answer.option_probabilities) == ["Ana", "Ben"]
    assert sum(answer.option_probabilities.values()) == pytest.approx(1)
    assert answer.mass is not None
    assert 0 < answer.mass <= 1
    assert tiny.ask("Who?", options=["Ana", "Ben"], probabilities=False).mass is None
    same = tiny.ask("Who?", options=["Ana", "Ana"], thinking_budget=4, answer_budget=1)
    assert list(same.option_probabilities or ()) == ["A: Ana", "B: Ana"]


def _picture() -> Image.Image:
    (problem,) = benchmarks.cell("general", "image", 1, 3)
    return problem.images[0]


def test_a_picture_in_every_form_is_the_same_picture(tiny: Reasoner, tmp_path: Path, monkeypatch: Any) -> None:
    picture = _picture()
    picture.save(tmp_path / "it.png")
    monkeypatch.chdir(tmp_path)
    data = (tmp_path / "it.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = ["it.png", Path("it.png"), str(tmp_path / "it.png"), (tmp_path / "it.png").as_uri(), uri, data, picture]
    requests = [tiny.request("What is it?", [form]) for form in forms]
    assert len({request.images[0].tobytes() for request in requests}) == 1
    texts = {tiny.ask("What is it?", [form], thinking_budget=8, answer_budget=2).text for form in (forms[0], forms[-1])}
    assert len(texts) == 1


def test_addresses_inside_the_machine_are_not_fetched(tiny: Reasoner) -> None:
    with pytest.raises(MediaError, match=r"127\.0\.0\.1"):
        tiny.ask("What is it?", ["http://127.0.0.1/it.png"])


def test_a_picture_by_its_address(tiny: Reasoner, tmp_path: Path) -> None:
    _picture().save(tmp_path / "it.png")

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        reasoner = Reasoner("tiny", engine=tiny.engine, guard=Guard(private_hosts=frozenset({host})))
        request = reasoner.request("What is it?", [f"http://{host}/it.png"])
        server.shutdown()
    assert request.images[0].tobytes() == _picture().tobytes()


def test_pieces_are_labelled_and_join_to_the_answer(tiny: Reasoner) -> None:
    stream = tiny.stream(QUESTION)
    pieces = list(stream)
    answer = stream.answer
    assert answer == tiny.ask(QUESTION)
    for label, text in (("thought", answer.thought), ("answer", answer.answer)):
        assert "".join(piece.text for piece in pieces if piece.label == label).strip() == text
    labels = [piece.label for piece in pieces]
    assert labels == sorted(labels, reverse=True)
    assert len(labels) > 10


def test_a_stream_that_is_left_is_ended_and_one_that_is_cancelled_keeps_what_it_has(tiny: Reasoner) -> None:
    for _ in tiny.stream(QUESTION):
        break
    assert isinstance(tiny.engine, TorchEngine)
    assert not all(tiny.engine.step() for _ in range(3))  # nothing is left to do
    stream = tiny.stream(QUESTION)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == 5:
            stream.cancel()
    assert stream.answer.exit == "aborted"
    assert stream.answer.thought.startswith("".join(piece.text for piece in pieces).strip()[:10])
    assert stream.answer.answer == ""


def test_many_come_as_they_finish_with_their_ids(tiny: Reasoner, capsys: pytest.CaptureFixture[str]) -> None:
    problems: list[Any] = [
        {"id": "long", "question": QUESTION},
        {"question": "Ana has 14 and Ben has 9. Who has more?", "options": ["Ana", "Ben"]},
        *benchmarks.cell("general", "image", 2, 4),
        QUESTION,
    ]
    found = {answer.id: answer for answer in tiny.ask_many(problems, progress=True)}
    assert set(found) == {"long", "1", "4", problems[2].id, problems[3].id}
    assert found["long"].text == found["4"].text == tiny.ask(QUESTION).text
    assert found["1"].option_probabilities
    assert "answers: 5/5" in capsys.readouterr().out


def test_many_are_not_read_before_they_are_needed(tiny: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["xreasoner.engines.driving"].finished, "__defaults__", (4,))
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"Ana has {read} and Ben has 9. What is the total?"

    answers = tiny.ask_many(endless(), thinking_budget=6, answer_budget=2)
    assert len([next(answers) for _ in range(6)]) == 6
    assert read <= 16
    answers.close()  # type: ignore[attr-defined]
    assert not all(tiny.engine.step() for _ in range(3))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"question": "x", "picture": "a.png"}, ["'bad'", "'picture'", "question"]),
        ({"question": 7}, ["'bad'", "question 7"]),
        ({"question": "x", "images": "nowhere.png"}, ["'bad'", "nowhere.png", "No such file"]),
        ({"question": "x", "options": "a or b"}, ["options is a text"]),
        ({"question": "x", "images": ["nowhere.png"]}, ["'bad'", "nowhere.png", "No such file"]),
        ({"question": " "}, ["'bad'", "empty"]),
    ],
)
def test_a_bad_problem_is_named(tiny: Reasoner, problem: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        list(tiny.ask_many([{"id": "bad", **problem}]))
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(UserError, match="is there twice"):
        list(tiny.ask_many([{"id": "a", "question": "x"}, {"id": "a", "question": "x"}], answer_budget=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"thinking_budgets": 5}, "did you mean 'thinking_budget'"),
        ({"options": ["one"]}, "two or more"),
        ({"answer_budget": 0}, "answer_budget is 0"),
    ],
)
def test_bad_options_are_named(tiny: Reasoner, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny.ask(QUESTION, **options)


def test_defaults_are_the_cards(random_folder: Path) -> None:
    ours, tiny = Reasoner(str(random_folder)), Reasoner("tiny", thinking_budget=7, prompt="card-mc")
    assert ours.sampling.temperature == 0.6
    assert tiny.sampling.temperature == 0.0
    assert tiny.sampling.thinking_budget == 7
    assert ours.min_pixels is None  # this checkpoint takes no picture of 262,144 pixels
    assert ours.sampling.answer_budget + Reasoner("http://x", engine=ours.engine).sampling.answer_budget == 512
    request = tiny.request("Is there a dog?", [_picture()], ["Yes", "No"])
    text, image, question = request.messages[0]["content"]
    assert text["text"] + " " == PROMPTS["card-mc"].partition("{")[0] + " "
    assert image == {"type": "image"}
    assert question["text"] == "Is there a dog? A. Yes B. No"
    assert Reasoner("tiny", system="Be brief.").request("x").messages[0] == {"role": "system", "content": "Be brief."}


def test_a_big_checkpoint_gets_the_cards_pixels_and_budget(tiny: Reasoner) -> None:
    class Big:
        info = EngineInfo(model_name="big", context_length=32768)

    big = Reasoner("somebody/big", engine=Big())  # type: ignore[arg-type]
    assert (big.min_pixels, big.max_pixels) == (262144, 262144)
    assert big.sampling.thinking_budget + big.sampling.answer_budget == 4000
    assert big.request("x").min_pixels == 262144
    lower = Reasoner("somebody/big", engine=big.engine, max_pixels=9000)
    higher = Reasoner("somebody/big", engine=big.engine, min_pixels=300_000)
    assert (lower.min_pixels, lower.max_pixels) == (9000, 9000)  # the card's least gives way to what is asked for
    assert (higher.min_pixels, higher.max_pixels) == (300_000, 300_000)
    body = {"messages": [{"role": "user", "content": "x"}], "max_pixels": 9000}
    asked = read_chat(body, big.sampling, Guard(), big.min_pixels, big.max_pixels)
    assert (asked.min_pixels, asked.max_pixels) == (9000, 9000)
    Big.info = EngineInfo(model_name="big", context_length=4096)
    assert Reasoner("somebody/big", engine=Big()).sampling.thinking_budget == 2048  # type: ignore[arg-type]
    with pytest.raises(UserError, match="other way round"):
        Reasoner("tiny", engine=tiny.engine, min_pixels=5000, max_pixels=4000)


def test_over_a_server_it_is_the_same_call(tiny: Reasoner) -> None:
    with Served(load("tiny")) as served, Reasoner(served.url) as remote:
        assert isinstance(remote.engine, OpenAIEngine)
        assert remote.model == "tiny"
        question = "Ana has 14 and Ben has 9. Who has more?"
        theirs, ours = (r.ask(question, [_picture()], ["Ana", "Ben"]) for r in (remote, tiny))
        assert (theirs.thought, theirs.answer, theirs.exit) == (ours.thought, ours.answer, ours.exit)
        assert theirs.option_probabilities == pytest.approx(ours.option_probabilities, abs=1e-3)
        stream = remote.stream(question)
        assert "".join(piece.text for piece in stream if piece.label == "thought").strip() == stream.answer.thought
        found = {answer.id: answer.text for answer in remote.ask_many([QUESTION, question])}
        assert found == {str(k): tiny.ask(text).text for k, text in enumerate((QUESTION, question))}
        served.fault = "no-logprobs"
        assert remote.ask(question, options=["Ana", "Ben"], answer_budget=8).option_probabilities is None


def test_several_servers_and_an_end_without_a_word(tiny: Reasoner) -> None:
    with Served(load("tiny")) as one, Served(load("tiny")) as two:
        program = f"""
from xreasoner import Reasoner
r = Reasoner([{one.url!r}, {two.url!r}])
print(sorted(a.text for a in r.ask_many(["Ana has 14.", "Ben has 9.", "Cara has 3."], thinking_budget=9)))
"""
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert result.stderr == ""
        assert one.bodies
        assert two.bodies
    texts = (tiny.ask(f"{who}.", thinking_budget=9).text for who in ("Ana has 14", "Ben has 9", "Cara has 3"))
    assert result.stdout.strip() == str(sorted(texts))


def test_what_is_opened() -> None:
    assert addresses("http://a/v1,http://b/v1") == addresses(["http://a/v1", "http://b/v1"])
    assert addresses("tiny") == []
    for model, engine in (("http://a/v1", "torch"), ("tiny", "openai"), ("tiny", "magic"), (["tiny", "x"], None)):
        with pytest.raises(UserError, match="expected"):
            open_engine(model, engine=engine)
    with pytest.raises(UserError, match="some are not"):
        open_engine("http://a/v1,tiny")
    with pytest.raises(UserError, match="colour"):
        open_engine("tiny", colour="red")
    with pytest.raises(UserError, match="dtype 'float8'"):
        open_engine("tiny", dtype="float8")


def test_a_model_goes_over_all_gpus_as_in_the_cards_snippet() -> None:
    everywhere = {"device_map": "auto"}
    assert placed(None, gpus=True) == placed("auto", gpus=True) == placed("auto", gpus=False) == everywhere
    assert placed(None, gpus=False) == {}
    assert placed("cuda:1", gpus=True) == {"device": "cuda:1"}
    by_name = Reasoner("tiny", device_map="auto").ask(QUESTION, thinking_budget=4, answer_budget=2)
    assert by_name.text == Reasoner("tiny", device="cpu").ask(QUESTION, thinking_budget=4, answer_budget=2).text


def _content(question: str, n: int, prompt: str = "brief") -> list[str]:
    images = tuple(Image.new("RGB", (28, 28)) for _ in range(n))
    (message,) = chat_messages(Problem("x", question, "", "text", images=images), prompt)
    return [part.get("text", "*") for part in message["content"]]


def test_pictures_keep_their_places() -> None:
    end = "\nThink, then answer."
    assert _content("Same?", 2) == ["*", "*", "Same?" + end]
    assert _content("Is <image> like <image>?", 2) == ["Is ", "*", " like ", "*", "?" + end]
    assert _content("<image 1> or <image 2>", 2) == ["*", " or ", "*", end]
    assert _content("<image 2> or <image 1>", 2) == ["*", "*", "<image 2> or <image 1>" + end]  # not in their order
    assert _content("one <image>", 2) == ["*", "*", "one <image>" + end]
    assert _content("see <image>", 0) == ["see <image>" + end]
    assert _content("Dog?", 1, "card-mc") == [PROMPTS["card-mc"].partition("{")[0], "*", "Dog?"]
    assert _content("Dog in <image>?", 1, "card-mc")[1:] == ["*", "?"]


def test_the_request_says_what_the_engine_is_to_do(tiny: Reasoner) -> None:
    request = tiny.request("x", temperature=1.0, seed=4)
    assert isinstance(request, Request)
    assert request.sampling == Sampling(**{**_fields(tiny.sampling), "temperature": 1.0, "seed": 4})


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__}


def test_bytes_that_are_no_picture_are_named(tiny: Reasoner) -> None:
    buffer = io.BytesIO()
    _picture().save(buffer, "PNG")
    with pytest.raises(MediaError, match="damaged"):
        tiny.ask("x", [buffer.getvalue()[:-100]])


def test_one_image_needs_no_list(tiny: Reasoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (56, 56), "red")
    image.save(tmp_path / "shapes.png")
    data = (tmp_path / "shapes.png").read_bytes()
    expected = tiny.request("What is it?", ["shapes.png"])
    single: list[Any] = ["shapes.png", tmp_path / "shapes.png", data, bytearray(data), image]
    for reference in single:
        request = tiny.request("What is it?", reference)
        assert [each.tobytes() for each in request.images] == [expected.images[0].tobytes()]
    with pytest.raises(MediaError, match=r"1 of 1 .*shpes\.png"):
        tiny.ask("What is it?", images="shpes.png")
    (answer,) = tiny.ask_many([{"question": "What is it?", "images": "shapes.png"}], progress=False)
    assert answer.usage.prompt_tokens > tiny.ask("What is it?").usage.prompt_tokens


def test_an_answer_prints_in_one_short_line(tiny: Reasoner) -> None:
    answer = tiny.ask("Ana has 14, Ben has 9, Cara has 20. Who has the score closest to 12?", options=["Ana", "Ben"])
    shown = repr(answer)
    assert shown.startswith("Answer(answer=")
    assert "usage=Usage(prompt_tokens=" in shown
    assert "False" not in shown
    assert len(shown) < 400


def test_a_budget_that_is_cut_is_told() -> None:
    with pytest.warns(UserWarning, match=r"thinking budget 100,000 reduced to [\d,]+ tokens, half of"):
        assert Reasoner("tiny", thinking_budget=100_000).sampling.thinking_budget < 100_000
