"""Chat templates that come with a checkpoint: what they make of a conversation, and what a stranger's code may not."""

import json
import os
import subprocess
import time

import numpy as np
import pytest

from mm01_jax.data import renderings, templates
from mm01_jax.data.conversations import BEGIN, END
from mm01_jax.data.templates import Released, Template
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenizer import BytesTokenizer

pytest.importorskip("jinja2")
BYTES = BytesTokenizer()
HEADER = (
    f"{BEGIN}{{{{ {{'system': 'system ai_setting=assistant', 'user': 'user name=user', "
    "'assistant': 'ai name=assistant', 'function': 'system function_response=functions'}[message.role] }}{{ '\\n' }}"
)
TOOL = f"{BEGIN}system function_setting=functions\n{{{{ tool | tojson }}}}{END}\n"
TOOLS = f"{{% for tool in tools or [] %}}{TOOL}{{% endfor %}}"
ASK = f"{{% if add_generation_prompt %}}{BEGIN}ai name=assistant{{{{ '\\n' }}}}{{% endif %}}"


def template(content: str, ask: str = ASK) -> Template:
    """MiniMax's template as jinja writes it; `content` is what it makes of a message's."""
    loop = f"{{% for message in messages %}}{HEADER}{content}{END}\n{{% endfor %}}"
    return Template(loop + TOOLS + ask, "template.jinja", {"bos_token": "<s>"})


TEXT = template("{{ message.content }}")
PARTS = template("{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is é?"},
    {"role": "assistant", "content": "A letter."},
    {"role": "function", "content": '{"name": "f", "response": 1}'},
    {"role": "user", "content": [{"type": "text", "text": f" Sure? {END} <s> "}]},
    {"role": "assistant", "content": "Yes.\n"},
]


@pytest.mark.parametrize("given", [TEXT, PARTS], ids=["text", "parts"])
def test_a_template_gives_the_ids_and_answers_of_the_released_one_whatever_form_it_wants_content_in(given):
    want = Released().render(CHAT, BYTES)
    found = given.render(CHAT, BYTES)
    np.testing.assert_array_equal(found.ids, want.ids)
    np.testing.assert_array_equal(found.answer, want.answer)
    tools = [{"name": "f", "parameters": {"type": "é"}}]
    np.testing.assert_array_equal(given.ids(CHAT[:2], BYTES, tools), Released().ids(CHAT[:2], BYTES, tools))
    assert given.stop(BYTES) == Released().stop(BYTES) == BYTES.special(END)


def test_the_name_of_a_special_token_in_what_a_person_wrote_is_text():
    ids = TEXT.ids(CHAT[4:5], BYTES).tolist()
    assert ids.count(BYTES.special(END)) == 1  # the template's own
    assert f"user name=user\n Sure? {END} <s> ".encode() in bytes(ids)
    private = "\ue000\ue001 of a private alphabet"
    assert private.encode() in bytes(TEXT.ids([{"role": "user", "content": private}], BYTES).tolist())


def test_a_conversation_that_leaves_no_private_character_is_refused():
    private = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(ValueError, match="all 6,400 characters of private use; allowed: all but one"):
        TEXT.ids([{"role": "user", "content": private}], BYTES)
    said = TEXT.ids([{"role": "user", "content": f"{private[:-1]} {END}"}], BYTES).tolist()
    assert said.count(BYTES.special(END)) == 1 and f"{private[:-1]} {END}".encode() in bytes(said)


def test_tools_stand_after_all_messages_and_before_the_answer_that_is_to_come():
    ids = Released().ids(CHAT[:2], BYTES, [{"name": "f"}])
    names = {BYTES.special(name): name.encode() for name in (BEGIN, END)}
    text = b"".join(names.get(int(i), bytes([int(i)])) for i in ids).decode()
    assert text.endswith(
        f'What is é?{END}\n{BEGIN}system function_setting=functions\n{{"name": "f"}}{END}\n{BEGIN}ai name=assistant\n'
    )


def test_what_transformers_gives_a_template_is_there():
    source = (
        "{{ bos_token }}{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}{{ strftime_now('%Y')[:2] }}"
        "{{ {'é': '<'} | tojson }}"
    )
    ids = Template(source, "x", {"bos_token": "^"}).ids([{"role": "user", "content": c} for c in "abc"], BYTES)
    assert bytes(ids.tolist()).decode() == '^ab20{"é": "<"}'


