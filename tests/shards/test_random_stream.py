"""Random numbers: what they are distributed as, and that no version of numpy changes them."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from shards.random_stream import RandomStream

COUNT = 50_000
LEAST_P = 1e-3  # of a test with these seeds, which are fixed

REPOSITORY = Path(__file__).parents[2]


def test_uniform_numbers_are_uniform():
    numbers = RandomStream(1).uniform(COUNT)
    assert stats.kstest(numbers, stats.uniform.cdf).pvalue > LEAST_P
    assert numbers.min() >= 0
    assert numbers.astype(np.float32).max() < 1
    assert RandomStream(1).uniform(3, 5).shape == (3, 5)


@pytest.mark.parametrize("below", [1, 2, 7, 20_001])
def test_integers_are_equally_likely(below):
    numbers = RandomStream(2, below).integers(below, COUNT)
    assert numbers.dtype == np.int64
    assert numbers.min() >= 0
    assert numbers.max() < below
    counts = np.bincount(numbers * min(below, 50) // below)
    if below > 1:
        expected = np.bincount(np.arange(below) * min(below, 50) // below) * COUNT / below
        assert stats.chisquare(counts, expected).pvalue > LEAST_P


def test_integers_of_several_ranges_at_once():
    numbers = RandomStream(3).integers(np.array([1, 3, 10]), 1000, 3)
    assert numbers.max(0).tolist() == [0, 2, 9]
    assert numbers.min(0).tolist() == [0, 0, 0]


def test_permutations_are_equally_likely():
    orders = [tuple(RandomStream(4, n).permutation(4).tolist()) for n in range(4800)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEAST_P


@pytest.mark.parametrize("alpha", [0.3, 0.4, 0.5, 1, 2, 10, 100])
def test_beta_is_scipys(alpha):
    numbers = RandomStream(5).symmetric_beta(alpha, COUNT)
    assert stats.kstest(numbers, stats.beta(alpha, alpha).cdf).pvalue > LEAST_P


@pytest.mark.parametrize("alpha", [1e-3, 0.01, 0.1, 1e6, 1e300])
def test_beta_of_an_unusual_alpha(alpha):
    """The upper half is not tested against the law: there are no floats so close to 1."""
    numbers = RandomStream(6).symmetric_beta(alpha, COUNT)
    assert np.isfinite(numbers).all()
    assert ((numbers >= 0) & (numbers <= 1)).all()
    low = numbers[(numbers < 0.5) & (numbers > 0)]
    if alpha == 0.1:
        law = stats.beta(alpha, alpha)
        assert stats.kstest(low, lambda x: 2 * law.cdf(x)).pvalue > LEAST_P
    if alpha < 1:
        assert abs((numbers < 0.5).mean() - 0.5) < 0.01
        edges = (numbers < 1e-9) | (numbers > 1 - 1e-9)
        assert edges.mean() == pytest.approx(2 * stats.beta(alpha, alpha).cdf(1e-9), abs=0.01)


def test_one_draw_says_nothing_of_the_next():
    stream = RandomStream(7)
    pairs = np.stack([stream.symmetric_beta(0.3, 20_000), stream.uniform(20_000)])
    assert abs(np.corrcoef(pairs)[0, 1]) < 0.03
    numbers = RandomStream(8).symmetric_beta(2.0, 20_000)
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03


def test_the_first_numbers_of_a_stream_stay_what_they_are():
    """Where this fails, training draws otherwise: it needs a new `shards.random_stream.VERSION`."""
    assert RandomStream(3, 1, 4).words(3).tolist() == [
        6477234659020228069,
        16602396290753089574,
        16263772484716711216,
    ]
    uniform = RandomStream(3, 1, 4).uniform(4) * 2**24
    assert uniform.tolist() == [5891010, 15099791, 14791814, 12930835]
    assert RandomStream(3, 1, 4).integers(1000, 6).tolist() == [69, 574, 216, 238, 626, 634]
    assert RandomStream(3, 1, 4).permutation(8).tolist() == [4, 5, 0, 3, 7, 6, 2, 1]
    beta = RandomStream(3, 1, 4).symmetric_beta(0.3, 4)
    expected = [0.9922656731102147, 0.6870150934413641, 0.6379530336550246, 0.6321391414203089]
    np.testing.assert_allclose(beta, expected, rtol=1e-9)
    beta = RandomStream(3, 1, 4).symmetric_beta(2.5, 3)
    np.testing.assert_allclose(beta, [0.5466382625413309, 0.6013085698109453, 0.5699758609125722])


def test_numpy_still_draws_the_made_up_dataset_alike():
    """Where this fails, `shards synth` makes other clips with this numpy than with those before."""

    def rng():
        return np.random.default_rng([5, 0, 0])

    ratios = [1.0, 1.2, 1.25, 1.5, 1.78, 2.0]
    drawn = {
        "uniform": rng().uniform(-1, 1, 2),
        "normal": rng().normal(0, 1, 2),
        "gamma below 1": rng().gamma(0.8, 1.2, 2),
        "gamma above 1": rng().gamma(2.0, 0.5, 2),
        "poisson": rng().poisson([0.5, 2.0, 4.0], 3),
        "integers": rng().integers(0, 44_100, 3),
        "choice": rng().choice(ratios, 3, replace=False),
        "float32": rng().standard_normal(2, dtype=np.float32),
    }
    expected = {
        "uniform": [0.6100058474907604, 0.6158815794729875],
        "normal": [-0.8019314252534474, -1.324358995628145],
        "gamma below 1": [1.7128159897006692, 0.6348786730251548],
        "gamma above 1": [0.41547351303250596, 0.6830774249253859],
        "poisson": [2, 1, 2],
        "integers": [29581, 35500, 999],
        "choice": [1.78, 1.25, 1.0],
        "float32": [-1.2224977, -2.1383153],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(drawn[name], values, rtol=1e-6, err_msg=name)


def test_nothing_else_rests_on_numpys_generator():
    """The made-up dataset alone, which the test above watches; trial.py seeds numpy's for networks."""
    pattern = re.compile(r"np\.random\.(?!Philox|SeedSequence)")
    files = [*REPOSITORY.glob("cpprune/**/*.py"), *REPOSITORY.glob("shards/**/*.py")]
    found = {path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == {"scenes.py", "trial.py"}
