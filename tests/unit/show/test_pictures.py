"""Pictures, as data and as files."""

from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.errors import UsageError
from hybrid.show.picture_files import write_plan_picture, write_timeline_picture
from hybrid.show.plan_picture import COLOURS, ColumnShare, Place, plan_picture
from hybrid.show.timeline_picture import TimelinePicture, timeline_picture
from offload.devices.base import Span
from offload.observe.timeline import Operator, Step
from offload.plan.plan import HostTier, Plan
from tests.fakes import placement, small_plan

PNG = b"\x89PNG\r\n\x1a\n"


def mixed_plan() -> Plan:
    """Two layers of different kinds, of 100 columns of 64 bytes each, and a head. One keeps its columns in a file."""
    filed = replace(placement("1", "in_proj", 0, 20), tier=HostTier.FILE)
    placements = (placement("0", "q_proj", 60, 10), placement("0", "down_proj", 100, 0), filed)
    return replace(small_plan(), placements=(*placements, placement("", "lm_head", 0, 0)))


def test_a_cell_is_split_as_its_columns_are() -> None:
    picture = plan_picture(mixed_plan())
    assert picture.layers == ("0", "1")
    assert picture.rows == ("q_proj\n6.25 KiB", "down_proj\n6.25 KiB", "in_proj\n6.25 KiB")
    assert {(cell.column, cell.row): cell.parts for cell in picture.cells} == {
        (0, 0): (ColumnShare(Place.RESIDENT, 0.6), ColumnShare(Place.STREAMED, 0.1), ColumnShare(Place.RAM, 0.3)),
        (0, 1): (ColumnShare(Place.RESIDENT, 1.0),),
        (1, 2): (ColumnShare(Place.STREAMED, 0.2), ColumnShare(Place.FILE, 0.8)),
    }
    (head,) = picture.heads
    assert (head.label, head.parts) == ("lm_head\n6.25 KiB", (ColumnShare(Place.RAM, 1.0),))


def test_the_legend_has_the_places_in_use_and_their_sums() -> None:
    assert [entry.text for entry in plan_picture(mixed_plan()).legend] == [
        "resident in VRAM: 10.00 KiB, 40%",
        "streamed from RAM at every step: 1.88 KiB, 8%",
        "on the CPU, in RAM: 8.12 KiB, 32%",
        "on the CPU, in a file: 5.00 KiB, 20%",
    ]
    on_host = replace(small_plan(), placements=(placement("0", "q_proj", 0, 0),))
    assert [entry.text for entry in plan_picture(on_host).legend] == ["on the CPU, in RAM: 6.25 KiB, 100%"]


def test_the_title_says_what_is_planned_and_predicted() -> None:
    picture = plan_picture(mixed_plan())
    assert picture.title == "fake on bench-top, its rates estimated · VRAM budget 8.00 MiB"
    assert picture.subtitle.startswith("predicted 500.0 tokens/s with 1,024 tokens in the cache, bound by host · VRAM ")


def test_every_place_has_a_colour_of_its_own() -> None:
    assert len({COLOURS[place] for place in Place}) == len(Place)


def step(name: str, start_s: float, duration_s: float) -> Step:
    """A norm, host columns, and a wait beside a GEMM that overlaps with a copy of weights; then nothing."""
    tenth = duration_s / 10
    host = (
        Span("islands", "island 0", start_s, tenth, Operator.ISLAND, "Cast, SimplifiedLayerNormalization"),
        Span("linears", "host columns", start_s + tenth, 3 * tenth, Operator.HOST_COLUMNS, "q_proj, k_proj"),
        Span("linears", "wait", start_s + 4 * tenth, 2 * tenth, Operator.WAIT, "q_proj, k_proj"),
    )
    devices = (
        Span("compute", "gemm 1x2x3", start_s + tenth, 4 * tenth, Operator.GEMM, "1x2x3"),
        Span("compute", "gemm 1x2x3", start_s + 2 * tenth, tenth, Operator.GEMM, "1x2x3"),
        Span("weight copies", "copy-in 9 B", start_s + 8 * tenth, 9 * tenth, Operator.COPY_IN, "weight copies stream"),
    )
    return Step(name, start_s, duration_s, host, devices)


