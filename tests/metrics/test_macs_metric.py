import numpy as np
import pytest
from basicsr.metrics import calculate_metric

from cp_basicsr.options import OptionError


def test_the_share_that_validation_measured_is_handed_on():
    images = {'img': np.zeros((4, 4, 3)), 'img2': np.zeros((4, 4, 3))}
    assert calculate_metric({**images, 'macs_share': 0.42}, {'type': 'calculate_macs'}) == 0.42


def test_another_model_is_told_that_it_does_not_count():
    with pytest.raises(OptionError, match='ClassPruningModel'):
        calculate_metric({'img': None, 'img2': None}, {'type': 'calculate_macs'})
