"""Large parts on gloo: the same results as small ones, and the same end when a rank is lost."""

from __future__ import annotations

import pytest

from plancc.runtime.failure import RankFailure
from plancc.runtime.launch import launch


@pytest.mark.parametrize(("world", "group"), [(2, [0, 1]), (3, [0, 1, 2]), (4, [0, 2, 3])])
def test_large_parts_arrive_and_add_up(world, group):
    assert all(launch(world, "large_entries:large_verbs", {"group": group}))


def test_a_rank_that_ends_is_named_by_those_who_wait_for_its_part():
    with pytest.raises(RankFailure) as caught:
        launch(3, "large_entries:dies_before_large", {})
    assert caught.value.rank == 1
