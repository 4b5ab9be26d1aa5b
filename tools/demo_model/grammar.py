"""The story grammar of the demo model: one set of tables, read by a generator and by a recogniser.

A story has a cast (a hero, a friend, a thing, a place ...) drawn once, and a plot, which is a list of
sentence rules.  A sentence is literal text with `{field}` slots, filled from the cast, and `<rule>` slots,
filled with any line of that rule.  The generator draws; the recogniser follows the same lines and keeps,
for each member of the cast, the entries that still agree with the text, so that "Lily lost his ball" is
refused because no hero is both "Lily" and "his".
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

Entry = dict[str, str]


@dataclass(frozen=True)
class Symbol:
    """One part of a line: `kind` is "text", "field" or "rule", and `value` the text or the name."""

    kind: str
    value: str


Line = tuple[Symbol, ...]


def _table(**columns: str) -> list[Entry]:
    """Every combination of the columns' words; a column called `a_b` holds `a:b` pairs."""
    fields = "_".join(columns).split("_")
    rows = product(*(words.split() for words in columns.values()))
    return [dict(zip(fields, ":".join(row).split(":"), strict=True)) for row in rows]


def _heroes() -> list[Entry]:
    she = {"he": "she", "He": "She", "his": "her", "His": "Her", "him": "her", "himself": "herself"}
    he = {"he": "he", "He": "He", "his": "his", "His": "His", "him": "him", "himself": "himself"}
    girls = _table(name="Lily Mia Anna Rosie Ella Zoe Nora Ruby Ivy Clara Daisy Maya", kind="girl")
    girls += _table(name_kind="Hazel:rabbit Dot:duckling Willow:fox Pearl:lamb Poppy:mouse Luna:kitten")
    boys = _table(name="Tom Ben Sam Max Leo Finn Jack Noah Theo Oscar Hugo Eli", kind="boy")
    boys += _table(name_kind="Rusty:fox Bruno:bear Pip:mouse Basil:badger Otto:otter Bramble:rabbit")
    return [hero | she for hero in girls] + [hero | he for hero in boys]


CAST: dict[str, list[Entry]] = {
    "hero": _heroes(),
    "friend": _table(
        mood="little kind wise funny gentle brown white friendly clever shy",
        animal_sound="dog:barked cat:purred bird:sang frog:croaked squirrel:chattered goat:bleated "
        "goose:honked pony:neighed owl:hooted bee:buzzed hen:clucked cricket:chirped",
    ),
    "thing": _table(
        colour="red blue green yellow purple pink silver golden tiny shiny striped wooden",
        thing="ball kite hat boat drum scarf bell book button ribbon lantern whistle basket puppet",
    ),
    "place": _table(place="park forest garden meadow orchard village valley woods"),
    "kin": _table(kin="mother father grandmother grandfather sister brother aunt uncle"),
    "treat": _table(flavor="cherry lemon honey berry carrot plum peach pumpkin", food="cake pie tart pudding muffin"),
    "bloom": _table(petal="red yellow white pink purple blue", flower="tulip rose daisy poppy pansy"),
    "fear": _table(fear="dark thunder wind night shadows storm"),
    "skill": _table(skill="swim dance whistle sing skate juggle climb paint"),
}
_MEMBERS = tuple(CAST)
_OWNER = {field: member for member, entries in CAST.items() for field in entries[0]}


def _symbols(line: str) -> Line:
    """`"a {thing} <spot>."` as the symbols text "a ", field "thing", text " ", rule "spot", text "."."""
    parts = re.findall(r"\{(\w+)\}|<(\w+\??)>|([^{<]+)", line)
    symbols = []
    for field, rule, text in parts:
        kind = "field" if field else "rule" if rule else "text"
        symbols.append(Symbol(kind, field or rule or text))
    return tuple(symbols)


