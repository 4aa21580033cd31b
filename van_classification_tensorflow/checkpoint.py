"""Weight files from strangers -> {tensor name: array}, without torch, TensorFlow or trust.

Reads what `torch.save` writes (zip and the layout before 1.6), safetensors, and the HDF5 of Keras:
the earlier TensorFlow port's `.h5`, `.weights.h5` and `.keras`. `read_checkpoint`
gives the names as the file spells them, less wrappers and prefixes; `read_weights` gives the
authors' names.
"""

from __future__ import annotations

import io
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .names import Architecture, architecture_of, check, translate
from .stored_zip import StoredZip
from .torch_file import Tensor, TorchFile

# Where training scripts keep the weights, in the order of preference.
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema")
_PREFIXES = ("module.", "model.")

_MAX_JSON = 16 << 20  # bytes of a safetensors header or a `.keras` configuration
_MAX_DEPTH = 16  # of HDF5 groups; Keras needs 8
_MAX_OBJECTS = 200_000  # in an HDF5 file; a B6 with optimizer needs 12,000
_HDF5_START = b"\x89HDF\r\n\x1a\n"


class CheckpointError(ValueError):
    """A file that cannot be read as weights; the message names the file and what was found."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        tensors: {name: array}, in the file's own names, dtypes and layout.
        layout: Format of the file: "torch", "torch, before 1.6", "safetensors", "keras h5"
            (Keras 2), "keras weights", "keras".
        wrapper: Entry of the file that held the tensors; "" if they stood at the top.
        ignored: {entry: why it was left out}.
        metadata: What the file says of itself: safetensors' metadata, `.keras`'s configuration.
    """

    tensors: dict[str, np.ndarray]
    layout: str
    wrapper: str = ""
    ignored: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike, wrapper: str | None = None) -> Checkpoint:
    """Reads a weight file; recognises its format by its content, not by its name.

    Args:
        path: A file, or a folder of Hugging Face's (its `model.safetensors` or
            `pytorch_model.bin` is read).
        wrapper: Entry that holds the weights, such as "model_ema"; by default the first one
            there is of `WRAPPERS`.

    Raises:
        CheckpointError: The file is damaged, of another format, or holds more than tensors and
            plain data. Nothing in it is ever executed.
        OSError: There is no such file, or it cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_of(path)
    # Not blocking: a named pipe would wait for a writer for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        try:
            return _read(file, path, wrapper)
        except (ValueError, MemoryError, RecursionError) as error:
            what = str(error) or type(error).__name__
            raise CheckpointError(f"{path} was refused, nothing was loaded: {what}") from error


@dataclass(frozen=True)
class ModelWeights:
    """The weights of one VAN, complete and checked.

    Args:
        tensors: {the authors' name: array in PyTorch's axes}, in the authors' order.
        architecture: The sizes that the tensors have.
        naming: Whose names the file had.
        source: What was read, with the file's own names.
        ignored: {entry or tensor of the file: why it was left out}.
    """

    tensors: dict[str, np.ndarray]
    architecture: Architecture
    naming: str
    source: Checkpoint
    ignored: dict[str, str]


def read_weights(
    path: str | os.PathLike, wrapper: str | None = None, allow_nonfinite: bool = False
) -> ModelWeights:
    """Reads a weight file of any format and naming; all of one VAN, or an error.

    Args:
        path: As in `read_checkpoint`.
        wrapper: As in `read_checkpoint`.
        allow_nonfinite: Accept NaN and infinities.

    Raises:
        CheckpointError: As `read_checkpoint`; or the tensors are not those of one VAN.
        OSError: There is no such file, or it cannot be opened.
    """
    found = read_checkpoint(path, wrapper)
    try:
        state = translate(found.tensors)
        architecture = architecture_of(state.tensors)
        specs = architecture.tensors()
        tensors = check(state.tensors, specs, allow_nonfinite=allow_nonfinite)
    except ValueError as error:
        raise CheckpointError(f"{path} was refused, nothing was loaded: {error}") from error
    ignored = {**found.ignored, **state.ignored}
    return ModelWeights(tensors, architecture, state.naming, found, ignored)


def _file_of(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: a folder without model.safetensors or pytorch_model.bin")


def _read(file: BinaryIO, path: Path, wrapper: str | None) -> Checkpoint:
    start = file.read(16)
    file.seek(0)
    if start.startswith(b"PK"):
        archive = StoredZip(file)
        if "model.weights.h5" in archive.members:
            return _no_wrapper(wrapper, _read_keras(archive))
        return _read_torch(file, wrapper)
    if start.startswith(b"\x80\x02"):
        return _read_torch(file, wrapper)
    if start.startswith(_HDF5_START):
        return _no_wrapper(wrapper, _read_hdf5(file))
    if start[8:9] == b"{":
        return _no_wrapper(wrapper, _read_safetensors(file, path))
    raise ValueError(
        "its content is none of torch.save, safetensors, HDF5 or .keras "
        f"(it begins with {start[:8]!r})"
    )


def _no_wrapper(wrapper: str | None, found: Checkpoint) -> Checkpoint:
    if wrapper is not None:
        raise ValueError(
            f"`wrapper`={wrapper!r}, but a file of format {found.layout} has no entries"
        )
    return found


# --- torch.save ---


def _read_torch(file: BinaryIO, wrapper: str | None) -> Checkpoint:
    opened = TorchFile(file)
    root, ignored = opened.root, {}
    if type(root) is not dict:
        raise ValueError(
            f"it holds a {type(root).__name__.lower()}, expected a dictionary of tensors"
        )
    entries = [key for key in root if type(root[key]) is dict and _has_tensors(root[key])]
    if wrapper is None:
        found = next((name for name in WRAPPERS if name in entries), "")
        if not found and not _has_tensors(root):
            raise ValueError(
                f"no tensors at its top nor under {_listed(WRAPPERS)}; it has: {_listed(root)}"
            )
    elif wrapper in entries:
        found = wrapper
    else:
        raise ValueError(f"no entry {wrapper!r} with tensors; there are: {_listed(entries)}")
    state = root[found] if found else root
    if found:
        ignored = {str(key): _why_ignored(key, root[key]) for key in root if key != found}
    tensors: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if type(value) is Tensor and type(name) is str:
            tensors[name] = opened.array(value)
        else:
            ignored[str(name)] = "not a tensor"
    return Checkpoint(_without_prefix(tensors), opened.layout, found, ignored)


def _has_tensors(entry: dict) -> bool:
    return any(type(value) is Tensor for value in entry.values())


def _why_ignored(key: Any, value: Any) -> str:
    if type(value) is dict and _has_tensors(value):
        return f"other weights; to read them instead: wrapper={str(key)!r}"
    return "training state" if type(value) in (dict, list) else "not weights"


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without `module.` and the like, where every name has it."""
    for _ in range(2):  # DataParallel around a wrapper, at most
        for prefix in _PREFIXES:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): a for name, a in tensors.items()}
    return tensors


