"""The samplers by their public names, built from the base's own noise schedule.

Every one draws its noise from the generators it is handed, one per picture, so that a picture does not depend
on its neighbours. That is why `dpm++sde` is the single-step SDE solver and not diffusers'
`DPMSolverSDEScheduler`: the latter draws one Brownian tree for the whole batch (and needs torchsde).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.failures import Failure, FailureCode


@dataclass(frozen=True)
class _Sampler:
    """A diffusers scheduler class by name, and what differs from the base's configuration."""

    scheduler: str
    changes: dict[str, Any] = field(default_factory=dict)


_DPM = "DPMSolverMultistepScheduler"
_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}
_SDE = {
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 2,
    "use_karras_sigmas": False,
    "lower_order_final": True,
}
# Stable Diffusion's latents are not bounded by 1, which DDIM and its relatives assume by default.
_UNBOUNDED = {"clip_sample": False, "set_alpha_to_one": False}

_SAMPLERS = {
    "euler": _Sampler("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler_a": _Sampler("EulerAncestralDiscreteScheduler"),
    "dpm++2m": _Sampler(_DPM, _MULTISTEP),
    "dpm++2m_karras": _Sampler(_DPM, {**_MULTISTEP, "use_karras_sigmas": True}),
    "dpm++sde": _Sampler("DPMSolverSinglestepScheduler", _SDE),
    "dpm++sde_karras": _Sampler("DPMSolverSinglestepScheduler", {**_SDE, "use_karras_sigmas": True}),
    "lcm": _Sampler("LCMScheduler", _UNBOUNDED),
    "tcd": _Sampler("TCDScheduler", _UNBOUNDED),
    "ddim": _Sampler("DDIMScheduler", _UNBOUNDED),
}
SCHEDULERS = tuple(_SAMPLERS)


def check_scheduler(name: str | None) -> str | None:
    """Return the canonical name of a sampler; None stays None, which is the base's own.

    Raises:
        Failure: `INVALID_REQUEST` for an unknown name, with the closest one and the list.
    """
    if name is None:
        return None
    plain = name.strip().lower().replace(" ", "_")
    if plain in _SAMPLERS:
        return plain
    close = difflib.get_close_matches(plain, _SAMPLERS, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise Failure(
        FailureCode.INVALID_REQUEST,
        f"There is no scheduler called {name!r}.",
        f"{hint}Choose one of {', '.join(SCHEDULERS)}.",
    )


def make_scheduler(name: str | None, config: Any, steps: int) -> Any:
    """Return a fresh diffusers scheduler over the base's noise schedule.

    Args:
        name: Public name; None is the class that the base was saved with.
        config: `pipeline.scheduler.config` of the base.
        steps: Number of steps it will be asked for; LCM and TCD skip through at least as many.

    Raises:
        Failure: `INVALID_REQUEST` for an unknown name.
    """
    import diffusers

    chosen = check_scheduler(name)
    if chosen is None:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    sampler = _SAMPLERS[chosen]
    changes = dict(sampler.changes)
    if chosen in ("lcm", "tcd"):
        changes["original_inference_steps"] = max(50, steps)
    return getattr(diffusers, sampler.scheduler).from_config(config, **changes)
