"""The contract of transports over protocol v1: what it can promise, and what not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from tests.contract import test_transports as contract
from tests.contract.test_transports import (  # noqa: F401  # fixtures
    Make,
    agent,
    sender,
)
from tests.support import v1_server

_POPS = "a message that was read is gone from a v1 exchange"
_NO_INCARNATIONS = "v1 does not tell one consumer of a mailbox from the next"
_SILENCE = "v1 knows when an owner was last heard of, not when it is connected"

CANNOT = {
    "test_what_was_not_answered_comes_to_the_next_incarnation_marked": _POPS,
    "test_termination_answers_what_was_not_answered": _POPS,
    "test_what_comes_while_an_agents_client_closes_is_for_the_next": _POPS,
    "test_a_newer_incarnation_takes_over_and_the_older_learns_it": _NO_INCARNATIONS,
    "test_an_older_incarnation_that_closes_leaves_the_newer_alone": _NO_INCARNATIONS,
    "test_an_agents_client_says_once_that_its_mailbox_was_lost": _NO_INCARNATIONS,
    "test_an_owner_that_went_away_is_inactive_after_a_while": _SILENCE,
    "test_signs_of_life_end_with_the_link_and_can_be_given_without": _SILENCE,
    "test_agents_are_found_by_their_class_and_its_bases": "v1 finds uids, not names",
}
"""Claims that v1 cannot keep, and why."""

globals().update(
    (name, test)
    for name, test in vars(contract).items()
    if name.startswith("test_") and name not in CANNOT
)


@pytest.fixture(scope="module", params=["v1 server", "our server"])
def make_factory(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes the factory of one exchange, at which there is nothing but v1."""
    if request.param == "v1 server":
        with v1_server.running("--limit", str(1 << 26)) as url:
            yield lambda: HttpExchangeFactory(url)
        return
    with spawn_http_exchange() as ours:
        # There is no /v1/v2.
        yield lambda: HttpExchangeFactory(
            ours.url + "/v1",
            token=ours.find_token(),
            fingerprint=ours.find_fingerprint(),
        )


def test_what_v1_cannot_promise_is_part_of_the_contract() -> None:
    assert set(CANNOT) <= set(vars(contract))