def _listed(names: Any, most: int = 8) -> str:
    names = [ascii(str(name)[:40]) for name in names]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest


# --- safetensors ---


def _read_safetensors(file: BinaryIO, path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    size = os.fstat(file.fileno()).st_size
    header = int.from_bytes(file.read(8), "little")
    if header > min(size - 8, _MAX_JSON):
        raise ValueError(f"a safetensors header of {header:,} bytes in a file of {size:,}")
    try:
        with safe_open(path, framework="np") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, TypeError, AttributeError, KeyError, OverflowError) as error:
        # The last four: dtypes that NumPy does not have.
        raise ValueError(f"not a valid safetensors file: {error}") from error
    return Checkpoint(_without_prefix(tensors), "safetensors", metadata=metadata)


# --- Keras ---

_OUR_CLASS = "van_classification_tensorflow>"
_LAYERS_OF_KERAS = {
    "InputLayer",
    "Permute",
    "LayerNormalization",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "Dense",
    "Activation",
}


def _read_keras(archive: StoredZip) -> Checkpoint:
    """`.keras`: its configuration is read as data; no class in it is ever made."""
    try:
        config = json.loads(archive.read("config.json", limit=_MAX_JSON))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its config.json is no JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError("its config.json describes no model")
    found = config.get("registered_name")
    if found != f"{_OUR_CLASS}VAN":
        # A graph that VANB0(input_tensor=...) made: our layers and the few of Keras around them.
        layers = config["config"].get("layers")
        if config.get("class_name") != "Functional" or not isinstance(layers, list):
            raise ValueError(
                f"a model of class {_printable(config.get('class_name'))}; expected this "
                "package's VAN"
            )
        for layer in layers:
            entry = layer if isinstance(layer, dict) else {}
            ours = str(entry.get("registered_name")).startswith(_OUR_CLASS)
            keras_own = entry.get("module") == "keras.layers"
            if not ours and not (keras_own and entry.get("class_name") in _LAYERS_OF_KERAS):
                raise ValueError(
                    f"a layer of class {_printable(entry.get('class_name'))}; expected only "
                    "this package's layers"
                )
    weights = _read_hdf5(io.BytesIO(archive.read("model.weights.h5")))
    return Checkpoint(weights.tensors, "keras", "", weights.ignored, {"config": config["config"]})


