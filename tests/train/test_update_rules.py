"""Each optimizer's updates against another's implementation, or the paper's algorithm written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from etymon.train.optimizers import SOAP, Adafactor, Adam8bit, GaLore, Lion, Shampoo
from etymon.train.optimizers.adam8bit import code_values, dequantize, quantize

SHAPES = [(24, 10), (10, 24), (7,), (3, 8, 6)]


def gradients(shape, steps, seed=0):
    """Gradients that wander rather than cancel, some directions larger than others."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, shape[-1])
    mean = torch.randn(shape, generator=generator)
    return [(mean + torch.randn(shape, generator=generator)) * scales for _ in range(steps)]


def run(optimizer_of, shapes=SHAPES, steps=50):
    params = [
        nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)) + (0.1 if len(shape) > 1 else 0))
        for shape in shapes
    ]
    optimizer = optimizer_of(params)
    series = [gradients(shape, steps, seed) for seed, shape in enumerate(shapes)]
    for step in range(steps):
        for p, each in zip(params, series, strict=True):
            p.grad = each[step].clone()
        optimizer.step()
    return [p.detach() for p in params], optimizer


def group(params, kind="matrices", parts=None, **options):
    settings = {"lr": 0.01, "base_lr": 0.01, "weight_decay": 0.1}
    return [{"params": params, "kind": kind, "parts": parts or {}, **settings, **options}]


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_is_transformers(relative, momentum):
    from transformers import Adafactor as Theirs

    own = {"relative_step": relative, "scale_parameter": True, "clip": 1.0, "decay": 0.8}
    options = {**own, "momentum": momentum, "eps": (1e-30, 1e-3)}
    ours, _ = run(lambda ps: Adafactor(group(ps), options))
    lr = None if relative else 0.01
    theirs, _ = run(
        lambda ps: Theirs(
            ps, lr=lr, relative_step=relative, scale_parameter=True, beta1=momentum, weight_decay=0.1, warmup_init=False
        )
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_adafactors_relative_step_falls_as_one_over_the_root():
    """Where it has come below lr: the paper's rho_t = min(1e-2, 1 / sqrt(t))."""
    options = {"relative_step": True, "scale_parameter": False, "clip": 1.0, "decay": 0.8, "momentum": None}
    p = nn.Parameter(torch.zeros(4))
    optimizer = Adafactor(group([p], lr=0.5, base_lr=1.0, weight_decay=0.0), {**options, "eps": (1e-30, 1e-3)})
    for step in range(1, 10):
        before = p.detach().clone()
        p.grad = torch.ones(4)
        optimizer.step()
        # the schedule's factor is 0.5; a constant gradient's update is 1
        assert (before - p).tolist() == pytest.approx([0.5 * min(1.0, step**-0.5)] * 4, rel=1e-5)


def test_lion_is_the_papers_algorithm():
    """Algorithm 2 of arXiv:2302.06675."""

    def paper(shape, seed, steps=50, lr=0.01, decay=0.1, beta1=0.9, beta2=0.99):
        p = torch.randn(shape, generator=torch.Generator().manual_seed(9)) + (0.1 if len(shape) > 1 else 0)
        m = torch.zeros(shape)
        for g in gradients(shape, steps, seed):
            c = beta1 * m + (1 - beta1) * g
            p = p - lr * (c.sign() + decay * p)
            m = beta2 * m + (1 - beta2) * g
        return p

    ours, _ = run(lambda ps: Lion(group(ps), {"betas": (0.9, 0.99)}))
    for seed, (found, shape) in enumerate(zip(ours, SHAPES, strict=True)):
        torch.testing.assert_close(found, paper(shape, seed), rtol=1e-5, atol=1e-5)


def soap_by_the_paper(p, series, *, lr, decay, beta1, beta2, eps, every, left, right):
    """Algorithms 3 and 4 of arXiv:2409.11321 for one matrix, with Adam's bias correction, the first step for the bases
    only, and the momentum kept unturned, in double precision."""
    p = p.double()
    rows, columns = p.shape
    big_l, big_r = torch.zeros(rows, rows).double(), torch.zeros(columns, columns).double()
    q_l, q_r = torch.eye(rows).double(), torch.eye(columns).double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, gradient in enumerate(series):
        g = gradient.double()
        if t:
            turned = q_l.T @ g @ q_r
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * turned**2
            n = (q_l.T @ m @ q_r / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
            p = p - lr * decay * p - lr * q_l @ n @ q_r.T
        big_l = beta2 * big_l + (1 - beta2) * g @ g.T
        big_r = beta2 * big_r + (1 - beta2) * g.T @ g
        if t == 0:
            q_l = torch.linalg.eigh(big_l)[1].flip(1) if left else q_l
            q_r = torch.linalg.eigh(big_r)[1].flip(1) if right else q_r
        elif t % every == 0:
            q_l = torch.linalg.qr(big_l @ q_l)[0] if left else q_l
            q_r = torch.linalg.qr(big_r @ q_r)[0] if right else q_r
    return p


@pytest.mark.parametrize("max_dim", [64, 12, 4])
def test_soap_is_the_papers_algorithm(max_dim):
    """On both sides, on the smaller one, on none, which is Adam."""
    # the covariances that are turned have full rank: where eigenvalues are zero, any basis of their space is right
    shapes = [(10, 10), (9, 9)] if max_dim == 64 else [(24, 10), (10, 24)]
    options = {"betas": (0.95, 0.9), "eps": 1e-8, "every": 4, "max_dim": max_dim}
    start = [torch.randn(s, generator=torch.Generator().manual_seed(9)) + 0.1 for s in shapes]
    ours, _ = run(lambda ps: SOAP(group(ps), options), shapes, steps=30)
    for seed, (found, shape) in enumerate(zip(ours, shapes, strict=True)):
        sides = {"left": shape[0] <= max_dim, "right": shape[1] <= max_dim}
        settings = {"lr": 0.01, "decay": 0.1, "beta1": 0.95, "beta2": 0.9, "eps": 1e-8, "every": 4}
        expected = soap_by_the_paper(start[seed], gradients(shape, 30, seed), **settings, **sides)
        moved = (expected - start[seed]).norm()
        assert (found - expected).norm() < 0.02 * moved


def power_of(c, power, eps):
    """C^-power by singular values, of C as a part of its largest eigenvalue and eps of the identity."""
    u, s, _ = torch.linalg.svd(c / torch.linalg.matrix_norm(c, 2) + eps * torch.eye(len(c)))
    return u @ torch.diag(s**-power) @ u.T


def shampoo_by_the_papers(p, series, *, lr, decay, beta1, beta2, eps, every, left, right, power):
    """Algorithm 1 of arXiv:1802.09568 with running means, and arXiv:2002.09018's grafting, for one matrix."""
    m = v = torch.zeros_like(p).double()
    big_l, big_r = (torch.zeros(n, n).double() for n in p.shape)
    p, root_l, root_r = p.double(), torch.eye(p.shape[0]).double(), torch.eye(p.shape[1]).double()
    power = power if left and right else 0.5
    for t, gradient in enumerate(series):
        g = gradient.double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        big_l = beta2 * big_l + (1 - beta2) * g @ g.T
        big_r = beta2 * big_r + (1 - beta2) * g.T @ g
        if t % every == 0:
            root_l = power_of(big_l, power, eps) if left else root_l
            root_r = power_of(big_r, power, eps) if right else root_r
        adam = m / (1 - beta1 ** (t + 1)) / ((v / (1 - beta2 ** (t + 1))).sqrt() + eps)
        u = root_l @ m @ root_r if left or right else adam
        p = p - lr * decay * p - lr * u * adam.norm() / u.norm()
    return p


@pytest.mark.parametrize(("max_dim", "power"), [(64, 0.5), (64, 0.25), (12, 0.5), (4, 0.5)])
def test_shampoo_is_the_papers_algorithm(max_dim, power):
    """On both sides, on the smaller one, on none, which is Adam."""
    shapes = [(10, 12), (24, 10), (10, 24)]
    options = {"betas": (0.9, 0.95), "eps": 1e-4, "every": 4, "max_dim": max_dim, "power": power}
    start = [torch.randn(s, generator=torch.Generator().manual_seed(9)) + 0.1 for s in shapes]
    ours, _ = run(lambda ps: Shampoo(group(ps), options), shapes, steps=30)
    for seed, (found, shape) in enumerate(zip(ours, shapes, strict=True)):
        sides = {"left": shape[0] <= max_dim, "right": shape[1] <= max_dim}
        settings = {"lr": 0.01, "decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-4, "every": 4, "power": power}
        expected = shampoo_by_the_papers(start[seed], gradients(shape, 30, seed), **settings, **sides)
        assert (found - expected).norm() < 1e-3 * (expected - start[seed]).norm()


def test_shampoo_without_memory_makes_gradients_orthogonal():
    """(G G^T)^-1/4 G (G^T G)^-1/4 is U V^T of G's singular vectors, which is Muon's direction."""
    gradient = torch.randn(9, 9, generator=torch.Generator().manual_seed(3))
    p = nn.Parameter(torch.zeros(9, 9))
    options = {"betas": (0.0, 0.0), "eps": 1e-12, "every": 1, "max_dim": 64, "power": 0.25}
    p.grad = gradient.clone()
    Shampoo(group([p], weight_decay=0.0), options).step()
    u, _, v = torch.linalg.svd(gradient)
    direction = -p.detach() / p.detach().norm() * 3
    torch.testing.assert_close(direction, u @ v, rtol=0, atol=2e-2)


def test_shampoo_of_a_matrix_that_is_not_used():
    """An expert without tokens: its gradient is zero, and what the others get is no less finite."""
    p = nn.Parameter(torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1)))
    optimizer = Shampoo(
        group([p], parts={p: (6,)}, weight_decay=0.0),
        {"betas": (0.9, 0.95), "eps": 1e-6, "every": 2, "max_dim": 64, "power": 0.5},
    )
    start = p.detach().clone()
    for step, gradient in enumerate(gradients((2, 6, 5), 6)):
        p.grad = gradient
        p.grad[1] *= step >= 3
        optimizer.step()
        assert p.isfinite().all() and torch.equal(p[1], start[1]) == (step < 3)
        assert not torch.equal(p[0], start[0])


@pytest.mark.parametrize("kind", [SOAP, Shampoo])
def test_the_parts_of_a_fused_matrix_have_covariances_of_their_own(kind):
    options = {"betas": (0.9, 0.9), "eps": 1e-8, "every": 2, "max_dim": 64}
    options |= {"power": 0.5, "eps": 1e-4} if kind is Shampoo else {}
    whole = nn.Parameter(torch.randn(12, 8, generator=torch.Generator().manual_seed(1)))
    apart = [nn.Parameter(part.clone()) for part in whole.detach().split((8, 4))]
    fused, split = kind(group([whole], parts={whole: (8, 4)}), options), kind(group(apart), options)
    for gradient in gradients((12, 8), 12):
        whole.grad = gradient
        for p, each in zip(apart, gradient.split((8, 4)), strict=True):
            p.grad = each
        fused.step()
        split.step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in apart]), rtol=1e-3, atol=1e-4)


