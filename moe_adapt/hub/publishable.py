"""Save, open and publish what a learner knows: the three methods that readers expect from the Hub.

The names and the division of labour are those of `huggingface_hub.ModelHubMixin`. Its own implementation
would pickle nothing either, but writes a generic card and replaces a folder file by file; ours goes through
`moe_adapt.hub.published`, which writes whole folders with a card of their own.

A kind of learner says three things: what it is made of (`to_parts`), how it is built again (`from_parts`),
and what its card tells (`card_parts`). `moe_adapt.hub` knows none of the kinds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from moe_adapt.hub.card_parts import CardParts

__all__ = ["Publishable"]


class Publishable:
    """A learner that can be kept as safetensors and JSON, in a folder or on the Hugging Face Hub."""

    #: What kind of learner it is; written into the file.
    published_kind: ClassVar[str]

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the learner as JSON types (``class`` names its class) and tensors by name.

        Raises:
            UserError: If something of it is neither an array nor JSON.
        """
        raise NotImplementedError(f"{type(self).__name__} has no to_parts()")

    @classmethod
    def from_parts(cls, content: Mapping[str, Any], tensors: Mapping[str, Any], backbone: Any) -> Self:
        """Return the learner that `to_parts` was called on.

        Args:
            content: JSON types.
            tensors: Tensors by name.
            backbone: The pretrained model that it was trained over, fresh; None builds the one that is named.

        Raises:
            UserError: If both do not describe a learner of this class, or it is over another backbone.
        """
        raise NotImplementedError(f"{cls.__name__} has no from_parts()")

    @classmethod
    def card_parts(cls, content: Mapping[str, Any], manifest: Mapping[str, Any]) -> CardParts:
        """Return what the card of a learner tells.

        Args:
            content: What `to_parts` returned.
            manifest: Manifest of the run that trained it; empty if there is none.
        """
        raise NotImplementedError(f"{cls.__name__} has no card_parts()")

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False, about: Any = None) -> Path:
        """Write the learner to a folder, whole or not at all.

        Args:
            folder: Where to.
            overwrite: Replace an earlier export in it.
            about: What the card should say beside what the learner knows (`moe_adapt.hub.card.About`).

        Returns:
            The folder.

        Raises:
            UserError: If the folder is in use, or something of the learner is neither an array nor JSON.
        """
        from moe_adapt.hub.published import save

        return save(self, folder, about=about, overwrite=overwrite).folder

    @classmethod
    def from_pretrained(
        cls,
        address: str | Path,
        *,
        backbone: Any = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Open a learner of this class, every tensor checked; it can predict and go on learning.

        Args:
            address: A folder, or ``user/name`` on the Hub.
            backbone: The pretrained model that it was trained over, fresh; None builds the one that the
                learner names. A learner without a backbone takes none.
            revision: Branch, tag or commit of the repository.
            token: Access token for a private repository; None takes the one of ``hf auth login``.

        Raises:
            UserError: If nothing of this class is there, it is damaged, or it belongs to another backbone.
        """
        from moe_adapt.hub.published import load

        return load(address, expected=cls, backbone=backbone, revision=revision, token=token)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        message: str | None = None,
        about: Any = None,
    ) -> str:
        """Write the learner to a temporary folder and push it, in one commit.

        Args:
            repository: ``user/name``.
            private: Make a new repository private.
            token: Access token; None takes the one of ``hf auth login``.
            message: Commit message.
            about: As for `save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            UserError: If the learner cannot be kept, or the Hub refuses; nothing has changed there then.
        """
        from moe_adapt.hub.published import push

        return push(self, repository, private=private, token=token, message=message, about=about)
