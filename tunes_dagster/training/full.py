"""All weights of the denoiser, trained: what the loop trains for a `checkpoint` tune, in its single slot.

The base's own tensors are put aside (`wholes.Loan`) and copies of them are trained, so that the base is afterwards
what it was. Where the base computes in half precision, the numbers are kept and stepped in float32 and the network
computes with half-precision copies, which the optimizer's step renews.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.families.loading import gather
from tunes_dagster.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from tunes_dagster.training.weights import Layout
from tunes_dagster.training.wholes import Loan, check_whole, remember

_VALUES, _AVERAGE = "values/", "average/"


class FullWeights:
    """Every parameter of the denoiser, in one slot."""

    slots = 1
    # Values, moments and average are many times what is exported, so only the newest checkpoint keeps them.
    state_apart = True

    def __init__(self, options: Sequence[TrainingOptions], base: LoadedBase, dtype: torch.dtype) -> None:
        """Get ready for one tune; the network stays as it is until it is entered.

        Args:
            options: Of that tune.
            base: Without trained weights of ours.
            dtype: Of the numbers that are trained.
        """
        remember(base)
        gather(base.pipeline(), base.denoiser)
        self.base, self.dtype = base, dtype
        self._network: dict[str, nn.Parameter] = dict(base.denoiser.named_parameters())
        self._loan = Loan(base.denoiser)
        # What is stepped: the network's own parameters, or wider copies of them.
        self._trained: dict[str, nn.Parameter] = {}
        self._averages: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._max_norm = 1.0

    def fits(self, options: Sequence[TrainingOptions]) -> bool:
        """See `TrainedWeights.fits`: nobody joins."""
        return False

    def enter(self, slot: int, options: TrainingOptions) -> None:
        """See `TrainedWeights.enter`: starts as the base is."""
        self._begin(options, self._loan.own)

    def start_from(self, slot: int, options: TrainingOptions, adapter: Mapping[str, Tensor]) -> None:
        """See `TrainedWeights.start_from`."""
        check_whole(self.base.denoiser, adapter)
        self._begin(options, adapter)

    def restore(self, slot: int, options: TrainingOptions, state: Mapping[str, Tensor], step: int) -> None:
        """See `TrainedWeights.restore`."""
        self._begin(options, {name: state[_VALUES + name] for name in self._network})
        for name, average in self._averages.items():
            average.copy_(state.get(_AVERAGE + name, state[_VALUES + name]))
        assert self._optimizer is not None
        load_optimizer_state(self._optimizer, state, _like)

    def _begin(self, options: TrainingOptions, values: Mapping[str, Tensor]) -> None:
        """Train copies of these values from now on, with a fresh optimizer."""
        self._loan.lend(_Copied(values))
        for name, parameter in self._network.items():
            parameter.requires_grad_(True)
            self._trained[name] = parameter
            if parameter.dtype != self.dtype:
                wide = torch.empty_like(parameter, dtype=self.dtype).copy_(values[name])
                self._trained[name] = nn.Parameter(wide.detach())
        self._optimizer = make_optimizer(options, self._trained.values())
        self._max_norm = options.max_grad_norm
        if options.ema_decay:
            self._averages = {name: value.detach().clone() for name, value in self._trained.items()}

    def leave(self, slot: int) -> None:
        """See `TrainedWeights.leave`: the base's own weights are in their place again."""
        self._optimizer = None
        self._averages, self._trained = {}, {}
        for parameter in self._network.values():
            parameter.grad = None
            parameter.requires_grad_(False)
        self._loan.end()

    def assign(self, rows: Sequence[int] | None) -> None:
        """See `TrainedWeights.assign`; all rows are this tune's, since nobody is encoded for while it trains."""

    def step(self, learning_rates: Mapping[int, float]) -> None:
        """See `TrainedWeights.step`."""
        assert self._optimizer is not None
        if 0 in learning_rates:
            for name, trained in self._trained.items():
                used = self._network[name]
                if trained is not used and used.grad is not None:
                    trained.grad, used.grad = used.grad.to(self.dtype), None
            nn.utils.clip_grad_norm_(self._trained.values(), self._max_norm)
            self._optimizer.param_groups[0]["lr"] = learning_rates[0]
            self._optimizer.step()
            self._renew()
        self._optimizer.zero_grad(set_to_none=True)

    def _renew(self) -> None:
        """Let the network compute with the numbers that were just stepped."""
        with torch.no_grad():
            for name, trained in self._trained.items():
                used = self._network[name]
                if trained is not used:
                    used.copy_(trained)

    def average(self, slot: int, decay: float, step: int) -> None:
        """See `TrainedWeights.average`; follows faster in the first steps, when there is little to average."""
        weight = 1 - min(decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, average in self._averages.items():
                average.lerp_(self._trained[name], weight)

    def finite(self, slot: int) -> bool:
        """See `TrainedWeights.finite`."""
        with torch.no_grad():
            seen = [torch.isfinite(value).all() for value in self._trained.values()]
        return bool(torch.stack(seen).all())

    def state(self, slot: int) -> dict[str, Tensor]:
        """See `TrainedWeights.state`; the numbers themselves where they lie on the CPU, so write them at once."""
        assert self._optimizer is not None
        found = {_VALUES + name: value.detach() for name, value in self._trained.items()}
        found |= {_AVERAGE + name: value for name, value in self._averages.items()}
        return found | optimizer_state(self._optimizer, copied=False)

    def adapter(self, slot: int) -> dict[str, Tensor]:
        """See `TrainedWeights.adapter`: all weights of the network in its precision; written at once, like `state`."""
        if not self._averages:
            return {name: value.detach() for name, value in self._network.items()}
        return {name: self._averages[name].to(value.dtype) for name, value in self._network.items()}

    def layout(self, slot: int) -> Layout:
        """See `TrainedWeights.layout`; there is no rank."""
        return Layout(1.0, 0, [])

    def close(self) -> None:
        """See `TrainedWeights.close`."""
        self.leave(0)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return what an optimizer kept of a parameter, where and as the parameter lies: fused steps expect that."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()


class _Copied(Mapping[str, Tensor]):
    """Tensors of which each look gives a copy of its own."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name].detach().clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
