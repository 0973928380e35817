from woodfrog.cli.show import plain, size, table


def test_numbers_stand_right_and_words_left() -> None:
    assert (
        table(("NAME", "MS"), [("a", "1.5"), ("long", "100")]) == "NAME   MS\na     1.5\nlong  100"
    )


def test_sizes_are_decimal() -> None:
    assert [size(n) for n in (0, 999, 1500, 2_500_000, 3_000_000_000)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB",
    ]  # fmt: skip


def test_nothing_that_a_client_named_moves_the_cursor() -> None:
    name = "frog\x1b]0;gone\x07\n\u202e\x9b2J"
    assert plain(name) == "frog?]0;gone????2J"
    assert table(("MODEL",), [(name,)]).count("\n") == 1
    assert plain("frög 終 🐸") == "frög 終 🐸"
