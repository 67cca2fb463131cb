"""The second floor: a certified reconstruction layer inside a training loop of your own, here with
Adam.

    python examples/own_training_loop.py [epochs]

``Reconstructor`` is an ``nn.Module`` and a ``deepinv.models.Reconstructor``; its backward pass is
the implicit hypergradient, so memory does not grow with the number of lower-level iterations.
"""

import sys

import deepinv as dinv
import torch

import learnreg as lr

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
train, test = lr.data.pairs("phantoms", physics, size=48, split=(8, 4), seed=0)
model = lr.Reconstructor(lr.Energy(physics, lr.regularizers.FoE(filters=8, size=3)), eps=1e-2)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

for epoch in range(epochs):
    for batch in train.batches(size=4, seed=epoch):
        loss = 0.5 * (model(batch.y, physics) - batch.x).square().sum() / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        quality = lr.metrics.psnr(model(test.y, physics), test.x).mean()
    print(f"epoch {epoch}: training loss {loss:.3f}, held-out PSNR {quality:.2f} dB")
