"""First and second moments of paired activations, accumulated batch by batch in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class CrossMoments:
    """Running sums for the regression of outputs ``y`` on inputs ``x``, and their averages.

    Batches are multiplied in their own precision and summed in float64.

    :param count: number of samples so far.
    :param input_sum: ``(in,)``.
    :param output_sum: ``(out,)``.
    :param input_square: ``(in, in)``, sum of ``x x^T``.
    :param cross: ``(out, in)``, sum of ``y x^T``.
    :param output_energy: sum of ``|y|^2``.
    """

    count: int
    input_sum: Tensor
    output_sum: Tensor
    input_square: Tensor
    cross: Tensor
    output_energy: float

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: torch.device | str | None = None) -> "CrossMoments":
        """Empty sums for ``inputs`` input and ``outputs`` output features."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(0, zeros(inputs), zeros(outputs), zeros(inputs, inputs), zeros(outputs, inputs), 0.0)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add samples.

        :param inputs: ``(samples, in)``.
        :param outputs: ``(samples, out)``, of the same samples.
        :raises ValueError: if shapes disagree.
        """
        expected = (inputs.shape[0], self.cross.shape[1]), (inputs.shape[0], self.cross.shape[0])
        if (tuple(inputs.shape), tuple(outputs.shape)) != expected:
            raise ValueError(
                f"got inputs {tuple(inputs.shape)} and outputs {tuple(outputs.shape)}, expected {expected}"
            )
        self.count += inputs.shape[0]
        self.input_sum += inputs.sum(0, dtype=torch.float64)
        self.output_sum += outputs.sum(0, dtype=torch.float64)
        self.input_square += (inputs.T @ inputs).to(torch.float64)
        self.cross += (outputs.T @ inputs).to(torch.float64)
        self.output_energy += float(outputs.square().sum(dtype=torch.float64))

    @property
    def input_mean(self) -> Tensor:
        """``E[x]``, ``(in,)``."""
        return self.input_sum / self._samples()

    @property
    def output_mean(self) -> Tensor:
        """``E[y]``, ``(out,)``."""
        return self.output_sum / self._samples()

    def input_covariance(self) -> Tensor:
        """``E[x x^T] - E[x] E[x]^T``, ``(in, in)``."""
        return self.input_square / self._samples() - torch.outer(self.input_mean, self.input_mean)

    def cross_covariance(self) -> Tensor:
        """``E[y x^T] - E[y] E[x]^T``, ``(out, in)``."""
        return self.cross / self._samples() - torch.outer(self.output_mean, self.input_mean)

    def output_variance(self) -> float:
        """``E|y|^2 - |E[y]|^2``, the energy of a prediction of the mean alone."""
        return self.output_energy / self._samples() - float(self.output_mean.square().sum())

    def _samples(self) -> int:
        if not self.count:
            raise ValueError("no samples were added")
        return self.count
