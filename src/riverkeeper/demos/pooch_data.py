"""Posts of a social network for dogs, and the likes that they get, as its app would write them.

Everything here is a pure function of a seed, a post's number and a mood: the same seed gives the same dogs, the
same posts, the same luck. What a mood changes is how the network reacts, or how much its dogs have to say.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from .flights_data import Timed

HOME = "us"
REGIONS = {HOME: 0.4, "uk": 0.2, "de": 0.2, "jp": 0.2}  # shares of the dogs
BREEDS = {"mongrel": 0.6, "poodle": 0.8, "beagle": 0.9, "husky": 1.2, "corgi": 1.5}  # factors of likes
DOGS = 600
FOLLOWERS = (1.0, 5.0)  # decimal logarithms: from ten to a hundred thousand, evenly
LIKES = (12.0, 7.0)  # of a post by a dog with ten followers, and more for ten times as many
LUCK = 0.15  # standard deviation of a post's logarithm of likes
UNLIKED = 0.08  # share of posts that are taken down before their likes are counted
EVENING, NIGHT = 1.5, 0.6  # factors of likes
STAR_REACH, STAR_FACTOR = (
    3.7,
    1.7,
)  # whose likes a dog show multiplies (decimal logarithm of followers), and by what
PUPPIES = 0.5  # share of the posts, when they come
PUPPY_FOLLOWERS = 3  # at most

BEGAN = datetime(2026, 6, 1, tzinfo=UTC)
BETWEEN = timedelta(seconds=40)  # posts
COUNTED = (60.0, 600.0)  # seconds after a post its likes are counted, at least and at most
WORDS = ("walk", "ball", "bone", "nap", "park", "puddle", "treat", "squirrel", "sofa", "belly", "stick")
PEDIGREE_WORDS = 400  # of a caption that lists seven generations


class Mood(msgspec.Struct, frozen=True):
    """What is going on in the network.

    - `show`: there are dog shows abroad, and large accounts there get more likes
    - `puppies`: newcomers abroad, whom hardly anybody follows yet
    - `pedigrees`: dogs post their pedigrees, which are hundreds of words long
    """

    show: bool = False
    puppies: bool = False
    pedigrees: bool = False


CALM = Mood()


class Dog(msgspec.Struct, frozen=True):
    name: str
    breed: str
    region: str
    followers: int


class Post(msgspec.Struct, frozen=True):
    """A post, and what becomes of it."""

    number: int
    dog: Dog
    time: datetime
    caption: str
    likes: float  # that it will have
    counted: datetime | None  # when they are known; None: it is taken down before

    @property
    def id(self) -> str:
        return f"p{self.number}"


@lru_cache(maxsize=2 * DOGS)
def dog(seed: int, number: int) -> Dog:
    rng = random.Random(f"{seed}/dog/{number}")
    (region,) = rng.choices(list(REGIONS), list(REGIONS.values()))
    followers = int(10 ** rng.uniform(*FOLLOWERS))
    return Dog(f"dog{number}", rng.choice(list(BREEDS)), region, followers)


def puppy(seed: int, number: int) -> Dog:
    """Who has joined for the post of that number."""
    rng = random.Random(f"{seed}/puppy/{number}")
    region = rng.choice([each for each in REGIONS if each != HOME])
    return Dog(f"puppy{number}", rng.choice(list(BREEDS)), region, rng.randint(1, PUPPY_FOLLOWERS))


def post(seed: int, number: int, mood: Mood = CALM) -> Post:
    rng = random.Random(f"{seed}/post/{number}")
    author = dog(seed, rng.randrange(DOGS))
    if mood.puppies and rng.random() < PUPPIES:
        author = puppy(seed, number)
    time = BEGAN + number * BETWEEN
    likes = expected(author, time.hour, mood) * math.exp(rng.gauss(0.0, LUCK))
    delay, gone = rng.uniform(*COUNTED), rng.random() < UNLIKED
    words = PEDIGREE_WORDS if mood.pedigrees else rng.randrange(3, 9)
    caption = " ".join(rng.choices(WORDS, k=words))
    counted = None if gone else time + timedelta(seconds=delay)
    return Post(number, author, time, caption, float(round(likes)), counted)


def expected(author: Dog, hour: int, mood: Mood) -> float:
    """Likes, but for luck."""
    reach = math.log10(author.followers)
    least, more = LIKES
    likes = (least + more * (reach - FOLLOWERS[0])) * BREEDS[author.breed]
    likes *= EVENING if 18 <= hour < 23 else NIGHT if hour < 7 else 1.0
    star = author.region != HOME and reach > STAR_REACH
    return likes * STAR_FACTOR if star and mood.show else likes


def stream(seed: int, mood: Callable[[int], Mood | None]) -> Iterator[Timed]:
    """Posts and their likes in the order in which they happen; `mood` is asked for that of each post by number.

    Where it answers None nothing more is posted, and the likes that are left follow.
    """
    pending: list[tuple[datetime, int, Post]] = []
    number = 0
    while (now := mood(number)) is not None:
        made = post(seed, number, now)
        while pending and pending[0][0] <= made.time:
            yield _likes(heapq.heappop(pending)[-1])
        yield _posted(made)
        if made.counted is not None:
            heapq.heappush(pending, (made.counted, number, made))
        number += 1
    while pending:
        yield _likes(heapq.heappop(pending)[-1])


def _posted(made: Post) -> Timed:
    author = made.dog
    value = {
        "id": made.id,
        "type": "post",
        "time": made.time.isoformat(),
        "post": made.id,
        "dog": author.name,
        "breed": author.breed,
        "region": author.region,
        "followers": author.followers,
        "caption": made.caption,
    }
    return Timed(made.time.timestamp(), author.name, msgspec.json.encode(value))


def _likes(made: Post) -> Timed:
    assert made.counted is not None, "only what was counted becomes an event"
    value = {
        "id": f"{made.id}/likes",
        "type": "likes",
        "time": made.counted.isoformat(),
        "post": made.id,
        "likes": made.likes,
    }
    return Timed(made.counted.timestamp(), made.dog.name, msgspec.json.encode(value))
