import io
import math

import numpy as np
from PIL import Image

from tunes_dagster.rendering import plots


def test_smoothing_keeps_length_level_and_position():
    line = [3.0] * 40
    assert np.allclose(plots.smooth(line), 3.0)
    ramp = list(range(100))
    assert np.allclose(plots.smooth(ramp), ramp)
    spike = [0.0] * 101
    spike[50] = 1.0
    assert int(np.argmax(plots.smooth(spike))) == 50
    assert len(plots.smooth([])) == 0


def test_smoothing_skips_what_is_not_finite():
    values = [1.0] * 30
    values[10] = math.nan
    values[20] = math.inf
    assert np.allclose(plots.smooth(values), 1.0)


def test_loss_curve_is_a_picture_even_of_one_step_or_a_diverged_run():
    for steps, losses in (([1], [0.3]), (range(1, 50), [math.nan] * 49), ([], [])):
        data = plots.figure_png(plots.loss_figure(list(steps), list(losses)))
        assert Image.open(io.BytesIO(data)).size == (1040, 520)


def test_pyplot_is_never_touched():
    import subprocess
    import sys

    code = (
        "import sys; from tunes_dagster.rendering import plots; plots.figure_png(plots.loss_figure([1,2],[1,2]));"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
