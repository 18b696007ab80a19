"""From a step, a config name, overrides and a profile to one frozen job."""
