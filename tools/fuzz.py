"""Open damaged files of every kind; whatever is neither opened nor refused in one line is told.

    python -m tools.fuzz --inputs 1000 --seed 3          # a thousand of each kind
    python -m tools.fuzz --only onnx:3:417 --keep DIR    # one of them again, its files kept

Each input is made anew from kind, seed and number, in a process of its own family, so that a crash of a native library
is a finding like any other. A finding is: an error that is not ours, a message that is not one printable line, a death,
more than 300 MB of RAM, more than 5 s of CPU.
"""

import argparse
import gc
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from hybrid.chat.saved import load as load_conversation
from hybrid.cli.flags import ChatFlags, PlanFlags, RunFlags
from hybrid.cli.settings_file import read_settings, settings_of
from hybrid.loading.open_engine import open_engine
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import RunSettings
from hybrid.text.chat_template import Message, load_chat_template
from hybrid.text.generation_defaults import read_generation_defaults
from hybrid.text.open_tokenizer import load_tokenizer
from offload.errors import OffloadError
from offload.machine.profile import load_profile
from tools import fuzz_mutations as change
from tools.fuzz_seeds import write_seeds

MAX_GROWTH_BYTES = 300 * 10**6
MAX_CPU_S = 5.0
_MAX_WAIT_S = 120.0  # on a busy machine; CPU time is what counts
_BATCH = 250  # inputs of one process
_RUN_EVERY = 8  # of the models that open, one in so many runs three steps
_PROMPT = "the cat é <|im_end|> </s>"

