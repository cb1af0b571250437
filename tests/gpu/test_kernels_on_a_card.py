"""The Triton kernels on a real card say what plain matrices in fp64 say. Needs a CUDA device of compute capability 8.0 or more.

Besides what tests/unit/test_kernels.py shows in the interpreter: real tensor cores, bf16 tiles, the copy engine, sizes of many tiles, and
the vendor's products with fp32 sums. Needs no fixture: runs with --noconftest where only torch, Triton and pytest are installed.
"""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.training import kernels  # noqa: E402 - after the check for torch

ON_A_CARD = torch.cuda.is_available() and kernels.available("cuda")
pytestmark = pytest.mark.skipif(not ON_A_CARD, reason="needs a CUDA device of compute capability 8.0 or more, and Triton")
RULES = ("limits", "guide", "keys", "skipped")
SLOPE = 20.0


def batch(rows, columns, dimensions, dtype):
    """Unit vectors and all four rules on the card; limits a little off every product, so that rounding decides nothing."""
    draw = torch.Generator("cuda").manual_seed(rows + columns)

    def unit(count, width):
        return torch.nn.functional.normalize(torch.randn(count, width, device="cuda", generator=draw), dim=1).to(dtype)

    left, right, guide_left, guide_right = unit(rows, dimensions), unit(columns, dimensions), unit(rows, 96), unit(columns, 96)
    pairs = torch.stack(
        [torch.arange(rows, device="cuda").repeat(6), torch.randint(columns, (6 * rows,), device="cuda", generator=draw)], 1
    )
    keys = [torch.randint(11, (count,), device="cuda", generator=draw) for count in (rows, columns)]
    rules = {
        "limits": between_products(left, right, 0.9),
        "guide": (guide_left, guide_right, between_products(guide_left, guide_right, 0.7)),
        "keys": tuple(keys),
        "skipped": pairs,
    }
    return left, right, rules


def between_products(rows, columns, share):
    """[R] fp32: for each row the middle between two neighbouring products, near that quantile."""
    ordered = (rows.double() @ columns.double().T).sort(1).values
    at = int(share * (ordered.shape[1] - 1))
    near = ordered[:, at : at + 40]
    widest = (near[:, 1:] - near[:, :-1]).argmax(1, keepdim=True) + at
    return ((ordered.gather(1, widest) + ordered.gather(1, widest + 1)) / 2)[:, 0].float()


def plain(rows, columns, rules):
    cosines = rows.double() @ columns.double().T
    counts = torch.ones_like(cosines, dtype=torch.bool)
    counts[rules["skipped"].unbind(1)] = False
    if "limits" in rules:
        counts &= cosines <= rules["limits"].double()[:, None]
    if "guide" in rules:
        counts &= rules["guide"][0].double() @ rules["guide"][1].double().T <= rules["guide"][2].double()[:, None]
    if "keys" in rules:
        counts &= rules["keys"][0][:, None] != rules["keys"][1]
    logits = (SLOPE * cosines).masked_fill(~counts, -math.inf)
    lse = logits.logsumexp(1)
    return lse, (logits - lse[:, None]).exp(), counts


def off(found, expected):
    """The difference as a share of the expected, as vectors."""
    assert expected.norm() > 0, "nothing to compare: all zeros"
    return ((found.double() - expected).norm() / expected.norm()).item()


