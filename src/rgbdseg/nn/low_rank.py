"""Linear layers whose trained weight stays and whose change is a product of two narrow matrices.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv 2106.09685.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

# ... any leading dimensions, I input and O output features, R rank


class LowRankLinear(nn.Linear):
    """``x W^T + b + scale (x D^T) U^T``, starting as the layer it replaces, since U starts at 0.

    Args:
        linear: its parameters are taken over, not copied.
        rank: R, at least 1.
        alpha: ``scale`` is alpha / rank, so that the rate of learning need not follow the rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.low_rank_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.low_rank_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.low_rank_down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) for (..., I)."""
        change = functional.linear(functional.linear(x, self.low_rank_down), self.low_rank_up)
        return super().forward(x) + self.scale * change

    def merged_weight(self) -> Tensor:
        """Return the weight (O, I) of the plain layer that computes the same."""
        return self.weight + self.scale * self.low_rank_up @ self.low_rank_down


def add_low_rank(module: nn.Module, names: tuple[str, ...], rank: int, alpha: float) -> None:
    """Make the linear layers of these names, where ``module`` has them, low-rank ones.

    Args:
        module: is changed.
        names: of its attributes; what is absent or not linear is left as it is.
        rank: see `LowRankLinear`.
        alpha: see `LowRankLinear`.
    """
    for name in names:
        layer = getattr(module, name, None)
        if isinstance(layer, nn.Linear):
            setattr(module, name, LowRankLinear(layer, rank, alpha))


def linear_weight(layer: nn.Linear) -> Tensor:
    """Return the weight that a layer, low-rank or not, multiplies with."""
    return layer.merged_weight() if isinstance(layer, LowRankLinear) else layer.weight


def is_low_rank(name: str) -> bool:
    """Whether a parameter of this name was added by a `LowRankLinear`."""
    return name.rpartition(".")[2].startswith("low_rank_")


def train_only_low_rank(module: nn.Module) -> None:
    """Freeze every parameter but those that low-rank layers have added."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_low_rank(name))
