"""The main job from a run file to results: what ties all other folders together."""

from epim_nas.pipeline.config import RunConfig, load_run_config
from epim_nas.pipeline.driver import search

__all__ = ["RunConfig", "load_run_config", "search"]
