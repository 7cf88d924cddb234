"""A bundle for other people's servers: a Triton model repository, a KServe InferenceService."""

from deploy.exports.kserve import KserveOptions, export_kserve
from deploy.exports.triton import TritonExport, export_triton

__all__ = ["KserveOptions", "TritonExport", "export_kserve", "export_triton"]
