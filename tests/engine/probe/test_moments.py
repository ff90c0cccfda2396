"""Streaming statistics against numpy's over everything at once."""

import numpy as np

from lm_eval_lora_drop.engine.probe.moments import Bootstrap, Moments


def test_mean_and_standard_error_are_numpys_and_nan_does_not_count():
    values = np.random.default_rng(0).normal(1e3, 1.0, size=(50, 3, 2))
    values[10:, 1, 0] = np.nan
    values[1:, 2, 1] = np.nan
    moments = Moments((3, 2))
    for value in values:
        moments.add(value)
    count = (~np.isnan(values)).sum(axis=0)
    np.testing.assert_array_equal(moments.count, count)
    np.testing.assert_allclose(moments.mean, np.nanmean(values, axis=0), rtol=1e-12)
    expected = np.array(
        [
            [
                np.std(values[: count[i, j], i, j], ddof=1) / np.sqrt(count[i, j]) if count[i, j] > 1 else np.nan
                for j in (0, 1)
            ]
            for i in range(3)
        ]
    )
    np.testing.assert_allclose(moments.stderr, expected, rtol=1e-9)


def test_the_bootstrap_spreads_as_the_standard_error_says_and_keeps_documents_together():
    curves = np.random.default_rng(0).normal(0, [1.0, 3.0], size=(200, 2))
    curves[:, 1] += 2 * curves[:, 0]
    bootstrap = Bootstrap(2, resamples=4000)
    for curve in curves:
        bootstrap.add(curve)
    means = bootstrap.means
    np.testing.assert_allclose(means.mean(axis=0), curves.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(means.std(axis=0), curves.std(axis=0, ddof=1) / np.sqrt(200), rtol=0.05)
    assert abs(np.corrcoef(means.T)[0, 1] - np.corrcoef(curves.T)[0, 1]) < 0.05


def test_the_bootstrap_repeats_itself_by_its_seed():
    def means(seed):
        bootstrap = Bootstrap(3, resamples=5, seed=seed)
        for value in range(10):
            bootstrap.add(np.full(3, float(value)))
        return bootstrap.means.tolist()

    assert means(0) == means(0) != means(1)
