"""LightHam: the factorization by its equations, its bases, and the decoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders import FeatureInfo, create_decoder
from rgbdseg.nn.decoders.light_ham import LightHamDecoder, MatrixFactorization

FEATURES = FeatureInfo((8, 12, 16), (4, 8, 16))


def factorized(x_CP: Tensor, bases_CR: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Bases and coefficients, one entry after the other as in Lee and Seung's rule."""
    scores = x_CP.T @ bases_CR
    coefficients = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)

    def updated_coefficients(coefficients: Tensor) -> Tensor:
        return (
            coefficients
            * torch.einsum("cp,cr->pr", x_CP, bases_CR)
            / (torch.einsum("ps,cs,cr->pr", coefficients, bases_CR, bases_CR) + 1e-6)
        )

    for _ in range(steps):
        coefficients = updated_coefficients(coefficients)
        bases_CR = (
            bases_CR
            * torch.einsum("cp,pr->cr", x_CP, coefficients)
            / (torch.einsum("cs,ps,pr->cr", bases_CR, coefficients, coefficients) + 1e-6)
        )
    return bases_CR, updated_coefficients(coefficients)


@pytest.mark.parametrize(("training", "steps"), [(True, 6), (False, 7)])
def test_equals_the_equations(training: bool, steps: int) -> None:
    torch.manual_seed(0)
    module = MatrixFactorization(6, 3).double().train(training)
    module.fixed_bases = functional.normalize(torch.rand(2, 6, 3, dtype=torch.float64), dim=1)
    x = torch.rand(2, 6, 4, 5, dtype=torch.float64)
    for output, image, bases in zip(module(x), x, module.fixed_bases, strict=True):
        factors = factorized(image.flatten(1), bases, steps)
        torch.testing.assert_close(output.flatten(1), factors[0] @ factors[1].T)
        assert all((factor >= 0).all() for factor in factors)


def test_comes_nearer_with_every_step() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 6, 5, 5, dtype=torch.float64)
    errors = []
    for steps in range(1, 30):
        module = MatrixFactorization(6, 6, eval_steps=steps).double().eval()
        errors.append(float((module(x) - x).square().sum()))
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.2 * errors[0]


def test_gradients_flow_through_all_steps() -> None:
    torch.manual_seed(0)
    module = MatrixFactorization(4, 2).double()
    module.fixed_bases = torch.rand(1, 4, 2, dtype=torch.float64)
    x = torch.rand(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)


def test_one_image_has_one_prediction() -> None:
    module = MatrixFactorization(8, 4).eval()
    x = torch.rand(3, 8, 4, 4)
    assert torch.equal(module(x), module(x))
    torch.testing.assert_close(module(x)[2:], module(x[2:]))
    torch.testing.assert_close(MatrixFactorization(8, 4).eval()(x), module(x))  # whoever built it, and when
    assert not module.state_dict()


def test_training_draws_new_bases_for_every_image() -> None:
    module = MatrixFactorization(8, 4)
    x = torch.rand(1, 8, 4, 4).expand(2, -1, -1, -1)
    first, second = module(x), module(x)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0], first[1])
    fixed = MatrixFactorization(8, 4, redraw=False)
    assert torch.equal(fixed(x), fixed(x))


def test_bases_are_directions() -> None:
    module = MatrixFactorization(8, 4)
    for bases in (module.first_bases(torch.rand(2, 8, 9)), module.eval().first_bases(torch.rand(2, 8, 9))):
        assert bases.shape == (2, 8, 4)
        assert (bases >= 0).all()
        torch.testing.assert_close(bases.norm(dim=1), torch.ones(2, 4))


def test_order_of_bases_does_not_matter() -> None:
    module = MatrixFactorization(8, 4).eval()
    x = torch.rand(1, 8, 4, 4)
    expected = module(x)
    module.fixed_bases = module.evaluation_bases[None, :, [2, 0, 3, 1]]
    torch.testing.assert_close(module(x), expected)


def test_half_precision_is_raised() -> None:
    module = MatrixFactorization(8, 4).eval()
    x = torch.rand(1, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x.bfloat16()).dtype == torch.float32
        assert torch.equal(module(x), MatrixFactorization(8, 4).eval()(x))


def decoder(**options: object) -> LightHamDecoder:
    torch.manual_seed(0)
    made = create_decoder("light_ham", FEATURES, 5, **{"width": 10, "factor_width": 6, "bases": 3, **options})
    assert isinstance(made, LightHamDecoder)
    return made


def features() -> list[Tensor]:
    return [torch.randn(2, channels, side, side) for channels, side in ((8, 16), (12, 8), (16, 4))]


def test_decoder_works_at_the_size_of_the_second_feature_and_leaves_out_the_first() -> None:
    made = decoder().eval()
    maps = features()
    logits = made(maps)
    assert logits.shape == (2, 5, 8, 8)
    assert torch.equal(made([torch.zeros(1), *maps[1:]]), logits)
    assert made.squeeze.in_channels == 28
    assert made.upsample(logits, (61, 35)).shape == (2, 5, 61, 35)


def test_decoder_norms() -> None:
    assert {m.eps for m in decoder().modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}


def test_without_its_factorization_it_passes_the_joined_features_on() -> None:
    made = decoder().eval()
    with torch.no_grad():
        made.leave_norm.weight.zero_()
    maps = features()
    joined = torch.cat([maps[1], functional.interpolate(maps[2], scale_factor=2, mode="bilinear")], 1)
    x = functional.relu(made.squeeze_norm(made.squeeze(joined)))
    expected = made.classifier(functional.relu(made.align_norm(made.align(x))))
    torch.testing.assert_close(made(maps), expected)


def test_options() -> None:
    with pytest.raises(UsageError, match="only one"):
        create_decoder("light_ham", FeatureInfo((8,), (4,)), 5)
    with pytest.raises(UsageError, match="bases is 0"):
        create_decoder("light_ham", FEATURES, 5, bases=0)
