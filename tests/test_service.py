"""The example service under load, on the loopback address."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deepinv as dinv
import numpy as np
import pytest
from PIL import Image

import learnreg as lr

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "service.py"


def png(height, width, seed=0):
    values = np.random.default_rng(seed).random((height, width, 3)) * 255
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    lr.save_model(folder / "model.safetensors", lr.Energy(physics, lr.regularizers.TV()))
    spec = importlib.util.spec_from_file_location("service", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = uvicorn.Config(
        module.make_app(str(folder)), host="127.0.0.1", port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


def post(address, data, query=""):
    request = urllib.request.Request(f"{address}/reconstruct{query}", data=data, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_many_requests_at_once_are_all_answered_with_certificates(address):
    images = [png(40 + i % 3, 50, i) for i in range(18)]
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda data: post(address, data), images))
    for i, (status, headers, body) in enumerate(answers):
        clean = Image.open(io.BytesIO(body))
        assert status == 200 and clean.size == (50, 40 + i % 3)
        values = clean.size[0] * clean.size[1] * 3
        assert float(headers["x-distance"]) <= values**0.5 / 255
        assert headers["x-evidence"] == "certified" and headers["x-status"] == "converged"
    assert answers[0][2] == post(address, images[0])[2], "load changes no result"


@pytest.mark.parametrize(
    ("data", "query", "status"),
    [(b"no picture", "", 415), (b"", "", 415), (png(40, 40), "?quality=best", 422)],
)
def test_bad_requests_are_told_apart_from_failures(address, data, query, status):
    code, _, body = post(address, data, query)
    assert code == status and json.loads(body)["detail"]


def test_health_names_the_model(address):
    with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:
        assert "TV" in json.loads(answer.read())["model"]
