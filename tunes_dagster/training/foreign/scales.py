"""What an adapter is multiplied by: alpha / rank, from the tensor beside it or from the file's header. Needs no torch.

A file that says neither is at its full strength in every program, so it is here; only peft's own, whose alpha lies in
another file, say nothing about their strength at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode

# Where diffusers keeps the configurations of peft, by network (`unet.lora_alpha`).
_DIFFUSERS = "lora_adapter_metadata"
# What a strength may be: beyond that a header is wrong or forged.
_MOST = 1000.0


@dataclass(frozen=True)
class Scales:
    """The configurations that a file's header, or `adapter_config.json` beside it, holds by network.

    Attributes:
        configs: `r`, `lora_alpha`, `alpha_pattern`, `use_rslora` by network; under `` for every network.
    """

    configs: Mapping[str, Mapping[str, Any]]

    @property
    def told(self) -> bool:
        """Whether anything says how strong the adapter is."""
        return any(config.get("lora_alpha") is not None for config in self.configs.values())

    def of(self, network: str, layer: str, rank: int) -> float:
        """Return what the adapter of a layer is multiplied by where no alpha lies beside it.

        Args:
            network: As the pipeline calls it (`unet`).
            layer: Its dotted name.
            rank: Of its matrices.

        Raises:
            Failure: `WEIGHTS_UNUSABLE` for numbers that are none.
        """
        config = self.configs.get(network) or self.configs.get("") or {}
        alpha = _matching(config.get("alpha_pattern") or {}, layer, config.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return scale(alpha, rank, bool(config.get("use_rslora")), layer)


def scale(alpha: Any, rank: int, rslora: bool = False, layer: str = "") -> float:
    """Return alpha / rank, or alpha / √rank with rsLoRA.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`.
    """
    try:
        found = float(alpha) / (math.sqrt(rank) if rslora else rank)
    except (TypeError, ValueError, ZeroDivisionError):
        found = math.nan
    if not math.isfinite(found) or abs(found) > _MOST:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"{layer or 'A layer'} of the file has alpha {str(alpha)[:40]} at rank {rank}, which is no strength.",
            "Export it anew in the program that made it.",
        )
    return found


def read_scales(header: Mapping[str, str], config: Mapping[str, Any] | None = None) -> Scales:
    """Return what a header says about strengths.

    Args:
        header: Of the file.
        config: peft's `adapter_config.json`, where there is one.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    if config:
        found[""] = dict(config)
    if _DIFFUSERS in header:
        try:
            flat = json.loads(header[_DIFFUSERS])
            for key, value in flat.items():
                network, _, name = key.rpartition(".")
                # `unet.alpha_pattern` is a dict; a dotted key of another program's would be none of ours.
                found.setdefault(network, {})[name] = value
        except (ValueError, AttributeError, RecursionError):
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The header's {_DIFFUSERS} cannot be read, so that nobody knows how strong the file is.",
                "Export it anew in the program that made it.",
            ) from None
    return Scales(found)


def check_strength(bare: bool, scales: Scales) -> None:
    """Refuse a file that nobody knows the strength of.

    Args:
        bare: Whether it is peft's own.
        scales: What is said of it.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`.
    """
    if bare and not scales.told:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            "The file is peft's own: how strong it is says adapter_config.json, which is not there.",
            "Hand in its folder, or say lora_alpha with `alpha`; programs that ask for neither take alpha = rank.",
        )


def _matching(patterns: Any, layer: str, default: Any) -> Any:
    """Return the value whose pattern is the end of a layer's name, as peft matches names."""
    if not isinstance(patterns, Mapping):
        return default
    for pattern, value in patterns.items():
        # Never as a regular expression of a stranger's: those that people write are names.
        name = re.escape(str(pattern).lstrip("^").rstrip("$"))
        if re.search(rf"(^|\.){name}$", layer):
            return value
    return default
