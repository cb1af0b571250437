"""The Triton kernels say what plain matrices in fp64 say; run here by Triton's interpreter, compiled here for two kinds of card.

The interpreter must be chosen before Triton is first imported, so the kernels run in a process of their own.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from torch import Tensor  # noqa: E402 - after the check for torch
from torch.nn.functional import normalize  # noqa: E402

from negatron.errors import NegatronError  # noqa: E402
from negatron.training import kernels  # noqa: E402
from negatron.training.kernels import Blocks  # noqa: E402

Call = Callable[..., Any]
TILES = (Blocks(32, 32, 16), Blocks(32, 64, 16, bulk=True))
RULES = ("limits", "guide", "keys", "skipped")
STRICT = "error,ignore::DeprecationWarning,ignore::PendingDeprecationWarning,ignore::FutureWarning"


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Call]:
    """interpreted(function, *args, **kwargs) in a process in which Triton interprets and warnings are errors."""
    if not find_spec("triton"):
        pytest.skip("needs the Python package triton")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:  # over before this process itself imports Triton
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("PYTHONWARNINGS", STRICT)
            pool.submit(torch.set_num_threads, 1).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def plain(rows: Tensor, columns: Tensor, slope: float, rules: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """([R] lse, [R, C] p, [R, C] counts), as matrices in fp64."""
    cosines = rows.double() @ columns.double().T
    counts = torch.ones_like(cosines, dtype=torch.bool)
    counts[rules["skipped"].unbind(1)] = False
    if "limits" in rules:
        counts &= cosines <= rules["limits"].double()[:, None]
    if "guide" in rules:
        counts &= rules["guide"][0].double() @ rules["guide"][1].double().T <= rules["guide"][2].double()[:, None]
    if "keys" in rules:
        counts &= rules["keys"][0][:, None] != rules["keys"][1]
    logits = (slope * cosines).masked_fill(~counts, -math.inf)
    lse = logits.logsumexp(1)
    return lse, (logits - lse.clamp(min=-1e300)[:, None]).exp(), counts


def vectors(rows: int, columns: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Unit vectors; those of a seed."""
    draw = torch.Generator().manual_seed(rows * 1000 + columns)
    return tuple(normalize(torch.randn(count, dimensions, generator=draw)) for count in (rows, columns))


