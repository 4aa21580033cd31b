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
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..spec.architecture import Architecture, TensorSpec, architecture_of, check
from ..spec.decoders import DecoderSizes, layers_as_tensors
from ..support.files import open_regular
from ..support.text import excerpt
from . import sidecars as beside
from .file_names import (
    CONFIG,
    INDEX,
    KERAS_HUB_FILES,
    KERAS_WEIGHTS,
    MAX_JSON,
    PREPROCESSOR_CONFIG,
    PYTORCH,
    SAFETENSORS,
)
from .formats.hdf5 import Hdf5File
from .formats.stored_zip import StoredZip
from .formats.torch import Namespace, Tensor, TorchFile
from .keras_config import (
    INSTEAD,
    ONLY_IN_TRAINING,
    QUANTISED,
    Described,
    check_keras_hub,
    describe,
)
from .namings import translate, without_prefix

# Where training scripts keep the weights, in the order of preference.
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema")

# What a folder is read for, the first that is there: transformers', a run of `van train`, Keras's.
_OF_TRANSFORMERS = (SAFETENSORS, SAFETENSORS + INDEX, PYTORCH, PYTORCH + INDEX)
_OF_A_FOLDER = (*_OF_TRANSFORMERS, "best.keras", "last.keras", KERAS_WEIGHTS)
_MAX_SHARDS = 200

# A B6 has 2,842 tensors, with BatchNorm's counters 3,300; names of at most 100 letters.
_MAX_TENSORS = 20_000
_MAX_NAME = 200
_MAX_PREFIXED = 1000  # with all that wrappers put before it
_MAX_HEADER = 1 << 20  # bytes of a safetensors header or a `.keras` configuration
_HDF5_START = b"\x89HDF\r\n\x1a\n"


class CheckpointError(ValueError):
    """A file that cannot be read as weights; the message names the file and what was found."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        tensors: {name: array}, in the file's own names, dtypes and layout.
        layout: Format of the file: "torch", "torch, before 1.6", "safetensors", "keras h5"
            (Keras 2), "keras weights", "keras", "keras folder".
        wrapper: Entry of the file that held the tensors; "" if they stood at the top.
        ignored: {entry: why it was left out}.
        metadata: What the file says of itself, as it says it: safetensors' metadata ("van": this
            package's, JSON), `.keras`'s configuration ("config", and "notes" on it), and of
            others' "config.json" and "preprocessor_config.json" beside it ("timm": a config.json
            of timm's), OpenMMLab's "meta", timm's "args".
        path: What was read; of a folder, the file in it.
    """

    tensors: dict[str, np.ndarray]
    layout: str
    wrapper: str = ""
    ignored: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()

    @property
    def own(self) -> dict[str, Any]:
        """What a file of this package says of itself: sizes, labels, preprocessing; unchecked."""
        said = self.metadata.get("config")
        if said is None:
            try:
                said = json.loads(self.metadata.get("van", "{}"))
            except (ValueError, TypeError, RecursionError):
                said = {}
        # What only `weights/sidecars.py` says would be shown as it stands.
        kept = said.items() if isinstance(said, dict) else ()
        return {key: value for key, value in kept if key not in beside.ONLY_HERE}

    @cached_property
    def said(self) -> dict[str, Any]:
        """What is said beside the tensors, by this package or by others; unchecked.

        "labels", "preprocessing" and "classifier_activation" as a file of this package has them,
        what else that has, and what `weights/sidecars.py` adds.
        """
        metadata = self.metadata
        if "config.json" in metadata or "preprocessor_config.json" in metadata:
            # It wins over what is in the tensors' file: it is what others read, and edit.
            return self.own | beside.of_transformers(metadata)
        if "timm" in metadata:
            return self.own | beside.of_timm_model(metadata["timm"])
        if self.own:
            return self.own | {"notes": metadata.get("notes", ())}
        if "meta" in metadata:
            return beside.of_openmmlab(metadata["meta"])
        return beside.of_timm(metadata["args"]) if "args" in metadata else {}


