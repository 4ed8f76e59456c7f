"""Checkpoints that are whole or not there.

    step-000100/
      weights.safetensors     what moves, in float32, by name
      optimizer.safetensors   AdamW's moments and step counts, by name of the weight
      rng.safetensors         state of PyTorch's random numbers
      state.json              losses, counts and times so far
      manifest.json           written last: step, identity of the training, size and SHA-256 of each file

Written into a temporary directory, flushed to the disk and renamed. The position in the data is the step; the learning
rate follows from it. No file needs unpickling. What a crash may lose: the steps since the newest checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.store import files
from tunesmith.track.console import warn

_FILES = ("weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json")
_MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: holds them.
        identity: hash of what decides the result; checkpoints of another training are never resumed.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, *, identity: str, keep: int) -> None:
        self._directory, self._identity, self._keep = directory, identity, keep

    def save(self, step: int, weights: dict[str, Any], optimizer: dict[str, Tensor], state: dict[str, Any]) -> bool:
        """Write a checkpoint; return False, after a warning, when the disk does not take it."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {"weights": weights, "optimizer": optimizer, "rng": _rng_state()}
        try:
            with files.writing_directory(self._directory / f"step-{step:06d}") as temporary:
                for name, part in tensors.items():
                    on_cpu = {key: value.detach().to("cpu").contiguous() for key, value in part.items()}
                    save_file(on_cpu, str(temporary / f"{name}.safetensors"))
                files.write_json(temporary / "state.json", state)
                files.write_json(temporary / _MANIFEST, self._manifest(step, temporary))
        except (OSError, SafetensorError) as error:
            warn(f"checkpoint of step {step} could not be written, training goes on: {error}")
            return False
        for old in self._steps()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return True

    def _manifest(self, step: int, directory: Path) -> dict[str, Any]:
        listed = {
            name: {"num_bytes": (directory / name).stat().st_size, "sha256": files.sha256(directory / name)}
            for name in _FILES
        }
        return {"schema_version": 1, "step": step, "identity": self._identity, "files": listed}

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint. Broken ones are set aside, with a warning that names them."""
        for leftover in [*self._directory.glob(".step-*.tmp"), *self._directory.glob(".step-*.old")]:
            shutil.rmtree(leftover, ignore_errors=True)
        for candidate in reversed(self._steps()):
            fault = self._fault(candidate)
            if fault is None:
                return candidate
            aside = candidate.with_name(f"broken-{candidate.name}")
            shutil.rmtree(aside, ignore_errors=True)
            candidate.replace(aside)
            warn(f"checkpoint {candidate} is not used: {fault}; it is now {aside.name}")
        return None

    def _steps(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def _fault(self, checkpoint: Path) -> str | None:
        """Return what is wrong with a checkpoint, or None."""
        try:
            manifest = json.loads((checkpoint / _MANIFEST).read_text())
            if manifest["identity"] != self._identity:
                return "it belongs to a training with other settings or data"
            for name in _FILES:
                listed, file = manifest["files"][name], checkpoint / name
                if file.stat().st_size != listed["num_bytes"]:
                    return f"{name} has {file.stat().st_size} bytes of {listed['num_bytes']}"
                if files.sha256(file) != listed["sha256"]:
                    return f"the content of {name} is not what was written"
        except FileNotFoundError as error:
            return f"{Path(str(error.filename)).name} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its manifest cannot be read: {error}"
        return None


def load_weights(checkpoint: Path, weights: dict[str, torch.nn.Parameter]) -> None:
    """Put a checkpoint's weights into those that training moves."""
    from safetensors.torch import load_file

    saved = load_file(str(checkpoint / "weights.safetensors"))
    assert set(saved) == set(weights), "the identity should have told them apart"
    with torch.no_grad():
        for name, tensor in saved.items():
            weights[name].copy_(tensor)


def load_optimizer_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Read what `optim.fill_optimizer` takes."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(str(checkpoint / "optimizer.safetensors"))
    return tensors


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json."""
    document: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return document


def restore_rng(checkpoint: Path) -> None:
    """Put back the state of PyTorch's random numbers."""
    from safetensors.torch import load_file

    saved = load_file(str(checkpoint / "rng.safetensors"))
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
