"""`transformers.Trainer` trains a routed model as it is, and resumes it."""

import torch
from transformers import Trainer, TrainingArguments

from tests.tuner.tiny import adapted, batch


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = batch(rows=4)
        return {key: value[index] for key, value in rows.items()}


def trainer(folder, steps):
    model = adapted("dynmole", dropout=0.0)
    model.base_model.add_aux_to_loss = True
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows())


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_trains_and_resumes(tmp_path):
    whole = trainer(tmp_path / "whole", steps=4)
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    first = trainer(tmp_path / "parts", steps=2)
    first.train()
    second = trainer(tmp_path / "parts", steps=4)
    second.train(resume_from_checkpoint=True)
    assert losses(second)[2:] == losses(whole)[2:]
