"""The stream of the demonstration: BBC news class by class, on the embedded MiniLM, without a network."""

from moe_adapt.backbones import TextEncoder
from moe_adapt.data.packages import BBC_NEWS, MINILM, package_folder
from moe_adapt.demo.bbc import load_bbc_news
from moe_adapt.streams import TextStream

__all__ = ["BbcStream", "MiniLm"]


class MiniLm(TextEncoder):
    """all-MiniLM-L6-v2 as the installed package carries it."""

    def __init__(self) -> None:
        super().__init__(str(package_folder(*MINILM)), pooling="mean")


class BbcStream(TextStream):
    """BBC news articles as a class-incremental stream.

    Args:
        increment: New classes per task; there are five.
        order_seed: Seed of the classes' order, drawn as in the literature; None keeps that of their names.
        train_per_class: Training articles of each class.
        test_per_class: Test articles of each class.
        max_length: Tokens read of each article.
        seed: Decides which articles are trained on and tested.
    """

    def __init__(
        self,
        increment: int = 1,
        order_seed: int | None = 1993,
        train_per_class: int = 24,
        test_per_class: int = 40,
        max_length: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(
            str(package_folder(*MINILM)),
            load_bbc_news(),
            increment=increment,
            order_seed=order_seed,
            test_fraction=0.5,
            train_per_class=train_per_class,
            test_per_class=test_per_class,
            max_length=max_length,
            seed=seed,
        )
        self.origin |= {
            "kind": "texts",
            "train": f"{BBC_NEWS[0]} {BBC_NEWS[1]}",
            "test": "half of every class",
        }
