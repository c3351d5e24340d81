"""A LoRA per task: prototypes are means, the guess is the nearest by cosine, and its LoRA answers."""

import torch

from tests.learners.instructions.toys import learner, stream
from tests.learners.passes import Pass, begin, whole

STREAM = stream()


def learned(tasks=3):
    built = learner("prototype_lora").eval()
    for index in range(tasks):
        begin(built, [STREAM.task(index)])
        with torch.no_grad():
            built.end_task(STREAM.task(index), Pass(STREAM))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in built.state_dict().items():
        if "moe_adapt_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return built


def mixed():
    samples, tasks = STREAM.test_until(2)
    order = [0, 7, 14, 1, 8, 15, 2]
    return STREAM.collate([samples[row] for row in order]), torch.from_numpy(tasks)[order]


def test_a_prototype_is_the_mean_vector_of_the_tasks_prompts():
    built = learned()
    assert built.prototypes.shape == (3, 16)
    for index in range(3):
        vectors = built.answerer.embed(whole(STREAM, index))
        torch.testing.assert_close(built.prototypes[index], vectors.mean(0))


def test_batches_of_the_pass_do_not_matter():
    built, again = learned(1), learned(1)

    class Small(Pass):
        def batches(self, data, batch_size=None):
            return super().batches(data, 5)

    again.end_task(STREAM.task(0), Small(STREAM))
    torch.testing.assert_close(again.prototypes, built.prototypes)


def test_the_guess_is_by_angle_and_not_by_length():
    built = learned()
    batch, tasks = mixed()
    assert torch.equal(built.nearest(batch), tasks)
    vectors = built.answerer.embed(batch)
    built.prototypes *= torch.tensor([[1.0], [100.0], [0.01]])
    assert torch.equal(built.nearest(batch), tasks)
    assert not torch.equal((vectors @ built.prototypes.T).argmax(1), tasks)
    assert not torch.equal(torch.cdist(vectors, built.prototypes).argmin(1), tasks)


def test_each_sample_is_answered_by_the_lora_of_its_task_and_the_newest_one_stays_active():
    built = learned()
    batch, tasks = mixed()
    found = built.choice_scores(batch)
    assert built.answerer.model.active_adapter == "task_2"
    for index, name in enumerate(("default", "task_1", "task_2")):
        built.answerer.model.set_adapter(name)
        alone = built.answerer.choice_scores(batch)
        for row in range(len(tasks)):
            if tasks[row] == index:
                torch.testing.assert_close(found[row], alone[row], rtol=1e-4, atol=1e-4)
            else:
                assert not torch.allclose(found[row], alone[row], atol=1e-2)


def test_the_adapter_of_the_task_trains_and_no_other():
    built = learned()
    trained = {name.split(".")[-1] for name, p in built.named_parameters() if p.requires_grad}
    assert trained == {"task_2"}
