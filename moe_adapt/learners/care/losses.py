r"""The losses of CaRE: a cosine classifier over the classes of the task, and its copy in every block.

$$L_{cls} = -\log \frac{e^{\tau(\cos_y - m)}}{e^{\tau(\cos_y - m)} + \sum_{j \ne y} e^{\tau \cos_j}}, \qquad
L_{cp} = L_{cls}(\text{perceptron logits}) + T^2\, \mathrm{KL}\big(\mathrm{softmax}(\cos / T)\ \|\
\mathrm{softmax}(C / T)\big)$$

over the classes of the current task. The teacher of the second term is the cosine without its temperature, as
published, hence almost uniform; it gets no gradient.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["cosface_loss", "perceptron_kl"]


def cosface_loss(cosines: Tensor, labels: Tensor, temperature: float, margin: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of scaled cosines with a margin on the right class.

    Args:
        cosines: Cosines, [B, n].
        labels: Right column of each row, [B].
        temperature: Factor on the cosines, tau.
        margin: Subtracted from the right cosine, m.
    """
    shifted = cosines - margin * F.one_hot(labels, cosines.shape[1]).to(cosines.dtype)
    return F.cross_entropy(temperature * shifted, labels)


def perceptron_kl(cosines: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return the divergence of a perceptron from the classifier, a scalar.

    Args:
        cosines: Cosines of the classifier, [B, n]; the teacher, which gets no gradient.
        logits: Logits of the perceptron, [B, n].
        temperature: Softens both, T.
    """
    teacher = (cosines.detach() / temperature).softmax(dim=-1)
    student = (logits / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean")
