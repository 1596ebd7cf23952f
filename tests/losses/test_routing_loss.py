import pytest
import torch
from basicsr.losses import build_loss
from references import priced_cross_entropy

from cp_basicsr.losses.routing_loss import SPAN_SHARES, TARGET_SHARE
from cp_basicsr.options import OptionError
from cp_basicsr.routing import price_psnr

# Three predictions over three levels, and what the levels cost.
PROBS = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])
COSTS = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)


def log_probs():
    return PROBS.clamp_min(1e-30).log().requires_grad_()


def loss(kind, **options):
    return build_loss({'type': kind, **options})


def test_budget_loss():
    # Expected costs 0.5, 0.825, 1.0; their mean is 0.775.
    assert loss('BudgetLoss', target=0.5)(log_probs(), COSTS).item() == pytest.approx(0.275 / 0.5)
    assert loss('BudgetLoss', target=0.8, loss_weight=2.0)(log_probs(), COSTS).item() == pytest.approx(2 * 0.025 / 0.8)
    assert loss('BudgetLoss', target=0.775)(log_probs(), COSTS).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(('target', 'sign'), [(0.3, -1), (0.95, 1)])
def test_budget_loss_moves_the_cost_to_the_target(target, sign):
    logits = torch.zeros(4, 3, requires_grad=True)
    loss('BudgetLoss', target=target)(logits.log_softmax(dim=1), COSTS).backward()
    moved = (logits - logits.grad).softmax(dim=1)
    assert ((moved @ COSTS.float()).mean() - COSTS.mean()) * sign > 0


def test_confidence_loss():
    # Sums of the gaps: 0.25 + 0.25 + 0, 0.1 + 0.6 + 0.5, 0 + 1 + 1.
    expected = ((2 - 0.5) + (2 - 1.2) + (2 - 2)) / 3
    assert loss('ConfidenceLoss')(log_probs(), COSTS).item() == pytest.approx(expected)
    assert loss('ConfidenceLoss', loss_weight=0.1)(log_probs(), COSTS).item() == pytest.approx(0.1 * expected)
    uniform = torch.full((2, 4), 0.25).log()
    assert loss('ConfidenceLoss')(uniform, None).item() == pytest.approx(3)


def test_confidence_loss_sharpens_a_prediction():
    logits = torch.tensor([[0.1, 0.0, -0.1]], requires_grad=True)
    loss('ConfidenceLoss')(logits.log_softmax(dim=1), COSTS).backward()
    moved = (logits - logits.grad).softmax(dim=1)
    assert moved.max() > logits.softmax(dim=1).max()


def test_soft_oracle_loss_is_the_cross_entropy_at_the_prices_of_six_budgets():
    psnr = torch.tensor([[30.0, 30.5, 30.6], [25.0, 27.0, 29.0], [28.0, 28.1, 28.3]], dtype=torch.float64)
    criterion = loss('SoftOracleLoss', tau=0.2, eta=0.3, loss_weight=3.0)
    pricing = criterion.pricing(psnr, COSTS, 0.6)
    target = criterion.target(psnr, COSTS, pricing)
    own = PROBS.clamp_min(1e-3).log().log_softmax(dim=1).requires_grad_()
    value = criterion(own, target, COSTS, pricing)
    logits = (0.3 * psnr - COSTS) / (0.2 * 0.75)
    assert value.item() == pytest.approx(3 * priced_cross_entropy(logits, own.detach(), COSTS), rel=1e-4)
    value.backward()
    assert torch.isfinite(own.grad).all() and own.grad.abs().max() > 0


def test_a_prediction_equal_to_its_target_has_no_gradient():
    psnr = torch.tensor([[30.0, 30.5, 30.6], [25.0, 27.0, 29.0]], dtype=torch.float64)
    criterion = loss('SoftOracleLoss')
    pricing = criterion.pricing(psnr, COSTS, 0.6)
    target = criterion.target(psnr, COSTS, pricing)
    logits = target.clone().requires_grad_()
    criterion(logits.log_softmax(dim=1), target, COSTS, pricing).backward()
    assert logits.grad.abs().max() < 1e-9


