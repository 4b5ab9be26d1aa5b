"""The process that strangers' templates are rendered in: its bounds, and what becomes of it."""

import json
import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import ModelFileError, UsageError
from hybrid.text import template_process
from hybrid.text.builtin_templates import BUILT_IN
from hybrid.text.chat_template import ChatTemplate, Message, expect_chat_template
from hybrid.text.template_process import worker

ROOT = Path(__file__).parents[3]
ASK = Message("user", "Hello?")
ECHO = "{{ messages[0].content }}!"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {}, "here")


def process_id() -> int:
    assert worker._process is not None
    return worker._process.pid


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that may compute for a second at most."""
    code = "import sys; sys.path += sys.argv[1:]; from hybrid.text import template_worker as w; w.CPU_S = 0; w.serve()"
    worker.stop()
    monkeypatch.setattr(template_process, "_CODE", code)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{{ 'a'.encode() * 1000000000 }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ [0] * 10 ** 9 }}",
        "{% set n = namespace(x='y' * 999) %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(l=[]) %}{% for i in range(2000) %}{% set n.l = n.l + ['x' * 16000000 ~ i] %}{% endfor %}",
    ],
)
def test_memory_has_a_bound(source: str) -> None:
    with pytest.raises(
        ModelFileError, match=r"^here: the chat template .*: it (takes too much memory|writes)"
    ) as caught:
        template(source).render([ASK])
    assert "\n" not in str(caught.value)
    assert template(ECHO).render([ASK]) == "Hello?!"


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_computing_has_a_bound(source: str) -> None:
    with pytest.raises(ModelFileError, match=r"takes more than . s of computing"):
        template(source).render([ASK])
    assert template(ECHO).render([ASK]) == "Hello?!"


def test_a_worker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = template(ECHO)
    os.kill(process_id(), signal.SIGSTOP)
    monkeypatch.setattr(template_process, "_DEADLINE_S", 0.05)
    with pytest.raises(ModelFileError, match="takes more than"):
        chat.render([ASK])
    monkeypatch.undo()
    assert chat.render([ASK]) == "Hello?!"


def test_one_worker_serves_all_threads_and_is_replaced_when_it_dies() -> None:
    chats = [template(f"{ECHO}{number}") for number in range(8)]
    first = process_id()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda chat: [chat.render([ASK]) for _ in range(20)], chats))
    assert texts == [[f"Hello?!{number}"] * 20 for number in range(8)]
    assert process_id() == first
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert chats[0].render([ASK]) == "Hello?!0"
    assert process_id() != first


@pytest.mark.parametrize(
    ("own", "name", "starts"),
    [
        (ECHO, None, True),
        (ECHO, "zephyr", False),
        (None, None, False),
        (None, "chatml", False),
        (BUILT_IN["chatml"], None, False),
        (None, "mine.jinja", True),
    ],
)
def test_the_worker_starts_ahead_of_a_template_that_needs_it(
    own: str | None, name: str | None, starts: bool, tmp_path: Path
) -> None:
    worker.stop()
    if own is not None:
        (tmp_path / "chat_template.jinja").write_text(own)
    expect_chat_template(tmp_path, name)
    assert (worker._process is not None) == starts
    if starts:
        expected = process_id()
        assert template(ECHO).render([ASK]) == "Hello?!"
        assert process_id() == expected


def test_a_worker_that_cannot_start_is_told_of_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.stop()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    expect_chat_template(tmp_path, "mine.jinja")
    with pytest.raises(ModelFileError, match="no process to render it in"):
        template(ECHO)


def test_ctrl_c_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = template(ECHO)
    chat.render([ASK])
    with monkeypatch.context() as interrupted:

        def receive(*_: Any) -> bytes:
            raise KeyboardInterrupt

        interrupted.setattr(worker, "_receive", receive)
        with pytest.raises(KeyboardInterrupt):
            chat.render([ASK])
    assert chat.render([Message("user", "Who?")]) == "Who?!"


def test_ctrl_c_on_the_terminal_is_not_for_the_worker() -> None:
    template(ECHO)
    assert os.getsid(process_id()) == process_id()


def test_a_fork_has_a_worker_of_its_own() -> None:
    code = f"""
import os
from hybrid.text.chat_template import ChatTemplate, Message, expect_chat_template
from hybrid.text.template_process import worker
chat = ChatTemplate({ECHO!r}, {{}}, "here")
chat.render([Message("user", "a")])
parents = worker._process.pid
child = os.fork()
text = chat.render([Message("user", "b")])
if child == 0:
    worker_is_own = worker._process.pid != parents
    worker.stop()
    os._exit(0 if text == "b!" and worker_is_own else 1)
_, status = os.waitpid(child, 0)
print(text, status, worker._process.pid == parents, flush=True)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b! 0 True\n", "")


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_the_worker_ends_with_us(end: str) -> None:
    code = f"""
import os
from hybrid.text.chat_template import ChatTemplate
from hybrid.text.template_process import worker
ChatTemplate({ECHO!r}, {{}}, "here")
os.write(1, str(worker._process.pid).encode())
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    try:
        left = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    try:
        assert select.select([left], [], [], 10.0)[0], "the worker lives on"
    finally:
        os.close(left)


def test_the_worker_has_no_secrets_and_cannot_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    worker.stop()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    template(ECHO)
    folder = Path(f"/proc/{process_id()}")
    assert b"secret" not in (folder / "environ").read_bytes()
    limits = {line[:25].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()}
    assert (limits["Max open files"], limits["Max file size"], limits["Max processes"]) == ("3", "0", "0")
    assert limits["Max address space"] == str(1 << 29)


def test_variables_are_json() -> None:
    assert template("{{ tools | tojson }}").render([ASK], tools=[{"a": ("b", 1.5)}]) == '[{"a": ["b", 1.5]}]'
    assert json.loads(template("{{ x | tojson }}").render([ASK], x="naïve \ud83d")) == "naïve \ud83d"
    with pytest.raises(UsageError, match="JSON"):
        template("{{ x }}").render([ASK], x=object())


SOURCES = [
    "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% if loop.first %}{% continue %}"
    "{% endif %}{{ loop.index0 }}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "{% set ns = namespace(found=false, self=1) %}{% for m in messages if m.role == 'user' %}{% set ns.found = true %}"
    "{% endfor %}{{ ns.found }}{{ ns.self }}",
    "{% macro say(x, y='!') %}{{ x ~ y }}{% endmacro %}{{ say('a') }}{{ dict(a=1).items() | list }}",
    "  {%- if tools is defined and tools %}{{ tools }}{% endif %}\n{{ bos_token }}{{ undefined_thing }}{{ '%s' % 3 }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}{{ 7 // 2 }}",
]


@pytest.mark.parametrize("source", SOURCES)
def test_transformers_writes_the_same(source: str) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
    messages = [Message("user", " Who? "), Message("assistant", "naïve <b>"), ASK]
    plain = [{"role": message.role, "content": message.content} for message in messages]
    settings = {"chat_template": source, "add_generation_prompt": True, "bos_token": "<s>"}
    theirs, _ = utilities.render_jinja_template([plain], **settings)
    assert [ChatTemplate(source, {"bos_token": "<s>"}, "here").render(messages)] == theirs
