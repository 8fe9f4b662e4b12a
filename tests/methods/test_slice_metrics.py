import numpy as np
import pytest
import torch

from fewfold.calibration.statistics import Moments, Statistics
from fewfold.errors import CalibrationError
from fewfold.methods.shared_factors.sizes import energy_kept
from fewfold.methods.slices.layout import Cut, cut_slices
from fewfold.methods.slices.metrics import DAMPING, Weighing, slices_of, weigh
from fewfold.surgery.layouts import Part
from fewfold.surgery.targets import Target

NOTHING = Statistics()


def linear(name, rows, columns, bias=False):
    return Target(name, name, "linear", rows, columns, bias=bias)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def sums(width, seed, count=50):
    """Rows of different spread that are correlated and not centred, as float64, and their moments."""
    rng = np.random.default_rng(seed)
    turn = rng.standard_normal((width, width)) * np.linspace(0.3, 2, width)
    rows = (rng.standard_normal((count, width)) + 0.7) @ turn
    return rows, Moments.of(count, torch.from_numpy(rows.sum(0)), torch.from_numpy(rows.T @ rows))


def statistics(targets, gradients=True):
    """Hand-made statistics, and by module the rows that they come from: inputs and gradients."""
    found, rows = Statistics(), {}
    for number, target in enumerate({target.module: target for target in targets}.values()):
        inputs, found.inputs[f"lead.{number}"] = sums(target.columns, 10 + number)
        found.leader[target.module] = f"lead.{number}"
        height = target.rows if target.part is None else 3 * target.rows
        outputs, found.gradients[target.module] = sums(height, 20 + number, count=40)
        rows[target.module] = inputs, outputs
    if not gradients:
        found.gradients.clear()
    return found, rows


def second(rows):
    return sum(np.outer(row, row) for row in rows) / len(rows)


def spread(rows):
    return second(rows - rows.mean(0))


def output_energy(block, inputs, outputs=None):
    """``tr(B W A Wᵀ)``, with the identity where there is no B."""
    block = block.double().numpy()
    metric = np.eye(len(block)) if outputs is None else outputs
    return float(np.trace(metric @ block @ inputs @ block.T))


def squared(part):
    return float((part.double().numpy() ** 2).sum())


def damped_mean(metrics, width):
    """Mean of metrics of unit mean diagonal (the identity where one is unknown), damped."""
    whole = sum(np.eye(width) if m is None else m / np.mean(np.diag(m)) for m in metrics) / len(metrics)
    return whole + DAMPING * np.mean(np.diag(whole)) * np.eye(width)


# --- energy_kept


def hosvd_energies(slices, sizes):
    """Energy of the projection on the leading singular vectors of every unfolding."""
    whole = np.stack([part.double().numpy() for part in slices])
    bases = [np.linalg.svd(np.moveaxis(whole, mode, 0).reshape(whole.shape[mode], -1))[0] for mode in range(3)]
    kept = []
    for bank, left, right in sizes:
        u, v = bases[1][:, :left], bases[2][:, :right]
        core = np.einsum("nij,ia,jb->nab", whole, u, v)
        if bank is not None:
            core = np.einsum("nab,nk->kab", core, bases[0][:, :bank])
        kept.append(float((core**2).sum()))
    return float((whole**2).sum()), kept


def decaying(count, rows, columns):
    parts = random(count, rows, columns, seed=4) * torch.linspace(1.5, 0.2, rows)[:, None]
    return list(parts * torch.linspace(1.5, 0.1, columns) * torch.linspace(2, 0.5, count)[:, None, None])


