"""How sliced weights run: shared products counted in every graph, and nothing stale, whoever calls in whatever way."""

import copy
import threading

import numpy as np
import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fewfold
from fewfold import SharedFactors, TensorTrain, Tucker
from fewfold.store import HOME, stores_of

LAYERS = 2
FACTORED = [SharedFactors(rank=6, weighting="none"), Tucker(rank=6, bank=5, weighting="none")]
# a layer: x·U once for q, k and v, then a core and a factor each (7); three each for o, the first and the second
# feed-forward weight; everything else in the model multiplies activations
CHAINED = 16 * LAYERS
FOLDED = 11 * LAYERS  # q, k, v and o need no core, the first feed-forward weight neither


def bert(**kwargs):
    config = tf.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, attn_implementation="eager", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **kwargs,
    )  # fmt: skip
    torch.manual_seed(0)
    return tf.BertModel(config, add_pooling_layer=False).eval()


def shared(config=FACTORED[0], form="auto", **kwargs):
    return fewfold.set_form(fewfold.compress(bert(**kwargs), config), form)


@pytest.fixture
def ids():
    return torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(1))


def run(model, ids):
    return model(input_ids=ids).last_hidden_state


class Products(TorchDispatchMode):
    """Counts products of matrices; those of activations with each other are batched, and left out."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.linear):
            self.count += 1
        elif func._overloadpacket is torch.ops.aten.matmul:  # whole in inference mode
            self.count += args[1].dim() == 2
        return func(*args, **(kwargs or {}))


def products(model, ids):
    with Products() as counter:
        run(model, ids)
    return counter.count


def in_graph(graph):
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return sum(name.startswith(("aten.mm", "aten.addmm", "aten.linear")) or "_nn.linear" in name for name in names)


@pytest.mark.parametrize("config", FACTORED, ids=lambda c: c.method)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_eager_inference_shares_products(config, mode, ids):
    with mode():
        model = shared(config, "chained")
        run(model, ids)  # mixes the cores, once
        assert products(model, ids) == CHAINED
        fewfold.set_form(model, "folded")
        run(model, ids)
        assert products(model, ids) == FOLDED
        fewfold.set_form(model, "rebuilt")
        run(model, ids)
        assert products(model, ids) == 6 * LAYERS


def test_training_shares_products_too(ids):
    assert products(shared().train(), ids) == CHAINED
    mixed = products(shared(FACTORED[1]).train(), ids)
    assert mixed == CHAINED + 6 * LAYERS  # every target mixes its own cores


def test_the_published_order_reads_thrice(ids):
    """Without sharing, q, k and v would each multiply by U: the count above is worth having."""
    model = shared(form="chained")
    for module in model.modules():
        if hasattr(module, "reading"):
            module.reading = type(module.reading)()
            module.reading.join(module.name)
    with torch.no_grad():
        run(model, ids)
        assert products(model, ids) == CHAINED + 2 * LAYERS


@pytest.mark.parametrize("config", FACTORED, ids=lambda c: c.method)
def test_compiled_inference_shares_products(config, ids):
    from torch._dynamo.backends.common import aot_autograd

    counts = []

    def count(graph, inputs):
        counts.append(in_graph(graph.graph))
        return graph.forward

    model = shared(config, "chained")
    with torch.no_grad():
        expected = run(model, ids)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=aot_autograd(fw_compiler=count))
        torch.testing.assert_close(compiled(input_ids=ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        assert counts == [CHAINED if config.method == "shared_factors" else CHAINED + 6 * LAYERS]
        for store in stores_of(model).values():  # a graph holds nothing that could be stale
            for parameter in store.parameters():
                parameter.mul_(1.5)
        expected = run(model, ids)
        torch.testing.assert_close(compiled(input_ids=ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_exported_graphs_share_products(strict, ids):
    model = shared(form="chained")
    with torch.no_grad():
        program = torch.export.export(model, (), {"input_ids": ids}, strict=strict)
        assert in_graph(program.graph) == CHAINED
        torch.testing.assert_close(program.module()(input_ids=ids).last_hidden_state, run(model, ids))


@pytest.mark.full
def test_onnx_graphs_share_products(ids, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = shared(form="chained")
    model.config.return_dict = False
    with torch.no_grad():
        expected = model(input_ids=ids)[0]
        program = torch.onnx.export(model, (ids,), dynamo=True, verbose=False, input_names=["ids"], optimize=True)
    program.save(str(tmp_path / "model.onnx"))
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    matmuls = sum(node.op_type in ("MatMul", "Gemm") for node in graph.node)
    assert matmuls == CHAINED + 2 * LAYERS  # and attention's two
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: ids.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)
    stored = sum(int(np.prod(entry.dims)) for entry in graph.initializer)
    assert stored < sum(parameter.numel() for parameter in model.parameters()) + 300


def gradients(model, ids):
    model.zero_grad()
    (run(model, ids) * torch.linspace(-1, 1, 16)).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("config", [*FACTORED, TensorTrain(rank=3)], ids=lambda c: c.method)
def test_gradient_checkpointing_changes_no_gradient(config, reentrant, ids):
    model = shared(config).train()
    expected = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
    for _ in range(2):
        found = gradients(model, ids)
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_gradients_of_one_attention_run_again_by_hand(ids):
    """The very same input tensor comes twice: the second pass must not take what the first one left."""
    model = shared().train()
    attention = model.encoder.layer[0].attention.self
    states = torch.randn(2, 7, 16, requires_grad=True)
    (plain,) = torch.autograd.grad(attention(states)[0].square().sum(), states)
    (again,) = torch.autograd.grad(
        checkpoint(lambda x: attention(x)[0], states, use_reentrant=False).square().sum(), states
    )
    torch.testing.assert_close(again, plain)


def test_autocast(ids):
    model = shared(FACTORED[1])
    with torch.no_grad():
        full = run(model, ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = run(model, ids)
        after = run(model, ids)
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)
    assert float((half.float() - full).abs().max()) > 0
    torch.testing.assert_close(after, full, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(model.train(), ids).float().sum().backward()


def test_a_hook_on_one_of_three_readers_is_its_own(ids):
    model = shared()
    dense = copy.deepcopy(model)
    fewfold.densify(dense)
    for one in (model, dense):
        key = one.encoder.layer[0].attention.self.key
        key.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        key.register_forward_hook(lambda module, args, output: output + 1)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(run(model, ids), run(dense, ids), rtol=1e-4, atol=1e-5)


def test_an_input_changed_in_place_between_readers_is_read_again(ids):
    model = shared(form="chained")
    attention = model.encoder.layer[0].attention.self
    states = torch.randn(1, 3, 16)
    with torch.no_grad():
        attention.query(states)
        states.mul_(2)
        torch.testing.assert_close(attention.key(states), attention.key(states.clone()))


def test_hooks_on_store_and_leaves_fire(ids):
    model = shared(FACTORED[1])
    with torch.no_grad():
        expected = run(model, ids)
        (store,) = stores_of(model).values()
        called = []
        handles = [store.register_forward_pre_hook(lambda *args: called.append("store"))]
        handles += [
            leaf.register_forward_pre_hook(lambda *args, name=name: called.append(name))
            for name, leaf in store.named_modules()
            if hasattr(leaf, "stored")
        ]
        torch.testing.assert_close(run(model, ids), expected, rtol=1e-4, atol=1e-5)
        assert set(called) == {"store", "factors.left", "factors.right", "cores.16x16", "mixes.16x16"}
        for handle in handles:
            handle.remove()
        called.clear()
        torch.testing.assert_close(run(model, ids), expected, rtol=1e-4, atol=1e-5)
        assert not called


def test_offloaded_tensors_come_when_called(ids):
    accelerate = pytest.importorskip("accelerate")
    model = shared(FACTORED[1])
    with torch.no_grad():
        expected = run(model, ids)
        offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
        (store,) = stores_of(offloaded).values()
        assert all(parameter.is_meta for parameter in store.parameters())
        torch.testing.assert_close(run(offloaded, ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", FACTORED, ids=lambda c: c.method)
def test_adapters_on_factors_count_wherever_these_are_used(config, ids):
    """An adapter on U changes what reads with it and what writes with it."""
    peft = pytest.importorskip("peft")
    model = shared(config)
    with torch.no_grad():
        plain = run(model, ids)
        wanted = peft.LoraConfig(target_modules=["left", "cores.16x16"], r=2, lora_alpha=4)
        adapted = peft.get_peft_model(model, wanted).base_model.model
        torch.testing.assert_close(run(adapted, ids), plain, rtol=1e-4, atol=1e-5)
        (store,) = stores_of(adapted).values()
        leaves = [store.factors["left"], store.cores["16x16"]]
        for leaf in leaves:
            leaf.lora_B["default"].weight.normal_(std=0.3)
        merged = copy.deepcopy(bert())
        fewfold.compress(merged, config)
        (other,) = stores_of(merged).values()
        for leaf, target in zip(leaves, (other.factors["left"], other.cores["16x16"]), strict=True):
            delta = leaf.lora_B["default"].weight @ leaf.lora_A["default"].weight
            target.weight.add_(2 * delta)
        found = run(adapted, ids)
        torch.testing.assert_close(found, run(merged, ids), rtol=1e-3, atol=1e-4)
        assert float((found - plain).abs().max()) > 1e-2
    run(adapted.train(), ids).square().sum().backward()
    assert all(leaf.lora_A["default"].weight.grad is not None for leaf in leaves)


def test_other_quantizers_take_the_factors(ids):
    quantization = pytest.importorskip("torchao.quantization")
    model = shared(FACTORED[1])
    with torch.no_grad():
        plain = run(model, ids)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        found = run(model, ids)
    difference = float((found - plain).abs().max())
    assert 0 < difference < 0.1 * float(plain.abs().max())


@pytest.mark.parametrize("own", [False, True], ids=["store-with-root", "store-by-itself"])
@pytest.mark.parametrize("config", FACTORED, ids=lambda c: c.method)
def test_sharded_training(config, own, ids, tmp_path):
    """FSDP2 around every layer, with the store sharded by the root or by itself: its tensors come when it is called."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = shared(config).train()
    expected, plain = run(model, ids).detach(), gradients(model, ids)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = copy.deepcopy(model)
        sharded.zero_grad()
        for layer in sharded.encoder.layer:
            fully_shard(layer, mesh=mesh)
        if own:
            for store in stores_of(sharded).values():
                fully_shard(store, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        for _ in range(2):
            torch.testing.assert_close(run(sharded, ids).detach(), expected, rtol=1e-4, atol=1e-5)
        found = {name: gradient.full_tensor() for name, gradient in gradients(sharded, ids).items()}
    finally:
        torch.distributed.destroy_process_group()
    assert set(found) == set(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [*FACTORED, TensorTrain(rank=3, bank=4)], ids=lambda c: c.method)
@pytest.mark.parametrize("form", ["chained", "folded", "rebuilt"])
def test_what_is_kept_follows_every_change(config, form, ids):
    model = shared(config, form)
    with torch.no_grad():
        (store,) = stores_of(model).values()
        seen = [run(model, ids)]

        def check():
            fresh = copy.deepcopy(model)  # keeps nothing
            seen.append(run(model, ids))
            torch.testing.assert_close(seen[-1], run(fresh, ids), rtol=1e-5, atol=1e-6)
            assert float((seen[-1] - seen[-2]).abs().max()) > 1e-4

        for parameter in store.parameters():
            parameter.mul_(1.3)
            check()
        name, leaf = next((n, m) for n, m in store.named_modules() if hasattr(m, "stored"))
        leaf.weight = torch.nn.Parameter(leaf.weight * 1.2)
        check()
        state = {key: value * 0.7 if name in key else value for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        check()
    optimizer = torch.optim.SGD(store.parameters(), lr=0.5)
    (run(model, ids) * torch.randn(2, 7, 16)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        check()
        store.float().half()
        store.float()
        leaf.weight.data.mul_(1.5)
        model.train().eval()
        check()


@pytest.mark.parametrize("form", ["chained", "folded", "rebuilt"])
def test_kept_biases_follow_every_change(form):
    """One of three readers has no bias at first; biases are written into, exchanged, taken away and given."""
    plain = bert()
    plain.encoder.layer[0].attention.self.key.bias = None
    model = fewfold.set_form(fewfold.compress(plain, FACTORED[0]), form)
    layer = model.encoder.layer[0]
    attention = layer.attention.self
    members = [attention.query, attention.key, attention.value, layer.intermediate.dense, layer.output.dense]
    changes = [
        lambda: members[0].bias.add_(0.5),
        lambda: setattr(members[2], "bias", torch.nn.Parameter(torch.full((16,), 0.3))),
        lambda: setattr(members[2], "bias", None),
        lambda: setattr(members[1], "bias", torch.nn.Parameter(torch.linspace(-1, 1, 16))),
        lambda: members[3].bias.sub_(0.4),
        lambda: members[4].bias.add_(torch.linspace(0, 1, 16)),
    ]
    states = torch.randn(2, 3, 16)
    inputs = [states, states, states, torch.randn(2, 3, 16), torch.randn(2, 3, 64)]
    with torch.no_grad():
        for change, changed in zip(changes, (0, 2, 2, 1, 3, 4), strict=True):
            before = [member(given) for member, given in zip(members, inputs, strict=True)]
            change()
            after = [member(given) for member, given in zip(members, inputs, strict=True)]
            for number, (member, given, found) in enumerate(zip(members, inputs, after, strict=True)):
                expected = given @ member.assembled_weight().t()
                expected = expected if member.bias is None else expected + member.bias
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
                assert (float((found - before[number]).abs().max()) > 0.1) is (number == changed)


def test_a_factor_is_laid_out_once_and_forgotten(ids):
    model = shared(form="folded")
    (store,) = stores_of(model).values()
    with torch.no_grad():
        run(model, ids)
        laid = {name: kept for name, (_, kept) in store._kept.items()}
        assert set(laid) == {"left", "right"}  # the first feed-forward weight reads with the other one
        for name, kept in laid.items():
            torch.testing.assert_close(kept, store.factors[name].weight.t(), rtol=0, atol=0)
        model.encoder.layer[0].attention.self.query.bias.add_(1)
        run(model, ids)
        assert all(store._kept[name][1] is kept for name, kept in laid.items())
    model.eval()
    assert not store._kept


def test_a_hook_between_readers_changes_how_the_rest_runs():
    """What a prepared member read has a column of ones: a member that runs unprepared in the same pass reads anew."""
    model = shared(form="chained")
    attention = model.encoder.layer[0].attention.self
    (store,) = stores_of(model).values()
    states = torch.randn(1, 3, 16)
    with torch.no_grad():
        expected = attention.key(states), attention.value(states)
        attention.query(states)
        handle = store.register_forward_hook(lambda module, args, output: None)
        torch.testing.assert_close(attention.value(states), expected[1])
        handle.remove()
        torch.testing.assert_close(attention.key(states), expected[0])


def test_two_threads_at_once(ids):
    model = shared(form="chained")
    batches = [torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(n)) for n in range(8)]
    with torch.no_grad():
        expected = [run(model, batch) for batch in batches]
    wrong = []

    def work(offset):
        with torch.no_grad():
            for turn in range(40):
                number = (turn + offset) % len(batches)
                found = run(model, batches[number])
                if not torch.allclose(found, expected[number], rtol=1e-5, atol=1e-6):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_threads_on_the_same_tensor():
    """Both read one input: neither may take a product that belongs to the other's pass."""
    model = shared().train()
    attention = model.encoder.layer[0].attention.self
    states = torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = attention(states)[0]
    errors = []

    def work(grad):
        for _ in range(60):
            with torch.set_grad_enabled(grad):
                found = attention(states)[0]
            if found.requires_grad is not grad or not torch.allclose(found, expected, atol=1e-6):
                errors.append(grad)

    threads = [threading.Thread(target=work, args=(grad,)) for grad in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_nothing_is_held_after_a_pass(ids):
    model = shared(form="chained").train()
    run(model, ids).sum().backward()
    (store,) = stores_of(model).values()
    held = [reading._eager.held for reading in store._readings.values()]
    assert held
    assert all(one.input is None and one.product is None for one in held)


def test_the_store_is_in_the_body_once(ids):
    model = tf.BertForMaskedLM(bert().config)
    fewfold.compress(model, SharedFactors(rank=4, weighting="none"))
    keys = [key for key in model.state_dict() if HOME in key]
    assert keys
    assert all(key.startswith(f"bert.{HOME}.shared_factors.") for key in keys)
    assert sum("factors.left" in name for name, _ in model.named_parameters(remove_duplicate=False)) == 1
    layer = copy.deepcopy(model.bert.encoder.layer[0])  # a layer by itself still runs
    states = torch.randn(1, 3, 16)
    torch.testing.assert_close(layer(states), model.bert.encoder.layer[0](states))


@pytest.mark.parametrize(
    "config",
    [
        SharedFactors(rank=(48, 40)),
        Tucker(rank=(48, 40), bank=20),
        TensorTrain(rank=24),
        TensorTrain(rank=24, bank=20, cores=3),
    ],
    ids=["shared", "tucker", "train", "train-3"],
)
def test_fresh_slices_have_the_variance_of_fresh_linears(config):
    """var(W) = var(U) var(core) var(V) d₁ d₂ = 1 / (3 · in), and nothing is zero."""
    model = tf.BertModel(tf.BertConfig(vocab_size=8, hidden_size=64, num_hidden_layers=4, num_attention_heads=2,
                                       intermediate_size=256), add_pooling_layer=False)  # fmt: skip
    fewfold.compress(model, config, fit=False)
    weights = torch.cat([
        module.assembled_weight().flatten() for module in model.modules() if hasattr(module, "assembled_weight")
    ])  # fmt: skip
    assert float(weights.var()) == pytest.approx(1 / (3 * 64), rel=0.25)
    assert all(float(parameter.abs().max()) > 0 for parameter in stores_of(model)[config.method].parameters())
