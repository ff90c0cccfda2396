"""The rise point on curves whose rise is known."""

import numpy as np
import pytest

from lm_eval_lora_drop.engine.probe.moments import Bootstrap
from lm_eval_lora_drop.engine.probe.rise import find_rise

DOCUMENTS = 100


def straight(num_layers, rise):
    layers = np.arange(num_layers)
    return 0.02 + 0.7 * np.clip((layers - rise) / (num_layers - 1 - rise), 0, 1)


def levelling_off(num_layers, rise):
    layers = np.arange(num_layers)
    return 0.02 + 0.7 * np.clip((layers - rise) / 4, 0, 1)


def falling_at_the_end(num_layers, rise):
    curve = levelling_off(num_layers, rise)
    curve[-1] -= 0.3
    return curve


def found(curve, noise, seed=0):
    """The rise of a mean over documents, each of which is the curve and noise of its own."""
    documents = curve + np.random.default_rng(seed).normal(0, noise, size=(DOCUMENTS, len(curve)))
    bootstrap = Bootstrap(len(curve), resamples=200)
    for document in documents:
        bootstrap.add(document)
    return find_rise(documents.mean(axis=0), bootstrap.means)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("shape", [straight, levelling_off, falling_at_the_end])
@pytest.mark.parametrize(("num_layers", "rise"), [(16, 4), (16, 11), (30, 8), (30, 17), (32, 24), (80, 60)])
def test_a_rise_is_found_within_one_layer(num_layers, rise, shape, noise):
    result = found(shape(num_layers, rise), noise)
    assert abs(result.layer - rise) <= 1
    assert result.interval[0] <= rise <= result.interval[1]
    assert result.boundary == result.layer + 1
    assert not result.warnings


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.1, 0.5])
@pytest.mark.parametrize("num_layers", [4, 16, 32, 80])
def test_a_flat_curve_has_no_rise_and_says_so(num_layers, noise):
    for seed in range(10):
        result = found(np.full(num_layers, 0.2), noise, seed)
        assert result.layer is None
        assert result.boundary is None
        assert "flat" in result.warnings[0]


def test_a_falling_curve_has_no_rise():
    assert found(np.linspace(0.9, 0.1, 30), 0.1).layer is None


@pytest.mark.parametrize("num_layers", [16, 32, 80])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_two_rises_are_both_named(num_layers, noise):
    first, second = num_layers // 4, 3 * num_layers // 4
    points = [0, first, first + 3, second, second + 2, num_layers - 1]
    curve = np.interp(np.arange(num_layers), points, [0.02, 0.02, 0.4, 0.4, 0.8, 0.8])
    result = found(curve, noise)
    assert any("several times" in warning for warning in result.warnings)
    assert len(result.rises) == 2
    assert abs(result.rises[0] - first) <= 1 + (num_layers == 80)
    assert abs(result.rises[1] - second) <= 1
    assert result.layer in result.rises


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("bend", [np.asarray, np.sqrt])
@pytest.mark.parametrize("num_layers", [4, 16, 32, 80])
def test_a_curve_that_rises_from_the_first_layer_keeps_one_and_says_so(num_layers, bend, noise):
    result = found(0.02 + 0.7 * bend(np.linspace(0, 1, num_layers)), noise)
    assert result.layer == 0
    assert result.boundary == 1
    assert any("from the first layer" in warning for warning in result.warnings)


def test_a_noisy_rise_gets_a_wide_interval_and_a_warning():
    result = found(straight(32, 8), 0.6)
    assert result.interval[1] - result.interval[0] > 6
    assert any("noisy" in warning for warning in result.warnings)
