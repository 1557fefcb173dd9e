"""What the command line makes of a transport's parameters."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from itertools import pairwise

import pytest

from smtstack.errors import ConfigError
from smtstack.transport.params import FAST_MBPS, SOFTWARE, TransportParams, software
from workloads.options.common import add_transport_options, parse_param, settings


def params(*options: str, transport: str = "smt") -> TransportParams:
    parser = argparse.ArgumentParser()
    add_transport_options(parser)
    got = settings(parser.parse_args(["--transport", transport, "--certs", "a", "--iface", "lo",
                                      "--addr", "127.0.0.1:4000", "--mtu", "1500", *options])).params
    assert got is not None
    return got


def test_without_options_they_are_those_of_software():
    assert params() == SOFTWARE == software(None)


@pytest.mark.parametrize("rate", [1, 20, 100, 999, 1000, 40_000])
def test_they_follow_the_rate(rate):
    assert params("--link-mbps", str(rate)) == software(rate)


def test_what_is_given_wins():
    got = params("--link-mbps", "20", "--max-gso-size", "5000", "--unsched-bytes", "4000", "--window", "7000",
                 "--timeout-resends", "9")
    assert got == replace(software(20), max_gso_size=5000, unsched_bytes=4000, window=7000, timeout_resends=9)


def test_any_parameter_by_name():
    got = params("--link-mbps", "100", "--window", "7000", "--param", "max_rpcs_per_peer=4", "--param", "window=0",
                 "--param", "unsched_cutoffs=2147483647,0,0,0,0,0,9000, 300")
    assert got == replace(software(100), max_rpcs_per_peer=4, window=0,
                          unsched_cutoffs=(0x7FFFFFFF, 0, 0, 0, 0, 0, 9000, 300))
    for field in fields(TransportParams):
        value = getattr(SOFTWARE, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert parse_param(f"{field.name}={text}") == (field.name, value)


@pytest.mark.parametrize(("text", "complaint"), [
    ("window", "no NAME=VALUE"), ("windw=3", "did you mean window"), ("xyzzy=1", "there are mtu, max_gso_size"),
    ("window=x", "window: .* is not a whole size"), ("window=1,2", "window: .* is not a whole size"),
    ("window=", "whole size"),
    ("unsched_cutoffs=1,x", "whole numbers with commas"), ("unsched_cutoffs=1,2", "needs 8 values"),
    ("max_overcommit=0", "max_overcommit is 0"),
])
def test_parameters_that_are_none(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        params("--param", text)


def test_a_slower_link_needs_less_at_a_time_and_more_patience():
    rates = [*range(1, 30), *range(30, FAST_MBPS, 10), FAST_MBPS]
    made = list(map(software, rates))
    for slow, fast in pairwise(made):
        for name in ("unsched_bytes", "window", "max_incoming", "max_gso_size", "throttle_min_bytes"):
            assert getattr(slow, name) <= getattr(fast, name)
        for name in ("tick_ns", "max_nic_queue_ns", "resend_ticks", "request_ack_ticks"):
            assert getattr(slow, name) >= getattr(fast, name)
    for rate, made_for in zip(rates, made, strict=True):
        assert made_for.link_mbps == rate
        assert made_for.unsched_bytes >= 10_000
        # A peer is not asked again for what the network may still bring.
        silence_ns = made_for.resend_ticks * made_for.tick_ns
        assert silence_ns * rate // 8000 > made_for.max_incoming


def test_a_rate_that_is_none():
    with pytest.raises(ConfigError, match="link_mbps is 0"):
        software(0)