def galore_by_the_paper(p, series, *, lr, rank, every, scale, betas, eps=1e-8):
    """Algorithm 2 of arXiv:2403.03507 for one matrix [m, n], m <= n."""
    m, v = torch.zeros(rank, p.shape[1]), torch.zeros(rank, p.shape[1])
    for t, g in enumerate(series):
        if t % every == 0:
            projector = torch.linalg.svd(g)[0][:, :rank]
        r = projector.T @ g
        m = betas[0] * m + (1 - betas[0]) * r
        v = betas[1] * v + (1 - betas[1]) * r**2
        n = m / (1 - betas[0] ** (t + 1)) / ((v / (1 - betas[1] ** (t + 1))).sqrt() + eps)
        p = p - lr * scale * projector @ n
    return p


@pytest.mark.parametrize("every", [7, 30])
def test_galore_is_the_papers_algorithm_on_either_side(every):
    settings = {"rank": 4, "every": every, "scale": 0.5, "betas": (0.9, 0.99)}
    series = gradients((10, 24), 30)
    wide = nn.Parameter(torch.randn(10, 24, generator=torch.Generator().manual_seed(1)))
    tall = nn.Parameter(wide.detach().T.clone())
    expected = galore_by_the_paper(wide.detach().clone(), series, lr=0.01, **settings)
    optimizer = GaLore(
        group([wide, tall], parts={wide: (10,), tall: (24,)}, weight_decay=0.0), {**settings, "eps": 1e-8}
    )
    for gradient in series:
        wide.grad, tall.grad = gradient, gradient.T.contiguous()
        optimizer.step()
    torch.testing.assert_close(wide.detach(), expected, rtol=1e-3, atol=1e-4)
    if every == 30:  # a singular vector's sign is either; moments that were kept for the other one differ
        torch.testing.assert_close(tall.detach(), expected.T, rtol=1e-3, atol=1e-4)
    assert optimizer.state[wide]["exp_avg.0"].shape == (4, 24)
    assert optimizer.state[tall]["exp_avg.0"].shape == (24, 4)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_bits_of_the_papers_data_type(signed):
    """Dynamic tree quantisation, read bit by bit: zeros until the first one are the power, the rest is the fraction."""
    values = {0.0, 1.0}
    width = 7 if signed else 8
    for bits in range(1, 2**width):
        zeros = width - bits.bit_length()
        if zeros > 6:
            continue
        fraction_bits = bits.bit_length() - 1
        fraction = bits - 2**fraction_bits
        value = (0.1 + 0.9 * (fraction + 0.5) / 2**fraction_bits) * 10.0**-zeros
        values |= {value, -value} if signed else {value}
    assert len(values) == 256
    torch.testing.assert_close(code_values(signed), torch.tensor(sorted(values), dtype=torch.float32))