# What a template must not do, and what is said of it.
HOSTILE = {
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ ''['__cl' ~ 'ass__'].mro() }}": "unsafe",
    "{{ messages.__init__.__globals__ }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "unsafe",
    "{{ self.__init__.__globals__ }}": "unsafe",
    "{{ raise_exception.__globals__ }}": "leaves out",
    "{{ strftime_now.__globals__.sys.modules }}": "unsafe",
    "{{ messages.append(messages[0]) }}": "unsafe",
    "{{ messages[0].update(role='system') }}": "unsafe",
    "{{ '%s' | format(x.__class__) }}": "leaves out",
    "{{ '{0.__class__}'.format(1) }}": "leaves out",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import '/etc/passwd' as x %}": "no loader",
    "{{ lipsum(n=3) }}": "leaves out",
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10 ** 10 }}": "memory",
    "{{ 'a' * 2000000 }}": "characters of text",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for %}": "line 1",
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ nothing.here }}": "undefined",
    "constant": "leaves out what a message says",
}


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_or_broken_template_is_refused_in_one_line(source):
    with pytest.raises(ValueError, match=r"^x\.jinja: chat template: ") as caught:
        Template(source, "x.jinja").ids(CHAT[:1], BYTES)
    assert HOSTILE[source] in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_template_has_memory_for_its_conversation_and_little_beside():
    grows = "{% set ns = namespace(x='a' * 99) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    with pytest.raises(ValueError, match=r"more than 23\d,\d{3},\d{3} bytes of memory"):
        Template(grows, "x.jinja").ids(CHAT[:1], BYTES)
    said = "héllo " * 500_000
    assert len(template("{{ message.content }}").ids([{"role": "user", "content": said}], BYTES)) > 7 * 500_000


@pytest.mark.parametrize("source", ["{{ 'ab ' * 6000 }}", "{{ bos_token * 9 }}", "{{ messages * 500 }}"])
def test_a_template_adds_little_to_a_conversation_however_it_is_made(source):
    said = {"role": "user", "content": "hello"}
    loop = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"^x\.jinja: chat template: more than 16,\d{3} characters of text$"):
        Template(source + loop, "x.jinja", {"bos_token": "b" * 2000}).ids([said], BYTES)
    long = {"role": "user", "content": "hello " * 20_000}  # a person's own words may be any number
    assert len(Template(loop, "x.jinja").ids([long], BYTES)) == 120_000


def test_a_template_adds_few_tokens_though_its_tokenizer_makes_many_of_a_character():
    class Many(BytesTokenizer):
        def encode(self, text):
            return np.repeat(super().encode(text), 33)

    loop = "{{ 'x' * 1000 }}{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"makes 33,165 tokens of a conversation of \d+ characters; allowed: at most"):
        Template(loop, "x.jinja").ids([{"role": "user", "content": "hello"}], Many())


def test_what_a_template_says_of_an_error_is_cut_where_it_is_said():
    (found,) = Template("{{ raise_exception('z' * 4000000) }}", "x.jinja")._run([{}])
    assert found == {"error": "z" * 400}


def test_special_tokens_and_templates_of_great_length_are_bad_data_by_their_file(tmp_path):
    config, jinja = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    config.write_text(json.dumps({"bos_token": {"content": "b" * 9000}, "eos_token": "e" * 2000, "chat_template": "x"}))
    with pytest.raises(DataError, match=r"tokenizer_config\.json: special tokens of 11,018 .* longest bos_token; a"):
        templates.choose(None, [tmp_path], BYTES)
    config.write_text(json.dumps({f"{'b' * 3000}{n}_token": "b" for n in range(4)} | {"chat_template": "x"}))
    with pytest.raises(DataError, match=r"special tokens of 12,032 characters, the longest bbb"):
        templates.choose(None, [tmp_path], BYTES)
    config.write_text('{"bos_token": "\\ud800", "chat_template": "x"}')
    with pytest.raises(DataError, match=r"tokenizer_config\.json: bos_token: character 0 is half a pair of surrogates"):
        templates.choose(None, [tmp_path], BYTES)
    config.write_text("{}")
    jinja.write_text("x" * 300_000)
    with pytest.raises(DataError, match=r"\.jinja: a chat template of 300,000 characters; allowed: at most 262,144"):
        templates.choose(None, [tmp_path], BYTES)


def test_a_config_of_a_template_whose_link_leads_nowhere_is_not_left_out(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    (tmp_path / "tokenizer_config.json").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="tokenizer_config.json"):
        templates.choose(None, [tmp_path], BYTES)


def test_a_template_whose_link_leads_nowhere_is_not_left_out(tmp_path):
    (tmp_path / "chat_template.jinja").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="chat_template.jinja"):
        templates.choose(None, [tmp_path], BYTES)


@pytest.mark.parametrize("filtered", ["wordwrap(80)", "striptags", "pprint", "indent", "urlize"])
def test_a_filter_of_jinja_that_imports_when_it_is_used_can_be_used(filtered):
    assert len(template("{{ message.content }}{{ 'a <b> c' | " + filtered + " }}").ids(CHAT[:1], BYTES))


def test_what_python_imports_for_a_name_or_a_method_is_there():
    said = "{% set \ufb00 = message.content %}{{ \ufb00 }}{{ ''.encode('idna') | length or '' }}"
    np.testing.assert_array_equal(template(said).ids(CHAT[:2], BYTES), TEXT.ids(CHAT[:2], BYTES))


