"""Learners from elsewhere: damaged folders end in one clear sentence, also where the hash was made to fit."""

import hashlib
import json
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams import synthetic_stream
from moe_adapt.errors import UserError
from moe_adapt.hub.published import LEARNER_FILE, TENSORS_FILE, content_hash, load
from moe_adapt.learners import FineTuning
from moe_adapt.training.stream import StreamRunner
from tests.hub.test_soundness import damages

#: What a forged file may say; sizes stay small, as nothing bounds the memory that a forged one asks for.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([1e300, -0.0, math.nan, math.inf]),
    st.sampled_from(["", "grid", "../../etc/passwd", "Care", "os.system", "\x00", "e" * 50]),
    st.lists(st.integers(-2, 5), max_size=4),
    st.dictionaries(st.sampled_from(["is", "options", "0", "name"]), st.integers(-2, 9), max_size=3),
)

ROW, _ = next(iter(synthetic_stream("AGR_a", 400)))


def tuned():
    learner = FineTuning(ToyEncoder(), optimizer=partial(torch.optim.SGD, momentum=0.9))
    StreamRunner().run(learner, gaussian_stream(tasks=2, train=6, test=4))
    return learner


def driftmoe():
    model = DriftMoEClassifier(mode="data", n_experts=3, top_k=2, hidden=8, neural=False, seed=1)
    for x, y in synthetic_stream("AGR_a", 400):
        model.learn_one(x, y)
    return model


def forge(text, weights):
    """Make the hashes fit, as far as there is anything to hash."""
    try:
        content = json.loads(text)
        content.pop("hash", None)
        content["tensors"] = hashlib.sha256(weights).hexdigest()
        return json.dumps({**content, "hash": content_hash(content)})
    except (ValueError, AttributeError, TypeError):
        return text


def reopened(make, folder):
    if make is tuned:
        return load(folder, expected=FineTuning, backbone=ToyEncoder())
    return load(folder, expected=DriftMoEClassifier)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [tuned, driftmoe])
def test_damaged_folders_end_in_clear_errors(make, tmp_path):
    folder = make().save_pretrained(tmp_path / "kept")
    config, weights = json.loads((folder / LEARNER_FILE).read_text()), (folder / TENSORS_FILE).read_bytes()
    outcomes = {(forged, opened): 0 for forged in (False, True) for opened in (False, True)}

    @settings(max_examples=60)
    @given(damages(config, weights, VALUES), st.booleans())
    def attempt(damage, forged):
        text, content = damage
        text = forge(text, content) if forged else text
        (folder / LEARNER_FILE).write_text(text, encoding="utf-8", errors="replace")
        (folder / TENSORS_FILE).write_bytes(content)
        try:
            opened = reopened(make, folder)
        except UserError as mistake:
            outcomes[forged, False] += 1
            assert str(mistake).endswith("."), mistake
            assert len(str(mistake)) < 900
            return
        outcomes[forged, True] += 1
        if make is tuned:
            with torch.no_grad():
                assert opened.scores({"x": torch.zeros(1, 8)}).shape == (1, 4)
        else:
            opened.predict_proba_one(ROW)

    attempt()
    assert outcomes[False, False] >= 10
    assert outcomes[True, False] >= 5
    (folder / LEARNER_FILE).write_text(forge(json.dumps(config), weights))
    (folder / TENSORS_FILE).write_bytes(weights)
    assert reopened(make, folder) is not None
