import json
from pathlib import Path

import pytest
from loadtest import report
from loadtest.report import Bench, Row, quantile


def test_a_row_has_the_order_statistics_of_its_samples() -> None:
    row = Row.of("frozen", "first_token_s", [0.3, 0.1, 0.2])
    assert (row.n, row.min, row.median, row.max) == (3, 0.1, 0.2, 0.3)
    assert row.p99 is None, "three samples have no 99th percentile"


def test_a_hundred_samples_have_a_p99() -> None:
    assert Row.of("c", "m_s", [float(i) for i in range(1, 101)]).p99 == 99.0
    assert Row.of("c", "m_s", [float(i) for i in range(1, 100)]).p99 is None


def test_quantile_is_by_nearest_rank() -> None:
    ordered = [1.0, 2.0, 3.0, 4.0]
    assert [quantile(ordered, share) for share in (0, 0.25, 0.5, 0.51, 1)] == [1, 1, 2, 3, 4]


def test_figures_keep_five_significant_digits() -> None:
    row = Row.of("c", "m_s", [0.000123456789], rivals={"other": 1234567.0})
    assert (row.median, row.rivals["other"]) == (0.00012346, 1234600.0)


@pytest.mark.parametrize("samples", [[], [float("nan")], [1.0, float("inf")]])
def test_samples_that_say_nothing_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples must be finite"):
        Row.of("c", "m_s", samples)


def test_a_floor_needs_its_note_and_a_note_its_floor() -> None:
    with pytest.raises(ValueError, match="come together"):
        Row.of("c", "m_s", [1.0], floor=0.5)
    with pytest.raises(ValueError, match="come together"):
        Row.of("c", "m_s", [1.0], floor_note="one forward pass")


def test_a_case_and_metric_comes_once() -> None:
    bench = Bench("b")
    bench.add("c", "m_s", [1.0])
    bench.add("c", "other_s", [1.0])
    with pytest.raises(ValueError, match="comes twice"):
        bench.add("c", "m_s", [2.0])


def test_the_file_has_the_agreed_form_and_only_what_was_run(tmp_path: Path) -> None:
    bench = Bench("coldstart")
    bench.add("frozen", "first_token_s", [0.1, 0.2], floor=0.05, floor_note="one forward")
    value = json.loads(bench.write(tmp_path).read_text())
    assert list(value) == ["bench", "date", "commit", "machine", "versions", "rows"]
    assert list(value["machine"]) == ["cpu", "cores", "memory_gib", "gpu", "driver", "kernel"]
    assert value["machine"]["cores"] >= 1
    assert "python" in value["versions"]
    assert value["rows"] == [
        {
            "case": "frozen",
            "metric": "first_token_s",
            "n": 2,
            "min": 0.1,
            "median": 0.15,
            "p99": None,
            "max": 0.2,
            "floor": 0.05,
            "floor_note": "one forward",
            "rivals": {},
        }
    ]
    assert [path.name for path in tmp_path.iterdir()] in (
        ["coldstart.json"],
        ["coldstart.gpu.json"],
    )


def test_the_table_shows_a_figure_beside_its_floor_and_rivals() -> None:
    bench = Bench("b")
    bench.add("c1", "added_p50_ms", [1.25], floor=0.1, floor_note="two writes", rivals={"x": 2.5})
    head, line, note = bench.show().splitlines()
    assert head.split() == list(report._HEADER)
    assert line.split() == [
        "c1",
        "added_p50_ms",
        "1",
        *["1.25"] * 2,
        "-",
        "1.25",
        "0.1",
        "x",
        "2.5",
    ]
    assert note == "floor of added_p50_ms: two writes"
