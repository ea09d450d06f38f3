"""What a model folder says without being loaded: configuration, sizes from the safetensors headers, faults.

Reads a few kilobytes of each file and imports neither torch nor transformers, so that `luthier check` answers at once.
The safetensors layout: eight bytes with the header's length (little-endian), the header as JSON, then the tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import ModelError, Problem, RunError, did_you_mean
from luthier.core.paths import locate
from luthier.core.rundir import RESOLVED, RunDir, final_checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "sentencepiece.bpe.model",
)
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFacts:
    """A model as its folder describes it.

    Attributes:
        folder: where it lies; None for a hub model that is not on this machine yet.
        config: config.json as a mapping; empty where there is none to read.
        parameters: weights stored, or None where there are none to count.
        stored_bytes: size of the weights on disk.
        dtypes: number formats of the stored weights.
        has_template: whether the tokenizer brings a chat template.
    """

    folder: Path | None
    config: Mapping[str, object] = field(default_factory=dict)
    parameters: int | None = None
    stored_bytes: int = 0
    dtypes: tuple[str, ...] = ()
    has_template: bool = False

    @property
    def architecture(self) -> str:
        """The class that the config names, or the family."""
        named = self.config.get("architectures")
        if isinstance(named, list) and named:
            return str(named[0])
        return str(self.config.get("model_type", "unknown"))

    @property
    def classes(self) -> list[str] | None:
        """The names of a classifier's classes, in order; None for other models."""
        table = self.config.get("id2label")
        if "ForSequenceClassification" not in self.architecture or not isinstance(table, dict):
            return None
        return [str(table[key]) for key in sorted(table, key=int)]

    @property
    def context_length(self) -> int | None:
        """The longest sequence that the model was built for, where the config says it."""
        text = self.config.get("text_config")
        for config in (self.config, text if isinstance(text, dict) else {}):
            for key in _CONTEXT_KEYS:
                length = config.get(key)
                if isinstance(length, int):
                    return length
        return None


def inspect_model(
    name: str, base: Path | None = None, *, revision: str | None = None, from_scratch: bool = False
) -> tuple[ModelFacts, list[Problem]]:
    """Return what can be known of a model without loading it, and everything that would stop it from loading."""
    try:
        folder = find_folder(name, base, revision)
    except ModelError as error:
        return ModelFacts(None), error.problems
    if folder is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")
        if not offline:
            return ModelFacts(None), []
        remedy = "unset HF_HUB_OFFLINE to download it, or give a folder or starter"
        return ModelFacts(None), [
            Problem("The model is not on this machine, and the hub is switched off.", name, remedy)
        ]
    config, problems = _read_config(folder)
    problems += _tokenizer_problems(folder)
    parameters, stored_bytes, dtypes = None, 0, ()
    if not from_scratch:
        try:
            headers = list(_headers(folder))
        except ModelError as error:
            problems += error.problems
        else:
            shapes = [tensor for header in headers for name, tensor in header.items() if name != "__metadata__"]
            parameters = sum(math.prod(tensor["shape"]) for tensor in shapes)
            stored_bytes = sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in shapes)
            dtypes = tuple(sorted({tensor["dtype"] for tensor in shapes}))
    return ModelFacts(folder, config, parameters, stored_bytes, dtypes, _has_template(folder)), problems


def find_folder(name: str, base: Path | None = None, revision: str | None = None) -> Path | None:
    """Return the folder of a model, that of a hub model in the local cache, or None for one yet to be downloaded.

    Raises:
        ModelError: the name is a path, and there is no such folder.
    """
    return local_folder(name, base) or _cached(name, revision or "main")


