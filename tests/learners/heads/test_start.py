"""The start of a head: the answers of discriminants, at a loss that leaves something to learn."""

import math

import pytest
import torch
from torch.nn import functional as F

from moe_adapt.learners.heads.slda import SldaHead
from moe_adapt.learners.heads.start import discriminant_start

CLASSES, WIDTH = 6, 64


def samples(each, seed=0):
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, WIDTH, generator=rng) / 4
    labels = torch.arange(CLASSES).repeat(each)
    return means[labels] + torch.randn(len(labels), WIDTH, generator=rng) / 2, labels


def loss(start, features, labels):
    weight, bias = start
    return float(F.cross_entropy(features.double() @ weight.T + bias, labels))


def test_discriminants_alone_leave_nothing_to_learn():
    features, labels = samples(each=5)
    head = SldaHead(WIDTH, "oas")
    head.grow(CLASSES)
    head.update(features, labels)
    assert loss(head.solution, features, labels) < 1e-3


def test_training_rows_have_the_loss_of_rows_that_were_held_out():
    features, labels = samples(each=5)
    start = discriminant_start(features, labels, CLASSES)
    fresh = samples(each=50, seed=0)
    mine, others = loss(start, features, labels), loss(start, *fresh)
    assert 0.1 < mine < others


def test_answers_are_those_of_the_discriminants():
    features, labels = samples(each=5)
    head = SldaHead(WIDTH, "oas")
    head.grow(CLASSES)
    head.update(features, labels)
    weight, bias = discriminant_start(features, labels, CLASSES)
    others, _ = samples(each=20, seed=1)
    assert torch.equal((others.double() @ weight.T + bias).argmax(1), head(others).argmax(1))


def test_single_samples_start_at_half_the_loss_of_guessing():
    features, labels = samples(each=1)
    found = loss(discriminant_start(features, labels, CLASSES), features, labels)
    assert found == pytest.approx(math.log(CLASSES) / 2, rel=0.1)


def test_a_single_class_is_no_problem():
    features, labels = samples(each=3)
    weight, bias = discriminant_start(features[labels == 0], labels[labels == 0], 1)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
