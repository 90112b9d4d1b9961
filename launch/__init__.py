"""How a run starts elsewhere: on this host, under SLURM, on Cloud TPU, on Kubernetes."""
