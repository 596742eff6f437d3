"""Jobs for clusters: what they need, and a launcher each for Ray, SLURM and Kubernetes."""

from epim_nas.launch.job import Job, Resources, prepare

__all__ = ["Job", "Resources", "prepare"]