@pytest.mark.parametrize("shape", [(5, 7, 6), (9, 4, 4), (3, 6, 11), (1, 5, 5)])
@pytest.mark.parametrize("banks", ["none", "some", "both"])
def test_energy_at_every_size_is_that_of_the_truncated_hosvd(shape, banks):
    count, rows, columns = shape
    chosen = {"none": [None], "some": list(range(1, count + 1)), "both": [None, *range(1, count + 1)]}[banks]
    sizes = [(bank, a, b) for bank in chosen for a in range(1, rows + 1) for b in range(1, columns + 1)]
    np.random.default_rng(0).shuffle(sizes)
    slices = decaying(*shape)
    total, kept = energy_kept(Weighing(slices, None, None, [1.0] * count), sizes)
    wanted_total, wanted = hosvd_energies(slices, sizes)
    assert total == pytest.approx(wanted_total, rel=1e-6)
    np.testing.assert_allclose(kept, wanted, rtol=1e-4, atol=1e-5 * total)
    table = dict(zip(sizes, kept, strict=True))
    for (bank, a, b), value in table.items():
        larger = [(bank and bank + 1, a, b), (bank, a + 1, b), (bank, a, b + 1)]
        assert all(table.get(size, value) >= value - 1e-6 * total for size in larger)
    for bank in {None, count} & set(chosen):
        assert table[bank, rows, columns] == pytest.approx(wanted_total, rel=1e-5)


def test_energy_is_that_of_the_slices_as_the_fit_sees_them():
    slices = decaying(4, 6, 5)
    left, right = np.linalg.cholesky(spread(sums(6, 1)[0])), np.linalg.cholesky(spread(sums(5, 2)[0]))
    scales = [0.5, 1.0, 2.0, 3.0]
    weighed = Weighing(slices, torch.from_numpy(left), torch.from_numpy(right), scales)
    seen = [
        torch.from_numpy(s * left.T @ part.double().numpy() @ right) for s, part in zip(scales, slices, strict=True)
    ]
    sizes = [(None, 2, 3), (2, 3, 2), (4, 6, 5), (1, 1, 1)]
    total, kept = energy_kept(weighed, sizes)
    wanted_total, wanted = hosvd_energies(seen, sizes)
    assert total == pytest.approx(wanted_total, rel=1e-5)
    np.testing.assert_allclose(kept, wanted, rtol=1e-4)


# --- weigh without statistics


@pytest.mark.parametrize("weighting", ["none", "auto"])
def test_without_statistics_slices_weigh_alike_or_as_they_are(weighting):
    targets = [linear("layer.0.o", 8, 8), linear("layer.0.fc1", 16, 8), linear("layer.0.fc2", 8, 16)]
    weights = {t.name: random(t.rows, t.columns, seed=n) * (n + 1) for n, t in enumerate(targets)}
    cuts = {"layer.0.o": Cut(rows="in"), "layer.0.fc1": Cut(2, "out", "out"), "layer.0.fc2": Cut(2, "in", "in")}
    o, fc1, fc2 = (weights[target.name].numpy() for target in targets)
    slices = [o.T, fc1[:8], fc1[8:], fc2[:, :8].T, fc2[:, 8:].T]
    for normalise in (True, False):
        weighed = weigh(targets, cuts, weights, NOTHING, weighting, normalise)
        assert weighed.left is None
        assert weighed.right is None
        assert len(weighed) == 5
        for number, part in enumerate(slices):
            scale = 1 / np.linalg.norm(part.astype(np.float64)) if normalise else 1.0
            assert weighed.scales[number] == pytest.approx(scale, rel=1e-6)
            np.testing.assert_allclose(weighed.seen(number).numpy(), part * scale, rtol=1e-5)
    for found, wanted in zip(slices_of(targets, cuts, weights), slices, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)


def test_weighting_none_does_not_look_at_statistics():
    target = linear("layer.0.o", 8, 6)
    known, _ = statistics([target])
    weights, cuts = {target.name: random(8, 6)}, {target.name: Cut(rows="in")}
    weighed = weigh([target], cuts, weights, known, "none", True)
    assert weighed.left is None
    assert weighed.right is None
    assert squared(weighed.seen(0)) == pytest.approx(1.0, rel=1e-6)


def test_a_slice_of_zeros_does_not_divide_by_zero():
    target = linear("layer.0.fc1", 16, 8)
    weight = random(16, 8)
    weight[8:] = 0
    known, _ = statistics([target])
    for found in (NOTHING, known):
        weighed = weigh([target], {target.name: Cut(2, "out", "out")}, {target.name: weight}, found, "auto", True)
        assert not weighed.seen(1).any()
        assert bool(weighed.seen(0).isfinite().all())
        assert squared(weighed.seen(0)) > 0


# --- weigh with statistics

CUTS = [
    Cut(rows="in"),
    Cut(rows="out"),
    Cut(2, "out", "out"),
    Cut(2, "out", "in"),
    Cut(3, "in", "in"),
    Cut(3, "in", "out"),
]