@pytest.mark.parametrize("signed", [True, False])
def test_quantising_takes_the_nearest_code_of_each_block(signed):
    x = torch.randn(60, 400, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 1, 60)[:, None]
    x = x if signed else x.square()
    x[7] = 0
    x[8] *= torch.logspace(-9, 0, 400)
    codes, scale = quantize(x, signed)
    found = dequantize(codes, scale, signed)
    nearest = (x[..., None] - scale[..., None] * code_values(signed)).abs().amin(-1)
    allowed = 0 if signed else 3.3e-7 * scale.expand_as(x)  # a second moment does not become zero
    assert ((found - x).abs() <= nearest * (1 + 1e-5) + allowed + 1e-30).all()
    assert (found[7] == 0).all()
    assert signed or (found[x > 0] > 0).all()
    assert codes.dtype == torch.uint8


def test_8_bit_adam_follows_adam():
    shapes = [(96, 70), (33, 31)]
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "block": 256, "min_size": 1000}
    ours, optimizer = run(lambda ps: Adam8bit(group(ps), options), shapes)
    adam, _ = run(lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1), shapes)
    start, _ = run(lambda ps: torch.optim.SGD(ps, lr=0.0), shapes)
    for a, b, zero in zip(ours, adam, start, strict=True):
        assert (a - b).norm() < 0.06 * (b - zero).norm()
    (p, _), held = optimizer.param_groups[0]["params"], optimizer.state
    assert held[p]["exp_avg"].dtype == torch.uint8
    assert held[p]["exp_avg"].shape == (math.ceil(96 * 70 / 256), 256)
    exact, _ = run(lambda ps: Adam8bit(group(ps, kind="embeddings"), options), shapes)
    for a, b in zip(exact, adam, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
