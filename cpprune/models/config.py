"""Settings of the network."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from cpprune.models.networks import NAMES
from cpprune.settings.choices import check_choices


@dataclass(kw_only=True)
class ModelConfig:
    """Network architecture."""

    name: Literal[NAMES] = "cp_resnet"  # type: ignore[valid-type]
    """network family: a module of cpprune.models.networks"""
    factory: str | None = None
    """a network of your own instead of a family: package.module:function, a subclass of
    torch.nn.Module or a function annotated to return one; called with num_classes and
    model.arguments"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """keyword arguments of model.factory, or settings of the family that are no keys of model"""
    input_shape: list[int] | None = None
    """expected shape of one input, such as [1, 256, 44]; an error if the front end gives another"""
    base_channels: int = 32
    """width of the first stage, in channels"""
    channels_multiplier: float | None = None
    """the second stage is this many times as wide as the first, the third its square (default:
    cp_resnet 2, cp_mobile 1.8)"""
    expansion: float = 2.1
    """cp_mobile: width inside a block relative to its input"""
    widths: list[int] | None = None
    """cp_resnet: widths of the three stages, instead of base_channels and channels_multiplier"""
    rho: int = 4
    """cp_resnet: receptive-field parameter, from 1 to 16; 4 sees 91 mel bins × 39 frames"""
    blocks: list[int] = field(default_factory=lambda: [2, 2, 2])
    """cp_resnet: residual blocks in each stage"""
    groups: list[int] = field(default_factory=lambda: [1, 1, 1])
    """cp_resnet: groups of the block convolutions in each stage"""

    def __post_init__(self) -> None:
        check_choices(self, "model")
        if self.factory is not None:
            from cpprune.models.factory import is_factory

            if not is_factory(self.factory):
                raise ValueError(
                    f"model.factory={self.factory!r}: must be package.module:function, such as "
                    "my_nets:tiny"
                )
        multiplier = self.channels_multiplier
        if self.base_channels < 1 or (multiplier is not None and multiplier < 1):
            raise ValueError(
                f"model.base_channels={self.base_channels}, model.channels_multiplier={multiplier}: "
                "both must be at least 1"
            )
        if self.expansion <= 0:
            raise ValueError(f"model.expansion={self.expansion}: must be above 0")
        if self.widths is not None and (len(self.widths) != 3 or min(self.widths) < 1):
            raise ValueError(
                f"model.widths={self.widths}: give three positive numbers, one a stage"
            )
        if not 1 <= self.rho <= 16:
            raise ValueError(f"model.rho={self.rho}: must be from 1 to 16")
        self._refuse_what_does_not_apply()

    @property
    def family(self) -> str:
        """What `build_model` takes as the name: the family's, or the factory."""
        return self.factory or self.name

    def network_config(self) -> dict[str, object]:
        """Return what `build_model` takes beside the name."""
        if self.factory is not None:
            return dict(self.arguments)
        from cpprune.models.registry import settings_of  # imports torch

        settings = settings_of(self.name)
        # Defaults are written out, so that a model does not change with those of a later version.
        own = {key: getattr(self, key, None) for key in settings}
        own = {k: settings[k].default if value is None else value for k, value in own.items()}
        return own | self.arguments

    def _refuse_what_does_not_apply(self) -> None:
        own = {"name", "factory", "input_shape"}
        changed = [
            item.name
            for item in fields(self)
            if item.name not in own
            and getattr(self, item.name)
            != (item.default if item.default_factory is MISSING else item.default_factory())
        ]
        if not changed:  # and torch need not be imported
            return
        if self.factory is not None:
            usable = {"arguments"}
        else:
            from cpprune.models.registry import check_config, settings_of  # imports torch

            usable = set(settings_of(self.name))
            if usable.difference(item.name for item in fields(self)).issuperset(self.arguments):
                usable.add("arguments")
                check_config(self.name, self.arguments, "model.arguments")
        for name in changed:
            if name not in usable:
                raise ValueError(
                    f"model.{name}={getattr(self, name)}: {self.family} has no such setting; leave it "
                    "out"
                )