STEPS = (step("prefill of 3 tokens", 0, 9), step("decode", 10, 8), step("decode", 20, 1), step("decode", 30, 3),
         step("decode", 40, 2))  # fmt: skip


def tracks(picture: TimelinePicture) -> dict[str, float]:
    return {track.name: round(track.share, 6) for track in picture.tracks}


def test_the_decode_step_of_middle_duration_is_drawn() -> None:
    """The first is left out: it binds buffers."""
    picture = timeline_picture(STEPS, "fake", modelled=False)
    assert picture.title == "fake · decode step 4 of 4 recorded, the one of middle duration: 2 s"
    (whole,) = picture.views
    assert (whole.start_ms, whole.stop_ms) == (0, 2000)
    assert timeline_picture(STEPS[:1], "fake", False).title == "fake · prefill of 3 tokens, the last step recorded: 9 s"
    with pytest.raises(UsageError, match="nothing to draw"):
        timeline_picture((), "fake", False)


def test_tracks_say_how_busy_they_were_within_the_step() -> None:
    assert tracks(timeline_picture(STEPS, "fake", modelled=False)) == {
        "islands": 0.1,
        "Linears on the CPU": 0.3,
        "waiting": 0.2,
        "device: multiplying": 0.4,  # what overlaps counts once
        "device: weights in": 0.2,  # what comes after the step does not count
    }


def test_a_simulated_device_is_called_modelled() -> None:
    picture = timeline_picture(STEPS, "fake", modelled=True)
    assert "the device is simulated: its bars are modelled" in picture.title
    named = [name for name in tracks(picture) if "device" in name]
    assert named == ["modelled device: multiplying", "modelled device: weights in"]


def test_bars_start_with_the_step_and_end_with_it_and_have_labels_where_there_is_room() -> None:
    (whole,) = timeline_picture(STEPS, "fake", modelled=False).views
    islands, host, _, gemm, _, copy = whole.bars
    assert (islands.start_ms, islands.duration_ms, islands.label) == (0, pytest.approx(200), "norm")
    assert (host.label, gemm.label, copy.label) == ("q, k", "gemm", "copy-in")
    assert copy.start_ms + copy.duration_ms == pytest.approx(2000)
    short = replace(STEPS[4].host[0], duration_s=0.01)
    narrow = timeline_picture([replace(STEPS[4], host=(short,))], "fake", modelled=False).views[0]
    assert narrow.bars[0].label == ""


def test_a_step_of_many_bars_gets_a_closer_look() -> None:
    host = tuple(Span("islands", str(n), n * 1e-3, 0.5e-3, Operator.ISLAND, "Add") for n in range(100))
    _, closer = timeline_picture([Step("decode", 0, 0.1, host)], "fake", modelled=False).views
    assert (closer.start_ms, closer.stop_ms) == (pytest.approx(44), pytest.approx(55.5))
    assert [bar.label for bar in closer.bars] == ["Add"] * 12


def test_the_pictures_become_files_that_replace_what_was_there(tmp_path: Path) -> None:
    plan_file, timeline_file = tmp_path / "plan.png", tmp_path / "timeline.png"
    plan_file.write_text("old")
    write_plan_picture(replace(mixed_plan(), model="$x$ \\frac 猫"), plan_file)
    write_timeline_picture(STEPS, "fake", False, timeline_file)
    for file in (plan_file, timeline_file):
        content = file.read_bytes()
        assert content.startswith(PNG)
        assert 5_000 < len(content) < 500_000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plan.png", "timeline.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--draw .* cannot be written: "):
        write_plan_picture(mixed_plan(), tmp_path / "gone" / "plan.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=r"--draw .* cannot be written: "):
        write_plan_picture(mixed_plan(), tmp_path / "folder.png")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]
