"""The parts of `RetryRouter`: a call, its routes, their order and their cost."""
