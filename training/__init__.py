"""Training: mesh and sharding, train state, optimizer, EMA, checkpoints, tasks and the loop."""
