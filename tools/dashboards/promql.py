"""Expressions that several dashboards are written in."""

from __future__ import annotations


def quantile(q: float, metric: str, *, by: str = "", matcher: str = "") -> str:
    """Return a quantile of a histogram over the scrape interval."""
    labels = f"le,{by}" if by else "le"
    inner = f"rate({metric}_bucket{{{matcher}}}[$__rate_interval])".replace("{}", "")
    return f"histogram_quantile({q}, sum by ({labels}) ({inner}))"


def rate(metric: str, *, by: str, matcher: str = "") -> str:
    """Return a counter's rate, summed by labels."""
    selected = f"{metric}{{{matcher}}}" if matcher else metric
    return f"sum by ({by}) (rate({selected}[$__rate_interval]))"
