"""BentoML around the engine: python run_bentoml.py PORT MODEL.onnx."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "MODEL": sys.argv[2]}
    os.chdir(Path(__file__).parent)
    port = ["--host", "127.0.0.1", "--port", sys.argv[1]]
    os.execv(
        sys.executable,
        [sys.executable, "-m", "bentoml", "serve", "bento_service:Echo", *port, "--quiet"],
    )
