"""What is paid for what wait, how policies compare, and the picture of it."""

from pathlib import Path

import pytest
from loadtest.frontier import Point, front, gpu_s_at, p99_at
from loadtest.frontier_plot import draw, figure

POINTS = [
    Point("ours", 1.0, 0.1, 8.0, 100.0),
    Point("ours", 0.1, 0.1, 9.0, 200.0),  # worse in both
    Point("ours", 0.0, 0.1, 2.0, 400.0),
]


def test_who_is_beaten_in_both_is_not_on_the_front() -> None:
    assert front(POINTS[::-1]) == [POINTS[0], POINTS[2]]
    assert front([]) == []


def test_between_two_runs_both_follow_a_power_and_beyond_them_nothing_is_made_up() -> None:
    assert p99_at(POINTS, 200.0) == pytest.approx(4.0)
    assert p99_at(POINTS, 1e6) == 2.0
    assert p99_at(POINTS, 99.0) is None
    assert gpu_s_at(POINTS, 4.0) == pytest.approx(200.0)
    assert gpu_s_at(POINTS, 50.0) == 100.0
    assert gpu_s_at(POINTS, 1.9) is None
    assert p99_at([], 1.0) is None
    assert gpu_s_at([], 1.0) is None


def test_the_picture_names_each_policy_once_a_panel_and_is_small(tmp_path: Path) -> None:
    points = [*POINTS, Point("theirs", 0.0, 3.0, 20.0, 300.0)]
    panels = figure(points, "both").axes
    assert [len(panel.lines) for panel in panels] == [2, 2]
    for panel in panels:
        assert panel.get_yscale() == "log"
        assert sorted(text.get_text() for text in panel.texts) == ["ours", "theirs"]
        heights = sorted(panel.transData.transform((0, text.xyann[1]))[1] for text in panel.texts)  # type: ignore[attr-defined]
        assert heights[1] - heights[0] > 8, "one label hides the other"
    path = tmp_path / "both.png"
    draw(points, "both", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 100_000
