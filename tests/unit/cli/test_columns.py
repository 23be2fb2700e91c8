"""Columns as features, and files of rows as others write them."""

import gzip
import json

import pytest

from trimtab.cli.columns import Columns
from trimtab.cli.output import CommandError
from trimtab.cli.traces import read_rows


@pytest.mark.parametrize("cell", ["", " ", None, "nan", "inf", "-1"])
def test_one_odd_cell_leaves_a_column_of_numbers(cell):
    """A number that is blank, not finite or negative is missing in its row alone."""
    rows = [{"bytes": "10"}, {"bytes": cell}]
    columns = Columns.of(rows, but=())
    assert (columns.numbers, columns.categories) == (("bytes",), ())
    assert columns.features(rows[0]).missing is None
    found = columns.features(rows[1])
    assert (found.numbers, found.missing) == ((0.0,), "bytes:absent")


def test_a_word_makes_a_category():
    """A column with one cell that is no number is a category in every row."""
    columns = Columns.of([{"codec": "1"}, {"codec": "av1"}], but=())
    assert columns.numbers == ()
    assert columns.features({"codec": "1"}).categories == ("codec=1",)


def test_a_column_without_a_cell_is_none():
    """What is blank in every row says nothing, and what only later rows have is a column too."""
    columns = Columns.of([{"a": "", "b": "1"}, {"b": "2", "c": "x"}], but=())
    assert (columns.numbers, columns.categories) == (("b",), ("c",))


def test_an_input_without_a_row_lacks_its_features():
    """As many numbers as the others have, and the first column is named as missing."""
    found = Columns(("bytes",), ("codec",)).features(None)
    assert (found.numbers, found.missing) == ((0.0,), "bytes:absent")


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path):
    """A CSV that a spreadsheet wrote has the column that it shows."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfinput,n\na,1\n")
    assert read_rows(path) == [(2, {"input": "a", "n": "1"})]


def test_fields_beyond_the_header_are_left_out(tmp_path):
    """One field too many makes no column without a name."""
    path = tmp_path / "a.csv"
    path.write_text("input,n\na,1,2\n")
    assert read_rows(path) == [(2, {"input": "a", "n": "1"})]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_only_line_ends_end_a_row(tmp_path, kind):
    """A line separator of Unicode inside a value is part of it."""
    path = tmp_path / f"a.{kind}"
    row = {"input": "a\u2028b"}
    text = json.dumps(row, ensure_ascii=False) if kind == "jsonl" else "input\na\u2028b\n"
    path.write_text(text, encoding="utf-8")
    assert [found for _, found in read_rows(path)] == [row]


def test_a_damaged_archive_is_refused_in_a_sentence(tmp_path):
    """A flipped byte inside the compressed data names the file."""
    path = tmp_path / "a.csv.gz"
    data = bytearray(gzip.compress(b"input,n\na,1\n" * 50))
    data[12] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CommandError, match=r"a\.csv\.gz cannot be read"):
        read_rows(path)


def test_a_field_beyond_any_measure_is_refused_by_line(tmp_path):
    """What the CSV reader does not take is answered by a sentence with the line."""
    path = tmp_path / "a.csv"
    path.write_text(f"input\n{'x' * 200_000}\n")
    with pytest.raises(CommandError, match="line 2 is no CSV"):
        read_rows(path)