def _printable(value: Any) -> str:
    return ascii(str(value)[:80])


def _read_hdf5(file: BinaryIO) -> Checkpoint:
    """Keras's HDF5: `layers/.../vars/0` of Keras 3, `block1/0/.../kernel:0` of Keras 2."""
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            size = file.seek(0, os.SEEK_END)
            if "layers" in opened:
                return _keras_3(_datasets(opened, size))
            tensors, _ = _datasets(opened, size)
    except ValueError:
        raise
    except Exception as error:  # h5py: KeyError, RuntimeError, OSError, ... for damaged files
        raise ValueError(f"damaged HDF5: {type(error).__name__}: {error}") from error
    wrapper = "model_weights/"
    if any(name.startswith(wrapper) for name in tensors):  # a whole model of Keras 2
        ignored = {n: "training state" for n in tensors if not n.startswith(wrapper)}
        kept = {n.removeprefix(wrapper): a for n, a in tensors.items() if n not in ignored}
        return Checkpoint(kept, "keras h5", wrapper[:-1], ignored)
    return Checkpoint(tensors, "keras h5")


def _datasets(root: Any, file_size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({path: array}, {path of a group: the name Keras gave its layer}) of an HDF5 file.

    Only what Keras writes: hard links, and numbers that lie in the file as they are.
    """
    import h5py

    arrays: dict[str, np.ndarray] = {}
    layer_names: dict[str, str] = {}
    seen: set[Any] = set()
    total = 0

    def walk(group: Any, path: str, depth: int) -> None:
        nonlocal total
        if depth > _MAX_DEPTH:
            raise ValueError(f"HDF5 groups more than {_MAX_DEPTH} deep")
        for name in group:
            here = f"{path}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(
                    f"the HDF5 entry {_printable(here)} points elsewhere (a soft or external link)"
                )
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                raise ValueError(f"the HDF5 entry {_printable(here)} has a second name")
            seen.add(address)
            if len(seen) > _MAX_OBJECTS:
                raise ValueError(f"more than {_MAX_OBJECTS:,} HDF5 entries")
            if isinstance(entry, h5py.Dataset):
                _check_dataset(entry, here, file_size)
                total += entry.nbytes
                if total > file_size:
                    raise ValueError("HDF5 arrays that overlap")
                arrays[here] = entry[()]
            elif isinstance(entry, h5py.Group):
                if name == "vars":
                    layer_names[path[:-1]] = _layer_name(entry)
                walk(entry, f"{here}/", depth + 1)
            else:
                raise ValueError(f"the HDF5 entry {_printable(here)} is neither group nor array")

    walk(root, "", 1)
    return arrays, layer_names


def _check_dataset(dataset: Any, path: str, file_size: int) -> None:
    offset = dataset.id.get_offset()
    plain = dataset.chunks is None and not dataset.external and not dataset.is_virtual
    if not plain or dataset.id.get_create_plist().get_nfilters():
        raise ValueError(
            f"the HDF5 array {_printable(path)} is chunked, compressed, virtual or in another file"
        )
    if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8:
        raise ValueError(f"the HDF5 array {_printable(path)} holds {dataset.dtype}, not numbers")
    if dataset.nbytes and (offset is None or offset + dataset.nbytes > file_size):
        raise ValueError(f"the HDF5 array {_printable(path)} is larger than the file")


def _layer_name(group: Any) -> str:
    import h5py

    if "name" not in group.attrs:
        return ""
    attribute = group.attrs.get_id("name")
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise ValueError("an HDF5 layer name that is no text")
    name = group.attrs["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _keras_3(found: tuple[dict[str, np.ndarray], dict[str, str]]) -> Checkpoint:
    """`layers/block_1/attn/vars/0` -> `block1_0/attn/vars/0`: numbered groups by layer name."""
    arrays, layer_names = found
    tensors: dict[str, np.ndarray] = {}
    ignored: dict[str, str] = {}
    for path, array in arrays.items():
        section, _, rest = path.partition("/")
        layer, _, variable = rest.partition("/")
        if section != "layers":
            ignored[path] = "training state"
        else:
            name = layer_names.get(f"layers/{layer}") or layer
            if f"{name}/{variable}" in tensors:
                raise ValueError(f"two layers with the name {_printable(name)}")
            tensors[f"{name}/{variable}"] = array
    return Checkpoint(tensors, "keras weights", "", ignored)
