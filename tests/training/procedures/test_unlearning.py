"""Unlearning: ascent up to a ceiling, rows told apart by domain, and a guard that keeps the routing."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from moe_adapt.checks import CheckedClassifier, check_procedure
from moe_adapt.checks.procedures import toy_batches
from moe_adapt.errors import UserError
from moe_adapt.training.procedures import Unlearn
from moe_adapt.training.procedures.unlearning import guarded_sites, select_rows, site_inputs
from moe_adapt.tuner import RoutedLoraConfig

FORGET = 1


def fitted(procedure, epochs=4, lr=3e-2, **settings):
    module = CheckedClassifier(procedure, lr=lr, router_lr=0.3, **settings)
    L.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    before = {site: rows.detach().clone() for site, (_, rows, _) in guarded_sites(module).items()}
    assert procedure.stability(module) is None
    trainer.fit(module, DataLoader(toy_batches(), batch_size=None))
    moved = sum(float((rows - before[site]).norm()) for site, (_, rows, _) in guarded_sites(module).items())
    return module, procedure.stability(module), moved


@torch.no_grad()
def losses(module):
    gone = [batch["domain_ids"] == FORGET for batch in toy_batches()]
    pairs = [
        [float(module.task_loss(select_rows(batch, rows))) for rows in (own, ~own)]
        for batch, own in zip(toy_batches(), gone, strict=True)
    ]
    return [sum(column) / len(column) for column in zip(*pairs, strict=True)]


def test_guarded_routing_of_retained_inputs_is_stable_and_the_rows_are_forgotten_all_the_same():
    start = losses(CheckedClassifier().eval())
    guarded, stable, moved = fitted(Unlearn(FORGET, max_inputs=16))
    free, drifted, _ = fitted(Unlearn(FORGET, guard=False))
    assert stable == 1.0 and moved > 0
    assert drifted < 0.95
    for module in (guarded, free):
        forget, retain = losses(module.eval())
        assert forget > start[0] and retain < start[1]


def test_the_loss_is_that_of_retained_rows_less_that_of_forgotten_ones_up_to_the_ceiling():
    module, batch = CheckedClassifier().eval(), toy_batches(1)[0]
    module.log_dict = lambda *_, **__: None
    gone = batch["domain_ids"] == FORGET
    forget, retain = (module.task_loss(select_rows(batch, rows)).float() for rows in (gone, ~gone))
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0

    def loss(**options):
        found = Unlearn(FORGET, guard=False, **options).step(module, batch)
        return (found - module.tuner.hooks.parts["load_balance"]).float()

    torch.testing.assert_close(loss(ceiling=9.0, ascent=0.5), retain - 0.5 * forget)
    torch.testing.assert_close(loss(ceiling=0.1), retain - 0.1)


def test_passes_the_public_check():
    check_procedure(lambda: Unlearn(FORGET, guard=True, ceiling=5.0, max_inputs=8))


def test_what_cannot_be_done_is_one_sentence():
    module, batch = CheckedClassifier(), toy_batches(1)[0]
    unmarked = {name: values for name, values in batch.items() if name != "domain_ids"}
    with pytest.raises(UserError, match=r"data\.domain_column"):
        Unlearn(FORGET, guard=False).step(module, unmarked)
    with pytest.raises(UserError, match="one row per sample"):
        select_rows(batch | {"answer": torch.zeros(2)}, batch["domain_ids"] == 0)
    with pytest.raises(UserError, match="no rows to retain"):
        site_inputs(module, [], most=4)
    sites = {"target_modules": ["query"], "num_experts": 3, "r": 2}
    soft = CheckedClassifier(tuner=RoutedLoraConfig(method="soft", **sites))
    with pytest.raises(UserError, match="unlearn without the guard"):
        Unlearn(FORGET).attach(soft, torch.optim.Adam(soft.parameters()))
    with pytest.raises(UserError, match="ascent > 0"):
        Unlearn(ascent=0)
