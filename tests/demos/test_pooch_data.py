"""The network's stream is a pure function of its seed, and likes come after their post and are never negative."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec
import pytest

from riverkeeper.demos.flights_data import Timed
from riverkeeper.demos.pooch_data import (
    CALM,
    FOLLOWERS,
    HOME,
    PEDIGREE_WORDS,
    PUPPIES,
    PUPPY_FOLLOWERS,
    REGIONS,
    STAR_REACH,
    UNLIKED,
    Mood,
    post,
    stream,
)

POSTS = 2_000
SHOW = Mood(show=True)


def calm(number: int) -> Mood | None:
    return CALM if number < POSTS else None


def events(seed: int = 1) -> list[Timed]:
    return list(stream(seed, calm))


def decoded(stream: list[Timed]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.value) for event in stream]


def test_a_seed_gives_the_same_stream_each_time_and_another_seed_another() -> None:
    assert events(1) == events(1)
    assert events(1) != events(2)


def test_a_mood_changes_no_post_before_or_after_it() -> None:
    def moody(number: int) -> Mood | None:
        return SHOW if 500 <= number < 600 else calm(number)

    usual = {each["id"]: each for each in decoded(events())}
    changed = {each["id"] for each in decoded(list(stream(1, moody))) if usual[each["id"]] != each}
    assert changed, "the shows changed nothing"
    assert all(each.endswith("/likes") for each in changed), "a show changes likes, not posts"
    assert {500 <= int(each.removesuffix("/likes")[1:]) < 600 for each in changed} == {True}


def test_likes_come_after_their_post_in_the_order_of_time_and_once_at_most() -> None:
    posted: dict[str, float] = {}
    liked: set[str] = set()
    last = 0.0
    stream = events()
    for event, value in zip(stream, decoded(stream), strict=True):
        assert event.at >= last
        last = event.at
        if value["type"] == "post":
            posted[value["post"]] = event.at
        else:
            assert event.at > posted[value["post"]]
            assert value["post"] not in liked
            liked.add(value["post"])
    assert list(posted) == [f"p{n}" for n in range(POSTS)]
    assert 0.5 * UNLIKED < 1 - len(liked) / POSTS < 2 * UNLIKED, "some likes never come"


@pytest.mark.parametrize("mood", [CALM, SHOW, Mood(show=True, puppies=True), Mood(pedigrees=True)])
def test_likes_are_whole_and_never_negative(mood: Mood) -> None:
    likes = [post(3, number, mood).likes for number in range(300)]
    assert min(likes) >= 0 and all(each == int(each) for each in likes)
    assert max(likes) < 10 ** FOLLOWERS[1]


def test_shows_are_abroad_and_about_large_accounts() -> None:
    stars = 0
    for number in range(500):
        before, after = post(1, number), post(1, number, SHOW)
        if before.dog.region != HOME and before.dog.followers > 10**STAR_REACH:
            assert after.likes > 1.5 * before.likes
            stars += 1
        else:
            assert after == before
    assert stars > 0


def test_puppies_come_from_abroad_and_have_hardly_a_follower() -> None:
    found = [post(1, number, Mood(puppies=True)) for number in range(500)]
    puppies = [each for each in found if each.dog.followers <= PUPPY_FOLLOWERS]
    assert abs(len(puppies) / len(found) - PUPPIES) < 0.1
    assert HOME not in {each.dog.region for each in puppies}


def test_every_region_posts_and_an_event_has_its_dogs_key() -> None:
    found = [post(1, number) for number in range(POSTS)]
    for region, share in REGIONS.items():
        assert abs(sum(each.dog.region == region for each in found) / POSTS - share) < 0.1
    stream = events()
    keys = {value["post"]: event.key for event, value in zip(stream, decoded(stream), strict=True)}
    assert all(keys[each.id] == each.dog.name for each in found)


def test_a_pedigree_is_long() -> None:
    assert len(post(1, 0, Mood(pedigrees=True)).caption.split()) == PEDIGREE_WORDS
    assert len(post(1, 0).caption.split()) < 10


def test_the_stream_is_made_as_it_is_read() -> None:
    asked: list[int] = []

    def mood(number: int) -> Mood:
        asked.append(number)
        return CALM

    list(islice(stream(1, mood), 100))
    assert len(asked) <= 101
