"""Every part of the benchmarks runs, its answers are equal to its peers', and the page is made of its figures.

How fast anything was is not asserted: that is for `make bench`, on a machine that does nothing else.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import score
from bench.peers.answer import NUMBERS as PEERS_NUMBERS
from bench.run import PARTS, PEERS, TINY, run
from bench.score import Said
from bench.table import BEGIN, END, page
from bench.work import NUMBERS

WITH_OURS = ("riverkeeper", "fetch", "river loop", "faust")  # contenders that need no other packages


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_and_says_what_it_found_in_json(part: str) -> None:
    found = run(part, replace(TINY, contenders=WITH_OURS))
    assert json.loads(json.dumps(found))["part"] == part
    assert found["machine"]["commit"]
    if part == "score":
        assert set(found["kafka"]["contenders"]) == set(WITH_OURS)


def test_the_peers_of_the_extra_answer_alike() -> None:
    assert PEERS.exists(), "make .venv-bench/.installed makes the environment of bytewax and quix"
    others = ("riverkeeper", "bytewax", "quix")
    found = run("score", replace(TINY, contenders=others, peers=str(PEERS)))
    assert set(found["kafka"]["contenders"]) == set(others)


def test_an_answer_that_differs_ends_the_benchmark() -> None:
    expected = [0.25, 0.5]
    right = [Said("0", 0.25), Said("1", 0.5), Said("2", 0.25)]
    score._check("it", right, expected)
    with pytest.raises(RuntimeError, match="1 of 3 answers differ"):
        score._check("it", [*right[:2], Said("2", 0.25 + 1e-6)], expected)
    with pytest.raises(RuntimeError, match="more than once"):
        score._check("it", [*right, right[0]], expected)


def test_peers_are_asked_for_the_numbers_that_the_pipeline_declares() -> None:
    assert PEERS_NUMBERS == NUMBERS


def test_the_page_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    contenders = {"riverkeeper": {"rate": 90_000.0, "each": [1]}, "bytewax": {"rate": 30_000.0, "each": [1]}}
    machine = {"commit": "c", "at": "t", "cores": 2, "cpu": "x", "python": "3", "load average": [1.0, 1, 1]}
    ratios = {"bytewax": {"of rates": 3.0, "each": [3.0]}}
    kafka = {"facts": 10, "contenders": contenders, "ratios": ratios}
    result = {"part": "score", "machine": machine, "rounds": 5, "kafka": kafka}
    (tmp_path / "score.json").write_text(json.dumps(result))
    once = page(f"above\n{BEGIN}\nold\n{END}\nbelow\n", tmp_path)
    assert once.startswith("above\n") and once.endswith(f"{END}\nbelow\n") and "old" not in once
    assert "| bytewax | 30,000.0 | 3.0 × |" in once
    assert page(once, tmp_path) == once
