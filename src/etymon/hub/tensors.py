"""safetensors files, single and sharded, read as untrusted input and written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etymon.errors import CheckpointError
from etymon.files import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


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


@contextmanager
def open_tensors(directory: Path) -> Iterator[TensorFiles]:
    """Open the safetensors file or shards of `directory`.

    Raises CheckpointError for a missing, truncated or corrupted file, and for an index that does not match its shards.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}

        def add(path: Path) -> None:
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except FileNotFoundError:
                raise CheckpointError(f"{path}: the file is missing") from None
            except (SafetensorError, OSError, ValueError) as error:
                size = path.stat().st_size
                raise CheckpointError(
                    f"{path}: truncated or corrupted safetensors file of {size} bytes ({error}); fetch or save it again"
                ) from None
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                if name in files:
                    raise CheckpointError(f"{path}: tensor {name!r} is also in {files[name][0]}")
                files[name] = (path, handle)

        if (directory / INDEX).exists():
            mapping = read_json(directory / INDEX).get("weight_map")
            if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
                raise CheckpointError(f"{directory / INDEX}: no weight_map from tensor names to file names")
            for shard in sorted(set(mapping.values())):
                if Path(shard).name != shard:
                    raise CheckpointError(f"{directory / INDEX}: {shard!r} is not the name of a file in this directory")
                add(directory / shard)
            for name, shard in mapping.items():
                if name not in files or files[name][0].name != shard:
                    raise CheckpointError(f"{directory / INDEX}: says that {shard} holds {name!r}, but it does not")
        elif (directory / SINGLE).exists():
            add(directory / SINGLE)
        else:
            raise CheckpointError(f"{directory}: neither {SINGLE} nor {INDEX} is there")
        yield TensorFiles(files)


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
