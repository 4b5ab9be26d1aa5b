"""Chat templates: the built-in ones against the published formats, hostile ones, and turns as token ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid.engine.token_ids import common_prefix
from hybrid.errors import ModelFileError, UsageError
from hybrid.text.builtin_templates import BUILT_IN, guess
from hybrid.text.chat_template import ChatTemplate, Message, load_chat_template
from hybrid.text.detokenizer import TextStream
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.tokenizer import Tokenizer
from hybrid.text.turns import encode_turn
from tests.fakes import train_json_tokenizer, train_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM, ASK, ANSWER, AGAIN = (
    Message("system", "Be brief."),
    Message("user", "Hello?"),
    Message("assistant", "Yes."),
    Message("user", "Who?"),
)

CHATML = """\
<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
Hello?<|im_end|>
<|im_start|>assistant
Yes.<|im_end|>
<|im_start|>user
Who?<|im_end|>
<|im_start|>assistant
"""
LLAMA_2 = """\
<s>[INST] <<SYS>>
Be brief.
<</SYS>>

Hello? [/INST] Yes. </s><s>[INST] Who? [/INST]"""
MISTRAL = """\
<s>[INST] Be brief.

Hello? [/INST] Yes.</s>[INST] Who? [/INST]"""
LLAMA_3 = """\
<s><|start_header_id|>system<|end_header_id|>

Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>

Hello?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

Yes.<|eot_id|><|start_header_id|>user<|end_header_id|>

