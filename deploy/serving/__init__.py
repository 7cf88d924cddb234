"""The server of a bundle: Open Inference Protocol v2 over HTTP and gRPC, with dynamic batching.

    options.py → repository.py → model.py (readiness.py, guards.py, batcher.py) → rest.py,
    grpc_service.py → lifecycle.py

Needs the `serve` extra; nothing here needs torch. See docs/serving.md.
"""