def _read(path: Path) -> tuple[dict[str, list[Line]], list[str]]:
    """The rules of a stories file, and the names of those that are whole sentences.

    Each plot becomes a line of the rule `story`, in which every sentence is followed by one space;
    a step `x?` becomes a rule of that name: the sentence, or nothing.
    """
    rules: dict[str, list[Line]] = {"story": []}
    sentences: dict[str, None] = {}
    current = ""
    for raw in path.read_text(encoding="ascii").splitlines():
        if not raw or raw.startswith("#"):
            continue
        if raw.startswith("  "):
            rules[current].append(_symbols(raw[2:]))
        elif raw.startswith("plot "):
            steps = raw.partition(": ")[2].split()
            for step in steps:
                name = step.rstrip("?")
                sentences[name] = None
                if step != name:
                    rules[step] = [_symbols(f"<{name}> "), ()]
            plot = [f"<{step}>" if step.endswith("?") else f"<{step}> " for step in steps]
            rules["story"].append(_symbols("".join(plot)))
        else:
            current = raw.removesuffix(":")
            if current in rules:
                raise ValueError(f"{path.name}: the rule {current!r} is there twice")
            rules[current] = []
    return rules, list(sentences)


RULES, SENTENCES = _read(Path(__file__).with_name("stories.txt"))


T = TypeVar("T")


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, earlier ones more often: the n-th (from 0) has weight 1 / (n + 2).

    With even odds a model's likeliest next word would be a matter of rounding; this makes it a clear one.
    """
    return rng.choices(options, [1 / (n + 2) for n in range(len(options))])[0]


def story(rng: random.Random) -> str:
    """One story: 5 to 8 sentences that share a cast, from "Once upon a time" to a happy ending."""
    cast = {member: _pick(rng, entries) for member, entries in CAST.items()}

    def render(rule: str) -> str:
        out = []
        for symbol in _pick(rng, RULES[rule]):
            if symbol.kind == "text":
                out.append(symbol.value)
            elif symbol.kind == "field":
                out.append(cast[_OWNER[symbol.value]][symbol.value])
            else:
                out.append(render(symbol.value))
        return "".join(out)

    return render("story").strip()


# The shortest stretch that ends at a stop outside quotation marks, or at a quotation that ends in a stop and
# is followed by a capital ('"Look!" said Ivy.' goes on, 'Ivy said, "Look!" They ran.' does not).
_SENTENCE = re.compile(r'(?:[^".!?]|"[^"]*")*?(?:[.!?]|"[^"]*[.!?]"(?=\s+["A-Z]|\s*$))|.+', re.DOTALL)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order; an unfinished one at the end is returned as it is."""
    return [sentence for found in _SENTENCE.findall(text) if (sentence := found.strip())]


# What is left of each member of the cast: the indices of the entries that agree with the text so far.
Left = tuple[frozenset[int], ...]
State = tuple[int, Left]


class _Recogniser:
    """Finds where each rule can end in one text; memoised by rule, position and what is left of the cast."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.memo: dict[tuple[str, int, Left], set[State]] = {}

    def ends(self, rule: str, pos: int, left: Left) -> set[State]:
        key = (rule, pos, left)
        if key not in self.memo:
            self.memo[key] = set().union(*(self._line(line, (pos, left)) for line in RULES[rule]))
        return self.memo[key]

    def _line(self, line: Line, start: State) -> set[State]:
        states = {start}
        for symbol in line:
            states = set().union(*(self._symbol(symbol, pos, left) for pos, left in states))
        return states

    def _symbol(self, symbol: Symbol, pos: int, left: Left) -> set[State]:
        if symbol.kind == "rule":
            return self.ends(symbol.value, pos, left)
        if symbol.kind == "text":
            return {(pos + len(symbol.value), left)} if self.text.startswith(symbol.value, pos) else set()
        member = _OWNER[symbol.value]
        place = _MEMBERS.index(member)
        agreeing: dict[str, list[int]] = {}
        for index in left[place]:
            word = CAST[member][index][symbol.value]
            if self.text.startswith(word, pos):
                agreeing.setdefault(word, []).append(index)
        return {
            (pos + len(word), (*left[:place], frozenset(indices), *left[place + 1 :]))
            for word, indices in agreeing.items()
        }

    def accepts(self, rule: str) -> bool:
        everyone = tuple(frozenset(range(len(entries))) for entries in CAST.values())
        return any(pos == len(self.text) for pos, _ in self.ends(rule, 0, everyone))


def parses(sentence: str) -> bool:
    """Whether the text is exactly one sentence of the grammar, by itself."""
    recogniser = _Recogniser(sentence)
    return any(recogniser.accepts(rule) for rule in SENTENCES)


def parses_story(text: str) -> bool:
    """Whether the text is exactly one whole story: a plot in order, with one cast all through."""
    return _Recogniser(text + " ").accepts("story")
