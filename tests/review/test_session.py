"""A review: what is shown, said, taken back and stored."""

from __future__ import annotations

import numpy as np
import pytest

from gal_d2.pool.verdicts import Verdict, VerdictFile, settled
from gal_d2.review.session import ReviewSession, in_runs


@pytest.fixture
def session(pool, beliefs) -> ReviewSession:
    return ReviewSession(pool, beliefs, reviewer="ann")


def shown(session: ReviewSession) -> int:
    return session.next_items()[0].pool_id


def test_the_most_worth_comes_first_and_categories_in_runs(session, beliefs):
    items = session.next_items(40)
    gain = session.outlook.gain
    place = {int(i): n for n, i in enumerate(beliefs.pool_ids.tolist())}
    assert gain[place[items[0].pool_id]] == gain.max()
    categories = [item.category_id for item in items[:10]]
    assert len(set(categories[:5])) == 1 and len(set(categories[5:10])) == 1
    assert session.next_items(40) == items  # a page that is loaded again


def test_everything_is_shown_once(session, pool):
    said: dict[int, str] = {}
    while items := session.next_items():
        assert items[0].pool_id not in said
        said[items[0].pool_id] = ("good", "bad", "skip")[len(said) % 3]
        session.judge(items[0].pool_id, said[items[0].pool_id])
    assert sorted(said) == pool.all_ids().tolist()
    progress = session.progress()
    assert [progress[word] for word in ("good", "bad", "skip", "left")] == [20, 20, 20, 0]
    judged = settled(VerdictFile(pool.root).read(), pool)
    words = {1: "good", -1: "bad"}
    found = {i: words[sign] for i, sign in zip(*(part.tolist() for part in judged), strict=True)}
    assert found == {i: word for i, word in said.items() if word != "skip"}


def test_a_verdict_is_taken_back(session, pool):
    first = shown(session)
    session.judge(first, "bad")
    second = shown(session)
    session.judge(second, "skip")
    assert session.undo() == second and shown(session) == second
    assert session.undo() == first and shown(session) == first
    assert session.undo() is None
    assert [v.verdict for v in VerdictFile(pool.root).read()] == ["bad", "skip", "undo", "undo"]
    assert len(settled(VerdictFile(pool.root).read())[0]) == 0
    assert session.progress()["left"] == 60
    session.judge(first, "good")
    session.judge(first, "bad")  # a key pressed twice, or two windows
    assert session.progress()["good"] == 0 and session.progress()["bad"] == 1
    assert session.undo() == first and session.undo() is None


def test_others_judge_at_the_same_time(session, pool, beliefs):
    other = ReviewSession(pool, beliefs, reviewer="bob")
    mine = [item.pool_id for item in session.next_items(30)]
    for pool_id in mine[:12]:
        other.judge(pool_id, "bad")
    for pool_id in mine[12:22]:  # then it learns anew
        session.judge(pool_id, "good")
    assert not {item.pool_id for item in session.next_items(40)} & set(mine[:22])
    assert session.progress()["calibrated_by"] == 22
    assert {v.reviewer for v in VerdictFile(pool.root).read()} == {"ann", "bob"}


def test_some_categories_alone(pool, beliefs):
    session = ReviewSession(pool, beliefs, only={12})
    assert {item.category_id for item in session.next_items(60)} == {12}
    assert session.progress()["left"] == 30


def test_a_second_session_goes_on(session, pool, beliefs):
    pool_id = shown(session)
    session.judge(pool_id, "skip")
    again = ReviewSession(pool, beliefs, reviewer="ann")
    assert pool_id not in {item.pool_id for item in again.next_items(60)}
    # What I skipped, somebody else may know.
    other = ReviewSession(pool, beliefs, reviewer="bob")
    assert pool_id in {item.pool_id for item in other.next_items(60)}


def test_corrupt_cut_outs_are_not_shown(session, pool):
    corrupt = [item.pool_id for item in session.next_items(2)]
    pool.corrupt_ids.update(dict.fromkeys(corrupt, "it is broken"))  # as found on reading
    seen = []
    while items := session.next_items():
        seen.append(items[0].pool_id)
        session.judge(seen[-1], "skip")
    assert len(seen) == 58 and not set(seen) & set(corrupt)


@pytest.mark.parametrize("word", ["fine", "undo", "", None, 1])
def test_words_that_are_none(session, pool, word):
    with pytest.raises(ValueError, match="a verdict is good, bad or skip"):
        session.judge(shown(session), word)
    assert VerdictFile(pool.root).read() == []


def test_a_cut_out_that_is_not_there(session, pool):
    with pytest.raises(KeyError):
        session.judge(5, "good")
    assert VerdictFile(pool.root).read() == []


def test_the_category_is_stored_with_the_verdict(session, pool):
    pool_id = shown(session)
    session.judge(pool_id, "good")
    (verdict,) = VerdictFile(pool.root).read()
    category = int(pool.category_of(np.array([pool_id]))[0])
    assert (verdict.category_id, verdict.category) == (category, pool.category_names[category])
    assert verdict == Verdict(pool_id, category, verdict.category, "good", "ann", verdict.time)


def test_runs_keep_the_rest_in_order():
    assert in_runs(np.empty(0, np.int64), 3).tolist() == []
    assert in_runs(np.array([1, 2, 1, 1, 2, 3]), 2).tolist() == [0, 2, 1, 4, 3, 5]
