"""BentoML around the engine; MODEL names the file."""

import os

import bentoml
import numpy as np
from session import open_session


@bentoml.service(workers=1, traffic={"timeout": 60})
class Echo:
    """x as nested lists → y as nested lists."""

    def __init__(self) -> None:
        self.engine = open_session(os.environ["MODEL"])

    @bentoml.api
    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.engine(x.astype(np.float32))
