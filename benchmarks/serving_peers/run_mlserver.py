"""MLServer around the engine: python run_mlserver.py PORT MODEL.onnx."""

import asyncio
import logging
import sys

from mlserver import MLServer, ModelSettings, Settings
from mlserver.settings import ModelParameters
from mlserver_model import EngineModel


async def main(port: int, model: str) -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_port=port + 2,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    described = ModelSettings(
        name="echo", implementation=EngineModel, parameters=ModelParameters(uri=model)
    )
    await MLServer(settings).start([described])


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
