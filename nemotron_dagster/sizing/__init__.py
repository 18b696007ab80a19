"""How much memory a job needs on each GPU, from numbers alone: an estimate, told before anything is submitted."""
