import pytest

from tests.unit.bench.silicon_rows import a_row, write
from trimtab.bench.silicon import apart, read_rows
from trimtab.cli.output import CommandError


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_rows_are_read_plain_and_gzipped(tmp_path, name):
    """Names, lengths and times come in; the precision is the matrices' where it is given."""
    rows = [a_row(), a_row(gemm_quant_mode="fp8_block", tp_size=4)]
    found = read_rows(write(tmp_path / name, rows))
    assert (found.read, len(found.used), found.skipped) == (2, 2, {})
    assert [r.group.precision for r in found.used] == ["fp8", "fp8_block"]
    assert found.used[1].tensor_parallel_size == 4
    assert (found.used[0].ttft_ms, found.used[0].tpot_ms) == (100.0, 10.0)


def test_what_cannot_be_judged_is_counted_by_reason(tmp_path):
    """No row disappears: each is used or counted under the reason that it is not."""
    rows = [
        a_row(),
        a_row(precision=""),
        a_row(precision="fp6"),
        a_row(mode="disagg"),
        a_row(silicon_tpot_ms=""),
        a_row(silicon_tpot_ms="0"),
        a_row(osl=1),
        a_row(model_path="other/thing"),
        a_row(system="h200_sxm"),
        a_row(backend="vllm"),
    ]
    path = write(tmp_path / "rows.csv", rows)
    found = read_rows(path, model="EXAMPLE", backend="trtllm", system="h100_sxm")
    assert len(found.used) == 1
    assert found.skipped == {
        "no precision": 1,
        "no time per output token": 3,
        "other backend": 1,
        "other model": 1,
        "other system": 1,
        "precision fp6": 1,
        "prefill and decode on separate machines": 1,
    }
    assert len(found.used) + sum(found.skipped.values()) == found.read


def test_rows_of_another_engine_version_are_another_group(tmp_path):
    """Versions differ by tens of percent, so one never anchors the other."""
    rows = [a_row(), a_row(backend_version="1.2.0"), a_row(tp_size=2)]
    groups = read_rows(write(tmp_path / "rows.csv", rows)).by_group()
    assert [len(members) for members in groups.values()] == [2, 1]


def test_rows_known_to_be_off_stand_apart(tmp_path):
    """The H200 rows of vLLM 0.12.0 carry the reason; others carry none."""
    rows = [a_row(), a_row(system="h200_sxm", backend="vllm", backend_version="0.12.0")]
    groups = read_rows(write(tmp_path / "rows.csv", rows)).by_group()
    assert sorted(bool(apart(group)) for group in groups) == [False, True]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("model_path,system\n", "lacks the columns backend"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, words):
    """A missing file or column is one sentence with the option's name."""
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CommandError, match=words):
        read_rows(path)


def test_a_figure_that_is_no_number_is_counted(tmp_path):
    """One odd row takes no other with it; whole numbers may be written as 8.0."""
    rows = [a_row(), a_row(tp_size="two"), a_row(tp_size="2.0"), a_row(isl="1.5"), a_row(osl=0)]
    found = read_rows(write(tmp_path / "rows.csv", rows))
    assert [r.tensor_parallel_size for r in found.used] == [1, 2]
    assert list(found.skipped.values()) == [3]


def test_rows_without_ttft_keep_their_tpot(tmp_path):
    """A missing TTFT is no reason to leave out the time per output token."""
    (row,) = read_rows(write(tmp_path / "rows.csv", [a_row(silicon_ttft_ms="")])).used
    assert (row.tpot_ms, row.ttft_ms) == (10.0, pytest.approx(float("nan"), nan_ok=True))


def test_bytes_that_are_no_gzip_are_refused(tmp_path):
    """A file that only looks compressed is a sentence, no traceback."""
    path = tmp_path / "rows.csv.gz"
    path.write_text("plain")
    with pytest.raises(CommandError, match="cannot be read"):
        read_rows(path)
