"""Pictures: what they show is what was evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

from casc_hw import IntegerNet
from casc_hw.__main__ import main
from casc_hw.evaluation import Evaluation, evaluate
from casc_hw.plots import accuracy, draw, rates, unevenness

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[4, 2], ids=["one sleep", "two sleeps"])
def done(request: pytest.FixtureRequest, make_net: Callable[..., IntegerNet], make_images: Any) -> Evaluation:
    net = make_net((13, 29, 23, 5), levels=4, margin=request.param, spread=0.3, seed=1)
    images = make_images(net, 12)
    return evaluate(net, images, torch.arange(12) % 5)


def axes() -> Any:
    return Figure().add_subplot()


def test_accuracy_ends_where_it_was_measured(done: Evaluation) -> None:
    accuracy(done, shown := axes())
    ann, *spiking = done.modes
    lines = {line.get_label(): line.get_ydata() for line in shown.lines}
    assert lines[ann.name][0] == pytest.approx(100 * (ann.accuracy or 0))
    for mode in spiking:
        assert lines[mode.name][-1] == pytest.approx(100 * (mode.accuracy or 0)), mode.name
    assert lines[spiking[-1].name][-1] == lines[ann.name][0]
    asleep = [at for at in spiking[-1].over_steps if at.asleep]
    assert len(shown.patches) == len(asleep) > 0


def test_without_labels_agreement_is_shown(done: Evaluation, make_images: Any) -> None:
    accuracy(evaluate(done.net, make_images(done.net, 12)), shown := axes())
    assert "the ANN's class" in shown.get_ylabel()
    assert next(line.get_ydata()[-1] for line in shown.lines if line.get_label() == "CIF and sleep") == 100


def test_rates_are_shares_of_all_neurons(done: Evaluation) -> None:
    rates(done, shown := axes())
    assert len(shown.patches) == len(done.net.spiking)
    for stairs in shown.patches:
        values = stairs.get_data().values
        assert len(values) == done.net.levels + 1
        assert sum(values) == pytest.approx(100)


def test_unevenness_is_zero_at_rest(done: Evaluation) -> None:
    unevenness(done, shown := axes())
    assert [line.get_label() for line in shown.lines] == [layer.name for layer in done.net.spiking]
    assert max(max(line.get_ydata()) for line in shown.lines) > 0
    assert all(line.get_ydata()[-1] == 0 for line in shown.lines)


def test_files_are_whole(done: Evaluation, tmp_path: Path) -> None:
    paths = draw(done, tmp_path / "new")
    assert [path.name for path in paths] == ["accuracy.png", "rates.png", "unevenness.png"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


def test_the_verb(tmp_path: Path) -> None:
    given = ["plot", "--net", str(ROOT / "examples" / "digits_mlp.pt"), "--images", "8", "--out", str(tmp_path)]
    said = CliRunner().invoke(main, given)
    assert said.exit_code == 0, said.output
    assert "8 images" in said.output
    assert len(list(tmp_path.glob("*.png"))) == 3
    (tmp_path / "file").write_text("")
    failed = CliRunner().invoke(main, [*given[:-1], str(tmp_path / "file")])
    assert failed.exit_code == 1
    assert failed.output.startswith("error: ")