def some(rules, names):
    return {"skipped": rules["skipped"][:0]} | {name: rules[name] for name in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("names", [(), *((name,) for name in RULES), RULES], ids="-".join)
@pytest.mark.parametrize("shape", [(1000, 5000, 384), (77, 20_000, 100), (2000, 300, 33)], ids=str)
def test_kernels_equal_plain_matrices(shape, names, dtype):
    rows, columns, rules = batch(*shape, dtype)
    chosen = some(rules, names)
    lse, p, _ = plain(rows, columns, chosen)
    assert not names or off(plain(rows, columns, some(rules, ()))[0], lse) > 1e-4, "the rules change nothing: the test could not fail"
    found = kernels.dense_lse(rows, columns, slope=SLOPE, **chosen)
    assert off(found, lse) <= 1e-5
    factors = torch.rand(len(rows), device="cuda")
    gradients = kernels.dense_gradients(rows, columns, slope=SLOPE, lse=found, factors=factors, scratch_bytes=2**21, **chosen)
    weights = factors.double()[:, None] * p
    limit = 1e-5 if dtype == torch.float32 else 4e-3  # weights of bf16 vectors are rounded to bf16: 2^-9 each
    assert off(gradients[0], weights @ columns.double()) <= limit
    assert off(gradients[1], weights.T @ rows.double()) <= limit


@pytest.mark.parametrize("precision, limit", [("ieee", 1e-5), ("tf32x3", 2e-5), ("tf32", 2e-3)])
def test_a_chosen_precision_is_kept(precision, limit):
    rows, columns, rules = batch(500, 3000, 384, torch.float32)
    lse, _, _ = plain(rows, columns, some(rules, ("skipped",)))
    assert off(kernels.dense_lse(rows, columns, slope=SLOPE, precision=precision, **some(rules, ("skipped",))), lse) <= limit


def test_the_second_slope_gives_its_own_lse_and_how_many_count():
    rows, columns, rules = batch(500, 3000, 384, torch.bfloat16)
    _, second, counted = kernels.dense_lse(rows, columns, slope=SLOPE, second_slope=0.0, **rules)
    counts = plain(rows, columns, rules)[2].sum(1)
    assert torch.equal(counted, counts) and len(counts.unique()) > 5
    assert off(second, counts.double().log()) <= 1e-5


def test_more_pairs_than_32_bits_can_number():
    rows, columns = (torch.zeros(count, 16, dtype=torch.bfloat16, device="cuda") for count in (60_000, 50_000))
    rows[:, 0], columns[-1, 0] = 1.0, 1.0
    pairs = torch.tensor([[59_999, 49_999], [59_998, 0]], device="cuda")
    found = kernels.dense_lse(rows, columns, slope=SLOPE, skipped=pairs)
    usual = math.log(49_999 + math.exp(SLOPE))
    assert found[0].item() == pytest.approx(usual, rel=1e-6)
    assert found[-1].item() == pytest.approx(math.log(49_999), rel=1e-6)
    assert found[-2].item() == pytest.approx(math.log(49_998 + math.exp(SLOPE)), rel=1e-6)
    of_rows, _ = kernels.dense_gradients(rows, columns, slope=SLOPE, skipped=pairs, lse=found, factors=torch.ones(60_000, device="cuda"))
    assert of_rows[0, 0].item() == pytest.approx(math.exp(SLOPE - usual), rel=4e-3) and of_rows[-1, 0].item() == 0


def test_memory_beyond_inputs_and_gradients_is_the_scratch_buffer():
    rows, columns, rules = batch(8192, 40_000, 256, torch.bfloat16)
    del rules["limits"], rules["guide"]
    scratch = 64 * 2**20
    lse = kernels.dense_lse(rows, columns, slope=SLOPE, **rules)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = kernels.dense_gradients(rows, columns, slope=SLOPE, lse=lse, factors=torch.ones_like(lse), scratch_bytes=scratch, **rules)
    extra = torch.cuda.max_memory_allocated() - before - sum(part.numel() * 4 for part in found)
    assert extra <= scratch + 96 * 2**20, f"{extra / 2**20:.0f} MiB; the logits alone would be {8192 * 40_000 * 4 / 2**20:.0f}"


def test_the_loss_uses_the_kernels_and_equals_its_plain_form():
    from negatron.training.formula import Options
    from negatron.training.losses import InfoNCE, Targets

    rows, columns, _ = batch(600, 3000, 128, torch.float32)
    nothing = torch.empty(0, 2, dtype=torch.long)
    targets = Targets(torch.arange(600), nothing, nothing).to(torch.device("cuda"))
    options = Options(temperature=1 / SLOPE)
    parts = []
    for vectors in ((rows, columns), (rows.double(), columns.double())):
        queries, documents = (part.clone().requires_grad_() for part in vectors)
        if queries.dtype == torch.float32:
            loss = InfoNCE(temperature=options.temperature)(queries, documents, targets)
        else:
            loss = torch.nn.functional.cross_entropy(queries @ documents.T * SLOPE, targets.positive, reduction="sum")
        loss.backward()
        parts.append((loss.detach(), queries.grad, documents.grad))
    for found, expected in zip(*parts, strict=True):
        assert off(found, expected) <= 1e-5