def weight_file(path: str | os.PathLike) -> Path:
    """The file that `path` means: itself, or what a folder is read for.

    Raises:
        CheckpointError: A folder that has none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in _OF_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: a folder without {', '.join(_OF_A_FOLDER[:-1])} or {_OF_A_FOLDER[-1]}"
    )


def files_beside(file: Path) -> list[Path]:
    """The files that say what is in `file`, transformers' or Keras's, as far as they are there."""
    if file.name not in (*_OF_TRANSFORMERS, KERAS_WEIGHTS):
        return []
    names = (CONFIG, PREPROCESSOR_CONFIG)
    return [file.with_name(name) for name in names if file.with_name(name).is_file()]


def read_checkpoint(path: str | os.PathLike, wrapper: str | None = None) -> Checkpoint:
    """Reads a weight file; recognises its format by its content, not by its name.

    Args:
        path: A file; or a folder: of transformers (`model.safetensors` or `pytorch_model.bin`,
            also in several files with an index), of a run of `van train` (`best.keras`), or of
            Keras (`config.json` and `model.weights.h5`).
        wrapper: Entry that holds the weights, such as "model_ema"; by default the first one
            there is of `WRAPPERS`. With a dot at its end, what stands before the names of one
            of several models in the same entry: "teacher.".

    Raises:
        CheckpointError: The file is damaged, of another format, or holds more than tensors and
            plain data. Nothing in it is ever executed.
        OSError: There is no such file, or it cannot be opened.
    """
    file = weight_file(path)
    prefix = wrapper if wrapper is not None and wrapper.endswith(".") else None
    wrapper = None if prefix else wrapper
    with _refused(path):
        if file.name.endswith(INDEX):
            found = _read_shards(file, wrapper)
        elif file.name == KERAS_WEIGHTS and Path(path).is_dir():
            found = _no_wrapper(wrapper, _keras_folder(file))
        else:
            found = _read_file(file, wrapper)
        metadata = found.metadata | _read_beside(file)
        for name in found.tensors:
            if len(name) > _MAX_PREFIXED:
                raise ValueError(f"the name {excerpt(name)} is too long or not printable")
        tensors, outside = without_prefix(found.tensors, prefix)
        ignored = found.ignored | outside
        return _checked(
            replace(found, tensors=tensors, ignored=ignored, metadata=metadata, path=file)
        )


@contextmanager
def _refused(path: str | os.PathLike) -> Iterator[None]:
    """What goes wrong with a file, as a `CheckpointError` that names it."""
    try:
        yield
    except (ValueError, MemoryError, RecursionError) as error:
        what = str(error)
        if not isinstance(error, ValueError):
            too = "needs more memory" if isinstance(error, MemoryError) else "is nested deeper"
            what = f"it {too} than there is"
        raise CheckpointError(f"{path} was refused, nothing was loaded: {what}") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path, buffering=0)
    except ValueError as error:
        raise ValueError(f"{excerpt(path.name)} is {error}") from None


def _read_file(path: Path, wrapper: str | None) -> Checkpoint:
    with _opened(path) as file:
        return _read(file, path, wrapper)


def _read_json(path: Path) -> Any:
    with _opened(path) as file:
        text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise ValueError(f"{path.name} has more than {MAX_JSON:,} bytes")
    return _json(text, path.name)


def _read_beside(file: Path) -> dict[str, Any]:
    """{name: content} of transformers' files beside `file`, where they are of a VAN."""
    if file.name not in _OF_TRANSFORMERS:
        return {}
    found = {one.name: _read_json(one) for one in files_beside(file)}
    if "config.json" not in found:
        return found
    config = found["config.json"]
    if isinstance(config, dict) and not beside.TRANSFORMERS_KEYS & config.keys():
        # Else of something else, which has such a file as well.
        return {"timm": config} if "pretrained_cfg" in config else {}
    beside.check_transformers(config)
    return found


