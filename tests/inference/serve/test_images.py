"""Images in conversations: what the engine is told of them, what a client may not send, and answers of a model."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mm01_jax.data.tokenizer import open_tokenizer  # noqa: E402
from mm01_jax.inference import pictures  # noqa: E402
from mm01_jax.inference.serve import body, images  # noqa: E402
from mm01_jax.inference.serve.__main__ import main  # noqa: E402
from mm01_jax.inference.serve.engine_loop import shown  # noqa: E402
from tests.data import conversation_data as data  # noqa: E402
from tests.faults.hostile_images import CASES, png_header  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402
from tests.inference.serve.running import Server  # noqa: E402
from tests.inference.serve.test_openai_client import comply  # noqa: E402

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
WHERE = "messages[0].content[1]"
URL = f"{WHERE}.image_url.url"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("images")
    (found / "a b.png").write_bytes(data.png(30, 10, seed=1))
    return found


@pytest.fixture(scope="module")
def running(folder):
    with fronts.running(vision=dataclasses.asdict(data.VISION), images=str(folder)) as found:
        yield found


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def part(url: str, **more) -> dict:
    return {"type": "image_url", "image_url": {"url": url} | more}


def asking(*parts, text: str = "What?", **more) -> dict:
    content = [{"type": "text", "text": text}, *parts]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4} | more


def asked_of_engine(running, path: str, wanted: dict) -> tuple[dict, dict]:
    """(what the engine heard, the answer)."""
    while not running.engine.heard.empty():
        running.engine.heard.get()
    status, said, _ = running.ask(path, wanted)
    assert status == 200, said
    return running.engine.heard.get(timeout=10), said


def test_the_engine_is_told_what_the_command_would_see(running, folder):
    wide = data.png(40, 15, seed=2)
    heard, _ = asked_of_engine(running, CHAT, asking(part(uri(wide)), text=""))
    ask = pictures.ask([{"role": "user", "content": "<image>"}], [wide], open_tokenizer("bytes"), data.VISION)
    np.testing.assert_array_equal(shown(heard["shows"], data.VISION).tiles, pictures.show(ask, data.VISION).tiles)
    first, second = data.png(20, 20, seed=0), folder / "a b.png"
    parts = [part(uri(first), detail="high"), {"type": "text", "text": "and"}, part(f"file://{folder}/a%20b.png")]
    heard, said = asked_of_engine(running, CHAT, asking(*parts, text="Look:"))
    messages = [{"role": "user", "content": "Look:<image>and<image>"}]
    ask = pictures.ask(messages, [first, str(second)], open_tokenizer("bytes"), data.VISION)
    wanted, found = pictures.show(ask, data.VISION), shown(heard["shows"], data.VISION)
    np.testing.assert_array_equal(found.tiles, wanted.tiles)
    np.testing.assert_array_equal(found.index, wanted.index)
    assert heard["prompt"] == ask.ids.tolist()
    assert said["usage"]["prompt_tokens"] == len(ask.ids) > (ask.index >= 0).sum() > 8  # the images' are counted
    flat = [{"type": "input_text", "text": "Look:"}, {"type": "input_image", "image_url": uri(first)}]
    flat += [{"type": "input_text", "text": "and"}, {"type": "input_image", "image_url": f"file://{folder}/a%20b.png"}]
    asked = {"model": "tiny", "input": [{"role": "user", "content": flat}], "max_output_tokens": 4}
    again, _ = asked_of_engine(running, RESPONSES, asked)
    assert (again["prompt"], again["shows"]) == (heard["prompt"], heard["shows"])
    counted = running.ask("/tokenize", {"messages": asking(*parts, text="Look:")["messages"]})[1]
    assert counted["tokens"] == heard["prompt"]


REFUSED = [
    ("https://example.org/a.png", "data:image/TYPE"),
    ("http://127.0.0.1:1/a.png", "data:image/TYPE"),
    ("a.png", "data:image/TYPE"),
    ("", "data:image/TYPE"),
    ("data:text/plain;base64,aGk=", "data:image/TYPE"),
    ("data:image/png,abc", "data:image/TYPE"),
    ("data:image/png;base64,a$c=", "no base64"),
    ("data:image/png;base64,", "is empty"),
    ("file:///etc/passwd", "no file of the server's folder"),
    ("file:///etc/there-is-none", "no file of the server's folder"),
    ("file://FOLDER/../secret.png", "no file of the server's folder"),
    ("file://FOLDER/%2e%2e/secret.png", "no file of the server's folder"),
    ("file://FOLDER/out.png", "no file of the server's folder"),
    ("file://elsewhereFOLDER/a%20b.png", "no file of the server's folder"),
    ("file://[FOLDER/a", "no file of the server's folder"),
    ("file://FOLDER/%00", "no file of the server's folder"),
    ("file://FOLDER/%ff", "no file of the server's folder"),
    ("file://FOLDER", "is a directory"),
    ("file://FOLDER/none.png", "No such file"),
]


def test_whatever_is_no_image_that_may_be_shown_is_refused_by_its_field(running, folder):
    (folder.parent / "secret.png").write_bytes(data.png(20, 20, seed=0))
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    for url, said in REFUSED:
        status, body, _ = running.ask(CHAT, asking(part(url.replace("FOLDER", str(folder)))))
        error = body["error"]
        assert (status, error["param"], error["code"]) == (400, URL, "invalid_image"), (url, error)
        assert said in error["message"], (url, error)
    good = uri(data.png(20, 20, seed=0))
    for wrong, named in (
        ({"type": "image_url"}, f"{WHERE}.image_url"),
        ({"type": "image_url", "image_url": good}, f"{WHERE}.image_url"),
        (part(good, detail="low"), f"{WHERE}.image_url.detail"),
        (part(3), URL),
        ({"type": "image", "image": good}, f"{WHERE}.type"),
        ({"type": "text", "text": "<image>"}, "messages"),
    ):
        status, body, _ = running.ask(CHAT, asking(wrong))
        assert (status, body["error"]["param"]) == (400, named), body
    system = {"model": "tiny", "messages": [{"role": "system", "content": [part(good)]}]}
    assert running.ask(CHAT, system)[1]["error"]["param"] == "messages[0].content[0].type"
    for prompt, named in (("<image>?", "prompt"), (["x", "<image>?"], "prompt[1]")):
        status, body, _ = running.ask("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 2})
        assert (status, body["error"]["param"]) == (400, named), body
    assert running.is_well()


def test_hostile_images_are_refused_and_the_next_request_is_answered(running, folder, tmp_path):
    refused = 0
    for number, (name, (make, why)) in enumerate(CASES.items()):
        path = folder / f"hostile{number}"
        make(path)
        urls = [f"file://{path}"]
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20:
            urls.append(uri(path.read_bytes(), "jpeg"))
        for url in urls:
            status, said, _ = running.ask(CHAT, asking(part(url)))
            error = said["error"]
            assert status == 400 and error["param"] == URL and str(folder) not in error["message"], (name, error)
            assert re.search(f"{why}|no file of the server's folder", error["message"]), (name, error)
            refused += 1
    assert running.is_well() and refused > 100


def test_images_are_bounded_in_number_and_pixels_and_a_body_in_bytes(running):
    small_one = uri(data.png(2, 2, seed=0))
    status, said, _ = running.ask(CHAT, asking(*[part(small_one)] * (images.MOST_IMAGES + 1)))
    assert status == 400 and said["error"]["param"] == "messages"
    large = uri(png_header(8192, 8192))  # whose pixels nobody decodes
    status, said, _ = running.ask(CHAT, asking(*[part(large)] * 5))
    assert status == 400 and "pixels" in said["error"]["message"], said
    status, said, _ = running.ask(CHAT, asking(*[part(small_one)] * 200, max_tokens=4000))
    assert status == 400 and said["error"]["code"] == "context_length_exceeded", said
    raw = json.dumps(asking(part("data:image/png;base64," + "A" * body.MOST_WITH_IMAGES))).encode()
    assert running.ask(CHAT, raw)[0] == 413
    assert running.is_well()


def test_a_model_of_text_takes_no_image_and_a_model_that_sees_no_other_template(folder):
    good = part(uri(data.png(20, 20, seed=0)))
    with fronts.running() as running:
        assert running.ask(CHAT, asking(good))[1]["error"]["param"] == f"{WHERE}.type"
    with fronts.running(vision=dataclasses.asdict(data.VISION), template="minimax-m1") as running:
        pytest.importorskip("jinja2")
        status, said, _ = running.ask(CHAT, asking(good))
        assert status == 400 and ("template" in said["error"]["message"] or "token" in said["error"]["message"])
        url = f"file://{folder}/a%20b.png"
        assert "--images=DIR" in running.ask(CHAT, asking(part(url)))[1]["error"]["message"]


@pytest.fixture(scope="module")
def model(vl_run, folder):
    """A server of a model whose images decide what it says."""
    flags = f"--checkpoint={vl_run}", "--template=minimax-01", "--context=896", "--slots=4", f"--images={folder}"
    with Server(*flags) as server:
        server.url = server.until(r"(http://\S+/v1) serves")[1]
        yield server


@pytest.mark.slow
def test_answers_are_those_of_the_pixels_and_what_was_remembered_is_found_by_them_alone(model):
    def ask(seed: int, **more) -> tuple[str, int]:
        long = asking(part(uri(data.png(30, 15, seed=seed))), text="x" * 90, temperature=0, **more)
        said = model.ask(CHAT, long)[1]
        return said["choices"][0]["message"]["content"], said["usage"]["prompt_tokens_details"]["cached_tokens"]

    (first, none), (other, shared) = ask(1), ask(2)
    assert first != other and none == 0 and shared <= 64 < 110  # the text before the image alone
    assert [ask(seed)[0] for seed in (1, 2, 1)] == [first, other, first]
    assert ask(1)[1] > shared
    text = asking(part(uri(data.png(30, 15, seed=1))), text="x" * 90, temperature=0, n=2)["messages"]
    assert model.streamed(CHAT, {"messages": text, "temperature": 0, "max_tokens": 4}) == first


@pytest.mark.slow
def test_llm_comply_passes_with_images(running):
    pytest.importorskip("llm_comply")
    url = f"http://127.0.0.1:{running.port}/v1"
    running.engine.says = "A picture."
    for kind, case in (("openai-chat", "chat-image-input"), ("open-responses", "image-input")):
        assert comply(url, "tiny", kind, "-f", case) == {case: "passed"}
    running.engine.says = None


def test_a_folder_of_images_that_is_none_is_refused_before_anything_is_loaded(tmp_path, capsys):
    assert main([f"--checkpoint={tmp_path}", f"--images={tmp_path}/none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
