"""Buffers of tensors between islands: no two live ones share one, and sizes follow the new tokens."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.engine.buffers import BufferPlan, plan_buffers
from hybrid.graph.graph import ElementType, Graph, Shape, TensorInfo
from hybrid.graph.program import Island, OutsideLinear, Program, ProgramLevel

FP32, FP16, INT64 = ElementType.FLOAT, ElementType.FLOAT16, ElementType.INT64


@dataclass(frozen=True)
class Made:
    """A tensor, the level that makes it, the levels that read it, and whether a Linear makes it."""

    name: str
    level: int
    read_at: tuple[int, ...]
    shape: Shape | None
    element_type: ElementType = FP32
    by_linear: bool = False


def program_of(made: list[Made], outputs: tuple[str, ...] = ()) -> Program:
    """As many levels as it takes, each with an island and the Linears that make its tensors."""
    levels = []
    for number in range(1 + max((level for m in made for level in (m.level, *m.read_at)), default=-1)):
        island = Island(
            name=f"island {number}",
            nodes=(),
            inputs=tuple(TensorInfo(m.name, m.element_type, m.shape) for m in made if number in m.read_at),
            outputs=tuple(
                TensorInfo(m.name, m.element_type, m.shape) for m in made if m.level == number and not m.by_linear
            ),
            initializers=(),
            has_matmul=False,
            dequantises=False,
        )
        linears = tuple(OutsideLinear(m.name, "", "x", m.name, 8) for m in made if m.level == number and m.by_linear)
        levels.append(ProgramLevel(island, linears))
    given_out = tuple(TensorInfo(name, FP32, None) for name in outputs)
    shapes = {m.name: m.shape for m in made if m.shape is not None}
    types = {m.name: m.element_type for m in made}
    return Program(Graph("g", (), (), given_out, {}, {}, types, shapes), tuple(levels), {})


def check_apart(made: list[Made], plan: BufferPlan, outputs: tuple[str, ...]) -> None:
    """Tensors whose lives overlap have buffers of their own; an output lives to the end."""
    end = 1 << 30
    lives = {m.name: (m.level, end if m.name in outputs else max(m.read_at, default=end)) for m in made}
    placed = list(plan.tensors.items())
    for number, (a, buffer) in enumerate(placed):
        for b, other in placed[number + 1 :]:
            overlap = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
            assert not (overlap and buffer.slot == other.slot), (a, b)


def test_a_chain_of_equal_tensors_takes_two_buffers() -> None:
    """Each is read one level on, while the next is being written."""
    made = [Made(f"h{n}", n, (n + 1,), (1, "S", 8)) for n in range(6)]
    plan = plan_buffers(program_of(made))
    assert [plan.tensors[f"h{n}"].slot for n in range(6)] == [0, 1, 0, 1, 0, 1]
    assert plan.slots == 2
    check_apart(made, plan, ())


def test_a_residual_keeps_its_buffer_until_its_last_reader() -> None:
    made = [Made("r", 0, (1, 4), (1, "S", 8)), *(Made(f"h{n}", n, (n + 1,), (1, "S", 8)) for n in range(5))]
    plan = plan_buffers(program_of(made))
    assert plan.slots == 3
    check_apart(made, plan, ())


def test_a_linears_input_and_output_lie_apart() -> None:
    made = [Made("x", 0, (), (1, "S", 8)), Made("y", 0, (1,), (1, "S", 8), by_linear=True)]
    plan = plan_buffers(program_of(made))
    assert plan.tensors["x"].slot != plan.tensors["y"].slot


def test_sizes_follow_the_new_tokens() -> None:
    """h takes 32 bytes a token, i 16 a token and f 64 whatever comes."""
    made = [
        Made("h", 0, (1,), (1, "S", 8)),
        Made("i", 1, (2,), (1, "S", 2), INT64),
        Made("f", 2, (3,), (4, 8), FP16),
    ]
    plan = plan_buffers(program_of(made))
    sizes = {tokens: plan.slot_bytes(tokens) for tokens in (1, 10)}
    assert {name: buffer.shape_for(10) for name, buffer in plan.tensors.items()} == {
        "h": (1, 10, 8),
        "i": (1, 10, 2),
        "f": (4, 8),
    }
    assert sizes == {1: [32, 16, 64], 10: [320, 160, 64]}


def test_equal_bytes_of_one_token_may_share_and_the_buffer_fits_both() -> None:
    made = [Made("h", 0, (1,), (1, "S", 8)), Made("f", 2, (3,), (1, 8))]
    plan = plan_buffers(program_of(made))
    assert plan.slots == 1
    assert (plan.slot_bytes(10), plan.slot_bytes(1)) == ([320], [32])


def test_what_cannot_be_planned_is_left_to_onnxruntime() -> None:
    made = [
        Made("past", 0, (1,), (1, 2, "P", 8)),
        Made("unknown", 0, (1,), None),
        Made("half known", 0, (1,), (1, None, 8)),
        Made("bf16", 0, (1,), (1, "S", 8), ElementType.BFLOAT16),
        Made("present", 0, (), (1, "S", 8)),
        Made("logits", 0, (), (1, "S", 8)),
    ]
    plan = plan_buffers(program_of(made, ("logits", "present")))
    assert list(plan.tensors) == ["logits"]


def test_logits_are_kept_to_the_end() -> None:
    made = [Made("logits", 0, (1,), (1, "S", 8)), *(Made(f"h{n}", n, (n + 1,), (1, "S", 8)) for n in range(1, 5))]
    plan = plan_buffers(program_of(made, ("logits",)))
    check_apart(made, plan, ("logits",))
    assert plan.slots == 3


_SHAPES = st.sampled_from([(1, "S", 8), (1, "S", 4), (1, 8), ("S", "S"), (1, "P", 8), None])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_two_live_tensors_share_a_buffer(data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, 8))
    made = []
    for number in range(data.draw(st.integers(1, 14))):
        level = data.draw(st.integers(0, levels - 1))
        read_at = data.draw(st.sets(st.integers(level + 1, levels), max_size=3))
        element_type = data.draw(st.sampled_from([FP32, FP16, INT64, ElementType.BOOL]))
        made.append(
            Made(f"t{number}", level, tuple(read_at), data.draw(_SHAPES), element_type, data.draw(st.booleans()))
        )
    made.append(Made("logits", levels, (), (1, "S", 8)))
    plan = plan_buffers(program_of(made, ("logits",)))
    check_apart(made, plan, ("logits",))
    for tokens in (1, 7):
        sizes = plan.slot_bytes(tokens)
        assert len(sizes) == plan.slots
        assert all(buffer.nbytes_for(tokens) <= sizes[buffer.slot] for buffer in plan.tensors.values())
