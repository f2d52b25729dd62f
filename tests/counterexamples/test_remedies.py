"""Every remedy that a counterexample declares stands in the code, exactly once."""

from pathlib import Path

import pytest

from tests.counterexamples.without import ROOT, Misdeclared, Remedy, judged, numbered, remedies

FILES = numbered()


@pytest.mark.parametrize("file", FILES.values(), ids=lambda file: file.stem)
def test_the_text_of_every_remedy_stands_in_its_file_once(file: Path) -> None:
    declared = remedies(file)
    assert declared, "nothing could be taken out, so nothing would show that the test can fail"
    for part in (part for remedy in declared for part in remedy.parts):
        without = part.removed((ROOT / part.file).read_text())
        if part.file.endswith(".py"):
            compile(without, part.file, "exec")


def test_a_remedy_whose_text_is_gone_or_stands_twice_is_refused() -> None:
    remedy = Remedy("some.py", "fence()", "pass")
    assert remedy.removed("fence()\nread()") == "pass\nread()"
    for source in ("read()", "fence()\nfence()"):
        with pytest.raises(Misdeclared, match=r"some\.py"):
            remedy.removed(source)


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("", "passes"),
        ('<failure message="assert 1 == 2"/>', "fails: test_a"),
        ('<failure message="AssertionError: two copies&#10;assert 2 == 1"/>', "fails: test_a"),
        ('<failure message="Failed: DID NOT RAISE Fenced"/>', "fails: test_a"),
        ("<failure message=\"ImportError: cannot import name 'x'\"/>", "breaks"),
        ('<error message="collection failure"/>', "breaks"),
        ('<error message="failed on setup with &quot;AssertionError&quot;"/>', "breaks"),
        ('<skipped message="no broker"/>', "breaks"),
    ],
)
def test_only_an_assertion_of_the_test_counts_as_its_failure(inside: str, says: str) -> None:
    report = f'<testsuites><testsuite><testcase name="test_a">{inside}</testcase></testsuite></testsuites>'
    assert judged(report).startswith(says)


def test_a_run_in_which_nothing_ran_proves_nothing() -> None:
    assert judged("<testsuites><testsuite/></testsuites>").startswith("breaks")