def rules_for(rows: Tensor, columns: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """Each leaves out some pairs in every region: limits about 1 in 6, the guide about 1 in 3, keys 1 in 7, six skipped a row."""
    draw = torch.Generator().manual_seed(7)
    count, across = len(rows), len(columns)
    scores = rows @ columns.T
    pairs = torch.cat([torch.stack([torch.arange(count).repeat(6), torch.randint(0, across, (6 * count,), generator=draw)], 1)])
    pairs = pairs[torch.argsort(pairs[:, 0] * across + pairs[:, 1])]
    guide = normalize(torch.randn(count, 24, generator=draw)), normalize(torch.randn(across, 24, generator=draw))
    every = {
        "limits": scores.quantile(0.83, dim=1),
        "guide": (*guide, (guide[0] @ guide[1].T).quantile(0.66, dim=1)),
        "keys": (torch.randint(0, 7, (count,), generator=draw), torch.randint(0, 7, (across,), generator=draw)),
        "skipped": pairs,
    }
    return {"skipped": pairs[:0]} | {name: every[name] for name in names}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the difference is at most that share of the expected, as vectors."""
    assert expected.norm() > 0, "nothing to compare: all zeros"
    return bool((found.double() - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("tile", TILES, ids=["pointers", "bulk"])
@pytest.mark.parametrize("names", [(), *((name,) for name in RULES), RULES], ids="-".join)
@pytest.mark.parametrize("shape", [(70, 150, 40), (3, 200, 16)], ids=str)
def test_kernels_equal_plain_matrices(interpreted: Call, tile: Blocks, names: tuple[str, ...], shape: tuple[int, int, int]) -> None:
    rows, columns = vectors(*shape)
    rules = rules_for(rows, columns, names)
    lse, p, _ = plain(rows, columns, 20.0, rules)
    everything = plain(rows, columns, 20.0, {"skipped": rules["skipped"][:0]})[0]
    assert not names or not close(everything, lse, 1e-4), "the rules change nothing: the test could not fail"
    found = interpreted(kernels.dense_lse, rows, columns, slope=20.0, blocks=tile, **rules)
    assert close(found, lse)
    factors = torch.rand(len(rows), generator=torch.Generator().manual_seed(1))
    of_rows, of_columns = interpreted(
        kernels.dense_gradients, rows, columns, slope=20.0, lse=found, factors=factors, blocks=tile, scratch_bytes=32 * 1024, **rules
    )
    weights = factors.double()[:, None] * p
    assert close(of_rows, weights @ columns.double())
    assert close(of_columns, weights.T @ rows.double())


def test_a_single_row_and_a_single_column(interpreted: Call) -> None:
    row, column = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    nothing = torch.empty(0, 2, dtype=torch.long)
    assert interpreted(kernels.dense_lse, row, column, slope=10.0, skipped=nothing).tolist() == pytest.approx([6.0])
    of_row, of_column = interpreted(
        kernels.dense_gradients, row, column, slope=10.0, skipped=nothing, lse=torch.tensor([6.0]), factors=torch.tensor([0.5])
    )
    assert of_row[0].tolist() == pytest.approx([0.5, 0.0]) and of_column[0].tolist() == pytest.approx([0.3, 0.4])


def test_exponentials_beyond_fp32_do_not_overflow(interpreted: Call) -> None:
    rows, columns = (3 * part for part in vectors(40, 90, 16))
    nothing = torch.empty(0, 2, dtype=torch.long)
    lse, p, _ = plain(rows, columns, 100.0, {"skipped": nothing})
    assert (100 * rows @ columns.T).exp().isinf().any(), "no exponential overflows: nothing is shown"
    found = interpreted(kernels.dense_lse, rows, columns, slope=100.0, skipped=nothing)
    assert close(found, lse)
    of_rows, _ = interpreted(kernels.dense_gradients, rows, columns, slope=100.0, skipped=nothing, lse=found, factors=torch.ones(40))
    assert close(of_rows, p @ columns.double(), 1e-4)  # logits of 900 have 2^-14 of room behind the point


def test_far_below_zero_is_not_nothing(interpreted: Call) -> None:
    rows, columns = torch.full((2, 16), 100.0), torch.full((3, 16), -100.0)
    nothing = torch.empty(0, 2, dtype=torch.long)
    found = interpreted(kernels.dense_lse, rows, columns, slope=1.0, skipped=nothing)
    assert found.tolist() == pytest.approx([-160_000 + math.log(3)] * 2, rel=1e-6)


@pytest.mark.parametrize("tile", TILES, ids=["pointers", "bulk"])
def test_a_row_where_nothing_counts_has_no_lse_and_no_gradient(interpreted: Call, tile: Blocks) -> None:
    rows, columns = vectors(40, 70, 16)
    barred = torch.stack([torch.full((70,), 33), torch.arange(70)], 1)
    limits = torch.ones(40)
    limits[5] = -2.0
    rules = {"skipped": barred, "limits": limits}
    lse, p, counts = plain(rows, columns, 20.0, rules)
    assert (~counts.any(1)).nonzero()[:, 0].tolist() == [5, 33]
    found = interpreted(kernels.dense_lse, rows, columns, slope=20.0, blocks=tile, **rules)
    assert torch.equal(found.isinf(), lse.isinf()) and close(found[~lse.isinf()], lse[~lse.isinf()])
    of_rows, of_columns = interpreted(
        kernels.dense_gradients, rows, columns, slope=20.0, lse=found, factors=torch.ones(40), blocks=tile, **rules
    )
    assert not of_rows[[5, 33]].any() and of_rows.isfinite().all()
    assert close(of_columns, p.T @ rows.double())


def test_the_second_slope_gives_its_own_lse_and_how_many_count(interpreted: Call) -> None:
    rows, columns = vectors(70, 150, 40)
    rules = rules_for(rows, columns, RULES)
    for second in (3.0, 0.0, -2.0):
        _, found, counted = interpreted(kernels.dense_lse, rows, columns, slope=20.0, second_slope=second, blocks=TILES[0], **rules)
        lse, _, counts = plain(rows, columns, second, rules)
        assert close(found, lse)
        assert torch.equal(counted, counts.sum(1)) and len(set(counted.tolist())) > 5


def test_a_broken_vector_is_seen(interpreted: Call) -> None:
    rows, columns = vectors(40, 70, 16)
    columns[60] = math.nan
    nothing = torch.empty(0, 2, dtype=torch.long)
    found = interpreted(kernels.dense_lse, rows, columns, slope=20.0, skipped=nothing)
    assert found.isnan().all()


def test_pairs_may_come_in_any_order_and_more_than_once(interpreted: Call) -> None:
    rows, columns = vectors(40, 100, 16)
    crowd = torch.stack([torch.full((60,), 7), torch.arange(20, 80)], 1)  # one row, all in neighbouring tiles
    pairs = torch.cat([crowd, torch.tensor([[39, 99], [0, 0], [39, 99], [7, 99], [8, 0]])])
    shuffled = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(3))]
    lse, _, counts = plain(rows, columns, 20.0, {"skipped": pairs})
    assert (~counts).sum() == 64
    assert close(interpreted(kernels.dense_lse, rows, columns, slope=20.0, skipped=shuffled, blocks=TILES[0]), lse)


@pytest.mark.parametrize("kind", ["transposed", "every other", "a cut of a wider matrix", "an odd number of dimensions"])
def test_vectors_may_lie_in_memory_as_they_like(interpreted: Call, kind: str) -> None:
    rows, columns = vectors(40, 70, 33 if kind == "an odd number of dimensions" else 32)
    laid = {
        "transposed": lambda part: part.T.contiguous().T,
        "every other": lambda part: torch.repeat_interleave(part, 2, 0)[::2],
        "a cut of a wider matrix": lambda part: torch.cat([torch.ones_like(part), part], 1)[:, 32:],
        "an odd number of dimensions": lambda part: part,
    }[kind]
    nothing = torch.empty(0, 2, dtype=torch.long)
    lse, p, _ = plain(rows, columns, 20.0, {"skipped": nothing})
    found = interpreted(kernels.dense_lse, laid(rows), laid(columns), slope=20.0, skipped=nothing)
    assert close(found, lse)
    of_rows, of_columns = interpreted(
        kernels.dense_gradients, laid(rows), laid(columns), slope=20.0, skipped=nothing, lse=found, factors=torch.ones(40)
    )
    assert close(of_rows, p @ columns.double()) and close(of_columns, p.T @ rows.double())


def test_gradients_can_be_added_to_what_is_there(interpreted: Call) -> None:
    rows, columns = vectors(40, 70, 16)
    given = {"slope": 20.0, "skipped": torch.empty(0, 2, dtype=torch.long), "factors": torch.ones(40)}
    lse = plain(rows, columns, 20.0, given)[0].float()
    alone = interpreted(kernels.dense_gradients, rows, columns, lse=lse, **given)
    added = interpreted(kernels.dense_gradients, rows, columns, lse=lse, into=(torch.ones(40, 16), torch.ones(70, 16)), **given)
    for one, other in zip(alone, added, strict=True):
        assert one.abs().max() > 0.1 and torch.allclose(one + 1, other, rtol=0, atol=1e-5)


def test_bf16_vectors_are_summed_up_in_fp32(interpreted: Call) -> None:
    rows, columns = (part.bfloat16() for part in vectors(40, 70, 32))
    nothing = torch.empty(0, 2, dtype=torch.long)
    lse, _, _ = plain(rows, columns, 20.0, {"skipped": nothing})
    rounded = 20 * (rows @ columns.T).double()
    assert not close(rounded.logsumexp(1), lse), "bf16 cosines would do as well: the test could not fail"
    assert close(interpreted(kernels.dense_lse, rows, columns, slope=20.0, skipped=nothing), lse)


def test_shares_visit_every_tile_once() -> None:
    for row_blocks in (1, 3, 132, 625):
        for column_blocks in (1, 7, 100, 1875):
            shares = kernels.share_columns(row_blocks, column_blocks, 132)
            assert (shares.count - 1) * shares.blocks < column_blocks <= shares.count * shares.blocks
    assert kernels.share_columns(1, 1875, 132).count >= 125, "one row of tiles must not leave most processors idle"


def test_slabs_keep_to_their_budget_and_hold_whole_tiles() -> None:
    tile = Blocks(128, 256, 64)
    for rows, columns in [(80_000, 480_000), (10, 480_000), (5_000_000, 1_000_000), (1, 1), (100, 300)]:
        for budget in (2**20, 2**30):
            height, width = kernels.slab_shape(rows, columns, 768, 2, budget, tile, 132)
            assert 0 < height <= rows and 0 < width < columns + 256 and width % 256 == 0
            assert 2 * height * width <= budget
    assert kernels.slab_shape(80_000, 480_000, 768, 2, 2**30, tile, 132)[0] == 80_000


def test_wrong_arguments_are_refused(interpreted: Call) -> None:
    rows, columns = vectors(4, 6, 8)
    right = {"slope": 1.0, "skipped": torch.empty(0, 2, dtype=torch.long)}
    for wrong, message in [
        ({"slope": 0.0}, "slope = 0.0"),
        ({"skipped": torch.tensor([1, 2])}, "skipped"),
        ({"limits": torch.ones(6)}, "limits"),
        ({"keys": (torch.arange(4), torch.arange(4))}, "column keys"),
        ({"guide": (rows, columns[:5], torch.ones(4))}, "guide"),
    ]:
        with pytest.raises(ValueError, match=message):
            interpreted(kernels.dense_lse, rows, columns, **(right | wrong))
    with pytest.raises(ValueError, match="rows"):
        interpreted(kernels.dense_lse, rows, columns[:, :7], **right)


def test_kernels_are_available_only_where_they_run(interpreted: Call) -> None:
    assert interpreted(kernels.available, "cpu")
    if kernels.available("cpu"):
        pytest.skip("Triton interprets in this process too")
    with pytest.raises(NegatronError, match="do not run on cpu"):
        kernels.dense_lse(*vectors(4, 6, 8), slope=1.0, skipped=torch.empty(0, 2, dtype=torch.long))


def test_no_kernel_module_needs_triton_to_be_imported() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from negatron.training import kernels, triton_tiles\n"
        "print(kernels.available('cpu'), kernels.available('cuda'), triton_tiles.triton)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "None"]


COMPILE = Path(__file__).parent / "compile_kernels.py"


@pytest.mark.slow
def test_kernels_compile_for_real_cards_and_fit_into_them(tmp_path: Path) -> None:
    if not find_spec("triton"):
        pytest.skip("needs the Python package triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, str(COMPILE)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    for line in run.stdout.splitlines():
        kernel, capability, shared, instruction = line.split()
        assert 16_384 <= int(shared) <= (232_448 if capability == "90" else 101_376), line
        assert instruction == ("wgmma" if capability == "90" else "mma"), f"{kernel} does not use the tensor cores of {capability}"
    assert len(run.stdout.splitlines()) == 4


def test_the_loss_through_the_kernels_is_the_plain_one() -> None:
    if not find_spec("triton"):
        pytest.skip("needs the Python package triton")
    script = Path(__file__).parent / "kernel_route.py"
    ended = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    apart = json.loads(ended.stdout)
    assert set(apart) == {"plain", "two rows", "masked", "everything"}
    assert max(map(max, apart.values())) <= 1e-5, apart
