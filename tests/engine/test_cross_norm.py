"""Batch norm over ranks equals batch norm on the joined batch."""

from pathlib import Path

RANKS = Path(__file__).with_name("cross_norm_ranks.py")


def test_four_ranks_and_groups_of_them_equal_the_joined_batch(tmp_path, launcher):
    launcher.start(tmp_path, ranks=4, call=str(RANKS))
    assert launcher.wait() == [0, 0, 0, 0], launcher.said()


def test_a_compiled_network_shares_as_well(tmp_path, launcher):
    launcher.start(tmp_path, ranks=2, call=str(RANKS))
    assert launcher.wait() == [0, 0], launcher.said()
