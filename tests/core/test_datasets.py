"""Datasets and loaders of PyTorch in the place of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import deepinv as dinv
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import learnreg as lr
from learnreg.core.datasets import collect
from learnreg.core.errors import InputError
from learnreg.data import Pairs, from_dataset, phantoms


def energy() -> lr.Energy:
    return lr.Energy(dinv.physics.Denoising(), lr.regularizers.TV())


def pair(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    x = phantoms(n, 16, 0)
    return x, x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


class Items(Dataset[object]):
    """A dataset of given items."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


class Stream(IterableDataset[object]):
    """A dataset without a length, and without an end."""

    def __iter__(self) -> Iterator[object]:
        while True:
            yield from zip(*pair(), strict=True)


def forms() -> list[object]:
    x, y = pair()
    whole = TensorDataset(x, y)
    return [
        whole,
        Subset(whole, range(5)),
        DataLoader(whole, batch_size=2),
        DataLoader(whole, batch_size=None),
        Items(*({"x": a, "y": b} for a, b in whole)),
        Items(*([a.numpy(), b.numpy()] for a, b in whole)),
        Items(*((a, b, {}) for a, b in whole)),
    ]


@pytest.mark.parametrize("form", range(7))
def test_every_form_gives_the_problem_of_the_same_pairs(form: int) -> None:
    x, y = pair()

    problem = lr.BilevelProblem(energy(), forms()[form])  # type: ignore[arg-type]

    assert problem.truth is not None and torch.equal(problem.truth, x)
    assert isinstance(problem.data, torch.Tensor) and torch.equal(problem.data, y)


@pytest.mark.parametrize("form", [0, 2, 3])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_limit_takes_the_first_ones(form: int, limit: int) -> None:
    problem = lr.BilevelProblem(energy(), forms()[form], limit=limit)  # type: ignore[arg-type]

    assert problem.truth is not None and torch.equal(problem.truth, pair()[0][:limit])


def test_streams_are_read_up_to_the_limit() -> None:
    assert lr.BilevelProblem(energy(), Stream(), limit=7).size == 7


def test_what_does_not_fit_is_refused_at_the_first_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnreg.core.memory.free_memory", lambda: 100_000)

    class Large(Items):
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: int) -> object:
            assert index == 0, "the second item was read"
            return tuple(t[0] for t in pair(1))

    with pytest.raises(InputError, match=r"1000000000 pairs of .*about 16 pairs.*limit="):
        lr.BilevelProblem(energy(), Large())
    with pytest.raises(InputError, match="limit="):
        lr.BilevelProblem(energy(), Stream())


def test_deepinvs_own_files(tmp_path: Path) -> None:
    x, _ = pair()
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    path = dinv.datasets.generate_dataset(
        TensorDataset(x),
        physics,
        tmp_path,
        train_datapoints=5,
        test_dataset=None,
        verbose=False,
        show_progress_bar=False,
    )
    dataset = dinv.datasets.HDF5Dataset(path, train=True)

    problem = lr.BilevelProblem(lr.Energy(physics, lr.regularizers.TV()), dataset)
    pairs = from_dataset(dataset, physics)

    assert problem.truth is not None and torch.equal(problem.truth, x)
    assert isinstance(pairs, Pairs) and torch.equal(pairs.x, x)
    dataset.close()


def test_parameters_of_every_image() -> None:
    x, _ = pair()
    masks = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    physics = dinv.physics.Inpainting(img_size=(1, 16, 16), mask=torch.ones(1, 16, 16))
    data = Items(*((a, a * m, {"mask": m}) for a, m in zip(x, masks, strict=True)))
    lower = lr.Energy(physics, lr.regularizers.TV() + lr.regularizers.Tikhonov(1e-2))

    for form in (data, DataLoader(data, batch_size=2)):
        found = lr.BilevelProblem(lower, form).data
        assert isinstance(found, lr.Measured) and torch.equal(found.params["mask"], masks)
        assert torch.equal(from_dataset(form, physics).params["mask"], masks)


def test_measurements_without_truth() -> None:
    _, y = pair()
    data = Items(*((torch.tensor(torch.nan), b) for b in y))

    for form in (data, DataLoader(data, batch_size=2)):
        assert collect(form).x is None
        assert lr.BilevelProblem(energy(), form, loss=lr.SURE(sigma=0.1)).truth is None
        with pytest.raises(InputError, match="without true images"):
            from_dataset(form, dinv.physics.Denoising())
        with pytest.raises(InputError, match="pairs"):
            lr.BilevelProblem(energy(), form)


def test_pairs_that_are_a_dataset_as_well_stay_pairs() -> None:
    class Both(Dataset[object]):
        def __init__(self) -> None:
            self.x, self.y = pair()

        def __len__(self) -> int:
            return len(self.x)

    assert lr.BilevelProblem(energy(), Both()).size == 5


def test_items_that_are_none_are_named() -> None:
    x, y = pair()
    one = (x[0], y[0])
    for data, words in (
        (Items(), "no items"),
        (DataLoader(Items(*[one] * 0), batch_size=2), "no items"),
        (TensorDataset(x), "item 0.*tuple of 1"),
        (TensorDataset(x, y, x, y), "item 0.*tuple of 4"),
        (Items(x[0]), "item 0.*Tensor"),
        (Items(*[(x[0], 3)]), "y in item 0.*class label"),
        (TensorDataset(x, torch.arange(5)), "y in item 0.*class label"),
        (TensorDataset((x * 255).to(torch.uint8), y), "x in item 0.*uint8"),
        (Items((x[0], "a file")), "item 0|y"),
        (Items(one, (x[0], y[0, :, :8])), "y in item 1.*as in item 0"),
        (Items(one, (x[0].double(), y[0])), "x in item 1.*float64.*as in item 0"),
        (Items(one, (*one, {"mask": x[0]})), "item 1.*parameters"),
        (Items((*one, {"mask": 1.0})), "belong together"),
        (DataLoader(TensorDataset(x, y), batch_size=2, collate_fn=lambda b: b[0][0]), "item 0"),
    ):
        with pytest.raises(InputError, match=words):
            lr.BilevelProblem(energy(), data)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_limits_that_are_none(limit: object) -> None:
    with pytest.raises(InputError, match="limit"):
        lr.BilevelProblem(energy(), TensorDataset(*pair()), limit=limit)  # type: ignore[arg-type]


def test_a_limit_is_for_datasets() -> None:
    x, y = pair()
    pairs = Pairs(x, y, dinv.physics.Denoising(), tuple("abcde"))

    with pytest.raises(InputError, match=r"pairs\[:n\]"):
        lr.BilevelProblem(energy(), pairs, limit=3)


def test_a_run_on_a_dataset_is_that_on_the_same_pairs() -> None:
    x, y = pair(2)
    pairs = Pairs(x, y, dinv.physics.Denoising(), ("a", "b"))
    budget = lr.Budget(steps=1)

    runs = [
        lr.learn(lr.BilevelProblem(energy(), data), lr.MAID(), budget=budget, seed=0)
        for data in (pairs, TensorDataset(x, y))
    ]

    assert torch.equal(runs[0].thetas, runs[1].thetas)
    assert np.isfinite(runs[0].record.column("loss")).all()