_TEMPLATE_WORDS = ("{%", "%}", "{{", "}}", "{% for a in range(10**9) %}", "{{ messages * 10**6 }}", "{{ 9**9**9 }}", "|join", "{% set x = x %}", "{{ ''.__class__ }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "loop", "messages[0]")  # fmt: skip  # noqa: E501
_TOML_WORDS = ("=", "[", "]]", '"""', "9" * 5000, "1e999", "nan", "-inf", "1979-05-27T99:00:00", "a.b.c = 1\n", "\\uD800", "true", "[" * 2000, "{", "model", "threads = 1\n", "top-k = -5\n")  # fmt: skip  # noqa: E501


@dataclass(frozen=True)
class Kind:
    """Files of one kind: the seeds they come from, how they are damaged, and what opens them."""

    seed: str
    files: tuple[str, ...]
    damage: Callable[[bytes, Random], bytes]
    open: Callable[[Path, Random], None]


def _open_model(folder: Path, random: Random) -> None:
    """Plan, and now and then run a prompt and two steps."""
    machine = random.choice(("laptop-6gb", *["generic-cpu"] * 4))  # without a GPU there is no programme to solve
    make_plan(RunSettings(model=folder, machine=machine, cuda="0" if machine == "generic-cpu" else "1"))
    if random.randrange(_RUN_EVERY) == 0:
        with open_engine(RunSettings(model=folder, device="cpu", threads=1, context_tokens=32)) as engine:
            engine.prefill([1, 2, 3, 4])
            engine.decode(5)
            engine.decode(6)


def _open_tokenizer(folder: Path, random: Random) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(_PROMPT, parse_special=random.random() < 0.5)
    tokenizer.decode([*ids, *range(40), 255, 258, 261, 262, 10**6])


def _open_template(folder: Path, random: Random) -> None:
    template = load_chat_template(folder, load_tokenizer(folder))
    if template is not None:
        template.render([Message("system", "s"), Message("user", _PROMPT)])


def _open_profile(folder: Path, random: Random) -> None:
    path = str(folder / "machine.json")
    load_profile(folder / "machine.json")
    model = folder.parent / "seeds" / "hf"
    make_plan(RunSettings(model=model, machine=path, cuda=random.choice((None, "0.5", "1", "80%"))))


def _open_settings(folder: Path, random: Random) -> None:
    read_settings(folder / "settings.toml", _known_settings())


@cache
def _known_settings() -> dict[str, type]:
    return settings_of(RunFlags) | settings_of(PlanFlags) | settings_of(ChatFlags)


def _open_recommended(folder: Path, random: Random) -> None:
    read_generation_defaults(folder)
    _open_model(folder, random)


def _open_conversation(folder: Path, random: Random) -> None:
    load_conversation(folder / "chat.json")


_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
KINDS = {
    "onnx": Kind("onnx", ("model.onnx",), change.damaged_onnx, _open_model),
    "onnx-data": Kind("onnx", ("model.data",), change.damaged, _open_model),
    "onnx-config": Kind("onnx", ("genai_config.json", "config.json"), change.damaged_json, _open_recommended),
    "safetensors": Kind("hf", _SHARDS, change.damaged_safetensors, _open_model),
    "index": Kind("hf", ("model.safetensors.index.json",), change.damaged_json, _open_model),
    "config": Kind("hf", ("config.json",), change.damaged_json, _open_model),
    "generation-config": Kind("hf", ("generation_config.json",), change.damaged_json, _open_recommended),
    "tokenizer-json": Kind("hf", ("tokenizer.json",), change.damaged_json, _open_tokenizer),
    "tokenizer-model": Kind("onnx", ("tokenizer.model",), change.damaged, _open_tokenizer),
    "special-tokens": Kind("hf", _TOKENIZER_FILES, change.damaged_json, _open_template),
    "template": Kind(
        "hf", ("chat_template.jinja",), lambda c, r: change.damaged_text(c, _TEMPLATE_WORDS, r), _open_template
    ),
    "profile": Kind("files", ("machine.json",), change.damaged_json, _open_profile),
    "settings": Kind("files", ("settings.toml",), lambda c, r: change.damaged_text(c, _TOML_WORDS, r), _open_settings),
    "conversation": Kind("files", ("chat.json",), change.damaged_json, _open_conversation),
}


@dataclass(frozen=True)
class Finding:
    """An input that was neither opened nor refused as it should be."""

    input: str  # kind:seed:number
    what: str


def write_input(name: str, seed: int, number: int, seeds: Path, folder: Path) -> Random:
    """Write one damaged folder; gives the chance that goes on with it."""
    kind, random = KINDS[name], Random(f"{name} {seed} {number}")
    shutil.copytree(seeds / kind.seed, folder)
    file = folder / random.choice(kind.files)
    file.write_bytes(kind.damage(file.read_bytes(), random))
    return random


def try_input(name: str, seed: int, number: int, work: Path) -> tuple[str, str]:
    """Open one damaged folder: "opened" or "refused" and "", or "found" and what is wrong."""
    folder = work / f"{name}-{os.getpid()}"
    random = write_input(name, seed, number, work / "seeds", folder)
    before, began = _peak_bytes(), time.process_time()
    outcome, what = "opened", ""
    try:
        KINDS[name].open(folder, random)
    except OffloadError as error:
        outcome, message = "refused", str(error)
        if "\n" in message or len(message) > 2000 or not message:
            outcome, what = "found", f"message of {len(message)} characters: {message[:200]!r}"
    except BaseException as error:  # Rust's panics too
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome, what = "found", f"{type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
    took_s, grown = time.process_time() - began, _peak_bytes() - before
    shutil.rmtree(folder)
    if took_s > MAX_CPU_S:
        outcome, what = "found", f"{took_s:.1f} s of CPU {what}"
    if grown > MAX_GROWTH_BYTES:
        outcome, what = "found", f"{grown / 1e6:.0f} MB of RAM {what}"
    return outcome, what


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(name: str, seed: int, numbers: range, work: Path) -> tuple[Counter[str], list[Finding]]:
    """Try inputs of one kind, a batch in each process; the next begins behind one that died."""
    counts: Counter[str] = Counter()
    findings = []
    number = numbers.start
    while number < numbers.stop:
        batch = range(number, min(number + _BATCH, numbers.stop))
        for outcome, what in _in_process(name, seed, batch, work):
            counts[outcome] += 1
            if outcome == "found":
                findings.append(Finding(f"{name}:{seed}:{number}", what))
            number += 1
    return counts, findings


def _in_process(name: str, seed: int, batch: range, work: Path) -> Iterator[tuple[str, str]]:
    """What a child tells of a batch, as it tells it; ends after an input that it does not survive."""
    reading, writing = os.pipe()
    gc.collect()
    gc.freeze()  # an onnxruntime session of the parent's waits for its threads when it is freed; the child has none
    child = os.fork()
    if child == 0:
        os.close(reading)
        _tell(name, seed, batch, work, writing)
    os.close(writing)
    told = 0
    with os.fdopen(reading, "rb", buffering=0) as answers:
        held = b""
        while told < len(batch):
            if not select.select([answers], [], [], _MAX_WAIT_S)[0]:
                os.kill(child, signal.SIGKILL)
            held += (piece := answers.read(1 << 16))
            *lines, held = held.split(b"\n")
            for line in lines:
                outcome, _, what = line.decode().partition(" ")
                told += 1
                yield outcome, what
            if not piece:
                break
    _, status = os.waitpid(child, 0)
    if told < len(batch):
        yield "found", f"died with signal {os.waitstatus_to_exitcode(status)}"


def _tell(name: str, seed: int, batch: range, work: Path, writing: int) -> None:
    """The child: try a batch, a line of answer for each; never returns."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    warnings.simplefilter("ignore")
    try:
        for number in batch:
            outcome, what = try_input(name, seed, number, work)
            os.write(writing, f"{outcome} {what!a}\n".encode())
    finally:  # whatever happens, not on in the parent's work
        os._exit(0)


def main() -> int:
    """Try inputs as the command line says; gives 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--only", metavar="KIND:SEED:NUMBER", help="one input, in this process")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to leave the files of --only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "seeds").mkdir()
        write_seeds(work / "seeds")
        if given.only:
            name, seed, number = given.only.split(":")
            if given.keep:
                write_input(name, int(seed), int(number), work / "seeds", given.keep)
            folder = work / "input"
            KINDS[name].open(folder, write_input(name, int(seed), int(number), work / "seeds", folder))
            return 0
        found = 0
        for name in given.kinds.split(","):
            began = time.monotonic()
            counts, findings = fuzz(name, given.seed, range(given.inputs), work)
            for finding in findings:
                print(f"{finding.input}: {finding.what}", flush=True)
            print(f"{name}: {dict(counts)} in {time.monotonic() - began:.0f} s", flush=True)
            found += len(findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