def tile_metrics(cut, inputs, outputs):
    """Metrics of every tile, ``(of its inputs, of its outputs)``, by plain slicing."""
    wide, tall = len(inputs) // cut.tiles, None if outputs is None else len(outputs) // cut.tiles
    for n in range(cut.tiles):
        own_in = inputs[n * wide : (n + 1) * wide, n * wide : (n + 1) * wide] if cut.tiled == "in" else inputs
        own_out = outputs
        if outputs is not None and cut.tiled == "out":
            own_out = outputs[n * tall : (n + 1) * tall, n * tall : (n + 1) * tall]
        yield own_in, own_out


def tile_blocks(weight, cut):
    tall = weight.shape[0] // cut.tiles if cut.tiled == "out" else weight.shape[0]
    wide = weight.shape[1] // cut.tiles if cut.tiled == "in" else weight.shape[1]
    for n in range(cut.tiles):
        top, start = (n * tall if cut.tiled == "out" else 0), (n * wide if cut.tiled == "in" else 0)
        yield weight[top : top + tall, start : start + wide]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighting", ["auto", "inputs_and_outputs"])
def test_a_seen_slice_has_the_energy_that_the_output_sees_of_it(cut, bias, weighting):
    target = linear("layer.0.x", 8, 12, bias=bias)
    known, rows = statistics([target])
    inputs, gradients = rows[target.module]
    weight = random(8, 12, seed=3)
    weighed = weigh([target], {target.name: cut}, {target.name: weight}, known, weighting, True)
    metric = spread(inputs) if bias else second(inputs)
    assert abs(np.trace(second(inputs)) / np.trace(spread(inputs)) - 1) > 0.05
    assert len(weighed) == cut.tiles
    tiles = zip(tile_blocks(weight, cut), tile_metrics(cut, metric, second(gradients)), strict=True)
    for number, (block, (own_in, own_out)) in enumerate(tiles):
        wanted = output_energy(block, own_in, own_out)
        assert squared(weighed.seen(number)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("weighting", ["inputs", "auto"])
def test_without_gradients_a_slice_has_its_share_of_its_own_output(cut, weighting):
    target = linear("layer.0.x", 8, 12)
    known, rows = statistics([target], gradients=weighting == "inputs")
    weight = random(8, 12, seed=3)
    weighed = weigh([target], {target.name: cut}, {target.name: weight}, known, weighting, True)
    metrics = tile_metrics(cut, second(rows[target.module][0]), None)
    energies = [output_energy(block, own) for block, (own, _) in zip(tile_blocks(weight, cut), metrics, strict=True)]
    for number, energy in enumerate(energies):
        assert squared(weighed.seen(number)) == pytest.approx(energy / sum(energies), rel=1e-4)
    assert (weighed.left is None) == (cut.rows == "out")
    assert (weighed.right is None) == (cut.rows == "in")


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("normalise", [True, False])
def test_metrics_are_those_of_the_sides_and_can_be_undone(cut, normalise):
    target = linear("layer.0.x", 8, 12)
    known, rows = statistics([target])
    weight = random(8, 12, seed=3)
    weighed = weigh([target], {target.name: cut}, {target.name: weight}, known, "auto", normalise)
    tiles = list(tile_metrics(cut, second(rows[target.module][0]), second(rows[target.module][1])))
    inputs = damped_mean([own for own, _ in tiles], len(tiles[0][0]))
    outputs = damped_mean([own for _, own in tiles], len(tiles[0][1]))
    left, right = (inputs, outputs) if cut.rows == "in" else (outputs, inputs)
    np.testing.assert_allclose((weighed.left @ weighed.left.t()).numpy(), left, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose((weighed.right @ weighed.right.t()).numpy(), right, rtol=1e-6, atol=1e-6)
    for number, part in enumerate(cut_slices(weight, cut)):
        seen = weighed.seen(number).double().numpy()
        undone = np.linalg.inv(weighed.left.numpy().T) @ seen @ np.linalg.inv(weighed.right.numpy())
        np.testing.assert_allclose(undone / weighed.scales[number], part.numpy(), atol=1e-4)
        in_metric = float(np.trace(left @ part.double().numpy() @ right @ part.double().numpy().T))
        assert squared(weighed.seen(number)) == pytest.approx(in_metric * weighed.scales[number] ** 2, rel=1e-4)
        if not normalise:
            assert weighed.scales[number] == 1.0


def test_an_error_in_a_slice_counts_as_its_metric_says():
    """The norm of a seen difference is the damped output error of that difference."""
    target, cut = linear("layer.0.x", 8, 12), Cut(rows="in")
    known, rows = statistics([target])
    weight, other = random(8, 12, seed=3), random(8, 12, seed=8)
    weighed = weigh([target], {target.name: cut}, {target.name: weight}, known, "auto", True)
    left, right = weighed.left.numpy(), weighed.right.numpy()
    inputs, outputs = (damped_mean([second(part)], part.shape[1]) for part in rows[target.module])
    difference = weighed.scales[0] * left.T @ (weight - other).double().numpy().T @ right
    ratio = output_energy(weight, *map(second, rows[target.module])) / output_energy(weight, inputs, outputs)
    assert (difference**2).sum() == pytest.approx(ratio * output_energy(weight - other, inputs, outputs), rel=1e-4)


def test_sides_are_shared_by_the_mean_of_unit_metrics():
    targets = [linear("layer.0.q", 6, 6), linear("layer.1.q", 6, 6), linear("layer.0.o", 6, 6)]
    known, rows = statistics(targets)
    del known.leader["layer.1.q"]  # saw no input: counts as the identity
    weights = {target.name: random(6, 6, seed=n) for n, target in enumerate(targets)}
    cuts = {"layer.0.q": Cut(rows="in"), "layer.1.q": Cut(rows="in"), "layer.0.o": Cut(rows="out")}
    weighed = weigh(targets, cuts, weights, known, "auto", True)
    q, o = rows["layer.0.q"], rows["layer.0.o"]
    left = damped_mean([second(q[0]), None, second(o[1])], 6)
    right = damped_mean([second(q[1]), None, second(o[0])], 6)
    np.testing.assert_allclose((weighed.left @ weighed.left.t()).numpy(), left, rtol=1e-6)
    np.testing.assert_allclose((weighed.right @ weighed.right.t()).numpy(), right, rtol=1e-6)
    first = output_energy(weights["layer.0.q"], second(q[0]), second(q[1]))
    third = output_energy(weights["layer.0.o"], second(o[0]), second(o[1]))
    assert squared(weighed.seen(0)) == pytest.approx(first, rel=1e-4)
    assert squared(weighed.seen(2)) == pytest.approx(third, rel=1e-4)
    assert squared(weighed.seen(1)) == pytest.approx((first + third) / 2, rel=1e-4)


def test_a_part_of_a_fused_weight_has_its_own_block_of_gradients():
    parts = [
        Target(f"h.0.c_attn:{name}", "h.0.c_attn", "linear", 4, 4, part=Part(name, 4 * n, 4 * n + 4))
        for n, name in enumerate("qkv")
    ]
    known, rows = statistics(parts)
    inputs, gradients = rows["h.0.c_attn"]
    assert gradients.shape[1] == 12
    weights = {part.name: random(4, 4, seed=n) for n, part in enumerate(parts)}
    weighed = weigh(parts, {part.name: Cut(rows="in") for part in parts}, weights, known, "auto", True)
    for n, part in enumerate(parts):
        wanted = output_energy(weights[part.name], second(inputs), second(gradients[:, 4 * n : 4 * n + 4]))
        assert squared(weighed.seen(n)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("weighting", ["inputs", "inputs_and_outputs"])
def test_missing_inputs_are_told(weighting):
    target = linear("layer.0.x", 4, 4)
    with pytest.raises(CalibrationError, match=r"layer\.0\.x saw no calibration input"):
        weigh([target], {target.name: Cut()}, {target.name: random(4, 4)}, NOTHING, weighting, True)


def test_missing_gradients_are_told():
    target = linear("layer.0.x", 4, 4)
    known, _ = statistics([target], gradients=False)
    with pytest.raises(CalibrationError, match=r"layer\.0\.x has no output gradients"):
        weigh([target], {target.name: Cut()}, {target.name: random(4, 4)}, known, "inputs_and_outputs", True)