Who?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"""
ZEPHYR = """\
<|system|>
Be brief.</s>
<|user|>
Hello?</s>
<|assistant|>
Yes.</s>
<|user|>
Who?</s>
<|assistant|>
"""
PUBLISHED = {"chatml": CHATML, "llama-2": LLAMA_2, "mistral": MISTRAL, "llama-3": LLAMA_3, "zephyr": ZEPHYR}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, TOKENS, "here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_json_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_write_the_published_formats(name: str) -> None:
    assert template(BUILT_IN[name]).render([SYSTEM, ASK, ANSWER, AGAIN]) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\nHello?<|im_end|>\n"),
        ("llama-2", "<s>[INST] Hello? [/INST]"),
        ("mistral", "<s>[INST] Hello? [/INST]"),
        ("llama-3", "<s><|start_header_id|>user<|end_header_id|>\n\nHello?<|eot_id|>"),
        ("zephyr", "<|user|>\nHello?</s>\n"),
    ],
)
def test_one_message_without_the_assistants_turn(name: str, text: str) -> None:
    assert template(BUILT_IN[name]).render([ASK], add_generation_prompt=False) == text


@pytest.mark.parametrize(
    ("tokens", "model_type", "name", "guessed"),
    [
        (("<|start_header_id|>", "<|eot_id|>"), "llama", "Meta-Llama-3-8B-Instruct", "llama-3"),
        (("<|im_start|>", "<|im_end|>"), "llama", "a-fine-tune", "chatml"),
        ((), "qwen2", "Qwen2.5", "chatml"),
        ((), "mistral", "Mistral-7B-Instruct-v0.2", "mistral"),
        ((), "mistral", "zephyr-7b-beta", "zephyr"),
        ((), "llama", "models--TinyLlama--TinyLlama-1.1B-Chat-v1.0", "zephyr"),
        ((), "llama", "Llama-2-7b-chat-hf", "llama-2"),
        ((), "llama", "TinyLlama-1.1B-base", None),
        (("<|im_start|>",), "llama", "stories", None),
    ],
)
def test_guesses(tokens: tuple[str, ...], model_type: str, name: str, guessed: str | None) -> None:
    assert guess(dict.fromkeys(tokens, True), model_type, name) == guessed


def write(folder: Path, tmp_path: Path, config: dict[str, Any], jinja: str | None = None) -> Path:
    """A folder with the tokenizer of `folder` and these templates."""
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENS | config))
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    return tmp_path


def load(folder: Path, name: str | None = None) -> ChatTemplate:
    found = load_chat_template(folder, load_tokenizer(folder), name)
    assert found is not None
    return found


def test_where_a_template_is_taken_from(folder: Path, tmp_path: Path) -> None:
    home = write(folder, tmp_path, {"chat_template": "one"})
    assert load(home).render([ASK]) == "one"
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    home = write(folder, tmp_path, {"chat_template": named})
    assert load(home).render([ASK]) == "two"
    assert load(home, "tool_use").render([ASK]) == "three"
    home = write(folder, tmp_path, {"chat_template": named}, jinja="four{{ eos_token }}")
    assert load(home).render([ASK]) == "four</s>"
    assert load(home, "zephyr").render([ASK]) == "<|user|>\nHello?</s>\n<|assistant|>\n"
    (tmp_path / "mine.jinja").write_text("five")
    assert load(home, str(tmp_path / "mine.jinja")).render([ASK]) == "five"
    with pytest.raises(UsageError, match="chat-template 'nope': no such template; there are chatml, default, llama-2"):
        load(home, "nope")
    with pytest.raises(ModelFileError, match=r"cannot be read|is missing"):
        load(home, str(tmp_path / "absent.jinja"))


def test_a_folder_without_a_template(folder: Path, tmp_path: Path) -> None:
    assert load(folder).origin == "the chatml template"  # it has the tokens
    bare = train_tokenizer(tmp_path / "bare")
    assert load_chat_template(bare, load_tokenizer(bare)) is None
    (bare / "config.json").write_text('{"model_type": "mistral"}')
    found = load(bare)
    assert found.render([ASK]) == "<s>[INST] Hello? [/INST]"  # the names are sentencepiece's own
    assert load(bare.rename(tmp_path / "TinyLlama-Chat")).origin == "the zephyr template"


@pytest.mark.parametrize("value", [5, {"a": 1}, [5], [{"name": "x"}], [{"name": "x", "template": 5}], ["text"]])
def test_templates_that_are_no_text_are_refused(folder: Path, tmp_path: Path, value: Any) -> None:
    home = write(folder, tmp_path, {"chat_template": value})
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json: chat_template .*must be"):
        load(home)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([Message("tool", "x")], "message 1 is by 'tool'; must be one of system, user, assistant"),
        ([ASK, SYSTEM], "message 2 is by system; only the first message can be"),
    ],
)
def test_messages_that_cannot_be(messages: list[Message], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        template(BUILT_IN["chatml"]).render(messages)


def test_turns_that_do_not_alternate_are_the_templates_to_refuse() -> None:
    with pytest.raises(UsageError, match="refuses these messages: user and assistant must take turns"):
        template(BUILT_IN["mistral"]).render([ASK, AGAIN])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.content }}]{% endfor %}",
        "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}",
    ],
)
def test_a_system_message_is_folded_where_it_is_refused_or_left_out(source: str) -> None:
    assert template(source).render([SYSTEM, ASK, ANSWER]) == "[Be brief.\n\nHello?][Yes.]"
    assert template(source).render([ASK, ANSWER]) == "[Hello?][Yes.]"
    with pytest.raises(UsageError, match="a user message must follow"):
        template(source).render([SYSTEM])


def test_content_in_parts_where_a_template_wants_it() -> None:
    source = "{% for m in messages %}{% for part in m.content %}{{ part.text }}!{% endfor %}{% endfor %}"
    assert template(source).render([SYSTEM, ASK]) == "Be brief.!Hello?!"
    assert template("{{ messages[0].content[0].text + '.' }}").render([ASK]) == "Hello?."


def test_what_templates_can_use() -> None:
    source = """\
{% for m in messages %}
    {% if loop.index > 2 %}{% break %}{% endif %}
    {% generation %}{{ m | tojson }}{% endgeneration %}
{% endfor %}
{{- strftime_now('%Y') | length }}{{ tools is none }}{{ bos_token ~ 1 ~ nothing }}{{ '<' + '&' }}
"""
    assert template(source).render([ASK, Message("assistant", "naïve <b>"), AGAIN]) == (
        '{"role": "user", "content": "Hello?"}{"role": "assistant", "content": "naïve <b>"}4True<s>1<&'
    )
    assert template("{{ enable_thinking }}").render([ASK], enable_thinking=False) == "False"


def test_macros_and_call_blocks_work() -> None:
    source = "{% macro say(m) %}<{{ m.content }}{{ caller() }}>{% endmacro %}{% call say(messages[0]) %}!{% endcall %}"
    assert template(source).render([ASK]) == "<Hello?!>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1", r"cannot be read: .* \(line 1\)"),
        ("\n{% for x in %}{% endfor %}", r"cannot be read: .* \(line 2\)"),
        ("{{ messages[0].nope.nope }}", "does not work: .*no attribute 'nope'"),
        ("{{ messages[9].content }}", "does not work"),
        ("{{ 1 / 0 }}", "does not work: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "does not work: .*unsafe"),
        ("{{ messages.append(1) }}", "does not work: .*unsafe|does not work: .*not safely callable"),
        ("{% include 'secrets' %}", "does not work"),
        ("{% for a in range(1000000000) %}{% endfor %}", "does not work: OverflowError"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "nested too deeply|RecursionError"),
        ("{% set n = namespace(_x='y') %}", "does not work: .*'_x'"),
        ("{{ ''.__init__.__globals__ }}", "does not work: .*unsafe"),
        ("{% for a in range(999) %}{{ 'x' * 99999 }}{% endfor %}", "writes more than"),
        ("x" * 2**20 + "y", "cannot be read: 1048577 characters"),
        ("{{ raise_exception('a\nb') }}", "refuses these messages: a b"),
        ("{% set nothing = 1 %}", "makes no text of these messages"),
    ],
)
def test_hostile_templates_end_in_one_line(source: str, message: str) -> None:
    with pytest.raises((ModelFileError, UsageError), match=message) as caught:
        template(source).render([ASK])
    assert "\n" not in str(caught.value)


def test_formats_do_not_lead_out_of_the_sandbox() -> None:
    for source in ("{{ ('<{0.__globals__}>'|attr('format'))(strftime_now) }}", "{{ '<{0.__class__}>'.format(1) }}"):
        assert template(source).render([ASK]) == "<>"


def test_end_ids(tokenizer: Tokenizer) -> None:
    assert template(BUILT_IN["chatml"]).end_ids(tokenizer) == (tokenizer.token_id("<|im_end|>"),)
    assert template(BUILT_IN["llama-3"]).end_ids(tokenizer) == ()  # no such token here
    assert template(BUILT_IN["zephyr"]).end_ids(tokenizer) == ()


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_a_turn_goes_on_from_the_ids_that_were_generated(tokenizer: Tokenizer) -> None:
    chat = template(BUILT_IN["chatml"])
    first = chat.render([ASK])
    prompt_ids = encode_turn(tokenizer, first)
    assert tokenizer.token_id("<|im_start|>") in prompt_ids
    generated = [tokenizer.encode(letter)[0] for letter in "the cat"]  # never spelt so when encoded at once
    stream = TextStream(tokenizer, prompt_ids)
    reply = "".join(stream.feed(token_id) for token_id in generated) + stream.flush()
    assert tokenizer.encode(reply) != generated
    rendered = chat.render([ASK, Message("assistant", reply), AGAIN])
    past = [*prompt_ids, *generated]
    ids = encode_turn(tokenizer, rendered, past, first + reply)
    assert ids[: len(past)] == past
    text = tokenizer.decode(ids)
    assert text == rendered.replace("<|im_start|>", "").replace("<|im_end|>", "")


def test_a_turn_is_encoded_anew_where_the_text_differs(tokenizer: Tokenizer) -> None:
    chat = template(BUILT_IN["llama-3"].replace("<|eot_id|>", "<|im_end|>"))
    first, reply = chat.render([ASK]), " spaces go "
    rendered = chat.render([ASK, Message("assistant", reply), AGAIN])
    past = [*encode_turn(tokenizer, first), *tokenizer.encode(reply)]
    ids = encode_turn(tokenizer, rendered, past, first + reply)
    assert ids == tokenizer.encode(rendered, add_bos=False, parse_special=True)
    assert len(encode_turn(tokenizer, first)) - 1 <= common_prefix(past, ids) < len(past)


def test_a_turn_is_encoded_anew_where_no_special_token_parts_it(tokenizer: Tokenizer) -> None:
    past = [*tokenizer.encode("Q: the"), *tokenizer.encode(" c")]
    whole = encode_turn(tokenizer, "Q: the cat", past, "Q: the c")
    assert whole == tokenizer.encode("Q: the cat", add_bos=False)


@pytest.mark.parametrize("name", BUILT_IN)
def test_transformers_writes_the_same(folder: Path, name: str) -> None:
    reason = "transformers is not installed: the published formats alone were tested"
    transformers = pytest.importorskip("transformers", reason=reason)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **TOKENS)
    messages = [ASK, ANSWER, AGAIN] if name == "mistral" else [SYSTEM, ASK, ANSWER, AGAIN]
    plain = [{"role": message.role, "content": message.content} for message in messages]
    expected = theirs.apply_chat_template(
        plain, chat_template=BUILT_IN[name], tokenize=False, add_generation_prompt=True
    )
    assert template(BUILT_IN[name]).render(messages) == expected
    ids = theirs.apply_chat_template(plain, chat_template=BUILT_IN[name], add_generation_prompt=True)
    ours = encode_turn(load_tokenizer(folder), expected)
    assert ours == list(ids["input_ids"] if hasattr(ids, "keys") else ids)
