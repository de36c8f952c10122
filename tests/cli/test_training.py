import copy

import numpy as np
import pytest

from limpet.cli.demo.digits import Digits, load_digits
from limpet.cli.demo.training import accuracy, fingerprint, new_state, train_step, weights_fingerprint

HIDDEN = 32


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


def trained(state, digits, steps):
    for _ in range(steps):
        train_step(state, digits)
    return state


def test_the_data_set_has_1797_digits_of_ten_kinds(digits):
    assert digits.images.shape == (1500, 64)
    assert digits.held_out_images.shape == (297, 64)
    labels = np.concatenate([digits.labels, digits.held_out_labels])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.images.min() == 0
    assert digits.images.max() == 1


def test_training_learns_to_recognise_digits_that_it_never_saw(digits):
    state = trained(new_state(0, HIDDEN), digits, 600)
    assert accuracy(state, digits) > 0.8


def test_the_same_seed_gives_the_same_bits(digits):
    first, second = (trained(new_state(3, HIDDEN), digits, 20) for _ in range(2))
    assert fingerprint(first) == fingerprint(second)


def test_another_seed_gives_other_weights(digits):
    first, second = (trained(new_state(seed, HIDDEN), digits, 5) for seed in (3, 4))
    assert weights_fingerprint(first) != weights_fingerprint(second)


def test_a_copy_of_the_state_is_all_that_is_needed_to_go_on(digits):
    state = trained(new_state(0, HIDDEN), digits, 15)  # beyond the first epoch of 11 batches
    resumed = copy.deepcopy(state)
    assert fingerprint(trained(resumed, digits, 15)) == fingerprint(trained(state, digits, 15))


def test_losing_the_generator_changes_the_weights(digits):
    state = trained(new_state(0, HIDDEN), digits, 5)
    resumed = copy.deepcopy(state)
    resumed["generator"] = new_state(1, HIDDEN)["generator"]
    assert weights_fingerprint(trained(resumed, digits, 1)) != weights_fingerprint(trained(state, digits, 1))


@pytest.mark.parametrize("part", ["weights", "first_moments", "second_moments"])
def test_one_flipped_bit_changes_the_fingerprint(digits, part):
    state = trained(new_state(0, HIDDEN), digits, 2)
    before = fingerprint(state)
    state[part]["w2"].view(np.uint32)[3, 5] ^= 1
    assert fingerprint(state) != before


def test_the_state_of_the_demo_is_a_few_megabytes():
    state = new_state(0, 512)
    nbytes = sum(
        array.nbytes
        for part in state.values()
        if isinstance(part, dict)
        for array in part.values()
        if isinstance(array, np.ndarray)
    )
    assert 3e6 < nbytes < 5e6
