"""From a trained PyTorch model to a verified, fast engine: build, load, verify, compare.

    bundle = deploy.build("model.pt", config=deploy.BuildConfig(inputs=("1x3x224x224",)))
    engine = deploy.load("model.deploy")
    outputs = engine({"x": array})

`load` needs no torch. Heavy dependencies are imported by the functions that need them.
"""
