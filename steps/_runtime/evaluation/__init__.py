"""Scoring a model: the runner behind the step eval/model_eval."""