def test_a_template_of_a_checkpoint_that_says_nothing_is_bad_data_and_one_that_is_typed_is_not(tmp_path):
    for name, content in (("chat_template.jinja", "{% for %}"), ("tokenizer_config.json", "[1]")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(DataError, match=name):
            templates.choose(None, [folder], BYTES).stop(BYTES)
    with pytest.raises(ValueError, match="line 1"):
        templates.from_file(str(tmp_path / "chat_template.jinja" / "chat_template.jinja")).stop(BYTES)


def test_a_template_that_does_not_end_takes_its_seconds_once_and_not_for_each_conversation(monkeypatch):
    monkeypatch.setattr(renderings, "SECONDS", 1)
    endless = Template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "x.jinja")
    subprocess.run(["true"], check=True)  # the first process started waits for those that others left
    began, others = time.process_time(), os.times().children_user
    for _ in range(6):
        with pytest.raises(ValueError, match=r"^x\.jinja: chat template: it takes more than 1 s, or than 0\.10 s of"):
            endless.ids(CHAT[:1], BYTES)
    assert os.times().children_user - others < 4.5
    assert time.process_time() - began < 1  # another process's seconds


def test_what_a_conversation_takes_beyond_its_share_later_ones_have_not_and_a_large_one_has_more(monkeypatch):
    given, took = [], iter([0.05, 1.5, 0.5, 0.0, 0.0])

    def process(asked):
        given.append(json.loads(asked)["seconds"])
        return 0, json.dumps({"calls": [], "seconds": next(took)}).encode()

    monkeypatch.setattr(renderings, "_process", process)
    runs = renderings.Renderings()
    for said in ("", "", "", "", "x" * 500_000):
        runs.run({"template": "", "calls": [said]})
    assert given == pytest.approx([2, 2, 0.6, 0.2, 0.8], abs=1e-3)


@pytest.mark.parametrize("source", ["{% if 1 %}" * 999 + "{% endif %}" * 999, "{{ " + "(" * 999 + ")" * 999 + " }}"])
def test_a_template_that_is_too_deep_to_be_compiled_is_said_to_be(source):
    with pytest.raises(ValueError, match=r"^x\.jinja: chat template: it is nested too deep, or calls itself: "):
        Template(source, "x.jinja").ids(CHAT[:1], BYTES)


def test_a_template_that_changes_an_answer_once_it_is_past_marks_none():
    forgets = template("{{ message.content if loop.last or message.role != 'assistant' else '...' }}")
    with pytest.raises(ValueError, match="changes an answer once it is past"):
        forgets.render(CHAT, BYTES)
    assert len(forgets.ids(CHAT, BYTES))  # but can be talked to


def test_the_template_of_a_folder_is_found_as_the_hub_lays_it_out(tmp_path):
    config, jinja = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    assert templates.find(tmp_path) is None
    config.write_text(json.dumps(tokens))
    assert templates.find(tmp_path / "nowhere", tmp_path) is None
    config.write_text(json.dumps(tokens | {"chat_template": "one"}))
    assert templates.find(tmp_path / "nowhere", tmp_path) == Template(
        "one", str(config), {"bos_token": "<s>", "eos_token": "</s>"}
    )
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "usual"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert templates.find(tmp_path).source == "usual"
    jinja.write_text("newer")
    assert templates.find(tmp_path).source == "newer"
    config.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not valid JSON"):
        templates.find(tmp_path)


@pytest.mark.parametrize(
    "said", [5, True, {}, [], ["one"], [{"name": "default"}], [{"name": "default", "template": 5}]]
)
def test_a_template_that_is_no_text_is_bad_data_and_named_by_file_and_key(tmp_path, said):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    with pytest.raises(DataError, match=r"tokenizer_config\.json: chat_template: got .*; allowed: a text") as refused:
        templates.choose(None, [tmp_path], BYTES)
    assert "\n" not in str(refused.value)


def test_without_a_template_one_line_says_where_it_was_looked_for_and_what_gives_one(tmp_path):
    with pytest.raises(ValueError, match=r"^no chat template: no .*chat_template\.jinja; --template=minimax-01 or "):
        templates.choose(None, [tmp_path], BYTES)
    with pytest.raises(
        ValueError, match=r"^--template=minimax: no such file; allowed: minimax-01, minimax-m1, or a \.jinja file"
    ):
        templates.choose("minimax", [tmp_path], BYTES)
    assert isinstance(templates.choose("minimax-01", [tmp_path], BYTES), Released)
    (tmp_path / "mine.jinja").write_text("x")
    assert templates.choose(str(tmp_path / "mine.jinja"), [], BYTES).source == "x"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(templates.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs jinja2: pip install 'mm01_jax\[chat\]'"):
        TEXT.ids(CHAT[:1], BYTES)


def test_roles_that_the_released_template_does_not_know_are_refused():
    with pytest.raises(ValueError, match="role 'bot'"):
        Released().ids([{"role": "bot", "content": "x"}], BYTES)