def local_folder(name: str, base: Path | None = None) -> Path | None:
    """Return the absolute path of a model that is no hub model: `starter`, or a folder; None for a hub id.

    Raises:
        ModelError: the name is a path, and there is no such folder.
    """
    if name == "starter":
        return Path(__file__).parent.parent / "starter"
    path = locate(name, (base, Path()) if base is not None else ()).absolute()
    if path.is_dir():
        return _checkpoint_of_run(path) or path
    if path.is_file():
        raise ModelError(Problem("This is a file; a model is a folder.", name, f"give its folder: {path.parent}"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        near = sorted(p.parent.name for p in path.parent.glob("*/config.json")) if path.parent.is_dir() else []
        remedy = (
            f"models there: {', '.join(near)}" if near else "give a folder with a config.json, a hub id, or starter"
        )
        raise ModelError(Problem(f"There is no such model folder.{did_you_mean(path.name, near)}", name, remedy))
    return None


def _checkpoint_of_run(path: Path) -> Path | None:
    """Return a run's final checkpoint where that is a complete model; an adapter has to be exported first."""
    if (path / "config.json").is_file() or not (path / RESOLVED).is_file():
        return None
    try:
        checkpoint = final_checkpoint(RunDir(path))
    except RunError:
        return None
    return checkpoint if (checkpoint / "config.json").is_file() else None


def _cached(name: str, revision: str) -> Path | None:
    """Return where the hub library keeps a model that was downloaded before."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    kept = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    reference = kept / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = kept / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


def _read_config(folder: Path) -> tuple[dict[str, object], list[Problem]]:
    path = folder / "config.json"
    if not path.is_file():
        remedy = "give the folder that holds config.json and the weights"
        if (folder / "adapter_config.json").is_file():
            remedy = "this is an adapter; give the model it was trained on, or export its run first: luthier export"
        elif (folder / RESOLVED).is_file():
            remedy = f"this is a run; export its model first: luthier export {folder} OUT"
        return {}, [Problem("The model folder has no config.json.", str(folder), remedy)]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        remedy = "copy the file from where the model comes from"
        return {}, [Problem(f"config.json cannot be read: {error}.", str(path), remedy)]
    if not isinstance(config, dict) or not (config.get("model_type") or config.get("architectures")):
        remedy = "copy the file from where the model comes from"
        return {}, [Problem("config.json does not say what the model is (model_type).", str(path), remedy)]
    return config, []


def _tokenizer_problems(folder: Path) -> list[Problem]:
    present = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not present:
        remedy = f"copy the model's tokenizer files into it ({', '.join(TOKENIZER_FILES[:3])}, …)"
        return [Problem("The model folder has no tokenizer.", str(folder), remedy)]
    problems = []
    for path in present:
        with path.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER or not start:
            problems.append(Problem("The tokenizer was not downloaded: the file is only a pointer.", str(path), _PULL))
    return problems


_PULL = "fetch the real files with `git lfs pull`, or download the model again"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _headers(folder: Path) -> Iterator[dict[str, dict]]:
    """Yield the headers of the files that hold the weights.

    Raises:
        ModelError: no weights, shards missing, or files that are broken; all of them.
    """
    names = weight_files(folder)
    problems: list[Problem] = []
    headers = []
    for name in names:
        try:
            headers.append(read_header(folder / name))
        except ModelError as error:
            problems += error.problems
    if problems:
        raise ModelError(*problems)
    yield from headers


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights, in order.

    Raises:
        ModelError: there are none, some are missing, or they are pickles.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            remedy = "copy the file from where the model comes from"
            raise ModelError(Problem("The index of the weights cannot be read.", str(index), remedy)) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            what = f"{len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:3])}."
            raise ModelError(Problem(what, str(folder), "download the model again"))
        return names
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in found:
        return ["model.safetensors"]
    if found:
        return found
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    remedy = "put model.safetensors beside config.json, or start from random weights with model.from_scratch=true"
    if pickled:
        remedy = f"{pickled[0]} is a pickle, which can run code when opened; convert it to safetensors first"
    raise ModelError(Problem("The model folder has no safetensors weights.", str(folder), remedy))


def read_header(path: Path) -> dict[str, dict]:
    """Return the header of a safetensors file: dtype, shape and place of each tensor.

    Raises:
        ModelError: the file is a pointer, is no safetensors file, or ends too early.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ModelError(Problem("The weights were not downloaded: the file is only a pointer.", str(path), _PULL))
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            what = f"This is no complete safetensors file ({size:,} bytes)."
            raise ModelError(Problem(what, str(path), "download the model again"))
        stream.seek(8)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        shapes = [math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            Problem("The header of the weights is broken.", str(path), "download the model again")
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected or not shapes:
        what = f"The file has {size:,} bytes; its header speaks of {expected:,}."
        raise ModelError(Problem(what, str(path), "download the model again: the file was cut off"))
    return header