def _read_shards(index: Path, wrapper: str | None) -> Checkpoint:
    """Several files that are one: `index` says which tensor is in which file beside it."""
    content = _read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    ending = ".safetensors" if ".safetensors" in index.name else ".bin"
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index.name} has no `weight_map`")
    for file in shards.values():
        plain = isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", file)
        if not plain or not file.endswith(ending):
            raise ValueError(
                f"{index.name} names the file {excerpt(file)}; expected a plain name that ends "
                f"in {ending}"
            )
    files = sorted(set(shards.values()))
    if len(files) > _MAX_SHARDS or len(shards) > _MAX_TENSORS:
        raise ValueError(
            f"{index.name}: {len(shards):,} tensors in {len(files):,} files; allowed: "
            f"{_MAX_TENSORS:,} in {_MAX_SHARDS}"
        )
    tensors: dict[str, np.ndarray] = {}
    layout, metadata = "", {}
    for file in files:
        found = _read_file(index.with_name(file), wrapper)
        promised = {name for name, its in shards.items() if its == file}
        if found.tensors.keys() != promised:
            wrong = sorted(map(str, found.tensors.keys() ^ promised))
            raise ValueError(f"{index.name} and {file} differ: {_listed(wrong)}")
        tensors |= found.tensors
        layout, metadata = found.layout, found.metadata
    return Checkpoint(tensors, f"{layout}, {len(files)} files", metadata=metadata)


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


def check_for_keras(path: str | os.PathLike, names: Collection[str]) -> None:
    """Checks what Keras and KerasHub would make objects of, in a folder; makes none.

    Args:
        path: The folder.
        names: Of the files in it.

    Raises:
        CheckpointError: They would make a model that is no VAN, perhaps with a classifier head, or
            objects of classes of others.
        OSError: A file cannot be opened.
    """
    folder = Path(path)
    with _refused(path):
        if CONFIG in names and KERAS_WEIGHTS in names:
            _keras_folder(folder / KERAS_WEIGHTS)
        elif CONFIG in names and not _is_of_others(config := _read_json(folder / CONFIG)):
            _vans_config(config)  # Keras makes the model before it looks for the weights
        for name in KERAS_HUB_FILES:
            if name in names and name.endswith(".json"):
                check_keras_hub(_read_json(folder / name), name)


def _is_of_others(config: Any) -> bool:
    """Whether a `config.json` is transformers' or timm's, and nothing to Keras."""
    if not isinstance(config, dict) or "class_name" in config:
        return False
    return "pretrained_cfg" in config or bool(beside.TRANSFORMERS_KEYS & config.keys())


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
        if "config.json" in found.metadata:
            beside.check_sizes(found.metadata["config.json"], architecture)
        specs = architecture.tensors()
        tensors = check(state.tensors, specs, allow_nonfinite=allow_nonfinite)
    except ValueError as error:
        raise CheckpointError(f"{path} was refused, nothing was loaded: {error}") from error
    ignored = {**found.ignored, **state.ignored}
    return ModelWeights(tensors, architecture, state.naming, found, ignored)


def _read(file: BinaryIO, path: Path, wrapper: str | None) -> Checkpoint:
    start = file.read(16)
    file.seek(0)
    if start.startswith(b"PK"):
        archive = StoredZip(file)
        if KERAS_WEIGHTS in archive.members:
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


def _checked(found: Checkpoint) -> Checkpoint:
    """`found`, whose names can be shown, compared and searched without surprise."""
    if not found.tensors:
        raise ValueError("there are no tensors in it")
    for name in found.tensors:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise ValueError(f"the name {excerpt(name)} is too long or not printable")
    return replace(found, ignored={_shown(name): why for name, why in found.ignored.items()})


def _shown(name: str) -> str:
    return name if len(name) <= _MAX_NAME and name.isprintable() else excerpt(name)


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
    views = {n: v for n, v in state.items() if type(v) is Tensor and type(n) is str}
    ignored |= {str(name): "not a tensor" for name in state if name not in views}
    if len(views) > _MAX_TENSORS:
        raise ValueError(f"{len(views):,} tensors; allowed: {_MAX_TENSORS:,}")
    # Thousands of views of one storage would be small here and huge once they are copied.
    size = os.fstat(file.fileno()).st_size
    if sum(view.nbytes for view in views.values()) > size:
        raise ValueError("tensors that share their numbers: together more bytes than the file has")
    tensors = {name: opened.array(view) for name, view in views.items()}
    return Checkpoint(tensors, opened.layout, found, ignored, _said(root))


