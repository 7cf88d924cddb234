"""What a model is fed: the inputs that it takes, and the data that calibrate and judge."""
