"""Search spaces: which choices every layer has, and which layers share one."""

from epim_nas.space.config import SpaceConfig, load_space_config
from epim_nas.space.space import Group, SearchSpace

__all__ = ["Group", "SearchSpace", "SpaceConfig", "load_space_config"]
