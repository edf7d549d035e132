"""Bits per byte, checkable tasks, samples, drift, and the report of a run."""

from etymon.evaluate.comparison import Change, Comparison
from etymon.evaluate.drift import Drift, drift
from etymon.evaluate.environment import Environment, environment
from etymon.evaluate.measures import HeldOut, Measure, measure, retrieval, similarity, similarity_of_pairs
from etymon.evaluate.model import describe
from etymon.evaluate.perplexity import BitsPerByte, PerplexityConfig, bits_per_byte, difference
from etymon.evaluate.pseudo import PseudoPerplexity, pseudo_perplexity
from etymon.evaluate.report import write_report
from etymon.evaluate.samples import Samples, write_samples
from etymon.evaluate.tasks import Accuracy, Task, TaskResult, Verdict, compare

__all__ = [
    "Accuracy",
    "BitsPerByte",
    "Change",
    "Comparison",
    "Drift",
    "Environment",
    "HeldOut",
    "Measure",
    "PerplexityConfig",
    "PseudoPerplexity",
    "Samples",
    "Task",
    "TaskResult",
    "Verdict",
    "bits_per_byte",
    "compare",
    "describe",
    "difference",
    "drift",
    "environment",
    "measure",
    "pseudo_perplexity",
    "retrieval",
    "similarity",
    "similarity_of_pairs",
    "write_report",
    "write_samples",
]
