"""The server of a bundle: Open Inference Protocol v2 over HTTP and gRPC, with dynamic batching.

    options.py → models/ (opened, proven, guarded) → batching/ → http/, grpc/ → lifecycle.py

Needs the `serve` extra; nothing here needs torch. See docs/serving.md.
"""
