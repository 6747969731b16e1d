"""The samplers by their public names, built from the base's own noise schedule.

Bases that predict a flow (FLUX) have their own classes of them, and fewer: see `samplers_of`.

Every one draws its noise from the generators it is handed, one per picture, so that a picture does not depend
on its neighbours. That is why `dpm++sde` is the single-step SDE solver and not diffusers'
`DPMSolverSDEScheduler`: the latter draws one Brownian tree for the whole batch (and needs torchsde).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode


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
# Of flow-matching bases; `euler_a` draws fresh noise at every step, as its namesake does.
_FLOW_SAMPLERS = {
    "euler": _Sampler("FlowMatchEulerDiscreteScheduler"),
    "euler_a": _Sampler("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "dpm++2m": _Sampler(
        _DPM,
        {**_MULTISTEP, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "lcm": _Sampler("FlowMatchLCMScheduler"),
}


def samplers_of(config: Any) -> tuple[str, ...]:
    """Return the public names of the samplers that a base with this scheduler config has."""
    return tuple(_FLOW_SAMPLERS) if _is_flow(config) else SCHEDULERS


def _is_flow(config: Any) -> bool:
    return str(config["_class_name"]).startswith("FlowMatch")


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
        Failure: `INVALID_REQUEST` for an unknown name, or one that this base does not have.
    """
    import diffusers

    chosen = check_scheduler(name)
    if chosen is None:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    if chosen not in samplers_of(config):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The sampler {chosen!r} does not exist for a base that predicts a flow.",
            f"Choose one of {', '.join(_FLOW_SAMPLERS)}.",
        )
    sampler = (_FLOW_SAMPLERS if _is_flow(config) else _SAMPLERS)[chosen]
    changes = dict(sampler.changes)
    if _is_flow(config):
        changes["flow_shift"] = config.get("shift", 1.0)
    elif chosen in ("lcm", "tcd"):
        changes["original_inference_steps"] = max(50, steps)
    return getattr(diffusers, sampler.scheduler).from_config(config, **changes)


def starting_latents(scheduler: Any, noise: Any) -> Any:
    """Return standard normal noise at the scale that the scheduler starts from."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def model_input(scheduler: Any, latents: Any, timestep: Any) -> Any:
    """Return the latents as the model wants to see them at a timestep; flow-matching classes leave them alone."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latents if scale is None else scale(latents, timestep)
