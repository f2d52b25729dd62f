"""The pooch demo, told act by act.

An act ends when what it promises was seen on the topics. Posts come at a steady pace meanwhile, so that a slow machine
has more of them in an act, not less of a story.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..process import NAMES
from .app import Shown
from .ledger import Ledger, Ruling, summed
from .network import Network
from .pooch import pooch, pooch_2
from .pooch_data import CALM, DOGS, HOME, REGIONS, Mood
from .stage import Ending, Outcome

MOST_POSTS = 10_000  # of one scene: a minute of them; what was not seen then does not happen
TRUSTED_VERSIONS = 4  # of a model: then it has learned something of every region
REGION_EXAMPLES = 100  # of models' answers in each region
SHOW_VERSIONS = 4  # of a model, until it has taken the shows for the usual
FRESH_POSTS = 400  # over which the second pipeline has to be better
BURST_POSTS = 120  # pedigrees at once: half of them are the poet's, over two partitions
BURSTS = 5  # at most
BETWEEN_BURSTS = 600  # posts
HEAL_POSTS = 1_500  # for the poet, whose learner still counts the rhymes of pedigrees

REF = "riverkeeper.demos.pooch"


class Act(msgspec.Struct, frozen=True):
    title: str
    kept: bool  # what it promises was seen
    told: list[str]


@dataclass(frozen=True)
class Told:
    """How a run ended."""

    outcome: Outcome
    acts: list[Act]
    shown: Shown
    crashes: dict[str, bool]  # by agent: killed, and seen at work again

    def beside(self) -> dict[str, Any]:
        """What the JSON object has beside the summary."""
        plain: dict[str, Any] = msgspec.to_builtins(
            {"acts": self.acts, "app": self.shown, "crashes": self.crashes}
        )
        return plain

    def ending(self) -> str:
        """The last words."""
        shown = self.shown
        wrong = shown.missing + shown.doubled + shown.out_of_bounds
        so_far = "" if self.outcome.ending == "complete" else " so far"
        verdict = "Nothing wrong ever reached the app's topic" if not wrong else "Not all is well"
        return (
            f"\n{verdict}{so_far}: {shown.posts} posts, {shown.shown} answers; {shown.missing} missing, "
            f"{shown.doubled} doubled, {shown.out_of_bounds} out of bounds "
            f"({shown.copies} copies, which readers pass over).\n"
        )


class Story:
    """One run; `say` takes each line as it comes true."""

    def __init__(self, network: Network, say: Callable[[str], None]) -> None:
        self._net = network
        self._app, self._kennel = network.app, network.kennel
        self._first, self._second = network.first, network.second
        self._say = say
        self._told: list[str] = []
        self._acts: list[Act] = []
        self._crashes: dict[str, bool] = {}
        self._killed_ms = 0

    async def run(self) -> Told:
        """Tells until the end, or until the network is to stop. Raises NotFresh, Stalled, Unruly, KafkaError."""
        try:
            await self._net.open()
            ending = await self._perform()
        finally:
            await self._net.close()
        ledgers = [self._first, self._second]
        incidents = sorted(
            (incident for ledger in ledgers for incident in ledger.incidents.values()),
            key=lambda i: i.timeline[0].at_ms if i.timeline else 0,
        )
        summary, wrong = summed(ledgers, self._net.seconds), list(self._net.wrong())
        outcome = Outcome(summary, ending, wrong, incidents, self._first.began_ms or 0)
        return Told(outcome, self._acts, self._app.shown(self._net.posts), self._crashes)

    async def _perform(self) -> Ending:
        acts: list[tuple[str, Callable[[], Awaitable[bool]]]] = [
            ("Every region has a model of its own", self._regions),
            ("Abroad, a model begins to predict negative likes", self._negative),
            ("New features, live", self._features),
            ("Every agent crashes", self._crash),
            ("Pedigrees, and a model that cannot keep up", self._pedigrees),
        ]
        for number, (title, act) in enumerate(acts, 1):
            if self._stopped:
                return "stopped"
            self._say(f"\n{number}. {title}")
            kept = await act()
            if not kept and not self._stopped:
                self._tell("That was expected to happen, and did not.")
            self._acts.append(Act(title, kept, self._told))
            self._told = []
        return await self._net.settle()

    @property
    def _stopped(self) -> bool:
        return self._net.stop.is_set()

    def _tell(self, sentence: str) -> None:
        self._told.append(sentence)
        self._say(f"   +{self._net.seconds:4.1f} s  {sentence}")

    async def _until(self, condition: Callable[[], bool], most: int = MOST_POSTS) -> bool:
        """Posts go on until the condition holds."""
        return await self._net.play(condition, most)

    async def _regions(self) -> bool:
        self._tell(
            f"{DOGS} dogs post; each post is a fact. All agents of the pipeline 'pooch' run as one process: riverkeeper run."
        )
        self._kennel.start(pooch.name, f"{REF}:pooch")
        line, steady = self._first.models["line"], self._first.models["steady"]
        kept = await self._until(
            lambda: (
                min(line.version, steady.version) >= TRUSTED_VERSIONS
                and all(self._app.regions[region].count >= REGION_EXAMPLES for region in REGIONS)
            )
        )
        self._tell(
            f"'line' (version {line.version}) answers 70 % of the posts, 'steady' (version {steady.version}) 30 %; "
            "each keeps an estimator per region, 'typical' is the fallback."
        )
        errors = [
            f"{region} {sums.served / sums.count:.1f} ({sums.baseline / sums.count:.1f})"
            for region, sums in sorted(self._app.regions.items())
            if sums.count
        ]
        self._tell(f"Likes that answers are off by, and the fallback's: {', '.join(errors)}.")
        return kept

    async def _negative(self) -> bool:
        line = self._first.models["line"]
        if not await self._until(lambda: line.state == "live"):
            return False
        before = len(self._first.rulings)
        self._tell(
            "Dog shows: abroad, large accounts get more likes, and 'line', which has no link function, becomes steeper."
        )
        self._net.mood = lambda _: Mood(show=True)
        steeper = line.version + SHOW_VERSIONS
        await self._until(lambda: line.version >= steeper)
        self._tell(
            "Puppies join, whom hardly anybody follows. Abroad the steep line says of them: less than no likes."
        )
        self._net.mood = lambda _: Mood(show=True, puppies=True)
        await self._until(lambda: self._taken_out(self._first, "line", before) is not None)
        self._net.mood = lambda _: CALM
        ruling = self._taken_out(self._first, "line", before)
        if ruling is None:
            return False
        self._tell(f"'line' is quarantined by the policy '{ruling.policy}': {ruling.reason}.")
        kept = await self._until(lambda: line.state == "live")
        negative = self._app.answered_instead("line", "out_of_bounds")
        abroad = sum(count for region, count in negative.items() if region != HOME)
        later = sum(self._app.answered_instead("line", "quarantined").values())
        self._tell(
            f"{abroad} posts abroad, and {negative.get(HOME, 0)} at home, had been meant to get an answer below zero, and "
            f"{later} came during quarantine. The fallback answered all of them, in the same batch."
        )
        if kept:
            self._tell("'line' was restored, watched in shadow, and has its traffic back.")
        return kept and abroad > 0

    async def _features(self) -> bool:
        self._tell(
            f"A second pipeline, 'pooch-2' (fingerprint {pooch_2.fingerprint}), starts beside the first "
            f"({pooch.fingerprint}): breed and time of day are new. Its agents are five processes."
        )
        for agent in NAMES:
            self._kennel.start(agent, f"{REF}:pooch_2", "--agents", agent)
        self._net.copy_events()
        kept = await self._until(lambda: self._net.caught_up() and self._second.models["tuned"].version > 0)
        since = self._net.posts
        self._tell(
            f"It has learned the likes of the whole log, {self._second.examples} examples, and follows."
        )
        compared = self._app.compared(since)

        def better() -> bool:
            nonlocal compared
            compared = self._app.compared(since)
            return compared.posts >= FRESH_POSTS and compared.second < compared.first

        kept = await self._until(better) and kept
        self._tell(
            f"Over the same {compared.posts} fresh posts it is off by {compared.second:.1f} likes, the first by "
            f"{compared.first:.1f}."
        )
        if not kept:
            return False
        kept = await self._net.move()
        self._tell(
            f"From post {self._net.posts} on, producers write to pooch-2.events and the app reads pooch-2.predictions. "
            "The first pipeline has left in order."
        )
        return kept

    async def _crash(self) -> bool:
        ledger, before = self._second, self._done()
        self._killed_ms = time.time_ns() // 1_000_000
        for agent in NAMES:
            self._kennel.kill(agent)
            self._crashes[agent] = False
            self._tell(f"{agent} is killed (kill -9).")
        self._kennel.look()

        def back() -> bool:
            for agent, done in self._done().items():
                told = ledger.replicas.get(agent) == self._kennel.replica(agent)
                self._crashes[agent] |= told and done > before[agent]
            return all(self._crashes[agent] for agent in before)

        kept = await self._until(back)
        self._tell(
            f"They were started again, took over where the log says, and work: {', '.join(before)}. "
            "Of the supervisor the next act will tell."
        )
        return kept

    def _done(self) -> dict[str, int]:
        """What each agent of the second pipeline has to show; the supervisor shows what it does about models."""
        ledger = self._second
        return {
            "ingest": ledger.facts,
            "score": ledger.predictions,
            "join": ledger.examples,
            "learn": len(ledger.versions),
        }

    async def _pedigrees(self) -> bool:
        self._tell(
            "'poet' counts rhymes, pair by pair of words. Now breeders post pedigrees, of hundreds of words, at once."
        )

        poet = self._second.models["poet"]
        if not await self._until(lambda: poet.state == "live"):
            return False
        before = len(self._second.rulings)

        def taken_out() -> bool:
            return self._taken_out(self._second, "poet", before) is not None

        for _ in range(BURSTS):
            self._net.mood = lambda _: Mood(pedigrees=True)
            await self._net.burst(BURST_POSTS)
            self._net.mood = lambda _: CALM
            if await self._until(taken_out, BETWEEN_BURSTS) or self._stopped:
                break
        ruling = self._taken_out(self._second, "poet", before)
        if ruling is None:
            return False
        late = sum(self._app.answered_instead("poet", "too_slow").values())
        self._tell(
            f"{late} of its answers would have come too late: the fallback gave them, in the same batch."
        )
        self._tell(f"'poet' is quarantined by the policy '{ruling.policy}': {ruling.reason}.")
        self._crashes["supervisor"] = ruling.at_ms > self._killed_ms
        self._tell("That was the verdict of the supervisor that came back.")
        if await self._until(lambda: poet.state == "live", HEAL_POSTS):
            self._tell(
                "Captions are short again. 'poet' was restored, watched in shadow, and has its traffic back."
            )
        return late > 0

    @staticmethod
    def _taken_out(ledger: Ledger, model: str, before: int) -> Ruling | None:
        """The first verdict that quarantines the model, but for so many that fell before."""
        later = ledger.rulings[before:]
        return next((r for r in later if (r.model, r.state) == (model, "quarantined")), None)