def _said(root: dict) -> dict[str, Any]:
    """What stands beside the weights: this package's card, OpenMMLab's `meta`, timm's `args`."""
    said = {key: root[key] for key in ("van", "meta", "args") if key in root}
    if type(said.get("args")) is Namespace:
        said["args"] = said["args"].attributes
    kinds = {"van": str, "meta": dict, "args": dict}
    return {key: value for key, value in said.items() if type(value) is kinds[key]}


def _has_tensors(entry: dict) -> bool:
    return any(type(value) is Tensor for value in entry.values())


def _why_ignored(key: Any, value: Any) -> str:
    if type(value) is dict and _has_tensors(value):
        return f"other weights; to read them instead: --wrapper {excerpt(key)}"
    return "training state" if type(value) in (dict, list) else "not weights"


def _listed(names: Any, most: int = 8) -> str:
    names = [ascii(str(name)[:40]) for name in names]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest


# --- safetensors ---


def _read_safetensors(file: BinaryIO, path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    size = os.fstat(file.fileno()).st_size
    header = int.from_bytes(file.read(8), "little")
    if header > min(size - 8, _MAX_HEADER):
        raise ValueError(f"a safetensors header of {header:,} bytes in a file of {size:,}")
    _json(file.read(header), "header")  # for the library takes the last of two equal keys
    try:
        with safe_open(path, framework="np") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            said = opened.metadata() or {}
    except (SafetensorError, TypeError, AttributeError, KeyError, OverflowError) as error:
        # The last four: dtypes that NumPy does not have.
        raise ValueError(f"not a valid safetensors file: {error}") from error
    metadata = {key: said[key] for key in ("format", "van") if key in said}
    return Checkpoint(tensors, "safetensors", metadata=metadata)


def _json(text: bytes | bytearray, what: str) -> Any:
    """JSON without doubled keys, of which some readers take the first and some the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError(f"its {what} has a key twice")
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its {what} is no JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"its {what} is nested too deep") from error


# --- Keras ---

_OUR_CLASS = "van_classification_tensorflow>"
# What Keras puts around our layers.
_CLASSES_OF_KERAS = {
    "NoneType.__keras_tensor__",
    "keras.DTypePolicy",
    "keras.DTypePolicyMap",
    "keras.models.Functional",
    "keras.src.models.functional.Functional",
    "keras.models.Sequential",
    "keras.Sequential",
    *(
        f"keras.layers.{name}"
        for name in (
            "InputLayer",
            "Permute",
            "LayerNormalization",
            "GlobalAveragePooling2D",
            "GlobalMaxPooling2D",
            "Dense",
            "Activation",
            "Softmax",
            "Flatten",
            *ONLY_IN_TRAINING,
        )
    ),
}
# What else stands in layers, and does nothing in inference.
_HARMLESS_MODULES = ("keras.initializers", "keras.regularizers", "keras.constraints")


def _read_keras(archive: StoredZip) -> Checkpoint:
    """`.keras`: its configuration is read as data; no class in it is ever made."""
    config = _json(archive.read("config.json", limit=_MAX_HEADER), "config.json")
    return _described(config, io.BytesIO(archive.read(KERAS_WEIGHTS)), "keras")


def _keras_folder(file: Path) -> Checkpoint:
    """The same where it is a folder, as Keras and KerasHub share it on a hub."""
    config = _read_json(file.with_name("config.json"))
    with _opened(file) as weights:
        return _described(config, weights, "keras folder")


def _vans_config(config: Any) -> Described:
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError("its config.json describes no model")
    _check_classes(config["config"])
    return describe(config)


def _described(config: Any, hdf5: BinaryIO, layout: str) -> Checkpoint:
    described = _vans_config(config)
    weights = _read_hdf5(hdf5)
    tensors = weights.tensors
    if described.head is not None:
        moved = f"{described.head}/"
        tensors = {
            f"head/{name.removeprefix(moved)}" if name.startswith(moved) else name: array
            for name, array in tensors.items()
        }
        kernel = tensors.get("head/vars/0")
        if not described.use_bias and kernel is not None:
            tensors["head/vars/1"] = np.zeros(kernel.shape[-1:], np.float32)
    if described.decoder is not None:
        tensors = _decoder_as_tensors(described.decoder, tensors)
    metadata = {"config": described.about, "notes": described.notes}
    return Checkpoint(tensors, layout, "", weights.ignored, metadata)


def _decoder_as_tensors(
    decoder: DecoderSizes, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What is behind the VAN of a segmenter, in mmsegmentation's names and axes."""
    names = layers_as_tensors(decoder)
    found = {}
    for name, array in tensors.items():
        official, kind = names.get(name, (name, ""))
        if kind and array.ndim == {"conv": 4, "pointwise": 2, "vector": 1}[kind]:
            array = TensorSpec((), kind).from_keras(array) if kind != "vector" else array
        found[official] = array
    return found


def _check_classes(config: dict) -> None:
    """Refuses a configuration with any class, at any depth, that this package does not use."""
    todo: list[Any] = [config]
    while todo:
        entry = todo.pop()
        if isinstance(entry, dict):
            found = (entry.get(key) for key in ("module", "class_name", "registered_name"))
            words = (v if isinstance(v, str) else type(v).__name__ for v in found)
            module, name, registered = words
            name = f"{module}.{name}"
            ours = registered.startswith(_OUR_CLASS)
            quantised = name.endswith("DTypePolicy") or module == "keras.quantizers"
            if quantised and name not in _CLASSES_OF_KERAS:
                raise ValueError(QUANTISED)
            ours = ours or module in _HARMLESS_MODULES
            if "class_name" in entry and not ours and name not in _CLASSES_OF_KERAS:
                raise ValueError(
                    f"the class {excerpt(name)} in its config.json; expected only this "
                    f"package's layers and a classifier head: {INSTEAD}"
                )
            todo += entry.values()
        elif isinstance(entry, list):
            todo += entry


def _read_hdf5(file: BinaryIO) -> Checkpoint:
    """Keras's HDF5: `layers/.../vars/0` of Keras 3, `block1/0/.../kernel:0` of Keras 2."""
    opened = Hdf5File(file)
    if any(path.startswith("layers/") for path in opened.arrays):
        return _keras_3(opened)
    wrapper = "model_weights/"
    kept, ignored = list(opened.arrays), {}
    if any(path.startswith(wrapper) for path in kept):  # a whole model of Keras 2
        ignored = {path: "training state" for path in kept if not path.startswith(wrapper)}
        kept = [path for path in kept if path not in ignored]
    else:
        wrapper = ""
    tensors = {path.removeprefix(wrapper): opened.read(path) for path in kept}
    return Checkpoint(tensors, "keras h5", wrapper[:-1], ignored)


def _keras_3(opened: Hdf5File) -> Checkpoint:
    """`layers/block_1/attn/vars/0` -> `block1_0/attn/vars/0`: numbered groups by layer name."""
    tensors: dict[str, np.ndarray] = {}
    ignored: dict[str, str] = {}
    for path in opened.arrays:
        section, _, rest = path.partition("/")
        if section != "layers":
            ignored[path] = "training state"
            continue
        group = section
        while section == "layers":  # also of models that are layers
            layer, _, rest = rest.partition("/")
            group = f"{group}/{layer}"
            name = opened.layer_names.get(f"{group}/vars") or layer
            section, _, inner = rest.partition("/")
            if section == "layers":
                group, rest = f"{group}/layers", inner
        if f"{name}/{rest}" in tensors:
            raise ValueError(f"two layers with the name {excerpt(name)}")
        tensors[f"{name}/{rest}"] = opened.read(path)
    return Checkpoint(tensors, "keras weights", "", ignored)
