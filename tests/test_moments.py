"""Figure 2 of the paper, at the dimension of the numbers that are known."""

import numpy as np
import pytest

from benchmarks import moments, records

# An independent run of the same protocol, to three digits: b1, cos g, cos m, errors.
KNOWN = {
    0.0: (0.070, 0.070, 116.4, 116.4),
    0.9: (0.070, 0.289, 115.0, 6.35),
    0.99: (0.070, 0.659, 109.9, 1.05),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    b1 = ",".join(map(str, KNOWN))
    moments.main(["--b1", b1, "--seeds", "2", "--output", str(folder)])
    return folder, records.read(folder / "moments.jsonl")


@pytest.mark.gate
def test_numbers_are_those_that_are_known(run):
    for line, (b1, known) in zip(run[1], KNOWN.items(), strict=True):
        assert line["settings"]["b1"] == b1
        found = [np.mean(line["numbers"][name]) for name in moments.MEASURES]
        np.testing.assert_allclose(found, known, rtol=0.1)


@pytest.mark.gate
def test_theory_holds_where_the_gradient_hardly_moves(run):
    for line in run[1][:2]:
        expected = moments.theory(line["settings"])
        found = {name: np.mean(line["numbers"][name]) for name in moments.MEASURES}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0.1, err_msg=name)


@pytest.mark.gate
def test_table_figure_and_a_second_start(run, capsys, monkeypatch):
    folder, lines = run
    monkeypatch.setattr(moments, "measured", None)
    b1 = ",".join(map(str, KNOWN))
    moments.main(["--b1", b1, "--seeds", "2", "--output", str(folder)])
    printed = capsys.readouterr().out
    assert "error of m²" in printed
    assert "(6.08)" in printed
    assert records.read(folder / "moments.jsonl") == lines
    assert (folder / "moments.png").stat().st_size > 10_000
    assert "| 0.9 | " in moments.markdown(lines)


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        moments.main(["--steps", "300"])
    assert "the first 300 are not counted" in capsys.readouterr().err
