import numpy as np
import torch

from fewfold.distill.bert_adam import BertAdam


def test_it_follows_the_published_update():
    generator = np.random.default_rng(0)
    start, gradients = generator.normal(size=(3, 4)), generator.normal(size=(5, 3, 4))
    lr, (b1, b2), eps, decay = 0.1, (0.9, 0.99), 1e-6, 0.01
    p, m, v = start.copy(), np.zeros((3, 4)), np.zeros((3, 4))
    for g in gradients:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (np.sqrt(v) + eps) + decay * p)
    parameter, still = torch.nn.Parameter(torch.from_numpy(start.copy())), torch.nn.Parameter(torch.ones(2))
    optimizer = BertAdam([parameter, still], lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)
    for g in gradients:
        parameter.grad = torch.from_numpy(g)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), p, rtol=1e-12)
    assert torch.equal(still, torch.ones(2))


def test_its_state_is_saved():
    def trained(steps, state=None, start=None):
        parameter = torch.nn.Parameter(torch.ones(3) if start is None else start)
        optimizer = BertAdam([parameter])
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            parameter.grad = parameter.detach() * 2
            optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    middle, state = trained(3)
    assert torch.equal(trained(2, state, middle.clone())[0], trained(5)[0])
    assert not torch.equal(trained(2, None, middle.clone())[0], trained(5)[0])
