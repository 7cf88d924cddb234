"""Which layers in which precision: by accuracy and measured time together."""