def test_soft_oracle_targets_take_eta_or_solve_it_for_the_budget():
    psnr = torch.tensor([[30.0, 30.5, 30.6], [25.0, 27.0, 29.0]])
    costs = COSTS.float()
    given = loss('SoftOracleLoss', tau=0.2, eta=0.3)
    pricing = given.pricing(psnr, COSTS, 0.6)
    assert pricing.eta == 0.3
    expected = ((0.3 * psnr - costs) / (0.2 * 0.75)).softmax(dim=1)
    torch.testing.assert_close(given.target(psnr, COSTS, pricing).exp(), expected)
    free = loss('SoftOracleLoss', tau=0.2)
    solved = free.pricing(psnr, COSTS, 0.6)
    assert solved.eta == pytest.approx(price_psnr(psnr, costs, 0.25 + 0.75 * TARGET_SHARE, 0.2 * 0.75))
    target = free.target(psnr, COSTS, solved)
    assert (target.exp() @ costs).mean().item() == pytest.approx(0.6, abs=1e-3)
    for share, price in zip(SPAN_SHARES, solved.prices, strict=True):
        at_this = (target.double() - price * COSTS).softmax(dim=1)
        assert (at_this @ COSTS).mean().item() == pytest.approx(0.25 + 0.75 * share, abs=1e-3)


@pytest.mark.parametrize('budget', [0.35, 0.5, 0.9])
def test_a_target_tells_tiles_apart_whatever_the_budget_and_however_dense_the_sparsest_level(budget):
    """Three levels between 0.3 and 1: of all tiles alike a target at tau 0.5 would spend half the MACs by itself."""
    psnr = torch.tensor([[30.0, 30.1, 30.1], [25.0, 27.0, 28.0], [28.0, 28.5, 28.8]], dtype=torch.float64)
    costs = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
    criterion = loss('SoftOracleLoss')
    pricing = criterion.pricing(psnr, costs, budget)
    assert pricing.eta == pytest.approx(criterion.pricing(psnr, costs, 0.7).eta)
    target = criterion.target(psnr, costs, pricing)
    assert (target.exp() @ costs).mean().item() == pytest.approx(budget, abs=1e-3)
    gaps = target[:, -1] - target[:, 0]
    assert gaps[1] > gaps[2] + 0.5 and gaps[2] > gaps[0] + 0.5


def classsr_class_loss(probs):
    """ClassSR's class loss, patch by patch."""
    patches, classes = len(probs), len(probs[0])
    total = 0.0
    for patch in probs:
        gaps = 0.0
        for a in range(classes):
            for b in range(a + 1, classes):
                gaps += abs(float(patch[a]) - float(patch[b]))
        total += (classes - 1) - gaps
    return total / patches


def classsr_average_loss(probs):
    """ClassSR's average loss, patch by patch, with the divisor of its code."""
    patches, classes = len(probs), len(probs[0])
    total = 0.0
    for k in range(classes):
        total += abs(sum(float(patch[k]) for patch in probs) - patches / classes)
    return total / (patches / classes * 4)


@pytest.mark.parametrize('classes', [2, 3])
def test_classsr_losses_equal_their_loops(classes):
    torch.manual_seed(0)
    probs = torch.rand(7, classes).softmax(dim=1)
    assert loss('ClassSRClassLoss')(probs.log(), COSTS).item() == pytest.approx(classsr_class_loss(probs), rel=1e-5)
    assert loss('ClassSRAverageLoss')(probs.log(), COSTS).item() == pytest.approx(classsr_average_loss(probs), rel=1e-5)


def test_classsr_average_loss_spreads_patches_whatever_they_cost():
    collapsed = torch.tensor([[0.98, 0.01, 0.01]] * 6).log()
    spread = torch.eye(3).repeat(2, 1).clamp_min(1e-9).log()
    average = loss('ClassSRAverageLoss', loss_weight=2.0)
    assert average(spread, COSTS).item() == pytest.approx(0, abs=1e-6)
    # |0.98 - 1/3| + 2 |0.01 - 1/3| = 1.2933, times 3/4, times the weight.
    assert average(collapsed, COSTS).item() == pytest.approx(2 * 0.75 * (0.98 - 1 / 3 + 2 * (1 / 3 - 0.01)))


@pytest.mark.parametrize(
    ('kind', 'options', 'told'),
    [
        ('BudgetLoss', {'target': 0}, r'train\.budget_opt\.target is 0'),
        ('BudgetLoss', {'target': '50%'}, r"train\.budget_opt\.target is '50%'"),
        ('BudgetLoss', {'target': True}, 'True'),
        ('SoftOracleLoss', {'tau': 0}, r'train\.oracle_opt\.tau is 0'),
        ('SoftOracleLoss', {'eta': -1}, r'train\.oracle_opt\.eta is -1'),
    ],
)
def test_values_out_of_range_are_named(kind, options, told):
    with pytest.raises(OptionError, match=told):
        loss(kind, **options)


@pytest.mark.parametrize(
    'kind', ['BudgetLoss', 'ConfidenceLoss', 'SoftOracleLoss', 'ClassSRClassLoss', 'ClassSRAverageLoss']
)
def test_an_unknown_option_is_named(kind):
    options = {'target': 0.5} if kind == 'BudgetLoss' else {}
    with pytest.raises((TypeError, OptionError), match='los_weight'):
        loss(kind, los_weight=1.0, **options)
