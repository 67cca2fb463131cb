"""A learned model behind HTTP: images in, certified reconstructions out.

python examples/service.py report [port]      (needs: pip install "learnreg[service]")
curl --data-binary @noisy.png "http://127.0.0.1:8000/reconstruct?quality=draft" -o clean.png -D -

Headers of the answer say how far it can be from the exact minimizer. The service holds no state:
start as many as there are cores behind a proxy of your own, which also says who may come in.
"""

import io
import sys
import threading
from dataclasses import replace

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image, UnidentifiedImageError

import learnreg as lr

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 25_000_000
AT_ONCE, WAITING = 2, 16  # solves at a time, and requests that may wait for one


def make_app(path: str, max_seconds: float = 60.0) -> FastAPI:
    """The application for one model."""
    model = lr.load(path, max_seconds=max_seconds)
    by_quality = {
        quality: model.with_demands(replace(model.demands, quality=quality))
        for quality in ("draft", "fine")
    }
    room, working = threading.Semaphore(AT_ONCE + WAITING), threading.Semaphore(AT_ONCE)
    app = FastAPI(title="learnreg")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"model": repr(model), "version": lr.__version__}

    @app.post("/reconstruct")
    async def reconstruct(request: Request, quality: str = "draft") -> Response:
        if quality not in by_quality:
            raise HTTPException(422, f"quality: expected one of {', '.join(by_quality)}")
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MOST_BYTES:
                raise HTTPException(413, f"more than {MOST_BYTES} bytes")
        if not room.acquire(blocking=False):
            raise HTTPException(503, "busy", headers={"Retry-After": "5"})
        try:
            return await run_in_threadpool(answer, by_quality[quality], bytes(data))
        finally:
            room.release()

    def answer(model: lr.models.TrainedModel, data: bytes) -> Response:
        """One solve, in a thread."""
        with working:
            try:
                image = Image.open(io.BytesIO(data))
                if image.width * image.height > MOST_PIXELS:
                    raise HTTPException(413, f"more than {MOST_PIXELS} pixels")
                clean, solution = model.with_certificate(image)
            except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
                raise HTTPException(415, f"no image that can be read: {error}") from error
            except lr.InputError as error:
                raise HTTPException(422, str(error)) from error
            except lr.SolveError as error:
                raise HTTPException(500, str(error)) from error
        out = io.BytesIO()
        clean.save(out, format="TIFF" if clean.mode == "F" else "PNG")
        headers = {
            "X-Distance": f"{float(solution.error.max()):.6e}",  # over all pixels of the image
            "X-Evidence": solution.kind.label,
            "X-Status": solution.status[0].name.lower(),
        }
        kind = "image/tiff" if clean.mode == "F" else "image/png"
        return Response(out.getvalue(), media_type=kind, headers=headers)

    return app


if __name__ == "__main__":
    import uvicorn

    torch.set_num_threads(max(1, torch.get_num_threads() // AT_ONCE))
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    uvicorn.run(make_app(sys.argv[1]), host="127.0.0.1", port=port)
