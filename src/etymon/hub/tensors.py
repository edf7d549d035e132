"""Files of tensors, single and sharded, read as untrusted input; safetensors are written, whole or not at all."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etymon.errors import CheckpointError
from etymon.files import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What torch.save wrote: pickles, from which nothing but tensors is taken.
PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint. Raises CheckpointError when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class TensorFiles:
    """The tensors of a checkpoint directory by name, read one at a time."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self._files)

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU. Raises CheckpointError when its file is damaged."""
        path, handle = self._files[name]
        try:
            return handle.get_tensor(name)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({error})") from None


class _Pickled:
    """The tensors of one file of torch.save."""

    def __init__(self, path: Path) -> None:
        try:
            values = _unpickled(path)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            asked = f"asks for {found[1]}" if found else "holds more than tensors"
            raise CheckpointError(
                f"{path}: this pickle {asked}; nothing but tensors is read from one, and nothing of it is run. Ask for "
                "the checkpoint as safetensors"
            ) from None
        except (RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            size = path.stat().st_size
            raise CheckpointError(f"{path}: truncated or corrupted file of {size} bytes ({reason})") from None
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise CheckpointError(f"{path}: expected tensors by name, found {type(values).__name__}")
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
                raise CheckpointError(f"{path}: {name!r} is {type(value).__name__}, not a plain tensor")
        self._values: dict[str, Tensor] = values

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    def get_tensor(self, name: str) -> Tensor:
        return self._values[name].clone()  # the file may change beneath a mapped one


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch writes since 1.6; older files cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


@contextmanager
def open_tensors(directory: Path, stem: str | None = None) -> Iterator[TensorFiles]:
    """Open the safetensors file or shards of `directory`, or, where there are none, those of torch.save.

    With `stem`, the file is `stem`.safetensors or `stem`.bin instead.

    Raises CheckpointError for a missing, truncated or corrupted file, for an index that does not match its shards, and
    for a pickle that asks for anything but tensors.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}

        def add(path: Path) -> None:
            try:
                handle: Any = _Pickled(path) if path.suffix == ".bin" else stack.enter_context(_safetensors(path))
            except FileNotFoundError:
                raise CheckpointError(f"{path}: the file is missing") from None
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                if name in files:
                    raise CheckpointError(f"{path}: tensor {name!r} is also in {files[name][0]}")
                files[name] = (path, handle)

        names = [INDEX, SINGLE, PICKLED_INDEX, PICKLED_SINGLE]
        if stem is not None:
            names = [f"{stem}.safetensors", f"{stem}.bin"]
        present = [name for name in names if (directory / name).exists()]
        if not present:
            raise CheckpointError(f"{directory}: none of {', '.join(names)} is there")
        if not present[0].endswith(".json"):
            add(directory / present[0])
        else:
            index = directory / present[0]
            for name, shard in _index(index).items():
                if not any(path.name == shard for path, _ in files.values()):
                    add(directory / shard)
                if name not in files or files[name][0].name != shard:
                    raise CheckpointError(f"{index}: says that {shard} holds {name!r}, but it does not")
        yield TensorFiles(files)


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: truncated or corrupted safetensors file of {size} bytes ({error}); fetch or save it again"
        ) from None


def _index(path: Path) -> dict[str, str]:
    mapping = read_json(path).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
        raise CheckpointError(f"{path}: no weight_map from tensor names to file names")
    for shard in mapping.values():
        if Path(shard).name != shard or not shard.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{path}: {shard!r} is not the name of a file in this directory")
    return mapping


def write_tensors(tensors: Iterable[tuple[str, Tensor]], directory: Path, max_shard_bytes: int = 5 << 30) -> None:
    """Write named tensors into `directory` as one file, or as shards with an index when they are larger than one."""
    shards: list[dict[str, Tensor]] = [{}]
    sizes = [0]
    for name, tensor in tensors:
        if shards[-1] and sizes[-1] + tensor.nbytes > max_shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor.detach().to("cpu").contiguous()
        sizes[-1] += tensor.nbytes
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE, metadata=metadata)
        return
    mapping: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata=metadata)
        mapping |= dict.fromkeys(shard, file)
    write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": mapping})
