import pytest

from tests.unit.planning.builders import a_pool, an_intent, plan_one
from trimtab.planning.estimate import hourly
from trimtab.planning.prices import PriceBook, PriceBookInvalidError, parse_price_book, price_for
from trimtab.planning.snapshot import Config


def test_amounts_are_exact_micro_usd():
    """Decimal strings become integers without a float between."""
    book = parse_price_book(
        {"currency": "USD", "cpuHour": {"*": "0.000001"}, "gpuHour": {"NVIDIA-H100*": "4.5"}}
    )
    assert price_for(book.cpu_hour, "anything") == 1
    assert price_for(book.gpu_hour, "NVIDIA-H100-80GB-HBM3") == 4_500_000
    assert price_for(book.gpu_hour, "NVIDIA-L4") is None


def test_the_most_specific_glob_wins():
    """More literal characters beat fewer, whatever the order in the file."""
    globs = {"*": "1", "AMD EPYC*": "2", "AMD EPYC 9?54": "3", "AMD*": "4"}
    for items in (globs.items(), reversed(globs.items())):
        book = parse_price_book({"cpuHour": dict(items)})
        assert price_for(book.cpu_hour, "AMD EPYC 9654") == 3_000_000
        assert price_for(book.cpu_hour, "AMD EPYC 7763") == 2_000_000
        assert price_for(book.cpu_hour, "Intel") == 1_000_000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "must be a mapping"),
        ({"cpuHours": {}}, "key 'cpuHours' is unknown; known keys are"),
        ({"currency": "EUR"}, "currency is 'EUR'"),
        ({"cpuHour": "0.04"}, "cpuHour is '0.04', but it must map globs"),
        ({"cpuHour": {"*": 0.04}}, r"cpuHour.\* is 0.04, but it must be a quoted decimal"),
        ({"cpuHour": {"*": "-1"}}, r"cpuHour.\* is '-1'"),
        ({"memoryGiBHour": "cheap"}, "memoryGiBHour is 'cheap'"),
        ({"memoryGiBHour": "0.0000001"}, "at most 6 decimals"),
    ],
)
def test_a_broken_price_book_names_key_value_and_remedy(data, said):
    """A typo is found by its key, not by a wrong cost."""
    with pytest.raises(PriceBookInvalidError, match=said):
        parse_price_book(data)


def test_no_price_book_is_no_price():
    """An absent document is an empty book, not an error and not zero."""
    assert parse_price_book(None) == PriceBook()


def test_a_replica_on_cpu_costs_its_threads_and_memory():
    """replicas·(threads·cpuHour + GiB·memoryGiBHour), by hand."""
    book = parse_price_book({"cpuHour": {"*": "0.04"}, "memoryGiBHour": "0.005"})
    config = Config(product="cpu", cpu_model="x", precision="bf16", threads=4)
    cost = hourly(config, replicas=3, memory_bytes=2 * 2**30, prices=book)
    assert cost == 3 * (4 * 40_000 + 2 * 5_000)


def test_the_cost_per_million_tokens_follows_from_rate_and_hour():
    """costPerHour·10⁶/(3600·rate·n_o), rounded up."""
    option = plan_one(an_intent(), pools=(a_pool(),)).option
    expected = option.cost_per_hour_micro_usd * 1e6 / (3600 * 0.2 * 64)
    assert option.cost_per_million_output_tokens_micro_usd == pytest.approx(expected, abs=1)
    assert (
        option.cost_per_million_at_capacity_micro_usd
        < option.cost_per_million_output_tokens_micro_usd
    )
