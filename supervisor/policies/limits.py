"""Every threshold of the judgement, with its unit. What a pipeline declares as `Objectives` overrides some."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    # bounds
    out_share: float = 0.01  # of answers; a sound model's rare extremes stay below
    min_answers: int = 200  # answers; fewer cannot show a share of 1 %
    out_burst: float = 0.5  # of answers; plainly broken, so that fewer answers suffice
    min_burst: int = 20  # answers; one odd batch of a slow pipeline is smaller
    window_answers: int = 1_000  # answers judged at a time: 1 s at 1 000/s, 17 min at 1/s
    # quality
    margin: float = 0.10  # how much worse than the baseline, relative; declared by the pipeline
    min_examples: int = 500  # paired examples; below, noise of heavy-tailed errors exceeds the margin
    window_examples: int = 1_000  # paired examples judged at a time
    window_ms: int = 86_400_000  # a day: nobody waits longer for a finding, and yesterday's is no news
    # sequential tests: bias, quality, and all that is held against its own history
    log_odds: float = 13.8  # a false alarm in a million blocks: 23 years of blocks of 12 min
    season_ms: int = 604_800_000  # a week: until one was seen, a swing of half the mean is no news
    max_bias: float = 0.5  # of the residuals' standard deviation; less costs little and comes with seasons
    # shift
    min_psi: float = 0.25  # population stability index; the customary "major shift" of credit scoring
    # staleness
    max_silence_ms: int = 300_000  # of arriving examples without learning: a learner restarts in seconds
    max_staleness_ms: int = 3_600_000  # of arriving examples without a new version in use
    max_versions_back: int = (
        10  # versions that one in use may be behind; a replica that starts loads the newest
    )
    trouble_ms: int = (
        15_000  # without a word of a stopped partition, which vitals tell every second: it goes on
    )
    # latency
    max_us: float = 2_000.0  # µs that a model takes per fact; the gate's own limit
    max_wait_ms: int = 0  # that the oldest fact of a window may have waited; 0: no deadline is declared
    # integrity
    quiet: float = 0.3  # of the least seen at that hour of the day: less is a producer gone
    flood: float = 10.0  # times the most seen at that hour of the day: a flash sale is three to five
    min_expected: float = 30.0  # events; of fewer a silence may be chance
    # healing
    min_dwell_ms: int = 2_000  # in quarantine: every replica has obeyed (1 s) and reported (1 s)
    max_dwell_ms: int = 600_000  # in quarantine, however often it relapsed: ten minutes
    probation_answers: int = 500  # clean answers before re-admission; five would already be 1 %
    probation_examples: int = 200  # paired examples before re-admission
    max_relapses: int = 5  # within `relapse_ms`; then an operator decides
    relapse_ms: int = 3_600_000  # an hour: five healings in it have taught nothing
